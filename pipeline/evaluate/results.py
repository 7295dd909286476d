"""What all results of a model have, their files, their tables, and the models that failed to run.

All results have the model, how it was run, and so their folder.

results/<model>/predictions/<split>-NNNNN.parquet   every single prediction
results/<model>/model.json                          the model, and how it was run
results/*.csv, results/latex/*.tex                  tables of all models, computed from the above
results/failures.json   entry of --models -> stage -> why its last attempt failed

Results are stored as JSON. A file whose content does not fit its type counts as damaged; fields
that a type does not have are ignored. Tables are CSV, and their columns are the fields of types. A
field's `Meta(description=...)` is the meaning of its column, unless that is the same in all tables.

A failure is dropped when its model succeeds in the stage, or when any stage has run on another
version of the dataset. A model that failed but has results on this dataset under the same settings
keeps them, and usually gets no row for the failure (`failures_without_results`).
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_type_hints

import pyarrow as pa
from msgspec import UNSET, Meta, Struct, UnsetType, structs, to_builtins
from typing_extensions import override

from pipeline.errors import escaped_line, escaped_texts
from pipeline.models.answers import CALLED
from pipeline.models.checkpoint import safe_name
from pipeline.models.identity import Preprocessing
from pipeline.runtime.lock import TABLES_LOCK, locked
from pipeline.storage.state_files import (
    Name,
    convert,
    csv_bytes,
    json_bytes,
    parse_json,
    read_intact,
)
from pipeline.storage.store import Store
from transforms.scoring import AnswerKind

_S = TypeVar("_S", bound=Struct)

LIBRARIES = ("numpy", "pillow", "simplejpeg", "torch", "timm")
"""Libraries whose versions results record."""

Label = Annotated[int, Meta(ge=-1, lt=2**15)]
"""Label of a class, -1 outside the taxonomy."""


class RunSettings(Struct, frozen=True, kw_only=True):
    """The settings that tell two runs of a model apart. The name of its folder depends on them.

    `precision` ends with `-compiled` with `--compile`; `holdout` is 0 if all of the split was
    tested.
    """

    split: Name
    eval_input: Literal["stored", "native"]
    precision: Annotated[str, Meta(pattern="^(fp32|tf32|bf16)(-compiled)?$")]
    holdout: Annotated[float, Meta(ge=0, lt=1)]

    @property
    def names(self) -> list[str]:
        """The settings that are not the default, as short texts for names of folders and models."""
        values = (self.split, self.eval_input, self.precision)
        names = [value for value in values if value not in ("val", "stored", "fp32")]
        return names + ([f"holdout{self.holdout:g}"] if self.holdout else [])


class EvaluationSettings(RunSettings, frozen=True, kw_only=True):
    """The settings of a run, with what follows from them.

    Attributes:
      input_size: side of the model's input, in pixels.
      device: types of the devices that computed the results, joined by `+`.
      dataset: fingerprint of the dataset, if it is another than the one beside the results.
    """

    input_size: int
    device: str | UnsetType = UNSET
    dataset: str | UnsetType = UNSET

    @property
    @override
    def names(self) -> list[str]:
        """Also has the beginning of another dataset's fingerprint."""
        return [*super().names, *([self.dataset[:12]] if self.dataset else [])]


class Trained(Struct, frozen=True, kw_only=True):
    """What a checkpoint says of its training; see `pipeline.models.checkpoint.TrainedOn`."""

    variant: str
    dataset: str
    split: str
    holdout: float
    method: str
    pretrained: str | None
    epochs: int | None
    seed: int
    images: int
    keys_sha256: str
    penalty: float | UnsetType = UNSET


