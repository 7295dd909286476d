"""A model's stored logits on pictures of backgrounds, for the probe in `gap_power`.

The logits are stored in the column `logits` of the model's predictions, in the rows of the paper's
label rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.storage.state_files import read_table
from pipeline.storage.store import Store
from transforms.hashing import keyed_hashes

PROBED_VARIANT = "only_bg_t"
"""The variant whose logits are kept: backgrounds without any foreground."""
MAX_PICTURES = 5000
"""The most pictures whose logits the probe uses."""


def keys_to_keep(tested: Iterable[str], shards: int, most: int = MAX_PICTURES) -> frozenset[str]:
    """Chooses the images of an output shard whose logits are kept.

    Images are dealt to shards by a hash of their keys, so all shards hold about the same number.
    Every shard keeps an equal share of `most`, namely its images with the lowest keyed hashes. So
    the choice depends on no other shard, and an unchanged shard keeps the same images.

    Args:
      tested: keys of the shard's images that models are tested on.
      shards: number of shards.
      most: approximate number of images to choose in all shards together.
    """
    return frozenset(_lowest_hashes(tested, max(1, most // shards)))


def _lowest_hashes(keys: Iterable[str], most: int) -> list[str]:
    """Returns the `most` keys with the lowest hashes, lowest hash first."""
    keys = list(keys)
    order = np.argsort(keyed_hashes(0, "power", keys), kind="stable")
    return [keys[position] for position in order[:most].tolist()]


@dataclasses.dataclass(frozen=True, eq=False)
class KeptLogits:
    """A model's stored logits on n pictures of backgrounds, from all shards.

    Attributes:
      keys: n keys of the images, sorted.
      labels: (n,) integers, true labels of the images.
      logits: (n, outputs) float32, all outputs of the model.
      of: distinct values of the predictions' column `of`, sorted; they change with the logits.
    """

    keys: tuple[str, ...]
    labels: NDArray[np.integer]
    logits: NDArray[np.float32]
    of: tuple[str, ...]


def read_logits(store: Store, paths: Iterable[str]) -> KeptLogits | None:
    """Reads a model's stored logits on at most `MAX_PICTURES` pictures; returns None if no logits
    are stored.

    Args:
      store: the dataset folder.
      paths: files of the model's predictions.
    """
    tables = []
    for path in paths:
        table = read_table(store, path, columns=["key", "label", "logits", "of"])
        tables.append(table.filter(pc.is_valid(table["logits"])))
    if not sum(table.num_rows for table in tables):
        return None
    table = pa.concat_tables([table.replace_schema_metadata() for table in tables])
    keys = table["key"].to_pylist()
    chosen = sorted(range(len(keys)), key=keys.__getitem__)
    if len(keys) > MAX_PICTURES:
        lowest = set(_lowest_hashes(keys, MAX_PICTURES))
        chosen = [position for position in chosen if keys[position] in lowest]
    logits = table["logits"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return KeptLogits(
        keys=tuple(keys[position] for position in chosen),
        labels=table["label"].to_numpy()[chosen],
        logits=logits.reshape(len(keys), -1)[chosen],
        of=tuple(sorted(pc.unique(table["of"].cast(pa.string())).to_pylist())),
    )
