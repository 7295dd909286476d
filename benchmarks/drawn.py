"""Makes a dataset, for benchmarks of the stages that run models.

The functions that write every dataset write it, but without a job, so neither Beam nor a segmenter
is needed to measure these stages.
"""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.dataset.config import ComposeConfig, DatasetConfig, SegmentConfig
from pipeline.dataset.folder import sample_folder
from pipeline.dataset.manifest import MANIFEST, Manifest, stage_versions
from pipeline.dataset.records import (
    ACCEPTED,
    RECORD_SCHEMA,
    ShardCounts,
    Staging,
    bucket_hash,
    index_file,
)
from pipeline.dataset.sinks import Sample, digests_of, open_sinks, sample_schema
from pipeline.storage.store import FileDigest, Store
from transforms.codec import decode_image, encode_jpeg, encode_png
from transforms.hashing import fingerprint
from transforms.layers import Layer, make_layer
from transforms.masks import bounding_box
from transforms.taxonomy import imagenet9
from transforms.variants import MIXED, PAPER, VARIANTS, VariantName

_INDEX = pa.schema(
    [
        *map(RECORD_SCHEMA.field, ("key", "status", "label", "wnid", "fg_fraction", "group")),
        pa.field("selected", pa.bool_(), nullable=False),
    ]
)


def draw_dataset(count: int, side: int, shards: int, root: Path) -> None:
    """Writes a dataset as Parquet, in all of the paper's variants.

    The images are the embedded sample's pictures, over and over. A disc in the middle is their
    foreground, and they belong to two classes in turn.

    Args:
      count: number of images.
      side: of the pictures, in pixels.
      shards: approximate number of shards; each has at least one image.
      root: folder of the dataset.
    """
    per_shard = max(1, count // shards)
    config = DatasetConfig(
        images_per_shard=per_shard,
        layers="drop",
        segment=SegmentConfig(image_size=side, resize=side * 8 // 7, segmenter="box"),
        compose=ComposeConfig(formats=("parquet",)),
    )
    counts = ShardCounts.for_images(count, per_shard)
    keys = [f"drawn_{number:06d}" for number in range(count)]
    by_shard: list[list[int]] = [[] for _ in range(counts.output)]
    for number in sorted(range(count), key=lambda number: bucket_hash(keys[number])):
        by_shard[bucket_hash(keys[number]) % counts.output].append(number)
    store, files = Store(str(root)), list[FileDigest]()
    for shard, numbers in enumerate(by_shard):
        files += _write_shard(store, config, counts, shard, numbers, keys)
    taxonomy = imagenet9()
    drawn = dict.fromkeys(taxonomy.names, 0)
    for number in range(count):
        drawn[taxonomy.names[_label(number)]] += 1
    images = {"listed": count, "accepted": count, "selected": count}
    other_counts = dict.fromkeys(("outside_taxonomy", "other_files", "rejected"), 0)
    manifest = Manifest(
        config=config,
        fingerprint=fingerprint(count, side, shards),
        libraries={},
        shards={"val": counts},
        images={"val": {**images, **other_counts}},
        rejections={"val": {}},
        samples={"val": dict.fromkeys(PAPER, drawn)},
        files=tuple(sorted(files, key=lambda file: file.path)),
        stages=stage_versions(config),
    )
    store.write(MANIFEST, manifest.to_json())


def _write_shard(
    store: Store,
    config: DatasetConfig,
    counts: ShardCounts,
    shard: int,
    numbers: list[int],
    keys: list[str],
) -> list[FileDigest]:
    staging, taxonomy = Staging(store, "."), imagenet9()
    rows = []
    with contextlib.ExitStack() as stack:
        sinks = open_sinks(
            stack,
            store,
            staging,
            variants=map(VariantName, PAPER),
            formats=("parquet",),
            schema=sample_schema(taxonomy.names),
            split="val",
            shard=shard,
            num_shards=counts.output,
        )
        for number in numbers:
            layer = _draw(number, config.segment)
            # The next image belongs to the other class, the one after it to the same class.
            partners = {name: (number + 1 + (name == "mixed_same")) % len(keys) for name in MIXED}
            metadata: dict[str, Any] = {
                "label": _label(number),
                "wnid": taxonomy.wnids[_label(number)],
                "fg_fraction": layer.fg_fraction,
            }
            rows.append({"key": keys[number], "status": ACCEPTED, "selected": True, **metadata})
            for name in PAPER:
                partner = partners.get(name)
                background = None if partner is None else _draw(partner, config.segment).only_bg_t
                picture = VARIANTS[name].compose(layer, background)
                as_png = VARIANTS[name].lossless
                fields = {
                    **metadata,
                    "imagenet_index": None,
                    "fg_key": keys[number],
                    "bg_key": None if partner is None else keys[partner],
                    "bg_label": None if partner is None else _label(partner),
                    "bg_wnid": None,
                    "box": list(layer.box),
                }
                image = encode_png(picture) if as_png else encode_jpeg(picture, 95)
                sample = Sample(keys[number], image, "png" if as_png else "jpg", fields)
                for sink in sinks[VariantName(name)]:
                    sink.add(sample)
    written = digests_of(sinks)
    path = index_file("val", shard, counts.output)
    table = pa.Table.from_pylist(rows, _INDEX)
    record = staging.write(path, table, fingerprint(keys, shard), written)
    return list(record.files)


def _label(number: int) -> int:
    return number % 2


def _draw(number: int, config: SegmentConfig) -> Layer:
    return _layer(number % len(_photographs()), config)


@functools.cache
def _photographs() -> tuple[Path, ...]:
    return tuple(sorted(Path(sample_folder()).rglob("*.JPEG")))


@functools.cache
def _layer(number: int, config: SegmentConfig) -> Layer:
    pixels = decode_image(_photographs()[number].read_bytes())
    height, width = pixels.shape[:2]
    radius = min(height, width) // 4
    y, x = np.mgrid[:height, :width]
    mask = (x - width // 2) ** 2 + (y - height // 2) ** 2 < radius**2
    box = bounding_box(mask)
    assert box is not None
    return make_layer(
        pixels,
        box,
        mask,
        resize=config.resize,
        crop=config.image_size,
        interpolation=config.interpolation,
    )