class Named(Struct, frozen=True, kw_only=True):
    """A result of a model."""

    model: str
    evaluation: RunSettings

    names_folder: ClassVar[bool] = True
    """Whether the result lies in the folder that its model and settings name."""

    @property
    def folder(self) -> str:
        """Name of the model's folder under `results/`.

        Two models never share one, and results under different settings lie side by side.
        """
        return result_folder(self.model, self.evaluation)

    @property
    def title(self) -> str:
        """The model, as tables name it."""
        return self.model

    @property
    def name(self) -> str:
        """The model's title, followed by its settings that are not the default."""
        return " ".join([self.title, *self.evaluation.names])

    @property
    def tested_on(self) -> tuple[str, float]:
        """The split tested on, and the held-out share of its images that was tested; 0 for all."""
        return self.evaluation.split, self.evaluation.holdout


class ModelRun(Named, frozen=True, kw_only=True):
    """A model, and how it was run; see `pipeline.models.identity.ModelIdentity`.

    Attributes:
      overlap: number of test images that it was also trained on; unset if its training is unknown.
      trained: how it was trained; unset if that is unknown.
      variants: the variants that it was tested on, replicates included; unset if these are all
        pictures of the dataset.
      label: the name that its user gave it, which tables show in place of its own.
      lab: whose results they are, if they are shown beside those of another of its name.
      features: which outputs of a frozen encoder are its features.
      fit: fingerprint of what the head of a frozen encoder was fitted on, and how.
    """

    evaluation: EvaluationSettings
    architecture: str
    weights: str
    weights_sha256: str
    preprocessing: Preprocessing
    num_outputs: int
    evaluate_version: int
    overlap: int | UnsetType = UNSET
    trained: Trained | UnsetType = UNSET
    variants: tuple[str, ...] | UnsetType = UNSET
    answers: AnswerKind = "scores"
    label: str | UnsetType = UNSET
    lab: str | UnsetType = UNSET
    features: str | UnsetType = UNSET
    fit: str | UnsetType = UNSET

    @property
    @override
    def title(self) -> str:
        return (self.label or super().title) + (f" in {self.lab}" if self.lab else "")

    @property
    def family(self) -> str:
        """The method that it is a training of, by its label `FAMILY#SEED`; "" if it is of none."""
        name = self.label or (self.model if self.model.startswith(CALLED) else "")
        family, _, seed = name.partition("#")
        return family + (f" in {self.lab}" if self.lab else "") if seed else ""

    @property
    @override
    def folder(self) -> str:
        return super().folder + (f"+{safe_name(f'in {self.lab}')}" if self.lab else "")

    @property
    def identity(self) -> list[object]:
        """Name, weights, preprocessing and fit of the model, for fingerprints of its results."""
        fit = [self.fit] if self.fit else []
        return [self.model, self.weights_sha256, dataclasses.asdict(self.preprocessing), *fit]


class PicturesResult(ModelRun, frozen=True, kw_only=True):
    """A stored result on a split's pictures; `of` is the `split_fingerprint` it was made from."""

    of: str


class Failure(Named, frozen=True, kw_only=True):
    """A model that failed to run in the analysis `stage`; `error` is one line."""

    entry: str
    stage: str
    error: str
    dataset: str


def result_folder(model: str, settings: RunSettings) -> str:
    """Returns the name of the folder under `results/` of a model run with these settings."""
    return safe_name(model) + "".join(f"+{name}" for name in settings.names)


def pick(kind: type[_S], *sources: object, **values: Any) -> _S:
    """Makes a `kind` from values, and from the attributes of objects for its other fields.

    The first object that has an attribute gives it. A field that none gives has its default.
    """
    for name in kind.__struct_fields__:
        for source in sources:
            value = getattr(source, name, UNSET)
            if name not in values and value is not UNSET:
                values[name] = value
    return kind(**values)


_R = TypeVar("_R")
_N = TypeVar("_N", bound=Named)

PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("model", pa.dictionary(pa.int32(), pa.string())),
        pa.field("label_rule", pa.dictionary(pa.int32(), pa.string())),
        pa.field("variant", pa.dictionary(pa.int32(), pa.string())),
        pa.field("key", pa.string()),
        pa.field("fg_key", pa.string()),
        pa.field("bg_key", pa.string()),
        pa.field("label", pa.int64()),
        pa.field("prediction", pa.int64()),
        pa.field("output", pa.int32()),
        pa.field("correct", pa.bool_()),
        pa.field("top1_score", pa.float32()),
        pa.field("true_score", pa.float32()),
        pa.field("logits", pa.list_(pa.float32())),
        pa.field("of", pa.dictionary(pa.int32(), pa.string())),
        pa.field("device", pa.dictionary(pa.int32(), pa.string())),
    ]
)
"""Columns of predictions. `label` is the true and `prediction` the predicted label, -1 outside the
taxonomy; `output` is the index of the model's winning output, or the label that it has named, or
`NO_ANSWER`. Scores are softmax probabilities among the outputs that the label rule allows:
`top1_score` of the winning output, `true_score` summed over the outputs of the true label; null if
the model gives no logits. `logits` are all outputs of the model, for the probe of
`pipeline.analyses.evaluation.tables`; they are null except on some pictures of backgrounds,
under the paper's label rule. `of` is a fingerprint of everything that the row was computed from,
and `device` the type of the device that computed it."""


def result_file(folder: str, name: str) -> str:
    """Returns the path of a model's result, by its name without `.json`."""
    return f"results/{folder}/{name}.json"


def result_shard(folder: str, name: str, split: str, shard: int) -> str:
    """Returns the path of the file that holds a model's results on one shard, or another chunk.

    `name` is that of the folder that holds the shards, such as `predictions`.
    """
    return f"results/{folder}/{name}/{split}-{shard:05d}.parquet"


def read_result(store: Store, path: str, kind: type[_R]) -> _R | None:
    """Reads a JSON file as its type; None if missing, damaged, or of another folder's model."""
    return read_intact(store, path, lambda: _parse_result(store, path, kind))


def _parse_result(store: Store, path: str, kind: type[_R]) -> _R:
    # Text is escaped, because earlier releases stored undecodable names and errors as they were.
    result = convert(escaped_texts(parse_json(store.read(path), object)), kind)
    lab = store.labs.get(path.rpartition("/")[0])
    if isinstance(result, ModelRun) and lab:
        result = structs.replace(result, lab=lab)
    if isinstance(result, Named) and result.names_folder and result.folder != path.split("/")[1]:
        raise ValueError(f"it is of {result.model}, whose results belong in another folder")
    return result


def write_result(store: Store, path: str, content: object) -> bool:
    """Writes the JSON file of a result, its text escaped; returns whether it has changed."""
    return store.update(path, json_bytes(escaped_texts(to_builtins(content))))


def read_results(store: Store, name: str, kind: type[_N], model: str | None = None) -> list[_N]:
    """Reads the results of all models, or all of `model`'s, in order of their folders.

    Results on earlier versions of the dataset are included.
    """
    paths = [path.split("/") for path in store.walk("results")]
    results = [
        read_result(store, "/".join(path), kind)
        for path in sorted(path for path in paths if path[2:] == [f"{name}.json"])
        if model is None or path[1].partition("+")[0] == safe_name(model)
    ]
    return [result for result in results if result is not None]


FAILURES = "results/failures.json"


@dataclasses.dataclass(frozen=True)
class FailedModel:
    """A model that failed to run.

    Attributes:
      order: position of the model in `--models`.
      model: its name; its entry if it was not loaded.
    """

    order: int
    entry: str
    model: str
    error: str


