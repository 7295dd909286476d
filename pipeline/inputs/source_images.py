"""Images and what belongs to them, as they were found in whatever shape, and their classes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from pipeline.errors import UsageError
from transforms.taxonomy import OUTSIDE, Taxonomy

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")

_WNID = re.compile(r"n[0-9]{8}")


@dataclasses.dataclass(frozen=True)
class SourceImage:
    """One image of the input, from its listing on until it is cut. What lists a shape of the
    input fills in what that tells; `list_images` completes class, label and annotation.

    Attributes:
      key: file name without its suffix.
      path: place of the image (`pipeline.inputs.location`): of a file, its absolute path.
      name: path relative to the input, with forward slashes and archives as folders, as records
        show it.
      wnid: class; empty if neither folder, table nor annotation tells.
      label: superclass label, `OUTSIDE` with an empty wnid.
      annotation: place of the annotation, None if there is none.
      md5, annotation_md5: of their content, hexadecimal, where the listing tells it.
      stamp: what changes with the content of a picture that lies in a file with others, where the
        listing tells it.
      is_excluded: whether `--exclude` or `--include` leaves it out.
      mask: where its mask lies, a path or the mask itself; None without one.
      mask_md5: as `md5`.
      group: images of one group share a scene, and none is another's background; "" for none.
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


@dataclasses.dataclass(frozen=True, slots=True)
class KeyedFile:
    """Something that lies somewhere for a key: an image, an annotation or a mask.

    Attributes:
      folder: name of the folder that it lies in, "" if it lies in none.
      key: its name without the suffix; "" if it has none of the suffixes asked for.
      path: place of it, as of an image.
      md5: of its content, hexadecimal, where the listing tells it.
      size: in bytes, where the listing tells it.
    """

    folder: str
    key: str
    path: str
    md5: str | None = None
    size: int | None = None


class FileIndex:
    """What belongs to images, annotations or masks, by the folder and the key of its image."""

    def __init__(self, entries: Iterable[KeyedFile]) -> None:
        self._by_key: dict[str, tuple[KeyedFile, ...]] = {}
        for entry in entries:
            others = (o for o in self._by_key.get(entry.key, ()) if o.folder != entry.folder)
            self._by_key[entry.key] = (*others, entry)

    def __len__(self) -> int:
        return sum(map(len, self._by_key.values()))

    def find(self, folder: str, key: str) -> KeyedFile | None:
        """What belongs to an image, given the folder it lies in, "" for none.

        What lies in no folder, or is the only one of its key, serves an image in any.
        """
        of_key = self._by_key.get(key, ())
        if len(of_key) == 1:
            return of_key[0]
        by_folder = {found.folder: found for found in of_key}
        return by_folder.get(folder) or by_folder.get("")


def wnid_of_folder(name: str, taxonomy: Taxonomy | None = None) -> str:
    """Class that the folder of a path in an archive tells, "" if none does: its WordNet id, or
    one of a taxonomy's classes."""
    folder = name.rpartition("/")[0].rpartition("/")[2]
    return folder if is_wnid(folder) or (taxonomy and taxonomy.holds(folder)) else ""


def is_wnid(text: str) -> bool:
    """Whether a text is a WordNet id.

    >>> is_wnid("n02085620"), is_wnid("val")
    (True, False)
    """
    return _WNID.fullmatch(text) is not None


def is_hidden(name: str) -> bool:
    """Whether a path in an archive is one of those that are passed over."""
    return any(part.startswith(".") and part.strip(".") for part in name.split("/"))


def wnid_of_label(label: object, taxonomy: Taxonomy, where: str) -> str:
    """Class of a label: its number among the classes, or its id itself.

    Args:
      label: as it was found; a number below 0 or nothing says that there is none.
      taxonomy: the classes.
      where: it was found, for the message.

    Raises:
      UsageError: it is another thing.
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
            f"{where} is of class {text[:40]!r}: expected "
            + (
                f"a WordNet id, or the index of one of ImageNet's {len(taxonomy.wnids)} classes"
                if taxonomy.is_of_imagenet
                else f"one of the {len(taxonomy.wnids)} classes of --taxonomy"
            )
        )
    return taxonomy.wnids[index] if index >= 0 else ""
