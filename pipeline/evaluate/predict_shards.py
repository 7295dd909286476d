"""Predicts the pictures of output shards with a model.

Predictions are stored in one file for each shard. Each row holds a fingerprint of what it was
computed from, such as weights, evaluation settings, and the file that holds the picture. Rows whose
inputs have not changed are kept, so after a new variant is added, only its pictures are predicted.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from typing_extensions import override

from pipeline.dataset.folder import Dataset
from pipeline.evaluate.planned import AnalysisOfModel, ChunkOutput, NoteDone
from pipeline.evaluate.predictions import (
    PROBED_VARIANT,
    keys_to_keep,
    of_both,
    prediction_file,
    prediction_fingerprints,
    tested_keys,
)
from pipeline.evaluate.results import (
    LIBRARIES,
    PREDICTION_SCHEMA,
    ModelRun,
    pick,
    result_file,
    write_result,
)
from pipeline.evaluate.summary import Evaluated
from pipeline.runtime.progress import count
from pipeline.storage.interface import read_ahead
from pipeline.storage.state_files import read_intact, read_table
from pipeline.storage.store import FileDigest, Store
from transforms.hashing import fingerprint
from transforms.scoring import (
    PAPER_RULE,
    RULES_OF_ANSWERS,
    Labels,
    Scores,
    labels_of_answers,
)
from transforms.variants import VariantName

if TYPE_CHECKING:
    import torch

    from pipeline.evaluate.on_device import RulesOnDevice
    from pipeline.models.loader import Batch
    from pipeline.models.predict import Predictor

CHECKPOINT_SECONDS = 3.0
"""The most seconds of work on a shard after which the predictions so far are written, so that
little is lost if the process is killed. In the first minute, it is a twentieth of the time so far,
but at least half a second."""
_SHARDS_AHEAD = 2
"""Number of shards whose index and earlier predictions are read in advance."""
_MAX_PENDING_BATCHES = 2
"""The most batches of logits that wait to be scored."""
_COLUMNS = ("key", "label", "fg_key", "bg_key")


@dataclasses.dataclass(frozen=True)
class ShardPictures:
    """Pictures of a variant in an output shard: a `pipeline.models.loader.PictureSet`.

    Its rows have the columns key, label, fg_key and bg_key.
    """

    dataset: Dataset
    split: str
    shard: int
    variant: VariantName
    keys: frozenset[str] | None = None

    @property
    def name(self) -> str:
        return fingerprint(
            [file.sha256 for file in self.files], None if self.keys is None else sorted(self.keys)
        )

    @property
    def count(self) -> int:
        return (
            sum(file.samples or 0 for file in self.files) if self.keys is None else len(self.keys)
        )

    @property
    def files(self) -> list[FileDigest]:
        """The file that holds the pictures; none if the shard is empty."""
        return self.dataset.shard_files(self.split, self.shard, (self.variant,))

    def tables(self, columns: tuple[str, ...]) -> Generator[pa.Table, None, None]:
        wanted = None if self.keys is None else pa.array(sorted(self.keys), pa.string())
        tables = self.dataset.tables(self.split, self.shard, self.variant, (*_COLUMNS, *columns))
        with contextlib.closing(tables):
            for table in tables:
                yield table if wanted is None else table.filter(pc.is_in(table["key"], wanted))

    def rows(self) -> pa.Table | None:
        """Returns all rows, without pixels; None if there are none."""
        with contextlib.closing(self.tables(())) as reading:
            tables = [table for table in reading if len(table)]
        return pa.concat_tables(tables) if tables else None


class AnsweredRows(NamedTuple):
    """Pictures that were answered without being decoded, in place of a loader's `Batch`."""

    pictures: ShardPictures
    rows: pa.Table
    is_new: bool = False


class NoDevice(NamedTuple):
    """Stands for the `torch.device` of a model that has answered somewhere else."""

    type: str = ""


class Scorer(Protocol):
    """A source of answers: a `Predictor`, or an object that has or computes them otherwise."""

    @property
    def device(self) -> torch.device | NoDevice:
        """The device that pictures go through a network on."""

    def logits(
        self, sets: Iterable[ShardPictures], stored: int
    ) -> Generator[
        tuple[Batch[ShardPictures] | AnsweredRows, NDArray[Any] | dict[str, Scores]], None, None
    ]:
        """Yields the batches of sets with their answers, like `Predictor.logits`.

        The answers are logits, or of another kind, which `ModelRun.answers` names; or their scores
        by label rule.
        """


