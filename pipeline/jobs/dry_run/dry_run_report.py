"""Prints the forecast and the estimates of `--dry_run`; writes only temporary files."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pipeline.analyses import ANALYSES
from pipeline.analyses.analysis import Analysis
from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.folder import Dataset
from pipeline.errors import JobError, ModelError, counted
from pipeline.evaluate.work import Work
from pipeline.generate.job import GenerateJob
from pipeline.jobs.closing_words import advise, size
from pipeline.jobs.dry_run.estimate import Trial, choose, run_trial
from pipeline.jobs.dry_run.forecast import Forecast, SplitForecast, make_forecast
from pipeline.runtime.machine import keep_freed_memory
from pipeline.runtime.progress import duration
from pipeline.storage.store import Store
from transforms.filters import Reason
from transforms.taxonomy import Taxonomy

if TYPE_CHECKING:
    from pipeline.models.loaded import LoadedModel
    from pipeline.models.predict import Predictor

_EVALUATE_SECONDS = 5.0
"""How long the speed of a model is measured, if the trial has enough pictures."""


def dry_run(job: GenerateJob, works: Mapping[str, Work], workers: int) -> None:
    """Prints what a job would do.

    Args:
      job: the job that would make the dataset.
      works: the `Work`s that would run models, by name of their analysis.
      workers: number of workers that would run at the same time.

    Raises:
      UsageError, OSError: the input cannot be used; the job would raise the same error.
      JobError: a custom function failed on an image that was measured.
    """
    print("dry run: reading names and annotations", file=sys.stderr)
    taxonomy = job.taxonomy
    forecast = make_forecast(job)
    for split in forecast.splits:
        _print_split(split, taxonomy, job.config)
    if forecast.is_up_to_date:
        print("dataset: up to date")
    with tempfile.TemporaryDirectory(prefix="in9-") as folder:

        @functools.cache
        def make_trial() -> Trial | None:
            """Runs the job on a few images; returns None if no image can be accepted."""
            images = choose(forecast)
            if not images:
                return None
            print(f"dry run: measuring {counted(len(images), 'image')}", file=sys.stderr)
            return run_trial(job, images, folder)

        if not forecast.is_up_to_date:
            _print_estimate(job, forecast, make_trial(), workers)
        variants = job.config.compose.composed
        # The time of other analyses does not follow from the number of pictures.
        timed = {
            analysis: works[analysis.name]
            for analysis in ANALYSES
            if analysis.name in works
            and analysis.parts.forecast(works[analysis.name], 0, variants) is not None
        }
        if timed:
            for model in next(iter(timed.values())).evaluation.models:
                _print_model(model, job, forecast, timed, make_trial)
    print("dry run: nothing was written")


def _print_split(split: SplitForecast, taxonomy: Taxonomy, config: DatasetConfig) -> None:
    classes = ", ".join(f"{n} {split.classes[n]}" for n in taxonomy.names if n in split.classes)
    print(
        f"{split.split}: {counted(split.listed, 'image')} ({classes}), {split.outside} of other "
        f"classes, {counted(split.other_files, 'other file')}"
    )
    reasons = ", ".join(f"{count} {reason}" for reason, count in split.rejected.items())
    print(
        f"{split.split}: {sum(split.rejected.values())} rejected for name or annotation alone"
        + (f" ({reasons})" if reasons else "")
    )
    rejected = split.rejected | ({Reason.NO_BACKGROUND: split.lonely} if split.lonely else {})
    for line in advise(rejected, split.listed):
        print(f"{split.split}: {line}")
    is_whole = config.segment.is_whole
    done, to_do = ("looked at", "to look at") if is_whole else ("segmented", "to segment")
    print(f"{split.split}: {split.done} {done} already, {len(split.left)} {to_do}")
    if split.lonely:
        more = ", or more, if others are rejected" if split.left else ""
        print(
            f"{split.split}: {split.lonely} of them without a background for every mixed variant "
            f"({Reason.NO_BACKGROUND}){more}"
        )


def _selected(config: DatasetConfig, split: SplitForecast, trial: Trial) -> float:
    """Estimates how many images of a split will be part of the dataset."""
    rate = trial.accepted / trial.images if split.left else 1.0
    accepted = len(split.accepted)
    expected = sum(split.served[:accepted]) + rate * sum(split.served[accepted:])
    per_class = config.compose.per_class
    if per_class == "all" or not any(split.served):
        return expected
    share = expected / sum(split.served)
    labels = [image.label for image in itertools.compress(split.candidates, split.served)]
    sizes = [share * labels.count(label) for label in set(labels)]
    limit = min(sizes) if per_class == "min" else float(per_class)
    return sum(min(limit, size_of_class) for size_of_class in sizes)


def _print_estimate(
    job: GenerateJob, forecast: Forecast, trial: Trial | None, workers: int
) -> None:
    if trial is None:
        print("estimate: seconds; no image is left to segment")
        return
    config = job.config
    rate = trial.accepted / trial.images
    accepted = sum(len(s.accepted) + rate * len(s.left) for s in forecast.splits)
    selected = sum(_selected(config, split, trial) for split in forecast.splits)
    print(
        f"measured on {counted(trial.images, 'image')}: segment "
        f"{trial.segment_seconds:.3f} s an image, "
        f"{trial.accepted} of {trial.images} accepted; compose "
        f"{trial.compose_seconds:.3f} s"
    )
    segment = forecast.left * trial.segment_seconds
    error = forecast.left * trial.segment_error
    compose = selected * trial.compose_seconds
    print(
        f"estimate: {duration((segment + compose) / workers)} with --direct_num_workers {workers} "
        f"(one core: {duration(segment)} +- {duration(error)} to segment, at most "
        f"{duration(compose)} to compose)"
    )
    sizes = {"layers": accepted * trial.layer_bytes} if config.layers == "keep" else {}
    sizes |= {name: selected * each for name, each in trial.output_bytes.items()}
    parts = ", ".join(f"{size(value)} {name}" for name, value in sizes.items())
    print(
        f"estimate: about {counted(round(selected), 'image')} in the dataset, "
        f"{size(sum(sizes.values()))} ({parts}){_free(job.store)}"
    )


def _free(store: Store) -> str:
    """Describes the free space of the disk; empty for object storage."""
    if store.is_remote:
        return ""
    path = store.root
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return f"; {size(shutil.disk_usage(path).free)} free"


def _print_model(
    name: str,
    job: GenerateJob,
    forecast: Forecast,
    works: Mapping[Analysis, Work],
    make_trial: Callable[[], Trial | None],
) -> None:
    """Prints how long a model will take in each stage."""
    from pipeline.models.predict import Predictor
    from pipeline.models.registry import load_model

    evaluation = next(iter(works.values())).evaluation
    started = time.perf_counter()
    try:
        model = load_model(name, evaluation.weights, job.taxonomy)
    except JobError as error:
        print(f"{name}: {error}")
        return
    load = time.perf_counter() - started
    left: dict[Analysis, int] = {}
    if forecast.is_up_to_date:
        dataset = Dataset.open(evaluation.store)
        left = {analysis: _left(work, dataset, model) for analysis, work in works.items()}
        for analysis, count in left.items():
            if not count and analysis.done:
                print(f"{name}: {analysis.done} already")
        if not any(left.values()):
            return
    trial = make_trial()
    if trial is None:
        return
    if not forecast.is_up_to_date:
        (split,) = (each for each in forecast.splits if each.split == evaluation.split)
        selected = _selected(job.config, split, trial)
        expected = (evaluation.holdout or 1.0) * selected
        variants = job.config.compose.composed
        left = {
            analysis: analysis.parts.forecast(work, expected, variants) or 0
            for analysis, work in works.items()
        }
    try:
        predictor = Predictor(model, evaluation.predict)
        rate = _pictures_a_second(predictor, trial, job.config.segment.image_size)
    except ModelError as error:
        print(f"{name}: {error}")
        return
    del model
    gc.collect()
    if not rate:
        return
    for analysis, count in left.items():
        article = "an" if analysis.name[0] in "aeiou" else "a"
        if count and analysis is ANALYSES[0]:
            print(
                f"{name}: about {duration(load + count / rate)} for {count} {analysis.items} on "
                f"{predictor.device.type} ({rate:.1f} a second)"
            )
        elif count:
            print(
                f"{name}: about {duration(count / rate)} for {article} {analysis.name} with "
                f"{count} {analysis.items}"
            )


def _left(work: Work, dataset: Dataset, model: LoadedModel) -> int:
    """Counts the pictures of a stage that are not predicted yet."""
    model_work = work.for_model(dataset, work.describe(dataset, model))
    if model_work is None:
        return 0
    missing = (unit for unit in work.units(dataset) if not model_work.is_done(unit))
    return sum(work.size(dataset, unit) for unit in missing)


def _pictures_a_second(predictor: Predictor, trial: Trial, side: int) -> float:
    """Measures how many pictures a second a model predicts, on the pictures of the trial; returns 0
    if there are none. The first batch counts only if it is the only one, because libraries
    initialize in it."""
    keep_freed_memory()
    started = time.perf_counter()
    done, rate = 0, 0.0
    pictures = predictor.logits(trial.parts(), side)
    for number, (batch, _) in enumerate(pictures):
        done += len(batch.rows)
        rate = done / (time.perf_counter() - started)
        if number == 0:
            done, started = 0, time.perf_counter()
        elif time.perf_counter() - started > _EVALUATE_SECONDS:
            break
    return rate
