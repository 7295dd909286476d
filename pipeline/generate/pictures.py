"""Pictures of selected images: reads layers and backgrounds, and composes all variants.

Some are the user's own: `--variants python:my_variants:silhouette`, `--renderings python:...`. A
variant's function takes a `Layer` and returns a picture, and the variant is named after the
function. A fill's function takes an image and its hole, which is the annotated box, and returns the
filled image; it gives a variant for each of `FILLED`, named after the base and the function.

The configuration records `python:my_variants:silhouette@VERSION`, and for a fill
`mixed_same=python:my_fills:mean@VERSION`. The version is the function's attribute `version`, or 1.
Its author raises it when the pictures change, so that they are composed again.
"""

import copy
import dataclasses
import functools
import os
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np

from pipeline.dataset.config import ComposeConfig
from pipeline.dataset.records import (
    ImageRow,
)
from pipeline.dataset.sinks import (
    Sample,
    damaged_tar,
    decode_layer,
    layer_ranges,
)
from pipeline.errors import JobError, UsageError
from pipeline.generate.cut_source import Cutter, SourceBytes, read_source
from pipeline.generate.plan import PlannedImage
from pipeline.generate.scenes import DrawnScenes, Scene
from pipeline.inputs.location import Location, changed, reads_ahead, shown
from pipeline.runtime.custom_functions import PREFIX, call_for_array, import_function
from pipeline.storage.interface import read_ahead
from pipeline.storage.store import Store
from transforms.codec import (
    TooManyPixelsError,
    UndecodableError,
    decode_png,
    encode_jpeg,
    encode_png,
)
from transforms.geometry import Mask, Pixels
from transforms.hashing import keyed_hash
from transforms.layers import Layer
from transforms.renderings import Rendering, box_hole
from transforms.taxonomy import imagenet_index
from transforms.variants import (
    FILLED,
    VARIANTS,
    Variant,
    VariantName,
    gaussian_noise,
    variants_of,
)

_Decoded = TypeVar("_Decoded")


@dataclasses.dataclass(frozen=True)
class SelectedImage:
    """An image of an output shard that is part of the dataset.

    `backgrounds` are what was drawn for each replicate of a mixed variant: an image, or a scene.
    """

    row: ImageRow
    planned: PlannedImage
    backgrounds: dict[VariantName, PlannedImage | Scene]


class Background(NamedTuple):
    """The background of an image, or a scene, by key.

    Attributes:
      tiled: (S, S, 3) uint8 RGB.
      layer: the layer whose hole is filled; None if no rendering fills it.
    """

    key: str
    tiled: Pixels
    layer: Layer | None = None


