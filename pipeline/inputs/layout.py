"""Where the images and annotations of a split lie, found without being told.

Images: `<split>/<wnid>/*.JPEG` or flat `<split>/*.JPEG`, also inside the `Data/CLS-LOC` tree of
the Kaggle download; or tar archives, WebDataset shards or Parquet files named after the split;
or a table that names them, `manifest.csv`.
Annotations: `Annotations/<split>/*.xml` or `Annotations/<split>/<wnid>/*.xml`, also inside
`Annotations/CLS-LOC`; Kaggle's `LOC_<split>_solution.csv`; or `ILSVRC2012_bbox_<split>*.tgz`.
"""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Sequence

from pipeline.errors import UsageError
from pipeline.inputs.archives import ARCHIVES
from pipeline.inputs.image_folder import files_in
from pipeline.inputs.image_manifest import SUFFIXES, check_manifest
from pipeline.inputs.parquet import holds_pictures
from pipeline.inputs.shapes import (
    FOLDER,
    MANIFEST,
    WEBDATASET,
    find_shape,
    tells_boxes,
)
from pipeline.inputs.source_images import IMAGE_SUFFIXES
from pipeline.storage.files import absolute, files_of, join, parent

_IMAGE_TREES = ("", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC", "CLS-LOC")
_ANNOTATION_TREES = (
    "",
    "Annotations",
    "Annotations/CLS-LOC",
    "ILSVRC/Annotations/CLS-LOC",
    "CLS-LOC",
)


@dataclasses.dataclass(frozen=True)
class SplitLayout:
    """Where one split's files lie.

    Attributes:
      split: its name.
      root: the input folder; image paths are recorded relative to it.
      images: folder of the images, or of the files that hold them.
      annotations: folder of the annotations, or an archive or a table of them; None if they lie
        with the images.
      kind: `FOLDER`, or what else `pipeline.inputs` reads.
      files: that hold the images, if it is no folder.
    """

    split: str
    root: str
    images: str
    annotations: str | None
    kind: str = FOLDER
    files: tuple[str, ...] = ()


def find_layout(
    root: str,
    annotations: str | None,
    split: str,
    *,
    needs_boxes: bool = True,
) -> SplitLayout:
    """Finds a split's files.

    Args:
      root: the input folder, the split's own folder, or a file with its images.
      annotations: a folder, an archive or a table of annotations; None to look beside the
        images.
      split: such as `val`.
      needs_boxes: whether it is an error if there are no annotations beside the images.

    Raises:
      UsageError: no images or no annotations, with what was tried; or they may not be read.
      OSError: they cannot be read.
    """
    root = absolute(root)
    try:
        layout = _find(root, split)
        if layout.kind == MANIFEST:
            found = None
            if annotations is not None:
                raise UsageError(
                    f"--annotations {annotations}: boxes are in the manifest {layout.files[0]}; "
                    "leave it out"
                )
        elif annotations:
            found = _named_annotations(annotations, layout)
        else:
            found = _annotations_of(layout)
    except PermissionError as error:
        raise UsageError(f"{error.filename} cannot be read: {error.strerror}") from error
    is_needed = needs_boxes or annotations is not None
    if found is None and is_needed and layout.kind not in (WEBDATASET, MANIFEST):
        where = annotations if annotations is not None else root
        raise UsageError(
            f"no annotations of {split!r} in {where}: expected .xml files in "
            f"Annotations/{split} or Annotations/CLS-LOC/{split}, LOC_{split}_solution.csv or an "
            "archive ILSVRC2012_bbox_... of them. Name them with --annotations"
        )
    return dataclasses.replace(layout, annotations=found)


def _find(root: str, split: str) -> SplitLayout:
    """Where the images lie, without annotations."""
    manifest = _find_manifest(root, split)
    if manifest is not None:
        check_manifest(manifest)
        return SplitLayout(split, parent(manifest), parent(manifest), None, MANIFEST, (manifest,))
    folder = _image_folder(root, split)
    if folder is not None and _has(folder, IMAGE_SUFFIXES):
        return SplitLayout(split, root, folder, None)
    kind, files = find_shape(root, split)
    if not files:
        return SplitLayout(split, root, find_images(root, split), None)
    # What is named in the file system is where the files lie, not one of them.
    base = parent(root) if root == files[0] else root
    return SplitLayout(split, base, parent(files[0]), None, kind, files)


def _find_manifest(root: str, split: str) -> str | None:
    """The table that names the images, if the input is one or holds one."""
    lower = root.lower()
    if files_of(root).info(root) is not None:
        is_table = lower.endswith(SUFFIXES)
        if lower.endswith(".parquet"):
            is_table = not holds_pictures(root)
        return root if is_table else None
    there = set(files_of(root).children(root))
    for stem in (f"manifest_{split}", "manifest"):
        for suffix in SUFFIXES:
            if join(root, stem + suffix) in there:
                return join(root, stem + suffix)
    return None


def find_images(root: str, split: str, flag: str = "--input") -> str:
    """Finds the folder of a split's images.

    Args:
      root: the input folder, or the split's own folder.
      split: such as `val`.
      flag: that named the folder, for messages.

    Raises:
      UsageError: there is none; the message lists what was tried.
    """
    root = absolute(root)
    if not files_of(root).is_folder(root):
        raise UsageError(f"{flag} {root} is not a folder that can be read")
    images = _image_folder(root, split)
    if images is None:
        is_input = flag == "--input"
        other = ", or the split with --split" if is_input else ""
        files = f", and for .tar and .parquet files of {split!r}" if is_input else ""
        raise UsageError(
            f"no folder {split!r} in {flag} {root}: looked for "
            + ", ".join(posixpath.join(tree, split) for tree in _IMAGE_TREES)
            + f"{files}. Name another folder{other}"
        )
    return images


def _image_folder(root: str, split: str) -> str | None:
    candidates = [join(root, tree, split) for tree in _IMAGE_TREES]
    if posixpath.basename(root) == split:
        candidates.append(root)
    return next((path for path in candidates if files_of(path).is_folder(path)), None)


def find_annotations(root: str, images: str, split: str) -> str | None:
    """Finds a split's annotations beside its images, None if there are none.

    Args:
      root: the input folder.
      images: of `find_images`.
      split: such as `val`.
    """
    return _find_annotations([root, parent(images), parent(root)], images, split)


def _annotations_of(layout: SplitLayout) -> str | None:
    return find_annotations(layout.root, layout.images, layout.split)


def _named_annotations(named: str, layout: SplitLayout) -> str | None:
    """The annotations that a user named."""
    files = files_of(named)
    if named.lower().endswith((*ARCHIVES, ".csv")) and files.info(named) is not None:
        return named
    if not files.is_folder(named):
        raise UsageError(
            f"--annotations {named} is not a folder that can be read, and no archive or .csv file"
        )
    found = _find_annotations([named], layout.images, layout.split)
    return named if found is None and _has(named, (".xml",)) else found


def _find_annotations(bases: Sequence[str], images: str, split: str) -> str | None:
    folders = (
        path
        for base in bases
        for tree in _ANNOTATION_TREES
        if (path := join(base, tree, split)) != images and _has(path, (".xml",))
    )
    files = (
        path for base in bases for path in files_of(base).children(base) if tells_boxes(path, split)
    )
    return next(folders, None) or next(files, None)


def _has(folder: str, suffixes: Sequence[str]) -> bool:
    """Whether there is a folder, and it, or a folder in it, holds a file of a kind."""
    if not files_of(folder).is_folder(folder):
        return False
    return any(file.key for file in files_in(folder, suffixes))
