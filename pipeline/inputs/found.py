"""Images and annotations as they were found, whatever the shape of the input, and their classes."""

from __future__ import annotations

import dataclasses
import re

from pipeline.errors import UsageError
from transforms.taxonomy import Taxonomy

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")

_WNID = re.compile(r"n[0-9]{8}")


@dataclasses.dataclass(frozen=True, slots=True)
class FoundAnnotation:
    """An annotation.

    Attributes:
      place: where it lies.
      md5: of its content, hexadecimal; None where nothing has told it.
    """

    place: str
    md5: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class FoundImage:
    """An image.

    Attributes:
      key: file name without its suffix.
      place: where it lies.
      name: path relative to the input, archives being folders in it.
      folder: what decides its class, "" if that is left to the annotation.
      md5: of its content, hexadecimal; None where nothing has told it.
      stamp: what changes when the content does, where that alone was told.
      annotation: if it lies with the image.
      group: what it shares its scene with, "" for nothing.
      mask: where its mask lies, None without one.
      mask_md5: as `md5`.
    """

    key: str
    place: str
    name: str
    folder: str
    md5: str | None = None
    stamp: str | None = None
    annotation: FoundAnnotation | None = None
    group: str = ""
    mask: str | None = None
    mask_md5: str | None = None


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