@dataclasses.dataclass(eq=False)
class LayerSource:
    """Layers of planned images, read from tars, or cut again if `--layers drop` has removed these.

    Attributes:
      scenes: the accepted scenes; None without `mixed_external`.
      filled: mixed variants whose backgrounds are read as whole layers.
    """

    store: Store
    cutter: Cutter
    scenes: DrawnScenes | None = None
    filled: Collection[str] = ()

    def layers(
        self, images: Sequence[SelectedImage]
    ) -> Generator[tuple[SelectedImage, Layer, dict[VariantName, Background]], None, None]:
        """Yields (image, layer, backgrounds by mixed variant), in the order of the images.

        Raises JobError if a tar is damaged, or cutting an image again gives another layer than
        before. A background that is cut again is not compared.
        """
        # Images that are cut again may lie elsewhere than the dataset.
        again = [_place(each.planned.source) for each in images[:1] if each.planned.tar is None]
        ahead = reads_ahead(again) if again else self.store.files.requests_at_once
        for image, (layer, source, backgrounds) in read_ahead(self._read, images, ahead):
            yield image, layer or self._cut(image.planned, source), backgrounds

    def _read(
        self, image: SelectedImage
    ) -> tuple[Layer | None, SourceBytes | None, dict[VariantName, Background]]:
        """Reads an image's layer, or what it is cut from; and its backgrounds."""
        tar = image.planned.tar
        layer = None if tar is None else self._layer(tar, image.row)
        source = _source(image.planned) if tar is None else None
        drawn = {name: (id(b), name.base in self.filled) for name, b in image.backgrounds.items()}
        # Variants of the dial share the backgrounds of others, which are read once.
        of = {drawn[name]: each for name, each in image.backgrounds.items()}
        read = {one: self._background(each, one[1]) for one, each in of.items()}
        return layer, source, {name: read[one] for name, one in drawn.items()}

    def _background(self, drawn: PlannedImage | Scene, is_filled: bool) -> Background:
        if isinstance(drawn, Scene):
            assert self.scenes is not None
            return Background(drawn.key, self.scenes.picture(drawn))
        if drawn.tar is None:
            source = _source(drawn)
            try:
                return Background(drawn.key, self.cutter.cut_background(source))
            except ValueError as error:  # The image cannot be cut any more.
                raise self._changed(source) from error
        if is_filled:
            layer = self._layer(drawn.tar, drawn)
            return Background(drawn.key, layer.only_bg_t, layer)
        where = [(drawn.only_bg_t_offset, drawn.only_bg_t_length)]
        return Background(drawn.key, self._decoded(drawn.tar, where, decode_png))

    def _layer(self, tar: str, row: ImageRow | PlannedImage) -> Layer:
        """Reads the layer that a record row, or its columns in a plan, locate in a tar."""
        layer = self._decoded(
            tar, layer_ranges(vars(row)), functools.partial(decode_layer, box=row.box or ())
        )
        if layer.digest != row.layer_digest:
            raise damaged_tar(self.store.path(tar), f"its layer of {row.key} is another")
        return layer

    def _decoded(
        self, tar: str, ranges: list[tuple[int, int]], decode: Callable[..., _Decoded]
    ) -> _Decoded:
        """Reads parts of a tar and decodes them.

        Raises JobError if they are damaged, or OSError if the same parts, read again, are others:
        they were corrupted on the way.
        """
        parts = self.store.read_ranges(tar, ranges)
        try:
            return decode(*parts)
        except (UndecodableError, TooManyPixelsError) as error:
            if self.store.read_ranges(tar, ranges) != parts:
                raise changed(self.store.path(tar)) from error
            raise damaged_tar(self.store.path(tar), error) from error

    def _cut(self, planned: PlannedImage, source: SourceBytes | None) -> Layer:
        assert source is not None
        layer = next(
            (cut.layer for cut in self.cutter.cut(source) if cut.number == source.number), None
        )
        if layer is None or layer.digest != planned.layer_digest:
            raise self._changed(source)
        return layer

    def _changed(self, source: SourceBytes) -> JobError:
        return JobError(
            f"{shown(source.location)} gives another layer than before, because "
            "the file or a library has changed. Remove "
            f"{self.store.path('layers')} and run the same command again"
        )


def _source(planned: PlannedImage) -> SourceBytes:
    """Reads the files that an accepted image was cut from."""
    annotation, mask = (
        None if file is None else _place(file) for file in (planned.annotation, planned.mask)
    )
    return read_source(_place(planned.source), annotation, mask, planned.object or 0)


def _place(line: bytes) -> Location:
    return Location.parse(os.fsdecode(line))


@dataclasses.dataclass(eq=False)
class Fills:
    """Filled backgrounds of a shard, each painted once; they wait in a file, to save memory.

    `tiled` counts the backgrounds that stay tiled, because the hole covers the whole picture.
    """

    file: IO[bytes]
    tiled: int = 0
    _starts: dict[tuple[str, str], int] = dataclasses.field(default_factory=dict, init=False)

    def fill(self, rendering: Rendering, background: Background) -> Pixels:
        """Returns a background as rendered, (S, S, 3) uint8 RGB."""
        key, tiled, layer = background
        if rendering.hole is None:
            return tiled
        if (rendering.name, key) not in self._starts:
            assert layer is not None
            filled = rendering.fill(layer)
            self.tiled += filled is None
            self._starts[rendering.name, key] = self.file.seek(0, os.SEEK_END)
            self.file.write((tiled if filled is None else filled).tobytes())
        self.file.seek(self._starts[rendering.name, key])
        return np.frombuffer(self.file.read(tiled.nbytes), np.uint8).reshape(tiled.shape)


