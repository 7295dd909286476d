"""Measures what an attack has predicted, and writes the result of a model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping

import msgspec
import numpy as np
import pyarrow as pa

from pipeline.analyses.attack.grid import ATTACK_VARIANTS, AttackGrid, AttackPlan, GridAxis
from pipeline.analyses.attack.results import (
    CHUNK_SCHEMA,
    AccuracyByBackgrounds,
    AttackMeasures,
    AttackResult,
    FooledClass,
    StrongestBackground,
)
from pipeline.dataset.fingerprints import fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import read_metadata, write_table
from pipeline.evaluate.predictions import split_fingerprint
from pipeline.evaluate.result_files import result_file, write_result
from pipeline.evaluate.results import ModelRun, pick
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
    columns: dict[str, object] = {
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
) -> AttackMeasures:
    """Computes the measures under one label rule.

    Args:
      tallied: tally of the model's predictions under the rule.
      grid: grid of the attack.
      taxonomy: the dataset's classes.
      early_stop: whether the attack stopped early.
    """
    robust = challenge_accuracy(tallied, grid.units)
    challenge = (robust.value, robust.low, robust.high)
    if early_stop:
        return AttackMeasures(*challenge, None, None, None, (), (), ())
    share, total = fooled(tallied, grid.units), len(grid.backgrounds)
    by_class = [
        one
        for label, name in enumerate(taxonomy.names)
        if (one := _measure_class(tallied, grid.backgrounds, label, name))
    ]
    return AttackMeasures(
        *challenge,
        *(share.value, share.low, share.high),
        accuracy_by_backgrounds=tuple(
            AccuracyByBackgrounds(number, accuracy)
            for number, accuracy in expected_accuracy(tallied.turning, total, steps(total))
        ),
        by_class=tuple(by_class),
        strongest=tuple(
            background
            for one in by_class
            for background in _strongest(tallied, grid.backgrounds, one.label, one.foregrounds)
        ),
    )


def _measure_class(
    tallied: GridTally, backgrounds: GridAxis, label: int, name: str
) -> FooledClass | None:
    """Measures the backgrounds of one class; returns None if the class has no backgrounds, or if
    there are no foregrounds of other classes."""
    count = int((backgrounds.labels == label).sum())
    share = fooled_by_class(tallied, label)
    if not count or share.value is None:
        return None
    return FooledClass(label, name, count, share.n, share.value)


def _strongest(
    tallied: GridTally, backgrounds: GridAxis, label: int, foregrounds: int
) -> Iterator[StrongestBackground]:
    for position in strongest(tallied, backgrounds.keys, backgrounds.labels, label):
        yield StrongestBackground(
            label=label,
            bg_key=backgrounds.keys[position],
            bg_wnid=backgrounds.wnids[position],
            success=int(tallied.successes[position]) / foregrounds,
            foregrounds=foregrounds,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class AttackedModel:
    """A model whose chunks are all done.

    Attributes:
      dataset: the dataset.
      plan: settings of the attack.
      grid: grid of the attack.
      run: the model, and how it was run.
      paths: paths of the files of all chunks, in order of the chunks.
    """

    dataset: Dataset
    plan: AttackPlan
    grid: AttackGrid
    run: ModelRun
    paths: tuple[str, ...]

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
    chunk_folder = f"results/{attacked.run.folder}/{grid_name(grid, plan)}"
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
    attack = pick(
        AttackResult,
        attacked.run,
        evaluation=msgspec.structs.replace(attacked.run.evaluation, device=attacked.devices),
        of=split_fingerprint(attacked.dataset, split, ATTACK_VARIANTS),
        split=split,
        foregrounds=len(grid.foregrounds),
        backgrounds=len(grid.backgrounds),
        full_grid=grid.is_full,
        early_stop=early_stop,
        forwards=next(iter(tallies.values())).tried,
        backgrounds_file=backgrounds_file,
        rules={
            rule: measure_rule(tallied, grid, taxonomy, early_stop=early_stop)
            for rule, tallied in tallies.items()
        },
    )
    write_result(store, result_file(attacked.run.folder, "attack"), attack)
    for path in list(store.walk(f"results/{attacked.run.folder}/attack")):
        name, folder = os.path.basename(path), os.path.dirname(path)
        if path in (backgrounds_file, *attacked.paths) or not name.startswith(f"{split}-"):
            continue
        metadata = read_metadata(store, path)
        is_current = metadata is not None and metadata.fingerprint.startswith(f"{shared}-")
        if not is_current or folder == chunk_folder:
            store.delete(path)
