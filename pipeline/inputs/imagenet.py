"""ImageNet, and folders like it.

Folders of image files, as unpacked from ImageNet's archives: `<split>/<wnid>/*.JPEG`, or flat
`<split>/*.JPEG`, also inside the `Data/CLS-LOC` tree of the Kaggle download. And the archives as
downloaded: `ILSVRC2012_img_val.tar`, which holds the images directly, and
`ILSVRC2012_img_train.tar`, which holds an archive for each class.
"""

import operator
import os
import posixpath
from collections.abc import Iterator, Sequence

from pipeline.errors import UsageError
from pipeline.inputs.archives import ARCHIVES, Member, first_names, members
from pipeline.inputs.input_format import FileFormat, InputFormat, SplitLayout
from pipeline.inputs.location import Location
from pipeline.inputs.source_images import (
    HIDDEN,
    IMAGE_SUFFIXES,
    KeyedFile,
    SourceImage,
    is_wnid,
    stamp_of,
    wnid_of_folder,
)
from pipeline.storage.files import absolute, files_of, is_remote, join, leads_to, relative
from pipeline.storage.interface import FileInfo, read_ahead
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
        base = relative(layout.images, layout.root)
        for file in files_in(layout.images, IMAGE_SUFFIXES):
            if file.key:
                file_name = file.location.path.rpartition("/")[2]
                name = posixpath.normpath(f"{base}/{file.folder}/{file_name}")
                yield SourceImage(file.key, file.location, name, file.folder, md5=file.md5)
            else:
                yield None


def find_images(root: str, split: str, flag: str = "--input", suffixes: Sequence[str] = ()) -> str:
    """Finds the folder of a split's images in the input folder, or in the split's own.

    Raises UsageError if there is no such folder; the message lists the folders that were tried.
    """
    root = absolute(root)
    if not files_of(root).is_folder(root):
        raise UsageError(f"{flag} {root} does not exist, or is not a folder that can be read")
    images = _image_folder(root, split)
    if images is None:
        other = ", or the split with --split" if flag == "--input" else ""
        files = f", and for {' and '.join(suffixes)} files of {split!r}" if suffixes else ""
        raise UsageError(
            f"no folder {split!r} in {flag} {root}: looked for "
            + ", ".join(join(tree, split) for tree in _TREES)
            + f"{files}. Name another folder{other}"
        )
    return images


def _image_folder(root: str, split: str) -> str | None:
    candidates = [join(root, tree, split) for tree in _TREES]
    if root.rpartition("/")[2] == split:
        candidates.append(root)
    return next((path for path in candidates if files_of(path).is_folder(path)), None)


def files_in(folder: str, suffixes: Sequence[str]) -> Iterator[KeyedFile]:
    """Yields the files with these suffixes in a folder and one level below it, but no hidden ones.

    Files with other suffixes are yielded only beside images, without a key, so that they can be
    counted. A name that begins with two dots is not hidden.
    """
    files = _list_remote(folder) if is_remote(folder) else _list_local(folder, "")
    for subfolder, name, path, info in files:
        if HIDDEN.search(name):
            continue
        if name.lower().endswith(tuple(suffixes)):
            key = name.rpartition(".")[0]
        elif suffixes == IMAGE_SUFFIXES:
            key = ""
        else:
            continue
        md5, size = (None, None) if info is None else (info.md5, info.size)
        yield KeyedFile(subfolder, key, Location(path), md5, size)


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
        ordered = sorted(entries, key=operator.attrgetter("name"))
    for entry in ordered:
        if not leads_to(entry.is_dir):
            yield subfolder, entry.name, entry.path, None
    for entry in ordered:
        if not subfolder and leads_to(entry.is_dir) and not entry.name.startswith("."):
            yield from _list_local(folder, entry.name)


class ImagenetTars(FileFormat):
    """Tar archives that hold images, or other archives of images."""

    kind = "tar"
    suffix = ".tar"

    def recognizes(self, path: str) -> bool:
        names = first_names(path)
        endings = (*IMAGE_SUFFIXES, *ARCHIVES)
        if not any(name.endswith(endings) for name in names if not HIDDEN.search(name)):
            raise UsageError(
                f"{path} holds no images among its first members: {', '.join(names[:3]) or 'none'}"
            )
        return True

    def list_images(self, layout: SplitLayout, taxonomy: Taxonomy) -> Iterator[SourceImage | None]:
        for path in layout.files:
            archive_name = relative(path, layout.root)
            stamp = stamp_of(path)
            inner = []
            for member, _ in members(path):
                if HIDDEN.search(member.name):
                    continue
                if member.name.lower().endswith(ARCHIVES):
                    inner.append(member)
                else:
                    yield _image(member, archive_name, wnid_of_folder(member.name, taxonomy), stamp)

            def list_inner(archive: Member, path: str = path) -> list[Member]:
                return [member for member, _ in members(path, archive)]

            for archive, inner_members in read_ahead(list_inner, inner):
                stem = archive.name.rpartition("/")[2].rpartition(".")[0]
                wnid_of_archive = stem if is_wnid(stem) or stem in taxonomy.index_of else ""
                for member in inner_members:
                    wnid = wnid_of_folder(member.name, taxonomy) or wnid_of_archive
                    if not HIDDEN.search(member.name):
                        yield _image(member, f"{archive_name}/{archive.name}", wnid, stamp)


def _image(member: Member, archive: str, wnid: str, stamp: str | None) -> SourceImage | None:
    stem, dot, suffix = member.name.rpartition("/")[2].rpartition(".")
    if f"{dot}{suffix}".lower() not in IMAGE_SUFFIXES:
        return None
    return SourceImage(
        key=stem,
        location=member.location,
        name=f"{archive}/{member.name}",
        wnid=wnid,
        stamp=stamp,
    )
