"""Folders of image files, as unpacked from ImageNet's archives: `<split>/<wnid>/*.JPEG`, or flat
`<split>/*.JPEG`, also inside the `Data/CLS-LOC` tree of the Kaggle download."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Sequence

from pipeline.errors import UsageError
from pipeline.inputs.input_format import InputFormat, SplitLayout
from pipeline.inputs.source_images import IMAGE_SUFFIXES, KeyedFile, SourceImage, is_hidden
from pipeline.storage.file_kind import FileInfo
from pipeline.storage.files import absolute, files_of, is_remote, join, relative
from transforms.taxonomy import Taxonomy

_TREES = ("", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC", "CLS-LOC")
"""Where the folder of a split may lie: directly in the input, or in the Kaggle download's tree."""


class ImageFolder(InputFormat):
    """Image files in a folder of the split's name."""

    kind = "folder"

    def find(self, root: str, split: str) -> SplitLayout | None:
        folder = _image_folder(root, split)
        if folder is None or not holds_files(folder, IMAGE_SUFFIXES):
            return None
        return SplitLayout(self.kind, split, root, folder)

    def list_images(self, layout: SplitLayout, taxonomy: Taxonomy) -> Iterator[SourceImage | None]:
        for file in files_in(layout.images, IMAGE_SUFFIXES):
            if file.key:
                name = relative(file.path, layout.root)
                yield SourceImage(file.key, file.path, name, file.folder, md5=file.md5)
            else:
                yield None


def find_images(root: str, split: str, flag: str = "--input", suffixes: Sequence[str] = ()) -> str:
    """Finds the folder of a split's images.

    Args:
      root: the input folder, or the split's own folder.
      split: name of the split, such as `val`.
      flag: the flag that named the folder, for messages.
      suffixes: suffixes of files that were looked for in vain, for messages.

    Raises:
      UsageError: there is no such folder; the message lists the folders that were tried.
    """
    root = absolute(root)
    if not files_of(root).is_folder(root):
        raise UsageError(f"{flag} {root} is not a folder that can be read")
    images = _image_folder(root, split)
    if images is None:
        other = ", or the split with --split" if flag == "--input" else ""
        files = f", and for {' and '.join(suffixes)} files of {split!r}" if suffixes else ""
        raise UsageError(
            f"no folder {split!r} in {flag} {root}: looked for "
            + ", ".join(posixpath.join(tree, split) for tree in _TREES)
            + f"{files}. Name another folder{other}"
        )
    return images


def _image_folder(root: str, split: str) -> str | None:
    candidates = [join(root, tree, split) for tree in _TREES]
    if posixpath.basename(root) == split:
        candidates.append(root)
    return next((path for path in candidates if files_of(path).is_folder(path)), None)


def files_in(folder: str, suffixes: Sequence[str]) -> Iterator[KeyedFile]:
    """Yields the files with these suffixes in a folder and one level below it.

    Files with other suffixes are yielded only beside images, without a key, so that they can be
    counted. Hidden files are skipped, but a name that begins with two dots is not hidden.
    """
    files = _list_remote(folder) if is_remote(folder) else _list_local(folder, "")
    for subfolder, name, path, info in files:
        if is_hidden(name):
            continue
        if name.lower().endswith(tuple(suffixes)):
            key = name.rpartition(".")[0]
        elif suffixes == IMAGE_SUFFIXES:
            key = ""
        else:
            continue
        md5, size = (None, None) if info is None else (info.md5, info.size)
        yield KeyedFile(subfolder, key, path, md5, size)


def holds_files(folder: str, suffixes: Sequence[str]) -> bool:
    """Returns whether a folder exists and `files_in` finds files with these suffixes in it."""
    if not files_of(folder).is_folder(folder):
        return False
    return any(file.key for file in files_in(folder, suffixes))


_Listed = tuple[str, str, str, FileInfo | None]
"""Folder, name and path of a file, and its `FileInfo` if the listing tells it."""


def _list_remote(folder: str) -> Iterator[_Listed]:
    """Lists objects with one request for every thousand. The listing also tells their MD5s."""
    for info in files_of(folder).walk(folder):
        *folders, name = relative(info.path, folder).split("/")
        if len(folders) <= 1 and not (folders and folders[0].startswith(".")):
            yield "".join(folders), name, info.path, info


def _list_local(folder: str, subfolder: str) -> Iterator[_Listed]:
    """Lists files in an order that does not depend on the file system."""
    with os.scandir(os.path.join(folder, subfolder) if subfolder else folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if not entry.is_dir():
            yield subfolder, entry.name, entry.path, None
    for entry in ordered:
        if not subfolder and entry.is_dir() and not entry.name.startswith("."):
            yield from _list_local(folder, entry.name)
