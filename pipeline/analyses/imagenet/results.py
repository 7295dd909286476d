"""Top-1 accuracies on all classes of ImageNet, and the trend of variants' accuracies against them.

Accuracies on ImageNet are measured by `in9` or published. The trend is over all models, and follows
figure 8 of the paper.

results/<model>/imagenet/val-NNNNN.parquet   every single prediction
results/<model>/imagenet.json                settings, and top-1 accuracy
data/imagenet_top1.csv (in this package)     published figures, with their source
results/trend.json, results/trend.csv        the trend
"""

import csv
import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from typing import Annotated, ClassVar

import numpy as np
import pyarrow as pa
from msgspec import Meta, Struct
from msgspec.structs import replace

from pipeline.display.table import listed
from pipeline.errors import counted
from pipeline.evaluate.comparisons import ModelsOnSameImages
from pipeline.evaluate.evidence import Evidence
from pipeline.evaluate.families import Subject, subjects_of
from pipeline.evaluate.results import (
    ModelRun,
    RunSettings,
    Table,
    errors_by_model,
    pick,
    read_failures,
    read_result,
    result_file,
    write_result,
)
from pipeline.evaluate.summary import Summary, rules_of, without_rule
from pipeline.storage.store import Store
from transforms.taxonomy import Taxonomy
from transforms.trend import MIN_MODELS, fit_line
from transforms.variants import BG_GAP

PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string()),
        pa.field("label", pa.int64()),
        pa.field("prediction", pa.int64()),
    ]
)
"""Columns of predictions. `name` is the image's path relative to the folder of its split; `label`
is its class and `prediction` the predicted class, both as indices of outputs."""

PUBLISHED_N = 50_000
"""Number of images in the validation set, on which published figures were measured."""
_FULL_SET = ""
"""Key of the whole validation set in `comparable_top1`; the key of any other set of images is the
digest of its listing."""


class ImageNetResult(ModelRun, frozen=True, kw_only=True):
    """imagenet.json: the accuracy of a model.

    It lies in the folder of the model's results on the dataset, which is run with other settings.

    Attributes:
      listing: digest of the images.
      top1, ci_low, ci_high: top-1 accuracy (0 to 1) and Wilson's 95 % interval.
    """

    names_folder: ClassVar[bool] = False

    listing: str
    n: int
    classes: int
    unknown: int
    correct: int
    top1: float
    ci_low: float
    ci_high: float
    libraries: dict[str, str]


class Top1(Struct, frozen=True):
    """A model's accuracy on ImageNet, a fraction, in columns of trend.csv.

    `imagenet_source` is `measured: ...` with the number of images, or `published: ...` with the
    publication.
    """

    imagenet_top1: float
    imagenet_n: int
    imagenet_source: str
    imagenet_input_size: int


def comparable_top1(
    store: Store, summaries: Sequence[Summary], classes: int
) -> tuple[list[Top1 | None], str]:
    """Collects the accuracies of models on ImageNet, all on the same images.

    Accuracies on different images cannot be compared, so only one set of images is used: the set on
    which the accuracies of the most models are known. If several sets have equally many models, a
    set other than the whole validation set wins, because `in9` measured all its accuracies.
    Published figures, and figures that `in9` measured on the whole validation set, belong to the
    same set; for a model that has both, the measured figure is used. If figures are published for
    several input sizes, the size closest to the model's input on the dataset is used.

    Args:
      classes: number of classes of ImageNet; models with another number of outputs are left out.

    Returns:
      (accuracy of each model, None if it is unknown on these images; a note on accuracies that were
      left out, or "").
    """
    by_set: dict[str, dict[int, Top1]] = {}
    for position, summary in enumerate(summaries):
        if summary.num_outputs == classes:
            for image_set, top1 in _accuracies(store, summary, classes):
                by_set.setdefault(image_set, {})[position] = top1
    best = max(
        by_set,
        key=lambda name: (len(by_set[name]), name != _FULL_SET, name),
        default=_FULL_SET,
    )
    left_out = sum(len(known) for name, known in by_set.items() if name not in (best, _FULL_SET))
    note = (
        f"{left_out} accuracies measured on other images are left out, since they do not compare: "
        "measure all models on the same with --imagenet"
    )
    chosen = by_set.get(best, {})
    return [chosen.get(position) for position in range(len(summaries))], note if left_out else ""


