"""`--dry_run`: says what a job would do, how long and how large; writes nothing that stays."""

from __future__ import annotations

import functools
import gc
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.folder import Dataset
from pipeline.errors import JobError
from pipeline.generate.job import Job
from pipeline.generate.rejections import advise
from pipeline.jobs.closing_words import size
from pipeline.jobs.dry_run.estimate import Measured, Trial, choose, run_trial
from pipeline.jobs.dry_run.forecast import Forecast, SplitForecast, make_forecast
from pipeline.runtime.memory import keep_freed_memory
from pipeline.runtime.progress import duration
from pipeline.storage.store import Store
from transforms.taxonomy import Taxonomy
from transforms.variants import is_picture

if TYPE_CHECKING:
    from pipeline.analyses.attack.plan import Attacking
    from pipeline.evaluate.plan import Evaluation
    from pipeline.models import LoadedModel
    from pipeline.models.predict import Predictor

_EVALUATE_SECONDS = 5.0
"""How long a model is measured, if it has that much to do."""


def dry_run(
    job: Job,
    evaluation: Evaluation | None,
    taxonomy: Taxonomy,
    workers: int,
    attacking: Attacking | None = None,
) -> None:
    """Prints what a job would do.

    Args:
      job: what to generate.
      evaluation: what to evaluate, if anything.
      taxonomy: of the labels.
      workers: how many of them work at the same time.
      attacking: what to attack, if anything.

    Raises:
      UsageError, OSError: as the job would.
    """
    print("dry run: looking at names and annotations", file=sys.stderr)
    forecast = make_forecast(job, taxonomy)
    for split in forecast.splits:
        _print_split(split, taxonomy, job.config)
    if forecast.is_up_to_date:
        print("dataset: up to date")
    with tempfile.TemporaryDirectory(prefix="in9-") as folder:
        make_trial = functools.cache(lambda: _trial(job, forecast, taxonomy, folder))
        if not forecast.is_up_to_date:
            _print_estimate(job, forecast, make_trial(), workers)
        if evaluation is not None:
            for model in evaluation.models:
                _print_model(model, job, forecast, evaluation, make_trial, attacking)
    print("dry run: nothing was written")


def _trial(job: Job, forecast: Forecast, taxonomy: Taxonomy, folder: str) -> Trial | None:
    """A few images, done; None if no image can be accepted."""
    images = choose(forecast)
    if not images:
        return None
    print(f"dry run: measuring {len(images)} images", file=sys.stderr)
    return run_trial(job.config, images, taxonomy, folder, job.scenes)


def _print_split(split: SplitForecast, taxonomy: Taxonomy, config: DatasetConfig) -> None:
    classes = ", ".join(f"{n} {split.classes[n]}" for n in taxonomy.names if n in split.classes)
    print(
        f"{split.split}: {split.listed} images ({classes}), {split.outside} of other classes, "
        f"{split.other_files} other files"
    )
    reasons = ", ".join(f"{count} {reason}" for reason, count in split.rejected.items())
    print(
        f"{split.split}: {sum(split.rejected.values())} rejected for name or annotation alone"
        + (f" ({reasons})" if reasons else "")
    )
    for line in advise(split.rejected, split.listed):
        print(f"{split.split}: {line}")
    is_whole = config.segment.is_whole
    done, to_do = ("looked at", "to look at") if is_whole else ("segmented", "to segment")
    print(f"{split.split}: {split.done} {done} already, {len(split.left)} {to_do}")


def _selected(config: DatasetConfig, split: SplitForecast, measured: Measured) -> float:
    """How many images of a split will probably be part of the dataset."""
    rate = measured.accepted / measured.images if split.left else 1.0
    expected = len(split.accepted) + rate * len(split.left)
    per_class = config.compose.per_class
    if per_class == "all" or not split.candidates:
        return expected
    share = expected / len(split.candidates)
    labels = [image.label for image in split.candidates]
    sizes = [share * labels.count(label) for label in set(labels)]
    limit = min(sizes) if per_class == "min" else float(per_class)
    return sum(min(limit, size_of_class) for size_of_class in sizes)


