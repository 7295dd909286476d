"""The baseline: a model that all others are compared with, chosen by `--baseline`.

The choice is stored in `results/baseline.json`, so that later commands rebuild the same tables. The
baseline itself is read from its stored predictions each time: from this dataset's folder, or from
another folder with results on the same dataset.
"""

import dataclasses
import functools
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated

import numpy as np
from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import replace

from pipeline.dataset.folder import Dataset, open_named
from pipeline.display.table import aligned, interval
from pipeline.errors import UsageError, counted, escaped_line
from pipeline.evaluate.comparisons import (
    BG_GAP,
    Correct,
    Measured,
    ModelsOnSameImages,
    correct_by_rule,
    read_contributions,
    read_rows,
)
from pipeline.evaluate.predictions import EvalImages
from pipeline.evaluate.results import (
    RunSettings,
    Table,
    pick,
    read_failures,
    read_result,
    read_results,
    write_result,
)
from pipeline.evaluate.summary import Evaluated, Summary
from pipeline.storage.files import absolute, is_remote
from pipeline.storage.store import Store
from transforms.intervals import CONFIDENCE, holm
from transforms.two_way import p_value
from transforms.variants import VariantName

CHOICE = "results/baseline.json"


class Choice(Struct, frozen=True, kw_only=True):
    """Content of `results/baseline.json`.

    Attributes:
      baseline: folder below `results/` of the baseline, absolute path of its results elsewhere, or
        the value of `--baseline` if that could not be read.
      settings: settings of the job that ran it, if it could not be read after that; else unset.
    """

    baseline: str
    settings: RunSettings | UnsetType = UNSET


@dataclasses.dataclass(frozen=True, eq=False)
class Baseline:
    """A model that others are compared with.

    `is_own` says that this folder, or its tables, have it; `correct` is label rule -> variant ->
    (n,) bool, True where it is right; `is_kept` says that an earlier command has chosen it.
    """

    run: Evaluated
    store: Store
    is_own: bool
    correct: Mapping[str, Mapping[VariantName, Correct]]
    is_kept: bool = False

    @property
    def name(self) -> str:
        """Its name, followed by the folder of its results if that is another one."""
        name = self.run.name if self.is_own else f"{self.run.name} in {self.store.root}"
        return name + ", stored by an earlier command" * self.is_kept

    def is_same(self, summary: Summary) -> bool:
        """Returns whether a summary is of this model under these settings, in any folder."""
        return summary.identity == self.run.identity and (
            pick(RunSettings, summary.evaluation) == pick(RunSettings, self.run.evaluation)
        )

    def common_rule(self, label_rules: Iterable[str]) -> str | None:
        """Returns the first of a model's label rules that the baseline has, too; None if none."""
        return next((rule for rule in label_rules if rule in self.correct), None)

    def unlike(self, summary: Summary) -> str:
        """Says why a model has no difference from it, though both have results."""
        if self.common_rule(summary.label_rules) is None:
            return "they have no label rule in common"
        if summary.tested_on != self.run.tested_on:
            tested, other = (_tested_on(*one.tested_on) for one in (summary, self.run))
            return f"it was tested on {tested}, the baseline on {other}"
        return (
            "they lack predictions on the same variants by the same label rule; if another process "
            "is just replacing results, in9 report compares them later"
        )

    def measure(
        self, models: ModelsOnSameImages, summary: Summary, rule: str, quantity: str
    ) -> Measured | None:
        """Measures what a model's accuracy on a variant, or BG-Gap, exceeds the baseline's by.

        Returns None if one of them was tested on other images, or lacks predictions.
        """
        if summary.tested_on != self.run.tested_on:
            return None
        return models.measure(quantity, summary, rule, [self.correct.get(rule, {})])


def _tested_on(split: str, holdout: float) -> str:
    """Names the images of a test, such as `split val with --holdout 0.5`."""
    return f"split {split} with --holdout {holdout:g}" if holdout else f"all of split {split}"


def open_results(flag: str, folder: str) -> tuple[Dataset, list[Evaluated]]:
    """Opens a folder that has results; returns its dataset, and its models without a matrix's rows.

    It is a dataset's folder, a folder of its published versions (the newest is opened), or
    `results/MODEL` in one of these.
    """
    above, model = os.path.split(absolute(folder))
    is_of_model = above.endswith("/results")
    dataset = open_named(flag, above.removesuffix("/results") if is_of_model else folder)
    runs = [run for run in _runs(dataset.store) if run.folder == model or not is_of_model]
    return dataset, runs


