"""Power of BG-Gap: whether a probe can tell the class from a model's logits on backgrounds.

If the probe cannot, a gap near 0 says little about the model, because the backgrounds may hold no
information about the class that the model could rely on.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from pipeline.analyses.evaluation.results import Evaluated, StoredPower, Summary
from pipeline.dataset.fingerprints import fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.display.text import interval
from pipeline.evaluate.predictions import PROBED_VARIANT, EvalImages, prediction_file, read_logits
from pipeline.evaluate.result_files import read_result, result_file
from pipeline.evaluate.results import ModelRun, pick
from transforms.power import power_of_outputs

POWER_VERSION = 2
"""Version of the probe. A developer raises it with every change that gives other figures for the
same logits."""


def measure_power(dataset: Dataset, images: EvalImages, run: ModelRun) -> tuple[StoredPower, ...]:
    """Fits the probe to a model's stored logits; returns the part `power` of the model's summary.

    Because fitting a probe to 5,000 pictures takes a second, its row is stored in model.json, and
    reused while the logits and the images' units are the same.

    Args:
      dataset: the dataset that the model was evaluated on.
      images: the images that it was tested on.
      run: the model, and how it was run.

    Returns:
      One row; none if there are no stored logits, or too few to hold some out for the test of the
      probe.
    """
    store, shards = dataset.store, dataset.shards(run.evaluation.split)
    paths = [prediction_file(run, shard) for shard in shards]
    kept = read_logits(store, paths)
    if kept is None:
        return ()
    positions = images.positions(pa.chunked_array([pa.array(kept.keys)]))
    units = [images.units[position] for position in positions.tolist()]
    inputs = fingerprint(POWER_VERSION, kept.of, kept.keys, units)
    previous = read_result(store, result_file(run.folder, "model"), Evaluated)
    if previous and [row.fingerprint for row in previous.power] == [inputs]:
        return previous.power
    power = power_of_outputs(kept.logits, kept.labels, units)
    if power is None:
        return ()
    return (
        pick(
            StoredPower,
            power,
            variant=PROBED_VARIANT,
            ci_low=power.low,
            ci_high=power.high,
            fingerprint=inputs,
        ),
    )


def describe_power(summaries: Iterable[Summary]) -> list[str]:
    """Returns a line that names the models whose probe did not beat chance, or an empty list if
    there are no such models."""
    weak = [(one, row) for one in summaries for row in one.power if not row.has_power]
    if not weak:
        return []
    probes = (
        f"{one.name} (probe {interval(row.accuracy, row.ci_low, row.ci_high)} %, "
        f"chance {100 * row.chance:.1f} %)"
        for one, row in weak
    )
    near_zero = [one.name for one, _ in weak if one.is_gap_near_zero]
    line = f"we could not show that backgrounds tell the class here: {', '.join(probes)}"
    if near_zero:
        line += (
            f"; so a BG-Gap whose interval includes 0, as for {', '.join(near_zero)}, says little "
            "about the model"
        )
    return [line]
