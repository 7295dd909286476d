"""Where Compose gets its layers from."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Generator, Iterable, Mapping
from typing import Any

import numpy as np

from pipeline.dataset.config import SegmentConfig
from pipeline.dataset.layer_files import decode_layer, layer_digest, read_parts
from pipeline.errors import JobError
from pipeline.generate.cut_source import SourceBytes, crop_source, cut_source, read_source
from pipeline.generate.plan import Plan
from pipeline.generate.scenes import DrawnScenes
from pipeline.inputs.location import reads_ahead, shown
from pipeline.storage.parallel import REQUESTS_IN_FLIGHT, read_ahead
from pipeline.storage.store import Store
from transforms.codec import TooManyPixelsError, UndecodableError, decode_image
from transforms.cutting import cut_background
from transforms.geometry import Pixels
from transforms.layers import Layer
from transforms.variants import EXTERNAL, base_of

Encoded = bytes | SourceBytes | Pixels
"""A tiled background as it is stored, or the files to make it from; or a scene, ready."""


@dataclasses.dataclass(frozen=True)
class Backgrounds:
    """The backgrounds that the selected images of a shard meet.

    Attributes:
      plan: of the split.
      scenes: if there are some.
      places: by key and mixed variant, a row of the plan's table, or the position of a scene.
    """

    plan: Plan
    scenes: DrawnScenes | None
    places: dict[str, dict[str, int]]

    def key(self, variant: str, place: int) -> str:
        """Key of a background."""
        scenes = self.scenes_of(variant)
        return scenes.keys[place] if scenes else str(self.plan.value("key", place))

    def content(self, variant: str, place: int) -> str:
        """What changes when its pixels do."""
        scenes = self.scenes_of(variant)
        return scenes.md5s[place] if scenes else str(self.plan.value("layer_digest", place))

    def fields(self, key: str, variant: str) -> dict[str, Any]:
        """`bg_key`, `bg_label` and `bg_wnid` of an image's sample, None where it has its own
        background. Nobody says which class a scene is of."""
        place = self.places[key].get(variant)
        found: dict[str, Any] = dict.fromkeys(("bg_key", "bg_label", "bg_wnid"))
        if place is None:
            return found
        if self.scenes_of(variant):
            return {**found, "bg_key": self.key(variant, place)}
        return {name: self.plan.value(name.removeprefix("bg_"), place) for name in found}

    def scenes_of(self, variant: str) -> DrawnScenes | None:
        """The scenes, if the backgrounds of a variant are such."""
        return self.scenes if base_of(variant) == EXTERNAL else None


@dataclasses.dataclass(frozen=True)
class _Read:
    """What was read for an image.

    Attributes:
      layer: the encoded parts of its layer, or the files to cut it from.
      backgrounds: the encoded tiled background, or those files, by mixed variant.
    """

    layer: dict[str, bytes] | SourceBytes
    backgrounds: dict[str, Encoded]


class LayerSource:
    """Layers of planned images: from the tars, or cut again where `--layers drop` has
    removed those."""

    def __init__(self, store: Store, backgrounds: Backgrounds, config: SegmentConfig) -> None:
        self._store = store
        self._backgrounds = backgrounds
        self._plan = backgrounds.plan
        self._config = config

    def layers(
        self, rows: Iterable[dict[str, Any]]
    ) -> Generator[tuple[dict[str, Any], Layer, dict[str, Encoded]], None, None]:
        """Layers of selected images, and the tiled backgrounds that they meet, for `tiled`.

        Args:
          rows: record rows.

        Yields:
          (row, its layer, background by mixed variant), in the order of the rows.

        Raises:
          JobError: what is cut again gives another layer than it did.
          OSError: a file cannot be read.
        """
        for row, parts in read_ahead(self._read, rows, REQUESTS_IN_FLIGHT * self._store.is_remote):
            yield row, self._layer(row, parts.layer), parts.backgrounds

    def _read(self, row: dict[str, Any]) -> _Read:
        planned = self._planned(row)
        tar = planned["tar"]
        layer = _source(planned) if tar is None else read_parts(self._store, tar, row)
        places = self._backgrounds.places[row["key"]].items()
        return _Read(layer, {name: self._read_background(name, place) for name, place in places})

    def _read_background(self, variant: str, place: int) -> Encoded:
        if scenes := self._backgrounds.scenes_of(variant):
            return scenes.picture(place)
        planned = self._plan.row(place)
        if planned["tar"] is None:
            return _source(planned)
        span = (planned["offset"], planned["length"])
        return self._store.read_ranges(planned["tar"], [span])[0]

    def _layer(self, row: dict[str, Any], read: dict[str, bytes] | SourceBytes) -> Layer:
        planned = self._planned(row)
        if not isinstance(read, SourceBytes):
            try:
                return decode_layer(read, row["box"])
            except (UndecodableError, TooManyPixelsError) as error:
                raise JobError(
                    f"{self._store.path(planned['tar'])} is damaged ({error}). Remove it and run "
                    "the same command again"
                ) from error
        cuts = cut_source(read, self._config)
        layer = next((cut.layer for cut in cuts if cut.number == read.number), None)
        if layer is None or layer_digest(layer) != planned["layer_digest"]:
            raise self._changed(planned)
        return layer

    def whole(
        self, rows: Iterable[dict[str, Any]]
    ) -> Generator[tuple[dict[str, Any], Pixels], None, None]:
        """Selected images that are not cut apart: (row, picture), in the order of the rows.
        Raises as `layers`."""

        def read(row: dict[str, Any]) -> tuple[dict[str, Any], SourceBytes]:
            planned = self._planned(row)
            return planned, _source(planned)

        chosen = list(rows)
        ahead = 0
        if chosen:
            # They may lie elsewhere than the dataset.
            first = self._planned(chosen[0])["source"]
            ahead = reads_ahead(os.fsdecode(first))
        for row, (planned, source) in read_ahead(read, chosen, ahead):
            found = crop_source(source, self._config)
            if found.image is None or found.digest != planned["layer_digest"]:
                raise self._changed(planned)
            yield row, found.image

    def _changed(self, planned: Mapping[str, Any]) -> JobError:
        return JobError(
            f"{shown(os.fsdecode(planned['source']))} gives another layer than it did, after a "
            "change of the file or of a library. Remove "
            f"{self._store.path('layers')} and run the same command again"
        )

    def tiled(self, read: Encoded) -> Pixels:
        """A background, (S, S, 3) uint8 RGB, of what `layers` gives."""
        if isinstance(read, np.ndarray):
            return read
        if isinstance(read, bytes):
            return decode_image(read)
        return cut_background(
            read.image,
            read.annotation,
            read.mask,
            number=read.number,
            rules=self._config.rules,
            resize=self._config.resize,
            crop=self._config.image_size,
            interpolation=self._config.interpolation,
        )

    def _planned(self, row: dict[str, Any]) -> dict[str, Any]:
        return self._plan.row(self._plan.place(row["key"]))


def _source(planned: dict[str, Any]) -> SourceBytes:
    """What an accepted image was cut from."""
    annotation, mask = planned["annotation"], planned["mask"]
    found = read_source(
        os.fsdecode(planned["source"]),
        None if annotation is None else os.fsdecode(annotation),
        None if mask is None else os.fsdecode(mask),
    )
    return dataclasses.replace(found, number=planned["object"] or 0)
