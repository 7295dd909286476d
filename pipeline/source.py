"""Source images in ImageNet's folder layouts, found without being told.

Images of a split: `<split>/<wnid>/*.JPEG` or flat `<split>/*.JPEG`; annotations:
`Annotations/<split>/*.xml` or `Annotations/<split>/<wnid>/*.xml`; each also inside the
`Data/CLS-LOC` and `Annotations/CLS-LOC` trees of the Kaggle download. The folder decides
the class; where there is none, the annotation does.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.errors import UsageError
from pipeline.shards import ShardCounts
from transforms.annotations import AnnotationError, parse_annotation
from transforms.selection import lowest_hashes
from transforms.taxonomy import OUTSIDE, Taxonomy

ANY_FOLDER = "/"
"""Stands for any folder in the index of annotations; no folder can be called so."""
IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")
_IMAGE_TREES = ("", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC", "CLS-LOC")
_ANNOTATION_TREES = (
    "",
    "Annotations",
    "Annotations/CLS-LOC",
    "ILSVRC/Annotations/CLS-LOC",
    "CLS-LOC",
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where one split's files lie.

    Attributes:
      split: its name.
      root: the input folder; image paths are recorded relative to it.
      images: folder of the images.
      annotations: folder of the annotations.
    """

    split: str
    root: str
    images: str
    annotations: str


@dataclasses.dataclass(frozen=True)
class SourceImage:
    """One image of the input, and its annotation.

    Attributes:
      key: file name without its suffix.
      path: absolute path of the image.
      name: path relative to the input, with forward slashes, as records show it.
      wnid: class; empty if neither folder nor annotation tells.
      label: superclass label, `OUTSIDE` with an empty wnid.
      annotation: absolute path of the XML file, None if there is none.
    """

    key: str
    path: str
    name: str
    wnid: str
    label: int
    annotation: str | None


@dataclasses.dataclass(frozen=True)
class Listing:
    """All images of one split.

    Attributes:
      images: those of the taxonomy's classes, in order of `name`; after `--limit`.
      outside: number of images of other classes, which are only counted.
      other_files: number of files beside the images that are no images by their name.
    """

    images: tuple[SourceImage, ...]
    outside: int
    other_files: int


@dataclasses.dataclass(frozen=True)
class SplitTotals:
    """What the whole of a split holds. It travels with every shard, so that nothing that
    gets lost on the way goes unnoticed.

    Attributes:
      split: its name.
      counts: its numbers of shards.
      listed, outside, other_files: of its `Listing`; `listed` counts the images.
    """

    split: str
    counts: ShardCounts
    listed: int
    outside: int
    other_files: int


@dataclasses.dataclass(frozen=True)
class SourceShard:
    """The unit of work: a hash bucket of source images.

    Attributes:
      totals: of its split.
      shard: number of the bucket.
      images: in order of (key, name): of equal keys, the lowest path comes first.
    """

    totals: SplitTotals
    shard: int
    images: tuple[SourceImage, ...]


def find_layout(root: str, annotations: str | None, split: str) -> Layout:
    """Finds a split's folders.

    Args:
      root: the input folder, or the split's own folder.
      annotations: a folder with annotations, None to look beside the images.
      split: such as `val`.

    Raises:
      UsageError: no folder of images or of annotations; the message lists what was tried.
      OSError: a folder cannot be read.
    """
    if not os.path.isdir(root):
        raise UsageError(f"--input {root} is not a folder that can be read")
    candidates = [os.path.join(root, tree, split) for tree in _IMAGE_TREES]
    if os.path.basename(os.path.normpath(root)) == split:
        candidates.append(os.path.normpath(root))
    images = next((path for path in candidates if os.path.isdir(path)), None)
    if images is None:
        raise UsageError(
            f"no folder {split!r} in --input {root}: looked for "
            + ", ".join(os.path.join(tree, split) for tree in _IMAGE_TREES)
            + ". Name another folder, or the split with --split"
        )
    if annotations is not None:
        if not os.path.isdir(annotations):
            raise UsageError(f"--annotations {annotations} is not a folder that can be read")
        bases = [annotations]
    else:
        bases = [root, os.path.dirname(images), os.path.dirname(os.path.normpath(root))]
    tried = [
        os.path.join(base, tree, split)
        for base in bases
        for tree in _ANNOTATION_TREES
        if os.path.join(base, tree, split) != images
    ]
    if annotations is not None:
        tried.append(annotations)
    found = next((path for path in tried if os.path.isdir(path) and _has_xml(path)), None)
    if found is None:
        where = annotations if annotations is not None else root
        raise UsageError(
            f"no annotations of {split!r} in {where}: expected .xml files in "
            f"Annotations/{split} or Annotations/CLS-LOC/{split}. Name them with --annotations"
        )
    return Layout(split=split, root=root, images=images, annotations=found)


