"""Paths and file formats of results, and functions to read and write them.

results/<model>/predictions/<split>-NNNNN.parquet   every single prediction
results/<model>/model.json                          the model, and how it was run
results/*.csv, results/latex/*.tex                  tables of all models, computed from the above
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import pyarrow as pa

from pipeline.errors import escaped_texts
from pipeline.evaluate.results import Named, safe_name
from pipeline.storage.state_files import convert, json_bytes, parse_json, read_intact
from pipeline.storage.store import Store

_R = TypeVar("_R")
_N = TypeVar("_N", bound=Named)

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
`pipeline.analyses.evaluation.gap_power`; they are null except on some pictures of backgrounds,
under the paper's label rule. `of` is a fingerprint of everything that the row was computed from,
and `device` the type of the device that computed it."""


def result_file(folder: str, name: str) -> str:
    """Returns the path of a model's result.

    Args:
      folder: name of the model's folder, from `Named.folder`.
      name: name of the file without `.json`.
    """
    return f"results/{folder}/{name}.json"


def result_shard(folder: str, name: str, split: str, shard: int) -> str:
    """Returns the path of the file that holds a model's results on one shard.

    Args:
      folder: name of the model's folder, from `Named.folder`.
      name: name of the folder in it that holds the shards, such as `predictions`.
      split: the split of the shard.
      shard: number of the output shard, or of another unit of work.
    """
    return f"results/{folder}/{name}/{split}-{shard:05d}.parquet"


def read_result(store: Store, path: str, kind: type[_R]) -> _R | None:
    """Reads the JSON file of a result as its type; returns None if the file is missing or damaged,
    or is of a model whose results belong in another folder.

    Raises:
      OSError: the file cannot be read.
    """
    return read_intact(store, path, lambda: _parse_result(store.read(path), path, kind))


def _parse_result(data: bytes, path: str, kind: type[_R]) -> _R:
    # Text is escaped, because earlier releases stored undecodable names and errors as they were.
    result = convert(escaped_texts(parse_json(data, object)), kind)
    if isinstance(result, Named) and result.names_folder and result.folder != path.split("/")[1]:
        raise ValueError(f"it is of {result.model}, whose results belong in another folder")
    return result


def write_result(store: Store, path: str, content: Any) -> bool:
    """Writes the JSON file of a result, its text escaped; returns whether it has changed."""
    return store.update(path, json_bytes(escaped_texts(msgspec.to_builtins(content))))


def read_results(store: Store, name: str, kind: type[_N], model: str | None = None) -> list[_N]:
    """Reads the results of all models, in order of their folders. Results on earlier versions of
    the dataset are included.

    Args:
      store: the dataset folder.
      name: name of the results, as for `result_file`.
      kind: type of the results.
      model: name of the only model whose results to read, under all settings; None for all models.
    """
    paths = [path.split("/") for path in store.walk("results")]
    results = [
        read_result(store, "/".join(path), kind)
        for path in sorted(path for path in paths if path[2:] == [f"{name}.json"])
        if model is None or path[1].partition("+")[0] == safe_name(model)
    ]
    return [result for result in results if result is not None]
