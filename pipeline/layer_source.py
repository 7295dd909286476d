"""Where Compose gets its layers from."""

from __future__ import annotations

import os
from typing import Any

from pipeline.config import SegmentConfig
from pipeline.cut_source import cut_source, read_file
from pipeline.errors import JobError
from pipeline.layer_files import layer_digest, read_background, read_layer
from pipeline.plan import Plan
from pipeline.storage import Store
from transforms.cutting import cut_background
from transforms.geometry import Pixels
from transforms.layers import Layer


class LayerSource:
    """Layers of planned images: from the tars, or cut again where `--layers drop` has
    removed those."""

    def __init__(self, store: Store, plan: Plan, config: SegmentConfig) -> None:
        self._store = store
        self._plan = plan
        self._config = config

    def layer(self, row: dict[str, Any]) -> Layer:
        """The layer of a selected image, given its record row."""
        planned = self._planned(int(self._plan.rows[self._plan.position[row["key"]]]))
        if planned["tar"] is not None:
            return read_layer(self._store, planned["tar"], row)
        image, annotation = _source_paths(planned)
        layer = cut_source(image, annotation, self._config).layer
        if layer is None or layer_digest(layer) != planned["layer_digest"]:
            raise JobError(
                f"{image} gives another layer than it did, after a change of the file or of a "
                f"library. Remove {self._store.path('layers')} and run the same command again"
            )
        return layer

    def background(self, place: int) -> Pixels:
        """The tiled background of the image at a row of the plan's table."""
        planned = self._planned(place)
        if planned["tar"] is not None:
            return read_background(
                self._store, planned["tar"], planned["offset"], planned["length"]
            )
        image, annotation = _source_paths(planned)
        return cut_background(
            read_file(image),
            read_file(annotation),
            resize=self._config.resize,
            crop=self._config.image_size,
            interpolation=self._config.interpolation,
        )

    def _planned(self, place: int) -> dict[str, Any]:
        row: dict[str, Any] = self._plan.table.slice(place, 1).to_pylist()[0]
        return row


def _source_paths(planned: dict[str, Any]) -> tuple[str, str]:
    """Paths of an accepted image and of its annotation."""
    return os.fsdecode(planned["source"]), os.fsdecode(planned["annotation"])
