"""The baseline: a model, or a family, that others are compared with, chosen by `--baseline`.

Families are compared with a family, and models that are in none with a single model.

The choice is stored in `results/baseline.json`, so that later commands rebuild the same tables. The
baseline itself is read from its stored predictions each time: from this dataset's folder, or from
another folder with results on the same dataset.
"""

import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from pipeline.dataset.folder import Dataset, open_named
from pipeline.display.table import aligned, interval
from pipeline.errors import UsageError
from pipeline.evaluate.comparisons import (
    Correct,
    Measured,
    ModelsOnSameImages,
    adjusted_p_values,
    read_contributions,
    read_rows,
)
from pipeline.evaluate.families import (
    Subject,
    families_of,
    family_name,
    named_subjects,
    subjects_of,
)
from pipeline.evaluate.predictions import EvalImages, correct_by_rule
from pipeline.evaluate.results import (
    ModelRun,
    RunSettings,
    Table,
    pick,
    read_failures,
    read_result,
    read_results,
    write_result,
)
from pipeline.evaluate.subjects import column_of
from pipeline.evaluate.summary import Evaluated, Summary
from pipeline.models.checkpoint import safe_name
from pipeline.storage.files import absolute, is_remote
from pipeline.storage.store import Store
from transforms.intervals import CONFIDENCE
from transforms.variants import BG_GAP, VariantName

CHOICE = "results/baseline.json"


class Choice(Struct, frozen=True, kw_only=True):
    """Content of `results/baseline.json`.

    Attributes:
      baseline: folder below `results/` of the baseline (`folder_names`); absolute path of that
        elsewhere; the value of `--baseline` if that could not be read.
      settings: settings of the job that ran it, if it could not be read after that; else unset.
    """

    baseline: str
    settings: RunSettings | UnsetType = UNSET


@dataclasses.dataclass(frozen=True, eq=False)
class Baseline:
    """A model, or a family, that others are compared with.

    `is_own` says that this folder, or its tables, have it; `correct` is, for each of its members,
    label rule -> variant -> (n,) bool, True where it is right; `is_kept` says that an earlier
    command has chosen it. Summaries have no rows.
    """

    subject: Subject
    store: Store
    is_own: bool
    correct: Sequence[Mapping[str, Mapping[VariantName, Correct]]]
    is_kept: bool = False

    @property
    def name(self) -> str:
        """Its name, followed by the folder of its results if that is another one."""
        name = self.subject.name if self.is_own else f"{self.subject.name} in {self.store.root}"
        return name + ", stored by an earlier command" * self.is_kept

    def is_same(self, subject: Subject) -> bool:
        """Returns whether a subject is this one under these settings, in any folder.

        A family is the same if it shares a training, because seeds of two methods share none.
        """
        mine, its = (
            [(one.identity, pick(RunSettings, one.evaluation)) for one in each.members]
            for each in (self.subject, subject)
        )
        return subject.is_family == self.subject.is_family and any(one in mine for one in its)

    def common_rule(self, subject: Subject) -> str | None:
        """Returns the first label rule of a subject of its kind that it has, too; None if none."""
        rules = self.subject.label_rules if subject.is_family == self.subject.is_family else ()
        return next((rule for rule in subject.label_rules if rule in rules), None)

    def unlike(self, subject: Subject) -> str:
        """Says why a subject has no difference from it, though both have results."""
        if subject.is_family != self.subject.is_family:
            return "a single model is one training, and a family several"
        if few := subject.no_interval or self.subject.no_interval:
            return few
        if self.common_rule(subject) is None:
            return "they have no label rule in common"
        if subject.tested_on != self.subject.tested_on:
            tested, other = (_tested_on(*one.tested_on) for one in (subject, self.subject))
            return f"it was tested on {tested}, the baseline on {other}"
        return (
            "they lack predictions on the same variants by the same label rule; if another process "
            "is just replacing results, in9 report compares them later"
        )

    def measure(
        self, models: ModelsOnSameImages, subject: Subject, rule: str, quantity: str
    ) -> Measured | None:
        """Measures what a subject's accuracy on a variant, or BG-Gap, exceeds the baseline's by.

        Returns None if one of them was tested on other images, or lacks predictions, or if they
        cannot be compared (`ModelsOnSameImages.measure`).
        """
        if subject.tested_on != self.subject.tested_on:
            return None
        return models.measure(quantity, subject, rule, [one.get(rule, {}) for one in self.correct])