def _has_xml(folder: str) -> bool:
    """Whether a folder, or a folder in it, holds an XML file."""
    return next(_files(folder, (".xml",)), None) is not None


def _files(folder: str, suffixes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(sub-folder or "", file name) of the files in a folder and one level below it.

    A file with none of the suffixes comes as (sub-folder, ""). Hidden files are passed
    over. Sorted, so that the walk does not depend on the file system.
    """
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    subfolders = [entry.name for entry in found if entry.is_dir()]
    yield from _matching("", [entry.name for entry in found if not entry.is_dir()], suffixes)
    for subfolder in subfolders:
        if subfolder.startswith("."):
            continue
        with os.scandir(os.path.join(folder, subfolder)) as entries:
            names = sorted(entry.name for entry in entries if not entry.is_dir())
        yield from _matching(subfolder, names, suffixes)


def _matching(
    subfolder: str, names: Sequence[str], suffixes: Sequence[str]
) -> Iterator[tuple[str, str]]:
    for name in names:
        if name.lower().endswith(tuple(suffixes)):
            yield subfolder, name
        elif suffixes == IMAGE_SUFFIXES and not name.startswith("."):
            yield subfolder, ""


def list_images(layout: Layout, taxonomy: Taxonomy, limit: int | None = None) -> Listing:
    """Lists a split.

    Args:
      layout: of `find_layout`.
      taxonomy: which classes are ours.
      limit: keep the images with the lowest key hashes of each superclass, so many.

    Raises:
      OSError: a folder cannot be read, or an annotation that must tell the class cannot.
    """
    annotations = _index_annotations(layout)
    images = []
    counts: Counter[str] = Counter()
    for folder, file in _files(layout.images, IMAGE_SUFFIXES):
        if not file:
            counts["other"] += 1
            continue
        key = file[: file.rindex(".")]
        annotation = annotations.get((folder, key), annotations.get((ANY_FOLDER, key)))
        wnid = folder or _annotated_wnid(annotation)
        label = taxonomy.label_of(wnid)
        if label == OUTSIDE and wnid:
            counts["outside"] += 1
            continue
        path = os.path.join(layout.images, folder, file)
        name = os.path.relpath(path, layout.root).replace(os.sep, "/")
        images.append(SourceImage(key, path, name, wnid, label, annotation))
    if limit is not None:
        labels = np.asarray([image.label for image in images], np.int64)
        kept = lowest_hashes([i.key for i in images], labels, limit, seed=0, purpose="limit")
        images = [image for image, keep in zip(images, kept, strict=True) if keep]
    images.sort(key=lambda image: image.name)
    return Listing(tuple(images), outside=counts["outside"], other_files=counts["other"])


def _index_annotations(layout: Layout) -> dict[tuple[str, str], str]:
    """Path of each annotation by (folder, key), and by (`ANY_FOLDER`, key): one that lies in
    no folder, or the only one of its key."""
    found: dict[tuple[str, str], str] = {}
    by_key: dict[str, list[str]] = {}
    for folder, name in _files(layout.annotations, (".xml",)):
        key = name[: -len(".xml")]
        path = os.path.join(layout.annotations, folder, name)
        found[folder, key] = path
        by_key.setdefault(key, []).append(path)
    for key, paths in by_key.items():
        if ("", key) in found or len(paths) == 1:
            found[ANY_FOLDER, key] = found.get(("", key), paths[0])
    return found


def _annotated_wnid(annotation: str | None) -> str:
    """Class that an annotation names, "" if there is no readable one."""
    if annotation is None:
        return ""
    with open(annotation, "rb") as file:
        data = file.read()
    try:
        return parse_annotation(data).wnid or ""
    except AnnotationError:
        return ""


def make_shards(split: str, listing: Listing, counts: ShardCounts) -> list[SourceShard]:
    """Deals the images of a split into its source shards, empty ones included."""
    buckets: list[list[SourceImage]] = [[] for _ in range(counts.source)]
    for image in listing.images:
        buckets[counts.source_shard(image.key)].append(image)
    totals = SplitTotals(
        split=split,
        counts=counts,
        listed=len(listing.images),
        outside=listing.outside,
        other_files=listing.other_files,
    )
    return [
        SourceShard(
            totals=totals,
            shard=shard,
            images=tuple(sorted(bucket, key=lambda image: (image.key, image.name))),
        )
        for shard, bucket in enumerate(buckets)
    ]
