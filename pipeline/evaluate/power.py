"""Power of BG-Gap: whether backgrounds tell the class at all, by a probe on a model's outputs.

Where they do not, a gap near 0 says nothing about the model: it had nothing to rely on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from pipeline.dataset.fingerprints import fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.answers import Images
from pipeline.evaluate.logits import PROBED, read_logits
from pipeline.evaluate.predictions import prediction_file
from pipeline.evaluate.results import (
    display_name,
    interval,
    read_result,
    result_file,
    result_folder,
)
from transforms.probe import power_of_outputs

POWER_VERSION = 1
"""Raised by hand when the probe would say something else of the same outputs."""


def power_of(dataset: Dataset, images: Images, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The `power` part of a model's summary, from the outputs that were kept. It is stored with
    the model, since the probe of 5,000 pictures takes seconds; what is there of the same outputs
    is taken over.

    Args:
      dataset: that it was evaluated on.
      images: that it was tested on.
      about: the model, and how it was run.

    Returns:
      One row, as `pipeline.report.tables` lists it; none where no outputs were kept, or too few to
      hold some out.
    """
    store, shards = dataset.store, dataset.shards(about["evaluation"]["split"])
    paths = [prediction_file(about, shard) for shard in shards]
    kept = read_logits(store, paths)
    if kept is None:
        return []
    places = images.positions(pa.chunked_array([pa.array(kept.keys)]))
    units = [images.units[place] for place in places.tolist()]
    identity = fingerprint(POWER_VERSION, kept.of, kept.keys, units)
    folder = result_folder(about["model"], about["evaluation"])
    before = read_result(store, result_file(folder, "model")) or {}
    rows: list[dict[str, Any]] = before.get("power", [])
    if [row["fingerprint"] for row in rows] == [identity]:
        return rows
    power = power_of_outputs(kept.logits, kept.labels, units)
    if power is None:
        return []
    return [
        {
            "variant": PROBED,
            "images": power.images,
            "units": power.units,
            "accuracy": power.accuracy,
            "ci_low": power.low,
            "ci_high": power.high,
            "chance": power.chance,
            "has_power": power.has_power,
            "fingerprint": identity,
        }
    ]


def describe_power(summaries: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line if the gap of some models has no power."""
    found = []
    for summary in summaries:
        for row in summary["power"]:
            if not row["has_power"]:
                said = interval(row["accuracy"], row["ci_low"], row["ci_high"])
                chance = f"chance {100 * row['chance']:.1f}"
                found.append(f"{display_name(summary)} ({said} %, {chance} %)")
    if not found:
        return []
    return [
        f"BG-Gap has no power for {', '.join(found)}: a probe on the outputs cannot tell the class "
        f"from {PROBED}, so a gap near 0 says nothing about the model"
    ]
