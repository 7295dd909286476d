"""Top-1 accuracies on all classes of ImageNet, measured by `in9` or published.

results/<model>/imagenet/val-NNNNN.parquet   every single prediction
results/<model>/imagenet.json                settings, and top-1 accuracy
data/imagenet_top1.csv (in this package)     published figures, with their source
"""

from __future__ import annotations

import csv
import dataclasses
import functools
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import ClassVar

import pyarrow as pa

from pipeline.analyses.evaluation.results import Summary
from pipeline.errors import counted
from pipeline.evaluate.failures import errors_by_model, read_failures
from pipeline.evaluate.result_files import read_result, result_file
from pipeline.evaluate.results import ModelRun
from pipeline.storage.store import Store

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
    """imagenet.json: the accuracy of a model. It lies in the folder of the model's results on the
    dataset, which is run with other settings.

    Attributes:
      listing: digest of the images.
      n: number of images.
      classes: number of classes that have an image.
      unknown: number of images whose class is unknown.
      correct: number of images classified correctly.
      top1, ci_low, ci_high: top-1 accuracy (0 to 1) and Wilson's 95 % interval.
      libraries: versions of libraries, by name.
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


@dataclasses.dataclass(frozen=True)
class Top1:
    """A model's accuracy on ImageNet.

    Attributes:
      value: top-1 accuracy, as a fraction.
      n: number of images.
      source: `measured: ...` with the number of images, or `published: ...` with the publication.
      input_size: side of the model's input in pixels.
    """

    value: float
    n: int
    source: str
    input_size: int


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
      store: the dataset folder.
      summaries: summaries of the models.
      classes: number of classes of ImageNet; models with another number of outputs are left out.

    Returns:
      (accuracy of each model, None if it is unknown on these images; a note on accuracies that were
      left out, or "").
    """
    by_set: dict[str, list[Top1 | None]] = {}
    for position, summary in enumerate(summaries):
        if summary.num_outputs != classes:
            continue
        accuracies = {}
        published = published_top1(summary.model, summary.evaluation.input_size)
        if published:
            accuracies[_FULL_SET] = published
        measured = _measured(store, summary)
        if measured:
            n, present = measured.n, measured.classes
            is_full = n >= PUBLISHED_N and present == classes
            source = f"measured: {counted(n, 'image')} of {counted(present, 'class')}"
            # `in9` measures at the input size of the model's own preprocessing, whatever the size
            # of the dataset's pictures.
            size = summary.preprocessing.input_size
            top1 = Top1(measured.top1, n, source, size)
            accuracies[_FULL_SET if is_full else measured.listing] = top1
        for image_set, top1 in accuracies.items():
            by_set.setdefault(image_set, [None] * len(summaries))[position] = top1
    if not by_set:
        return [None] * len(summaries), ""
    known = {
        image_set: sum(top1 is not None for top1 in accuracies)
        for image_set, accuracies in by_set.items()
    }
    best = max(by_set, key=lambda image_set: (known[image_set], image_set != _FULL_SET, image_set))
    left_out = sum(known[image_set] for image_set in by_set if image_set not in (best, _FULL_SET))
    note = ""
    if left_out:
        note = (
            f"{left_out} accuracies measured on other images are left out, since they do not "
            "compare: measure all models on the same with --imagenet"
        )
    return by_set[best], note


def _measured(store: Store, summary: Summary) -> ImageNetResult | None:
    """Reads a model's imagenet.json; returns None if the file is missing or damaged, or was
    measured with other weights."""
    measured = read_result(store, result_file(summary.folder, "imagenet"), ImageNetResult)
    is_same = measured is not None and measured.weights_sha256 == summary.weights_sha256
    return measured if is_same else None


def published_top1(model: str, size: int) -> Top1 | None:
    """Looks up the published figure of a model; returns None if there is none.

    Args:
      model: name of the model in results, with the full tag of its weights.
      size: side of the model's input in pixels; the figure for the closest published size is
        returned.
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
    """Reads the published figures, as model -> input size in pixels -> (accuracy as a fraction,
    source)."""
    table = resources.files("pipeline") / "data" / "imagenet_top1.csv"
    figures: dict[str, dict[int, tuple[float, str]]] = {}
    for row in csv.DictReader(table.read_text(encoding="utf-8").splitlines()):
        top1 = round(float(row["top1"]) / 100, 6)
        figures.setdefault(row["name"], {})[int(row["size"])] = (top1, row["source"])
    return figures


def describe_imagenet(
    store: Store, dataset: str, summaries: Iterable[Summary], entries: Iterable[str]
) -> str:
    """Describes each model's measured accuracy on ImageNet in a line, and in another line why a
    model of this run was not measured. A model has no line if its outputs are not ImageNet's
    classes, or if only other weights of it were measured.

    Args:
      store: the dataset folder.
      dataset: the dataset's fingerprint.
      summaries: summaries of the models.
      entries: entries of `--models` in this run, whose failures are listed.
    """
    lines = []
    for summary in summaries:
        result = _measured(store, summary)
        if result is not None:
            low, high = 100 * result.ci_low, 100 * result.ci_high
            lines.append(
                f"ImageNet top-1, {result.model}: {100 * result.top1:.1f} % "
                f"[{low:.1f}, {high:.1f}] of {counted(result.n, 'image')}, "
                f"{counted(result.classes, 'class')}"
            )
    failed, _ = read_failures(store, dataset, "imagenet")
    for model, error in errors_by_model(failed, entries).items():
        lines.append(f"ImageNet top-1, {model}: not measured: {error}")
    return "\n".join(lines)