def _tested_on(split: str, holdout: float) -> str:
    """Names the images of a test, such as `split val with --holdout 0.5`."""
    return f"split {split} with --holdout {holdout:g}" if holdout else f"all of split {split}"


def open_results(flag: str, folder: str) -> tuple[Dataset, list[Evaluated]]:
    """Opens a folder that has results; returns its dataset, and its models without a matrix's rows.

    It is a dataset's folder, a folder of its published versions (the newest is opened), or
    `results/MODEL` in one of these, where MODEL may mean a family (`folder_names`).
    """
    above, model = os.path.split(absolute(folder))
    is_of_model = above.endswith("/results")
    dataset = open_named(flag, above.removesuffix("/results") if is_of_model else folder)
    runs = stored_models(dataset.store)
    return dataset, [run for run in runs if model in folder_names(run) or not is_of_model]


def on_another(dataset: Dataset, other: Dataset) -> str:
    """Returns that the results of a folder are on another dataset, in words."""
    return (
        f"has results on another dataset: {other.manifest.fingerprint[:12]}, not "
        f"{dataset.manifest.fingerprint[:12]}"
    )


def may_have_results(path: str) -> bool:
    """Returns whether a path is a folder, or `results/MODEL` in one: a family has no folder."""
    return Store.at(path.partition("/results/")[0]).has_folder("")


def stored_models(store: Store) -> list[Evaluated]:
    """Reads the models that a dataset folder has results of, without a matrix's rows."""
    return [run for run in read_results(store, "model", Evaluated) if not run.matrix]


def folder_names(run: ModelRun) -> tuple[str, str]:
    """Returns the name of a model's folder, and the one that its family would have."""
    return run.folder, safe_name(family_name(run))


def models_named(store: Store, name: str, settings: RunSettings | None = None) -> list[Evaluated]:
    """Returns models by entry of `--models`, name, label or family, with the settings or without.

    What was run with a job's `settings` takes precedence; next comes what has this name, settings
    included, in tables.
    """
    runs = stored_models(store)
    by_entry = [run for run in runs if name in (run.entry, run.model, run.title, run.family)]
    return (
        [run for run in by_entry if pick(RunSettings, run.evaluation) == settings]
        or [run for run in runs if name in (run.name, family_name(run), *folder_names(run))]
        or by_entry
    )


def open_baseline(
    store: Store, name: str, settings: RunSettings | None = None
) -> tuple[Dataset | None, list[Evaluated]]:
    """Finds the one model, or the seeds of the one family, that a baseline means.

    Predictions are not read, and the folder needs no manifest yet. `name` is that of a model or
    family (`models_named`), else a folder (`open_results`), whose dataset is returned, too. Raises
    UsageError if it names none, or several, or a folder without a finished dataset.
    """
    where, runs = None, models_named(store, name, settings)
    if not runs and may_have_results(name):
        where, runs = open_results("--baseline", name)
        if store.is_remote and not is_remote(where.store.root):
            raise UsageError(f"--baseline {name} must be in gs://, like the dataset")
    if len(named := named_subjects(runs)) != 1:
        found = f"means {len(named)} models:" if named else "names no model; known:"
        named = named or named_subjects(stored_models(where.store if where else store))
        raise UsageError(f"--baseline {name} {found} {', '.join(named) or 'none'}")
    return where, runs