def with_results(dataset: Dataset, folders: Iterable[str]) -> tuple[Store, list[str]]:
    """Shows the models of other folders with those of a dataset, without copying their results.

    A model that shares its name with another is named with its lab, unless it is the dataset's: the
    LAB of `LAB=DIR`, else the creator of the card in the folder. If their predictions have the same
    bytes, through a link or in a copy, they are one model. Returned, too, is a line on each of the
    others. Raises UsageError if two models would have the same name.
    """
    own, lines = dataset.store, []
    lab_of: dict[str, str] = {}
    models = [(own, run) for run in _runs(own)]
    digests = functools.cache(
        lambda store, name: [*map(store.digest, store.walk(f"results/{name}/predictions"))]
    )
    for entry in folders:
        # The name of a model's folder may have the sign, too, but stands behind a slash.
        lab, folder = re.findall(r"\A(?:([^/=]+)=)?(.+)", entry, re.DOTALL)[0]
        other, runs = open_results("--results", folder)
        lab_of[other.store.root] = escaped_line(lab or other.manifest.about.creator)
        mine, its = (
            {
                (file.path, file.sha256)
                for file in each.manifest.files
                if file.path.startswith(("parquet/", "webdataset/"))
            }
            for each in (dataset, other)
        )
        faults = {
            _on_another(dataset, other): other.manifest.fingerprint != dataset.manifest.fingerprint,
            f"has other pictures: {len(mine - its)} of {len(mine)} files differ": mine != its,
            "lies in another kind of storage": other.store.is_remote != own.is_remote,
        }
        fault = next((fault for fault, is_there in faults.items() if is_there), "")
        new = [
            (other.store, run)
            for run in runs
            if not fault
            and not any(
                one.folder == run.folder
                and digests(store, one.folder) == digests(other.store, run.folder)
                for store, one in models
            )
        ]
        again = f", {len(runs) - len(new)} shown already: the same predictions count once"
        found = f"has {counted(len(runs), 'model')}{again * (len(new) < len(runs))}"
        lines.append(f"results: {folder} {fault or found}")
        models += new
    known = {(store.root, name) for store, run in models for name in (run.name, run.folder)}
    folders_with = Counter(name for _, name in known)
    named = [
        (store, run, replace(run, lab=lab_of.get(store.root, "")))
        if max(folders_with[run.name], folders_with[run.folder]) > 1
        else (store, run, run)
        for store, run in models
    ]
    taken = Counter(name for *_, one in named for name in {one.name, one.folder})
    for store, _, one in named:
        if store != own and max(taken[one.name], taken[one.folder]) > 1:
            raise UsageError(
                f"--results {store.root}: another model is called {one.name}, too, and no other "
                f"creator is on the card; name the lab: --results LAB={store.root}"
            )
    others = [
        (f"results/{one.folder}", store, run, one) for store, run, one in named if store != own
    ]
    return dataclasses.replace(
        own,
        elsewhere={path: store.path(f"results/{run.folder}") for path, store, run, _ in others},
        labs={path: one.lab for path, *_, one in others if one.lab},
    ), lines


def _on_another(dataset: Dataset, other: Dataset) -> str:
    """Returns that the results of a folder are on another dataset, in words."""
    return (
        f"has results on another dataset: {other.manifest.fingerprint[:12]}, not "
        f"{dataset.manifest.fingerprint[:12]}"
    )


def _runs(store: Store) -> list[Evaluated]:
    return [run for run in read_results(store, "model", Evaluated) if not run.matrix]


def known_names(store: Store) -> list[str]:
    """Returns the names, as in tables, of the models that a dataset folder has results of."""
    return [run.name for run in _runs(store)]


def models_named(store: Store, name: str, settings: RunSettings | None = None) -> list[Evaluated]:
    """Returns models by their entry of `--models`, name or label, with the settings or without.

    A model that was run with a job's `settings` takes precedence; next comes the one that has this
    name, settings included, in tables.
    """
    runs = _runs(store)
    by_entry = [run for run in runs if name in (run.entry, run.model, run.title)]
    return (
        [run for run in by_entry if pick(RunSettings, run.evaluation) == settings]
        or [run for run in runs if name in (run.name, run.folder)]
        or by_entry
    )


def open_baseline(
    store: Store, name: str, settings: RunSettings | None = None
) -> tuple[Dataset | None, Evaluated]:
    """Finds the one model that a baseline means, without reading its predictions.

    The folder needs no manifest yet. `name` is a model's (`models_named`), else a folder
    (`open_results`), whose dataset is returned, too. Raises UsageError if it names no model, or
    several, or a folder without a finished dataset.
    """
    where, runs = None, models_named(store, name, settings)
    if not runs and Store.at(name).has_folder(""):
        where, runs = open_results("--baseline", name)
        if store.is_remote and not is_remote(where.store.root):
            raise UsageError(f"--baseline {name} must be in gs://, like the dataset")
    if len(runs) != 1:
        named = [run.name for run in runs] or known_names(where.store if where else store)
        found = f"means {len(runs)} models:" if runs else "names no model; known:"
        raise UsageError(f"--baseline {name} {found} {', '.join(named) or 'none'}")
    return where, runs[0]


