"""Variant files: the samples of an output shard, composed and written in every format."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from pipeline.dataset.config import ComposeConfig, SegmentConfig
from pipeline.dataset.records import Staging, is_first
from pipeline.dataset.sinks import Sample, Sink, digests_of, open_sinks, sample_schema
from pipeline.generate.layer_source import Backgrounds, LayerSource
from pipeline.generate.own_variants import find_variants
from pipeline.generate.plan import OutputShard
from pipeline.runtime.counters import count
from pipeline.runtime.progress import Meter
from pipeline.storage.store import FileDigest
from transforms.codec import encode_jpeg, encode_png
from transforms.geometry import Pixels
from transforms.hashing import keyed_hash
from transforms.noise import gaussian_noise
from transforms.taxonomy import Taxonomy, imagenet_index
from transforms.variants import base_of


class VariantFiles:
    """Writes the variants of output shards.

    Args:
      segment: how layers were made.
      config: of the variants.
      staging: where the files wait.
      taxonomy: whose names are in the files.
    """

    def __init__(
        self, segment: SegmentConfig, config: ComposeConfig, staging: Staging, taxonomy: Taxonomy
    ) -> None:
        self._segment = segment
        self._config = config
        self._staging = staging
        self._schema = sample_schema(taxonomy.names)
        self._variants = find_variants(config.variants)
        self._with_noise = any(variant.from_noise for variant in self._variants.values())

    def write(
        self,
        output: OutputShard,
        backgrounds: Backgrounds,
        rows: list[dict[str, Any]],
        meter: Meter,
    ) -> tuple[FileDigest, ...]:
        """Writes all variants of a shard to the staging folder.

        Args:
          output: the shard, as planned.
          backgrounds: that were drawn for its selected images.
          rows: of its index, complete.
          meter: counts source images that are done.

        Returns:
          Digests of the files, under their final paths.
        """
        source = LayerSource(self._staging.store, backgrounds, self._segment)
        selected = [row for row in rows if row["selected"]]
        with self._staging.store.together() as store, contextlib.ExitStack() as stack:
            sinks = open_sinks(
                stack,
                store,
                self._staging,
                variants=self._config.composed,
                formats=self._config.formats,
                schema=self._schema,
                split=output.totals.split,
                shard=output.shard,
                shards=output.totals.counts.output,
            )
            if self._segment.is_whole:
                whole = stack.enter_context(contextlib.closing(source.whole(selected)))
                self._write_whole(backgrounds, whole, sinks, meter)
                selected = []
            layers = stack.enter_context(contextlib.closing(source.layers(selected)))
            for row, layer, encoded in layers:
                noise = None
                if self._with_noise:
                    # The same for all of an image's variants, which differ in where it is alone.
                    draw = keyed_hash(self._config.seed, "noise", row["key"])
                    noise = gaussian_noise(draw, layer.image.shape)
                for variant, variant_sinks in sinks.items():
                    background = backgrounds.fields(row["key"], variant)
                    tiled = source.tiled(encoded[variant]) if variant in encoded else None
                    picture = self._variants[base_of(variant)].compose(layer, tiled, noise)
                    sample = self._sample(row, variant, picture, background)
                    for sink in variant_sinks:
                        sink.add(sample)
                count("images_composed")
                meter.add(is_first(row))
        return digests_of(sinks)

    def _write_whole(
        self,
        backgrounds: Backgrounds,
        pictures: Iterable[tuple[dict[str, Any], Pixels]],
        sinks: dict[str, list[Sink]],
        meter: Meter,
    ) -> None:
        """Writes images that are not cut apart."""
        for row, picture in pictures:
            for variant, variant_sinks in sinks.items():
                background = backgrounds.fields(row["key"], variant)
                sample = self._sample(row, variant, picture, background)
                for sink in variant_sinks:
                    sink.add(sample)
            count("images_composed")
            meter.add(is_first(row))

    def _sample(
        self,
        row: dict[str, Any],
        variant: str,
        picture: Pixels,
        background: dict[str, Any],
    ) -> Sample:
        as_png = self._config.encoding == "png" or self._variants[base_of(variant)].lossless
        return Sample(
            key=row["key"],
            image=encode_png(picture)
            if as_png
            else encode_jpeg(picture, self._config.jpeg_quality),
            suffix="png" if as_png else "jpg",
            fields={
                "label": row["label"],
                "wnid": row["wnid"],
                "imagenet_index": imagenet_index(row["wnid"]),
                "fg_key": row["key"],
                **background,
                "box": row["box"],
                "fg_fraction": row["fg_fraction"],
            },
        )
