"""What `--dry_run` says: what a job would find and do, and estimates of time and size.

The first is known from names, annotations and records alone. Work of an earlier run counts as done
if that run has stored checksums of its inputs; without them, the inputs would have to be read. The
estimates come from a small dataset of a few images in a temporary folder; no other file is written.
"""

import dataclasses
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.analyses import ANALYSES, Analysis
from pipeline.analyses.evaluation import EVALUATION
from pipeline.dataset.config import DatasetConfig, SegmentConfig
from pipeline.dataset.folder import Dataset
from pipeline.dataset.manifest import read_manifest
from pipeline.dataset.records import ACCEPTED, ShardCounts
from pipeline.errors import JobError, counted
from pipeline.evaluate.comparisons import Sample
from pipeline.evaluate.planned import PlannedAnalysis
from pipeline.evaluate.predict_shards import Scorer, ShardPictures
from pipeline.evaluate.predictions import EvalImages
from pipeline.generate.commit import commit
from pipeline.generate.compose import ComposeShard
from pipeline.generate.cut_source import announce, reject_by_name
from pipeline.generate.graph import IdentifySources, deal_guarded, list_split
from pipeline.generate.origin import GenerateJob
from pipeline.generate.plan import PlanSplit, group_numbers, select_images
from pipeline.generate.previous_layers import PreviousLayers, Survey
from pipeline.generate.segment import SegmentShard
from pipeline.generate.shard_elements import SourceShard, SplitTotals, make_shards
from pipeline.inputs.input_format import SplitLayout
from pipeline.inputs.location import NOWHERE, read_location
from pipeline.inputs.source_images import SourceImage
from pipeline.jobs.conditions import MIN_IMAGES, Gate
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
from transforms.cutting import check_annotation
from transforms.filters import Reason
from transforms.hashing import keyed_hash
from transforms.intervals import level_of
from transforms.segmentation import takes_masks
from transforms.variants import VariantName

SAMPLE_IMAGES = 24
"""Number of images that are measured, chosen by the hash of their name."""
_EVALUATE_SECONDS = 5.0
"""How long the speed of a model is measured, if there are enough pictures."""

_BY_ANNOTATION = frozenset(
    {
        Reason.INVALID_KEY,
        Reason.DUPLICATE_KEY,
        Reason.EXCLUDED,
        Reason.MISSING_ANNOTATION,
        Reason.UNREADABLE_ANNOTATION,
        Reason.NOT_ONE_BOX,
        Reason.INVALID_BOX,
        Reason.BOX_TOO_LARGE,
        Reason.BOX_OFF_CENTER,
    }
)
"""Reasons in a record that names or annotations alone have shown. Annotations may also lead to
`too_many_pixels` and `size_mismatch`, but in a record these usually come from the picture."""


def dry_run(
    job: GenerateJob | None, plans: Mapping[str, PlannedAnalysis], gate: Gate | None, workers: int
) -> None:
    """Prints what a job would do, or the evaluation of a finished dataset, which has no job.

    `plans` are those of analyses that would run models, by name.

    Raises UsageError or OSError if the input cannot be used, as the job would; JobError if a custom
    function failed on an image that was measured, or all was printed, and the job would be refused.
    """
    if job is None:
        _print_analyses(plans, gate, Dataset.open(plans[EVALUATION.name].evaluation.store))
        print("dry run: nothing was written")
        return
    print("dry run: reading names and annotations", file=sys.stderr)
    splits = [forecast_split(job, layout) for layout in job.layouts]
    for split in splits:
        for line in _split_lines(split, job):
            print(f"{split.totals.split}: {line}")
    manifest = read_manifest(job.store)
    with tempfile.TemporaryDirectory(prefix="in9-") as folder:
        if (
            manifest is not None
            and (manifest.config, manifest.about) == (job.config, job.about)
            and not job.reshard
            and all(split.is_up_to_date for split in splits)
        ):
            print("dataset: up to date")
            _print_analyses(plans, gate, Dataset.open(job.store))
        elif trial := _run_trial(job, splits, folder):
            _print_estimate(job, splits, trial, workers)
            _print_analyses(plans, gate, trial.dataset, splits, trial)
        else:
            print("estimate: seconds; no image is left to segment")
    print("dry run: nothing was written")
    # Raises JobError if the job would be refused.
    deal_guarded(job, {split.totals: split.images for split in splits})