def _accuracies(store: Store, summary: Summary, classes: int) -> Iterator[tuple[str, Top1]]:
    """Yields (set of images, accuracy on it) of a model, the published figure first."""
    if published := published_top1(summary.model, summary.evaluation.input_size):
        yield _FULL_SET, published
    if measured := _measured(store, summary):
        n, present = measured.n, measured.classes
        is_full = n >= PUBLISHED_N and present == classes
        source = f"measured: {counted(n, 'image')} of {counted(present, 'class')}"
        # `in9` measures at the input size of the model's own preprocessing, whatever the size of
        # the dataset's pictures.
        size = summary.preprocessing.input_size
        yield _FULL_SET if is_full else measured.listing, Top1(measured.top1, n, source, size)


def _measured(store: Store, summary: Summary) -> ImageNetResult | None:
    """Reads a model's imagenet.json; None if missing, damaged or measured with other weights."""
    measured = read_result(store, result_file(summary.folder, "imagenet"), ImageNetResult)
    return measured if measured and measured.weights_sha256 == summary.weights_sha256 else None


def published_top1(model: str, size: int) -> Top1 | None:
    """Looks up a model's published figure, by its full tag; None if there is none.

    Of several input sizes, it is the closest to `size`, in pixels.
    """
    # On the hub, each repository of timm holds the weights whose timm name and tag it bears.
    sizes = _published().get(model.removeprefix("hf:timm/"))
    if not sizes:
        return None
    closest = min(sizes, key=lambda known: (abs(known - size), known))
    top1, source = sizes[closest]
    return Top1(top1, PUBLISHED_N, f"published: {source}, {closest} px", closest)


@functools.cache
def _published() -> dict[str, dict[int, tuple[float, str]]]:
    """Reads published figures: model -> input size in pixels -> (accuracy as fraction, source)."""
    table = resources.files("pipeline") / "data" / "imagenet_top1.csv"
    figures: dict[str, dict[int, tuple[float, str]]] = {}
    for row in csv.DictReader(table.read_text(encoding="utf-8").splitlines()):
        figure = round(float(row["top1"]) / 100, 6), row["source"]
        figures.setdefault(row["name"], {})[int(row["size"])] = figure
    return figures


def describe_imagenet(
    store: Store, dataset: str, summaries: Iterable[Summary], entries: Iterable[str]
) -> str:
    """Describes each model's measured accuracy on ImageNet in a line.

    Another line says why a model of this run was not measured. A model has no line if its outputs
    are not ImageNet's classes, or if only other weights of it were measured.
    """
    measured = [
        f"ImageNet top-1, {one.title}: {100 * one.top1:.1f} % "
        f"[{100 * one.ci_low:.1f}, {100 * one.ci_high:.1f}] of {counted(one.n, 'image')}, "
        f"{counted(one.classes, 'class')}"
        for summary in summaries
        if (one := _measured(store, summary))
    ]
    failed, _ = read_failures(store, dataset, "imagenet")
    failures = [
        f"ImageNet top-1, {name}: not measured: {text}"
        for name, text in errors_by_model(failed, entries).items()
    ]
    return "\n".join([*measured, *failures])


TREND_FILE = "results/trend.json"

TREND_VARIANTS = ("only_bg_t", "mixed_next", "mixed_rand", "mixed_same", "no_fg")
"""Variants of the paper's figure, in the figure's order."""


