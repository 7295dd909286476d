"""Layers in the tars of source shards: writing, finding and reading them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from pipeline.dataset.records import Row
from pipeline.dataset.sinks import TarWriter
from pipeline.storage.store import Store
from transforms.codec import decode_image, decode_mask, encode_mask, encode_png
from transforms.geometry import OutputBox
from transforms.hashing import text_bytes
from transforms.layers import Layer

PARTS = ("image", "only_bg_t", "mask")
"""Parts of a layer. Each is a tar member `<key>.<part>.png`; together they form one WebDataset
sample."""


def encode_layer(layer: Layer) -> dict[str, bytes]:
    """Encodes the parts of a layer as lossless PNGs."""
    return {
        "image": encode_png(layer.image),
        "only_bg_t": encode_png(layer.only_bg_t),
        "mask": encode_mask(layer.mask),
    }


def layer_digest(layer: Layer) -> str:
    """Identifies a layer's pixels and box, independently of their encoding."""
    hasher = hashlib.sha256(text_bytes(repr(tuple(layer.box))))
    for array in (layer.image, layer.only_bg_t, layer.mask):
        hasher.update(array.tobytes())
    return hasher.hexdigest()[:16]


def add_layer(tar: TarWriter, key: str, parts: Mapping[str, bytes]) -> Row:
    """Appends a layer; returns the offset and length columns for the layer's record row."""
    columns = {}
    for part in PARTS:
        columns[f"{part}_offset"] = tar.add(f"{key}.{part}.png", parts[part])
        columns[f"{part}_length"] = len(parts[part])
    return columns


def part_ranges(row: Row) -> list[tuple[int, int]]:
    """Returns (offset, length) in bytes of each part of a layer in its tar, by the columns of its
    record row."""
    return [(row[f"{part}_offset"], row[f"{part}_length"]) for part in PARTS]


def read_parts(store: Store, tar_path: str, row: Row) -> dict[str, bytes]:
    """Reads the encoded parts of a layer, by the columns of its record row."""
    return dict(zip(PARTS, store.read_ranges(tar_path, part_ranges(row)), strict=True))


def decode_layer(image: bytes, only_bg_t: bytes, mask: bytes, *, box: Sequence[int]) -> Layer:
    """Decodes the parts that `encode_layer` encoded, given the box (x0, y0, x1, y1)."""
    return Layer(
        image=decode_image(image),
        only_bg_t=decode_image(only_bg_t),
        mask=decode_mask(mask),
        box=OutputBox(*box),
    )
