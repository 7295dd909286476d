"""Source images: what a split holds, and its shards.

The folder decides the class of an image; where there is none, its annotation does.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator

import numpy as np

from pipeline.files import FileInfo, files_of, missing, relative
from pipeline.layout import IMAGE_SUFFIXES, FoundFile, Layout, files_in
from pipeline.shards import ShardCounts
from transforms.annotations import AnnotationError, parse_annotation
from transforms.selection import lowest_hashes
from transforms.taxonomy import OUTSIDE, Taxonomy

ANY_FOLDER = "/"
"""Stands for any folder in the index of annotations; no folder can be called so."""


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
      md5, annotation_md5: hexadecimal, of the files' content where the storage tells it.
      mask: where its mask lies, a path or the mask itself; None without one.
      mask_md5: as `md5`.
    """

    key: str
    path: str
    name: str
    wnid: str
    label: int
    annotation: str | None
    md5: str | None = None
    annotation_md5: str | None = None
    mask: str | None = None
    mask_md5: str | None = None


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


def image_classes(images: str, annotations: str | None) -> Iterator[tuple[FileInfo, str]]:
    """(file, wnid) of every image in a split's folder; the wnid is empty if nothing tells it.

    Args:
      images: folder of the images.
      annotations: folder of the annotations, None if there is none.

    Raises:
      OSError: a folder cannot be read, or an annotation that must tell the class cannot.
    """
    index = None if annotations is None else _index_annotations(annotations)
    for file in files_in(images, IMAGE_SUFFIXES):
        if not file.name:
            continue
        wnid = file.folder
        if not wnid and index is not None:
            wnid = _annotated_wnid(index.get((ANY_FOLDER, _key(file))))
        info = file.info or files_of(file.path).info(file.path)
        if info is None:
            raise missing(file.path)
        yield info, wnid


def list_images(layout: Layout, taxonomy: Taxonomy, limit: int | None = None) -> Listing:
    """Lists a split.

    Args:
      layout: of `find_layout`.
      taxonomy: which classes are ours.
      limit: keep the images with the lowest key hashes of each superclass, so many.

    Raises:
      OSError: a folder cannot be read, or an annotation that must tell the class cannot.
    """
    annotations = {} if layout.annotations is None else _index_annotations(layout.annotations)
    images = []
    counts: Counter[str] = Counter()
    for file in files_in(layout.images, IMAGE_SUFFIXES):
        if not file.name:
            counts["other"] += 1
            continue
        key = _key(file)
        annotation = annotations.get((file.folder, key), annotations.get((ANY_FOLDER, key)))
        wnid = file.folder or _annotated_wnid(annotation)
        label = taxonomy.label_of(wnid)
        if label == OUTSIDE and wnid:
            counts["outside"] += 1
            continue
        images.append(
            SourceImage(
                key=key,
                path=file.path,
                name=relative(file.path, layout.root),
                wnid=wnid,
                label=label,
                annotation=None if annotation is None else annotation.path,
                md5=file.md5,
                annotation_md5=None if annotation is None else annotation.md5,
            )
        )
    if limit is not None:
        labels = np.asarray([image.label for image in images], np.int64)
        kept = lowest_hashes([i.key for i in images], labels, limit, seed=0, purpose="limit")
        images = [image for image, keep in zip(images, kept, strict=True) if keep]
    images.sort(key=lambda image: image.name)
    return Listing(tuple(images), outside=counts["outside"], other_files=counts["other"])


def _key(file: FoundFile) -> str:
    """The name without its suffix."""
    return file.name[: file.name.rindex(".")]


def _index_annotations(root: str) -> dict[tuple[str, str], FoundFile]:
    """Each annotation by (folder, key), and by (`ANY_FOLDER`, key): one that lies in no folder,
    or the only one of its key."""
    found: dict[tuple[str, str], FoundFile] = {}
    by_key: dict[str, list[FoundFile]] = {}
    for file in files_in(root, (".xml",)):
        found[file.folder, _key(file)] = file
        by_key.setdefault(_key(file), []).append(file)
    for key, files in by_key.items():
        if ("", key) in found or len(files) == 1:
            found[ANY_FOLDER, key] = found.get(("", key), files[0])
    return found


def _annotated_wnid(annotation: FoundFile | None) -> str:
    """Class that an annotation names, "" if there is no readable one."""
    if annotation is None:
        return ""
    try:
        return parse_annotation(files_of(annotation.path).read(annotation.path)).wnid or ""
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
