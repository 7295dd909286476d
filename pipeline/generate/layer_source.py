"""Reads the layers and backgrounds that Compose puts together."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import numpy as np

from pipeline.dataset.config import SegmentConfig
from pipeline.dataset.layer_files import decode_layer, layer_digest, read_parts
from pipeline.errors import JobError
from pipeline.generate.cut_source import SourceBytes, crop_source, cut_source, read_source
from pipeline.generate.plan import Plan
from pipeline.generate.scenes import DrawnScenes
from pipeline.inputs.location import changed, reads_ahead, shown
from pipeline.storage.parallel import REQUESTS_IN_FLIGHT, read_ahead
from pipeline.storage.store import Store
from transforms.codec import TooManyPixelsError, UndecodableError, decode_image
from transforms.cutting import cut_background
from transforms.geometry import Pixels
from transforms.layers import Layer
from transforms.variants import EXTERNAL, base_of

ReadBackground = Pixels | SourceBytes
"""A background before `LayerSource.tiled`: pixels of a scene, or of a tiled background from a tar,
or the bytes of the source image to cut it from."""


@dataclasses.dataclass(frozen=True)
class Backgrounds:
    """The backgrounds that were drawn for the selected images of a shard.

    Attributes:
      plan: the split's plan.
      scenes: the accepted scenes; None without `mixed_external`.
      positions: the position of the background for each image key and each replicate of a mixed
        variant: a row of the plan's table, or for `mixed_external` an index of `scenes`.
    """

    plan: Plan
    scenes: DrawnScenes | None
    positions: dict[str, dict[str, int]]

    def key(self, variant: str, position: int) -> str:
        """Returns the key of a background."""
        scenes = self.scenes_of(variant)
        return scenes.keys[position] if scenes else str(self.plan.value("key", position))

    def content(self, variant: str, position: int) -> str:
        """Returns a digest that changes with the pixels of a background."""
        scenes = self.scenes_of(variant)
        return scenes.md5s[position] if scenes else str(self.plan.value("layer_digest", position))

    def fields(self, key: str, variant: str) -> dict[str, Any]:
        """Returns `bg_key`, `bg_label` and `bg_wnid` of a sample. All are None if the variant draws
        no background; a scene has a key, but no class."""
        position = self.positions[key].get(variant)
        empty: dict[str, Any] = dict.fromkeys(("bg_key", "bg_label", "bg_wnid"))
        if position is None:
            return empty
        if self.scenes_of(variant):
            return {**empty, "bg_key": self.key(variant, position)}
        return {name: self.plan.value(name.removeprefix("bg_"), position) for name in empty}

    def scenes_of(self, variant: str) -> DrawnScenes | None:
        """Returns the scenes if the backgrounds of a variant are scenes, else None."""
        return self.scenes if base_of(variant) == EXTERNAL else None


@dataclasses.dataclass(frozen=True)
class _Read:
    """Everything that was read to compose the variants of an image.

    Attributes:
      layer: the encoded parts of its layer, or the bytes of the source image to cut it from.
      backgrounds: one background for each mixed variant.
    """

    layer: dict[str, bytes] | SourceBytes
    backgrounds: dict[str, ReadBackground]


class LayerSource:
    """Layers of planned images. They are read from tars, or cut again from the source images if
    `--layers drop` has removed the tars.

    Args:
      store: the dataset folder.
      backgrounds: the backgrounds that were drawn for the images.
      config: configuration of the layers.
    """

    def __init__(self, store: Store, backgrounds: Backgrounds, config: SegmentConfig) -> None:
        self._store = store
        self._backgrounds = backgrounds
        self._plan = backgrounds.plan
        self._config = config

    def layers(
        self, rows: Iterable[dict[str, Any]]
    ) -> Generator[tuple[dict[str, Any], Layer, dict[str, ReadBackground]], None, None]:
        """Reads the layers of selected images, and the tiled backgrounds that were drawn for them.

        Args:
          rows: index rows of the images.

        Yields:
          (row, layer, backgrounds by mixed variant, for `tiled`), in the order of the rows.

        Raises:
          JobError: a tar is damaged, or cutting an image again gives another layer than before. A
            background that `tiled` cuts again is not compared.
          OSError: a file cannot be read.
        """
        for row, parts in read_ahead(self._read, rows, REQUESTS_IN_FLIGHT * self._store.is_remote):
            yield row, self._layer(row, parts.layer), parts.backgrounds

    def _read(self, row: dict[str, Any]) -> _Read:
        planned = self._planned(row)
        tar = planned["tar"]
        layer = _source(planned) if tar is None else read_parts(self._store, tar, row)
        positions = self._backgrounds.positions[row["key"]].items()
        return _Read(layer, {name: self._read_background(name, at) for name, at in positions})

    def _read_background(self, variant: str, position: int) -> ReadBackground:
        if scenes := self._backgrounds.scenes_of(variant):
            return scenes.picture(position)
        planned = self._plan.row(position)
        tar = planned["tar"]
        if tar is None:
            return _source(planned)

        def read() -> list[bytes]:
            return self._store.read_ranges(tar, [(planned["offset"], planned["length"])])

        (encoded,) = read()
        with self._decoding(tar, lambda: read() == [encoded]):
            return decode_image(encoded)

    def _layer(self, row: dict[str, Any], encoded: dict[str, bytes] | SourceBytes) -> Layer:
        planned = self._planned(row)
        if not isinstance(encoded, SourceBytes):
            tar = planned["tar"]
            with self._decoding(tar, lambda: read_parts(self._store, tar, row) == encoded):
                return decode_layer(encoded, row["box"])
        cuts = cut_source(encoded, self._config)
        layer = next((cut.layer for cut in cuts if cut.number == encoded.number), None)
        if layer is None or layer_digest(layer) != planned["layer_digest"]:
            raise self._changed(encoded)
        return layer

    @contextlib.contextmanager
    def _decoding(self, tar: str, is_same: Callable[[], bool]) -> Iterator[None]:
        """Turns an error of decoding what a tar holds into a JobError that names the tar, or into
        OSError if the same part, read again, is another: it was corrupted on the way.

        Args:
          tar: path of the tar.
          is_same: reads the part again and compares it.
        """
        try:
            yield
        except (UndecodableError, TooManyPixelsError) as error:
            if not is_same():
                raise changed(self._store.path(tar)) from error
            raise JobError(
                f"{self._store.path(tar)} is damaged ({error}). Remove it and run the same command "
                "again"
            ) from error

    def cropped(
        self, rows: Iterable[dict[str, Any]]
    ) -> Generator[tuple[dict[str, Any], Pixels], None, None]:
        """Yields (row, picture) for selected images that are not cut apart, in the order of the
        rows. Raises like `layers`."""

        def read(row: dict[str, Any]) -> tuple[dict[str, Any], SourceBytes]:
            planned = self._planned(row)
            return planned, _source(planned)

        selected = list(rows)
        ahead = 0
        if selected:
            # The number depends on the storage of the input, which may differ from the dataset's.
            first = self._planned(selected[0])["source"]
            ahead = reads_ahead(os.fsdecode(first))
        for row, (planned, source) in read_ahead(read, selected, ahead):
            whole = crop_source(source, self._config)
            if whole.image is None or whole.digest != planned["layer_digest"]:
                raise self._changed(source)
            yield row, whole.image

    def _changed(self, source: SourceBytes) -> JobError:
        return JobError(
            f"{shown(source.location)} gives another layer than before, because "
            "the file or a library has changed. Remove "
            f"{self._store.path('layers')} and run the same command again"
        )

    def tiled(self, background: ReadBackground) -> Pixels:
        """Cuts a background that `layers` yielded again, unless it is pixels already; returns
        (S, S, 3) uint8 RGB, where S is the side of the dataset's pictures in pixels. Raises
        JobError if the source image cannot be cut any more."""
        if isinstance(background, np.ndarray):
            return background
        try:
            return cut_background(
                background.image,
                background.annotation,
                background.mask,
                number=background.number,
                rules=self._config.rules,
                resize=self._config.resize,
                crop=self._config.image_size,
                interpolation=self._config.interpolation,
            )
        except ValueError as error:
            raise self._changed(background) from error

    def _planned(self, row: dict[str, Any]) -> dict[str, Any]:
        return self._plan.row(self._plan.position(row["key"]))


def _source(planned: dict[str, Any]) -> SourceBytes:
    """Reads the files that an accepted image was cut from.

    Args:
      planned: the image's row of the plan.
    """
    annotation, mask = planned["annotation"], planned["mask"]
    source = read_source(
        os.fsdecode(planned["source"]),
        None if annotation is None else os.fsdecode(annotation),
        None if mask is None else os.fsdecode(mask),
    )
    return dataclasses.replace(source, number=planned["object"] or 0)