class TrendPoint(Struct, frozen=True, kw_only=True):
    """A row of trend.csv: a model's accuracy on a variant, or its BG-Gap if `variant` is `bg_gap`.

    The row of a family has means over its trainings. Accuracies on ImageNet are empty if unknown.
    """

    model: str
    variant: str
    imagenet_top1: Annotated[float | None, Meta(description="top-1 accuracy on ImageNet")] = None
    imagenet_source: Annotated[
        str | None, Meta(description="`measured`, or the source of the published figure")
    ] = None
    imagenet_n: Annotated[
        int | None, Meta(description="number of images that `imagenet_top1` was measured on")
    ] = None
    imagenet_input_size: Annotated[
        int | None, Meta(description="side length of the model's input on ImageNet, in pixels")
    ] = None
    input_size: int
    accuracy: float
    ci_low: float | None = None
    ci_high: float | None = None
    lowest: Annotated[
        float,
        Meta(
            description="smallest accuracy of a family's trainings, which have no interval here; a "
            "model is one training"
        ),
    ]
    highest: Annotated[float, Meta(description="largest accuracy of a family's trainings")]
    n: int
    label_rule: str

    @property
    def reach(self) -> tuple[float, float]:
        """The bounds of a model's interval, or of a family's range."""
        return (
            self.lowest if self.ci_low is None else self.ci_low,
            self.highest if self.ci_high is None else self.ci_high,
        )

    @property
    def top1(self) -> Top1 | None:
        """The accuracy on ImageNet; None if it is unknown."""
        return None if self.imagenet_top1 is None else pick(Top1, self)


class TrendLine(Struct, frozen=True, kw_only=True):
    """The best-fit line of a variant; see `transforms.trend.Line`."""

    variant: str
    slope: float
    slope_low: float
    slope_high: float
    intercept: float
    models: int
    band: tuple[tuple[float, float, float], ...]