@dataclasses.dataclass(frozen=True)
class RowsScorer:
    """A `Scorer` that needs no pixels, such as one that has the answers of a model elsewhere.

    Attributes:
      answers: takes some pictures and the keys of their rows, in order; returns the answers to the
        rows.
    """

    answers: Callable[[ShardPictures, list[str]], NDArray[Any]]
    device: torch.device | NoDevice = NoDevice()  # noqa: RUF009

    def logits(
        self, sets: Iterable[ShardPictures], stored: int
    ) -> Generator[tuple[AnsweredRows, NDArray[Any]], None, None]:
        """Yields all pictures of each set as one batch, with their answers."""
        for pictures in sets:
            if (rows := pictures.rows()) is not None:
                answers = self.answers(pictures, rows["key"].to_pylist())
                yield AnsweredRows(pictures, rows), answers


class GpuScorer:
    """A `Scorer` that computes scores on a GPU.

    Its answers are logits where these are kept, and else scores by label rule. Their sums may
    differ in the last bits from those of a host.
    """

    def __init__(self, predictor: Predictor, rules: RulesOnDevice) -> None:
        self.device = predictor.device
        self._predictor, self._rules = predictor, rules

    def logits(
        self, sets: Iterable[ShardPictures], stored: int
    ) -> Generator[tuple[Batch[ShardPictures], Any], None, None]:
        for batch, values in self._predictor.logits(sets, stored, self._reduce):
            is_kept = batch.pictures.variant == PROBED_VARIANT
            yield batch, values if is_kept else self._rules.fetched_scores(values)

    def _reduce(self, batch: Batch[ShardPictures], logits: torch.Tensor) -> torch.Tensor:
        if batch.pictures.variant == PROBED_VARIANT:
            return logits
        labels = batch.rows["label"].to_numpy().astype("int64")
        return self._rules.scores(logits, self._predictor.to_device(labels))