@dataclasses.dataclass
class SplitForecast:
    """What a job would find and do in one split.

    Attributes:
      images: all listed images.
      rejected: number of images by reason for rejection, as far as names and annotations show it.
      accepted: images that an earlier run has accepted, once for each accepted object.
      left: images to segment.
      without_partner: number of images without a background for every mixed variant, if all of
        `accepted` and `left` were accepted.
      selected: how many of `accepted`, and of `left`, would be in the dataset then.
      is_up_to_date: whether all records are up to date and in the dataset.
    """

    totals: SplitTotals
    images: Sequence[SourceImage]
    rejected: Counter[str] = dataclasses.field(default_factory=Counter)
    accepted: list[SourceImage] = dataclasses.field(default_factory=list)
    left: list[SourceImage] = dataclasses.field(default_factory=list)
    without_partner: int = 0
    selected: tuple[int, int] = (0, 0)
    is_up_to_date: bool = True


def forecast_split(job: GenerateJob, layout: SplitLayout) -> SplitForecast:
    """Makes the forecast of a split, writing nothing; UsageError if its input cannot be used."""
    images, totals = list_split(job, layout)
    job.origin.refuse_lacking(images)
    split = SplitForecast(totals, images)
    previous = PreviousLayers(
        job.store, totals.split, job.previous.get(totals.split, totals.counts)
    )
    for shard in make_shards(images, totals):
        found = Survey(job.layer_staging(), job.config, shard.make())
        rows = found.read_rows()
        split.is_up_to_date &= (
            rows is not None and found.record is not None and found.record.path == found.path
        )
        recorded: dict[str | None, list[str]] = {}
        for row in rows or ():
            recorded.setdefault(row.source_digest, []).append(row.status)
        before = (None, *found.images)
        for preceding, image, digest in zip(before, found.images, found.digests, strict=False):
            statuses = recorded.get(digest, [])
            if rows is None and digest is not None:
                statuses = [row.status for row in previous.rows(image.key, digest)]
            if reason := _reject_early(image, preceding, statuses, job.config.segment):
                split.rejected[reason] += 1
            elif statuses:
                split.accepted += [image] * statuses.count(ACCEPTED)
            else:
                split.left.append(image)
    _select(split, job.config)
    return split


def _reject_early(
    image: SourceImage,
    preceding: SourceImage | None,
    statuses: Sequence[str],
    config: SegmentConfig,
) -> str | None:
    """Returns why an image is rejected, if its name, its annotation or a missing file shows it.

    `preceding` is for `reject_by_name`; `statuses` are those in its record, none if the image has
    not been segmented.
    """
    if by_name := reject_by_name(image, preceding):
        return by_name[0]
    if statuses:
        return statuses[0] if _BY_ANNOTATION.issuperset(statuses) else None
    if config.keeps_image_whole or image.status:  # Neither needs an annotation.
        return None
    if takes_masks(config.segmenter) and (image.mask is None or image.annotation is None):
        # A mask is enough; boxes are optional.
        return Reason.MISSING_ANNOTATION if image.mask is None else None
    return check_annotation(image.annotation and read_location(image.annotation), config.rules)


def _select(split: SplitForecast, config: DatasetConfig) -> None:
    """Counts the images that would be in the dataset, and those without a background."""
    # Neither images of one group nor objects of one image can be each other's background.
    by_object = config.segment.objects == "each"
    images = [*split.accepted, *split.left]
    groups = [image.group or (image.key if by_object else None) for image in images]
    selected, no_background = select_images(
        pa.array([image.key for image in images], pa.string()),
        np.asarray([image.label for image in images], np.int64),
        config.compose,
        group_numbers(pa.array(groups, pa.string())),
    )
    accepted = len(split.accepted)
    split.selected = int(selected[:accepted].sum()), int(selected[accepted:].sum())
    split.without_partner = int(no_background.sum())


def _split_lines(split: SplitForecast, job: GenerateJob) -> Iterator[str]:
    """Yields what is known of a split."""
    totals, rejected, left = split.totals, split.rejected.total(), len(split.left)
    by_label = Counter(image.label for image in split.images)
    classes = ", ".join(
        f"{name} {by_label[label]}"
        for label, name in enumerate(job.taxonomy.names)
        if by_label[label]
    )
    yield (
        f"{counted(totals.listed, 'image')} ({classes}), {totals.outside} of other classes, "
        f"{counted(totals.other_files, 'other file')}"
    )
    if totals.unmatched:
        yield totals.unmatched
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(split.rejected.items()))
    yield f"{rejected} rejected for name or annotation alone" + f" ({reasons})" * bool(reasons)
    if not job.origin.recipe:
        without_partner = Counter({str(Reason.NO_BACKGROUND): split.without_partner})
        yield from advise(split.rejected + without_partner, totals.listed)
    is_whole = job.config.segment.keeps_image_whole
    done, to_do = ("looked at", "look at") if is_whole else ("segmented", "segment")
    yield f"{totals.listed - rejected - left} {done} already, {left} to {to_do}"
    if split.without_partner:
        yield (
            f"{split.without_partner} of them without a background for every mixed variant "
            f"({Reason.NO_BACKGROUND})" + ", or more, if others are rejected" * bool(left)
        )