class Trend(Struct, frozen=True, kw_only=True):
    """trend.json."""

    dataset: str
    label_rule: str
    points: tuple[TrendPoint, ...]
    lines: tuple[TrendLine, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


TREND_TABLE = Table(
    "trend",
    (TrendPoint,),
    "accuracy of a model, or of a family's trainings on average, on a variant beside its accuracy "
    "on ImageNet",
)

_NAMED = 4
"""Largest number of models that a note names."""


def write_trend(
    store: Store,
    dataset: str,
    summaries: Sequence[Summary],
    taxonomy: Taxonomy,
    measured: Sequence[ModelsOnSameImages],
) -> Trend:
    """Rebuilds the trend from the summaries. The caller holds the lock of the tables.

    Lines are fitted over `measured`, `read_contributions` of these summaries, of the models whose
    accuracy on ImageNet is known.
    """
    kept, left_out = _alike(summaries)
    top1, choice = comparable_top1(store, kept, len(taxonomy.wnids))
    by_folder = {one.folder: figure for one, figure in zip(kept, top1, strict=True)}
    subjects = [
        (one, _mean_top1([by_folder[each.folder] for each in one.members]))
        for one in subjects_of(summaries)
        if one.members[0].folder in by_folder
    ]
    rows = [row for subject in subjects for row in _points(*subject)]
    TREND_TABLE.write(store, ([row] for row in rows))
    rule = rules_of(kept)[0]
    points = tuple(row for row in rows if row.label_rule == rule)
    lines = (
        line
        for variant in (*TREND_VARIANTS, BG_GAP)
        for line in _line(subjects, measured, rule, variant)
    )
    without = without_rule(kept, rule)
    trend = Trend(
        dataset=dataset,
        label_rule=rule,
        points=points,
        lines=tuple(lines),
        left_out=tuple(left_out),
        notes=(
            *_notes(points),
            *filter(None, (choice, without and f"not among the points: {without}")),
        ),
    )
    write_result(store, TREND_FILE, trend)
    return trend


def _alike(summaries: Sequence[Summary]) -> tuple[list[Summary], list[str]]:
    """Selects the summaries with the most common settings, so that no model counts twice.

    Returns these summaries, and the names of the models with other settings.
    """
    counts = Counter(pick(RunSettings, s.evaluation) for s in summaries)
    # Of equally common settings, `max` keeps the first.
    common = max(counts, key=lambda settings: counts[settings], default=None)
    kept = [s for s in summaries if pick(RunSettings, s.evaluation) == common]
    return kept, [s.name for s in summaries if s not in kept]


def _mean_top1(figures: Sequence[Top1 | None]) -> Top1 | None:
    """Returns the mean accuracy on ImageNet of a family's trainings; None if one is unknown."""
    known = [one for one in figures if one]
    return (
        replace(known[0], imagenet_top1=float(np.mean([one.imagenet_top1 for one in known])))
        if len(known) == len(figures)
        else None
    )


def _points(subject: Subject, top1: Top1 | None) -> Iterator[TrendPoint]:
    """Yields a subject's rows of trend.csv: by label rule, one for each variant and for BG-Gap."""
    first = subject.members[0]
    for rule in subject.label_rules:
        for variant in (*TREND_VARIANTS, BG_GAP):
            rows = [
                one.gap(rule) if variant == BG_GAP else one.accuracy_on(variant, rule)
                for one in subject.members
            ]
            known = [(*row.estimate, row.n) for row in rows if row and row.estimate]
            if len(known) == len(rows):
                values, lows, highs, numbers = zip(*known, strict=True)
                yield pick(
                    TrendPoint,
                    top1,
                    model=first.family if subject.is_family else first.title,
                    variant=variant,
                    input_size=first.evaluation.input_size,
                    accuracy=float(np.mean(values)),
                    ci_low=None if subject.is_family else lows[0],
                    ci_high=None if subject.is_family else highs[0],
                    lowest=min(values),
                    highest=max(values),
                    n=numbers[0],
                    label_rule=rule,
                )


def _line(
    subjects: Iterable[tuple[Subject, Top1 | None]],
    measured: Sequence[ModelsOnSameImages],
    rule: str,
    variant: str,
) -> Iterator[TrendLine]:
    """Yields the best-fit line of a variant, unless too few models have known accuracies.

    A family is one model, with the means of its trainings.
    """
    for compared in measured:
        points = [
            (top1.imagenet_top1, seeds)
            for subject, top1 in subjects
            if top1
            and subject.members[0] in compared.summaries
            and (seeds := compared.seeds(variant, compared.answers(subject, rule)))
        ]
        line = len(points) >= MIN_MODELS and fit_line(
            [top1 for top1, _ in points],
            [seeds.values.mean() for _, seeds in points],
            compared.pictures[variant].roles.corrected(
                np.stack([seeds.r.mean(axis=0) for _, seeds in points])
            ),
        )
        if line:
            yield TrendLine(variant=variant, **dataclasses.asdict(line))


def _notes(points: Sequence[TrendPoint]) -> Iterator[str]:
    """Yields the notes that a reader needs to understand the points and lines."""
    models = dict.fromkeys(point.model for point in points)
    known = {point.model: top1 for point in points if (top1 := point.top1)}
    if unknown := [model for model in models if model not in known]:
        yield f"no accuracy on ImageNet is known for {listed(unknown)}"
    if points and len(known) < MIN_MODELS:
        yield (
            f"lines need at least {MIN_MODELS} models whose accuracy on ImageNet is known; "
            f"there {'is' if len(known) == 1 else 'are'} {len(known)}"
        )
    elif known:
        yield (
            "intervals of slopes allow for other models and other images; they treat models as "
            "independent, which models of one architecture are not"
        )
    if families := dict.fromkeys(point.model for point in points if point.ci_low is None):
        yield f"one point for all trainings, at their mean, with their range: {listed([*families])}"
    others = {
        p.model: f"{p.model} ({p.imagenet_input_size} px, here {p.input_size})"
        for p in points
        if p.imagenet_input_size not in (None, p.input_size)
    }
    if others:
        table = " (trend.csv)" * (len(others) > _NAMED)
        yield (
            "accuracy on ImageNet was measured at another input size than these pictures have for "
            f"{listed([*others.values()], _NAMED)}{table}; it might be higher or lower at the size "
            "of these pictures"
        )
    by_source = Counter(top1.imagenet_source.partition(",")[0] for top1 in known.values())
    if by_source:
        shown = "; ".join(f"{source} ({n})" for source, n in sorted(by_source.items()))
        yield f"sources of accuracies on ImageNet, with numbers of models: {shown}"
    if any(top1.imagenet_n < PUBLISHED_N for top1 in known.values()):
        yield (
            f"some accuracies on ImageNet were measured on fewer than the {PUBLISHED_N:,} "
            "validation images; their errors make lines flatter"
        )


def read_trend(evidence: Evidence) -> Trend | None:
    """Returns the trend; None if there is none, or it has no lines."""
    return next((trend for trend in evidence.get(Trend) if trend.lines), None)
