"""The attack stage: predictions of models on the pairs of a grid, one file for each chunk.

A chunk is a few foregrounds paired with all backgrounds. Its file records a fingerprint of weights,
pixels, grid and evaluation settings, so a chunk is not computed again while these are the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pyarrow as pa
from typing_extensions import override

from pipeline.analyses.attack.results import (
    ATTACK_VARIANTS,
    CHUNK_SCHEMA,
    AccuracyByBackgrounds,
    AttackGrid,
    AttackMeasures,
    AttackResult,
    FooledClass,
    GridAxis,
    StrongestBackground,
    open_grid,
)
from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import read_metadata, write_table
from pipeline.evaluate.planned import AnalysisOfModel, ChunkOutput, NoteDone, PlannedAnalysis
from pipeline.evaluate.predictions import split_fingerprint
from pipeline.evaluate.results import ModelRun, pick, result_file, result_shard, write_result
from pipeline.storage.interface import InBackground
from pipeline.storage.state_files import read_table
from pipeline.storage.store import Store
from transforms.adversarial import (
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
from transforms.hashing import fingerprint
from transforms.scoring import LABEL_RULES, labels_of_outputs
from transforms.taxonomy import Taxonomy

if TYPE_CHECKING:
    from pipeline.models.predict import Predictor

ATTACK_VERSION = 3
"""Raised by hand when Attack would write other predictions for the same pixels."""


@dataclasses.dataclass(eq=False)
class PlannedAttack(PlannedAnalysis):
    """The stage that predicts foregrounds on all backgrounds, in chunks.

    Attributes:
      foregrounds, backgrounds: number of images to sample as foregrounds and as backgrounds; None
        for all images.
    """

    stage = "attack"
    refuses_overlap = True

    foregrounds: int | None
    backgrounds: int | None
    _grids: dict[str, AttackGrid] = dataclasses.field(default_factory=dict, init=False)

    def _grid(self, dataset: Dataset) -> AttackGrid:
        """Returns the grid, built once for all models, because building reads the whole index."""
        of = dataset.manifest.fingerprint
        if of not in self._grids:
            size = self.foregrounds, self.backgrounds
            self._grids = {of: open_grid(dataset, self.evaluation, *size)}
        return self._grids[of]

    @override
    def chunks(self, dataset: Dataset) -> Sequence[int]:
        return self._grid(dataset).chunks

    @override
    def size(self, dataset: Dataset, chunk: int) -> int:
        """Counts composites."""
        grid = self._grid(dataset)
        return len(grid.positions(chunk)) * len(grid.backgrounds)

    @override
    def for_model(self, dataset: Dataset, run: ModelRun) -> AttackChunks:
        return AttackChunks(dataset.store, dataset, self, self._grid(dataset), run)

    @override
    def summarize(self, dataset: Dataset, run: ModelRun, entry: str) -> None:
        paths = [*map(self.for_model(dataset, run).path, self.chunks(dataset))]
        write_attack(dataset, self, self._grid(dataset), run, paths)


@dataclasses.dataclass(eq=False)
class AttackChunks(AnalysisOfModel):
    """Predictions of a model on the chunks of a grid."""

    dataset: Dataset
    plan: PlannedAttack
    grid: AttackGrid
    model: ModelRun

    @override
    def path(self, chunk: int) -> str:
        name = grid_name(self.grid)
        return result_shard(self.model.folder, name, self.model.evaluation.split, chunk)

    @functools.cached_property
    def _shared_fingerprint(self) -> str:
        """Fingerprint of the model and all pixels that are read, on which every chunk depends."""
        split = self.model.evaluation.split
        return fingerprint(
            *self.model.identity,
            [
                file.sha256
                for shard in self.dataset.shards(split)
                for file in self.dataset.shard_files(split, shard, ATTACK_VARIANTS)
            ],
            ATTACK_VERSION,
            *self.dataset.custom_taxonomy,
        )

    @override
    def fingerprint(self, chunk: int) -> str:
        """Returns two fingerprints in one: of model and pixels, and of settings and chunk.

        `write_attack` compares the first by itself.
        """
        evaluation, grid = self.plan.evaluation, self.grid
        own_fingerprint = fingerprint(
            evaluation.predict.identity,
            [len(grid.foregrounds), len(grid.backgrounds), grid.chunk_size, chunk],
            None,  # Stands for a setting that is gone, so that earlier predictions stay valid.
            # If groups of images change, other images may be held out, although their number stays
            # the same.
            *([grid.foregrounds.keys, grid.backgrounds.keys] if evaluation.holdout else []),
        )
        return f"{self._shared_fingerprint}-{own_fingerprint}"

    @override
    def run(
        self, predictor: Predictor, chunks: Sequence[int], missing: Sequence[int], note: NoteDone
    ) -> Generator[ChunkOutput, None, None]:
        # Imported here, so that only machines that attack wait for torch.
        from pipeline.analyses.attack.arrays import (
            GridModel,
            load_backgrounds,
            stream_cutouts,
            try_all,
        )
        from pipeline.models.predict import IN_FLIGHT

        grid, device, batch_size = self.grid, predictor.device, predictor.batch_size
        split = self.model.evaluation.split
        outputs = labels_of_outputs(self.model.num_outputs, self.dataset.taxonomy)
        backgrounds = load_backgrounds(self.dataset, split, grid.backgrounds, device)
        composed = GridModel(predictor, outputs, backgrounds)
        stream = stream_cutouts(self.dataset, split, grid, missing, device)

        launched: deque[tuple[int, Callable[[], Grid]]] = deque()

        def finish(at_most: int) -> Iterator[ChunkOutput]:
            while len(launched) > at_most:
                chunk, fetch = launched.popleft()
                predictions = fetch()
                foregrounds = grid.foregrounds.take(grid.positions(chunk))
                note(chunk, predictions[0].size, 0)
                yield ChunkOutput(chunk, chunk_table(foregrounds, predictions, device.type))

        # The next chunk is decoded while the device works.
        with contextlib.closing(InBackground(stream, 1)) as ahead:
            cutouts = iter(ahead)

            for chunk in missing:
                size = (len(grid.positions(chunk)), len(grid.backgrounds))
                note_pairs = functools.partial(note, chunk, 0)
                try:
                    fetch = try_all(composed, next(cutouts), size, batch_size, note_pairs)
                except Exception:
                    # What was done before the failure is kept.
                    yield from finish(0)
                    raise
                launched.append((chunk, fetch))
                # A GPU never waits, because the next chunk is launched before one is fetched.
                yield from finish(IN_FLIGHT[device.type])
            yield from finish(0)


def grid_name(grid: AttackGrid) -> str:
    """Returns the name of the folder that holds a grid's chunks, for `result_shard`."""
    return f"attack/{len(grid.foregrounds)}x{len(grid.backgrounds)}"


