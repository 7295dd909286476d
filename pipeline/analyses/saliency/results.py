"""Results of saliency: which share of it lies on the foreground, and maps of some images.

results/<model>/saliency/<split>-NNNNN.parquet   measures of every image
results/<model>/saliency/<key>.png               the map of an image
results/<model>/saliency.json                    settings, and the mean over all images
results/saliency.csv                             table of all models
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

import numpy as np
import pyarrow as pa
from msgspec import Meta, Struct
from PIL import Image, PngImagePlugin

from pipeline.dataset.folder import Dataset
from pipeline.display.table import aligned, percent_interval
from pipeline.evaluate.predictions import read_current_results
from pipeline.evaluate.results import (
    Label,
    PicturesResult,
    Table,
    failures_without_results,
    pick,
    read_failures,
)
from pipeline.storage.state_files import RelativePath, read_table
from pipeline.storage.store import Store
from transforms.codec import TooManyPixelsError, UndecodableError, open_picture
from transforms.geometry import Pixels
from transforms.intervals import bootstrap_interval
from transforms.variants import MASK, VariantName

SALIENCY_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("label", pa.int64()),
        pa.field("prediction", pa.int64()),
        pa.field("output", pa.int32()),
        pa.field("mass_in_mask", pa.float64()),
        pa.field("mask_area", pa.float64()),
    ]
)
"""Columns of a shard's measures. `prediction` is the label of the winning `output`, -1 outside the
taxonomy. `mass_in_mask` is the share of saliency inside the foreground mask (0 to 1), null if no
pixel has saliency; `mask_area` is the share of pixels inside the mask."""


class SaliencyMap(Struct, frozen=True):
    """The map of an image.

    Attributes:
      label, prediction: its label, and the model's answer; -1 outside the taxonomy.
      mass_in_mask: share of saliency inside the mask (0 to 1); None if no pixel has saliency.
    """

    key: str
    label: Label
    prediction: Label
    mass_in_mask: float | None
    file: RelativePath


class Mass(Struct, frozen=True, kw_only=True):
    """Measures of a model, averaged over the images that have saliency; None if there are none."""

    images: int
    mass_in_mask: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    mask_area: float | None = None
    concentration: float | None = None


class SaliencyResult(PicturesResult, frozen=True, kw_only=True):
    """saliency.json: the measures of a model; see `Mass`."""

    variant: str
    method: str
    images: int
    mass_in_mask: float | None
    ci_low: float | None
    ci_high: float | None
    mask_area: float | None
    concentration: float | None
    maps: tuple[SaliencyMap, ...]


class SaliencyRow(Struct, frozen=True, kw_only=True):
    """A row of saliency.csv: a model, or a model that failed, which has no measures.

    `mass_in_mask` has the 95 % interval of a bootstrap over units.
    """

    model: str
    variant: str | None = None
    method: Annotated[str | None, Meta(description="method of saliency")] = None
    images: int | None = None
    mass_in_mask: Annotated[
        float | None,
        Meta(description="mean share of the gradient's magnitude inside the foreground mask"),
    ] = None
    ci_low: float | None = None
    ci_high: float | None = None
    mask_area: Annotated[
        float | None, Meta(description="mean share of the pixels inside the foreground mask")
    ] = None
    concentration: Annotated[
        float | None,
        Meta(description="mass_in_mask / mask_area; 1 means no preference for the foreground"),
    ] = None
    split: str
    precision: str
    weights_sha256: str | None = None
    dataset: str
    error: str | None = None


SALIENCY_TABLE = Table(
    "saliency",
    (SaliencyRow,),
    "share of a model's gradient on the foreground, with a bootstrap interval over units",
)

_FINGERPRINT_KEY = "in9"
"""Key of the PNG text chunk that holds a map's fingerprint."""


def map_path(folder: str, key: str) -> str:
    return f"results/{folder}/saliency/{key}.png"


def write_map(store: Store, path: str, picture: Pixels, fingerprint: str) -> None:
    """Writes a map as a PNG file that also holds a fingerprint of the map's inputs."""
    text = PngImagePlugin.PngInfo()
    text.add_text(_FINGERPRINT_KEY, fingerprint)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", pnginfo=text)
    store.write(path, file.getvalue())


def has_map(store: Store, path: str, fingerprint: str) -> bool:
    try:
        return bool(open_picture(store.read(path)).info.get(_FINGERPRINT_KEY) == fingerprint)
    except (FileNotFoundError, UndecodableError, TooManyPixelsError):
        return False


def measure_mass(store: Store, paths: Iterable[str], unit_of: Mapping[str, str]) -> Mass:
    """Averages a model's measures over all images that have saliency, with a bootstrap interval."""
    table = pa.concat_tables([read_table(store, path) for path in paths])
    rows = [row for row in table.to_pylist() if row["mass_in_mask"] is not None]
    if not rows:
        return Mass(images=0)
    mass = np.asarray([row["mass_in_mask"] for row in rows])
    units = [unit_of[row["key"]] for row in rows]
    mean = float(mass.mean())
    low, high = bootstrap_interval(mass[:, np.newaxis], units)
    area = float(np.mean([row["mask_area"] for row in rows]))
    return Mass(
        images=len(rows),
        mass_in_mask=mean,
        ci_low=float(low[0]),
        ci_high=float(high[0]),
        mask_area=area,
        concentration=mean / area if area else None,
    )


def map_rows(
    store: Store, paths: Iterable[str], keys: Sequence[str], folder: str
) -> tuple[SaliencyMap, ...]:
    """Returns the images with a map in a model's folder, in the order of rows."""
    rows = {row["key"]: row for path in paths for row in read_table(store, path).to_pylist()}
    return tuple(
        SaliencyMap(
            key=key,
            label=rows[key]["label"],
            prediction=rows[key]["prediction"],
            mass_in_mask=rows[key]["mass_in_mask"],
            file=map_path(folder, key),
        )
        for key in keys
    )


def read_saliency(dataset: Dataset) -> list[SaliencyResult]:
    """Reads each model's saliency.json, in order of folders, if it is of the present pictures."""
    return read_current_results(
        dataset,
        "saliency",
        SaliencyResult,
        lambda result: (VariantName.parse(result.variant), MASK),
    )[0]


def write_saliency_table(dataset: Dataset) -> None:
    """Rebuilds saliency.csv if there ever were results; the caller must hold the tables' lock."""
    store, fingerprint = dataset.store, dataset.manifest.fingerprint
    results = read_saliency(dataset)
    failed, _ = read_failures(store, fingerprint, "saliency")
    if results or failed or store.exists("results/saliency.csv"):
        rows = [
            pick(SaliencyRow, result, result.evaluation, model=result.title, dataset=fingerprint)
            for result in results
        ]
        rows += [
            pick(SaliencyRow, failure, failure.evaluation)
            for failure in failures_without_results(failed, results)
        ]
        SALIENCY_TABLE.write(store, ([row] for row in rows))


def saliency_table(results: Sequence[SaliencyResult]) -> str:
    """Formats shares of saliency inside the mask, the mask's share of pixels, and their ratio."""
    rows = (
        [
            one.name,
            percent_interval(one.mass_in_mask, one.ci_low, one.ci_high),
            "-" if one.mask_area is None else f"{100 * one.mask_area:.1f}",
            "-" if one.concentration is None else f"{one.concentration:.2f}",
            str(one.images),
        ]
        for one in results
    )
    heads = ["saliency", "inside the mask, %", "mask, % of pixels", "ratio", "images"]
    return aligned([heads, *rows])
