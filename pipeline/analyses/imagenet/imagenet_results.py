"""Results on ImageNet: accuracy over all classes, measured here or published.

results/<model>/imagenet/val-NNNNN.parquet   every single prediction
results/<model>/imagenet.json                what was run, and its top-1 accuracy
data/imagenet_top1.csv, packaged             published figures, with their source
"""

from __future__ import annotations

import csv
import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

import pyarrow as pa

from pipeline.evaluate.failures import errors_by_model, read_failures
from pipeline.evaluate.result_files import read_result, result_file, result_folder
from pipeline.storage.store import Store

PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string()),
        pa.field("label", pa.int64()),
        pa.field("prediction", pa.int64()),
    ]
)
"""Columns of predictions: path of the image below its split, its class and the predicted one as
output indices."""

PUBLISHED_N = 50_000
"""Images of the validation set, which published figures are of."""
_FULL_SET = ""
"""Stands for that set; digests of listings stand for others."""


@dataclasses.dataclass(frozen=True)
class Top1:
    """A model's accuracy on ImageNet.

    Attributes:
      value: fraction.
      n: number of images.
      source: whether it was measured here, on what, or who published it.
      input_size: side in pixels of what the model saw there.
    """

    value: float
    n: int
    source: str
    input_size: int


def comparable_top1(
    store: Store, summaries: Sequence[Mapping[str, Any]], classes: int
) -> tuple[list[Top1 | None], str]:
    """Accuracies on ImageNet of models, all on the same images.

    Accuracies on a part of ImageNet do not compare with others, so one set of images is taken:
    the one on which accuracies of most models are known; of equal ones, one they were measured
    on here. Figures on the whole validation set, measured or published, are of one set. Of figures
    that are published at several input sizes, the one at that of the dataset's pictures counts.

    Args:
      store: the dataset folder.
      summaries: of the models.
      classes: how many outputs a model of ImageNet has; others have no such accuracy.

    Returns:
      (accuracy of each model, None where none is known on these images; what a reader must
      know of the choice, or "").
    """
    by_set: dict[str, list[Top1 | None]] = {}
    for position, summary in enumerate(summaries):
        if summary["num_outputs"] != classes:
            continue
        found = {}
        published = published_top1(summary["model"], summary["evaluation"]["input_size"])
        if published:
            found[_FULL_SET] = published
        measured = _measured(store, summary)
        if measured:
            n, present = measured["n"], measured["classes"]
            is_complete = n >= PUBLISHED_N and present == classes
            source = f"measured: {n} images of {present} classes"
            # Through the model's own whole preprocessing.
            size = summary["preprocessing"]["input_size"]
            top1 = Top1(measured["top1"], n, source, size)
            found[_FULL_SET if is_complete else measured["listing"]] = top1
        for images, of_images in found.items():
            by_set.setdefault(images, [None] * len(summaries))[position] = of_images
    if not by_set:
        return [None] * len(summaries), ""
    known = {images: sum(top1 is not None for top1 in of) for images, of in by_set.items()}
    best = max(by_set, key=lambda images: (known[images], images != _FULL_SET, images))
    parts = sum(known[images] for images in by_set if images not in (best, _FULL_SET))
    note = ""
    if parts:
        note = (
            f"{parts} accuracies measured on other images are left out, since they do not compare: "
            "measure all models on the same with --imagenet"
        )
    return by_set[best], note


def _measured(store: Store, summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """What imagenet.json says of the present weights of a model."""
    path = result_file(result_folder(summary["model"], summary["evaluation"]), "imagenet")
    measured = read_result(store, path) or {}
    return measured if measured.get("weights_sha256") == summary["weights_sha256"] else None


def published_top1(model: str, size: int) -> Top1 | None:
    """The published figure of a model.

    Args:
      model: its name in results, with the full tag of its weights.
      size: side in pixels of what it sees; a figure at another size is taken if there is none,
        the closest one.
    """
    # A repository of timm's holds the weights of that tag.
    sizes = _published().get(model.removeprefix("hf:timm/"))
    if not sizes:
        return None
    closest = min(sizes, key=lambda known: (abs(known - size), known))
    top1, source = sizes[closest]
    return Top1(top1, PUBLISHED_N, f"published: {source}, {closest} px", closest)


@functools.cache
def _published() -> dict[str, dict[int, tuple[float, str]]]:
    """Model to input size to (accuracy as a fraction, source)."""
    table = resources.files("pipeline") / "data" / "imagenet_top1.csv"
    found: dict[str, dict[int, tuple[float, str]]] = {}
    for row in csv.DictReader(table.read_text(encoding="utf-8").splitlines()):
        top1 = round(float(row["top1"]) / 100, 6)
        found.setdefault(row["name"], {})[int(row["size"])] = (top1, row["source"])
    return found


def describe_imagenet(
    store: Store, dataset: str, summaries: Iterable[Mapping[str, Any]], entries: Iterable[str]
) -> str:
    """A line for each model: its measured accuracy on ImageNet, or why there is none.

    Args:
      store: the dataset folder.
      dataset: its fingerprint.
      summaries: of the models.
      entries: of `--models`, of those that were measured now.
    """
    lines = []
    for summary in summaries:
        path = result_file(result_folder(summary["model"], summary["evaluation"]), "imagenet")
        found = read_result(store, path)
        if found is not None:
            low, high = 100 * found["ci_low"], 100 * found["ci_high"]
            lines.append(
                f"ImageNet top-1, {found['model']}: {100 * found['top1']:.1f} % "
                f"[{low:.1f}, {high:.1f}] of {found['n']} images, {found['classes']} classes"
            )
    failed, _ = read_failures(store, dataset, "imagenet")
    for model, error in errors_by_model(failed, entries).items():
        lines.append(f"ImageNet top-1, {model}: not measured: {error}")
    return "\n".join(lines)