@dataclasses.dataclass(frozen=True)
class Trial:
    """A dataset of a few images of a job, made in a temporary folder on one core of this machine.

    Attributes:
      seconds: time to segment each image.
      accepted: number of images, or objects, that were accepted.
      selected: number of these that were composed.
      counters: what was counted while the dataset was made, by name.
    """

    dataset: Dataset
    seconds: Sequence[float]
    accepted: int
    selected: int
    counters: Mapping[str, int]


def _run_trial(job: GenerateJob, splits: Sequence[SplitForecast], folder: str) -> Trial | None:
    """Makes a dataset of a few images, a shard each; None if no image can be accepted.

    The images are some of those to segment; of a split without such, of those that were accepted.
    """
    # An accepted image is repeated for each of its objects. A recipe does not need every picture.
    pool = {image for split in splits for image in split.left or split.accepted}
    known = (image for image in pool if image.location != NOWHERE)
    images = sorted(known, key=lambda i: keyed_hash(0, "estimate", i.name))[:SAMPLE_IMAGES]
    if not images:
        return None
    print(f"dry run: measuring {counted(len(images), 'image')}", file=sys.stderr)
    # So few images find partners only if rules are relaxed and --per_class leaves none out.
    lenient = dataclasses.replace(
        job.config.compose, own_background=True, mixed_rand="any", per_class="all"
    )
    store = Store(folder)
    job = dataclasses.replace(
        job,
        config=dataclasses.replace(job.config, split=("trial",), compose=lenient),
        store=store,
        progress=Progress.for_store(store),
        previous={},
    )
    totals = SplitTotals("trial", ShardCounts(len(images), 1), len(images), 0, 0)
    segment, compose = SegmentShard(job), ComposeShard(job)
    segment.setup()
    compose.setup()
    job.origin.cutter(job.config.segment).segmenter.prepare(announce)
    shards: list[SourceShard] = []
    seconds = []
    with counted_here() as counters:
        for number, image in enumerate(images):
            (shard,) = IdentifySources(job).process(SourceShard(totals, number, (image,)))
            started = time.perf_counter()
            shards += segment.process(shard)
            seconds.append(time.perf_counter() - started)
        (planned,) = PlanSplit(job).process(("trial", shards))
        composed = compose.process(planned)
    commit(job.config, store, job.taxonomy, [*shards, *composed])
    dataset = Dataset.open(store)
    made = dataset.manifest.images["trial"]
    return Trial(dataset, seconds, made["accepted"], made["selected"], counters)


def _selected(split: SplitForecast, trial: Trial) -> float:
    """Estimates how many images of a split will be in the dataset."""
    accepted, left = split.selected
    return accepted + left * trial.accepted / len(trial.seconds)


def _print_estimate(
    job: GenerateJob, splits: Sequence[SplitForecast], trial: Trial, workers: int
) -> None:
    images, made = len(trial.seconds), trial.selected or np.inf
    each = float(np.mean(trial.seconds))
    # Half of a 95 % interval.
    error = 1.96 * float(np.std(trial.seconds, ddof=1)) / images**0.5 if images > 1 else 0.0
    compose = stage_seconds(trial.counters, ["compose"])["compose"] / made
    print(
        f"measured on {counted(images, 'image')}: segment {each:.3f} s an image, "
        f"{trial.accepted} of {images} accepted; compose {compose:.3f} s"
    )
    left = sum(len(split.left) for split in splits)
    selected = sum(_selected(split, trial) for split in splits)
    print(
        f"estimate: {duration((left * each + selected * compose) / workers)} with "
        f"--direct_num_workers {workers} (one core: {duration(left * each)} +- "
        f"{duration(left * error)} to segment, at most {duration(selected * compose)} to compose)"
    )
    # Without records and index, whose overhead the many images of a real shard share.
    written = bytes_written(trial.counters)
    layer = written.pop("layers", 0) / max(trial.accepted, 1)
    accepted = sum(len(split.accepted) for split in splits) + left * trial.accepted / images
    sizes = {"layers": accepted * layer} if job.config.layers == "keep" else {}
    sizes |= {name: selected * value / made for name, value in written.items()}
    parts = ", ".join(f"{size(value)} {name}" for name, value in sizes.items())
    total, free = sum(sizes.values()), _free(job.store)
    print(
        f"estimate: about {counted(round(selected), 'image')} in the dataset, "
        f"{size(total)} ({parts})"
        + (f"; {size(free)} free" if free < np.inf else "")
        + (f", too little; free some space for {job.store.root}" if total > free else "")
    )


def _free(store: Store) -> float:
    """Returns the free space of the disk in bytes; infinity for object storage."""
    if store.is_remote:
        return np.inf
    return shutil.disk_usage(next(filter(Path.exists, Path(store.root, "file").parents))).free


