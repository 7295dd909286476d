"""Lists that the user gives: keys of images, and classes.

`--exclude` and `--include` are text files with one name in each line, a key or the name that the
released archive gives an image. The file names in the released archive are such a list: they name
the images that its authors kept.

`--taxonomy` is a file that names the superclass of each class. It is a table with the columns
`class` and `superclass` and, as needed, `label` (number of the superclass), `index` (position of
the class among a model's outputs) and `name` (name of the class for people).
"""

import dataclasses
import functools
import re
from collections.abc import Sequence

from pipeline.errors import UsageError
from pipeline.inputs.tables import TableRow, TextLines, read_rows
from pipeline.storage.files import absolute, files_of
from transforms.filters import MAX_KEY_BYTES
from transforms.hashing import text_bytes, text_digest
from transforms.taxonomy import (
    MAX_LABELS,
    OUTSIDE,
    Taxonomy,
    imagenet9,
    imagenet_output,
)

_SUFFIX = re.compile(r"\.(jpe?g|png|npy|xml)$", re.IGNORECASE)
_MIXED = re.compile(r"fg_(.+)_bg_.+")
_NUMBER = re.compile(r"(?<!\d)\d+$")


@dataclasses.dataclass(frozen=True)
class KeyList:
    """A list that leaves images out.

    Attributes:
      names: keys, or `<wnid>_<number>`, sorted.
      includes: whether all images are left out but those that it names; else these are.
    """

    names: tuple[str, ...]
    includes: bool = False

    @property
    def summary(self) -> str:
        """Number and digest of the names, as recorded in a dataset's configuration."""
        return f"{len(self.names)} names, sha256 " + text_digest("\n".join(self.names))[:16]

    @functools.cached_property
    def _keys(self) -> frozenset[str]:
        return frozenset(self.names)

    def excludes(self, key: str, wnid: str) -> bool:
        """Returns whether an image is left out.

        A list may name the key, or the class and the digits at the end of the key. Leading zeros,
        which only the validation set has, tell its images from those of the training set.
        """
        number = _NUMBER.search(key)
        is_named = key in self._keys or (number and f"{wnid}_{number[0]}" in self._keys)
        return bool(is_named) != self.includes


def read_key_list(path: str, flag: str) -> KeyList:
    """Reads the list that `--exclude` or `--include` names.

    Raises UsageError if the file does not exist, is empty, or is not text.
    """
    if files_of(path).info(path) is None:
        raise UsageError(f"{flag} {path} is not a file that can be read")
    names: set[str] = set()
    text = TextLines(path, flag, errors="surrogateescape")
    for lines in text:
        text.begin_row()
        if "\0" in lines:
            raise UsageError(f"{flag} {path} is not text: expected a name in each line")
        stripped = map(str.strip, lines.splitlines())
        names.update(_name(line) for line in stripped if not line.startswith("#"))
    listed = tuple(sorted(names - {""}))
    if not listed:
        raise UsageError(f"{flag} {path} names no image")
    return KeyList(listed, includes=flag == "--include")


def _name(text: str) -> str:
    """Returns the key or released name that a line means: that of a mixed picture's foreground.

    >>> _name("mixed_rand/val/00_dog/fg_n02085620_7_bg_n02091134_9.JPEG")
    'n02085620_7'
    """
    name = _SUFFIX.sub("", text.replace("\\", "/").rpartition("/")[2])
    mixed = _MIXED.fullmatch(name)
    return mixed[1] if mixed else name


FLAG = "--taxonomy"
_COLUMNS = ("class", "superclass", "label", "index", "name")


def read_taxonomy(flag_value: str | None) -> Taxonomy | None:
    """Reads the taxonomy that `--taxonomy` names; returns None for ImageNet-9's own taxonomy.

    The value is a file; None without the flag. Raises UsageError if the file does not exist, or is
    not a taxonomy.
    """
    if flag_value is None:
        return None
    path = absolute(flag_value)
    if files_of(path).info(path) is None:
        raise UsageError(f"{FLAG} {path} is not a file that can be read")
    rows = list(read_rows(path, FLAG))
    columns = sorted({name for row in rows for name in row.values})
    unknown = [name for name in columns if name not in _COLUMNS]
    if unknown or not {"class", "superclass"} <= set(columns):
        raise UsageError(
            f"{FLAG} {path}: expected the columns class and superclass and perhaps label, index "
            f"and name; it has {', '.join(columns) or 'none'}"
        )
    classes: dict[str, TableRow] = {}
    for row in rows:
        for column in ("class", "superclass", "name"):
            if not row.text(column).isprintable():
                raise row.error(column, f"{row.text(column)!r} is not printable")
        name = row.text("class")
        if not name:
            raise row.error("class", "is empty")
        if name in classes:
            raise row.error("class", f"{name!r} is in {classes[name]} too")
        classes[name] = row
    superclasses = [row.text("superclass") for row in rows]
    names = _names(rows, superclasses)
    taxonomy = Taxonomy(
        names=names,
        wnids=tuple(classes),
        labels=tuple(names.index(name) if name else OUTSIDE for name in superclasses),
        class_names=tuple(row.text("name") or row.text("class") for row in rows),
        outputs=_outputs(rows, names) if "index" in columns else None,
    )
    return None if taxonomy == imagenet9() else taxonomy


def _names(rows: Sequence[TableRow], superclasses: Sequence[str]) -> tuple[str, ...]:
    """Returns the superclasses by label: in order of their first row, or by the column `label`."""
    names = list(dict.fromkeys(name for name in superclasses if name))
    if not names:
        raise rows[0].error("superclass", "is empty, and so are all others")
    if len(names) > MAX_LABELS:
        raise rows[0].error("superclass", f"has {len(names)} names, more than {MAX_LABELS}")
    for row, name in zip(rows, superclasses, strict=True):
        is_long = len(text_bytes(name)) > MAX_KEY_BYTES
        if is_long or any(part in name for part in "/\\") or name in (".", ".."):
            # Exports name folders after superclasses.
            raise row.error("superclass", f"{name!r} cannot be the name of a folder")
    labels: dict[str, int] = {}
    for row, name in zip(rows, superclasses, strict=True):
        if not row.text("label") or not name:
            continue
        label = row.integer("label")
        if not 0 <= label < len(names):
            raise row.error("label", f"{label} is not between 0 and {len(names) - 1}")
        if labels.setdefault(name, label) != label:
            raise row.error("label", f"{label} differs from an earlier row of {name!r}")
    if not labels:
        return tuple(names)
    if len(set(labels.values())) < len(names):
        raise rows[0].error("label", f"must give each of the {len(names)} superclasses its own")
    return tuple(sorted(names, key=lambda name: labels[name]))


def _outputs(rows: Sequence[TableRow], names: Sequence[str]) -> tuple[int, ...]:
    """Returns each class's index among a model's outputs; ImageNet's where none is given."""
    seen: dict[int, TableRow] = {}
    for row in rows:
        known = None if row.text("index") else imagenet_output(row.text("class"))
        index = row.integer("index") if known is None else known
        if not 0 <= index < 10_000_000:
            raise row.error("index", f"{index} is not the index of an output")
        if index in seen:
            raise row.error("index", f"{index} is in {seen[index]} too")
        seen[index] = row
    if max(seen) < len(names):
        for index, row in seen.items():
            # With so few outputs, a model might have one for each class, or for each superclass.
            name = row.text("superclass")
            if not name or names.index(name) != index:
                raise row.error(
                    "index",
                    f"{index} is not the label of {name!r}: with one output a superclass, give "
                    "each superclass its index as label",
                )
    return tuple(seen)