def _print_estimate(job: Job, forecast: Forecast, trial: Trial | None, workers: int) -> None:
    if trial is None:
        print("estimate: seconds; no image is left to segment")
        return
    config, measured = job.config, trial.measured
    rate = measured.accepted / measured.images
    accepted = sum(len(s.accepted) + rate * len(s.left) for s in forecast.splits)
    selected = sum(_selected(config, split, measured) for split in forecast.splits)
    print(
        f"measured on {measured.images} images: segment {measured.segment_seconds:.3f} s an image, "
        f"{measured.accepted} of {measured.images} accepted; compose "
        f"{measured.compose_seconds:.3f} s"
    )
    segment = forecast.left * measured.segment_seconds
    error = forecast.left * measured.segment_error
    compose = selected * measured.compose_seconds
    print(
        f"estimate: {duration((segment + compose) / workers)} with --direct_num_workers {workers} "
        f"(one core: {duration(segment)} +- {duration(error)} to segment, at most "
        f"{duration(compose)} to compose)"
    )
    sizes = {"layers": accepted * measured.layer_bytes} if config.layers == "keep" else {}
    sizes |= {name: selected * each for name, each in measured.output_bytes.items()}
    parts = ", ".join(f"{size(value)} {name}" for name, value in sizes.items())
    print(
        f"estimate: about {selected:.0f} images in the dataset, {size(sum(sizes.values()))} "
        f"({parts}){_free(job.store)}"
    )


def _free(store: Store) -> str:
    """What is left of the disk; object storage has no end."""
    if store.is_remote:
        return ""
    return f"; {size(shutil.disk_usage(_existing(store.root)).free)} free"


def _existing(path: str) -> str:
    """The path, or the closest folder above it that is there."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def _expected_pictures(job: Job, forecast: Forecast, measured: Measured, split: str) -> int:
    """How many pictures a model will probably be evaluated on."""
    variants = sum(is_picture(name) for name in job.config.compose.composed)
    (found,) = (each for each in forecast.splits if each.split == split)
    return round(variants * _selected(job.config, found, measured))


def _print_model(
    name: str,
    job: Job,
    forecast: Forecast,
    evaluation: Evaluation,
    make_trial: Callable[[], Trial | None],
    attacking: Attacking | None,
) -> None:
    """Says what a model takes."""
    from pipeline.evaluate.shards import find_predictions
    from pipeline.models import load_model
    from pipeline.models.predict import Predictor

    started = time.perf_counter()
    try:
        model = load_model(name, evaluation.weights, job.taxonomy)
    except JobError as error:
        print(f"{name}: {error}")
        return
    load = time.perf_counter() - started
    pictures = composites = None
    if forecast.is_up_to_date:
        dataset = Dataset.open(evaluation.store)
        pictures = sum(
            dataset.pictures(evaluation.split, shard)
            for shard in dataset.shards(evaluation.split)
            if not find_predictions(evaluation, dataset, model, shard).are_there
        )
        composites = _composites_left(attacking, dataset, model) if attacking else 0
        if not pictures:
            print(f"{name}: evaluated already")
        if attacking and not composites:
            print(f"{name}: attacked already")
        if not pictures and not composites:
            return
    trial = make_trial()
    if trial is None:
        return
    if pictures is None:
        pictures = _expected_pictures(job, forecast, trial.measured, evaluation.split)
    rate = _pictures_a_second(Predictor(model, evaluation.predict), trial)
    del model
    gc.collect()
    if not rate:
        return
    if pictures:
        print(
            f"{name}: about {duration(load + pictures / rate)} for {pictures} pictures on "
            f"{evaluation.predict.device} ({rate:.1f} a second)"
        )
    if attacking and composites is None:
        images = pictures // sum(is_picture(v) for v in job.config.compose.composed)
        sides = (attacking.foregrounds, attacking.backgrounds)
        composites = math.prod(images if n is None else min(n, images) for n in sides)
    if composites:
        print(
            f"{name}: about {duration(composites / rate)} for an attack with {composites} "
            "composites"
        )


def _composites_left(attacking: Attacking, dataset: Dataset, model: LoadedModel) -> int:
    """How many composites of an attack are not predicted yet."""
    from pipeline.analyses.attack.chunks import Chunks
    from pipeline.analyses.attack.plan import open_grid
    from pipeline.evaluate.plan import model_identity

    grid = open_grid(dataset, attacking)
    about = model_identity(model, attacking.evaluation, dataset)
    chunks = Chunks(dataset, attacking, grid, model, about)
    left = (n for n in grid.chunks if not chunks.is_there(n))
    return len(grid.backgrounds) * sum(len(grid.positions(n)) for n in left)


def _pictures_a_second(predictor: Predictor, trial: Trial) -> float:
    """Speed of a model on the trial's pictures, 0 if it has none. The first batch, in which
    libraries set themselves up, counts only if there is no other."""
    keep_freed_memory()
    started = time.perf_counter()
    done, rate = 0, 0.0
    for number, (batch, _) in enumerate(predictor.logits(trial.samples())):
        done += len(batch)
        rate = done / (time.perf_counter() - started)
        if number == 0:
            done, started = 0, time.perf_counter()
        elif time.perf_counter() - started > _EVALUATE_SECONDS:
            break
    return rate
