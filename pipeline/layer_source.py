"""Where Compose gets its layers from."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Generator, Iterable, Mapping
from typing import Any

from pipeline.config import SegmentConfig
from pipeline.cut_source import SourceBytes, crop_source, cut_source, read_source
from pipeline.errors import JobError
from pipeline.files import REQUESTS_IN_FLIGHT, read_ahead
from pipeline.layer_files import decode_layer, layer_digest, read_parts
from pipeline.place import reads_ahead, shown
from pipeline.plan import Plan
from pipeline.storage import Store
from transforms.codec import decode_image
from transforms.cutting import cut_background
from transforms.geometry import Pixels
from transforms.layers import Layer

Encoded = bytes | SourceBytes
"""A tiled background as it is stored, or the files to make it from."""


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

    def __init__(self, store: Store, plan: Plan, config: SegmentConfig) -> None:
        self._store = store
        self._plan = plan
        self._config = config

    def layers(
        self, rows: Iterable[dict[str, Any]], backgrounds: Mapping[str, Mapping[str, int]]
    ) -> Generator[tuple[dict[str, Any], Layer, dict[str, Encoded]], None, None]:
        """Layers of selected images, and the tiled backgrounds that they meet, for `tiled`.

        Args:
          rows: record rows.
          backgrounds: by key and mixed variant, rows of the plan's table.

        Yields:
          (row, its layer, background by mixed variant), in the order of the rows.
        """
        read = functools.partial(self._read, backgrounds)
        for row, parts in read_ahead(read, rows, REQUESTS_IN_FLIGHT * self._store.is_remote):
            yield row, self._layer(row, parts.layer), parts.backgrounds

    def _read(self, backgrounds: Mapping[str, Mapping[str, int]], row: dict[str, Any]) -> _Read:
        planned = self._planned(self._place(row))
        tar = planned["tar"]
        layer = _source(planned) if tar is None else read_parts(self._store, tar, row)
        places = backgrounds[row["key"]].items()
        return _Read(layer, {name: self._read_background(place) for name, place in places})

    def _read_background(self, place: int) -> Encoded:
        planned = self._planned(place)
        if planned["tar"] is None:
            return _source(planned)
        span = (planned["offset"], planned["length"])
        return self._store.read_ranges(planned["tar"], [span])[0]

    def _layer(self, row: dict[str, Any], read: dict[str, bytes] | SourceBytes) -> Layer:
        if not isinstance(read, SourceBytes):
            return decode_layer(read, row["box"])
        planned = self._planned(self._place(row))
        layer = cut_source(read, self._config).layer
        if layer is None or layer_digest(layer) != planned["layer_digest"]:
            raise self._changed(planned)
        return layer

    def whole(
        self, rows: Iterable[dict[str, Any]]
    ) -> Generator[tuple[dict[str, Any], Pixels], None, None]:
        """Selected images that are not cut apart: (row, picture), in the order of the rows."""

        def read(row: dict[str, Any]) -> tuple[dict[str, Any], SourceBytes]:
            planned = self._planned(self._place(row))
            return planned, _source(planned)

        chosen = list(rows)
        ahead = 0
        if chosen:
            # They may lie elsewhere than the dataset.
            first = self._planned(self._place(chosen[0]))["source"]
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
        """A tiled background, of what `layers` gives."""
        if not isinstance(read, SourceBytes):
            return decode_image(read)
        return cut_background(
            read.image,
            read.annotation,
            read.mask,
            resize=self._config.resize,
            crop=self._config.image_size,
            interpolation=self._config.interpolation,
        )

    def _place(self, row: dict[str, Any]) -> int:
        return int(self._plan.rows[self._plan.position[row["key"]]])

    def _planned(self, place: int) -> dict[str, Any]:
        row: dict[str, Any] = self._plan.table.slice(place, 1).to_pylist()[0]
        return row


def _source(planned: dict[str, Any]) -> SourceBytes:
    """What an accepted image was cut from."""
    annotation, mask = planned["annotation"], planned["mask"]
    return read_source(
        os.fsdecode(planned["source"]),
        None if annotation is None else os.fsdecode(annotation),
        None if mask is None else os.fsdecode(mask),
    )