def chunk_table(foregrounds: GridAxis, predictions: Grid, device: str) -> pa.Table:
    """Builds a chunk's table from (rules, F, B) int16 predictions for its F foregrounds."""
    offsets = np.arange(len(foregrounds) + 1, dtype=np.int32) * predictions.shape[2]
    lists = [
        pa.ListArray.from_arrays(offsets, pa.array(values))
        for values in predictions.reshape(len(predictions), -1)
    ]
    devices = pa.repeat(device, len(foregrounds)).dictionary_encode()
    labels = pa.array(foregrounds.labels, pa.int64())
    columns = [pa.array(foregrounds.keys), labels, *lists, devices]
    return pa.Table.from_arrays(columns, schema=CHUNK_SCHEMA)


def predictions_of(table: pa.Table) -> tuple[Grid, Labels]:
    """Returns a chunk's (rules, F, B) int16 predictions and its foregrounds' (F,) int64 labels."""
    grids = [
        table[rule]
        .combine_chunks()
        .flatten()
        .to_numpy(zero_copy_only=False)
        .astype(np.int16)
        .reshape(len(table), -1)
        for rule in LABEL_RULES
    ]
    return np.stack(grids), table["label"].to_numpy().astype(np.int64)


def background_table(grid: AttackGrid, tallies: Mapping[str, GridTally]) -> pa.Table:
    """Builds the table of a grid's backgrounds.

    Its columns are key, label, wnid, the number of foregrounds of other classes, and for each label
    rule the number of these foregrounds for which the model predicts the background's class.
    """
    backgrounds = grid.backgrounds
    return pa.table(
        {
            "bg_key": pa.array(backgrounds.keys),
            "bg_label": pa.array(backgrounds.labels, pa.int64()),
            "bg_wnid": pa.array(backgrounds.wnids),
            "foregrounds": foregrounds_of_others(grid.foregrounds.labels, backgrounds.labels),
            **{rule: pa.array(tallies[rule].successes, pa.int64()) for rule in LABEL_RULES},
        }
    )