def find_baseline(
    dataset: Dataset, name: str, settings: RunSettings | None = None, is_kept: bool = False
) -> Baseline:
    """Finds a baseline and reads its predictions; `is_kept` says that an earlier command chose it.

    Raises UsageError if it means no model or family (`open_baseline`), models that are no family
    (`families_of`), or one without predictions on the present pictures.
    """
    other, runs = open_baseline(dataset.store, name, settings)
    if other and other.manifest.fingerprint != dataset.manifest.fingerprint:
        raise UsageError(f"{other.store.root} {on_another(dataset, other)}")
    # With this dataset's manifest, only predictions on its own pictures count as valid.
    where = dataclasses.replace(dataset, store=other.store) if other else dataset
    correct = {
        run.folder: correct_by_rule(where, EvalImages.read(dataset, *run.tested_on), run)[0]
        for run in runs
        if run.evaluation.split in dataset.manifest.shards
    }
    models = [
        pick(
            Summary,
            run,
            dataset=dataset.manifest.fingerprint,
            label_rules=tuple(correct[run.folder]),
            missing=(),
            unanswered=0,
        )
        for run in runs
        if any(correct.get(run.folder, {}).values())
    ]
    if not models:
        raise UsageError(f"--baseline {name}: {runs[0].name} has no predictions on these pictures")
    families, faults = families_of(models)
    if faults:
        raise UsageError(f"--baseline {name}: {faults[0]}")
    subject = families[0] if families else models[0]
    return Baseline(
        subject,
        where.store,
        is_own=where.store.path(f"results/{runs[0].folder}")
        == dataset.store.path(f"results/{runs[0].folder}"),
        correct=[correct[one.folder] for one in subject.members],
        is_kept=is_kept,
    )


def baseline_or_reason(
    dataset: Dataset,
    name: str,
    settings: RunSettings | None = None,
    was_run: bool = False,
    is_kept: bool = False,
) -> Baseline | str:
    """Finds a baseline as `find_baseline` does; returns why it cannot be read if that fails.

    If the job ran the baseline, and that failed, earlier results do not count.
    """
    failed, _ = read_failures(dataset.store, dataset.manifest.fingerprint, "evaluate")
    for one in failed if was_run else ():
        if one.entry == name and pick(RunSettings, one.evaluation) == settings:
            return f"{one.name} failed: {one.error}"
    try:
        return find_baseline(dataset, name, settings, is_kept)
    except UsageError as error:
        return f"the baseline, stored by an earlier command: {error}" if is_kept else str(error)


def choose_baseline(
    dataset: Dataset, name: str, settings: RunSettings | None = None, was_run: bool = False
) -> None:
    """Stores the choice of a baseline; arguments as for `baseline_or_reason`.

    If it cannot be read, the terminal, the page and the verdicts say why.
    """
    found = baseline_or_reason(dataset, name, settings, was_run)
    choice = Choice(baseline=name, settings=(was_run and settings) or UNSET)
    if isinstance(found, Baseline):
        model, family = folder_names(found.subject.members[0])
        folder = family if found.subject.is_family else model
        place = found.store.path(f"results/{folder}")
        is_here = place == f"{dataset.store.root}/results/{folder}"
        choice = Choice(baseline=folder if is_here else place)
    write_result(dataset.store, CHOICE, choice)


def chosen_baseline(dataset: Dataset) -> Baseline | str | None:
    """Reads the chosen baseline, or why it cannot be read; None if none was chosen."""
    choice = read_result(dataset.store, CHOICE, Choice)
    if choice is None:
        return None
    return baseline_or_reason(
        dataset, choice.baseline, choice.settings or None, was_run=bool(choice.settings)
    )


def kept_baseline(store: Store) -> str | None:
    """Returns the choice of an earlier command, as a value of `--baseline`; None if none was made.

    It is as in `Choice`, but a folder is given as a path, because its name may also be that of what
    a job runs under other settings.
    """
    choice = read_result(store, CHOICE, Choice)
    if choice is None or choice.settings or "/" in choice.baseline:
        return choice.baseline if choice else None
    is_known = any(choice.baseline in folder_names(run) for run in stored_models(store))
    return store.path(f"results/{choice.baseline}") if is_known else choice.baseline