@dataclasses.dataclass(frozen=True)
class Composer:
    """Composes and encodes the variants of selected images.

    Attributes:
      names: the variants to compose, replicates included, in order.
      variants: what they show, by name without replicate.
    """

    config: ComposeConfig
    names: tuple[VariantName, ...]
    variants: dict[VariantName, Variant]

    def compose(
        self, source: LayerSource, images: Sequence[SelectedImage], fills: Fills
    ) -> Generator[tuple[SelectedImage, dict[VariantName, Pixels]], None, None]:
        """Yields (image, pictures by variant) for each selected image; raises as `layers` does."""
        with_noise = any(variant.from_noise for variant in self.variants.values())
        for image, layer, backgrounds in source.layers(images):
            # All variants of an image share one noise picture; each shows the part it needs.
            draw = keyed_hash(self.config.seed, "noise", image.row.key)
            noise = gaussian_noise(draw, layer.image.shape) if with_noise else None
            pictures = {}
            # Without a pair, an image is its own background.
            own = Background(image.row.key, layer.only_bg_t, layer)
            for name in self.names:
                variant = self.variants[name.variant]
                background = fills.fill(variant.rendering, backgrounds.get(name.pairs, own))
                pictures[name] = variant.compose(layer, background, noise)
            yield image, pictures

    def sample(self, image: SelectedImage, name: VariantName, picture: Pixels | None) -> Sample:
        """Encodes a picture of a variant, and describes it; only describes it if it is None."""
        config, row, encoded = self.config, image.row, b""
        as_png = config.encoding == "png" or self.variants[name.variant].lossless
        if picture is not None:
            encoded = encode_png(picture) if as_png else encode_jpeg(picture, config.jpeg_quality)
        return Sample(
            key=row.key,
            image=encoded,
            suffix="png" if as_png else "jpg",
            fields={
                "label": row.label,
                "wnid": row.wnid,
                "imagenet_index": imagenet_index(row.wnid or ""),
                "fg_key": row.key,
                **fields_of(image.backgrounds.get(name.pairs)),
                "box": row.box,
                "fg_fraction": row.fg_fraction,
            },
        )


def fields_of(background: PlannedImage | Scene | None) -> dict[str, Any]:
    """Returns a sample's columns on its background: None without one; a scene has only a key."""
    return {
        f"bg_{name}": background and getattr(background, name) for name in ("key", "label", "wnid")
    }


def versioned(variants: Sequence[str], renderings: Iterable[str] = ()) -> tuple[str, ...]:
    """Returns the entries of a configuration, with `@VERSION` after each custom function.

    Raises UsageError if a function is not found, or its name or version is not valid.
    """
    if fills := [name for name in variants if "=" in name]:
        raise UsageError(f"--variants {fills[0]}: unknown variant; --renderings names fills")
    return (
        *(_load(name, "--variants")[1] if name.startswith(PREFIX) else name for name in variants),
        *(f"{base}={_load(name, '--renderings')[1]}" for name in renderings for base in FILLED),
    )


def find_variants(entries: Iterable[str]) -> dict[VariantName, Variant]:
    """Finds the variants of a configuration; returns them by name.

    Raises JobError if a function is not found, or its version is not the one in the configuration.
    """
    return {
        VariantName.parse(entry): VARIANTS.get(entry) or _custom_variant(entry) for entry in entries
    }


def _custom_variant(entry: str) -> Variant:
    base, _, target = entry.rpartition("=")
    try:
        function, present = _load(target, "--renderings" if base else "--variants")
    except UsageError as error:
        raise JobError(f"{error}, on every worker") from error
    if present != target:
        raise JobError(
            f"{entry}: its version is {present.rpartition('@')[2]} here. Run the same command again"
        )
    name, paint = VariantName.parse(entry), functools.partial(_paint, target, function)
    if not base:
        return Variant(str(name), paint)
    return variants_of(Rendering(name.rendering, hole=box_hole, paint=paint))[str(name)]


def _paint(entry: str, function: Callable[..., Any], shown: Layer | Pixels, *hole: Mask) -> Pixels:
    """Calls a custom function on copies, so that it cannot change what others read."""
    shape = shown.image.shape if isinstance(shown, Layer) else shown.shape
    copied = functools.partial(function, *copy.deepcopy((shown, *hole)))
    return call_for_array(copied, entry, dtype=np.uint8, shape=shape)


def _load(entry: str, flag: str) -> tuple[Callable[..., Any], str]:
    """Imports a flag's function; returns (the function, the entry with its present version).

    Raises UsageError if there is no such function, or its name or version is not valid.
    """
    entry, origin = entry.partition("@")[0], f"{flag} {entry}"
    function = import_function(
        entry.partition(PREFIX)[2],
        origin,
        f"{PREFIX}my_{'fills:mean' if flag == '--renderings' else 'variants:silhouette'}",
    )
    version = getattr(function, "version", 1)
    if type(version) is not int or version < 0:
        raise UsageError(f"{origin}: its version must be a whole number from 0")
    if str(VariantName.parse(versioned := f"{entry}@{version}")) == versioned:
        raise UsageError(f"{origin}: name it with small letters, digits and underscores only")
    return function, versioned
