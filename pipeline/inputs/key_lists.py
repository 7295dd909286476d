"""`--exclude` and `--include`: lists of images, by key or by the name that the released
archive gives them.

A list is a text file, a name in each line; such as the released archive's, of which each file is
an image that its authors kept.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re

from pipeline.errors import UsageError
from pipeline.inputs.text_lines import TextLines
from pipeline.storage.files import files_of

_SUFFIX = re.compile(r"\.(jpe?g|png|npy|xml)$", re.IGNORECASE)
_MIXED = re.compile(r"fg_(.+)_bg_.+")
_NUMBER = re.compile(r"\d+$")


@dataclasses.dataclass(frozen=True)
class KeyList:
    """A list of images.

    Attributes:
      names: keys, or `<wnid>_<number>`, in order.
    """

    names: tuple[str, ...]

    @property
    def about(self) -> str:
        """How many names, and a digest of them: what a dataset's configuration says of it."""
        digest = hashlib.sha256("\n".join(self.names).encode("utf-8", "surrogatepass"))
        return f"{len(self.names)} names, sha256 {digest.hexdigest()[:16]}"

    @functools.cached_property
    def _keys(self) -> frozenset[str]:
        return frozenset(self.names)

    def holds(self, key: str, wnid: str) -> bool:
        """Whether it names an image: by its key, or by its class and the digits that its key
        ends with. Those of the validation set have leading zeros, those of train have none, so
        that one is not taken for the other."""
        number = _NUMBER.search(key)
        return key in self._keys or (number is not None and f"{wnid}_{number[0]}" in self._keys)


@dataclasses.dataclass(frozen=True)
class KeyLists:
    """What leaves images out.

    Attributes:
      exclude: images to leave out, if any.
      include: images to keep, if others are not to be.
    """

    exclude: KeyList | None = None
    include: KeyList | None = None

    def excludes(self, key: str, wnid: str) -> bool:
        """Whether an image is left out."""
        if self.exclude is not None and self.exclude.holds(key, wnid):
            return True
        return self.include is not None and not self.include.holds(key, wnid)


def read_key_list(path: str, flag: str) -> KeyList:
    """Reads a list.

    Args:
      path: absolute, of a text file.
      flag: that named it, for messages.

    Raises:
      UsageError: there is none, it is empty, or no text.
      OSError: it cannot be read.
    """
    files = files_of(path)
    if files.info(path) is None:
        raise UsageError(f"{flag} {path} is no file that can be read")
    names: set[str] = set()
    text = TextLines(path, flag, errors="surrogateescape")
    for lines in text:
        text.begin_row()
        if "\0" in lines:
            raise UsageError(f"{flag} {path} is no text: expected a name in each line")
        stripped = map(str.strip, lines.splitlines())
        names.update(_name(line) for line in stripped if not line.startswith("#"))
    listed = tuple(sorted(names - {""}))
    if not listed:
        raise UsageError(f"{flag} {path} names no image")
    return KeyList(listed)


def _name(text: str) -> str:
    """Key, or released name, of a path: of mixed pictures, the foreground's.

    >>> _name("mixed_rand/val/00_dog/fg_n02085620_7_bg_n02091134_9.JPEG")
    'n02085620_7'
    """
    name = _SUFFIX.sub("", text.replace("\\", "/").rpartition("/")[2])
    mixed = _MIXED.fullmatch(name)
    return mixed[1] if mixed else name
