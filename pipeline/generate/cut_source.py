"""What becomes of one source image: its identity, and its layer."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator

from pipeline.dataset.config import SegmentConfig
from pipeline.dataset.fingerprints import fingerprint
from pipeline.errors import JobError
from pipeline.inputs.listing import SourceImage
from pipeline.inputs.place import read_place, shown
from pipeline.segmenters import find_segmenter
from transforms.cutting import Cut, cut_objects
from transforms.filters import Reason, is_valid_key
from transforms.segmentation import Segmenter, takes_masks
from transforms.whole import Whole, crop_whole


def source_digest(image: SourceImage, config: SegmentConfig, checksum: Callable[[str], str]) -> str:
    """Identifies everything that an image's layer depends on.

    Args:
      image: the source image.
      config: of the layers.
      checksum: gives the MD5 of what lies in a place, where the listing has not told it.
    """
    return fingerprint(
        config.fingerprint(),
        image.name.encode("utf-8", "surrogatepass").hex(),
        image.wnid,
        image.label,
        image.md5 or checksum(image.path),
        image.annotation and (image.annotation_md5 or checksum(image.annotation)),
        *(["excluded"] if image.is_excluded else []),
        # Only where it matters: without it digests are those of datasets made before.
        *([_mask_digest(image, checksum)] if takes_masks(config.segmenter) else []),
        *([{"group": image.group}] if image.group else []),
    )


def untold(image: SourceImage) -> list[str]:
    """Places whose content identifies an image and whose MD5 the listing has not told."""
    places = (
        (image.path, image.md5),
        (image.annotation, image.annotation_md5),
        (image.mask, image.mask_md5),
    )
    return [place for place, md5 in places if place is not None and md5 is None]


def known_digest(
    image: SourceImage, config: SegmentConfig, known: Callable[[str], str | None]
) -> str | None:
    """`source_digest` as far as it is known without reading: None if a checksum is not."""
    places = untold(image)
    checksums = {place: md5 for place in places if (md5 := known(place)) is not None}
    if len(checksums) < len(places):
        return None
    return source_digest(image, config, checksums.__getitem__)


def _mask_digest(image: SourceImage, checksum: Callable[[str], str]) -> str | None:
    return image.mask and (image.mask_md5 or checksum(image.mask))


def shard_fingerprint(digests: list[str], config: SegmentConfig) -> str:
    """Identifies everything that a shard's layers depend on, given its images' digests."""
    return fingerprint(config.fingerprint(), digests)


def printable(text: str) -> str:
    """Text that any file can hold: escapes what is not printable, and cuts what is long."""
    escaped = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )
    return escaped if len(escaped) <= 300 else escaped[:297] + "..."


def reject_by_name(image: SourceImage, before: SourceImage | None) -> tuple[Reason, str] | None:
    """Rejections that need no look at the image: (reason, detail), or None.

    Args:
      image: a source image.
      before: the one before it in its shard.
    """
    if not is_valid_key(image.key):
        detail = "a key is printable, without dots and slashes, and at most 200 bytes long"
        return Reason.INVALID_KEY, detail
    if before is not None and before.key == image.key:
        return Reason.DUPLICATE_KEY, "another image of the same key has a lower path"
    if image.is_excluded:
        return Reason.EXCLUDED, "left out by --exclude or --include"
    if not image.wnid:
        missing = image.annotation is None
        reason = Reason.MISSING_ANNOTATION if missing else Reason.UNREADABLE_ANNOTATION
        return reason, "nothing tells its class: no folder, and no annotation that names one"
    return None


def prepare_segmenter(config: SegmentConfig) -> None:
    """Gets the segmenter ready for the first image; later calls do nothing."""
    _segmenter(config).prepare(_announce)


def _segmenter(config: SegmentConfig) -> Segmenter:
    return find_segmenter(config.segmenter, config.segmenter_parameters)


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


def read_source(
    image: str,
    annotation: str | None,
    mask: str | None = None,
    read: Callable[[str], bytes] = read_place,
) -> SourceBytes:
    """Reads them, given by their places. Raises OSError."""
    return SourceBytes(
        read(image),
        None if annotation is None else read(annotation),
        None if mask is None else read(mask),
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
            segment=_segmenter(config).segment,
            seed=config.grabcut_seed,
            resize=config.resize,
            crop=config.image_size,
            interpolation=config.interpolation,
            rules=config.rules,
            only=source.number,
        )
    except JobError as error:
        raise JobError(f"{shown(source.place)}: {error}") from error


def crop_source(source: SourceBytes, config: SegmentConfig) -> Whole:
    """Resizes and crops a source image that is not cut apart. It raises nothing, either."""
    return crop_whole(
        source.image,
        resize=config.resize,
        crop=config.image_size,
        interpolation=config.interpolation,
        pad=config.crop == "pad",
    )
