"""A folder of files, as ImageNet is unpacked: `<split>/<wnid>/*.JPEG`, or flat."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

from pipeline.inputs.source_images import IMAGE_SUFFIXES, KeyedFile, SourceImage
from pipeline.storage.file_kind import FileInfo
from pipeline.storage.files import files_of, is_remote, relative

_HIDDEN = re.compile(r"\.[^.]")


def images_in_folder(folder: str, root: str) -> Iterator[SourceImage | None]:
    """The images of a split, and None for each other file beside them.

    Args:
      folder: of the images.
      root: the input folder.

    Raises:
      OSError: a folder cannot be read.
    """
    for file in files_in(folder, IMAGE_SUFFIXES):
        if file.key:
            name = relative(file.path, root)
            yield SourceImage(file.key, file.path, name, file.folder, md5=file.md5)
        else:
            yield None


def files_in(folder: str, suffixes: Sequence[str]) -> Iterator[KeyedFile]:
    """The files in a folder and one level below it.

    Of other suffixes, only what lies beside images is of interest. Hidden files are passed
    over; two dots are no such name, but a strange one.
    """
    listed = _listed_remote(folder) if is_remote(folder) else _listed_here(folder, "")
    for subfolder, name, path, info in listed:
        if _HIDDEN.match(name):
            continue
        if name.lower().endswith(tuple(suffixes)):
            key = name.rpartition(".")[0]
        elif suffixes == IMAGE_SUFFIXES:
            key = ""
        else:
            continue
        md5, size = (None, None) if info is None else (info.md5, info.size)
        yield KeyedFile(subfolder, key, path, md5, size)


_Listed = tuple[str, str, str, FileInfo | None]
"""Folder, name and path of a file, and what is known of it without asking."""


def _listed_remote(folder: str) -> Iterator[_Listed]:
    """By one listing for a thousand objects, which tells what they hold, too."""
    for info in files_of(folder).walk(folder):
        *folders, name = relative(info.path, folder).split("/")
        if len(folders) <= 1 and not (folders and folders[0].startswith(".")):
            yield "".join(folders), name, info.path, info


def _listed_here(folder: str, subfolder: str) -> Iterator[_Listed]:
    """In an order that does not depend on the file system."""
    with os.scandir(os.path.join(folder, subfolder) if subfolder else folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if not entry.is_dir():
            yield subfolder, entry.name, entry.path, None
    for entry in found:
        if not subfolder and entry.is_dir() and not entry.name.startswith("."):
            yield from _listed_here(folder, entry.name)
