"""What becomes of one source image: its identity, and its layer."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from pipeline.dataset.config import SegmentConfig
from pipeline.dataset.fingerprints import fingerprint
from pipeline.errors import JobError, escaped
from pipeline.inputs.checksums import Content, KnownContent
from pipeline.inputs.location import read_location, shown
from pipeline.inputs.source_images import SourceImage
from pipeline.segmenters import find_segmenter
from transforms.annotations import AnnotationError, parse_annotation, write_annotation
from transforms.codec import TooManyPixelsError, UndecodableError, open_picture
from transforms.cropping import CroppedImage, crop_whole
from transforms.cutting import Cut, cut_objects
from transforms.filters import Reason, is_valid_key
from transforms.segmentation import Segmenter


def contents_of(image: SourceImage) -> tuple[Content, Content | None, Content | None]:
    """What identifies an image: the picture, its annotation, its mask; None for what it lacks."""
    # Of a picture without boxes, nobody asks for the size.
    tell = None if image.annotation is None else _size_of
    picture = Content(image.path, tell, image.md5, image.stamp)
    boxes = image.annotation and Content(image.annotation, _boxes_of, image.annotation_md5)
    return picture, boxes or None, Content(image.mask, None, image.mask_md5) if image.mask else None


def source_digest(
    image: SourceImage, config: SegmentConfig, know: Callable[[Content], KnownContent]
) -> str:
    """Identifies everything that an image's layer depends on: its key, what it holds, what its
    annotation says, its mask, and the configuration. Where it lies, and in what, is no part of it.

    Args:
      image: the source image.
      config: of the layers.
      know: gives what is known of content.
    """
    picture, boxes, mask = (each and know(each) for each in contents_of(image))
    assert picture is not None
    return fingerprint(
        config.fingerprint(),
        image.key.encode("utf-8", "surrogatepass").hex(),
        image.wnid,
        image.label,
        picture.md5,
        boxes and _matched(boxes.about, picture.about),
        mask and mask.md5,
        image.is_excluded,
        image.group,
    )


def known_digest(
    image: SourceImage, config: SegmentConfig, known: Callable[[Content], KnownContent | None]
) -> str | None:
    """`source_digest` as far as it is known without reading: None if something is not."""
    found = {each: known(each) for each in contents_of(image) if each is not None}
    if None in found.values():
        return None
    return source_digest(image, config, lambda content: found[content] or KnownContent(""))


def by_content(
    images: Sequence[SourceImage], know: Callable[[Content], KnownContent]
) -> tuple[SourceImage, ...]:
    """The images of a shard, in order of their key; of several of one key, the one with the lowest
    MD5 (and class) comes first, wherever it lies."""
    times = Counter(image.key for image in images)

    def rank(image: SourceImage) -> tuple[str, str, str]:
        same = times[image.key] > 1
        return image.key, know(contents_of(image)[0]).md5 if same else "", image.wnid

    return tuple(sorted(images, key=rank))


def _size_of(data: bytes) -> str:
    """Width and height of a picture as text, empty if it is none."""
    try:
        picture = open_picture(data)
    except (UndecodableError, TooManyPixelsError):
        return ""
    return f"{picture.width}x{picture.height}"


def _boxes_of(data: bytes) -> str:
    """What an annotation says but for the class, which images have, as a line of JSON."""
    try:
        parsed = parse_annotation(data)
    except AnnotationError as error:
        return write_annotation(error)
    return write_annotation(dataclasses.replace(parsed, wnid=None))


def _matched(boxes: str, size: str) -> object:
    """What counts of an annotation: the boxes, and whether its size, if it has one, is that of the
    picture. So it does not matter whether a table leaves the size out."""
    said = json.loads(boxes)
    given = [said.pop(side, None) for side in ("width", "height")]
    actual = [int(side) for side in size.split("x")] if size else given
    return said, [side in (None, own) for side, own in zip(given, actual, strict=True)]


def shard_fingerprint(digests: list[str], config: SegmentConfig) -> str:
    """Identifies everything that a shard's layers depend on, given its images' digests."""
    return fingerprint(config.fingerprint(), sorted(digests))


def printable(text: str) -> str:
    """Text that any file can hold: escapes what is not printable, and cuts what is long."""
    shown = escaped(text, keep="")
    return shown if len(shown) <= 300 else shown[:297] + "..."


def reject_by_name(image: SourceImage, before: SourceImage | None) -> tuple[Reason, str] | None:
    """Rejections that need no look at the image: (reason, detail), or None.

    Args:
      image: a source image.
      before: the one before it in its shard (`by_content`).
    """
    if not is_valid_key(image.key):
        detail = "a key is printable, without dots and slashes, and at most 200 bytes long"
        return Reason.INVALID_KEY, detail
    if before is not None and before.key == image.key:
        return Reason.DUPLICATE_KEY, "another image of the same key has a lower MD5"
    if image.is_excluded:
        return Reason.EXCLUDED, "left out by --exclude or --include"
    if not image.wnid:
        missing = image.annotation is None
        reason = Reason.MISSING_ANNOTATION if missing else Reason.UNREADABLE_ANNOTATION
        return reason, "nothing tells its class: no folder, and no annotation that names one"
    return None


def prepared_segmenter(config: SegmentConfig) -> Segmenter:
    """The segmenter, ready for an image: only the first one has to wait."""
    segmenter = find_segmenter(config.segmenter, config.segmenter_parameters)
    segmenter.prepare(_announce)
    return segmenter


def _announce() -> None:
    """Says why nothing seems to happen at first."""
    print("Compiling GrabCut, once on this machine (about half a minute) ...", file=sys.stderr)


@dataclasses.dataclass(frozen=True)
class SourceBytes:
    """The content of a source image, of its annotation and of its mask, None without one.

    Attributes:
      number: of the object that is asked for, 0 for all.
      place: of the image, for messages.
    """

    image: bytes
    annotation: bytes | None
    mask: bytes | None = None
    number: int = 0
    place: str = ""

    @classmethod
    def read(
        cls,
        image: SourceImage,
        read: Callable[[Content], bytes] = lambda content: read_location(content.place),
    ) -> SourceBytes:
        """Reads an image with what belongs to it. Raises OSError."""
        picture, annotation, mask = (each and read(each) for each in contents_of(image))
        assert picture is not None
        return cls(picture, annotation, mask, place=image.path)


def read_source(image: str, annotation: str | None, mask: str | None = None) -> SourceBytes:
    """Reads them, given by their places. Raises OSError."""
    return SourceBytes(
        read_location(image),
        None if annotation is None else read_location(annotation),
        None if mask is None else read_location(mask),
        place=image,
    )


def cut_source(source: SourceBytes, config: SegmentConfig) -> Iterator[Cut]:
    """Cuts a source image: a `Cut` for each object that is asked for with `--objects each`, else
    one. Whatever it holds, it raises nothing.

    Raises:
      JobError: the segmenter is the user's, and failed.
    """
    try:
        yield from cut_objects(
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
        )
    except JobError as error:
        raise JobError(f"{shown(source.place)}: {error}") from error


def crop_source(source: SourceBytes, config: SegmentConfig) -> CroppedImage:
    """Resizes and crops a source image that is not cut apart. It raises nothing, either."""
    return crop_whole(
        source.image,
        resize=config.resize,
        crop=config.image_size,
        interpolation=config.interpolation,
        pad=config.crop == "pad",
    )
