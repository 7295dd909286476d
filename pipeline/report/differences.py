"""Differences between models on the same images, from results/comparisons.csv."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pipeline.evaluate.results import display_name
from pipeline.report.evidence import Evidence
from pipeline.report.plots import COMPARED
from pipeline.storage.csv_file import read_csv
from transforms.intervals import CONFIDENCE
from transforms.scoring import PAPER_RULE

_FILE = "results/comparisons.csv"
_GAP = "bg_gap"

Cell = tuple[float, float, float, bool]


@dataclasses.dataclass(frozen=True)
class Differences:
    """A table of pairs of models.

    Attributes:
      columns: variants, and BG-Gap.
      rows: (first, second, (difference, low, high, whether it stands out among all) by column).
      left_out: whether there are more models than the table compares.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, str, dict[str, Cell]], ...]
    left_out: bool


def read_differences(evidence: Evidence, variants: Sequence[str]) -> Differences:
    """Reads the pairs among the `COMPARED` best models; without a file there are none."""
    store, columns = evidence.dataset.store, (*variants, _GAP)
    models = evidence.evaluated[:COMPARED]
    names = {display_name(model.summary): model.name for model in models if model.summary}
    pairs: dict[tuple[str, str], dict[str, Cell]] = {}
    if store.exists(_FILE):
        for row in read_csv(store.read(_FILE)):
            is_ours = row["dataset"] == evidence.dataset.manifest.fingerprint
            shown = {row["first"], row["second"]} <= set(names)
            if is_ours and shown and row["label_rule"] == PAPER_RULE and row["variant"] in columns:
                value, low, high = (float(row[n]) for n in ("difference", "ci_low", "ci_high"))
                pair = names[row["first"]], names[row["second"]]
                cell = value, low, high, float(row["p_adjusted"]) < 1 - CONFIDENCE
                pairs.setdefault(pair, {})[row["variant"]] = cell
    order = {model.name: place for place, model in enumerate(models)}
    rows = sorted(pairs.items(), key=lambda pair: (order[pair[0][0]], order[pair[0][1]]))
    return Differences(
        columns=columns,
        rows=tuple((first, second, cells) for (first, second), cells in rows),
        left_out=len(evidence.evaluated) > COMPARED,
    )
