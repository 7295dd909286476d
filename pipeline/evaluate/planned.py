"""The models and settings of an evaluation, and the interface of a stage that runs models.

All such stages share the models and settings, and the code that loads models, finds missing chunks,
reports progress and writes files (`pipeline.evaluate.model_stage`). A chunk is what a model is run
on at a time, and whose results are one file, such as an output shard. A stage defines its chunks,
what it computes for each chunk, and how it summarizes a model at the end.
"""

from __future__ import annotations

import abc
import dataclasses
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import pyarrow as pa
from msgspec import UNSET, Struct, to_builtins

from pipeline.dataset.config import EVALUATE_VERSION
from pipeline.dataset.folder import Dataset, selected_rows
from pipeline.dataset.records import Row, read_metadata, write_table
from pipeline.errors import UsageError, escaped_line, escaped_texts
from pipeline.evaluate.predictions import evaluated_variants
from pipeline.evaluate.results import EvaluationSettings, ModelRun, RunSettings, Trained, pick
from pipeline.models.answers import (
    MISSING_ANSWERS,
    has_network,
    read_answers,
    refuse_other_dataset,
    refuse_unfit,
)
from pipeline.models.checkpoint import (
    PROBE,
    TrainedOn,
    encoder_of,
    encoder_of_head,
    head_file,
    metadata_of_entry,
)
from pipeline.models.identity import ModelIdentity, PredictConfig
from pipeline.runtime.machine import usable_cores
from pipeline.runtime.progress import Progress
from pipeline.storage.state_files import convert
from pipeline.storage.store import FileDigest, Store
from transforms.taxonomy import Taxonomy

if TYPE_CHECKING:
    from pipeline.models.predict import Predictor


