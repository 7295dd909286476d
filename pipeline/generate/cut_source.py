"""One source image: identifies it, reads it, and cuts it into layers."""

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypedDict

from typing_extensions import override

from pipeline.dataset.config import SegmentConfig
from pipeline.dataset.records import ACCEPTED, ImageRow, ShardCounts
from pipeline.dataset.sinks import encode_layer
from pipeline.errors import JobError, escaped
from pipeline.generate.recipe import CUT_COLUMNS, Recipe, recipe_images
from pipeline.generate.segmenters import find_segmenter
from pipeline.inputs.location import NOWHERE, Location, changed, read_location, shown
from pipeline.inputs.source_images import Content, KnownContent, SourceImage
from pipeline.storage.files import is_remote
from pipeline.storage.store import FileDigest
from transforms.annotations import AnnotationError, Box, parse_annotation, write_annotation
from transforms.codec import TooManyPixelsError, UndecodableError, open_picture
from transforms.cutting import Cut, cut_along, cut_background, cut_objects
from transforms.filters import Reason, is_valid_key
from transforms.geometry import Pixels
from transforms.hashing import fingerprint, text_bytes
from transforms.layers import Layer
from transforms.limits import load_json
from transforms.masks import decode_runs
from transforms.segmentation import WHOLE

MadeRow = tuple[ImageRow, dict[str, bytes]]
"""A row of a record, and the encoded files of its layer; none if it has no layer to store."""
_NOTHING_CUT: dict[str, Any] = dict.fromkeys((*CUT_COLUMNS, "layer_digest"))


class _Size(TypedDict):
    """The arguments of `transforms` that decide the size of pictures."""

    resize: int
    crop: int
    interpolation: str


def contents_of(image: SourceImage) -> tuple[Content, Content | None, Content | None]:
    """Returns the contents that identify an image: picture, annotation or None, mask or None."""
    # The size of a picture is only needed to compare it with the size that an annotation states.
    describe = None if image.annotation is None else _size_of
    picture = Content(image.location, describe, image.md5, image.stamp)
    boxes = image.annotation and Content(image.annotation, _boxes_of, image.annotation_md5)
    return picture, boxes or None, Content(image.mask, None, image.mask_md5) if image.mask else None


def by_content(
    images: Sequence[SourceImage], know: Callable[[Content], KnownContent | None]
) -> tuple[SourceImage, ...]:
    """Sorts a shard's images by key; images of one key by MD5, as far as known, then by class.

    The images come in order of their keys, and are made once each, if they are packed.
    """
    images = tuple(images)
    counts = Counter(image.key for image in images)
    if len(counts) == len(images):
        return images

    def rank(image: SourceImage) -> tuple[str, str, str]:
        known = know(contents_of(image)[0]) if counts[image.key] > 1 else None
        return image.key, known.md5 if known else "", image.wnid

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
        return write_annotation(dataclasses.replace(parse_annotation(data), wnid=None))
    except AnnotationError as error:
        return write_annotation(error)


def _matched(boxes: str, size: str) -> object:
    """Returns an annotation's boxes, and whether its size is the picture's, or one is unknown."""
    fields = load_json(boxes)
    annotated = [fields.pop(side, None) for side in ("width", "height")]
    actual = [int(side) for side in size.split("x")] if size else annotated
    return fields, [a in (None, b) for a, b in zip(annotated, actual, strict=True)]


def printable(text: str) -> str:
    """Escapes unprintable characters, for any file format; shortens text to 300 characters."""
    text = escaped(text, keep="")
    return text if len(text) <= 300 else text[:297] + "..."


def reject_by_name(image: SourceImage, preceding: SourceImage | None) -> tuple[Reason, str] | None:
    """Returns (reason, detail) if an image is rejected without looking at its content, else None.

    It is compared with the preceding image in its shard (`by_content`), None for the first.
    """
    if image.status not in ("", ACCEPTED):
        return Reason(image.status), ""
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


@dataclasses.dataclass(frozen=True)
class SourceBytes:
    """The bytes of a source image's files.

    Attributes:
      number: number of the only object to cut, from 1; 0 to cut all objects.
      location: location of the picture, for messages.
    """

    image: bytes
    annotation: bytes | None
    mask: bytes | None = None
    number: int = 0
    location: Location = NOWHERE

    def read_again(self) -> None:
        """Reads an object's picture again, as parts have no checksum; OSError if it changed."""
        if is_remote(self.location.path) and read_location(self.location) != self.image:
            raise changed(shown(self.location))


