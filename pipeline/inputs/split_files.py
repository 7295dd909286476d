"""Which files hold a split, as their names tell."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable

from pipeline.inputs.archives import ARCHIVES
from pipeline.storage.files import files_of, join

_ALSO_CALLED = {"val": ("validation",)}

# Boxes, the development kit, and the images of the other task of 2012: the dogs of train again.
_OTHER_WORDS = frozenset({"bbox", "devkit", "annotation", "annotations", "t3"})


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
