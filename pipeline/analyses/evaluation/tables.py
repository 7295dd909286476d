"""The evaluation's CSV and LaTeX tables, each with all models of a dataset, and its printed lines.

Tables are rebuilt from the stored results, so they never lag behind.

One line is about the power of BG-Gap: whether a probe can tell the class from a model's logits on
backgrounds. If the probe cannot, a gap near 0 says little about the model, because the backgrounds
may hold no information about the class that the model could rely on.
"""

from collections.abc import Iterable, Iterator, Sequence

import msgspec
import pyarrow as pa

from pipeline.analyses.evaluation.baseline import (
    BASELINE,
    Baseline,
    chosen_baseline,
    compare_with,
    describe_baseline,
)
from pipeline.dataset.folder import Dataset
from pipeline.display.table import (
    INTERVAL,
    RANGE,
    Cell,
    ShortName,
    aligned,
    interval,
    listed,
    mean_interval,
    tabular,
    tabular_of,
)
from pipeline.errors import shown_bytes
from pipeline.evaluate.best import IN_BOLD, mark_best, mark_families
from pipeline.evaluate.comparisons import (
    BG_GAP,
    COMPARISONS,
    compare_models,
    read_contributions,
    read_rows,
)
from pipeline.evaluate.families import (
    FAMILIES,
    Family,
    FamilyRow,
    Subject,
    describe_families,
    figures_of,
    subjects_of,
    titled,
)
from pipeline.evaluate.family_rows import compare_families, family_rows
from pipeline.evaluate.predictions import (
    OF_LOGITS,
    PROBED_VARIANT,
    EvalImages,
    logits_in_tables,
    prediction_file,
)
from pipeline.evaluate.results import (
    Failure,
    ModelRun,
    OfModel,
    Table,
    failures_without_results,
    pick,
    read_failures,
    read_result,
    result_file,
)
from pipeline.evaluate.summaries import read_summaries
from pipeline.evaluate.summary import (
    TABLES,
    Evaluated,
    StoredPower,
    Summary,
    SummaryRun,
    VariantRow,
    rules_of,
)
from pipeline.storage.state_files import read_table
from transforms.analysis import KINDS
from transforms.hashing import fingerprint
from transforms.intervals import CONFIDENCE
from transforms.power import power_of_outputs
from transforms.scoring import ALL_RULES
from transforms.variants import PAPER_NAMES, VariantName

HEADLINE = ("original", "only_bg_t", "mixed_same", "mixed_rand", BG_GAP)
"""Default columns of the headline table."""

KIND_NAMES = {
    "bg_required": "BG required",
    "bg_fools": "BG fools",
    "bg_fg_required": "BG+FG required",
    "bg_fg_fools": "BG+FG fools",
    "right_on_both": "Right on both",
    "wrong_on_both": "Wrong on both",
}
"""Name of each kind of image, in the order of `KINDS`. The first four are the paper's; its "BG
irrelevant" is the last two together."""


def latex_tables(
    summaries: Sequence[Summary],
    class_names: Sequence[str],
    columns: Sequence[str] = HEADLINE,
    of_families: Sequence[FamilyRow] = (),
) -> dict[str, str]:
    """Makes LaTeX sources of all tables, by file name without `.tex`.

    `headline`, `decomposition` and `per_class_<variant>` are under the first label rule,
    `headline_<rule>` under each other rule, `families` under that of each family's headline.
    """
    first, *others = rules_of(summaries)
    return {
        "headline": headline(summaries, first, columns),
        **{f"headline_{rule}": headline(summaries, rule, columns) for rule in others},
        "decomposition": decomposition(summaries, first),
        **{
            f"per_class_{variant}": per_class(summaries, first, variant, class_names)
            for variant in ("original", "mixed_same", "mixed_rand")
        },
        **({"families": families_table(summaries, of_families, columns)} if of_families else {}),
    }


