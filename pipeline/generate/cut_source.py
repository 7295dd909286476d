"""One source image: identifies it, reads it, and cuts it into layers."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from pipeline.dataset.config import SegmentConfig
from pipeline.dataset.fingerprints import fingerprint
from pipeline.errors import JobError, escaped_line
from pipeline.inputs.checksums import Content, KnownContent
from pipeline.inputs.location import Location, changed, read_location, shown
from pipeline.inputs.source_images import SourceImage
from pipeline.segmenters import find_segmenter
from pipeline.storage.files import is_remote
from transforms.annotations import AnnotationError, parse_annotation, write_annotation
from transforms.codec import TooManyPixelsError, UndecodableError, open_picture
from transforms.cropping import CroppedImage, crop_whole
from transforms.cutting import Cut, cut_objects
from transforms.filters import Reason, is_valid_key
from transforms.hashing import text_bytes
from transforms.limits import load_json
from transforms.segmentation import Segmenter


def contents_of(image: SourceImage) -> tuple[Content, Content | None, Content | None]:
    """Returns the contents that identify an image: picture, annotation and mask; None for a missing
    annotation or mask."""
    # The size of a picture is only needed to compare it with the size that an annotation states.
    describe = None if image.annotation is None else _size_of
    picture = Content(image.path, describe, image.md5, image.stamp)
    boxes = image.annotation and Content(image.annotation, _boxes_of, image.annotation_md5)
    return picture, boxes or None, Content(image.mask, None, image.mask_md5) if image.mask else None


def source_digest(
    image: SourceImage, config: SegmentConfig, know: Callable[[Content], KnownContent]
) -> str:
    """Identifies everything that an image's record row and layer depend on: key, class, group,
    picture, annotation, mask, configuration, and whether the image is left out by a list. Its
    location and its input format do not matter.

    Args:
      image: the source image.
      config: configuration of the layers.
      know: returns the MD5 and the description of a content, and reads it if necessary.
    """
    picture, boxes, mask = (each and know(each) for each in contents_of(image))
    assert picture is not None
    return fingerprint(
        config.fingerprint(),
        text_bytes(image.key).hex(),
        image.wnid,
        image.label,
        picture.md5,
        boxes and _matched(boxes.description, picture.description),
        mask and mask.md5,
        image.is_excluded,
        image.group,
    )


def known_digest(
    image: SourceImage, config: SegmentConfig, known: Callable[[Content], KnownContent | None]
) -> str | None:
    """Same as `source_digest`, but reads no file: returns None if `known` returns None for any
    content of the image."""
    contents = {each: known(each) for each in contents_of(image) if each is not None}
    if None in contents.values():
        return None
    return source_digest(image, config, lambda content: contents[content] or KnownContent(""))


def by_content(
    images: Sequence[SourceImage], know: Callable[[Content], KnownContent]
) -> tuple[SourceImage, ...]:
    """Sorts the images of a shard by key; images of the same key by MD5, then by class."""
    counts = Counter(image.key for image in images)

    def rank(image: SourceImage) -> tuple[str, str, str]:
        is_repeated = counts[image.key] > 1
        return image.key, know(contents_of(image)[0]).md5 if is_repeated else "", image.wnid

    return tuple(sorted(images, key=rank))


def _size_of(data: bytes) -> str:
    """Returns width and height of a picture as text; "" if it cannot be opened."""
    try:
        picture = open_picture(data)
    except (UndecodableError, TooManyPixelsError):
        return ""
    return f"{picture.width}x{picture.height}"


def _boxes_of(data: bytes) -> str:
    """Returns an annotation as a line of JSON, without the class, which the image already has."""
    try:
        parsed = parse_annotation(data)
    except AnnotationError as error:
        return write_annotation(error)
    return write_annotation(dataclasses.replace(parsed, wnid=None))


def _matched(boxes: str, size: str) -> object:
    """Returns the part of an annotation that matters: the boxes, and whether the stated size is the
    picture's size. It counts as matching if the annotation states no size, or the picture cannot be
    opened."""
    fields = load_json(boxes)
    annotated = [fields.pop(side, None) for side in ("width", "height")]
    actual = [int(side) for side in size.split("x")] if size else annotated
    return fields, [a in (None, b) for a, b in zip(annotated, actual, strict=True)]


def shard_fingerprint(digests: list[str], config: SegmentConfig) -> str:
    """Identifies everything that a shard's layers depend on, from the digests of its images."""
    return fingerprint(config.fingerprint(), sorted(digests))


