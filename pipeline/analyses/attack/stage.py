"""The attack stage: predictions of models on the pairs of a grid, one file for each chunk.

A chunk is a few foregrounds paired with all backgrounds. Its file records a fingerprint of weights,
pixels, grid and evaluation settings, so a chunk is not computed again while these are the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Generator, Mapping, Sequence
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
    UNTRIED,
    Grid,
    GridTally,
    Labels,
    Strengths,
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
      early_stop: whether a foreground is dropped as soon as a background has turned its prediction
        wrong.
    """

    stage = "attack"
    refuses_overlap = True

    foregrounds: int | None
    backgrounds: int | None
    early_stop: bool = False
    _grids: dict[str, AttackGrid] = dataclasses.field(default_factory=dict, init=False)

    def _grid(self, dataset: Dataset) -> AttackGrid:
        """Returns the grid, built once for all models, because building reads the whole index."""
        of = dataset.manifest.fingerprint
        if of not in self._grids:
            size = self.foregrounds, self.backgrounds
            self._grids = {of: open_grid(dataset, self.evaluation, *size, self.early_stop)}
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
    def blocks(self, dataset: Dataset) -> int:
        """Returns 1 for an early stop, unless the number is given.

        The results of an early stop depend on the number, and must not depend on the runner.
        """
        if self.early_stop:
            return self.evaluation.blocks or 1
        return super().blocks(dataset)

    @override
    def for_model(self, dataset: Dataset, run: ModelRun) -> AttackChunks:
        return AttackChunks(dataset.store, dataset, self, self._grid(dataset), run)

    @override
    def summarize(self, dataset: Dataset, run: ModelRun, entry: str) -> None:
        """Also writes the table of backgrounds.

        Removes files of the split that were computed from other pixels or weights, and files of
        this grid that it no longer needs.
        """
        store, grid, work = dataset.store, self._grid(dataset), self.for_model(dataset, run)
        split, taxonomy = run.evaluation.split, dataset.taxonomy
        paths = list(map(work.path, grid.chunks))
        tallies, devices = tally_chunks(store, paths, grid.backgrounds.labels, taxonomy.num_labels)
        chunk_folder = f"results/{run.folder}/{grid_name(grid, self)}"
        backgrounds_file = f"{chunk_folder}/{split}-backgrounds.parquet"
        of_chunks = fingerprint([work.fingerprint(chunk) for chunk in grid.chunks])
        expected = f"{work.shared_fingerprint}-{of_chunks}"
        metadata = read_metadata(store, backgrounds_file)
        if metadata is None or metadata.fingerprint != expected:
            write_table(
                store,
                backgrounds_file,
                background_table(grid, None if self.early_stop else tallies),
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
            early_stop=self.early_stop,
            forwards=next(iter(tallies.values())).tried,
            backgrounds_file=backgrounds_file,
            rules={
                rule: measure_rule(tallied, grid, taxonomy, early_stop=self.early_stop)
                for rule, tallied in tallies.items()
            },
        )
        write_result(store, result_file(run.folder, "attack"), attack)
        for path in list(store.walk(f"results/{run.folder}/attack")):
            name, folder = os.path.basename(path), os.path.dirname(path)
            if path in (backgrounds_file, *paths) or not name.startswith(f"{split}-"):
                continue
            metadata = read_metadata(store, path)
            is_current = metadata is not None and metadata.fingerprint.startswith(
                f"{work.shared_fingerprint}-"
            )
            if not is_current or folder == chunk_folder:
                store.delete(path)


