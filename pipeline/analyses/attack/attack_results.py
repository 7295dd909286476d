"""Results of attacks: predictions of all pairs, the measures computed from them, and tables.

results/<model>/attack/<grid>/<split>-NNNNN.parquet         predictions of a chunk of foregrounds
results/<model>/attack/<grid>/<split>-backgrounds.parquet   backgrounds, in the order of predictions
results/<model>/attack.json                                 the last attack, and its measures
results/attack.csv, results/backgrounds.csv                 tables of all attacked models

<grid> consists of the numbers of foregrounds and backgrounds, such as 4050x4050 (with -early_stop
after an attack that stopped early), so that a small attack does not overwrite a large one.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.analyses.attack.grid import ATTACK_VARIANTS, AttackGrid, AttackPlan, GridAxis
from pipeline.dataset.fingerprints import fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import read_metadata, write_table
from pipeline.evaluate.failures import error_rows, read_failures
from pipeline.evaluate.predictions import read_current_results, split_fingerprint
from pipeline.evaluate.result_files import result_file, result_folder, write_result
from pipeline.storage.csv_file import write_csv
from pipeline.storage.state_files import read_table
from pipeline.storage.store import Store
from transforms.adversarial import (
    UNTRIED,
    Grid,
    GridTally,
    Labels,
    challenge_accuracy,
    expected_accuracy,
    fooled,
    fooled_by_class,
    foregrounds_of_others,
    merge,
    steps,
    strongest,
    tally,
)
from transforms.scoring import LABEL_RULES
from transforms.taxonomy import Taxonomy

CHUNK_SCHEMA = pa.schema(
    [
        pa.field("fg_key", pa.string()),
        pa.field("label", pa.int64()),
        *(pa.field(rule, pa.list_(pa.int16())) for rule in LABEL_RULES),
        pa.field("device", pa.dictionary(pa.int32(), pa.string())),
    ]
)
"""Columns of a chunk's file, which has a row for each foreground. Each label rule has a column with
the predictions on all backgrounds: labels, -1 outside the taxonomy, null for pairs that an early
stop skipped. `device` is the type of the device that computed the predictions."""

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
"""Columns of attack.csv, which has a row for each model and label rule. Shares are fractions, with
Wilson's 95 % intervals. `fooled` is empty after an early stop. A model that failed has an `error`
and no measures."""

BACKGROUND_COLUMNS = (
    "model",
    "label_rule",
    "bg_key",
    "bg_label",
    "bg_wnid",
    "success",
    "foregrounds",
)
"""Columns of backgrounds.csv, which has a row for each model, label rule and background, except
after an early stop. `foregrounds` is the number of foregrounds of other classes than the
background's; if there are none, the background has no row. `success` is the share of them for which
the model predicts the background's class."""


def grid_name(grid: AttackGrid, plan: AttackPlan) -> str:
    """Returns the name of the folder that holds a grid's chunks, for `result_shard`."""
    size = f"{len(grid.foregrounds)}x{len(grid.backgrounds)}"
    return f"attack/{size}" + ("-early_stop" if plan.early_stop else "")


def chunk_table(foregrounds: GridAxis, predictions: Grid, device: str) -> pa.Table:
    """Builds a chunk's table.

    Args:
      foregrounds: the F foregrounds of the chunk.
      predictions: (rules, F, B) int16, predictions on each of the grid's B backgrounds.
      device: type of the device that computed the predictions.
    """
    offsets = np.arange(len(foregrounds) + 1, dtype=np.int32) * predictions.shape[2]
    lists = []
    for grid in predictions:
        values = pa.array(grid.ravel(), mask=grid.ravel() == UNTRIED)
        lists.append(pa.ListArray.from_arrays(offsets, values))
    device_column = pa.array([device] * len(foregrounds)).dictionary_encode()
    labels = pa.array(foregrounds.labels, pa.int64())
    columns = [pa.array(foregrounds.keys), labels, *lists, device_column]
    return pa.Table.from_arrays(columns, schema=CHUNK_SCHEMA)


