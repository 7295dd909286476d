"""`in9.evaluate_model`: evaluates a model that exists in this process, without Beam.

All pictures are answered first. The answers then go the way of `answers:FILE`, so the figures are
those that `in9 evaluate` would compute from the same answers.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import html
import itertools
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.analyses.evaluation.tables import measure_power, rows_of_models
from pipeline.dataset.folder import Dataset
from pipeline.dataset.manifest import writing_store
from pipeline.dataset.reading import DatasetReader
from pipeline.dataset.records import write_table
from pipeline.display.table import interval
from pipeline.errors import JobError, UsageError, one_line, refuse_first
from pipeline.evaluate.features import Features, HeadPlan, encode, features_in
from pipeline.evaluate.planned import Evaluation, refuse_no_fit, split_to_fit
from pipeline.evaluate.predict_shards import (
    PredictShards,
    RowsScorer,
    Scorer,
    ShardPictures,
    commit_predictions,
    describe_predictions,
)
from pipeline.evaluate.predictions import EvalImages, evaluated_variants, predictions_in_table
from pipeline.evaluate.summaries import summarize
from pipeline.evaluate.summary import TABLES, Summary
from pipeline.models.answers import AS_STORED, CALLED, AnswersWriter, GivenAnswers
from pipeline.models.checkpoint import TrainedOn
from pipeline.models.identity import CPU_BATCH, ModelIdentity, PredictConfig
from pipeline.report.write import write_results
from pipeline.runtime.custom_functions import call_own
from pipeline.runtime.lock import locked, model_lock
from pipeline.runtime.machine import usable_cores
from pipeline.runtime.progress import Progress, live_bar
from transforms.codec import decode_image
from transforms.intervals import Estimate
from transforms.scoring import RULES_OF_ANSWERS, AnswerKind, labels_of_outputs
from transforms.taxonomy import OUTSIDE, Taxonomy, imagenet9

if TYPE_CHECKING:
    import torch

    from pipeline.models.predict import Predictor


Predict = Callable[[NDArray[np.uint8]], Any]


@dataclasses.dataclass(frozen=True, repr=False)
class EvaluatedModel:
    """The figures of a model; in a notebook, it shows the headline.

    Attributes:
      summary: all statistics, the model's name and its preprocessing. What `store` wrote is in
        `results/` in the folder `summary.folder`.
      predictions: the answer on each picture by each label rule, with the columns of
        `PREDICTION_SCHEMA` (docs/reference.md).
    """

    summary: Summary
    predictions: pa.Table

    @property
    def accuracy(self) -> dict[str, Estimate]:
        """Accuracy by variant: (value, low, high), fractions with the 95 % interval."""
        return {
            row.variant: row.estimate
            for row in self.summary.by_rule(self.summary.accuracy)
            if row.estimate
        }

    @property
    def bg_gap(self) -> Estimate | None:
        """BG-Gap: (value, low, high); None if the dataset lacks a variant that it needs."""
        gap = self.summary.gap()
        return gap.estimate if gap else None

    @property
    def tables(self) -> dict[str, list[dict[str, object]]]:
        """The rows that the model has in each table, by the table's name."""
        return {one.name: one.lines(rows_of_models(one, [self.summary])) for one in TABLES}

    def to_pandas(self, table: str = "summary") -> Any:
        """Returns one of `tables`, or `predictions`, as a pandas DataFrame.

        Raises ValueError if there is no such table, ImportError if there is no pandas.
        """
        rows = self.predictions if table == "predictions" else self.tables.get(table)
        if rows is None:
            raise ValueError(
                f"{table!r} is none of the tables: {', '.join(['predictions', *self.tables])}"
            )
        return (pa.Table.from_pylist(rows) if isinstance(rows, list) else rows).to_pandas()

    @property
    def _head(self) -> str:
        of, text = self.summary.preprocessing, f"{self.summary.name}, by {self.summary.headline}"
        return text if of == AS_STORED else f"{text}, with mean {of.mean}, std {of.std}"

    @property
    def _figures(self) -> dict[str, str]:
        gap = {"BG-Gap": self.bg_gap} if self.bg_gap else {}
        return {name: interval(*of) for name, of in {**self.accuracy, **gap}.items()}

    def __repr__(self) -> str:
        figures = ", ".join(f"{name} {text}" for name, text in self._figures.items())
        return f"EvaluatedModel({self._head}; in %: {figures})"

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{text}</td></tr>"
            for name, text in self._figures.items()
        )
        return f"<table><caption>{html.escape(self._head)}, in %</caption>{cells}</table>"


