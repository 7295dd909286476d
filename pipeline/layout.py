"""ImageNet's folder layouts, found without being told.

Images of a split: `<split>/<wnid>/*.JPEG` or flat `<split>/*.JPEG`; annotations:
`Annotations/<split>/*.xml` or `Annotations/<split>/<wnid>/*.xml`; each also inside the
`Data/CLS-LOC` and `Annotations/CLS-LOC` trees of the Kaggle download.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence

from pipeline.errors import UsageError

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
    images = find_images(root, split)
    if annotations is not None:
        if not os.path.isdir(annotations):
            raise UsageError(f"--annotations {annotations} is not a folder that can be read")
        found = _find_annotations([annotations], images, split)
        if found is None and _has_xml(annotations):
            found = annotations
    else:
        found = find_annotations(root, images, split)
    if found is None:
        where = annotations if annotations is not None else root
        raise UsageError(
            f"no annotations of {split!r} in {where}: expected .xml files in "
            f"Annotations/{split} or Annotations/CLS-LOC/{split}. Name them with --annotations"
        )
    return Layout(split=split, root=root, images=images, annotations=found)


def find_images(root: str, split: str, flag: str = "--input") -> str:
    """Finds the folder of a split's images.

    Args:
      root: the input folder, or the split's own folder.
      split: such as `val`.
      flag: that named the folder, for messages.

    Raises:
      UsageError: there is none; the message lists what was tried.
    """
    if not os.path.isdir(root):
        raise UsageError(f"{flag} {root} is not a folder that can be read")
    candidates = [os.path.join(root, tree, split) for tree in _IMAGE_TREES]
    if os.path.basename(os.path.normpath(root)) == split:
        candidates.append(os.path.normpath(root))
    images = next((path for path in candidates if os.path.isdir(path)), None)
    if images is None:
        other = ", or the split with --split" if flag == "--input" else ""
        raise UsageError(
            f"no folder {split!r} in {flag} {root}: looked for "
            + ", ".join(os.path.join(tree, split) for tree in _IMAGE_TREES)
            + f". Name another folder{other}"
        )
    return images


def find_annotations(root: str, images: str, split: str) -> str | None:
    """Finds a split's annotations beside its images, None if there are none.

    Args:
      root: the input folder.
      images: of `find_images`.
      split: such as `val`.
    """
    bases = [root, os.path.dirname(images), os.path.dirname(os.path.normpath(root))]
    return _find_annotations(bases, images, split)


def _find_annotations(bases: Sequence[str], images: str, split: str) -> str | None:
    tried = [
        os.path.join(base, tree, split)
        for base in bases
        for tree in _ANNOTATION_TREES
        if os.path.join(base, tree, split) != images
    ]
    return next((path for path in tried if os.path.isdir(path) and _has_xml(path)), None)


def _has_xml(folder: str) -> bool:
    """Whether a folder, or a folder in it, holds an XML file."""
    return next(files_in(folder, (".xml",)), None) is not None


def files_in(folder: str, suffixes: Sequence[str]) -> Iterator[tuple[str, str]]:
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
