"""Names in the released layout.

`<variant>/<split>/<NN_class>/<wnid>_<number>.JPEG`, mixed versions
`fg_<wnid>_<number>_bg_<wnid>_<number>.JPEG`, masks `fg_mask/...npy`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from pipeline.dataset.shards import bucket_hash

UNKNOWN_BACKGROUND = "unknown"
"""Stands in a mixed name for a background that is not known."""

_STEM = re.compile(r"(n\d{8})_[^/]+")
_MIXED = re.compile(r"fg_(n\d{8}_[^/]+?)_bg_([^/]+)")
_CLASS = re.compile(r"(\d\d)_.+")
_NUMBER = re.compile(r"\d+$")


def class_folder(label: int, name: str) -> str:
    """Folder of a superclass; sorting the folders gives the labels.

    >>> class_folder(2, "wheeled vehicle")
    '02_wheeled vehicle'
    """
    return f"{label:02d}_{name}"


def label_of_folder(folder: str) -> int | None:
    """Label of a class folder, None if it is none."""
    found = _CLASS.fullmatch(folder)
    return int(found[1]) if found else None


def stem_of(key: str, wnid: str, clashes: frozenset[str] = frozenset()) -> str:
    """Released name of an image, without suffix.

    Args:
      key: of the image.
      wnid: its class.
      clashes: of `find_clashes`; these, and keys without a number, get a hash for one.

    >>> stem_of("ILSVRC2012_val_00000293", "n02084071"), stem_of("n02084071_7", "n02084071")
    ('n02084071_00000293', 'n02084071_7')
    """
    if re.fullmatch(rf"{re.escape(wnid)}_\d+", key):
        return key
    number = _NUMBER.search(key)
    if number is None or key in clashes:
        return f"{wnid}_{bucket_hash(key)}"
    return f"{wnid}_{number[0]}"


def find_clashes(images: Iterable[tuple[str, str]]) -> frozenset[str]:
    """Keys that would share their name with another.

    Args:
      images: (key, wnid) of all images of a split.
    """
    keys = defaultdict(list)
    for key, wnid in images:
        keys[stem_of(key, wnid)].append(key)
    return frozenset(key for same in keys.values() if len(same) > 1 for key in same)


def mixed_stem(foreground: str, background: str | None) -> str:
    """Name of a mixed picture, of two stems; without suffix."""
    return f"fg_{foreground}_bg_{background or UNKNOWN_BACKGROUND}"


def parse_stem(name: str) -> tuple[str, str] | None:
    """(stem, wnid) of a file name without suffix, None if it is no released name."""
    found = _STEM.fullmatch(name)
    return (name, found[1]) if found else None


def parse_mixed(name: str) -> tuple[str, str | None] | None:
    """(foreground's stem, background's stem as the name says) of a mixed picture's name
    without suffix; None if it is no released name.

    >>> parse_mixed("fg_n02084071_1_bg_n01503061_2")
    ('n02084071_1', 'n01503061_2')
    """
    found = _MIXED.fullmatch(name)
    if found is None:
        return None
    return found[1], None if found[2] == UNKNOWN_BACKGROUND else found[2]
