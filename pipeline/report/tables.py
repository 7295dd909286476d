"""Tables of results, in CSV and LaTeX files; each table has all models of a dataset.

Tables are rebuilt from the stored results, so they never lag behind. To add a table, list it in
`TABLES` with the part of the summary that holds its rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.analyses.attack.attack_results import write_attack_tables
from pipeline.analyses.matrix.matrix_results import write_matrix_tables
from pipeline.analyses.saliency.saliency_results import write_saliency_table
from pipeline.dataset.folder import Dataset
from pipeline.errors import shown_bytes
from pipeline.evaluate.comparisons import COMPARISON_COLUMNS, compare_models
from pipeline.evaluate.contributions import read_contributions
from pipeline.evaluate.failures import error_rows, read_failures
from pipeline.evaluate.result_files import result_folder
from pipeline.evaluate.summaries import read_summaries
from pipeline.report.latex import HEADLINE, latex_tables
from pipeline.report.trend_tables import remove_trend, write_trend
from pipeline.storage.csv_file import write_csv
from transforms.scoring import LABEL_RULES
from transforms.taxonomy import imagenet9

_RUN = ("split", "eval_input", "precision", "weights_sha256", "dataset")
"""Columns that identify an evaluation. `weights_sha256` is the hash of the weights' tensors,
whichever file holds them; `dataset` is the dataset's fingerprint."""


@dataclasses.dataclass(frozen=True)
class ResultTable:
    """A CSV file with rows of all models.

    Attributes:
      part: key of the summary's list of rows.
      columns: the columns, in order. A value comes from the row, or else from the summary or its
        `evaluation`.
      description: what a row holds, for the reference.
      meanings: meanings of columns that only this table has, or that mean something else in it.
    """

    part: str
    columns: tuple[str, ...]
    description: str
    meanings: Mapping[str, str]


TABLES = {
    "summary": ResultTable(
        "accuracy",
        (
            *("model", "label_rule", "variant", "n", "pictures", "correct", "accuracy", "ci_low"),
            *("ci_high", "chance", "replicates", "seed_sd", "class_mean_accuracy", "outside"),
            *("split", "input_size", "eval_input"),
            *("precision", "device", "weights_sha256", "dataset", "holdout", "overlap", "error"),
        ),
        "accuracy of a model on a variant, or a model that failed",
        {
            "class_mean_accuracy": "mean of the accuracies on each class",
        },
    ),
    "gaps": ResultTable(
        "gaps",
        (
            *("model", "label_rule", "gap", "ci_low", "ci_high", "n", "mixed_same"),
            *("mixed_rand", "replicates", "seed_sd", "units", *_RUN),
        ),
        "BG-Gap of a model, with its two-way interval: [intervals](results.md#intervals)",
        {
            "gap": "accuracy on `mixed_same` - accuracy on `mixed_rand`",
            "mixed_same": "accuracy on `mixed_same`, averaged over its draws",
            "mixed_rand": "accuracy on `mixed_rand`, averaged over its draws",
        },
    ),
    "flips": ResultTable(
        "flips",
        (
            *("model", "label_rule", "variant", "other_variant", "flip_rate", "ci_low"),
            *("ci_high", "n", "pairs", "replicates", "units", *_RUN),
        ),
        "how often the prediction for a foreground changes with the background alone: "
        "[flip rate](results.md#flip-rate)",
        {
            "variant": "variant of one picture of each pair",
            "other_variant": "variant of the other picture; the same variant means another draw "
            "of it",
            "flip_rate": "share of picture pairs that get different predictions, where a pair is "
            "one foreground on backgrounds of two different units; averaged over foregrounds",
            "n": "number of foregrounds with at least one such pair",
            "pairs": "number of picture pairs",
        },
    ),
    "rfs": ResultTable(
        "rfs",
        (
            *("model", "label_rule", "rfs", "ci_low", "ci_high", "n", "noise_fg", "noise_bg"),
            *("units", *_RUN),
        ),
        "relative foreground sensitivity of a model, if the dataset has both variants with noise: "
        "[how it is defined](results.md#relative-foreground-sensitivity)",
        {
            "rfs": "relative foreground sensitivity, from -1 to 1: above 0 if noise on the "
            "foreground costs more accuracy than noise on the background; empty, like its "
            "interval, if all predictions on both are correct, or none is",
            "noise_fg": "accuracy on `noise_fg`",
            "noise_bg": "accuracy on `noise_bg`",
        },
    ),
    "per_class": ResultTable(
        "per_class",
        (
            *("model", "label_rule", "variant", "label", "class_name", "n", "pictures"),
            *("correct", "accuracy", "ci_low", "ci_high", "p_adjusted", "outside", *_RUN),
        ),
        "accuracy on the images of one class, and whether it differs from that on the others",
        {
            "class_name": "name of the true class",
            "p_adjusted": "p value of the difference to the accuracy on all other classes, with "
            "Benjamini-Hochberg's adjustment for the classes of this model, label rule and "
            "variant; empty with a single class",
        },
    ),
    "confusion": ResultTable(
        "confusion",
        ("model", "label_rule", "variant", "label", "prediction", "pictures", *_RUN),
        "number of pictures by label and prediction; pairs that never occurred are left out",
        {
            "pictures": "number of pictures with this label and prediction, in all draws",
        },
    ),
    "decomposition": ResultTable(
        "decomposition",
        (
            *("model", "label_rule", "kind", "n", "images", "share", "ci_low", "ci_high"),
            *_RUN,
        ),
        "share of images that need the background, or are misled by it",
        {
            "kind": "kind of images, by whether `original`, `mixed_rand` (its first draw) and "
            "`only_bg_t` are classified right: `bg_required` right, wrong, right; `bg_fools` "
            "wrong, right, wrong; `bg_fg_required` right, wrong, wrong; `bg_fg_fools` wrong, "
            "right, right; `right_on_both` and `wrong_on_both` the first two (together they are "
            "the paper's 'BG irrelevant')",
            "share": "n / images",
        },
    ),
    "groups": ResultTable(
        "groups",
        (
            *("model", "label_rule", "variant", "label", "bg_label", "n", "pictures", "correct"),
            *("accuracy", "ci_low", "ci_high", "is_worst", "worst_ci_low", "worst_ci_high", *_RUN),
        ),
        "accuracy on foregrounds of one class on backgrounds of one class",
        {
            "is_worst": "whether this is the worst group of the variant: the one with the lowest "
            "`ci_high`",
            "worst_ci_low": "lower end of the worst group's interval at the level 1 - 0.05 / "
            "groups, because it was chosen among that many; empty for other groups",
            "worst_ci_high": "upper end of the interval that `worst_ci_low` begins",
        },
    ),
    "sizes": ResultTable(
        "sizes",
        (
            *("model", "label_rule", "variant", "bucket", "fg_low", "fg_high", "n", "pictures"),
            *("correct", "accuracy", "ci_low", "ci_high", *_RUN),
        ),
        "accuracy on images whose foreground covers a share of the picture within a range",
        {
            "bucket": "range of the foreground's share of the picture, as text",
            "fg_low": "lower end of the bucket, inclusive",
            "fg_high": "upper end of the bucket, exclusive except for 1",
        },
    ),
    "power": ResultTable(
        "power",
        (
            *("model", "variant", "images", "units", "accuracy", "ci_low", "ci_high", "chance"),
            *("has_power", *_RUN),
        ),
        "whether the class can be told from a model's outputs on pictures of backgrounds, with "
        "the interval of a bootstrap over units: [power](results.md#power)",
        {
            "variant": "always `only_bg_t`",
            "accuracy": "accuracy of the probe on images that it was not fitted to",
            "has_power": "whether the whole interval lies above chance",
        },
    ),
}
"""Tables by file name without `.csv`. Accuracies, shares and bounds are fractions; intervals are 95
% intervals."""