def read_source(
    image: Location, annotation: Location | None, mask: Location | None = None, number: int = 0
) -> SourceBytes:
    """Reads an image, its annotation and its mask; raises OSError if a file cannot be read."""
    return SourceBytes(
        read_location(image),
        None if annotation is None else read_location(annotation),
        None if mask is None else read_location(mask),
        number,
        image,
    )


class Identity(NamedTuple):
    """What identifies a source image; `digest` covers all that its row and layer depend on."""

    digest: str
    md5: str


class Cutter:
    """Segments and cuts source images into layers, with one configuration.

    `has_layers` says whether layers are written.
    """

    def __init__(self, config: SegmentConfig) -> None:
        self._seed, self.segmenter = config.grabcut_seed, WHOLE
        if not config.keeps_image_whole:
            self.segmenter = find_segmenter(config.segmenter, config.segmenter_parameters)
        self.has_layers = self.segmenter.needs_box
        self._fingerprint, self._rules = config.fingerprint(), config.rules
        self._size: _Size = {
            "resize": config.resize,
            "crop": config.image_size,
            "interpolation": config.interpolation,
        }

    def identify(
        self, image: SourceImage, know: Callable[[Content], KnownContent | None]
    ) -> Identity | None:
        """Identifies everything that an image's record row and layer depend on.

        This is its key, class, group, picture, annotation and mask, the configuration, and whether
        a list leaves the image out; not its location and its input format. Returns None where a
        content is not known to `know`.
        """
        if image.digest:
            return Identity(image.digest, image.md5 or "")
        contents = contents_of(image)
        picture, boxes, mask = known = [each and know(each) for each in contents]
        if picture is None or known.count(None) > contents.count(None):
            return None
        digest = fingerprint(
            self._fingerprint,
            text_bytes(image.key).hex(),
            image.wnid,
            image.label,
            picture.md5,
            boxes and _matched(boxes.description, picture.description),
            mask and mask.md5,
            image.is_excluded,
            image.group,
        )
        return Identity(digest, picture.md5)

    def identify_shard(self, digests: list[str]) -> str:
        """Identifies everything that a shard's layers depend on, from the digests of its images."""
        return fingerprint(self._fingerprint, sorted(digests))

    def cut(self, source: SourceBytes) -> Iterator[Cut]:
        """Cuts a source image; yields a `Cut`, or one for each object with `--objects each`.

        An image that needs no box is cropped, and its layer is whole. An unsuitable or damaged
        image raises no error: its `Cut` holds a `Reason` instead.

        Raises:
          JobError: a custom segmenter failed.
          OSError: a picture that cannot be decoded is another when it is read again.
        """
        # Compiled here if necessary, so that only the first image has to wait.
        self.segmenter.prepare(announce)
        try:
            for cut in cut_objects(
                source.image,
                source.annotation,
                source.mask,
                segment=self.segmenter.segment,
                seed=self._seed,
                rules=self._rules,
                only=source.number,
                needs_box=self.segmenter.needs_box,
                **self._size,
            ):
                if cut.reason is Reason.UNDECODABLE:
                    source.read_again()
                yield cut
        except JobError as error:
            raise JobError(f"{shown(source.location)}: {error}") from error

    def cut_background(self, source: SourceBytes) -> Pixels:
        """Tiles the background of an accepted image or object, without segmenting it.

        Returns (S, S, 3) uint8 RGB, where S is the side of the dataset's pictures in pixels. Raises
        ValueError if there is no such object any more.
        """
        return cut_background(
            source.image,
            source.annotation,
            source.mask,
            number=source.number,
            rules=self._rules,
            **self._size,
        )

    def finished(self, image: SourceImage) -> list[MadeRow]:
        """Makes the rows of an image of which all is known; returns none if it has to be cut."""
        return []

    def agrees(self, rows: Sequence[ImageRow], images: Sequence[SourceImage]) -> bool:
        """Returns whether a shard's rows, which have its digest, are of the layers to be made."""
        return True

    def named_tars(
        self, path: str, split: str, counts: ShardCounts, images: Sequence[SourceImage]
    ) -> list[FileDigest]:
        """Returns the tar of a shard's layers if the record names it although it is not written."""
        return []


