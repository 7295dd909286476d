"""Power of BG-Gap: whether it can be shown that backgrounds tell the class, by a probe on a model's
outputs.

Where it cannot, a gap near 0 says little about the model: it may have had nothing to rely on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from pipeline.dataset.fingerprints import fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.background_logits import PROBED, read_logits
from pipeline.evaluate.prediction_files import prediction_file
from pipeline.evaluate.predictions import EvalImages
from pipeline.evaluate.result_files import (
    display_name,
    interval,
    read_result,
    result_file,
    result_folder,
)
from transforms.power import power_of_outputs
from transforms.scoring import PAPER_RULE

POWER_VERSION = 2
"""Raised by hand when the probe would say something else of the same outputs."""


def power_of(
    dataset: Dataset, images: EvalImages, metadata: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The `power` part of a model's summary, from the outputs that were kept. It is stored with
    the model, since the probe of 5,000 pictures takes a second; what is there of the same outputs
    is taken over.

    Args:
      dataset: that it was evaluated on.
      images: that it was tested on.
      metadata: the model, and how it was run.

    Returns:
      One row, as `pipeline.report.tables` lists it; none where no outputs were kept, or too few to
      hold some out.
    """
    store, shards = dataset.store, dataset.shards(metadata["evaluation"]["split"])
    paths = [prediction_file(metadata, shard) for shard in shards]
    kept = read_logits(store, paths)
    if kept is None:
        return []
    places = images.positions(pa.chunked_array([pa.array(kept.keys)]))
    units = [images.units[place] for place in places.tolist()]
    identity = fingerprint(POWER_VERSION, kept.of, kept.keys, units)
    folder = result_folder(metadata["model"], metadata["evaluation"])
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
    """A line if the outputs of some models do not show that backgrounds tell the class."""
    probes, near = [], []
    for summary in summaries:
        for row in summary["power"]:
            if not row["has_power"]:
                name = display_name(summary)
                said = interval(row["accuracy"], row["ci_low"], row["ci_high"])
                probes.append(f"{name} (probe {said} %, chance {100 * row['chance']:.1f} %)")
                near += [name] if is_gap_near_zero(summary) else []
    if not probes:
        return []
    line = f"we could not show that backgrounds tell the class here: {', '.join(probes)}"
    if near:
        line += (
            f"; so a BG-Gap whose interval includes 0, as of {', '.join(near)}, says little about "
            "the model"
        )
    return [line]


def is_gap_near_zero(summary: Mapping[str, Any]) -> bool:
    """Whether the interval of a model's BG-Gap, by the paper's label rule, includes 0."""
    return any(
        row["label_rule"] == PAPER_RULE and row["ci_low"] <= 0 <= row["ci_high"]
        for row in summary["gaps"]
    )