def find_baseline(
    dataset: Dataset, name: str, settings: RunSettings | None = None, is_kept: bool = False
) -> Baseline:
    """Finds a baseline and reads its predictions; `is_kept` says that an earlier command chose it.

    Raises UsageError if it means no model (`open_baseline`), or one without predictions on the
    present pictures.
    """
    other, run = open_baseline(dataset.store, name, settings)
    if other and other.manifest.fingerprint != dataset.manifest.fingerprint:
        raise UsageError(f"{other.store.root} {_on_another(dataset, other)}")
    # With this dataset's manifest, only predictions on its own pictures count as valid.
    where = dataclasses.replace(dataset, store=other.store) if other else dataset
    correct: Mapping[str, Mapping[VariantName, Correct]] = {}
    if run.evaluation.split in dataset.manifest.shards:
        correct, _ = correct_by_rule(where, EvalImages.read(dataset, *run.tested_on), run)
    if not any(correct.values()):
        raise UsageError(f"--baseline {name}: {run.name} has no predictions on these pictures")
    return Baseline(
        run,
        where.store,
        is_own=where.store.path(f"results/{run.folder}")
        == dataset.store.path(f"results/{run.folder}"),
        correct=correct,
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
        place = found.store.path(f"results/{found.run.folder}")
        is_here = place == f"{dataset.store.root}/results/{found.run.folder}"
        choice = Choice(baseline=found.run.folder if is_here else place)
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

    It is as in `Choice`, but a folder is given as a path, because its name may also be that of a
    model that a job runs under other settings.
    """
    choice = read_result(store, CHOICE, Choice)
    if choice is None or choice.settings or "/" in choice.baseline:
        return choice.baseline if choice else None
    folder = f"results/{choice.baseline}"
    return store.path(folder) if store.has_folder(folder) else choice.baseline


class BaselineRow(Struct, frozen=True, kw_only=True):
    """The difference of a model from the baseline, in accuracy on a variant or in BG-Gap."""

    model: Annotated[str, Meta(description="name of the model, followed by its settings")]
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
            description="p value of the difference, with Holm's adjustment for all models that are "
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
    "difference of a model from the one that `--baseline` names, on the same pictures, with its "
    "two-way interval: [a job that fails](results.md#a-job-that-fails-by-its-results)",
)


def compare_with(
    baseline: Baseline, dataset: Dataset, summaries: Sequence[Summary]
) -> list[BaselineRow]:
    """Returns the rows of baseline.csv, in order of the models.

    A model that was tested on other images, or has no label rule in common, has no row.
    """
    rows = []
    for models in read_contributions(dataset, summaries):
        for quantity in models.draws:
            measured = [
                (summary, rule, difference)
                for summary in models.summaries
                if not baseline.is_same(summary)
                and (rule := baseline.common_rule(summary.label_rules))
                and (difference := baseline.measure(models, summary, rule, quantity))
            ]
            p_values = [p_value(np.asarray(one.value), one.spread) for *_, one in measured]
            adjusted = holm(np.asarray(p_values)) if measured else ()
            for (summary, rule, one), p_adjusted in zip(measured, adjusted, strict=True):
                low, high = one.interval()
                rows.append(
                    BaselineRow(
                        model=summary.name,
                        baseline=baseline.name,
                        label_rule=rule,
                        variant=quantity,
                        difference=one.value,
                        ci_low=low,
                        ci_high=high,
                        p_adjusted=float(p_adjusted),
                        smallest_difference=one.smallest(),
                        n=one.n,
                        split=summary.evaluation.split,
                        dataset=summary.dataset,
                    )
                )
    order = [summary.name for summary in summaries]
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
                    *("BG-Gap" if name == BG_GAP else name for name in names),
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
    for one in summaries:
        if one.name not in rows and not baseline.is_same(one):
            yield f"not compared with the baseline: {one.name}, as {baseline.unlike(one)}"


def _cell(row: BaselineRow | None) -> str:
    """Formats a difference in points."""
    if row is None:
        return "-"
    text = (
        interval(row.difference, row.ci_low, row.ci_high)
        if row.variant == BG_GAP
        else f"{100 * row.difference:+.1f}"
    )
    return text + "*" * row.is_significant