def read_chunk(store: Store, path: str) -> tuple[Grid, Labels]:
    """Reads a chunk's table; returns (predictions, labels), as (rules, F, B) int16 and (F,) int64,
    for F foregrounds on B backgrounds."""
    table = read_table(store, path)
    grids = [
        table[rule]
        .combine_chunks()
        .flatten()
        .fill_null(UNTRIED)
        .to_numpy(zero_copy_only=False)
        .astype(np.int16)
        .reshape(len(table), -1)
        for rule in LABEL_RULES
    ]
    return np.stack(grids), table["label"].to_numpy().astype(np.int64)


def background_table(grid: AttackGrid, tallies: Mapping[str, GridTally] | None) -> pa.Table:
    """Builds the table of a grid's backgrounds. Its columns are key, label, wnid, the number of
    foregrounds of other classes, and for each label rule the number of these foregrounds for which
    the model predicts the background's class (null without tallies)."""
    backgrounds = grid.backgrounds
    columns: dict[str, Any] = {
        "bg_key": pa.array(backgrounds.keys),
        "bg_label": pa.array(backgrounds.labels, pa.int64()),
        "bg_wnid": pa.array(backgrounds.wnids),
        "foregrounds": foregrounds_of_others(grid.foregrounds.labels, backgrounds.labels),
    }
    for rule in LABEL_RULES:
        fooled_by = tallies[rule].successes if tallies else [None] * len(backgrounds)
        columns[rule] = pa.array(fooled_by, pa.int64())
    return pa.table(columns)


def measure_rule(
    tallied: GridTally, grid: AttackGrid, taxonomy: Taxonomy, *, early_stop: bool
) -> dict[str, Any]:
    """Computes the measures under one label rule, as attack.json holds them.

    After an early stop, only challenge accuracy is known; all other measures are None or empty.

    Args:
      tallied: tally of the model's predictions under the rule.
      grid: grid of the attack.
      taxonomy: the dataset's classes.
      early_stop: whether the attack stopped early.
    """
    robust = challenge_accuracy(tallied, grid.units)
    measures: dict[str, Any] = {
        "challenge_accuracy": robust.value,
        "challenge_ci_low": robust.low,
        "challenge_ci_high": robust.high,
        **dict.fromkeys(("fooled", "fooled_ci_low", "fooled_ci_high")),
        **{name: [] for name in ("by_class", "accuracy_by_backgrounds", "strongest")},
    }
    if early_stop:
        return measures
    share, total = fooled(tallied, grid.units), len(grid.backgrounds)
    measures |= {"fooled": share.value, "fooled_ci_low": share.low, "fooled_ci_high": share.high}
    measures["accuracy_by_backgrounds"] = [
        {"backgrounds": number, "accuracy": accuracy}
        for number, accuracy in expected_accuracy(tallied.turning, total, steps(total))
    ]
    for label, name in enumerate(taxonomy.names):
        _measure_class(measures, tallied, grid.backgrounds, label, name)
    return measures


def _measure_class(
    measures: dict[str, Any], tallied: GridTally, backgrounds: GridAxis, label: int, name: str
) -> None:
    """Adds the measures of the backgrounds of one class to `measures`. Adds nothing if the class
    has no backgrounds, or if there are no foregrounds of other classes."""
    count = int((backgrounds.labels == label).sum())
    share = fooled_by_class(tallied, label)
    if not count or not share.n:
        return
    measures["by_class"].append(
        {
            "label": label,
            "class_name": name,
            "backgrounds": count,
            "foregrounds": share.n,
            "fooled": share.value,
        }
    )
    measures["strongest"] += [
        {
            "label": label,
            "bg_key": backgrounds.keys[position],
            "bg_wnid": backgrounds.wnids[position],
            "success": int(tallied.successes[position]) / share.n,
            "foregrounds": share.n,
        }
        for position in strongest(tallied, backgrounds.keys, backgrounds.labels, label)
    ]


