"""Tables of all attacked models: results/attack.csv and results/backgrounds.csv."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.analyses.attack.plan import ATTACK_VARIANTS
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.answers import results_of
from pipeline.evaluate.failures import error_rows, read_failures
from pipeline.storage.csv_file import write_csv
from pipeline.storage.state_files import read_table
from pipeline.storage.store import Store

ATTACK_COLUMNS = (
    "model",
    "label_rule",
    "challenge_accuracy",
    "challenge_ci_low",
    "challenge_ci_high",
    "fooled",
    "fooled_ci_low",
    "fooled_ci_high",
    "foregrounds",
    "backgrounds",
    "full_grid",
    "early_stop",
    "forwards",
    "split",
    "precision",
    "device",
    "weights_sha256",
    "dataset",
    "error",
)
"""Columns of attack.csv; shares are fractions, intervals Wilson's at 95 %. `fooled` is empty
after an early stop. A model that failed has its `error` and no measures."""

BACKGROUND_COLUMNS = (
    "model",
    "label_rule",
    "bg_key",
    "bg_label",
    "bg_wnid",
    "success",
    "foregrounds",
)
"""Columns of backgrounds.csv: `success` is the share of the `foregrounds` of other classes that
this background makes the model take for its own class."""


def read_attacks(dataset: Dataset) -> tuple[list[dict[str, Any]], list[str]]:
    """What attack.json says of every attacked model, in order of its folder.

    Returns:
      (attacks on the pictures that the dataset holds, names of models whose attack is of others).
    """
    return results_of(dataset, "attack", lambda _: ATTACK_VARIANTS)


def write_attack_tables(dataset: Dataset) -> None:
    """Rebuilds attack.csv and backgrounds.csv from the attacks that are there, unless nothing was
    ever attacked. Called with the lock of the tables held."""
    store = dataset.store
    attacks, stale = read_attacks(dataset)
    failed, failed_before = read_failures(store, dataset.manifest.fingerprint, "attack")
    is_known = attacks or failed or stale or failed_before
    if not is_known and not store.exists("results/attack.csv"):
        return
    rows = [
        {**attack, **attack["evaluation"], "label_rule": rule, **found}
        for attack in attacks
        for rule, found in attack["rules"].items()
    ]
    write_csv(store, "attack", ATTACK_COLUMNS, rows + error_rows(failed, attacks))
    write_csv(store, "backgrounds", BACKGROUND_COLUMNS, _background_rows(store, attacks))


def _background_rows(
    store: Store, attacks: Sequence[Mapping[str, Any]]
) -> Iterable[dict[str, Any]]:
    for attack in attacks:
        file = attack["backgrounds_file"]
        if not store.exists(file):
            continue
        backgrounds = read_table(store, file).to_pylist()
        for rule in attack["rules"]:
            for row in backgrounds:
                if row[rule] is not None and row["foregrounds"]:
                    yield {
                        "model": attack["model"],
                        "label_rule": rule,
                        **row,
                        "success": row[rule] / row["foregrounds"],
                    }
