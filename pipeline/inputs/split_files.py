"""Finds the files of a split by their names."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable

from pipeline.inputs.archives import ARCHIVES
from pipeline.storage.files import files_of, join

_ALSO_CALLED = {"val": ("validation",)}

# Words in the names of other archives: boxes, the development kit, and task 3 of 2012, whose images
# are dogs that train holds, too.
_OTHER_WORDS = frozenset({"bbox", "devkit", "annotation", "annotations", "t3"})


def names_of(split: str) -> tuple[str, ...]:
    """Returns the names that a split goes by."""
    return (split, *_ALSO_CALLED.get(split, ()))


def _words(path: str) -> list[str]:
    return re.split(r"[^a-z0-9]+", posixpath.basename(path).lower())


def has_images_by_name(path: str, split: str) -> bool:
    """Returns whether a file holds images of a split, going by its name.

    >>> has_images_by_name("/data/ILSVRC2012_img_val.tar", "val")
    True
    >>> has_images_by_name("/data/ILSVRC2012_bbox_val_v3.tgz", "val")
    False
    """
    words = _words(path)
    return any(name in words for name in names_of(split)) and _OTHER_WORDS.isdisjoint(words)


def has_boxes_by_name(path: str, split: str) -> bool:
    """Returns whether a file holds annotations of a split, going by its name.

    >>> has_boxes_by_name("/data/ILSVRC2012_bbox_val_v3.tgz", "val")
    True
    """
    words, lower = _words(path), path.lower()
    if not any(name in words for name in names_of(split)):
        return False
    if lower.endswith(".csv"):
        return "solution" in words
    return lower.endswith(ARCHIVES) and "bbox" in words


def find_files(root: str, split: str, suffix: str) -> tuple[str, ...]:
    """Finds the files with a suffix that hold a split; returns their paths, sorted.

    Args:
      root: absolute path of the input folder, or of a file with this suffix.
      split: name of the split.
      suffix: suffix of the files, such as `.tar`.
    """
    files = files_of(root)
    if root.lower().endswith(suffix) and files.info(root) is not None:
        return (root,)
    for folder in (root, join(root, "data")):
        paths = [
            p for p in _ending(files.file_paths(folder), suffix) if has_images_by_name(p, split)
        ]
        if paths:
            return tuple(paths)
    folders = [join(root, name) for name in names_of(split)]
    if posixpath.basename(root) in names_of(split):
        folders.append(root)
    for folder in folders:
        if paths := _ending(files.file_paths(folder), suffix):
            return tuple(paths)
    return ()


def _ending(paths: Iterable[str], suffix: str) -> list[str]:
    return [path for path in paths if path.lower().endswith(suffix)]
