"""Writes the tables of the evaluation, in CSV and LaTeX files; each has all models of a dataset.

Tables are rebuilt from the stored results, so they never lag behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from pipeline.analyses.evaluation.comparisons import COMPARISONS, compare_models
from pipeline.analyses.evaluation.contributions import read_contributions
from pipeline.analyses.evaluation.latex import latex_tables
from pipeline.analyses.evaluation.results import TABLES, Summary, SummaryRun, VariantRow
from pipeline.analyses.evaluation.summaries import read_summaries
from pipeline.dataset.folder import Dataset
from pipeline.display.table import OfModel
from pipeline.display.text import aligned, interval
from pipeline.errors import shown_bytes
from pipeline.evaluate.failures import failures_without_results, read_failures
from pipeline.evaluate.results import Failure, pick


def missing_rows(
    summaries: Iterable[Summary], failed: Iterable[Failure]
) -> Iterator[list[msgspec.Struct]]:
    """Yields rows of summary.csv for variants on whose current pictures a model was not
    evaluated."""
    errors = {failure.folder: failure.error for failure in failed}
    for summary in summaries:
        reason = errors.get(summary.folder, "not evaluated since these pictures were made")
        for rule in summary.label_rules:
            for variant in summary.missing:
                run = pick(SummaryRun, summary, summary.evaluation, error=f"missing: {reason}")
                row = VariantRow(label_rule=rule, variant=variant)
                yield [OfModel(summary.model), row, run]


def write_evaluation_tables(dataset: Dataset, columns: Sequence[str]) -> None:
    """Rebuilds the tables from the stored predictions; writes nothing if nothing was ever
    evaluated. The caller must hold the lock of the tables.

    Args:
      dataset: the dataset.
      columns: columns of the LaTeX headline table.
    """
    store, fingerprint = dataset.store, dataset.manifest.fingerprint
    summaries, stale = read_summaries(dataset)
    failed, failed_before = read_failures(store, fingerprint, "evaluate")
    # Existing tables are rewritten even if the results of all models were removed.
    was_evaluated = summaries or failed or stale or failed_before
    if not was_evaluated and not store.exists("results/summary.csv"):
        return
    for table in TABLES:
        run_type = table.parts[-1]
        rows: list[list[msgspec.Struct]] = [
            [OfModel(summary.model), row, pick(run_type, summary, summary.evaluation)]
            for summary in summaries
            for row in summary.rows_of(table.parts[1])
        ]
        if run_type is SummaryRun:
            rows += missing_rows(summaries, failed)
            rows += [
                [OfModel(failure.model), pick(SummaryRun, failure, failure.evaluation)]
                for failure in failures_without_results(failed, summaries)
            ]
        table.write(store, rows)
    compared = compare_models(fingerprint, read_contributions(dataset, summaries))
    COMPARISONS.write(store, ([row] for row in compared))
    for name, text in latex_tables(summaries, dataset.taxonomy.names, columns).items():
        store.update(f"results/latex/{name}.tex", shown_bytes(text))


def describe_stale(dataset: Dataset, stale: Sequence[str]) -> Iterator[str]:
    """Yields a line that names models which were evaluated, or failed, on an earlier state of the
    dataset.

    Args:
      dataset: the dataset.
      stale: the models that were evaluated, from `read_summaries`.
    """
    failed = read_failures(dataset.store, dataset.manifest.fingerprint, "evaluate")[1]
    if names := [*stale, *failed]:
        yield f"not in the tables, because evaluated on an earlier dataset: {', '.join(names)}"


def accuracy_table(summaries: Sequence[Summary]) -> str:
    """Formats a table of models x variants and BG-Gap, in percent under the label rule of each
    model's headline. Figures are means over draws."""
    variants = list(dict.fromkeys(row.variant for one in summaries for row in one.accuracy))
    rows = (
        [
            summary.name,
            *(
                f"{100 * estimate[0]:.1f}" if (estimate := summary.estimate(variant)) else "-"
                for variant in variants
            ),
            interval(*gap.estimate) if (gap := summary.gap()) else "-",
        ]
        for summary in summaries
    )
    return aligned([["accuracy, %", *variants, "BG-Gap"], *rows])