def measure_rule(tallied: GridTally, grid: AttackGrid, taxonomy: Taxonomy) -> AttackMeasures:
    """Computes the measures under one label rule."""
    robust = challenge_accuracy(tallied, grid.units)
    challenge = (robust.value, robust.low, robust.high)
    share, backgrounds, total = fooled(tallied, grid.units), grid.backgrounds, len(grid.backgrounds)
    by_class = [
        one
        for label, name in enumerate(taxonomy.names)
        if (one := _measure_class(tallied, backgrounds, label, name))
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
            StrongestBackground(
                label=one.label,
                bg_key=backgrounds.keys[position],
                bg_wnid=backgrounds.wnids[position],
                success=int(tallied.successes[position]) / one.foregrounds,
                foregrounds=one.foregrounds,
            )
            for one in by_class
            for position in strongest(tallied, backgrounds.keys, backgrounds.labels, one.label)
        ),
    )


def _measure_class(
    tallied: GridTally, backgrounds: GridAxis, label: int, name: str
) -> FooledClass | None:
    """Measures a class's backgrounds; None without any, or without foregrounds of other classes."""
    count = int((backgrounds.labels == label).sum())
    share = fooled_by_class(tallied, label)
    if not count or share.value is None:
        return None
    return FooledClass(label, name, count, share.n, share.value)


def tally_chunks(
    store: Store, paths: Sequence[str], bg_labels: Labels, num_labels: int
) -> tuple[dict[str, GridTally], str]:
    """Tallies the predictions of chunks. Only one chunk is in memory at a time.

    Returns the tally by label rule, and the types of the devices that predicted, joined by `+`.
    `bg_labels` are (B,) int64.
    """
    tallies: dict[str, list[GridTally]] = {rule: [] for rule in LABEL_RULES}
    devices: set[str] = set()
    for path in paths:
        table = read_table(store, path)
        devices.update(table["device"].unique().to_pylist())
        grids, labels = predictions_of(table)
        for rule, grid in zip(LABEL_RULES, grids, strict=True):
            tallies[rule].append(tally(grid, labels, bg_labels, num_labels))
    return {rule: merge(each) for rule, each in tallies.items()}, "+".join(sorted(devices))


def write_attack(
    dataset: Dataset,
    plan: PlannedAttack,
    grid: AttackGrid,
    run: ModelRun,
    paths: Sequence[str],
) -> None:
    """Writes a model's attack.json and its table of backgrounds, from its files of chunks in order.

    Removes files of the split that were computed from other pixels or weights, and files of this
    grid that it no longer needs.
    """
    store, taxonomy = dataset.store, dataset.taxonomy
    tallies, devices = tally_chunks(store, paths, grid.backgrounds.labels, taxonomy.num_labels)
    split = plan.evaluation.split
    chunk_folder = f"results/{run.folder}/{grid_name(grid)}"
    backgrounds_file = f"{chunk_folder}/{split}-backgrounds.parquet"
    fingerprints = [
        metadata.fingerprint for path in paths if (metadata := read_metadata(store, path))
    ]
    # The first part of a chunk's fingerprint depends on model and pixels only; see
    # `AttackChunks.fingerprint`.
    shared = fingerprints[0].partition("-")[0]
    expected = f"{shared}-{fingerprint(fingerprints)}"
    metadata = read_metadata(store, backgrounds_file)
    if metadata is None or metadata.fingerprint != expected:
        write_table(
            store,
            backgrounds_file,
            background_table(grid, tallies),
            expected,
        )
    attack = pick(
        AttackResult,
        run,
        evaluation=msgspec.structs.replace(run.evaluation, device=devices),
        of=split_fingerprint(dataset, split, ATTACK_VARIANTS),
        split=split,
        foregrounds=len(grid.foregrounds),
        backgrounds=len(grid.backgrounds),
        full_grid=grid.is_full,
        early_stop=False,
        forwards=len(grid.foregrounds) * len(grid.backgrounds),
        backgrounds_file=backgrounds_file,
        rules={rule: measure_rule(tallied, grid, taxonomy) for rule, tallied in tallies.items()},
    )
    write_result(store, result_file(run.folder, "attack"), attack)
    for path in list(store.walk(f"results/{run.folder}/attack")):
        name, folder = os.path.basename(path), os.path.dirname(path)
        if path in (backgrounds_file, *paths) or not name.startswith(f"{split}-"):
            continue
        metadata = read_metadata(store, path)
        is_current = metadata is not None and metadata.fingerprint.startswith(f"{shared}-")
        if not is_current or folder == chunk_folder:
            store.delete(path)