@dataclasses.dataclass(eq=False)
class AttackChunks(AnalysisOfModel):
    """Predictions of a model on the chunks of a grid."""

    dataset: Dataset
    plan: PlannedAttack
    grid: AttackGrid
    model: ModelRun

    @override
    def path(self, chunk: int) -> str:
        name = grid_name(self.grid, self.plan)
        return result_shard(self.model.folder, name, self.model.evaluation.split, chunk)

    @functools.cached_property
    def shared_fingerprint(self) -> str:
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
        """Returns two fingerprints in one: of model and pixels, and of settings and chunk."""
        evaluation, grid = self.plan.evaluation, self.grid
        own_fingerprint = fingerprint(
            evaluation.predict.identity,
            [len(grid.foregrounds), len(grid.backgrounds), grid.chunk_size, chunk],
            # With an early stop, the order of backgrounds depends on earlier chunks of the block.
            (evaluation.blocks or 1) if self.plan.early_stop else None,
            # If groups of images change, other images may be held out, although their number stays
            # the same.
            *([grid.foregrounds.keys, grid.backgrounds.keys] if evaluation.holdout else []),
        )
        return f"{self.shared_fingerprint}-{own_fingerprint}"

    @override
    def run(
        self, predictor: Predictor, chunks: Sequence[int], missing: Sequence[int], note: NoteDone
    ) -> Generator[ChunkOutput, None, None]:
        """Also reads done chunks if it stops early, to learn which backgrounds to try first."""
        # Imported here, so that only machines that attack wait for torch.
        from pipeline.analyses.attack.arrays import (
            GridModel,
            load_backgrounds,
            stop_early,
            stream_cutouts,
            try_all,
        )
        from pipeline.models.predict import lagging

        grid, device, batch_size = self.grid, predictor.device, predictor.batch_size
        split, early_stop = self.model.evaluation.split, self.plan.early_stop
        outputs = labels_of_outputs(self.model.num_outputs, self.dataset.taxonomy)
        backgrounds = load_backgrounds(self.dataset, split, grid.backgrounds, device)
        composed = GridModel(predictor, outputs, backgrounds)
        strengths = Strengths(len(grid.backgrounds))
        stream = stream_cutouts(self.dataset, split, grid, missing, device)

        def foregrounds_of(chunk: int) -> GridAxis:
            return grid.foregrounds.take(grid.positions(chunk))

        def output(chunk: int, predictions: Grid) -> ChunkOutput:
            note(chunk, int((predictions[0] != UNTRIED).sum()), 0)
            return ChunkOutput(chunk, chunk_table(foregrounds_of(chunk), predictions, device.type))

        def launch(chunk: int) -> tuple[int, Callable[[], Grid]]:
            size = (len(grid.positions(chunk)), len(grid.backgrounds))
            note_pairs = functools.partial(note, chunk, 0)
            return chunk, try_all(composed, next(cutouts), size, batch_size, note_pairs)

        # The next chunk is decoded while the device works.
        with contextlib.closing(InBackground(stream, 1)) as ahead:
            cutouts = iter(ahead)

            if early_stop:
                before: tuple[Grid, Labels] | None = None
                for chunk in chunks:
                    labels, order = foregrounds_of(chunk).labels, strengths.strongest_first()
                    # Added after the order is known: the order that stored results have.
                    if before:
                        strengths.add(*before)
                    if chunk in missing:
                        note_pairs = functools.partial(note, chunk, 0)
                        predictions = stop_early(
                            composed, next(cutouts), labels, order, batch_size, note_pairs
                        )
                        yield output(chunk, predictions)
                    else:
                        predictions = predictions_of(read_table(self.store, self.path(chunk)))[0]
                    before = predictions, labels
                return
            # A GPU never waits, because the next chunk is launched before one is fetched.
            for chunk, fetch in lagging(map(launch, missing), device):
                yield output(chunk, fetch())


def grid_name(grid: AttackGrid, plan: PlannedAttack) -> str:
    """Returns the name of the folder that holds a grid's chunks, for `result_shard`."""
    size = f"{len(grid.foregrounds)}x{len(grid.backgrounds)}"
    return f"attack/{size}" + ("-early_stop" if plan.early_stop else "")


def chunk_table(foregrounds: GridAxis, predictions: Grid, device: str) -> pa.Table:
    """Builds a chunk's table from (rules, F, B) int16 predictions for its F foregrounds."""
    offsets = np.arange(len(foregrounds) + 1, dtype=np.int32) * predictions.shape[2]
    lists = [
        pa.ListArray.from_arrays(offsets, pa.array(values, mask=values == UNTRIED))
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
        .fill_null(UNTRIED)
        .to_numpy(zero_copy_only=False)
        .astype(np.int16)
        .reshape(len(table), -1)
        for rule in LABEL_RULES
    ]
    return np.stack(grids), table["label"].to_numpy().astype(np.int64)


def background_table(grid: AttackGrid, tallies: Mapping[str, GridTally] | None) -> pa.Table:
    """Builds the table of a grid's backgrounds.

    Its columns are key, label, wnid, the number of foregrounds of other classes, and for each label
    rule the number of these foregrounds for which the model predicts the background's class (null
    without tallies).
    """
    backgrounds = grid.backgrounds
    unknown = [None] * len(backgrounds)
    return pa.table(
        {
            "bg_key": pa.array(backgrounds.keys),
            "bg_label": pa.array(backgrounds.labels, pa.int64()),
            "bg_wnid": pa.array(backgrounds.wnids),
            "foregrounds": foregrounds_of_others(grid.foregrounds.labels, backgrounds.labels),
            **{
                rule: pa.array(tallies[rule].successes if tallies else unknown, pa.int64())
                for rule in LABEL_RULES
            },
        }
    )


def measure_rule(
    tallied: GridTally, grid: AttackGrid, taxonomy: Taxonomy, *, early_stop: bool
) -> AttackMeasures:
    """Computes the measures under one label rule."""
    robust = challenge_accuracy(tallied, grid.units)
    challenge = (robust.value, robust.low, robust.high)
    if early_stop:
        return AttackMeasures(*challenge, None, None, None, (), (), ())
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