def evaluate_model(
    dataset: str | os.PathLike[str] | DatasetReader,
    predict: Predict | torch.nn.Module,
    *,
    name: str,
    outputs: str | None = None,
    preprocessing: Mapping[str, object] | None = None,
    batch_size: int | None = None,
    store: bool = False,
    probe: bool = False,
    holdout: float = 0.0,
) -> EvaluatedModel:
    """Evaluates a model on all pictures of a dataset, without Beam.

    A module is evaluated as `in9 evaluate` would run it, with the same preprocessing, and on a GPU
    if there is one: its own, or the first. It is copied, and a training around the call goes on bit
    for bit as without it.

    Args:
      dataset: the dataset's folder, local or `gs://`; or what `open_dataset` returned, whose split
        is then evaluated, in all variants. It may be read-only, unless results are stored.
      predict: a `torch.nn.Module`; or a function that takes (n, S, S, 3) uint8 RGB pictures and
        returns (n, outputs) real scores (1000, or one for each class or superclass of the dataset),
        or (n,) integer labels of superclasses, -1 for none of them. NumPy, torch, JAX and
        TensorFlow arrays will do.
      name: name of the model in tables.
      outputs: "imagenet" if integers are classes of ImageNet, 0 to 999, rather than superclasses;
        for datasets whose classes all have WordNet ids of ImageNet.
      preprocessing: settings of a module, such as `{"mean": (0.5, 0.5, 0.5)}`, as for `python:`
        (docs/models.md). The others are timm's if timm made the module, else those that are usual
        for its number of outputs; `result.summary.preprocessing` has all of them.
      batch_size: number of pictures in a batch, at least 1; None for that of `in9 evaluate`.
      store: whether to store predictions, as the model `call:NAME`, in place of an earlier one of
        the name, and to write tables and page. If that fails, the call warns, and returns.
      probe: whether `predict` is a frozen encoder, which returns (n, width) features; a linear
        probe is fitted on them, on the split train, else on what `holdout` leaves.
      holdout: share of the images to test on, as for `in9 evaluate`; 0 for all.

    Raises:
      UsageError: there is no finished dataset, no picture to test or to fit on, a value is not
        allowed, `predict` returns something else, or the module cannot be copied.
      TypeError: `predict` is neither a function nor a module.
      ValueError: the number of outputs fits neither the classes nor the superclasses.
      JobError, ModelError: a picture or a setting of `preprocessing` is broken, or the module.
      Exception: any exception of `predict`.
    """
    if not callable(predict):
        raise TypeError(
            f"predict={predict!r} is neither a function nor a torch.nn.Module; models by name are "
            "for in9 evaluate"
        )
    if not 0 <= holdout < 1:
        raise UsageError(f"holdout={holdout!r} must be at least 0 and less than 1")
    reader = (
        dataset
        if isinstance(dataset, DatasetReader)
        else DatasetReader.open(os.fspath(dataset), None, None)
    )
    folder = reader.dataset.store
    opened = Dataset.open(writing_store("dataset", folder.root) if store else folder)
    evaluation = Evaluation(
        store=opened.store,
        models=(CALLED + name,),
        split=reader.split,
        predict=PredictConfig(batch_size=batch_size),
        progress=Progress.for_store(opened.store),
        holdout=holdout,
        fit=split_to_fit(opened.config.split, reader.split, holdout),
    )
    total = len(evaluation.rows(opened)) * len(evaluated_variants(opened))
    plan = None
    if probe:
        fit = refuse_no_fit(name, evaluation.fit, opened.config.compose.variants)
        plan = HeadPlan(opened, "original", *fit)
    refuse_first(
        {
            f"batch_size={batch_size!r} must be a whole number of at least 1": batch_size
            is not None
            and not (isinstance(batch_size, int | np.integer) and batch_size > 0),
            f'outputs={outputs!r}: the only other outputs are "imagenet", for datasets whose '
            "classes all have WordNet ids of ImageNet": outputs is not None
            and not (outputs == "imagenet" and opened.taxonomy.is_of_imagenet),
            f"preprocessing={preprocessing!r} is no mapping of settings": not isinstance(
                preprocessing, Mapping | None
            ),
            f"the split {reader.split} has no pictures": not total,
        }
    )
    torch = sys.modules.get("torch")
    with live_bar(CALLED + name, total, "pictures") as advance:
        if torch and isinstance(predict, torch.nn.Module):
            with _on_device(predict, preprocessing or {}, opened, evaluation, plan) as on_device:
                return _evaluate(opened, evaluation, *on_device, advance, store=store)
        if preprocessing is not None:
            raise UsageError("preprocessing is of modules; a function gets pictures as stored")
        ask = partial(_ask_all, predict, outputs, evaluation=evaluation)
        taxonomy, tested = opened.taxonomy, frozenset(row["key"] for row in evaluation.rows(opened))
        pictures = [
            ShardPictures(opened, reader.split, shard, variant, tested)
            for shard in opened.shards(reader.split)
            for variant in evaluated_variants(opened)
        ]
        answers = ask(pictures, advance=advance, taxonomy=None if plan else taxonomy)
        identity = ModelIdentity(
            name=answers.path,
            architecture=getattr(predict, "__name__", type(predict).__name__),
            weights=answers.path,
            weights_sha256=answers.sha256,
            preprocessing=AS_STORED,
            num_outputs=answers.num_outputs,
            answers=answers.kind,
        )
        trained = None
        if plan:
            of_fit = ask(plan.sets(), advance=lambda _: None, taxonomy=None)
            features = dict(
                zip(plan.pictures, of_fit.on("original", [*plan.pictures]), strict=True)
            )
            state, trained = _fit_head(plan, identity, evaluation, features)
            scores = answers.values @ state["weight"].numpy().T + state["bias"].numpy()
            answers = dataclasses.replace(answers, values=scores)
            identity = dataclasses.replace(identity, num_outputs=taxonomy.num_labels)
        return _evaluate(
            opened,
            evaluation,
            identity,
            trained,
            RowsScorer(lambda pictures, keys: answers.on(str(pictures.variant), keys)),
            lambda _: None,
            store=store,
        )


