"""Results of evaluation: predictions, and the tables made of them.

results/<model>/predictions/<split>-NNNNN.parquet   every single prediction
results/<model>/summary.json                        what was run, and its accuracies
results/summary.csv, results/gaps.csv               all models of this dataset
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.storage import Store
from transforms.intervals import RESAMPLES, paired_bootstrap, wilson

PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("model", pa.dictionary(pa.int32(), pa.string())),
        pa.field("label_rule", pa.dictionary(pa.int32(), pa.string())),
        pa.field("variant", pa.dictionary(pa.int32(), pa.string())),
        pa.field("key", pa.string()),
        pa.field("fg_key", pa.string()),
        pa.field("bg_key", pa.string()),
        pa.field("label", pa.int8()),
        pa.field("prediction", pa.int8()),
        pa.field("output", pa.int32()),
        pa.field("correct", pa.bool_()),
        pa.field("top1_score", pa.float32()),
        pa.field("true_score", pa.float32()),
    ]
)
"""Columns of predictions. `prediction` is a label, -1 outside the taxonomy; `output` is the
model's winning output; scores are softmax probabilities, the true one summed over the true
label's outputs."""

SUMMARY_COLUMNS = (
    "model",
    "label_rule",
    "variant",
    "n",
    "correct",
    "accuracy",
    "ci_low",
    "ci_high",
    "class_mean_accuracy",
    "split",
    "input_size",
    "eval_input",
    "precision",
    "device",
    "weights_sha256",
    "dataset",
)
"""Columns of summary.csv; accuracies and bounds are fractions, intervals Wilson's at 95 %;
`weights_sha256` is of the tensors, whatever file held them; `dataset` is its fingerprint."""

GAP_COLUMNS = (
    "model",
    "label_rule",
    "gap",
    "ci_low",
    "ci_high",
    "n",
    "mixed_same",
    "mixed_rand",
    "split",
    "eval_input",
    "precision",
    "weights_sha256",
    "dataset",
)
"""Columns of gaps.csv: BG-Gap = accuracy on mixed_same - accuracy on mixed_rand, a fraction,
with the 95 % interval of a paired bootstrap over foregrounds."""


def result_folder(model: str, predict: Mapping[str, Any]) -> str:
    """Name of a model's folder under `results/`: two models never share one.

    Args:
      model: its name.
      predict: how it is run; what is not the default `split`, `eval_input` and `precision`
        becomes a suffix, so that such results stand beside the others.
    """
    chosen = (predict["split"], predict["eval_input"], predict["precision"])
    suffix = "".join(f"+{name}" for name in chosen if name not in ("val", "stored", "fp32"))
    return _safe_name(model) + suffix


def _safe_name(model: str) -> str:
    safe = re.sub(r"[^A-Za-z0-9._=-]", "_", model).lstrip(".") or "_"
    if safe == model:
        return safe
    return f"{safe[:100]}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"


def predictions_file(folder: str, split: str, shard: int) -> str:
    """Predictions of a model on an output shard."""
    return f"results/{folder}/predictions/{split}-{shard:05d}.parquet"


def summary_file(folder: str) -> str:
    """Summary of a model."""
    return f"results/{folder}/summary.json"


def read_predictions(store: Store, paths: Iterable[str]) -> pa.Table:
    """Predictions of one model on all shards: what accuracies and gaps need of them.

    Returns:
      Columns `label_rule`, `variant`, `fg_key`, `label` and `correct`.
    """
    columns = ["label_rule", "variant", "fg_key", "label", "correct"]
    tables = [pq.read_table(store.path(path), columns=columns) for path in paths]
    return pa.concat_tables(tables).unify_dictionaries()


def accuracy_rows(
    predictions: pa.Table, rules: Iterable[str], variants: Iterable[str]
) -> list[dict[str, Any]]:
    """One row for each label rule and variant: n, correct, accuracy, interval, class mean.

    Without predictions, accuracies are None.
    """
    counts = predictions.group_by(["label_rule", "variant", "label"]).aggregate(
        [("correct", "count"), ("correct", "sum")]
    )
    by_class: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for row in counts.sort_by("label").to_pylist():
        of_row = by_class.setdefault((row["label_rule"], row["variant"]), [])
        of_row.append((row["correct_sum"], row["correct_count"]))
    rows = []
    for rule in rules:
        for variant in variants:
            classes = by_class.get((rule, variant), [])
            hits, n = sum(c for c, _ in classes), sum(m for _, m in classes)
            low, high = wilson(hits, n)
            means = [c / m for c, m in classes]
            rows.append(
                {
                    "label_rule": rule,
                    "variant": variant,
                    "n": n,
                    "correct": hits,
                    "accuracy": hits / n if n else None,
                    "ci_low": low,
                    "ci_high": high,
                    "class_mean_accuracy": sum(means) / len(means) if n else None,
                }
            )
    return rows


def gap_rows(predictions: pa.Table, rules: Iterable[str]) -> list[dict[str, Any]]:
    """BG-Gap by label rule; no rows if one of its two variants is missing or empty."""
    rows = []
    for rule in rules:
        of_rule = predictions.filter(pc.equal(predictions["label_rule"], rule))
        same, rand = (
            of_rule.filter(pc.equal(of_rule["variant"], variant)).sort_by("fg_key")
            for variant in ("mixed_same", "mixed_rand")
        )
        if not len(same) or not len(rand):
            continue
        keys = same["fg_key"].to_pylist()
        if keys != rand["fg_key"].to_pylist():
            raise ValueError("mixed_same and mixed_rand hold different foregrounds")
        first, second = (np.asarray(table["correct"].to_pylist()) for table in (same, rand))
        gap, low, high = paired_bootstrap(first, second, keys, resamples=RESAMPLES)
        rows.append(
            {
                "label_rule": rule,
                "gap": gap,
                "ci_low": low,
                "ci_high": high,
                "n": len(keys),
                "mixed_same": float(first.mean()),
                "mixed_rand": float(second.mean()),
            }
        )
    return rows


def all_summaries(store: Store) -> list[dict[str, Any]]:
    """Summaries of all evaluated models, of whatever dataset, in order of their folder."""
    return [
        json.loads(store.read(path))
        for path in store.walk("results")
        if path.count("/") == 2 and path.endswith("/summary.json")
    ]


def read_summaries(store: Store, dataset: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Summaries of all evaluated models, in order of their folder.

    Args:
      store: the dataset folder.
      dataset: its fingerprint.

    Returns:
      (summaries made on this dataset, names of models whose summary is of an earlier one).
    """
    summaries = all_summaries(store)
    current = [summary for summary in summaries if summary["dataset"] == dataset]
    return current, [s["model"] for s in summaries if s["dataset"] != dataset]


def write_tables(store: Store, dataset: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Rebuilds results/*.csv from the summaries that are there.

    Returns:
      What `read_summaries` does. There are no tables if nothing was ever evaluated.
    """
    summaries, stale = read_summaries(store, dataset)
    if not summaries and not stale:
        return [], []
    for name, columns, part in (
        ("summary", SUMMARY_COLUMNS, "accuracy"),
        ("gaps", GAP_COLUMNS, "gaps"),
    ):
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        for summary in summaries:
            for row in summary[part]:
                writer.writerow({**summary, **summary["evaluation"], **row})
        store.update(f"results/{name}.csv", text.getvalue().encode())
    return summaries, stale