def note_failures(
    store: Store,
    dataset: str,
    stage: str,
    settings: RunSettings,
    failed: Iterable[FailedModel],
    succeeded: Iterable[str],
) -> None:
    """Records the models that failed in a stage, and forgets failures of those that succeeded.

    Raises JobError if another process has held the lock of the tables for a minute.
    """
    succeeded = set(map(escaped_line, succeeded))
    with locked(store, TABLES_LOCK, wait=60) as store:
        kept: dict[str, dict[str, Failure]] = {}
        for failure in _read_all(store):
            names = (failure.entry, failure.model)
            has_succeeded = failure.stage == stage and not succeeded.isdisjoint(names)
            if failure.dataset == dataset and not has_succeeded:
                kept.setdefault(failure.entry, {})[failure.stage] = failure
        for model in failed:
            entry = escaped_line(model.entry)
            kept.setdefault(entry, {})[stage] = Failure(
                entry=entry,
                stage=stage,
                model=model.model,
                error=model.error,
                dataset=dataset,
                evaluation=settings,
            )
        if kept:
            write_result(store, FAILURES, kept)
        else:
            store.delete(FAILURES)


def _read_all(store: Store) -> list[Failure]:
    """Reads the failures of all stages, on any version of the dataset."""
    content = read_result(store, FAILURES, dict[str, dict[str, Failure]]) or {}
    return [failure for stages in content.values() for failure in stages.values()]


def read_failures(store: Store, dataset: str, stage: str) -> tuple[list[Failure], list[str]]:
    """Reads the models whose last attempt in a stage failed, in order of their entries.

    Those that failed on an earlier version of the dataset are returned apart, by name.
    """
    failures = [failure for failure in _read_all(store) if failure.stage == stage]
    current = [failure for failure in failures if failure.dataset == dataset]
    return current, [failure.model for failure in failures if failure.dataset != dataset]


def failures_without_results(failed: Iterable[Failure], results: Iterable[Named]) -> list[Failure]:
    """Returns the failures that get a row in a table with a column `error`.

    The `model` of such a failure has no results on the dataset under the same settings. A model
    that was not loaded has a row beside its results, if their name has a tag that its entry lacks.
    """
    existing = {result.folder for result in results}
    return [failure for failure in failed if failure.folder not in existing]


def errors_by_model(failed: Iterable[Failure], entries: Iterable[str]) -> dict[str, str]:
    """Maps each failed model among these entries of `--models` to its error."""
    wanted = set(entries)
    return {
        failure.model: failure.error.removeprefix(f"{failure.model}: ")
        for failure in failed
        if failure.entry in wanted
    }


class OfModel(Struct, frozen=True):
    """The first column of tables with rows of all models."""

    model: str


class RunColumns(Struct, frozen=True):
    """The last columns of tables, which say how a model was run."""

    split: str
    eval_input: str
    precision: str
    weights_sha256: str
    dataset: str


@dataclasses.dataclass(frozen=True)
class Table:
    """A CSV file in `results/`.

    Attributes:
      name: name of the file without `.csv`.
      structs: the types whose fields are the columns, in order.
      description: what a row holds, for the reference.
    """

    name: str
    structs: tuple[type[Struct], ...]
    description: str

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(name for struct in self.structs for name in struct.__struct_fields__)

    @property
    def meanings(self) -> Mapping[str, str]:
        """Meanings of columns that the types give, by column."""
        return {
            name: extra.description
            for struct in self.structs
            for name, hint in get_type_hints(struct, include_extras=True).items()
            for extra in get_args(hint)
            if isinstance(extra, Meta) and extra.description
        }

    def write(self, store: Store, rows: Iterable[Iterable[Struct]]) -> None:
        """Writes rows, each of values that have the columns as fields.

        A column that none of them has is empty; further fields are left out.
        """
        store.update(f"results/{self.name}.csv", csv_bytes(self.columns, self.lines(rows)))

    def lines(self, rows: Iterable[Iterable[Struct]]) -> list[dict[str, object]]:
        """Returns the columns of each row, by name; the argument is that of `write`."""
        columns = self.columns
        return [
            {
                name: value
                for struct in row
                for name, value in structs.asdict(struct).items()
                if name in columns and value is not UNSET
            }
            for row in rows
        ]