def _fit_head(
    plan: HeadPlan, encoder: ModelIdentity, evaluation: Evaluation, features: Features
) -> tuple[Mapping[str, torch.Tensor], TrainedOn]:
    """Fits a linear probe on features; returns its tensors and its metadata."""
    from pipeline.training.probe_fit import fit_head

    return fit_head(plan, plan.trained_on(encoder.name, encoder, evaluation.predict), features)


def _evaluate(
    dataset: Dataset,
    evaluation: Evaluation,
    identity: ModelIdentity,
    trained: TrainedOn | None,
    scorer: Scorer,
    advance: Callable[[int], None],
    *,
    store: bool,
) -> EvaluatedModel:
    """Computes all statistics of a model's answers; also stores predictions if asked to."""
    run = evaluation.describe(dataset, identity, trained)
    chunks = dataset.shards(evaluation.split)
    work = PredictShards(dataset, run, reuse=False)
    outputs = work.run(scorer, chunks, chunks, lambda _, new, __: advance(new))
    tables = {one.chunk: one.table for one in outputs if one.is_complete}
    images = EvalImages.read(dataset, *run.tested_on)
    rows = [table.replace_schema_metadata() for table in tables.values()]
    described = describe_predictions(
        work, chunks, run, entry=run.model, power=measure_power(dataset, images, run, rows)
    )
    every = pa.concat_tables(rows).unify_dictionaries()
    predictions = predictions_in_table(
        every,
        images,
        evaluated_variants(dataset),
        tuple(RULES_OF_ANSWERS[run.answers]),
    )
    result = EvaluatedModel(summarize(dataset, described, images, predictions), every)
    try:
        if store:
            with locked(dataset.store, model_lock(run.folder, 0), wait=60) as fenced:
                for chunk, table in tables.items():
                    write_table(fenced, work.path(chunk), table, work.fingerprint(chunk))
                commit_predictions(PredictShards(dataset, run, fenced), chunks, described)
            write_results(
                dataset.manifest.fingerprint,
                dataset.store,
                dataset.taxonomy,
                "sample",
                has_run_models=True,
            )
    except (JobError, OSError) as error:
        # The answers may have been paid for, so the caller gets what they say.
        warnings.warn(f"{run.model} could not be stored: {one_line(error)}", stacklevel=3)
    return result


