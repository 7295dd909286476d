"""What `--dry_run` says: a forecast, and estimates of time and size.

The estimates come from a job on a few images in a temporary folder; no other file is written.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import heapq
import itertools
import math
import posixpath
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.analyses import ANALYSES
from pipeline.analyses.analysis import Analysis
from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.folder import Dataset, read_tables
from pipeline.dataset.records import ACCEPTED, ShardCounts
from pipeline.errors import JobError, ModelError, counted
from pipeline.evaluate.planned import PlannedAnalysis
from pipeline.generate.compose import ComposeShard
from pipeline.generate.cut_source import announce
from pipeline.generate.graph import IdentifySources, deal_guarded
from pipeline.generate.job import GenerateJob
from pipeline.generate.plan import PlanSplit
from pipeline.generate.segment import SegmentShard
from pipeline.generate.shard_elements import SourceShard, SplitTotals
from pipeline.inputs.location import NOWHERE
from pipeline.inputs.source_images import SourceImage
from pipeline.jobs.forecast import Forecast, SplitForecast, make_forecast
from pipeline.jobs.messages import advise, size
from pipeline.runtime.machine import keep_freed_memory
from pipeline.runtime.progress import (
    Progress,
    bytes_written,
    counted_here,
    duration,
    stage_seconds,
)
from pipeline.storage.store import Store
from transforms.filters import Reason
from transforms.hashing import keyed_hash

if TYPE_CHECKING:
    from pipeline.models.predict import Predictor
    from pipeline.models.source import LoadedModel


SAMPLE_IMAGES = 24
"""Number of images that are measured, chosen by the hash of their name."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """A few images of a job, made in a temporary folder on one core of this machine.

    Attributes:
      pictures: files with composed pictures to evaluate models on.
      images: number of segmented images, at least 1.
      accepted: number of the segmented images that were accepted and got a layer.
      selected: number of the accepted images that were composed.
      segment_seconds: mean time to segment an image, in seconds.
      segment_error: half-width of the 95 % interval of `segment_seconds`; 0 for a single image.
      compose_seconds: mean time to compose all variants of a selected image; 0 if there is none.
      layer_bytes: mean size of an accepted image's layer.
      output_bytes: mean size of all variants of a selected image, by folder of the dataset.
    """

    pictures: tuple[_Composed, ...]
    images: int
    accepted: int
    selected: int
    segment_seconds: float
    segment_error: float
    compose_seconds: float
    layer_bytes: float
    output_bytes: dict[str, float]


@dataclasses.dataclass(frozen=True)
class _Composed:
    """The pictures of a file, to be read once: a `pipeline.models.loader.PictureSet`."""

    store: Store
    path: str
    name: str = ""
    count: int = 0

    def tables(self, columns: tuple[str, ...]) -> Generator[pa.Table, None, None]:
        yield from read_tables(self.store, self.path, ("key", *columns))


def choose(forecast: Forecast) -> list[SourceImage]:
    """Chooses the images to measure among those to segment; if there are none, among accepted."""
    # An accepted image is repeated for each of its objects.
    pool = forecast.left or dict.fromkeys(i for split in forecast.splits for i in split.accepted)
    # A recipe does not need every picture.
    known = (image for image in pool if image.location != NOWHERE)
    return heapq.nsmallest(SAMPLE_IMAGES, known, lambda i: keyed_hash(0, "estimate", i.name))


def run_trial(job: GenerateJob, forecast: Forecast, folder: str) -> Trial | None:
    """Runs the stages of a job on a few images, a shard each; None if no image can be accepted.

    The folder is an empty temporary one. Raises OSError if an image cannot be read, or the folder
    is full; JobError if a custom segmenter or variant failed.
    """
    images = choose(forecast)
    if not images:
        return None
    print(f"dry run: measuring {counted(len(images), 'image')}", file=sys.stderr)
    store = Store(folder)
    # So few images find partners only if rules are relaxed and --per_class leaves none out.
    lenient = dataclasses.replace(
        job.config.compose, own_background=True, mixed_rand="any", per_class="all"
    )
    job = dataclasses.replace(
        job,
        config=dataclasses.replace(job.config, compose=lenient),
        store=store,
        progress=Progress.for_store(store),
        previous={},
    )
    totals = SplitTotals("trial", ShardCounts(len(images), 1), len(images), 0, 0)
    segment, compose = SegmentShard(job), ComposeShard(job)
    segment.setup()
    compose.setup()
    job.cutter().segmenter.prepare(announce)
    segmented: list[SourceShard] = []
    seconds = []
    with counted_here() as counters:
        for number, image in enumerate(images):
            shard = SourceShard(totals, number, (image,))
            (shard,) = IdentifySources(job).process(shard)
            started = time.perf_counter()
            segmented += segment.process(shard)
            seconds.append(time.perf_counter() - started)
        (output,) = PlanSplit(job).process(("trial", segmented))
        (composed,) = compose.process(output)
    accepted = composed.statuses.get(ACCEPTED, 0)
    selected = sum(composed.selected.values())
    # Without records and index, whose overhead the many images of a real shard share.
    sizes = bytes_written(counters)
    error = 1.96 * statistics.stdev(seconds) / len(seconds) ** 0.5 if len(seconds) > 1 else 0.0
    folders = [f"{lenient.formats[0]}/{name}" for name in lenient.composed if name.is_picture]
    return Trial(
        pictures=tuple(
            _Composed(store, compose.outputs.staged(file.path))
            for file in composed.record.files
            if posixpath.dirname(file.path) in folders
        ),
        images=len(images),
        accepted=accepted,
        selected=selected,
        segment_seconds=statistics.fmean(seconds),
        segment_error=error,
        compose_seconds=selected and stage_seconds(counters, ["compose"])["compose"] / selected,
        layer_bytes=sizes.pop("layers", 0) / max(accepted, 1),
        output_bytes={name: size / max(selected, 1) for name, size in sizes.items()},
    )


_EVALUATE_SECONDS = 5.0
"""How long the speed of a model is measured, if the trial has enough pictures."""


def dry_run(job: GenerateJob, plans: Mapping[str, PlannedAnalysis], workers: int) -> None:
    """Prints what a job would do; `plans` are those of analyses that would run models, by name.

    Raises UsageError or OSError if the input cannot be used, as the job would; JobError if a custom
    function failed on an image that was measured, or all was printed, and the job would be refused.
    """
    print("dry run: reading names and annotations", file=sys.stderr)
    forecast = make_forecast(job)
    for split in forecast.splits:
        for line in _split_lines(split, job):
            print(f"{split.totals.split}: {line}")
    if forecast.is_up_to_date:
        print("dataset: up to date")
    with tempfile.TemporaryDirectory(prefix="in9-") as folder:
        make_trial = functools.cache(functools.partial(run_trial, job, forecast, folder))
        if not forecast.is_up_to_date:
            _print_estimate(job, forecast, make_trial(), workers)
        variants = job.config.compose.composed
        # The time of other analyses does not follow from the number of pictures.
        timed = {
            analysis: plans[analysis.name]
            for analysis in ANALYSES
            if analysis.name in plans
            and analysis.parts.expected_pictures(plans[analysis.name], 0, variants) is not None
        }
        for analysis, work in timed.items():
            images = _tested(work, job, forecast, make_trial)
            for line in analysis.parts.dry_run_lines(work, round(images), variants):
                print(line)
        if timed:
            for model in next(iter(timed.values())).evaluation.models:
                _print_model(model, job, forecast, timed, make_trial)
    print("dry run: nothing was written")
    deal_guarded(job, forecast.listed)  # Raises JobError if the job would be refused.


def _split_lines(split: SplitForecast, job: GenerateJob) -> Iterator[str]:
    """Yields what is known of a split."""
    totals, names = split.totals, job.taxonomy.names
    classes = ", ".join(f"{name} {split.classes[name]}" for name in names if name in split.classes)
    yield (
        f"{counted(totals.listed, 'image')} ({classes}), {totals.outside} of other classes, "
        f"{counted(totals.other_files, 'other file')}"
    )
    if totals.unmatched:
        yield totals.unmatched
    rejected, left = sum(split.rejected.values()), len(split.left)
    reasons = ", ".join(f"{count} {reason}" for reason, count in split.rejected.items())
    yield f"{rejected} rejected for name or annotation alone" + f" ({reasons})" * bool(reasons)
    without_partner = split.has_partner.count(False)
    all_rejected = split.rejected | (
        {Reason.NO_BACKGROUND: without_partner} if without_partner else {}
    )
    yield from () if job.origin.is_settled else advise(all_rejected, totals.listed)
    is_cut = not job.config.segment.keeps_image_whole
    done, to_do = ("segmented", "segment") if is_cut else ("looked at", "look at")
    yield f"{totals.listed - rejected - left} {done} already, {left} to {to_do}"
    if without_partner:
        yield (
            f"{without_partner} of them without a background for every mixed variant "
            f"({Reason.NO_BACKGROUND})" + ", or more, if others are rejected" * bool(left)
        )


def _selected(config: DatasetConfig, split: SplitForecast, trial: Trial) -> float:
    """Estimates how many images of a split will be part of the dataset."""
    rate = trial.accepted / trial.images if split.left else 1.0
    accepted = len(split.accepted)
    expected = sum(split.has_partner[:accepted]) + rate * sum(split.has_partner[accepted:])
    per_class = config.compose.per_class
    if per_class == "all" or not any(split.has_partner):
        return expected
    share = expected / sum(split.has_partner)
    paired = itertools.compress(split.candidates, split.has_partner)
    sizes = [share * count for count in Counter(image.label for image in paired).values()]
    limit = min(sizes) if per_class == "min" else float(per_class)
    return sum(min(limit, size_of_class) for size_of_class in sizes)


def _print_estimate(
    job: GenerateJob, forecast: Forecast, trial: Trial | None, workers: int
) -> None:
    if trial is None:
        print("estimate: seconds; no image is left to segment")
        return
    rate = trial.accepted / trial.images
    accepted = sum(len(s.accepted) + rate * len(s.left) for s in forecast.splits)
    selected = sum(_selected(job.config, split, trial) for split in forecast.splits)
    print(
        f"measured on {counted(trial.images, 'image')}: segment "
        f"{trial.segment_seconds:.3f} s an image, "
        f"{trial.accepted} of {trial.images} accepted; compose "
        f"{trial.compose_seconds:.3f} s"
    )
    segment = len(forecast.left) * trial.segment_seconds
    error = len(forecast.left) * trial.segment_error
    compose = selected * trial.compose_seconds
    print(
        f"estimate: {duration((segment + compose) / workers)} with --direct_num_workers {workers} "
        f"(one core: {duration(segment)} +- {duration(error)} to segment, at most "
        f"{duration(compose)} to compose)"
    )
    sizes = {"layers": accepted * trial.layer_bytes} if job.config.layers == "keep" else {}
    sizes |= {name: selected * each for name, each in trial.output_bytes.items()}
    parts = ", ".join(f"{size(value)} {name}" for name, value in sizes.items())
    total, free = sum(sizes.values()), _free(job.store)
    print(
        f"estimate: about {counted(round(selected), 'image')} in the dataset, "
        f"{size(total)} ({parts})"
        + (f"; {size(free)} free" if free < math.inf else "")
        + (f", too little; free some space for {job.store.root}" if total > free else "")
    )


def _free(store: Store) -> float:
    """Returns the free space of the disk in bytes; infinity for object storage."""
    if store.is_remote:
        return math.inf
    folders = (Path(store.root), *Path(store.root).parents)
    return shutil.disk_usage(next(folder for folder in folders if folder.exists())).free


def _print_model(
    name: str,
    job: GenerateJob,
    forecast: Forecast,
    plans: Mapping[Analysis, PlannedAnalysis],
    make_trial: Callable[[], Trial | None],
) -> None:
    """Prints how long a model will take in each stage."""
    from pipeline.models.predict import Predictor
    from pipeline.models.registry import load_model

    evaluation = next(iter(plans.values())).evaluation
    started = time.perf_counter()
    try:
        model = load_model(name, evaluation.weights, job.taxonomy)
    except JobError as error:
        print(f"{name}: {error}")
        return
    load = time.perf_counter() - started
    if forecast.is_up_to_date:
        dataset = Dataset.open(evaluation.store)
        left = {analysis: _left(plan, dataset, model) for analysis, plan in plans.items()}
        for analysis, count in left.items():
            if not count and analysis.done:
                print(f"{name}: {analysis.done} already")
        if not any(left.values()):
            return
    else:
        expected = _tested(next(iter(plans.values())), job, forecast, make_trial)
        left = {
            analysis: analysis.parts.expected_pictures(plan, expected, job.config.compose.composed)
            or 0
            for analysis, plan in plans.items()
        }
    trial = make_trial()
    if trial is None:
        return
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
    for number, (analysis, count) in enumerate(left.items()):
        # Loading counts once, for the first stage of the job.
        if count and not number:
            print(
                f"{name}: about {duration(load + count / rate)} for {count} {analysis.items} on "
                f"{predictor.device.type} ({rate:.1f} a second)"
            )
        elif count:
            print(
                f"{name}: about {duration(count / rate)} for "
                f"{'an' if analysis.name[0] in 'aeiou' else 'a'} {analysis.name} with "
                f"{count} {analysis.items}"
            )


def _tested(
    work: PlannedAnalysis,
    job: GenerateJob,
    forecast: Forecast,
    make_trial: Callable[[], Trial | None],
) -> float:
    """Estimates how many images a model will be tested on."""
    evaluation = work.evaluation
    if forecast.is_up_to_date:
        return len(evaluation.rows(Dataset.open(evaluation.store)))
    (split,) = (each for each in forecast.splits if each.totals.split == evaluation.split)
    trial = make_trial()
    return (evaluation.holdout or 1.0) * _selected(job.config, split, trial) if trial else 0.0


def _left(work: PlannedAnalysis, dataset: Dataset, model: LoadedModel) -> int:
    """Counts the pictures of a stage that are not predicted yet."""
    model_work = work.for_model(dataset, work.evaluation.describe(dataset, model))
    if model_work is None:
        return 0
    missing = (chunk for chunk in work.chunks(dataset) if not model_work.is_done(chunk))
    return sum(work.size(dataset, chunk) for chunk in missing)


def _pictures_a_second(predictor: Predictor, trial: Trial, side: int) -> float:
    """Measures how many of the trial's pictures a model predicts a second; 0 if there are none.

    The first batch counts only if it is the only one, because libraries initialize in it.
    """
    keep_freed_memory()
    started = time.perf_counter()
    done, rate = 0, 0.0
    pictures = predictor.logits(trial.pictures, side)
    for number, (batch, _) in enumerate(pictures):
        done += len(batch.rows)
        rate = done / (time.perf_counter() - started)
        if number == 0:
            done, started = 0, time.perf_counter()
        elif time.perf_counter() - started > _EVALUATE_SECONDS:
            break
    return rate
