"""Results of saliency: which share of it lies on the foreground, and maps of some images.

results/<model>/saliency/<split>-NNNNN.parquet   measures of every image
results/<model>/saliency/<key>.png               the map of an image
results/<model>/saliency.json                    settings, and the mean over all images
results/saliency.csv                             table of all models
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
"""Columns of a shard's measures. `prediction` is the label of the winning `output`, -1 outside the
taxonomy. `mass_in_mask` is the share of saliency inside the foreground mask (0 to 1), null if no
pixel has saliency; `mask_area` is the share of pixels inside the mask."""

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
"""Columns of saliency.csv, which has a row for each model. `mass_in_mask` is the mean share of a
model's saliency inside the foreground mask, with the 95 % interval of a bootstrap over units.
`mask_area` is the mean share of pixels inside the mask, and `concentration` is `mass_in_mask`
divided by `mask_area`. A model that failed has an `error` and no measures."""

_FINGERPRINT_KEY = "in9"
"""Key of the PNG text chunk that holds a map's fingerprint."""


def map_path(folder: str, key: str) -> str:
    """Returns the path of an image's map."""
    return f"results/{folder}/saliency/{key}.png"


def write_map(store: Store, path: str, picture: Pixels, fingerprint: str) -> None:
    """Writes a map as a PNG file that also holds a fingerprint of the map's inputs."""
    text = PngImagePlugin.PngInfo()
    text.add_text(_FINGERPRINT_KEY, fingerprint)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", pnginfo=text)
    store.write(path, file.getvalue())


def has_map(store: Store, path: str, fingerprint: str) -> bool:
    """Returns whether a map exists and has this fingerprint."""
    try:
        return bool(open_picture(store.read(path)).info.get(_FINGERPRINT_KEY) == fingerprint)
    except (FileNotFoundError, UndecodableError, TooManyPixelsError):
        return False


def measure_mass(store: Store, paths: Iterable[str], unit_of: Mapping[str, str]) -> dict[str, Any]:
    """Averages a model's measures over all images that have saliency, with a bootstrap interval.

    Args:
      store: the dataset folder.
      paths: paths of the model's measures of all shards.
      unit_of: unit of resampling of each image, by key.

    Returns:
      The measures of saliency.json by name. `images` is the number of images that have saliency;
      if there are none, all other measures are None.
    """
    table = pa.concat_tables([read_table(store, path) for path in paths])
    rows = [row for row in table.to_pylist() if row["mass_in_mask"] is not None]
    measures: dict[str, Any] = dict.fromkeys(
        ("mass_in_mask", "ci_low", "ci_high", "mask_area", "concentration")
    )
    measures["images"] = len(rows)
    if rows:
        mass = np.asarray([row["mass_in_mask"] for row in rows])
        units = [unit_of[row["key"]] for row in rows]
        mean, low, high = paired_bootstrap(mass, np.zeros_like(mass), units)
        area = float(np.mean([row["mask_area"] for row in rows]))
        measures |= {"mass_in_mask": mean, "ci_low": low, "ci_high": high, "mask_area": area}
        measures["concentration"] = mean / area if area else None
    return measures


def map_rows(
    store: Store, paths: Iterable[str], keys: Sequence[str], folder: str
) -> list[dict[str, Any]]:
    """Returns the field `maps` of saliency.json: a row for each image with a map.

    Args:
      store: the dataset folder.
      paths: paths of the model's measures of all shards.
      keys: keys of the images with a map, in the order of the rows.
      folder: name of the model's folder.
    """
    rows = {row["key"]: row for path in paths for row in read_table(store, path).to_pylist()}
    names = ("key", "label", "mass_in_mask", "prediction")
    return [
        {**{name: rows[key][name] for name in names}, "file": map_path(folder, key)} for key in keys
    ]


def nan_to_null(value: float) -> float | None:
    """Returns None for NaN, so that a table holds null, else the value."""
    return None if math.isnan(value) else value


def read_saliency(dataset: Dataset) -> list[dict[str, Any]]:
    """Reads the saliency.json of each model, if it was computed on the dataset's present pictures,
    in order of the models' folders."""
    results, _ = read_current_results(
        dataset, "saliency", lambda result: (result["variant"], "fg_mask")
    )
    return results


def write_saliency_table(dataset: Dataset) -> None:
    """Rebuilds saliency.csv from all results; writes nothing if there never were any. The caller
    must hold the lock of the tables."""
    store, results = dataset.store, read_saliency(dataset)
    failed, _ = read_failures(store, dataset.manifest.fingerprint, "saliency")
    if results or failed or store.exists("results/saliency.csv"):
        rows = [{**result, **result["evaluation"]} for result in results]
        write_csv(store, "saliency", SALIENCY_COLUMNS, rows + error_rows(failed, results))