class ModelFlags(Struct, frozen=True, kw_only=True):
    """Flags that choose models, and how they are run, besides those of `PredictConfig`.

    A field whose flag only some commands have has a default.
    """

    command: str
    models: tuple[str, ...] | None
    weights: str | None
    eval_split: str | None
    holdout: float
    overwrite: tuple[str, ...]
    gpu: str | None
    gpus: int | None
    dask: str | None
    pixel_cache: int | None = None
    allow_overlap: bool | None = None
    missing_answers: str = MISSING_ANSWERS[0]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The models to evaluate, and the settings to run them with.

    Attributes:
      models: entries of `--models`, in order.
      accept_new_weights: whether a model may run although earlier results under its name were made
        with other weights.
      weights: folder that `in9 models fetch` filled, which is preferred to an entry's own source of
        weights; None to use each entry's own source.
      blocks: number of blocks that the work on each model is divided into. Each block has one
        model on a device at a time, so there should be as many blocks as devices. None: as many as
        the work fills (`PlannedAnalysis.blocks`), for runners that distribute them over machines.
      hints: Beam's resource hints for the step that runs models, as (name, value); empty if it may
        run on the same machines as all other steps.
      has_machines: whether the workers have machines, or shares of machines, of their own.
      holdout: share of the images to test on (0 to 1), which training with the same share leaves
        out; 0 to test on all images.
      pixel_cache: most bytes of decoded pictures that a process keeps for the next model; None for
        a quarter of the machine's memory, divided by its number of workers.
      allow_overlap: whether a model may be tested on images that it was trained on.
      labels: label by name of the model, for models that have one.
      missing_answers: `refuse`, or `wrong` to count them as wrong.
    """

    store: Store
    models: tuple[str, ...]
    split: str
    predict: PredictConfig
    progress: Progress
    accept_new_weights: bool = False
    weights: str | None = None
    blocks: int | None = 1
    hints: tuple[tuple[str, str], ...] = ()
    has_machines: bool = False
    holdout: float = 0.0
    fit: tuple[str, float] | None = None
    pixel_cache: int | None = None
    allow_overlap: bool = False
    missing_answers: str = MISSING_ANSWERS[0]
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def entries(self) -> tuple[str, ...]:
        """The entries of `--models` as results record them, which is printable text."""
        return tuple(map(escaped_line, self.models))

    @property
    def threads(self) -> int:
        """Number of threads for each block.

        The blocks divide this machine's cores, unless they have machines of their own. There, the
        environment may say how many of them a worker uses.
        """
        cores, wanted = usable_cores(), os.environ.get("OMP_NUM_THREADS", "")
        if self.has_machines:
            return min(cores, max(1, int(wanted))) if wanted.isdecimal() else cores
        return max(1, cores // (self.blocks or 1))

    @property
    def settings(self) -> RunSettings:
        """The settings that tell two runs of the same model apart."""
        return RunSettings(
            split=self.split,
            holdout=self.holdout,
            precision=self.predict.arithmetic,
            eval_input=self.predict.eval_input,
        )

    def check_stored(self, why: str) -> None:
        """Raises UsageError, which says `why`, unless `--eval_input` is `stored`."""
        if self.predict.eval_input != "stored":
            raise UsageError(f"{why}; leave --eval_input {self.predict.eval_input} out")

    def rows(self, dataset: Dataset, shard: int | None = None) -> list[Row]:
        """Returns the index rows of the tested images, in one output shard or in all shards."""
        return selected_rows(dataset, self.split, self.holdout, shard)

    def overlap(self, dataset: Dataset, *trained: TrainedOn | None) -> int:
        """Counts the tested images that one of some checkpoints was trained on."""
        keys = {key for one in trained if one for key in one.keys}
        return len(keys.intersection(row["key"] for row in self.rows(dataset)))

    def refuse_unfit(self, dataset: Dataset, entry: str) -> None:
        """Checks that an entry of `--models` can be tested on the images.

        A model without a record of its training images counts as not trained on them. Raises
        UsageError if it was trained on some of them, and `allow_overlap` is not set; or it is a
        file whose answers are not those to the dataset's pictures.
        """
        for one in () if self.allow_overlap else (entry, _encoder_in(entry)):
            trained = metadata_of_entry(one)
            if trained and (count := self.overlap(dataset, trained)):
                remedy = (
                    f"it was trained with --holdout {trained.holdout:g}; test with the same"
                    if trained.holdout
                    else "test with another --eval_split"
                )
                raise UsageError(
                    f"{entry} was trained on {count} of the images to test on: {remedy}, or add "
                    "--allow_overlap to mark the result"
                )
        if not has_network(entry):
            refuse_other_dataset(entry, dataset.manifest.fingerprint)
            refuse_unfit(
                read_answers(entry, dataset.taxonomy),
                known=frozenset(row["key"] for row in selected_rows(dataset, self.split)),
                tested=frozenset(row["key"] for row in self.rows(dataset)),
                variants=list(map(str, evaluated_variants(dataset))),
                missing=self.missing_answers,
            )

    def head(self, model: str) -> str:
        """Returns the path of the head of a frozen encoder, by the model's name."""
        if encoder_of_head(model) or not self.fit:
            return encoder_of(model)
        return self.store.path(head_file(model, *self.fit))

    def describe(
        self, dataset: Dataset, model: ModelIdentity, trained: TrainedOn | None = None
    ) -> ModelRun:
        """Returns a printable description of a model and how it is run, which results record.

        Without `trained`, its checkpoint or that of its head says how it was trained.
        """
        is_resized = model.preprocessing.fixed_size or self.predict.eval_input == "native"
        stored_size = dataset.manifest.config.segment.image_size
        input_size = model.preprocessing.input_size if is_resized else stored_size
        is_encoder = bool(encoder_of(model.name))
        # A head that is still to be fitted has no metadata.
        entry = PROBE + self.head(model.name) if is_encoder else model.name
        trained = trained or metadata_of_entry(entry)
        run = pick(
            ModelRun,
            model,
            model=model.name,
            num_outputs=dataset.taxonomy.num_labels if is_encoder else model.num_outputs,
            features=model.features or UNSET,
            fit=trained.fit if is_encoder and trained else UNSET,
            label=self.labels.get(model.name, UNSET),
            evaluate_version=EVALUATE_VERSION,
            evaluation=pick(EvaluationSettings, self.settings, input_size=input_size),
            overlap=self.overlap(dataset, trained, metadata_of_entry(_encoder_in(model.name)))
            if trained
            else UNSET,
            trained=pick(
                Trained,
                trained,
                images=len(trained.keys),
                keys_sha256=trained.keys_digest,
                penalty=trained.settings.get("penalty", UNSET),
            )
            if trained
            else UNSET,
        )
        return convert(escaped_texts(to_builtins(run)), ModelRun)


def split_to_fit(splits: Sequence[str], split: str, holdout: float) -> tuple[str, float] | None:
    """Returns `Evaluation.fit` for a test on a split, or on the share that is held out of it."""
    if "train" in splits and split != "train":
        return "train", 0.0
    return (split, holdout) if holdout else None


def _encoder_in(entry: str) -> str:
    """Returns the entry of the encoder in an entry, which may have been trained here, too."""
    return encoder_of_head(entry) or encoder_of(entry)


