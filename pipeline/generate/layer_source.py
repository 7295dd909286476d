"""Reads the layers and backgrounds that Compose puts together."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from pipeline.dataset.layer_files import decode_layer, layer_digest, part_ranges
from pipeline.dataset.records import ImageRow
from pipeline.errors import JobError
from pipeline.generate.cut_source import Cutter, SourceBytes, read_source
from pipeline.generate.plan import PlannedImage
from pipeline.generate.scenes import DrawnScenes, Scene
from pipeline.inputs.location import changed, reads_ahead, shown
from pipeline.storage.parallel import REQUESTS_IN_FLIGHT, read_ahead
from pipeline.storage.store import Store
from transforms.codec import TooManyPixelsError, UndecodableError, decode_image
from transforms.geometry import Pixels
from transforms.layers import Layer

ReadBackground = Pixels | SourceBytes
"""A background: pixels of a scene, or of a tiled background from a tar, or the bytes of the source
image to cut it from with `LayerSource.cut_tiled`."""

_Decoded = TypeVar("_Decoded")


@dataclasses.dataclass(frozen=True)
class SelectedImage:
    """An image of an output shard that is part of the dataset.

    Attributes:
      row: its row in the record.
      planned: what the plan knows of it.
      backgrounds: what was drawn for each replicate of a mixed variant: another image, or for
        `mixed_external` a scene.
    """

    row: ImageRow
    planned: PlannedImage
    backgrounds: dict[str, PlannedImage | Scene]


class LayerSource:
    """Layers of planned images. They are read from tars, or cut again from the source images if
    `--layers drop` has removed the tars.

    Args:
      store: the dataset folder.
      cutter: cuts source images.
      scenes: the accepted scenes; None without `mixed_external`.
    """

    def __init__(self, store: Store, cutter: Cutter, scenes: DrawnScenes | None = None) -> None:
        self._store = store
        self._cutter = cutter
        self._scenes = scenes
        # Kept, because making them takes longer than a read from the system's cache.
        self._files, self._paths = store.files, dict[str, str]()

    def layers(
        self, images: Sequence[SelectedImage]
    ) -> Generator[tuple[SelectedImage, Layer, dict[str, ReadBackground]], None, None]:
        """Reads the layers of selected images, and the tiled backgrounds that were drawn for them.

        Yields:
          (image, layer, backgrounds by mixed variant), in the order of the images.

        Raises:
          JobError: a tar is damaged, or cutting an image again gives another layer than before. A
            background that is cut again is not compared.
          OSError: a file cannot be read.
        """
        ahead = REQUESTS_IN_FLIGHT * self._store.is_remote
        for image, (layer, backgrounds) in read_ahead(self._read, images, ahead):
            if isinstance(layer, SourceBytes):
                layer = self._cut(image.planned, layer)
            yield image, layer, backgrounds

    def _read(self, image: SelectedImage) -> tuple[Layer | SourceBytes, dict[str, ReadBackground]]:
        """Reads the layer of an image, or the bytes to cut it from, and its backgrounds."""
        layer: Layer | SourceBytes
        if image.planned.tar is None:
            layer = _source(image.planned)
        else:
            decode = functools.partial(decode_layer, box=image.row.box or ())
            layer = self._decoded(image.planned.tar, part_ranges(vars(image.row)), decode)
        drawn = image.backgrounds.items()
        return layer, {name: self._read_background(each) for name, each in drawn}

    def _read_background(self, background: PlannedImage | Scene) -> ReadBackground:
        if isinstance(background, Scene):
            assert self._scenes is not None
            return self._scenes.picture(background)
        if background.tar is None:
            return _source(background)
        place = (background.offset, background.length)
        return self._decoded(background.tar, [place], decode_image)

    def _decoded(
        self, tar: str, ranges: list[tuple[int, int]], decode: Callable[..., _Decoded]
    ) -> _Decoded:
        """Reads parts of a tar and decodes them. Raises JobError if they are damaged, or OSError if
        the same parts, read again, are others: they were corrupted on the way."""
        if tar not in self._paths:
            self._paths[tar] = self._store.path(tar)
        path = self._paths[tar]
        parts = self._files.read_ranges(path, ranges)
        try:
            return decode(*parts)
        except (UndecodableError, TooManyPixelsError) as error:
            if self._files.read_ranges(path, ranges) != parts:
                raise changed(path) from error
            raise JobError(
                f"{path} is damaged ({error}). Remove it and run the same command again"
            ) from error

    def _cut(self, planned: PlannedImage, source: SourceBytes) -> Layer:
        """Cuts an image again."""
        cuts = self._cutter.cut(source)
        layer = next((cut.layer for cut in cuts if cut.number == source.number), None)
        if layer is None or layer_digest(layer) != planned.layer_digest:
            raise self._changed(source)
        return layer

    def cropped(
        self, images: Sequence[SelectedImage]
    ) -> Generator[tuple[SelectedImage, Pixels], None, None]:
        """Yields (image, picture) for selected images that are not cut apart, in their order.
        Raises like `layers`."""
        ahead = 0
        if images:
            # The number depends on the storage of the input, which may differ from the dataset's.
            ahead = reads_ahead(os.fsdecode(images[0].planned.source))
        for image, source in read_ahead(lambda image: _source(image.planned), images, ahead):
            whole = self._cutter.crop(source)
            if whole.image is None or whole.digest != image.planned.layer_digest:
                raise self._changed(source)
            yield image, whole.image

    def _changed(self, source: SourceBytes) -> JobError:
        return JobError(
            f"{shown(source.location)} gives another layer than before, because "
            "the file or a library has changed. Remove "
            f"{self._store.path('layers')} and run the same command again"
        )

    def cut_tiled(self, source: SourceBytes) -> Pixels:
        """Cuts a background again; returns (S, S, 3) uint8 RGB, where S is the side of the
        dataset's pictures in pixels. Raises JobError if the source image cannot be cut any more."""
        try:
            return self._cutter.cut_background(source)
        except ValueError as error:
            raise self._changed(source) from error


def _source(planned: PlannedImage) -> SourceBytes:
    """Reads the files that an accepted image was cut from."""
    files = (planned.annotation, planned.mask)
    annotation, mask = (None if file is None else os.fsdecode(file) for file in files)
    return read_source(os.fsdecode(planned.source), annotation, mask, planned.object or 0)