def headline(summaries: Sequence[Summary], rule: str, columns: Sequence[str]) -> str:
    """Makes a `tabular` of models x variants and BG-Gap, in percent with 95 % intervals.

    Columns that no model has are left out. Figures of mixed variants and BG-Gap are means over
    their draws.
    """
    rows_of_models = [
        {
            **{
                row.variant: Cell(*row.estimate, is_bold=bool(row.among_best))
                for row in summary.by_rule(summary.accuracy, rule)
                if row.estimate
            },
            **({BG_GAP: Cell(*gap.estimate)} if (gap := summary.gap(rule)) else {}),
        }
        for summary in summaries
    ]
    shown = [name for name in columns if any(name in rows for rows in rows_of_models)]
    return tabular(
        f"Accuracy and BG-Gap in %, 95 % intervals; label rule: {rule}; {IN_BOLD}",
        ["BG-Gap" if name == BG_GAP else PAPER_NAMES.get(name, name) for name in shown],
        summaries,
        [[rows.get(name) for name in shown] for rows in rows_of_models],
    )


def families_table(
    summaries: Sequence[Summary], figures: Iterable[FamilyRow], columns: Sequence[str]
) -> str:
    """Makes a `tabular` of families x variants and BG-Gap, each family by its headline's rule.

    Beneath a mean stand its interval, or the range of the trainings, and their standard deviation.
    """
    families = [one for one in subjects_of(summaries) if isinstance(one, Family)]
    by_family = [
        {
            row.variant: Cell(
                row.mean,
                row.lowest if row.ci_low is None else row.ci_low,
                row.highest if row.ci_high is None else row.ci_high,
                is_bold=bool(row.among_best),
                sd=row.sd,
                ends=RANGE if row.ci_low is None else INTERVAL,
            )
            for row in figures_of(family, family.headline, figures).values()
        }
        for family in families
    ]
    shown = [name for name in columns if any(name in cells for cells in by_family)]
    rules = ", ".join(dict.fromkeys(family.headline for family in families))
    return tabular_of(
        "Means of trainings in %, 95 % intervals for other trainings, images and backgrounds (or "
        f"smallest to largest), standard deviations; label rule: {rules}; {IN_BOLD}",
        ["BG-Gap" if name == BG_GAP else PAPER_NAMES.get(name, name) for name in shown],
        [ShortName(one.name, f"{len(one.members)} trainings") for one in families],
        [[cells.get(name) for name in shown] for cells in by_family],
    )


def decomposition(summaries: Sequence[Summary], rule: str) -> str:
    """Makes a table of models x kinds of images, in percent; arguments as for `headline`."""
    rows_of_models = [
        {
            row.kind: Cell(row.share, row.ci_low, row.ci_high)
            for row in summary.by_rule(summary.decomposition, rule)
            if row.images
        }
        for summary in summaries
    ]
    return tabular(
        f"Share of images in %, 95 % intervals; label rule: {rule}; mixed_rand: "
        "its first draw; the paper's BG irrelevant is: right or wrong on both, Original and "
        "Mixed-Rand",
        [KIND_NAMES[kind] for kind in KINDS],
        summaries,
        [[rows.get(kind) for kind in KINDS] for rows in rows_of_models],
    )


def per_class(
    summaries: Sequence[Summary], rule: str, variant: str, class_names: Sequence[str]
) -> str:
    """Makes a table of models x classes on a variant, in percent; other arguments: see `headline`.

    A star marks a class on which a model is significantly better or worse than on the other classes
    (`class_p_values`).
    """
    rows_of_models = [
        {
            row.class_name: Cell(
                row.accuracy,
                row.ci_low,
                row.ci_high,
                is_starred=row.p_adjusted is not None and row.p_adjusted < 1 - CONFIDENCE,
            )
            for row in summary.by_rule(summary.per_class, rule)
            if row.variant == variant
        }
        for summary in summaries
    ]
    return tabular(
        f"Accuracy on {variant} in %, 95 % intervals; label rule: {rule}; *: "
        "differs from the other classes (Benjamini-Hochberg, 5 %)",
        class_names,
        summaries,
        [[rows.get(name) for name in class_names] for rows in rows_of_models],
    )


POWER_VERSION = 2
"""Version of the probe. A developer raises it with every change that gives other figures for the
same logits."""