class BaselineRow(Struct, frozen=True, kw_only=True):
    """The difference of a subject from the baseline, in accuracy on a variant or in BG-Gap."""

    model: Annotated[
        str, Meta(description="name of the model, or family, followed by its settings")
    ]
    baseline: Annotated[
        str,
        Meta(description="name of the baseline, followed by its folder if it is another dataset's"),
    ]
    label_rule: Annotated[
        str, Meta(description="the first label rule of the model that the baseline has, too")
    ]
    variant: str
    difference: Annotated[
        float, Meta(description="accuracy (or gap) of the model - that of the baseline")
    ]
    ci_low: float
    ci_high: float
    p_adjusted: Annotated[
        float,
        Meta(
            description="p value of the difference, with Holm's adjustment for all that are "
            "compared with the baseline on this variant"
        ),
    ]
    smallest_difference: Annotated[
        float,
        Meta(description="smallest difference that as many images can detect (80 % power)"),
    ]
    n: int
    split: str
    dataset: str

    @property
    def is_significant(self) -> bool:
        return self.p_adjusted < 1 - CONFIDENCE


BASELINE = Table(
    "baseline",
    (BaselineRow,),
    "difference of a model, or a family, from the one that `--baseline` names, on the same "
    "pictures, with its two-way interval: "
    "[a job that fails](results.md#a-job-that-fails-by-its-results)",
)


def compare_with(
    baseline: Baseline, dataset: Dataset, summaries: Sequence[Summary]
) -> list[BaselineRow]:
    """Returns the rows of baseline.csv, in order of the families and models.

    One that `Baseline.unlike` says something of has no row.
    """
    rows, subjects = [], subjects_of(summaries)
    for models in read_contributions(dataset, summaries):
        for quantity in models.pictures:
            measured = [
                (subject, rule, difference)
                for subject in subjects
                if subject.members[0] in models.summaries
                and not baseline.is_same(subject)
                and (rule := baseline.common_rule(subject))
                and (difference := baseline.measure(models, subject, rule, quantity))
            ]
            adjusted = adjusted_p_values(one for *_, one in measured)
            for (subject, rule, one), p_adjusted in zip(measured, adjusted, strict=True):
                low, high = one.interval()
                rows.append(
                    BaselineRow(
                        model=subject.name,
                        baseline=baseline.name,
                        label_rule=rule,
                        variant=quantity,
                        difference=one.value,
                        ci_low=low,
                        ci_high=high,
                        p_adjusted=p_adjusted,
                        smallest_difference=one.smallest(),
                        n=one.n,
                        split=subject.tested_on[0],
                        dataset=dataset.manifest.fingerprint,
                    )
                )
    order = [subject.name for subject in subjects]
    return sorted(rows, key=lambda row: order.index(row.model))


def describe_baseline(dataset: Dataset, summaries: Sequence[Summary]) -> Iterator[str]:
    """Yields the table of differences from the baseline, in points, and what it leaves out."""
    baseline = chosen_baseline(dataset)
    if isinstance(baseline, str):
        yield f"not compared with the baseline: {baseline}"
    if not isinstance(baseline, Baseline):
        return
    rows = {
        model: {row.variant: row for row in of_model}
        for model, of_model in itertools.groupby(
            read_rows(dataset, BASELINE, BaselineRow), lambda row: row.model
        )
    }
    if rows:
        # Renderings stand in baseline.csv alone.
        names = [
            name
            for name in dict.fromkeys(itertools.chain.from_iterable(rows.values()))
            if not VariantName.parse(name).rendering
        ]
        yield aligned(
            [
                [
                    f"minus {baseline.name}, points",
                    *map(column_of, names),
                    "detectable",
                ],
                *(
                    [
                        model,
                        *(_cell(row.get(name)) for name in names),
                        f"{100 * row[BG_GAP].smallest_difference:.1f}" if BG_GAP in row else "-",
                    ]
                    for model, row in rows.items()
                ),
            ]
        )
        yield "* differs from the baseline (Holm's adjustment over the models, 5 %)"
    for one in subjects_of(summaries):
        if one.name not in rows and not baseline.is_same(one):
            yield f"not compared with the baseline: {one.name}, as {baseline.unlike(one)}"


def _cell(row: BaselineRow | None) -> str:
    """Formats a difference in points."""
    if row is None:
        return "-"
    text = (
        interval(row.difference, row.ci_low, row.ci_high)
        if row.variant.startswith(BG_GAP)
        else f"{100 * row.difference:+.1f}"
    )
    return text + "*" * row.is_significant
