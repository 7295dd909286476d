"""A model's outputs on pictures of backgrounds, for the probe (`pipeline.evaluate.gap_power`).

They are the column `logits` of its predictions, under the paper's label rule.
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

PROBED = "only_bg_t"
"""The variant whose outputs are kept: backgrounds, with nothing of the foreground."""
MOST = 5000
"""Pictures whose outputs are kept, at most."""


def keys_to_keep(tested: Iterable[str], shards: int, most: int = MOST) -> frozenset[str]:
    """Which images of an output shard the outputs of are kept.

    Shards are buckets of a hash of the key and hold about as many images each, so every shard
    keeps its share of `most`, those with the lowest keyed hashes: which ones depends on no other
    shard, so one that is unchanged keeps what it has.

    Args:
      tested: its images that models are tested on.
      shards: how many there are.
      most: images of all shards together.
    """
    return frozenset(_lowest(tested, max(1, most // shards)))


def _lowest(keys: Iterable[str], most: int) -> list[str]:
    """The keys with the lowest hashes, lowest first."""
    keys = list(keys)
    order = np.argsort(keyed_hashes(0, "power", keys), kind="stable")
    return [keys[place] for place in order[:most].tolist()]


@dataclasses.dataclass(frozen=True, eq=False)
class KeptLogits:
    """A model's outputs on pictures of backgrounds, all shards together.

    Attributes:
      keys: (n,) of the images, sorted.
      labels: (n,) integers.
      logits: (n, k) float32.
      of: what identifies them, sorted.
    """

    keys: tuple[str, ...]
    labels: NDArray[np.integer]
    logits: NDArray[np.float32]
    of: tuple[str, ...]


def read_logits(store: Store, paths: Iterable[str]) -> KeptLogits | None:
    """Reads what predictions hold of a model's outputs, of at most `MOST` pictures. None if there
    is nothing."""
    tables = []
    for path in paths:
        table = read_table(store, path, columns=["key", "label", "logits", "of"])
        tables.append(table.filter(pc.is_valid(table["logits"])))
    if not sum(table.num_rows for table in tables):
        return None
    table = pa.concat_tables([table.replace_schema_metadata() for table in tables])
    keys = table["key"].to_pylist()
    chosen = sorted(range(len(keys)), key=keys.__getitem__)
    if len(keys) > MOST:
        lowest = set(_lowest(keys, MOST))
        chosen = [place for place in chosen if keys[place] in lowest]
    logits = table["logits"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return KeptLogits(
        keys=tuple(keys[place] for place in chosen),
        labels=table["label"].to_numpy()[chosen],
        logits=logits.reshape(len(keys), -1)[chosen],
        of=tuple(sorted(pc.unique(table["of"].cast(pa.string())).to_pylist())),
    )
