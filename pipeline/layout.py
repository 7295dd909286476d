"""ImageNet's folder layouts, found without being told.

Images of a split: `<split>/<wnid>/*.JPEG` or flat `<split>/*.JPEG`; annotations:
`Annotations/<split>/*.xml` or `Annotations/<split>/<wnid>/*.xml`; each also inside the
`Data/CLS-LOC` and `Annotations/CLS-LOC` trees of the Kaggle download.
"""

from __future__ import annotations

import dataclasses
import os
import posixpath
from collections.abc import Iterator, Sequence

from pipeline.errors import UsageError
from pipeline.files import FileInfo, absolute, files_of, is_remote, join, parent, relative

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
      annotations: folder of the annotations, None if there is none.
    """

    split: str
    root: str
    images: str
    annotations: str | None


def find_layout(
    root: str, annotations: str | None, split: str, *, needs_boxes: bool = True
) -> Layout:
    """Finds a split's folders.

    Args:
      root: the input folder, or the split's own folder.
      annotations: a folder with annotations, None to look beside the images.
      split: such as `val`.
      needs_boxes: whether it is an error if there are no annotations beside the images.

    Raises:
      UsageError: no folder of images or of annotations; the message lists what was tried.
      OSError: a folder cannot be read.
    """
    images = find_images(root, split)
    if annotations is not None:
        if not files_of(annotations).is_folder(annotations):
            raise UsageError(f"--annotations {annotations} is not a folder that can be read")
        found = _find_annotations([annotations], images, split)
        if found is None and _has_xml(annotations):
            found = annotations
    else:
        found = find_annotations(root, images, split)
    if found is None and (needs_boxes or annotations is not None):
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
    root = absolute(root)
    files = files_of(root)
    if not files.is_folder(root):
        raise UsageError(f"{flag} {root} is not a folder that can be read")
    candidates = [join(root, tree, split) for tree in _IMAGE_TREES]
    if posixpath.basename(root) == split:
        candidates.append(root)
    images = next((path for path in candidates if files.is_folder(path)), None)
    if images is None:
        other = ", or the split with --split" if flag == "--input" else ""
        raise UsageError(
            f"no folder {split!r} in {flag} {root}: looked for "
            + ", ".join(posixpath.join(tree, split) for tree in _IMAGE_TREES)
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
    bases = [root, parent(images), parent(root)]
    return _find_annotations(bases, images, split)


def _find_annotations(bases: Sequence[str], images: str, split: str) -> str | None:
    tried = [
        path
        for base in bases
        for tree in _ANNOTATION_TREES
        if (path := join(base, tree, split)) != images
    ]
    return next((path for path in tried if _has_xml(path)), None)


def _has_xml(folder: str) -> bool:
    """Whether there is a folder, and it, or a folder in it, holds an XML file."""
    if not files_of(folder).is_folder(folder):
        return False
    return next(files_in(folder, (".xml",)), None) is not None


@dataclasses.dataclass(frozen=True)
class FoundFile:
    """A file of a split.

    Attributes:
      path: absolute.
      folder: name of the folder in the split's that it lies in, "" if it lies in that itself.
      name: its own name, "" if that has none of the suffixes asked for.
      info: what the listing said of it, None if only its name.
    """

    path: str
    folder: str
    name: str
    info: FileInfo | None = None

    @property
    def md5(self) -> str | None:
        """Of its content, hexadecimal; None where the storage does not tell it."""
        return None if self.info is None else self.info.md5


def files_in(folder: str, suffixes: Sequence[str]) -> Iterator[FoundFile]:
    """The files in a folder and one level below it.

    Of other suffixes, only what lies beside images is of interest. Hidden files are passed
    over.
    """
    listed = _listed_remote(folder) if is_remote(folder) else _listed_here(folder, "")
    for found in listed:
        if found.name.lower().endswith(tuple(suffixes)):
            yield found
        elif suffixes == IMAGE_SUFFIXES and not found.name.startswith("."):
            yield dataclasses.replace(found, name="")


def _listed_remote(folder: str) -> Iterator[FoundFile]:
    """By one listing for a thousand objects, which tells what they hold, too."""
    for info in files_of(folder).walk(folder):
        *folders, name = relative(info.path, folder).split("/")
        if len(folders) <= 1 and not (folders and folders[0].startswith(".")):
            yield FoundFile(info.path, "".join(folders), name, info)


def _listed_here(folder: str, subfolder: str) -> Iterator[FoundFile]:
    """In an order that does not depend on the file system."""
    with os.scandir(os.path.join(folder, subfolder) if subfolder else folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if not entry.is_dir():
            yield FoundFile(entry.path, subfolder, entry.name)
    for entry in found:
        if not subfolder and entry.is_dir() and not entry.name.startswith("."):
            yield from _listed_here(folder, entry.name)
