"""Which files hold a split, by their names and first members."""

from __future__ import annotations

import itertools
import posixpath
import re
from collections.abc import Iterable

from pipeline.errors import UsageError
from pipeline.inputs.archives import ARCHIVES, COMPRESSED, members
from pipeline.inputs.source_images import IMAGE_SUFFIXES, is_hidden
from pipeline.inputs.webdataset import MARKS
from pipeline.storage.files import files_of, join

FOLDER, TAR, WEBDATASET, PARQUET = "folder", "tar", "webdataset", "parquet"
MANIFEST = "manifest"

_ALSO_CALLED = {"val": ("validation",)}

# Boxes, the development kit, and the images of the other task of 2012: the dogs of train again.
_OTHER_WORDS = frozenset({"bbox", "devkit", "annotation", "annotations", "t3"})

_LOOK_AT = 50
"""How many members of an archive tell what it is."""


def names_of(split: str) -> tuple[str, ...]:
    """What a split is called."""
    return (split, *_ALSO_CALLED.get(split, ()))


def _words(path: str) -> list[str]:
    return re.split(r"[^a-z0-9]+", posixpath.basename(path).lower())


def tells_split(path: str, split: str) -> bool:
    """Whether the name of a file says that it holds images of a split.

    >>> tells_split("/data/ILSVRC2012_img_val.tar", "val")
    True
    >>> tells_split("/data/ILSVRC2012_bbox_val_v3.tgz", "val")
    False
    """
    words = _words(path)
    return any(name in words for name in names_of(split)) and _OTHER_WORDS.isdisjoint(words)


def tells_boxes(path: str, split: str) -> bool:
    """Whether the name of a file says that it holds annotations of a split.

    >>> tells_boxes("/data/ILSVRC2012_bbox_val_v3.tgz", "val")
    True
    """
    words, lower = _words(path), path.lower()
    if not any(name in words for name in names_of(split)):
        return False
    if lower.endswith(".csv"):
        return "solution" in words
    return lower.endswith(ARCHIVES) and "bbox" in words


def find_files(root: str, split: str, suffix: str) -> tuple[str, ...]:
    """Paths of the files of one kind that hold a split, sorted; empty if there are none.

    Args:
      root: absolute path of the input folder, or of such a file.
      split: its name.
      suffix: of the kind.
    """
    files = files_of(root)
    if root.lower().endswith(suffix) and files.info(root) is not None:
        return (root,)
    for folder in (root, join(root, "data")):
        found = _ending(files.children(folder), suffix)
        found = [path for path in found if tells_split(path, split)]
        if found:
            return tuple(found)
    folders = [join(root, name) for name in names_of(split)]
    if posixpath.basename(root) in names_of(split):
        folders.append(root)
    for folder in folders:
        if found := _ending(files.children(folder), suffix):
            return tuple(found)
    return ()


def _ending(paths: Iterable[str], suffix: str) -> list[str]:
    return [path for path in paths if path.lower().endswith(suffix)]


def find_shape(root: str, split: str) -> tuple[str, tuple[str, ...]]:
    """Finds the files that hold a split, where no folder of images does.

    Args:
      root: absolute path of the input folder, or of such a file.
      split: its name.

    Returns:
      `TAR`, `WEBDATASET` or `PARQUET`, and the files; ("", ()) if there are none.

    Raises:
      UsageError: they are of none of these kinds.
      OSError: they cannot be read.
    """
    if paths := find_files(root, split, ".tar"):
        return _kind_of_tar(paths[0]), paths
    if paths := find_files(root, split, ".parquet"):
        return PARQUET, paths
    for suffix in COMPRESSED:
        for path in find_files(root, split, suffix):
            next(members(path), None)
    return "", ()


def _kind_of_tar(path: str) -> str:
    """`TAR` or `WEBDATASET`, by the first members."""
    first = [member.name.lower() for member, _ in itertools.islice(members(path), _LOOK_AT)]
    seen = [name for name in first if not is_hidden(name)]
    if any(name.endswith(MARKS) for name in seen):
        return WEBDATASET
    if any(name.endswith((*IMAGE_SUFFIXES, *ARCHIVES)) for name in seen):
        return TAR
    raise UsageError(
        f"{path} holds no images among its first members: {', '.join(first[:3]) or 'none'}"
    )