def _ask_all(
    predict: Predict,
    outputs: str | None,
    pictures: Iterable[ShardPictures],
    evaluation: Evaluation,
    advance: Callable[[int], None],
    *,
    taxonomy: Taxonomy | None,
) -> GivenAnswers:
    """Asks a function about pictures, in the batches of `in9 evaluate` on a CPU.

    Answers are those of a model with this taxonomy; without one, they are features.
    """
    writer, size = AnswersWriter(), evaluation.predict.batch_size or CPU_BATCH
    for one in pictures:
        dataset, variant = one.dataset, str(one.variant)
        with contextlib.closing(dataset.samples(one.split, one.shard, one.variant)) as samples:
            wanted = (each for each in samples if one.keys is None or each.key in one.keys)
            while batch := list(itertools.islice(wanted, size)):
                pixels = np.stack([decode_image(sample.image) for sample in batch])
                answers = _ask(predict, outputs, taxonomy, pixels)
                writer.add(variant, [sample.key for sample in batch], answers)
                advance(len(batch))
    kind: AnswerKind = "scores" if answers.ndim == 2 else "output" if outputs else "label"
    return writer.finish(evaluation.models[0], kind, taxonomy or imagenet9())


def _ask(
    predict: Predict,
    outputs: str | None,
    taxonomy: Taxonomy | None,
    pixels: NDArray[np.uint8],
) -> NDArray[Any]:
    """Asks a function, and returns its answers as `AnswersWriter.add` takes them.

    Raises:
      UsageError: the answers are not of the form that `in9.evaluate_model` describes.
      ValueError: their number of outputs fits neither classes nor superclasses.
    """
    given = call_own(predict, pixels)
    try:
        if hasattr(given, "detach"):
            given = given.detach().cpu()
            # NumPy has no bfloat16.
            given = given.float() if given.is_floating_point() else given
        answers = np.asarray(given)
        form = f"{answers.dtype} of shape {answers.shape}"
    except Exception as error:  # Each library raises its own errors.
        answers, form = np.empty(0, object), f"{type(given).__name__} ({one_line(error)})"
    if (
        answers.ndim == 2
        and len(answers) == len(pixels)
        and np.can_cast(answers.dtype, np.float32, "same_kind")
    ):
        if taxonomy:
            labels_of_outputs(answers.shape[1], taxonomy)
        scores = answers.astype(np.float32)
        if not np.isfinite(scores.max(axis=1)).all():
            raise UsageError("predict returned scores that are NaN or infinity as float32")
        return scores
    if taxonomy is None:
        raise UsageError(
            f"predict returned {form} for {len(pixels)} pictures; a probe needs (n, width) real "
            "features"
        )
    # A duration is an integer to `np.issubdtype`.
    if answers.shape != (len(pixels),) or answers.dtype.kind not in "iu":
        raise UsageError(
            f"predict returned {form} for {len(pixels)} pictures; expected (n, outputs) real "
            "scores or (n,) integers"
        )
    classes = dict(zip(taxonomy.wnids, taxonomy.outputs or itertools.count(), strict=False))
    meanings = (
        [classes.get(wnid, OUTSIDE) for wnid in imagenet9().wnids]
        if outputs
        else [*range(taxonomy.num_labels)]
    )
    if len(wrong := answers[(answers < OUTSIDE) | (answers >= len(meanings))]):
        hint = "" if outputs else '; for classes of ImageNet, add outputs="imagenet"'
        raise UsageError(
            f"predict returned {wrong[0]}, and labels are from {OUTSIDE} to {len(meanings) - 1}"
            f"{hint if wrong[0] > 0 else ''}"
        )
    return np.asarray(np.asarray([*meanings, OUTSIDE])[answers])


