"""Results of evaluation: where they lie, and reading them.

results/<model>/predictions/<split>-NNNNN.parquet   every single prediction
results/<model>/model.json                          which model it is, and how it was run
results/*.csv, results/latex/*.tex                  tables of all models, made of these
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec
import pyarrow as pa

from pipeline.evaluate.result_schemas import (
    AttackSchema,
    Failures,
    ImageNetSchema,
    ModelSchema,
    SaliencySchema,
    TrendSchema,
)
from pipeline.storage.state_files import parse_json, read_intact
from pipeline.storage.store import Store

_FORMS: dict[str, Any] = {
    "model.json": ModelSchema,
    "attack.json": AttackSchema,
    "saliency.json": SaliencySchema,
    "imagenet.json": ImageNetSchema,
    "trend.json": TrendSchema,
    "failures.json": Failures,
}
"""What a result's file holds, by its name."""

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
"""Columns of predictions. `prediction` is a label, -1 outside the taxonomy; `output` is the
model's winning output; scores are softmax probabilities, the true one summed over the true
label's outputs. `logits` are all of the model's, for the probe of `pipeline.evaluate.gap_power`:
null but on some pictures of backgrounds. `of` identifies what a row was made of, `device` where."""


def result_folder(model: str, predict: Mapping[str, Any]) -> str:
    """Name of a model's folder under `results/`: two models never share one.

    Args:
      model: its name.
      predict: how it is run; what is not the default `split`, `eval_input`, `precision` and
        `holdout` becomes a suffix, and the fingerprint of another `dataset`, so that such results
        stand beside the others.
    """
    suffix = "".join(f"+{name}" for name in _chosen(predict))
    return safe_name(model) + suffix


def safe_name(model: str) -> str:
    """A name that is one of a file, on every system; two of them never become one."""
    safe = re.sub(r"[^A-Za-z0-9._=-]", "_", model).lstrip(".") or "_"
    if safe == model:
        return safe
    return f"{safe[:100]}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"


def result_file(folder: str, name: str) -> str:
    """What is said of a model: which `model` it is, its `attack`, `saliency` or `imagenet`.

    Args:
      folder: of `result_folder`.
      name: of the result.
    """
    return f"results/{folder}/{name}.json"


def result_shard(folder: str, name: str, split: str, shard: int) -> str:
    """What a result is made of, of one shard.

    Args:
      folder: of `result_folder`.
      name: of what it holds, such as `predictions`.
      split: that it is of.
      shard: number of the output shard, or of what takes its place.
    """
    return f"results/{folder}/{name}/{split}-{shard:05d}.parquet"


def read_result(store: Store, path: str) -> dict[str, Any] | None:
    """The JSON file of a result, whose name says its form; None if it is not there, or damaged.

    Raises:
      OSError: it cannot be read.
    """
    return read_intact(store, path, lambda: _parse_result(store.read(path), path))


def _parse_result(data: bytes, path: str) -> dict[str, Any]:
    """Raises ValueError for what is not the result that belongs there."""
    content = parse_json(data, dict[str, Any])
    folder = path.split("/")[1]
    form = _FORMS[path.rpartition("/")[2]]
    msgspec.convert(content, form)
    # Folders are named by how a model runs on the dataset, and not on ImageNet's own pictures.
    is_named = form in (ModelSchema, AttackSchema, SaliencySchema)
    if is_named and result_folder(content["model"], content["evaluation"]) != folder:
        raise ValueError(f"it is of {content['model']}, whose results lie elsewhere")
    return content


def write_result(store: Store, path: str, content: Mapping[str, Any]) -> bool:
    """Writes the JSON file of a result; returns whether it has changed."""
    return store.update(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def read_results(store: Store, name: str, model: str | None = None) -> list[dict[str, Any]]:
    """The results of all models, of whatever dataset and form, in order of their folder.

    Args:
      store: the dataset folder.
      name: as for `result_file`.
      model: the only one whose results are wanted, however it was run; None for all.
    """
    places = [path.split("/") for path in store.walk("results")]
    found = [
        read_result(store, "/".join(place))
        for place in sorted(place for place in places if place[2:] == [f"{name}.json"])
        if model is None or place[1].partition("+")[0] == safe_name(model)
    ]
    return [content for content in found if content is not None]


def display_name(summary: Mapping[str, Any]) -> str:
    """A model, with what is not the default about how it was run."""
    return " ".join([summary["model"], *_chosen(summary["evaluation"])])


def interval(value: float, low: float, high: float) -> str:
    """A fraction and its interval in percent: `7.1 [-1.6, 16.7]`."""
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _chosen(how: Mapping[str, Any]) -> list[str]:
    """What is not the default in how a model is run."""
    named = (how["split"], how["eval_input"], how["precision"])
    found = [name for name in named if name not in ("val", "stored", "fp32")]
    found += [f"holdout{how['holdout']:g}"] if how.get("holdout") else []
    return found + ([how["dataset"][:12]] if "dataset" in how else [])


def tested_part(summary: Mapping[str, Any]) -> tuple[str, float]:
    """(split, share of it that a model was tested on, 0 for all of it)."""
    evaluation = summary["evaluation"]
    return evaluation["split"], evaluation.get("holdout", 0.0)
