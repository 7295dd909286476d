"""Results of attacks: the predictions of every pair, and the measures made of them.

results/<model>/attack/<grid>/<split>-NNNNN.parquet         predictions of a chunk of foregrounds
results/<model>/attack/<grid>/<split>-backgrounds.parquet   the backgrounds, in the order of those
results/<model>/attack.json                                 what was run last, and its measures

<grid> is foregrounds x backgrounds, such as 4050x4050, so that a small attack does not take
the place of a large one.

Tables of all attacked models: results/attack.csv and results/backgrounds.csv.
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
"""Columns of a chunk: a row for each foreground; under each label rule, its prediction on every
background: a label, -1 outside the taxonomy, null where an early stop left it out; `device` is
what they were made on."""


def grid_name(grid: AttackGrid, plan: AttackPlan) -> str:
    """Where the chunks of a grid lie, as a name of `result_shard`."""
    size = f"{len(grid.foregrounds)}x{len(grid.backgrounds)}"
    return f"attack/{size}" + ("-early_stop" if plan.early_stop else "")


def chunk_table(foregrounds: GridAxis, predictions: Grid, device: str) -> pa.Table:
    """A chunk's table, of (rules, foregrounds, backgrounds) int16 predictions made on a device."""
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
    """The inverse of `chunk_table`: predictions (rules, C, B) int16, labels (C,) int64."""
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
    """The backgrounds of a grid: key, label, wnid, foregrounds of other classes, and under each
    label rule how many of them it fools: null if there are no tallies of all pairs."""
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
    """What attack.json says of one label rule. After an early stop, only challenge accuracy is
    known: the rest is null or empty."""
    standing = challenge_accuracy(tallied, grid.units)
    found: dict[str, Any] = {
        "challenge_accuracy": standing.value,
        "challenge_ci_low": standing.low,
        "challenge_ci_high": standing.high,
        **dict.fromkeys(("fooled", "fooled_ci_low", "fooled_ci_high")),
        **{name: [] for name in ("by_class", "accuracy_by_backgrounds", "strongest")},
    }
    if early_stop:
        return found
    turned, total = fooled(tallied, grid.units), len(grid.backgrounds)
    found |= {"fooled": turned.value, "fooled_ci_low": turned.low, "fooled_ci_high": turned.high}
    found["accuracy_by_backgrounds"] = [
        {"backgrounds": number, "accuracy": accuracy}
        for number, accuracy in expected_accuracy(tallied.turning, total, steps(total))
    ]
    for label, name in enumerate(taxonomy.names):
        _measure_class(found, tallied, grid.backgrounds, label, name)
    return found


def _measure_class(
    found: dict[str, Any], tallied: GridTally, backgrounds: GridAxis, label: int, name: str
) -> None:
    """Adds a class of backgrounds, if there are some, and foregrounds of other classes."""
    members = int((backgrounds.labels == label).sum())
    of_class = fooled_by_class(tallied, label)
    if not members or not of_class.n:
        return
    found["by_class"].append(
        {
            "label": label,
            "class_name": name,
            "backgrounds": members,
            "foregrounds": of_class.n,
            "fooled": of_class.value,
        }
    )
    found["strongest"] += [
        {
            "label": label,
            "bg_key": backgrounds.keys[position],
            "bg_wnid": backgrounds.wnids[position],
            "success": int(tallied.successes[position]) / of_class.n,
            "foregrounds": of_class.n,
        }
        for position in strongest(tallied, backgrounds.keys, backgrounds.labels, label)
    ]


@dataclasses.dataclass(frozen=True, eq=False)
class AttackedModel:
    """A model with the predictions of a whole grid.

    Attributes:
      dataset: that was attacked.
      plan: what was done.
      grid: of `plan`.
      metadata: identity of the model, of `model_identity`.
      paths: files of all chunks, in order.
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
        """What the predictions were made on."""
        tables = [read_table(self.dataset.store, path, columns=["device"]) for path in self.paths]
        found = {device for table in tables for device in table["device"].unique().to_pylist()}
        return "+".join(sorted(found))

    def tallies(self, taxonomy: Taxonomy) -> dict[str, GridTally]:
        """By label rule; a chunk at a time is in memory."""
        parts: dict[str, list[GridTally]] = {rule: [] for rule in LABEL_RULES}
        for path in self.paths:
            grids, labels = read_chunk(self.dataset.store, path)
            for rule, grid in zip(LABEL_RULES, grids, strict=True):
                bg_labels = self.grid.backgrounds.labels
                parts[rule].append(tally(grid, labels, bg_labels, taxonomy.num_labels))
        return {rule: merge(of_rule) for rule, of_rule in parts.items()}


def write_attack(attacked: AttackedModel, taxonomy: Taxonomy) -> None:
    """Measures a model: writes its backgrounds and attack.json, and removes chunks that belong
    to other pixels or weights."""
    plan, grid, store = attacked.plan, attacked.grid, attacked.dataset.store
    tallies = attacked.tallies(taxonomy)
    split, early_stop = plan.evaluation.split, plan.early_stop
    chunks = f"results/{attacked.folder}/{grid_name(grid, plan)}"
    backgrounds = f"{chunks}/{split}-backgrounds.parquet"
    abouts = [read_metadata(store, path) for path in attacked.paths]
    checksums = [metadata.fingerprint for metadata in abouts if metadata]
    pixels = checksums[0].partition("-")[0]
    checksum = f"{pixels}-{fingerprint(checksums)}"
    metadata = read_metadata(store, backgrounds)
    if metadata is None or metadata.fingerprint != checksum:
        table = background_table(grid, None if early_stop else tallies)
        write_table(store, backgrounds, table, checksum)
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
        "backgrounds_file": backgrounds,
        "rules": {
            rule: measure_rule(tallied, grid, taxonomy, early_stop=early_stop)
            for rule, tallied in tallies.items()
        },
    }
    write_result(store, result_file(attacked.folder, "attack"), attack)
    for path in list(store.walk(f"results/{attacked.folder}/attack")):
        name, folder = os.path.basename(path), os.path.dirname(path)
        if path in (backgrounds, *attacked.paths) or not name.startswith(f"{split}-"):
            continue
        metadata = read_metadata(store, path)
        is_ours = metadata is not None and metadata.fingerprint.startswith(f"{pixels}-")
        if not is_ours or folder == chunks:
            store.delete(path)


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
    return read_current_results(dataset, "attack", lambda _: ATTACK_VARIANTS)


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