@dataclasses.dataclass(frozen=True, eq=False)
class AttackedModel:
    """A model whose chunks are all done.

    Attributes:
      dataset: the dataset.
      plan: settings of the attack.
      grid: grid of the attack.
      metadata: the model, and how it was run.
      paths: paths of the files of all chunks, in order of the chunks.
    """

    dataset: Dataset
    plan: AttackPlan
    grid: AttackGrid
    metadata: dict[str, Any]
    paths: tuple[str, ...]

    @property
    def folder(self) -> str:
        """The model's folder under `results/`."""
        return result_folder(self.metadata["model"], self.metadata["evaluation"])

    @property
    def devices(self) -> str:
        """Types of the devices that computed the predictions, joined by `+`."""
        tables = [read_table(self.dataset.store, path, columns=["device"]) for path in self.paths]
        devices = {device for table in tables for device in table["device"].unique().to_pylist()}
        return "+".join(sorted(devices))

    def tallies(self, taxonomy: Taxonomy) -> dict[str, GridTally]:
        """Tallies the predictions by label rule. Only one chunk is in memory at a time."""
        parts: dict[str, list[GridTally]] = {rule: [] for rule in LABEL_RULES}
        for path in self.paths:
            grids, labels = read_chunk(self.dataset.store, path)
            for rule, grid in zip(LABEL_RULES, grids, strict=True):
                bg_labels = self.grid.backgrounds.labels
                parts[rule].append(tally(grid, labels, bg_labels, taxonomy.num_labels))
        return {rule: merge(tallies) for rule, tallies in parts.items()}


def write_attack(attacked: AttackedModel, taxonomy: Taxonomy) -> None:
    """Writes a model's attack.json and its table of backgrounds. Removes files of the split that
    were computed from other pixels or weights, and files of this grid that it no longer needs."""
    plan, grid, store = attacked.plan, attacked.grid, attacked.dataset.store
    tallies = attacked.tallies(taxonomy)
    split, early_stop = plan.evaluation.split, plan.early_stop
    chunk_folder = f"results/{attacked.folder}/{grid_name(grid, plan)}"
    backgrounds_file = f"{chunk_folder}/{split}-backgrounds.parquet"
    chunks = [read_metadata(store, path) for path in attacked.paths]
    fingerprints = [metadata.fingerprint for metadata in chunks if metadata]
    # The first part of a chunk's fingerprint depends on model and pixels only; see
    # `AttackChunks.fingerprint`.
    shared = fingerprints[0].partition("-")[0]
    expected = f"{shared}-{fingerprint(fingerprints)}"
    metadata = read_metadata(store, backgrounds_file)
    if metadata is None or metadata.fingerprint != expected:
        table = background_table(grid, None if early_stop else tallies)
        write_table(store, backgrounds_file, table, expected)
    attack = {
        **attacked.metadata,
        "evaluation": {**attacked.metadata["evaluation"], "device": attacked.devices},
        "of": split_fingerprint(attacked.dataset, split, ATTACK_VARIANTS),
        "split": split,
        "foregrounds": len(grid.foregrounds),
        "backgrounds": len(grid.backgrounds),
        "full_grid": grid.is_full,
        "early_stop": early_stop,
        "forwards": next(iter(tallies.values())).tried,
        "backgrounds_file": backgrounds_file,
        "rules": {
            rule: measure_rule(tallied, grid, taxonomy, early_stop=early_stop)
            for rule, tallied in tallies.items()
        },
    }
    write_result(store, result_file(attacked.folder, "attack"), attack)
    for path in list(store.walk(f"results/{attacked.folder}/attack")):
        name, folder = os.path.basename(path), os.path.dirname(path)
        if path in (backgrounds_file, *attacked.paths) or not name.startswith(f"{split}-"):
            continue
        metadata = read_metadata(store, path)
        is_current = metadata is not None and metadata.fingerprint.startswith(f"{shared}-")
        if not is_current or folder == chunk_folder:
            store.delete(path)


def read_attacks(dataset: Dataset) -> tuple[list[dict[str, Any]], list[str]]:
    """Reads the attack.json of every model, in order of the models' folders.

    Returns:
      (attacks on the dataset's present pictures; names of models that were attacked on earlier
      pictures).
    """
    return read_current_results(dataset, "attack", lambda _: ATTACK_VARIANTS)


def write_attack_tables(dataset: Dataset) -> None:
    """Rebuilds attack.csv and backgrounds.csv from all attacks; writes nothing if no model was ever
    attacked. The caller must hold the lock of the tables."""
    store = dataset.store
    attacks, stale = read_attacks(dataset)
    failed, failed_before = read_failures(store, dataset.manifest.fingerprint, "attack")
    was_attacked = attacks or failed or stale or failed_before
    if not was_attacked and not store.exists("results/attack.csv"):
        return
    rows = [
        {**attack, **attack["evaluation"], "label_rule": rule, **measures}
        for attack in attacks
        for rule, measures in attack["rules"].items()
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
