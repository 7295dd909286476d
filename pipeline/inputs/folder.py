"""A folder of files, as ImageNet is unpacked: `<split>/<wnid>/*.JPEG`, or flat."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence

from pipeline.inputs.found import IMAGE_SUFFIXES, FoundImage
from pipeline.storage.file_kind import FileInfo
from pipeline.storage.files import files_of, is_remote, relative

_HIDDEN = re.compile(r"\.[^.]")


def images_in_folder(folder: str, root: str) -> Iterator[FoundImage | None]:
    """The images of a split, and None for each other file beside them.

    Args:
      folder: of the images.
      root: the input folder.

    Raises:
      OSError: a folder cannot be read.
    """
    for file in files_in(folder, IMAGE_SUFFIXES):
        if file.name:
            name = relative(file.path, root)
            yield FoundImage(file.key, file.path, name, file.folder, file.md5)
        else:
            yield None


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
    def key(self) -> str:
        """The name without its suffix."""
        return self.name[: self.name.rindex(".")]

    @property
    def md5(self) -> str | None:
        """Of its content, hexadecimal; None where the storage does not tell it."""
        return None if self.info is None else self.info.md5


def files_in(folder: str, suffixes: Sequence[str]) -> Iterator[FoundFile]:
    """The files in a folder and one level below it.

    Of other suffixes, only what lies beside images is of interest. Hidden files are passed
    over; two dots are no such name, but a strange one.
    """
    listed = _listed_remote(folder) if is_remote(folder) else _listed_here(folder, "")
    for found in listed:
        if _HIDDEN.match(found.name):
            continue
        if found.name.lower().endswith(tuple(suffixes)):
            yield found
        elif suffixes == IMAGE_SUFFIXES:
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