def measure_power(
    dataset: Dataset,
    images: EvalImages,
    run: ModelRun,
    predictions: Sequence[pa.Table] | None = None,
) -> tuple[StoredPower, ...]:
    """Fits the probe to a model's stored logits; returns the rows of `power` for its summary.

    Because fitting a probe to 5,000 pictures takes a second, its row is stored in model.json, and
    reused while the logits and the images' units are the same. There is none without stored logits,
    or with too few to hold some out for the test. `predictions` default to the stored ones.
    """
    store, shards = dataset.store, dataset.shards(run.evaluation.split)
    stored = (read_table(store, prediction_file(run, shard), OF_LOGITS) for shard in shards)
    kept = logits_in_tables(stored if predictions is None else predictions)
    if kept is None:
        return ()
    units = [images.units[at] for at in images.positions(pa.array(kept.keys)).tolist()]
    inputs = fingerprint(POWER_VERSION, kept.of, kept.keys, units)
    previous = read_result(store, result_file(run.folder, "model"), Evaluated)
    if previous and [row.fingerprint for row in previous.power] == [inputs]:
        return previous.power
    power = power_of_outputs(kept.logits, kept.labels, units)
    if power is None:
        return ()
    return (
        pick(
            StoredPower,
            power,
            variant=str(PROBED_VARIANT),
            ci_low=power.low,
            ci_high=power.high,
            fingerprint=inputs,
        ),
    )


def describe_power(summaries: Iterable[Summary], *, is_page: bool = False) -> Iterator[str]:
    """Yields a line on the models whose probe did not beat chance, and one on those without logits.

    On the page, another line is about the models whose probe did beat chance.
    """
    summaries = list(summaries)
    if unknown := [one.name for one in summaries if one.answers != "scores"]:
        yield (
            "whether backgrounds tell the class is not known, because they answer without scores: "
            f"{listed(unknown)}"
        )
    weak = [(one, row) for one in summaries for row in one.power if not row.has_power]
    if weak:
        near_zero = [one.name for one, _ in weak if one.is_gap_near_zero]
        named = f" (as of {listed(near_zero)})" if len(near_zero) < len(weak) else ""
        yield (
            "a probe cannot tell the class from these backgrounds"
            + (f", so a gap near 0{named} is no evidence" if near_zero else "")
            + f": {_probes(weak)}"
        )
    strong = [(one, row) for one in summaries for row in one.power if row.has_power]
    if strong and is_page:
        yield f"backgrounds tell the class here: {_probes(strong)}"


def _probes(models: Sequence[tuple[Summary, StoredPower]]) -> str:
    """Names models, and says how often the probes of their outputs are right."""
    rows = sorted((row for _, row in models), key=lambda row: row.accuracy)
    chances = sorted(row.chance for row in rows)
    chance = " to ".join(dict.fromkeys(f"{100 * one:.1f}" for one in (chances[0], chances[-1])))
    found = (
        f"probe {interval(rows[0].accuracy, rows[0].ci_low, rows[0].ci_high)} %"
        if len(rows) == 1
        else f"probes {100 * rows[0].accuracy:.1f} to {100 * rows[-1].accuracy:.1f} %, in power.csv"
    )
    return f"{listed([one.name for one, _ in models])} ({found}, chance {chance} %)"


def missing_rows(
    summaries: Iterable[Summary], failed: Iterable[Failure]
) -> Iterator[list[msgspec.Struct]]:
    """Yields summary.csv's rows of variants on whose current pictures a model was not evaluated."""
    errors = {failure.folder: failure.error for failure in failed}
    for summary in summaries:
        reason = errors.get(summary.folder, "not evaluated since these pictures were made")
        for rule in summary.label_rules:
            for variant in summary.missing:
                run = pick(SummaryRun, summary, summary.evaluation, error=f"missing: {reason}")
                yield [OfModel(summary.title), VariantRow(label_rule=rule, variant=variant), run]


def rows_of_models(table: Table, summaries: Iterable[Summary]) -> list[list[msgspec.Struct]]:
    run_type = table.structs[-1]
    return [
        [OfModel(summary.title), row, pick(run_type, summary, summary.evaluation)]
        for summary in summaries
        for row in getattr(summary, "accuracy" if table.name == "summary" else table.name)
    ]