@contextlib.contextmanager
def _torch_as_by_default(gpu: int) -> Iterator[None]:
    """Lets torch compute as in `in9 evaluate`; leaves a training as it was, bit for bit."""
    import torch

    backends: Any = torch.backends
    # Since torch 2.9, each operation has its own precision, and the settings of several operations
    # cannot be read where these differ.
    operations = (
        [
            *(backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn),
            *(backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn),
        ]
        if hasattr(backends, "fp32_precision")
        else []
    )
    settings: list[tuple[Callable[[Any], object], Callable[[], Any]]] = [
        *(
            (partial(setattr, one, "fp32_precision"), partial(getattr, one, "fp32_precision"))
            for one in operations
        ),
        (torch.set_float32_matmul_precision, torch.get_float32_matmul_precision),
        *(
            (partial(setattr, one, "allow_tf32"), partial(getattr, one, "allow_tf32"))
            for one in (backends.cuda.matmul, backends.cudnn)
        ),
        (torch.set_default_dtype, torch.get_default_dtype),
        (torch.set_num_threads, torch.get_num_threads),
    ]
    with (
        contextlib.ExitStack() as undo,
        torch.random.fork_rng([gpu] if torch.cuda.is_available() else []),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        for restore, read in settings:
            with contextlib.suppress(RuntimeError):
                undo.callback(restore, read())
        undo.callback(torch.cuda.empty_cache)
        for operation in operations:
            operation.fp32_precision = "ieee"
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(usable_cores())
        yield


@contextlib.contextmanager
def _on_device(
    module: torch.nn.Module,
    preprocessing: Mapping[str, object],
    dataset: Dataset,
    evaluation: Evaluation,
    plan: HeadPlan | None,
) -> Iterator[tuple[ModelIdentity, TrainedOn | None, Predictor]]:
    """Brings a copy of a module to its device, the module's own GPU or else the first.

    With a plan, the module is an encoder, and a probe is fitted on its features.
    """
    from pipeline.models.predict import Predictor
    from pipeline.models.source import check_head, measured_model

    (name,) = evaluation.models
    first = next(itertools.chain(module.parameters(), module.buffers()), None)
    gpu = (first.device.index or 0) if first is not None else 0
    with _torch_as_by_default(gpu):
        try:
            copied = call_own(copy.deepcopy, module).cpu().float()
        except Exception as error:  # A module's own code can raise anything.
            raise UsageError(f"{name}: the module cannot be copied: {one_line(error)}") from error
        model = measured_model(
            preprocessing,
            where=f"{name}: preprocessing",
            taxonomy=dataset.taxonomy,
            name=name,
            architecture=type(module).__name__,
            weights=name,
            module=copied,
            features="its output" if plan else "",
        )
        trained = None
        if plan:
            from pipeline.models.heads import attach

            with contextlib.closing(Predictor(model, evaluation.predict, block=gpu)) as encoder:
                features = plan.read(lambda one: features_in(encode(encoder, one)))
            state, trained = _fit_head(plan, model, evaluation, features)
            model = attach(model, state, dataset.taxonomy.num_labels)
        check_head(model, dataset.taxonomy)
        with contextlib.closing(Predictor(model, evaluation.predict, block=gpu)) as predictor:
            yield model.identity, trained, predictor
