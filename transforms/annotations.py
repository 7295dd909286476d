"""Bounding boxes, and annotations: ImageNet's CLS-LOC files, and their form as lines of JSON."""

import dataclasses
import functools
import json
from typing import Any, NamedTuple, Self
from xml.etree.ElementTree import Element, ParseError

from transforms.limits import MAX_ANNOTATION_BYTES, Unread, load_json


class AnnotationError(ValueError):
    """The annotation is not readable, is too large or hostile, or lacks a number."""


class Box(NamedTuple):
    """A box as annotated: its corners in native pixels.

    A rectangle that is painted from these corners includes column xmax and row ymax, by PIL's
    convention, which the authors' script follows. But `width` and `height` are the plain
    differences of the corners, because the script passes these to GrabCut.
    """

    xmin: int
    ymin: int
    xmax: int
    ymax: int

    @property
    def width(self) -> int:
        """Width in pixels, xmax - xmin; 0 or less if the corners are not in order."""
        return self.xmax - self.xmin

    @property
    def height(self) -> int:
        """Height in pixels, ymax - ymin; 0 or less if the corners are not in order."""
        return self.ymax - self.ymin

    @property
    def area(self) -> int:
        """Width times height, in pixels; 0 for an empty box."""
        return self.width * self.height if self.width > 0 and self.height > 0 else 0

    def clip(self, width: int, height: int) -> Self:
        """Clips the box to an image of this size; its area is 0 if it lies outside of the image.

        xmax may still equal the image's width, and ymax the height, as they often do in ImageNet.
        The authors' script keeps such corners, too.
        """
        return type(self)(
            max(self.xmin, 0), max(self.ymin, 0), min(self.xmax, width), min(self.ymax, height)
        )


@dataclasses.dataclass(frozen=True)
class Annotation:
    """The content of an annotation.

    Attributes:
      width, height: native size, in pixels; None if the annotation, as JSON, does not give it.
      wnid: class name of the first object, None if the annotation gives none. It decides the
        image's class only if the image is in no folder that names a class.
    """

    width: int | None
    height: int | None
    boxes: tuple[Box, ...]
    wnid: str | None


def write_annotation(annotation: Annotation | AnnotationError) -> str:
    """Encodes an annotation, or its error, as a line that `parse_annotation` reads.

    >>> write_annotation(Annotation(None, None, (Box(1, 2, 3, 4),), "n02085620"))
    '{"boxes": [[1, 2, 3, 4]], "wnid": "n02085620"}'
    """
    if isinstance(annotation, AnnotationError):
        return json.dumps({"error": str(annotation)})
    fields = {
        "width": annotation.width,
        "height": annotation.height,
        "boxes": annotation.boxes,
        "wnid": annotation.wnid,
    }
    return json.dumps({name: value for name, value in fields.items() if value is not None})


def annotation_from(fields: Any) -> Annotation:
    """Converts decoded JSON to an annotation, with numbers rounded to whole pixels.

    It is an object with `boxes` (xmin, ymin, xmax, ymax each), and optionally `wnid`, `width` and
    `height`; anything else raises AnnotationError.
    """
    try:
        width, height = (
            None if fields.get(side) is None else round(float(fields[side]))
            for side in ("width", "height")
        )
        boxes = tuple(
            Box(*(round(float(corner)) for corner in (xmin, ymin, xmax, ymax)))
            for xmin, ymin, xmax, ymax in fields["boxes"]
        )
        wnid = fields.get("wnid")
        return Annotation(width, height, boxes, None if wnid is None else str(wnid))
    except (TypeError, KeyError, ValueError, OverflowError, AttributeError) as error:
        raise AnnotationError("no list of boxes, (xmin, ymin, xmax, ymax) each") from error


def _integer(parent: Element, path: str) -> int:
    """Reads the number in a descendant, rounded. Raises AnnotationError if there is none."""
    text = parent.findtext(path)
    if text is None:
        raise AnnotationError(f"no <{path}> in <{parent.tag}>")
    try:
        return round(float(text))
    except (ValueError, OverflowError):
        raise AnnotationError(f"<{path}> is not a number: {text.strip()[:40]!r}") from None


@functools.lru_cache(64)  # For its digest and for its boxes.
def parse_annotation(data: bytes) -> Annotation:
    """Parses a CLS-LOC (Pascal VOC) annotation, or a line of `write_annotation`.

    Numbers are rounded to whole pixels. Boxes are returned as annotated, even if they are empty or
    reach beyond the image.

    Raises:
      AnnotationError: the file is larger than `MAX_ANNOTATION_BYTES`, is not XML, declares entities
        (refused by defusedxml), lacks a size or a corner, or gives one that is not a number; or the
        line is no JSON of the right form, or encodes an error.
    """
    if isinstance(data, Unread):
        raise AnnotationError(data.decode())
    if len(data) > MAX_ANNOTATION_BYTES:
        raise AnnotationError(Unread.from_size(len(data), MAX_ANNOTATION_BYTES).decode())
    if data.startswith(b"{"):
        try:
            fields = load_json(data)
        except ValueError as error:
            raise AnnotationError("not readable as JSON") from error
        if "error" in fields:
            raise AnnotationError(fields["error"])
        return annotation_from(fields)
    # Imported here because an installation that only runs models may lack it.
    from defusedxml import DefusedXmlException
    from defusedxml import ElementTree as DefusedElementTree

    try:
        root = DefusedElementTree.fromstring(data)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise AnnotationError(f"not a readable XML file: {type(error).__name__}") from error
    boxes = []
    for node in root.iter("object"):
        corners = node.find("bndbox")
        if corners is None:
            raise AnnotationError("an <object> without <bndbox>")
        boxes.append(Box(*(_integer(corners, name) for name in Box._fields)))
    return Annotation(
        width=_integer(root, "size/width"),
        height=_integer(root, "size/height"),
        boxes=tuple(boxes),
        wnid=(root.findtext("object/name") or "").strip() or None,
    )
