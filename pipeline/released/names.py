"""Names in the released layout.

A picture is `<variant>/<split>/<NN_class>/<wnid>_<number>.JPEG`. In mixed versions the file name is
`fg_<wnid>_<number>_bg_<wnid>_<number>.JPEG`; masks, in `fg_mask/`, end in `.npy`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from pipeline.dataset.records import bucket_hash

UNKNOWN_BACKGROUND = "unknown"
"""Stands for an unknown background in the name of a mixed picture."""

_STEM = re.compile(r"(n\d{8})_[^/]+")
_MIXED = re.compile(r"fg_(n\d{8}_[^/]+?)_bg_([^/]+)")
_CLASS = re.compile(r"(\d{2,})_.+")
_NUMBER = re.compile(r"\d+$")


def class_folder(label: int, name: str, num_labels: int) -> str:
    """Returns the name of a superclass's folder; these names sort in the order of labels.

    Args:
      label: the superclass's label.
      name: its name.
      num_labels: number of superclasses. With over 100, labels have more than two digits.

    >>> class_folder(2, "wheeled vehicle", 9), class_folder(2, "fern", 101)
    ('02_wheeled vehicle', '002_fern')
    """
    digits = max(2, len(str(num_labels - 1)))
    return f"{label:0{digits}d}_{name}"


def label_of_folder(folder: str) -> int | None:
    """Returns the label of a class folder; None if the name is not a class folder's."""
    match = _CLASS.fullmatch(folder)
    return int(match[1]) if match else None


def stem_of(key: str, wnid: str, clashes: frozenset[str] = frozenset()) -> str:
    """Returns the released name of an image, without suffix.

    Args:
      key: the image's key.
      wnid: WordNet id of its class.
      clashes: keys from `find_clashes`. For these, and for keys without a number, a hash takes the
        number's place. A key that is `<wnid>_<number>` itself is always kept.

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
    """Finds keys that would share their released name with another key.

    Args:
      images: (key, wnid) of all images of a split.
    """
    keys = defaultdict(list)
    for key, wnid in images:
        keys[stem_of(key, wnid)].append(key)
    return frozenset(key for same in keys.values() if len(same) > 1 for key in same)


def mixed_stem(foreground: str, background: str | None) -> str:
    """Returns the name of a mixed picture, without suffix, from the stems of its two images."""
    return f"fg_{foreground}_bg_{background or UNKNOWN_BACKGROUND}"


def parse_stem(name: str) -> tuple[str, str] | None:
    """Parses a file name without suffix into (stem, wnid); None if it is no released name."""
    match = _STEM.fullmatch(name)
    return (name, match[1]) if match else None


def parse_mixed(name: str) -> tuple[str, str | None] | None:
    """Parses a mixed picture's name without suffix into the stems of foreground and background.

    The background is None if the name says that it is unknown. Returns None for any other name.

    >>> parse_mixed("fg_n02084071_1_bg_n01503061_2")
    ('n02084071_1', 'n01503061_2')
    """
    match = _MIXED.fullmatch(name)
    if match is None:
        return None
    return match[1], None if match[2] == UNKNOWN_BACKGROUND else match[2]