def write_evaluation_tables(dataset: Dataset, columns: Sequence[str]) -> None:
    """Rebuilds the tables if there are evaluations; the caller must hold the tables' lock."""
    store, fingerprint = dataset.store, dataset.manifest.fingerprint
    summaries, stale = read_summaries(dataset)
    failed, failed_before = read_failures(store, fingerprint, "evaluate")
    # Existing tables are rewritten even if the results of all models were removed.
    was_evaluated = summaries or failed or stale or failed_before
    if not was_evaluated and not store.exists("results/summary.csv"):
        return
    measured = read_contributions(dataset, summaries)
    compared = list(compare_models(fingerprint, measured))
    marked = mark_best(summaries, compared)
    for table in TABLES:
        rows = rows_of_models(table, marked)
        if table.structs[-1] is SummaryRun:
            rows += missing_rows(summaries, failed)
            rows += [
                [OfModel(failure.model), pick(SummaryRun, failure, failure.evaluation)]
                for failure in failures_without_results(failed, summaries)
            ]
        table.write(store, rows)
    compared += compare_families(fingerprint, measured)
    COMPARISONS.write(store, ([row] for row in compared))
    of_families = mark_families(family_rows(fingerprint, measured), compared)
    FAMILIES.write(store, ([row] for row in of_families))
    baseline = chosen_baseline(dataset)
    rows_of_baseline = (
        compare_with(baseline, dataset, summaries) if isinstance(baseline, Baseline) else []
    )
    BASELINE.write(store, ([row] for row in rows_of_baseline))
    if not of_families:
        store.delete("results/latex/families.tex")
    for name, text in latex_tables(marked, dataset.taxonomy.names, columns, of_families).items():
        store.update(f"results/latex/{name}.tex", shown_bytes(text))


def headline_columns(dataset: Dataset) -> tuple[str, ...]:
    """Returns the columns that the user may choose from for LaTeX tables."""
    return (*(str(n) for n in dataset.picture_variants if not n.rendering), BG_GAP)


def describe_summaries(dataset: Dataset, summaries: Sequence[Summary]) -> Iterator[str]:
    """Yields what a job that has evaluated models, or `in9 report`, prints of all models."""
    yield accuracy_table(subjects_of(summaries), read_rows(dataset, FAMILIES, FamilyRow))
    yield from describe_families(summaries)
    yield from describe_power(summaries)
    yield from describe_baseline(dataset, summaries)


def describe_stale(dataset: Dataset, stale: Sequence[str]) -> Iterator[str]:
    """Yields a line that names models evaluated, or failed, on an earlier state of the dataset."""
    failed = read_failures(dataset.store, dataset.manifest.fingerprint, "evaluate")[1]
    if names := [*stale, *failed]:
        yield f"not in the tables, because evaluated on an earlier dataset: {', '.join(names)}"


def accuracy_table(subjects: Sequence[Subject], figures: Sequence[FamilyRow] = ()) -> str:
    """Formats a table of models x variants and BG-Gap, in percent; seeds stand below their family.

    Figures are means over draws, under the label rule of each model's headline. Models with
    different rules have a table for each rule. Renderings stand in the table of the method.
    """
    by_rule = {
        rule: of_rule
        for rule in ALL_RULES
        if (of_rule := [one for one in subjects if one.headline == rule])
    }
    if len(by_rule) > 1:
        return "\n".join(
            f"by {rule}:\n{accuracy_table(one, figures)}" for rule, one in by_rule.items()
        )
    models = [one for subject in subjects for one in subject.members]
    variants = [
        name
        for name in dict.fromkeys(row.variant for one in models for row in one.accuracy)
        if not VariantName.parse(name).rendering
    ]
    lines: list[tuple[str, dict[str, str]]] = []
    for subject in subjects:
        if isinstance(subject, Summary):
            lines.append((titled(subject.name, subject), _texts(subject)))
            continue
        means = figures_of(subject, subject.headline, figures).items()
        lines.append((titled(subject.name, subject), {name: _mean(row) for name, row in means}))
        lines += [(f"  {one.name}", _texts(one)) for one in subject.members]
    cells = ([name, *(texts.get(one, "-") for one in (*variants, BG_GAP))] for name, texts in lines)
    return aligned([["accuracy, %", *variants, "BG-Gap"], *cells])


def _texts(summary: Summary) -> dict[str, str]:
    """Returns a model's accuracies and BG-Gap by its headline's rule, in percent, by variant."""
    texts = {
        row.variant: f"{100 * row.accuracy:.1f}"
        for row in summary.by_rule(summary.accuracy)
        if row.accuracy is not None
    }
    return texts | ({BG_GAP: interval(*gap.estimate)} if (gap := summary.gap()) else {})


def _mean(row: FamilyRow) -> str:
    """Returns the mean of accuracies in percent, or that of BG-Gaps with its interval."""
    gap = mean_interval(row.mean, row.ci_low, row.ci_high, (row.lowest, row.highest))
    return gap if row.variant == BG_GAP else f"{100 * row.mean:.1f}"
