"""Results of saliency: how much of it lies on the foreground, and pictures of it.

results/<model>/saliency/<split>-NNNNN.parquet   a number for every image
results/<model>/saliency/<key>.png               the map of an image
results/<model>/saliency.json                    what was run, and the mean
results/saliency.csv                             all models of this dataset
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, PngImagePlugin

from pipeline.dataset.folder import Dataset
from pipeline.evaluate.failures import error_rows, read_failures
from pipeline.evaluate.predictions import read_current_results
from pipeline.storage.csv_file import write_csv
from pipeline.storage.state_files import read_table
from pipeline.storage.store import Store
from transforms.codec import TooManyPixelsError, UndecodableError, open_picture
from transforms.geometry import Pixels
from transforms.intervals import paired_bootstrap

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
"""Columns of a shard. `prediction` is a label, -1 outside the taxonomy, of the winning `output`;
`mass_in_mask` is the share of saliency inside the mask, null where there is no saliency at all;
`mask_area` the share of pixels."""

SALIENCY_COLUMNS = (
    "model",
    "variant",
    "method",
    "images",
    "mass_in_mask",
    "ci_low",
    "ci_high",
    "mask_area",
    "concentration",
    "split",
    "precision",
    "weights_sha256",
    "dataset",
    "error",
)
"""Columns of saliency.csv: mean share of a model's saliency inside the foreground mask, with the
95 % interval of a bootstrap over images; `mask_area` is the mean share of pixels inside, and
`concentration` the ratio of the two. A model that failed has its `error` alone."""

_FINGERPRINT_KEY = "in9"
"""Name of a picture's text that says what it was made from."""


def map_path(folder: str, key: str) -> str:
    """Map of an image."""
    return f"results/{folder}/saliency/{key}.png"


def write_map(store: Store, path: str, picture: Pixels, fingerprint: str) -> None:
    """Writes a map, with the fingerprint of what it was made from inside."""
    text = PngImagePlugin.PngInfo()
    text.add_text(_FINGERPRINT_KEY, fingerprint)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", pnginfo=text)
    store.write(path, file.getvalue())


def has_map(store: Store, path: str, fingerprint: str) -> bool:
    """Whether a map is there that was made from the same."""
    try:
        return bool(open_picture(store.read(path)).info.get(_FINGERPRINT_KEY) == fingerprint)
    except (FileNotFoundError, UndecodableError, TooManyPixelsError):
        return False


def measure_mass(store: Store, paths: Iterable[str], unit_of: Mapping[str, str]) -> dict[str, Any]:
    """The mean over all images of a model, with its interval, for which the units of images are
    resampled, given by key.

    Images without any saliency do not count; without any other images, values are None.
    """
    table = pa.concat_tables([read_table(store, path) for path in paths])
    rows = [row for row in table.to_pylist() if row["mass_in_mask"] is not None]
    found: dict[str, Any] = dict.fromkeys(
        ("mass_in_mask", "ci_low", "ci_high", "mask_area", "concentration")
    )
    found["images"] = len(rows)
    if rows:
        mass = np.asarray([row["mass_in_mask"] for row in rows])
        units = [unit_of[row["key"]] for row in rows]
        mean, low, high = paired_bootstrap(mass, np.zeros_like(mass), units)
        area = float(np.mean([row["mask_area"] for row in rows]))
        found |= {"mass_in_mask": mean, "ci_low": low, "ci_high": high, "mask_area": area}
        found["concentration"] = mean / area if area else None
    return found


def map_rows(
    store: Store, paths: Iterable[str], keys: Sequence[str], folder: str
) -> list[dict[str, Any]]:
    """`maps` of saliency.json: a row for each image that is shown, in their order."""
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        for row in read_table(store, path).to_pylist():
            found[row["key"]] = row
    names = ("key", "label", "mass_in_mask", "prediction")
    return [
        {**{name: found[key][name] for name in names}, "file": map_path(folder, key)}
        for key in keys
    ]


def nan_to_null(value: float) -> float | None:
    """A number for a table: None for NaN."""
    return None if math.isnan(value) else value


def read_saliency(dataset: Dataset) -> list[dict[str, Any]]:
    """What saliency.json says of every model on the pictures that the dataset holds, in order of
    its folder."""
    return read_current_results(dataset, "saliency", lambda found: (found["variant"], "fg_mask"))[0]


def write_saliency_table(dataset: Dataset) -> None:
    """Rebuilds saliency.csv from what is there. Called with the lock of the tables held."""
    store, found = dataset.store, read_saliency(dataset)
    failed, _ = read_failures(store, dataset.manifest.fingerprint, "saliency")
    if found or failed or store.exists("results/saliency.csv"):
        rows = [{**content, **content["evaluation"]} for content in found]
        write_csv(store, "saliency", SALIENCY_COLUMNS, rows + error_rows(failed, found))
