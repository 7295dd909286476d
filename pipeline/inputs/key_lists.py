"""`--exclude` and `--include`: lists of images, by key or by the name that the released archive
gives them.

A list is a text file with one name in each line. The file names in the released archive are such a
list: they name the images that its authors kept.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re

from pipeline.errors import UsageError
from pipeline.inputs.table_rows import TextLines
from pipeline.storage.files import files_of
from transforms.hashing import text_bytes

_SUFFIX = re.compile(r"\.(jpe?g|png|npy|xml)$", re.IGNORECASE)
_MIXED = re.compile(r"fg_(.+)_bg_.+")
_NUMBER = re.compile(r"\d+$")


@dataclasses.dataclass(frozen=True)
class KeyList:
    """A list of images.

    Attributes:
      names: keys, or `<wnid>_<number>`, sorted.
    """

    names: tuple[str, ...]

    @property
    def summary(self) -> str:
        """Number and digest of the names, as recorded in a dataset's configuration."""
        digest = hashlib.sha256(text_bytes("\n".join(self.names)))
        return f"{len(self.names)} names, sha256 {digest.hexdigest()[:16]}"

    @functools.cached_property
    def _keys(self) -> frozenset[str]:
        return frozenset(self.names)

    def holds(self, key: str, wnid: str) -> bool:
        """Returns whether the list names an image.

        It may name the key, or the class and the digits at the end of the key. Digits have leading
        zeros in the validation set and none in the training set, so images of the two sets are not
        confused.
        """
        number = _NUMBER.search(key)
        return key in self._keys or (number is not None and f"{wnid}_{number[0]}" in self._keys)


@dataclasses.dataclass(frozen=True)
class KeyLists:
    """The lists that leave images out.

    Attributes:
      exclude: images to leave out.
      include: the only images to keep; None to keep all.
    """

    exclude: KeyList | None = None
    include: KeyList | None = None

    def excludes(self, key: str, wnid: str) -> bool:
        """Returns whether an image is left out."""
        if self.exclude is not None and self.exclude.holds(key, wnid):
            return True
        return self.include is not None and not self.include.holds(key, wnid)


def read_key_list(path: str, flag: str) -> KeyList:
    """Reads a list.

    Args:
      path: absolute path of a text file.
      flag: the flag that named the file, for messages.

    Raises:
      UsageError: the file does not exist, is empty, or is not text.
      OSError: the file cannot be read.
    """
    files = files_of(path)
    if files.info(path) is None:
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
    return KeyList(listed)


def _name(text: str) -> str:
    """Returns the key, or the released name, that a line means. The name of a mixed picture means
    the image of its foreground.

    >>> _name("mixed_rand/val/00_dog/fg_n02085620_7_bg_n02091134_9.JPEG")
    'n02085620_7'
    """
    name = _SUFFIX.sub("", text.replace("\\", "/").rpartition("/")[2])
    mixed = _MIXED.fullmatch(name)
    return mixed[1] if mixed else name
