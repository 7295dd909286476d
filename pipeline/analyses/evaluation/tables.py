"""The evaluation's CSV and LaTeX tables, each with all models of a dataset, and its printed lines.

Tables are rebuilt from the stored results, so they never lag behind.

One line is about the power of BG-Gap: whether a probe can tell the class from a model's logits on
backgrounds. If the probe cannot, a gap near 0 says little about the model, because the backgrounds
may hold no information about the class that the model could rely on.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

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
    Cell,
    ShortName,
    aligned,
    interval,
    listed,
    names_of,
    tabular,
)
from pipeline.errors import shown_bytes
from pipeline.evaluate.comparisons import (
    COMPARISONS,
    GAP,
    compare_models,
    describe_counted,
    read_contributions,
    read_rows,
)
from pipeline.evaluate.families import (
    FAMILIES,
    Family,
    FamilyRow,
    Subject,
    describe_families,
    subjects_of,
    titled,
)
from pipeline.evaluate.predictions import (
    OF_LOGITS,
    PROBED_VARIANT,
    EvalImages,
    gaps_of,
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
from pipeline.evaluate.subjects import (
    IN_BOLD,
    column_of,
    compare_families,
    family_rows,
    mark_best,
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
from transforms.variants import BG_GAP, PAPER_NAMES, VariantName

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
    rules, names = rules_of(summaries), names_of(summaries)
    tables = {
        "headline" if rule == rules[0] else f"headline_{rule}": headline(
            f"Accuracy and BG-Gap in %, 95 % intervals; label rule: {rule}",
            names,
            [cells_of(one, rule) for one in summaries],
            columns,
        )
        for rule in rules
    }
    with_figures = {row.family for row in of_families}
    if families := [one for one in subjects_of(summaries) if one.name in with_figures]:
        of_rules = ", ".join(dict.fromkeys(one.headline for one in families))
        tables["families"] = headline(
            "Means of trainings in %, 95 % intervals for other trainings, images and backgrounds "
            f"(or smallest to largest), standard deviations; label rule: {of_rules}",
            [ShortName(one.name, f"{len(one.members)} trainings") for one in families],
            [cells_of(one, one.headline, of_families) for one in families],
            columns,
        )
    return {
        **tables,
        "decomposition": decomposition(summaries, rules[0]),
        **{
            f"per_class_{variant}": per_class(summaries, rules[0], variant, class_names)
            for variant in ("original", "mixed_same", "mixed_rand")
        },
    }


def cells_of(subject: Subject, rule: str, figures: Sequence[FamilyRow] = ()) -> dict[str, Cell]:
    """Returns the accuracies by variant, and the gaps, of a model or a family by a label rule.

    `figures` are the rows of families.csv. Figures of mixed variants and BG-Gap are means over
    their draws.
    """
    if isinstance(subject, Family):
        seeds = [cells_of(one, rule) for one in subject.members]
        return {
            column: Cell(
                row.mean,
                row.lowest if row.ci_low is None else row.ci_low,
                row.highest if row.ci_high is None else row.ci_high,
                is_bold=bool(row.among_best),
                is_range=row.ci_low is None,
                seeds=tuple(one[column].value for one in seeds if column in one),
                sd=row.sd,
            )
            for row in figures
            if (row.family, row.label_rule) == (subject.name, rule)
            for column in [column_of(row.variant)]
        }
    cells = {
        row.variant: Cell(*row.estimate, is_bold=bool(row.among_best))
        for row in subject.by_rule(subject.accuracy, rule)
        if row.estimate
    }
    for gap in subject.by_rule(subject.gaps, rule):
        smallest = gap.smallest_gap if gap.smallest_gap <= 1 else None
        cells[column_of(gap.variant)] = Cell(*gap.estimate, smallest=smallest)
    return cells


def headline(
    description: str,
    names: Sequence[ShortName],
    rows: Sequence[Mapping[str, Cell]],
    columns: Sequence[str],
) -> str:
    """Makes a `tabular` of models or families x variants and BG-Gap, without columns of no model.

    `rows` has what `cells_of` returns of each.
    """
    shown = [name for name in map(column_of, columns) if any(name in cells for cells in rows)]
    return tabular(
        f"{description}; {IN_BOLD}",
        [PAPER_NAMES.get(name, name) for name in shown],
        names,
        [[cells.get(name) for name in shown] for cells in rows],
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
        names_of(summaries),
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
        names_of(summaries),
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
        near_zero = [
            one.name for one, _ in weak if (gap := one.gap()) and gap.ci_low <= 0 <= gap.ci_high
        ]
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
    rows = [row for _, row in models]
    right, chance = (
        " to ".join(dict.fromkeys(f"{100 * of(one):.1f}" for of in (min, max)))
        for one in ([row.accuracy for row in rows], [row.chance for row in rows])
    )
    found = (
        f"probe {interval(rows[0].accuracy, rows[0].ci_low, rows[0].ci_high)} %"
        if len(rows) == 1
        else f"probes {right} %, in power.csv"
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
    has_tables = store.exists("results/summary.csv")
    if not (summaries or failed or stale or failed_before or has_tables):
        return
    measured = read_contributions(dataset, summaries)
    compared = [*compare_models(fingerprint, measured), *compare_families(fingerprint, measured)]
    marked, of_families = mark_best(summaries, compared, list(family_rows(fingerprint, measured)))
    for table in TABLES:
        rows = rows_of_models(table, marked)
        if table.structs[-1] is SummaryRun:
            rows += missing_rows(summaries, failed)
            rows += [
                [OfModel(failure.model), pick(SummaryRun, failure, failure.evaluation)]
                for failure in failures_without_results(failed, summaries)
            ]
        table.write(store, rows)
    COMPARISONS.write(store, ([row] for row in compared))
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
    names = (str(n) for n in dataset.picture_variants if not n.rendering)
    return (*names, *dict.fromkeys([BG_GAP, *gaps_of(dataset.variants)]))


def describe_summaries(dataset: Dataset, summaries: Sequence[Summary]) -> Iterator[str]:
    """Yields what a job that has evaluated models, or `in9 report`, prints of all models."""
    yield accuracy_table(subjects_of(summaries), read_rows(dataset, FAMILIES, FamilyRow))
    yield from describe_families(summaries)
    yield from describe_power(summaries)
    yield from describe_holdouts(dataset, summaries)
    yield from describe_baseline(dataset, summaries)


def describe_holdouts(dataset: Dataset, summaries: Sequence[Summary]) -> Iterator[str]:
    """Yields a line on the images of each holdout, which says how many pictures count."""
    draws = dataset.manifest.config.compose.replicates
    for models in read_contributions(dataset, summaries):
        unnamed = sum((models.bg_units[one] < 0).sum() for one in models.variants if one.is_mixed)
        yield from describe_counted(
            models.summaries[0].evaluation.holdout,
            # A pair is two pictures.
            (
                (name, one.chosen.size // (1 + (name == BG_GAP)))
                for name, one in models.pictures.items()
            ),
            draws * len(models.images.keys),
            f"; the dataset does not name the backgrounds of {unnamed}"
            if unnamed
            else " (in9 generate --replicates 4 gives more)" * (draws == 1),
        )


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
    gaps = dict.fromkeys([GAP, *(column_of(row.variant) for one in models for row in one.gaps)])
    table = [["accuracy, %", *variants, *gaps]]
    for subject in subjects:
        seeds = [(f"  {one.name}", one) for one in subject.members if subject.is_family]
        for name, one in [(titled(subject.name, subject), subject), *seeds]:
            texts = {
                column: str(cell) if column in gaps else f"{100 * cell.value:.1f}"
                for column, cell in cells_of(one, one.headline, figures).items()
            }
            table.append([name, *(texts.get(column, "-") for column in (*variants, *gaps))])
    return aligned(table)
