"""Write: the output shards of an imported dataset. Published pixels stay what they are."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.fingerprints import fingerprint
from pipeline.dataset.records import (
    ACCEPTED,
    ShardFiles,
    Staging,
    read_rows,
    write_table,
)
from pipeline.dataset.shards import bucket_hash, index_file
from pipeline.dataset.sinks import Sample, Sink, digests_of, open_sinks, sample_schema
from pipeline.generate.compose import ComposedShard, index_schema
from pipeline.generate.plan import OutputShard
from pipeline.generate.staged import make_missing
from pipeline.released.examine import read_image, suffix_of
from pipeline.released.listing import ReleasedImage
from pipeline.released.masks import decode_npy
from pipeline.released.pool import PooledShard, load_pool
from pipeline.released.recover import Mixed, Recovered, recover
from pipeline.runner.counters import count, timed
from pipeline.runner.progress import Progress
from pipeline.storage.store import FileDigest
from transforms.codec import encode_png
from transforms.geometry import Mask
from transforms.taxonomy import Taxonomy
from transforms.variants import MIXED, base_of

_AT_ONCE = 16
"""Images that are held at the same time."""


def mixed_variants(config: DatasetConfig) -> tuple[str, ...]:
    """The mixed versions of a dataset, replicates among them."""
    return tuple(name for name in config.compose.composed if base_of(name) in MIXED)


def imported_index_schema(config: DatasetConfig) -> pa.Schema:
    """Columns of the index: those of every dataset, and how each background was found."""
    schema = index_schema(config.compose.replicates)
    for variant in mixed_variants(config):
        schema = schema.append(pa.field(f"{variant}_bg_named", pa.string()))
        schema = schema.append(pa.field(f"{variant}_bg_difference", pa.float64()))
        schema = schema.append(pa.field(f"{variant}_bg_next_difference", pa.float64()))
    return schema


class WriteShard(beam.DoFn):
    """PooledShard -> ComposedShard."""

    def __init__(
        self, config: DatasetConfig, staging: Staging, taxonomy: Taxonomy, progress: Progress
    ) -> None:
        self._config = config
        self._staging = staging
        self._taxonomy = taxonomy
        self._progress = progress

    def process(self, pooled: PooledShard) -> Iterator[ComposedShard]:
        with timed("import"):
            written = self._write(pooled)
        yield written

    def _write(self, pooled: PooledShard) -> ComposedShard:
        totals, shard = pooled.shard.totals, pooled.shard.shard
        rows = read_rows(self._staging.store, pooled.record)
        rows.sort(key=lambda row: (bucket_hash(row["key"]), row["key"]))
        checksum = fingerprint(
            self._config.fingerprint(),
            [shard, totals.counts.output],
            [[row["key"], row["path"], row["status"], row["content"]] for row in rows],
            pooled.pool_digest,
        )
        index = index_file(totals.split, shard, totals.counts.output)
        found = make_missing(
            self._staging,
            index,
            checksum,
            self._staging.find(index, checksum),
            lambda: self._make(pooled, rows, index, checksum),
            counter="output_shards",
        )
        self._progress.note_done("import", f"{totals.split}-{shard:05d}", len(rows))
        # Of a shard that was kept, rows are complete in its index alone.
        columns = ["label", "status", "selected"]
        indexed = read_rows(self._staging.store, found.record, columns)
        output = OutputShard(totals, shard, "", "", ())
        return ComposedShard.of(output, self._staging, found, checksum, indexed)

    def _make(
        self, pooled: PooledShard, rows: list[dict[str, Any]], index: str, checksum: str
    ) -> None:
        """Writes the shard's variants, and then its index."""
        files = self._write_variants(pooled, rows)
        schema = imported_index_schema(self._config)
        content = [{name: row.get(name) for name in schema.names} for row in rows]
        table = pa.Table.from_pylist(content, schema)
        about = ShardFiles(checksum, files)
        write_table(self._staging.store, self._staging.staged(index), table, about)

    def _write_variants(
        self, pooled: PooledShard, rows: list[dict[str, Any]]
    ) -> tuple[FileDigest, ...]:
        """Writes all variants, and completes the rows by selection and backgrounds."""
        images = {image.stem: image for image in pooled.shard.images}
        for row in rows:
            row["selected"] = row["status"] == ACCEPTED
        selected = iter([row for row in rows if row["selected"]])
        with self._staging.store.together() as store, contextlib.ExitStack() as stack:
            sinks = open_sinks(
                stack,
                store,
                self._staging,
                variants=self._config.compose.composed,
                formats=self._config.compose.formats,
                schema=sample_schema(self._taxonomy.names, boxes=False),
                split=pooled.shard.totals.split,
                shard=pooled.shard.shard,
                shards=pooled.shard.totals.counts.output,
            )
            while batch := list(itertools.islice(selected, _AT_ONCE)):
                self._write_batch(batch, images, pooled, sinks)
        return digests_of(sinks)

    def _write_batch(
        self,
        rows: list[dict[str, Any]],
        images: dict[str, ReleasedImage],
        pooled: PooledShard,
        sinks: dict[str, list[Sink]],
    ) -> None:
        contents = [read_image(images[row["key"]], sinks) for row in rows]
        masks = [decode_npy(content["fg_mask"]) for content in contents]
        found = self._recover(rows, images, contents, masks, pooled)
        for row, content, mask in zip(rows, contents, masks, strict=True):
            for variant, variant_sinks in sinks.items():
                recovered = found.get((row["key"], variant))
                background = None if recovered is None else recovered.background
                if variant == "fg_mask":
                    picture = encode_png(mask.astype(np.uint8) * np.uint8(255))
                else:
                    picture = content[variant]
                sample = self._sample(row, picture, background)
                for sink in variant_sinks:
                    sink.add(sample)
            count("images_imported")

    def _recover(
        self,
        rows: list[dict[str, Any]],
        images: dict[str, ReleasedImage],
        contents: list[dict[str, bytes]],
        masks: list[Mask],
        pooled: PooledShard,
    ) -> dict[tuple[str, str], Recovered]:
        """Backgrounds by (key, variant), also noted in the rows."""
        asked: dict[tuple[str, str], Mixed] = {}
        for row, content, mask in zip(rows, contents, masks, strict=True):
            for variant in mixed_variants(self._config):
                named = images[row["key"]].files[variant].named_background
                row[f"{variant}_bg_named"] = named
                asked[row["key"], variant] = Mixed(content[variant], mask, named)
        if pooled.pool is None:
            return {}
        pool = load_pool(self._staging.store, pooled.pool, pooled.pool_digest)
        found = dict(zip(asked, recover(list(asked.values()), pool), strict=True))
        for row in rows:
            for variant in mixed_variants(self._config):
                recovered = found[row["key"], variant]
                background = recovered.background
                row[f"{variant}_bg_key"] = None if background is None else background["key"]
                row[f"{variant}_bg_difference"] = recovered.difference
                row[f"{variant}_bg_next_difference"] = recovered.next_difference
        return found

    def _sample(
        self, row: dict[str, Any], picture: bytes, background: dict[str, Any] | None
    ) -> Sample:
        of_background = background or {}
        return Sample(
            key=row["key"],
            image=picture,
            suffix=suffix_of(picture),
            fields={
                "label": row["label"],
                "wnid": row["wnid"],
                "imagenet_index": self._taxonomy.index_of(row["wnid"]),
                "fg_key": row["key"],
                "bg_key": of_background.get("key"),
                "bg_label": of_background.get("label"),
                "bg_wnid": of_background.get("wnid"),
                # The release does not tell it.
                "box": None,
                "fg_fraction": row["fg_fraction"],
            },
        )