def _print_analyses(
    plans: Mapping[str, PlannedAnalysis],
    gate: Gate | None,
    dataset: Dataset,
    splits: Sequence[SplitForecast] = (),
    trial: Trial | None = None,
) -> None:
    """Prints what is known of results, and how long each model will take in each analysis.

    Without a trial, the dataset is up to date.
    """
    if not plans:
        return
    evaluation = plans[EVALUATION.name].evaluation
    if trial:
        (split,) = (split for split in splits if split.totals.split == evaluation.split)
        units = [image.group or image.key for image in (*split.accepted, *split.left)]
        sample = Sample.of(units, _selected(split, trial), evaluation.holdout or 1.0)
    else:
        tested = EvalImages.read(dataset, evaluation.split, evaluation.holdout).units
        sample = Sample.of(tested, len(tested))
    print(f"models: tested on {sample} of split {evaluation.split}")
    if round(sample.units) < MIN_IMAGES:
        print(
            f"{sample}: no gate can decide, because that takes {MIN_IMAGES} images, or groups that "
            "count alike"
        )
    elif gate and gate.conditions:
        level = level_of(max(1, len(gate.subjects) * len(gate.conditions)))
        judged = (
            sample.with_pairs(evaluation.holdout, dataset.variants)
            if any(
                sum(VariantName.parse(name).is_mixed for name in one.needs) > 1
                for one in gate.conditions
            )
            else sample
        )
        print(
            f"--fail_if: true values within about {100 * judged.smallest(level):.1f} points of a "
            f"limit will often stay open, with {100 * level:.4g} % intervals"
        )
    pictures = {}
    for analysis in ANALYSES:
        if plan := plans.get(analysis.name):
            # None if the time does not follow from the number of pictures.
            if expected := analysis.parts.expected_pictures(plan, sample.images, dataset.variants):
                pictures[analysis] = expected
            for line in analysis.parts.dry_run_lines(plan, sample, dataset.variants):
                print(line)
    for name in evaluation.models if pictures and (not trial or trial.selected) else ():
        try:
            _print_model(name, plans, pictures, dataset, is_made=trial is None)
        except JobError as error:
            print(f"{name}: {error}")


def _print_model(
    name: str,
    plans: Mapping[str, PlannedAnalysis],
    pictures: Mapping[Analysis, int],
    dataset: Dataset,
    *,
    is_made: bool,
) -> None:
    """Prints how long a model will take in each analysis, or that nothing is left to do in it.

    `pictures` are their numbers by analysis. If the dataset `is_made`, only those that are not
    predicted yet count. Raises JobError if the model cannot be loaded or run.
    """
    from pipeline.models.predict import Predictor
    from pipeline.models.registry import load_model

    evaluation = plans[EVALUATION.name].evaluation
    started = time.perf_counter()
    model = load_model(name, evaluation.weights, dataset.taxonomy)
    loading, rate, predictor = time.perf_counter() - started, 0.0, None
    for analysis, left in pictures.items():
        work = plans[analysis.name]
        if is_made:
            of_model = work.for_model(dataset, evaluation.describe(dataset, model))
            left = sum(
                work.size(dataset, chunk)
                for chunk in work.chunks(dataset)
                if of_model and not of_model.is_done(chunk)
            )
        if left and model.given:
            print(f"{name}: its file has the answers to {left} {analysis.items}")
        elif left:
            predictor = predictor or Predictor(model, evaluation.predict)
            rate = rate or _pictures_a_second(predictor, dataset)
            of = f"{left} {analysis.items}"
            if analysis is EVALUATION:
                of += f" on {predictor.device.type} ({rate:.1f} a second)"
            else:
                of = f"{'an' if analysis.name[0] in 'aeiou' else 'a'} {analysis.name} with {of}"
            print(f"{name}: about {duration(loading + left / rate)} for {of}")
            loading = 0.0  # It counts once, for the first analysis.
        elif analysis.done:
            print(f"{name}: {analysis.done} already")


def _pictures_a_second(scorer: Scorer, dataset: Dataset) -> float:
    """Measures how many of a dataset's pictures a model predicts a second.

    The first batch counts only if it is the only one, because libraries initialize in it.
    """
    keep_freed_memory()
    pictures = (
        ShardPictures(dataset, split, shard, variant)
        for split in dataset.manifest.shards
        for shard in dataset.shards(split)
        for variant in dataset.picture_variants
    )
    ends, counts = [time.perf_counter()], []
    for batch, _ in scorer.logits(pictures, dataset.manifest.config.segment.image_size):
        counts.append(len(batch.rows))
        ends.append(time.perf_counter())
        if ends[-1] - ends[0] > _EVALUATE_SECONDS:
            break
    first = int(len(counts) > 1)
    return sum(counts[first:]) / (ends[-1] - ends[first])