def table_rows(
    table: ResultTable, summaries: Iterable[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yields the rows of a table, model by model."""
    for summary in summaries:
        run = {**summary, **summary["evaluation"]}
        for row in summary[table.part]:
            yield {**run, **row}


def missing_rows(
    summaries: Iterable[Mapping[str, Any]], failed: Iterable[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yields rows of summary.csv for variants on whose current pictures a model was not
    evaluated."""
    errors = {result_folder(one["model"], one["evaluation"]): one["error"] for one in failed}
    for summary in summaries:
        folder = result_folder(summary["model"], summary["evaluation"])
        reason = errors.get(folder, "not evaluated since these pictures were made")
        for rule in LABEL_RULES:
            for variant in summary["missing"]:
                run = {**summary, **summary["evaluation"]}
                cell = {"label_rule": rule, "variant": variant, "accuracy": None}
                yield {**run, **cell, "error": f"missing: {reason}"}


def write_tables(
    dataset: Dataset, columns: Sequence[str] = HEADLINE
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rebuilds all tables from the stored results.

    Args:
      dataset: the dataset.
      columns: columns of the LaTeX headline table.

    Returns:
      (summaries, names of models whose results or failures belong to an earlier state of the
      dataset). If nothing was ever evaluated, no tables of accuracies are written.
    """
    store, fingerprint = dataset.store, dataset.manifest.fingerprint
    write_attack_tables(dataset)
    write_saliency_table(dataset)
    write_matrix_tables(dataset)
    summaries, stale = read_summaries(dataset)
    failed, failed_before = read_failures(store, fingerprint, "evaluate")
    stale += failed_before
    # Existing tables are rewritten even if the results of all models were removed.
    if not (summaries or failed or stale or store.exists("results/summary.csv")):
        return [], []
    for name, table in TABLES.items():
        rows = [*table_rows(table, summaries)]
        if "error" in table.columns:
            rows += [*missing_rows(summaries, failed), *error_rows(failed, summaries)]
        write_csv(store, name, table.columns, rows)
    measured = read_contributions(dataset, summaries) if len(summaries) > 1 else []
    write_csv(store, "comparisons", COMPARISON_COLUMNS, compare_models(fingerprint, measured))
    for name, text in latex_tables(summaries, dataset.taxonomy.names, columns).items():
        store.update(f"results/latex/{name}.tex", shown_bytes(text))
    if dataset.is_imagenet9:
        write_trend(store, fingerprint, summaries, imagenet9(), measured)
    else:
        remove_trend(store)
    return summaries, stale
