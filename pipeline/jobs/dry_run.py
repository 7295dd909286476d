"""What `--dry_run` says: a forecast, and estimates of time and size.

The estimates come from a job on a few images in a temporary folder; no other file is written.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import itertools
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.analyses import ANALYSES
from pipeline.analyses.analysis import Analysis
from pipeline.dataset.config import FORMATS, DatasetConfig
from pipeline.dataset.folder import Dataset, read_tables
from pipeline.dataset.records import ACCEPTED, ShardCounts
from pipeline.errors import JobError, ModelError, counted
from pipeline.evaluate.planned import PlannedAnalysis
from pipeline.generate.compose import ComposeShard
from pipeline.generate.cut_source import announce
from pipeline.generate.graph import IdentifySources
from pipeline.generate.job import GenerateJob
from pipeline.generate.plan import PlanSplit
from pipeline.generate.segment import SegmentShard
from pipeline.generate.shard_elements import SourceShard, SplitTotals
from pipeline.inputs.location import NOWHERE
from pipeline.inputs.source_images import SourceImage
from pipeline.jobs.forecast import Forecast, SplitForecast, make_forecast
from pipeline.jobs.messages import advise, size
from pipeline.runtime.machine import keep_freed_memory
from pipeline.runtime.progress import Progress, duration
from pipeline.storage.store import FileDigest, Store
from transforms.filters import Reason
from transforms.hashing import keyed_hash
from transforms.variants import VariantName

if TYPE_CHECKING:
    from pipeline.models.predict import Predictor
    from pipeline.models.source import LoadedModel


SAMPLE_IMAGES = 24
"""Number of images that are measured, chosen by the hash of their name."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """A few images of a job, made in a temporary folder on one core of this machine.

    Attributes:
      pictures: paths, in this folder, of the files with composed pictures to evaluate models on.
      images: number of segmented images, at least 1.
      accepted: number of the segmented images that were accepted and got a layer.
      selected: number of the accepted images that were composed.
      segment_seconds: mean time to segment an image, in seconds.
      segment_error: half-width of the 95 % interval of `segment_seconds`; 0 for a single image.
      compose_seconds: mean time to compose all variants of a selected image, in seconds; 0 if no
        image was selected.
      layer_bytes: mean size of an accepted image's layer.
      output_bytes: mean size of all variants of a selected image, by folder of the dataset.
    """

    store: Store
    pictures: tuple[str, ...]
    images: int
    accepted: int
    selected: int
    segment_seconds: float
    segment_error: float
    compose_seconds: float
    layer_bytes: float
    output_bytes: dict[str, float]

    def picture_sets(self) -> Iterator[_Composed]:
        """Yields the composed pictures in the form in which a `Predictor` reads them."""
        return (_Composed(self.store, path) for path in self.pictures)


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
    pool = [image for split in forecast.splits for image in split.left]
    if not pool:
        # An image is repeated for each of its objects.
        pool = list(dict.fromkeys(image for split in forecast.splits for image in split.accepted))
    # A recipe does not need every picture.
    pool = [image for image in pool if image.location != NOWHERE]
    return sorted(pool, key=lambda i: keyed_hash(0, "estimate", i.name))[:SAMPLE_IMAGES]


def run_trial(job: GenerateJob, images: Sequence[SourceImage], folder: str) -> Trial:
    """Runs the stages of a job on a few images.

    Args:
      images: at least one image; each image becomes a shard of its own.
      folder: an empty temporary folder.

    Raises:
      OSError: an image cannot be read, or the temporary folder is full.
      JobError: a custom segmenter or variant failed.
    """
    store = Store(folder)
    # So few images must find partners among themselves, so rules are relaxed, and --per_class must
    # not leave any of them out.
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
    job.cutter().segmenter.prepare(announce)
    segmented: list[SourceShard] = []
    seconds = []
    for number, image in enumerate(images):
        shard = SourceShard(totals, number, (image,))
        (shard,) = IdentifySources(job).process(shard) if job.recipe else (shard,)
        started = time.perf_counter()
        segmented += segment.process(shard)
        seconds.append(time.perf_counter() - started)
    (output,) = PlanSplit(job).process(("trial", segmented))
    compose.setup()
    started = time.perf_counter()
    (composed,) = compose.process(output)
    compose_seconds = time.perf_counter() - started
    accepted = composed.statuses.get(ACCEPTED, 0)
    files = [file for shard in segmented for file in shard.record.files]
    files += composed.record.files
    sizes = _bytes_by_folder(files)
    selected = sum(composed.selected.values())
    error = 1.96 * statistics.stdev(seconds) / len(seconds) ** 0.5 if len(seconds) > 1 else 0.0
    format_ = lenient.formats[0]
    pictures = [
        compose.outputs.staged(file.path)
        for file in files
        if file.path.split("/")[0] == format_
        and VariantName.parse(file.path.split("/")[1]).is_picture
    ]
    return Trial(
        store=store,
        pictures=tuple(pictures),
        images=len(images),
        accepted=accepted,
        selected=selected,
        segment_seconds=statistics.fmean(seconds),
        segment_error=error,
        compose_seconds=compose_seconds / selected if selected else 0.0,
        layer_bytes=sizes.pop("layers", 0) / max(accepted, 1),
        output_bytes={name: size / max(selected, 1) for name, size in sizes.items()},
    )


def _bytes_by_folder(files: Sequence[FileDigest]) -> Counter[str]:
    """Sums up sizes in bytes by folder, without records and index.

    For a few images these are mostly overhead that the many images of a real shard share.
    """
    sizes: Counter[str] = Counter()
    for file in files:
        folder = file.path.partition("/")[0]
        if folder in FORMATS or file.path.endswith(".tar"):
            sizes[folder] += file.bytes
    return sizes


_EVALUATE_SECONDS = 5.0
"""How long the speed of a model is measured, if the trial has enough pictures."""


def dry_run(job: GenerateJob, plans: Mapping[str, PlannedAnalysis], workers: int) -> None:
    """Prints what a job would do.

    Args:
      plans: the `PlannedAnalysis`s that would run models, by name of their analysis.

    Raises:
      UsageError, OSError: the input cannot be used; the job would raise the same error.
      JobError: a custom function failed on an image that was measured; or all was printed, and the
        job would be refused.
    """
    print("dry run: reading names and annotations", file=sys.stderr)
    forecast = make_forecast(job)
    for split in forecast.splits:
        _print_split(split, job)
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
    if forecast.refusal:
        raise forecast.refusal


def _print_split(split: SplitForecast, job: GenerateJob) -> None:
    names = job.taxonomy.names
    classes = ", ".join(f"{name} {split.classes[name]}" for name in names if name in split.classes)
    print(
        f"{split.split}: {counted(split.listed, 'image')} ({classes}), {split.outside} of other "
        f"classes, {counted(split.other_files, 'other file')}"
    )
    if split.unmatched:
        print(f"{split.split}: {split.unmatched}")
    reasons = ", ".join(f"{count} {reason}" for reason, count in split.rejected.items())
    print(
        f"{split.split}: {sum(split.rejected.values())} rejected for name or annotation alone"
        + (f" ({reasons})" if reasons else "")
    )
    rejected = split.rejected | (
        {Reason.NO_BACKGROUND: split.without_partner} if split.without_partner else {}
    )
    # A recipe has decided on its images.
    for line in () if job.recipe else advise(rejected, split.listed):
        print(f"{split.split}: {line}")
    keeps_image_whole = job.config.segment.keeps_image_whole
    done, to_do = ("looked at", "to look at") if keeps_image_whole else ("segmented", "to segment")
    print(f"{split.split}: {split.done} {done} already, {len(split.left)} {to_do}")
    if split.without_partner:
        more = ", or more, if others are rejected" if split.left else ""
        print(
            f"{split.split}: {split.without_partner} of them without a background for every mixed "
            f"variant ({Reason.NO_BACKGROUND}){more}"
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
    labels = [image.label for image in itertools.compress(split.candidates, split.has_partner)]
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
    path = store.root
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return shutil.disk_usage(path).free


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
    left: dict[Analysis, int] = {}
    if forecast.is_up_to_date:
        dataset = Dataset.open(evaluation.store)
        left = {analysis: _left(plan, dataset, model) for analysis, plan in plans.items()}
        for analysis, count in left.items():
            if not count and analysis.done:
                print(f"{name}: {analysis.done} already")
        if not any(left.values()):
            return
    trial = make_trial()
    if trial is None:
        return
    if not forecast.is_up_to_date:
        expected = _tested(next(iter(plans.values())), job, forecast, make_trial)
        variants = job.config.compose.composed
        left = {
            analysis: analysis.parts.expected_pictures(plan, expected, variants) or 0
            for analysis, plan in plans.items()
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
    for number, (analysis, count) in enumerate(left.items()):
        article = "an" if analysis.name[0] in "aeiou" else "a"
        # Loading counts once, for the first stage of the job.
        if count and not number:
            print(
                f"{name}: about {duration(load + count / rate)} for {count} {analysis.items} on "
                f"{predictor.device.type} ({rate:.1f} a second)"
            )
        elif count:
            print(
                f"{name}: about {duration(count / rate)} for {article} {analysis.name} with "
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
    (split,) = (each for each in forecast.splits if each.split == evaluation.split)
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
    pictures = predictor.logits(trial.picture_sets(), side)
    for number, (batch, _) in enumerate(pictures):
        done += len(batch.rows)
        rate = done / (time.perf_counter() - started)
        if number == 0:
            done, started = 0, time.perf_counter()
        elif time.perf_counter() - started > _EVALUATE_SECONDS:
            break
    return rate