class MaskCutter(Cutter):
    """Gives the layers of a recipe's images: cuts them along its masks, and segments nothing."""

    def __init__(self, config: SegmentConfig, recipe: Recipe) -> None:
        super().__init__(config)
        self.has_layers, self._recipe = recipe.has_layers, recipe
        self.segmenter = find_segmenter("masks")

    @override
    def cut(self, source: SourceBytes) -> Iterator[Cut]:
        """Cuts the source's object; raises the errors of `_object`."""
        yield Cut(layer=self._object(source), number=source.number)

    @override
    def cut_background(self, source: SourceBytes) -> Pixels:
        return self._object(source).only_bg_t

    def _object(self, source: SourceBytes) -> Layer:
        """Cuts the source's object; JobError if the recipe lacks its mask, or has another layer."""
        rows = self._recipe.rows(source.mask or b"")
        _, row, mask = next(each for each in rows if (each.row.object or 0) == source.number)
        if mask is None:
            raise JobError(f"{row.key} is selected, and the recipe has no mask of it")
        return self._layer(source.location, source.image, row, mask)

    def cut_along(self, picture: bytes, row: ImageRow, mask: bytes) -> Layer | None:
        """Cuts a picture, which may be any file, along the box and mask that a recipe has for it.

        Returns None if the layer is not the recipe's.
        """
        try:
            layer = cut_along(
                picture,
                Box(*(row.native_box or (0, 0, 0, 0))),
                decode_runs(mask, self._size["crop"]),
                size=(row.width or 0, row.height or 0),
                pad=self._rules.pad,
                **self._size,
            )
        except ValueError:
            return None
        return layer if layer.digest == row.layer_digest else None

    def _layer(self, location: Location, picture: bytes, row: ImageRow, mask: bytes) -> Layer:
        layer = self.cut_along(picture, row, mask)
        if layer is None:
            raise self._recipe.other_layer(location)
        return layer

    @override
    def finished(self, image: SourceImage) -> list[MadeRow]:
        """Makes the rows from the recipe's, and cuts the image, which takes no longer than reading.

        Raises JobError if the image gives another layer than the recipe's, OSError if unreadable.
        """
        made: list[MadeRow] = []
        picture = b""
        for _, row, mask in self._recipe.rows_of(image):
            files: dict[str, bytes] = {}
            row = dataclasses.replace(row, source_digest=image.digest)
            if row.status == ACCEPTED != image.status:  # Its picture is not there.
                row = dataclasses.replace(row, status=image.status, **_NOTHING_CUT)
            elif mask is not None and self.has_layers:
                picture = picture or read_location(image.location)
                row, files = with_layer(row, self._layer(image.location, picture, row, mask))
            made.append((row, files))
        return made

    @override
    def agrees(self, rows: Sequence[ImageRow], images: Sequence[SourceImage]) -> bool:
        # The same source may give others, because another library cut them.
        return {row.key: row.layer_digest for row in rows if row.status == ACCEPTED} == {
            row.key: row.layer_digest
            for image in images
            if image.status == ACCEPTED
            for _, row, _ in self._recipe.rows_of(image)
            if row.status == ACCEPTED
        }

    @override
    def named_tars(
        self, path: str, split: str, counts: ShardCounts, images: Sequence[SourceImage]
    ) -> list[FileDigest]:
        manifest = self._recipe.manifest
        if counts != manifest.shards.get(split) or any(i.lacks for i in recipe_images(images)):
            return []
        return [digest for digest in manifest.files if digest.path == path]


def with_layer(row: ImageRow, layer: Layer) -> MadeRow:
    """Adds to a row what cutting tells; returns it with the encoded files of the layer."""
    row = dataclasses.replace(row, box=list(layer.box), fg_fraction=layer.fg_fraction)
    return row, encode_layer(layer)


def announce() -> None:
    """Tells the user why nothing seems to happen at first."""
    print("Compiling GrabCut, once per installation (half a minute) ...", file=sys.stderr)
