"""Source images: one form for the images of every input format, with their files and classes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from pipeline.errors import UsageError
from transforms.taxonomy import OUTSIDE, Taxonomy

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")

_WNID = re.compile(r"n[0-9]{8}")
_HIDDEN = re.compile(r"\.[^.]")


@dataclasses.dataclass(frozen=True)
class SourceImage:
    """One image of the input, from its listing until it is cut.

    An input format fills in what its files tell; `list_images` completes class, label and
    annotation.

    Attributes:
      key: file name without its suffix, or the key that a table gives.
      path: location of the image (`pipeline.inputs.location`), which is the absolute path if the
        image is a file.
      name: path relative to the input, as shown in records, with forward slashes and archives as
        folders.
      wnid: class of the image; empty if neither folder, table, label nor annotation tells it.
      label: superclass label, `OUTSIDE` if `wnid` is empty.
      annotation: location of the annotation; None if the image has no annotation.
      md5, annotation_md5: hexadecimal MD5 of the image and of the annotation, if the listing tells
        it.
      stamp: text that changes with the content of a picture inside a larger file, if the listing
        tells it.
      is_excluded: whether `--exclude` or `--include` leaves the image out.
      mask: location of the mask; None if the image has no mask.
      mask_md5: hexadecimal MD5 of the mask, if the listing tells it.
      fault: why nothing tells the class, if something should; else "".
      group: name of a group of images that share a scene, so that no image of the group becomes the
        background of another; "" for no group.
    """

    key: str
    path: str
    name: str
    wnid: str
    label: int = OUTSIDE
    annotation: str | None = None
    md5: str | None = None
    stamp: str | None = None
    annotation_md5: str | None = None
    is_excluded: bool = False
    mask: str | None = None
    mask_md5: str | None = None
    group: str = ""
    fault: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class KeyedFile:
    """An image, an annotation or a mask, found by its key.

    Attributes:
      folder: name of the folder that holds the file, "" if there is none.
      key: file name without the suffix; "" if the file has another suffix than the search asked
        for.
      path: location of the file, as in `SourceImage`.
      md5: hexadecimal MD5 of the content, if the listing tells it.
      size: size in bytes, if the listing tells it.
    """

    folder: str
    key: str
    path: str
    md5: str | None = None
    size: int | None = None


class FileIndex:
    """An index of annotations or masks, by the folder and the key of their image."""

    def __init__(self, entries: Iterable[KeyedFile]) -> None:
        self._by_key: dict[str, tuple[KeyedFile, ...]] = {}
        for entry in entries:
            others = (o for o in self._by_key.get(entry.key, ()) if o.folder != entry.folder)
            self._by_key[entry.key] = (*others, entry)

    def __len__(self) -> int:
        return sum(map(len, self._by_key.values()))

    def find(self, folder: str, key: str) -> KeyedFile | None:
        """Finds the file of an image, given the image's key and folder; the folder is "" if the
        image is in none.

        A file in no folder, or the only file of a key, belongs to images in any folder.
        """
        entries = self._by_key.get(key, ())
        if len(entries) == 1:
            return entries[0]
        by_folder = {entry.folder: entry for entry in entries}
        return by_folder.get(folder) or by_folder.get("")


def wnid_of_folder(name: str, taxonomy: Taxonomy | None = None) -> str:
    """Returns the class that the folder of a path in an archive is named after, a WordNet id or a
    class of the taxonomy; "" if it is neither."""
    folder = name.rpartition("/")[0].rpartition("/")[2]
    return folder if is_wnid(folder) or (taxonomy and taxonomy.holds(folder)) else ""


def is_wnid(text: str) -> bool:
    """Returns whether a text is a WordNet id.

    >>> is_wnid("n02085620"), is_wnid("val")
    (True, False)
    """
    return _WNID.fullmatch(text) is not None


def is_hidden(name: str) -> bool:
    """Returns whether a path is hidden, and so not listed: whether one of its names begins with a
    single dot."""
    return any(_HIDDEN.match(part) for part in name.split("/"))


def wnid_of_label(label: object, taxonomy: Taxonomy, name: str) -> str:
    """Returns the class that a label means; "" for a negative number, None or an empty text.

    Args:
      label: number or id of a class, as found in the input.
      taxonomy: the classes.
      name: name of the image, for messages.

    Raises:
      UsageError: the label is neither a class nor a class number.
    """
    text = "" if label is None else str(label).strip()
    if not text or is_wnid(text) or taxonomy.holds(text):
        return text
    try:
        index = int(text)
    except ValueError:
        index = len(taxonomy.wnids)
    if index >= len(taxonomy.wnids):
        raise UsageError(
            f"{name} is of class {text[:40]!r}: expected "
            + (
                f"a WordNet id, or the index of one of ImageNet's {len(taxonomy.wnids)} classes"
                if taxonomy.is_of_imagenet
                else f"one of the {len(taxonomy.wnids)} classes of --taxonomy"
            )
        )
    return taxonomy.wnids[index] if index >= 0 else ""