def printable(text: str) -> str:
    """Escapes characters that are not printable, and shortens text to 300 characters, so that any
    file format can hold it."""
    text = escaped_line(text)
    return text if len(text) <= 300 else text[:297] + "..."


def reject_by_name(image: SourceImage, preceding: SourceImage | None) -> tuple[Reason, str] | None:
    """Returns (reason, detail) if an image is rejected without looking at its content, else None.

    Args:
      image: a source image.
      preceding: the image before it in its shard (`by_content`), None for the first.
    """
    if not is_valid_key(image.key):
        detail = "a key is printable, without dots and slashes, and at most 200 bytes long"
        return Reason.INVALID_KEY, detail
    if preceding is not None and preceding.key == image.key:
        return Reason.DUPLICATE_KEY, "another image of the same key has a lower MD5"
    if image.is_excluded:
        return Reason.EXCLUDED, "left out by --exclude or --include"
    if not image.wnid:
        missing = image.annotation is None
        reason = Reason.MISSING_ANNOTATION if missing else Reason.UNREADABLE_ANNOTATION
        unknown = "nothing tells its class: no folder, and no annotation that names one"
        return reason, image.fault or unknown
    return None


def prepared_segmenter(config: SegmentConfig) -> Segmenter:
    """Returns the segmenter, compiled if necessary, so that only the first image has to wait."""
    segmenter = find_segmenter(config.segmenter, config.segmenter_parameters)
    segmenter.prepare(_announce)
    return segmenter


def _announce() -> None:
    """Tells the user why nothing seems to happen at first."""
    print("Compiling GrabCut, once on this machine (about half a minute) ...", file=sys.stderr)


@dataclasses.dataclass(frozen=True)
class SourceBytes:
    """The bytes of a source image's files.

    Attributes:
      image: content of the picture.
      annotation: content of the annotation, None if there is none.
      mask: content of the mask, None if there is none.
      number: number of the only object to cut, from 1; 0 to cut all objects.
      location: location of the picture, for messages.
    """

    image: bytes
    annotation: bytes | None
    mask: bytes | None = None
    number: int = 0
    location: str = ""

    @classmethod
    def read(cls, image: SourceImage, read: Callable[[Content], bytes]) -> SourceBytes:
        """Reads an image with its annotation and its mask. Raises OSError if a file cannot be
        read."""
        picture, annotation, mask = (each and read(each) for each in contents_of(image))
        assert picture is not None
        return cls(picture, annotation, mask, location=image.path)

    def read_again(self) -> None:
        """Reads a picture in object storage again; raises OSError if it is another now. Parts of
        objects come without a checksum, so they may have been corrupted on the way."""
        is_in_object = is_remote(Location.parse(self.location).path)
        if is_in_object and read_location(self.location) != self.image:
            raise changed(self.location)


def read_source(
    image: str, annotation: str | None, mask: str | None = None, number: int = 0
) -> SourceBytes:
    """Reads an image, its annotation and its mask from their locations. Raises OSError if a file
    cannot be read."""
    return SourceBytes(
        read_location(image),
        None if annotation is None else read_location(annotation),
        None if mask is None else read_location(mask),
        number,
        image,
    )


def cut_source(source: SourceBytes, config: SegmentConfig) -> Iterator[Cut]:
    """Cuts a source image; yields a `Cut` for each of its objects with `--objects each`, else one
    `Cut`. An unsuitable or damaged image raises no error: its `Cut` holds a `Reason` instead.

    Raises:
      JobError: a custom segmenter failed.
      OSError: a picture that cannot be decoded is another when it is read again.
    """
    try:
        for cut in cut_objects(
            source.image,
            source.annotation,
            source.mask,
            segment=prepared_segmenter(config).segment,
            seed=config.grabcut_seed,
            resize=config.resize,
            crop=config.image_size,
            interpolation=config.interpolation,
            rules=config.rules,
            only=source.number,
        ):
            if cut.reason is Reason.UNDECODABLE:
                source.read_again()
            yield cut
    except JobError as error:
        raise JobError(f"{shown(source.location)}: {error}") from error


def crop_source(source: SourceBytes, config: SegmentConfig) -> CroppedImage:
    """Resizes and crops a source image as a whole. An unsuitable or damaged image raises no error:
    the result holds a `Reason` instead. Raises OSError like `cut_source`."""
    cropped = crop_whole(
        source.image,
        resize=config.resize,
        crop=config.image_size,
        interpolation=config.interpolation,
        pad=config.crop == "pad",
    )
    if cropped.reason is Reason.UNDECODABLE:
        source.read_again()
    return cropped
