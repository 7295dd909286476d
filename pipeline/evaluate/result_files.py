"""Paths and file formats of results, and functions to read and write them.

results/<model>/predictions/<split>-NNNNN.parquet   every single prediction
results/<model>/model.json                          the model, and how it was run
results/*.csv, results/latex/*.tex                  tables of all models, computed from the above
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.errors import escaped_line, escaped_texts
from pipeline.evaluate.result_schemas import (
    AttackSchema,
    Failures,
    ImageNetSchema,
    ModelSchema,
    SaliencySchema,
    TrendSchema,
)
from pipeline.storage.state_files import convert, json_bytes, parse_json, read_intact
from pipeline.storage.store import Store
from transforms.hashing import text_bytes

_SCHEMAS: dict[str, Any] = {
    "model.json": ModelSchema,
    "attack.json": AttackSchema,
    "saliency.json": SaliencySchema,
    "imagenet.json": ImageNetSchema,
    "trend.json": TrendSchema,
    "failures.json": Failures,
}
"""Schemas of the JSON files, by file name."""

PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("model", pa.dictionary(pa.int32(), pa.string())),
        pa.field("label_rule", pa.dictionary(pa.int32(), pa.string())),
        pa.field("variant", pa.dictionary(pa.int32(), pa.string())),
        pa.field("key", pa.string()),
        pa.field("fg_key", pa.string()),
        pa.field("bg_key", pa.string()),
        pa.field("label", pa.int64()),
        pa.field("prediction", pa.int64()),
        pa.field("output", pa.int32()),
        pa.field("correct", pa.bool_()),
        pa.field("top1_score", pa.float32()),
        pa.field("true_score", pa.float32()),
        pa.field("logits", pa.list_(pa.float32())),
        pa.field("of", pa.dictionary(pa.int32(), pa.string())),
        pa.field("device", pa.dictionary(pa.int32(), pa.string())),
    ]
)
"""Columns of predictions. `label` is the true and `prediction` the predicted label, -1 outside the
taxonomy; `output` is the index of the model's winning output. Scores are softmax probabilities
among the outputs that the label rule allows: `top1_score` of the winning output, `true_score`
summed over the outputs of the true label. `logits` are all outputs of the model, for the probe of
`pipeline.evaluate.gap_power`; they are null except on some pictures of backgrounds, under the
paper's label rule. `of` is a fingerprint of everything that the row was computed from, and `device`
the type of the device that computed it."""


def result_folder(model: str, eval_settings: Mapping[str, Any]) -> str:
    """Returns the name of a model's folder under `results/`; two models never share one.

    Args:
      model: name of the model.
      eval_settings: settings of the evaluation. Each of `split`, `eval_input`, `precision` and
        `holdout` that is not the default adds a suffix, and so does the fingerprint of another
        `dataset`, so that results under different settings lie side by side.
    """
    suffix = "".join(f"+{name}" for name in _non_default_settings(eval_settings))
    return safe_name(model) + suffix


def safe_name(model: str) -> str:
    """Returns a file name for a model that is valid on every system, and that no other model's name
    gives."""
    model = escaped_line(model)
    safe = re.sub(r"[^A-Za-z0-9._=-]", "_", model).lstrip(".") or "_"
    if safe == model:
        return safe
    return f"{safe[:100]}-{hashlib.sha256(text_bytes(model)).hexdigest()[:8]}"


def result_file(folder: str, name: str) -> str:
    """Returns the path of a model's result.

    Args:
      folder: name of the model's folder, from `result_folder`.
      name: `model`, `attack`, `saliency` or `imagenet`.
    """
    return f"results/{folder}/{name}.json"


def result_shard(folder: str, name: str, split: str, shard: int) -> str:
    """Returns the path of the file that holds a model's results on one shard.

    Args:
      folder: name of the model's folder, from `result_folder`.
      name: name of the folder in it that holds the shards, such as `predictions`.
      split: the split of the shard.
      shard: number of the output shard, or of another unit of work.
    """
    return f"results/{folder}/{name}/{split}-{shard:05d}.parquet"


def read_result(store: Store, path: str) -> dict[str, Any] | None:
    """Reads the JSON file of a result; returns None if the file is missing or damaged.

    Raises:
      OSError: the file cannot be read.
    """
    return read_intact(store, path, lambda: _parse_result(store.read(path), path))


def _parse_result(data: bytes, path: str) -> dict[str, Any]:
    """Parses the JSON file of a result; raises ValueError if its content does not fit its schema,
    or belongs in another folder. Text is escaped, because earlier releases stored undecodable names
    and errors as they were."""
    content: dict[str, Any] = escaped_texts(parse_json(data, dict[str, Any]))
    folder = path.split("/")[1]
    schema = _SCHEMAS[path.rpartition("/")[2]]
    convert(content, schema)
    # The folder's name depends on the settings of the evaluation on the dataset, which
    # imagenet.json does not record.
    is_named = schema in (ModelSchema, AttackSchema, SaliencySchema)
    if is_named and result_folder(content["model"], content["evaluation"]) != folder:
        raise ValueError(f"it is of {content['model']}, whose results belong in another folder")
    return content


def write_result(store: Store, path: str, content: Mapping[str, Any]) -> bool:
    """Writes the JSON file of a result, its text escaped; returns whether it has changed."""
    return store.update(path, json_bytes(escaped_texts(content)))


def read_results(store: Store, name: str, model: str | None = None) -> list[dict[str, Any]]:
    """Reads the results of all models, in order of their folders. Results on earlier versions of
    the dataset are included.

    Args:
      store: the dataset folder.
      name: name of the results, as for `result_file`.
      model: name of the only model whose results to read, under all settings; None for all models.
    """
    paths = [path.split("/") for path in store.walk("results")]
    results = [
        read_result(store, "/".join(path))
        for path in sorted(path for path in paths if path[2:] == [f"{name}.json"])
        if model is None or path[1].partition("+")[0] == safe_name(model)
    ]
    return [result for result in results if result is not None]


def display_name(summary: Mapping[str, Any]) -> str:
    """Returns a model's name, followed by its settings that are not the default."""
    return " ".join([summary["model"], *_non_default_settings(summary["evaluation"])])


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """Formats a fraction and its interval in percent, such as `7.1 [-1.6, 16.7]`, or a dash if
    there is none."""
    if value is None or low is None or high is None:
        return "-"
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _non_default_settings(settings: Mapping[str, Any]) -> list[str]:
    """Returns the settings of an evaluation that are not the default, as short texts for the names
    of folders and models."""
    values = (settings["split"], settings["eval_input"], settings["precision"])
    names = [value for value in values if value not in ("val", "stored", "fp32")]
    names += [f"holdout{settings['holdout']:g}"] if settings.get("holdout") else []
    return names + ([settings["dataset"][:12]] if "dataset" in settings else [])


def tested_part(summary: Mapping[str, Any]) -> tuple[str, float]:
    """Returns (split that a model was tested on, held-out share of its images that were tested; 0
    if all images were tested)."""
    evaluation = summary["evaluation"]
    return evaluation["split"], evaluation.get("holdout", 0.0)