def refuse_no_fit(
    name: str, fit: tuple[str, float] | None, variants: Iterable[str]
) -> tuple[str, float]:
    """Returns `Evaluation.fit`; raises UsageError if a model's head cannot be fitted."""
    if "original" not in variants:
        raise UsageError(
            f"{name}: its head is fitted on pictures of original, and the dataset has none"
        )
    if fit is None:
        raise UsageError(
            f"{name}: its head must be fitted on pictures that are not tested: give --holdout 0.5, "
            "or test on another split than train of a dataset that has one"
        )
    return fit


ENCODING = "features"
"""The stage that fits the heads of frozen encoders."""
_PICTURES_OF_BLOCK = 1 << 13
"""Pictures in a block, unless `--gpus` says otherwise: about those of an output shard of the
default size in the paper's variants. Each block loads its model anew."""

NoteDone = Callable[[int, int, int], None]
"""(chunk, new, done) -> None. Since the last call, `new` pictures of the chunk were shown to the
model, and `done` pictures were finished; `done` includes pictures found in an earlier file."""


class ChunkOutput(NamedTuple):
    """The output of a chunk, to be written to its file; a complete one follows a partial one."""

    chunk: int
    table: pa.Table
    is_complete: bool = True


@dataclasses.dataclass(eq=False)
class AnalysisOfModel(abc.ABC):
    """The work of a stage on one model, which makes a file for each chunk."""

    store: Store

    @abc.abstractmethod
    def path(self, chunk: int) -> str:
        """Returns the path of a chunk's file."""

    @abc.abstractmethod
    def fingerprint(self, chunk: int) -> str:
        """Returns a fingerprint of everything that a chunk's file depends on."""

    def is_done(self, chunk: int) -> bool:
        """Returns whether a chunk's file exists and has the chunk's present fingerprint."""
        metadata = read_metadata(self.store, self.path(chunk))
        return metadata is not None and metadata.fingerprint == self.fingerprint(chunk)

    def write(self, store: Store, output: ChunkOutput) -> FileDigest:
        """Writes a chunk's file, in a partial output without a fingerprint: it is not done."""
        of = self.fingerprint(output.chunk) if output.is_complete else ""
        return write_table(store, self.path(output.chunk), output.table, of)

    @abc.abstractmethod
    def run(
        self, predictor: Predictor, chunks: Sequence[int], missing: Sequence[int], note: NoteDone
    ) -> Generator[ChunkOutput, None, None]:
        """Runs the model on a block's missing chunks, all in rising order; yields their outputs.

        It notes the progress after each batch. Raises JobError if a picture cannot be decoded.
        """


@dataclasses.dataclass(eq=False)
class PlannedAnalysis(abc.ABC):
    """A stage that runs models.

    Attributes:
      taxonomy: the classes that the heads of models must fit.
      stage: name of the stage, under which time, progress, failures and counters are recorded.
      refuses_overlap: whether models that were trained on the tested images are refused.
      needs_network: whether the stage runs networks, so that answers in a file do not suffice.
      encodes: whether frozen encoders run without their heads.
    """

    stage: ClassVar[str]
    refuses_overlap: ClassVar[bool] = False
    needs_network: ClassVar[bool] = True
    encodes: ClassVar[bool] = False

    evaluation: Evaluation
    taxonomy: Taxonomy

    def chunks(self, dataset: Dataset) -> Sequence[int]:
        """Returns the numbers of all chunks, in rising order; by default of the output shards."""
        return dataset.shards(self.evaluation.split)

    @abc.abstractmethod
    def size(self, dataset: Dataset, chunk: int) -> int:
        """Returns the number of pictures in a chunk, as progress counts them."""

    def blocks(self, dataset: Dataset) -> int:
        """Returns the number of blocks that the work on each model is divided into."""
        if self.evaluation.blocks is not None:
            return self.evaluation.blocks
        chunks = self.chunks(dataset)
        pictures = sum(self.size(dataset, chunk) for chunk in chunks)
        return max(1, min(len(chunks), pictures // _PICTURES_OF_BLOCK))

    @abc.abstractmethod
    def for_model(self, dataset: Dataset, run: ModelRun) -> AnalysisOfModel | None:
        """Returns the work on a model; None if the stage does not apply to it."""

    @abc.abstractmethod
    def summarize(self, dataset: Dataset, run: ModelRun, entry: str) -> None:
        """Writes the result of a model whose chunks are all done, and removes stale files."""