class PredictShards(AnalysisOfModel):
    """Predictions of a model on output shards.

    Args:
      store: the dataset folder that predictions are written to; None for the folder of `dataset`.
      reuse: whether to keep valid rows of an earlier file. A call does not, because its model's
        code is not part of its identity.
    """

    def __init__(
        self, dataset: Dataset, run: ModelRun, store: Store | None = None, *, reuse: bool = True
    ) -> None:
        super().__init__(store or dataset.store)
        self._dataset, self._run, self._reuse = dataset, run, reuse
        # Fingerprints by variant, which are computed once for each shard.
        self._by_variant = functools.cache(functools.partial(prediction_fingerprints, dataset, run))

    @override
    def path(self, chunk: int) -> str:
        return prediction_file(self._run, chunk)

    @override
    def fingerprint(self, chunk: int) -> str:
        return fingerprint([(str(name), of) for name, of in self._by_variant(chunk).items()])

    @override
    def run(
        self, predictor: Scorer, chunks: Sequence[int], missing: Sequence[int], note: NoteDone
    ) -> Generator[ChunkOutput, None, None]:
        """Keeps an earlier file's rows that are still valid; predicts only the other pictures."""
        side = self._dataset.manifest.config.segment.image_size
        started: collections.deque[_ShardInProgress] = collections.deque()
        scorer = self._on_device(predictor)

        def picture_sets() -> Iterator[ShardPictures]:
            start = functools.partial(
                self._start, device=predictor.device.type, on_gpu=scorer is not predictor
            )
            with contextlib.closing(read_ahead(start, missing, _SHARDS_AHEAD)) as shards:
                for number, shard in shards:
                    started.append(shard)
                    for kept in shard.kept.values():
                        note(number, 0, len(kept) // len(RULES_OF_ANSWERS[self._run.answers]))
                    yield from shard.picture_sets()

        with (
            contextlib.closing(scorer.logits(picture_sets(), side)) as batches,
            # This thread computes scores and tables while the device runs the next batch.
            ThreadPoolExecutor(1) as pool,
        ):
            pending: collections.deque[Future[None]] = collections.deque()
            began = since = time.monotonic()
            for batch, answers in batches:
                while started[0].number != batch.pictures.shard:
                    yield started.popleft().complete_output(pending)
                    since = time.monotonic()
                pending.append(
                    pool.submit(started[0].add, batch.pictures.variant, batch.rows, answers)
                )
                if len(pending) > _MAX_PENDING_BATCHES:
                    pending.popleft().result()
                count("pictures_decoded", len(batch.rows) if batch.is_new else 0)
                note(batch.pictures.shard, len(batch.rows), len(batch.rows))
                share = min(1.0, max(10.0, time.monotonic() - began) / 60)
                if time.monotonic() - since > share * CHECKPOINT_SECONDS:
                    # What was added so far, without waiting for the pending batches.
                    yield ChunkOutput(started[0].number, started[0].table(), is_complete=False)
                    since = time.monotonic()
            while started:
                yield started.popleft().complete_output(pending)

    @functools.cached_property
    def _outputs(self) -> Labels:
        """Superclasses of the model's answers."""
        run = self._run
        return labels_of_answers(run.answers, run.num_outputs, self._dataset.taxonomy)

    def _on_device(self, scorer: Scorer) -> Scorer:
        """Returns a source of scores for a network on a GPU; any other source as it is."""
        if scorer.device.type == "cuda":
            from pipeline.evaluate.on_device import RulesOnDevice
            from pipeline.models.predict import Predictor

            if isinstance(scorer, Predictor):
                return GpuScorer(scorer, RulesOnDevice(scorer, self._outputs))
        return scorer

    def _start(self, number: int, device: str, on_gpu: bool) -> _ShardInProgress:
        run = self._run
        tested = tested_keys(self._dataset, run, number)
        shards = self._dataset.shards(run.evaluation.split)
        return _ShardInProgress(
            self._dataset,
            run,
            number,
            device,
            fingerprints={
                variant: of_both(of)[on_gpu and variant != PROBED_VARIANT]
                for variant, of in self._by_variant(number).items()
            },
            kept=self._read_kept(number),
            tested={name: self.keys_with(name, tested) for name in self._by_variant(number)},
            probed=pa.array(sorted(keys_to_keep(tested, len(shards))), pa.string()),
            outputs=self._outputs,
            tables={variant: [] for variant in self._by_variant(number)},
        )

    def keys_with(self, variant: VariantName, tested: frozenset[str]) -> frozenset[str]:
        """Returns those of the tested images of a shard that have a picture of a variant."""
        return tested

    def _read_kept(self, shard: int) -> dict[VariantName, pa.Table]:
        """Reads, by variant, the valid predictions of an earlier, perhaps killed, evaluation."""
        path = self.path(shard)
        table = read_intact(self.store, path, lambda: read_table(self.store, path))
        if not self._reuse or table is None or not table.schema.equals(PREDICTION_SCHEMA):
            return {}
        tables = {
            variant: table.filter(pc.is_in(table["of"], pa.array(of_both(of))))
            for variant, of in self._by_variant(shard).items()
        }
        return {variant: rows for variant, rows in tables.items() if len(rows)}


@dataclasses.dataclass(frozen=True, eq=False)
class _ShardInProgress:
    """The predictions of a shard while they are computed.

    Attributes:
      device: type of the device that the model runs on, such as `cuda`.
      fingerprints: values of the column `of` by variant, from `prediction_fingerprints`.
      kept: by variant, the predictions of an earlier evaluation that are still valid.
      probed: keys of the images whose logits on backgrounds are stored.
      tested: by variant, the keys of the images to test on.
      outputs: superclasses of the model's answers, from `labels_of_answers`.
      tables: by variant, the predictions that were added so far.
    """

    dataset: Dataset
    run: ModelRun
    number: int
    device: str
    fingerprints: Mapping[VariantName, str]
    kept: Mapping[VariantName, pa.Table]
    tested: Mapping[VariantName, frozenset[str]]
    probed: pa.StringArray
    outputs: Labels
    tables: dict[VariantName, list[pa.Table]]

    def picture_sets(self) -> Iterator[ShardPictures]:
        """Yields pictures to predict by variant, so that batches depend on no other variant."""
        settings = self.run.evaluation
        for variant in self.fingerprints:
            keys = every = self.tested[variant]
            if variant in self.kept:
                # A killed run may have left only the first batches of a variant.
                keys = keys.difference(self.kept[variant]["key"].to_pylist())
            if keys:
                yield ShardPictures(
                    self.dataset,
                    settings.split,
                    self.number,
                    variant,
                    None if keys == every and not settings.holdout else keys,
                )

    def add(
        self, variant: VariantName, rows: pa.Table, answers: NDArray[Any] | dict[str, Scores]
    ) -> None:
        """Scores a batch under each label rule, and adds its predictions.

        `rows` describe n pictures, with the columns of `ShardPictures`. `answers` are (n, outputs)
        float32 logits, or (n,) int64 outputs or labels, as the run says; or scores by label rule.
        """
        labels = rows["label"].to_numpy()
        no_logits = pa.nulls(len(rows), PREDICTION_SCHEMA.field("logits").type)
        constants = {
            "model": self.run.model,
            "variant": str(variant),
            "of": self.fingerprints[variant],
            "device": self.device,
        }
        logits = None
        if isinstance(answers, dict):
            by_rule = answers
        else:
            rules = RULES_OF_ANSWERS[self.run.answers].items()
            by_rule = {rule: score(answers, labels, self.outputs) for rule, score in rules}
            logits = answers if variant == PROBED_VARIANT and answers.ndim == 2 else None
        tables = []
        for rule, scores in by_rule.items():
            columns = {
                **{name: pa.repeat(value, len(rows)) for name, value in constants.items()},
                "label_rule": pa.repeat(rule, len(rows)),
                **{name: rows[name] for name in _COLUMNS},
                "prediction": scores.prediction,
                "output": scores.output,
                "correct": scores.prediction == labels,
                # NaN, a score without logits, becomes null.
                "top1_score": pa.array(scores.top1, from_pandas=True),
                "true_score": pa.array(scores.true, from_pandas=True),
                "logits": no_logits,
            }
            if rule == PAPER_RULE and logits is not None:
                is_kept = pc.is_in(rows["key"], self.probed).to_numpy() & (scores.output >= 0)
                kept = [row if keep else None for row, keep in zip(logits, is_kept, strict=True)]
                columns["logits"] = pa.array(kept, no_logits.type)
            table = pa.table(columns).select(PREDICTION_SCHEMA.names)
            tables.append(table.cast(PREDICTION_SCHEMA))
        self.tables[variant] += tables

    def complete_output(self, pending: Iterable[Future[None]]) -> ChunkOutput:
        """Waits for the pending batches, and returns all predictions of the shard."""
        for batch in pending:
            batch.result()
        return ChunkOutput(self.number, self.table())

    def table(self) -> pa.Table:
        """Returns the kept predictions and those that were added so far.

        The file's bytes do not depend on which rows were kept from an earlier evaluation.
        """
        tables = [PREDICTION_SCHEMA.empty_table()]
        for variant, new in self.tables.items():
            tables += [self.kept[variant]] if variant in self.kept else []
            tables += new
        columns = [
            # Dictionaries are encoded again, because they still hold values of rows that were
            # dropped.
            column.cast(pa.string()).combine_chunks().dictionary_encode()
            if pa.types.is_dictionary(column.type)
            else column.combine_chunks()
            for column in pa.concat_tables([t.replace_schema_metadata() for t in tables]).columns
        ]
        return pa.Table.from_arrays(columns, schema=PREDICTION_SCHEMA)


def commit_predictions(
    shards: PredictShards, chunks: Sequence[int], run: ModelRun, **values: object
) -> None:
    """Writes model.json, which says that all predictions of the model exist; removes stale files.

    The arguments are those of `describe_predictions`.
    """
    store, content = shards.store, describe_predictions(shards, chunks, run, **values)
    write_result(store, result_file(run.folder, "model"), content)
    store.delete_all(
        set(store.walk(f"results/{run.folder}/predictions")).difference(map(shards.path, chunks))
    )


def describe_predictions(
    shards: PredictShards, chunks: Sequence[int], run: ModelRun, **values: object
) -> Evaluated:
    """Returns the content of model.json."""
    return pick(
        Evaluated,
        run,
        libraries={name: version(name) for name in LIBRARIES},
        predictions=fingerprint([shards.fingerprint(chunk) for chunk in chunks]),
        **values,
    )
