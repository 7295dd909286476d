"""Families: the models that are trainings of one method, its seeds, by their labels `FAMILY#SEED`.

Families are formed from stored results whenever tables are written, so each seed may be evaluated
by a job of its own. A single seed is an ordinary model.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, ClassVar, TypeVar

from msgspec import Meta, Struct

from pipeline.evaluate.results import ModelRun, RunSettings, Table, pick
from pipeline.evaluate.summary import Summary
from pipeline.models.expand import natural_order
from transforms.two_way import MIN_SEEDS


@dataclasses.dataclass(frozen=True)
class Family:
    """At least two seeds of a method, run with the same settings on the same pictures.

    `name` is the method's, followed by the settings that are not the default.
    """

    is_family: ClassVar[bool] = True

    name: str
    members: tuple[Summary, ...]

    @property
    def label_rules(self) -> tuple[str, ...]:
        return self.members[0].label_rules

    @property
    def headline(self) -> str:
        """The label rule of its headline figures."""
        return self.members[0].headline

    @property
    def tested_on(self) -> tuple[str, float]:
        return self.members[0].tested_on

    @property
    def no_interval(self) -> str:
        """Why it has no interval; "" if it has one."""
        few = f"{self.name} has {len(self.members)} trainings, and an interval needs {MIN_SEEDS}"
        return few * (len(self.members) < MIN_SEEDS)


Subject = Summary | Family
"""What tables judge: a family, or a model that is in none."""


_R = TypeVar("_R", bound=ModelRun)


def family_name(run: ModelRun) -> str:
    """Returns the name, with settings, that a family with this seed has; "" if it is of none."""
    return " ".join([run.family, *run.evaluation.names]) if run.family else ""


def named_subjects(runs: Sequence[_R]) -> dict[str, list[_R]]:
    """Groups models by families of which labels name at least two seeds; others stand alone.

    Keys are names. Whether models can be seeds of one method is not checked.
    """
    counts = Counter(map(family_name, runs))
    subjects: dict[str, list[_R]] = {}
    for run in runs:
        family = family_name(run)
        name = family if family and counts[family] > 1 else run.name
        subjects.setdefault(name, []).append(run)
    return subjects


def planned_subjects(
    entries: Sequence[str],
    labels: Mapping[str, str],
    stored: Iterable[ModelRun],
    settings: RunSettings,
) -> dict[str, str]:
    """Returns each entry of a job, or the family that it will be a seed of when the job has ended.

    `labels` are those of entries. The seeds that are `stored` with the job's settings count, too.
    """
    titles = {labels[entry] for entry in entries if entry in labels} | {
        run.title for run in stored if pick(RunSettings, run.evaluation) == settings
    }
    family_of = {title: title.partition("#")[0] for title in titles if "#" in title}
    counts = Counter(family_of.values())
    named = {title: family for title, family in family_of.items() if counts[family] > 1}
    return {entry: named.get(labels.get(entry, ""), entry) for entry in entries}


def families_of(summaries: Iterable[Summary]) -> tuple[list[Family], list[str]]:
    """Forms families of models; also returns a line on each that cannot be formed.

    They are in the order of their first seeds, and seeds in that of their names. The seeds of a
    family differ in their weights alone.
    """
    models, families, lines = list(summaries), [], []
    for family in dict.fromkeys(one.family for one in models if one.family):
        seeds = [one for one in models if one.family == family]
        seeds.sort(key=lambda one: natural_order(one.title))
        runs = named_subjects(seeds)
        # All seeds may have been run twice, with different settings.
        is_whole = len({frozenset(one.title for one in run) for run in runs.values()}) == 1
        clash = f"a model is called {family}, too" * any(one.title == family for one in models)
        faults = map(_fault, runs.values() if is_whole else [seeds])
        fault = clash or next(filter(None, faults), "")
        if fault:
            lines.append(f"no family {family}: {fault}")
        else:
            families += [Family(name, tuple(run)) for name, run in runs.items() if len(run) > 1]
    return families, lines


def subjects_of(summaries: Sequence[Summary]) -> list[Subject]:
    """Returns the families of models, then the models that are in none."""
    families, _ = families_of(summaries)
    members = {one.folder for family in families for one in family.members}
    return [*families, *(one for one in summaries if one.folder not in members)]


def titled(name: str, subject: Subject) -> str:
    """Adds to a subject's name how many trainings of a method it stands for, if it is of one."""
    if isinstance(subject, Family):
        return f"{name}, mean of {len(subject.members)}"
    return f"{name}, one training" if subject.family else name


def describe_families(summaries: Iterable[Summary]) -> list[str]:
    """Returns a line on each family without an interval, and on each that cannot be formed."""
    families, lines = families_of(summaries)
    return [*(f"no interval: {one.no_interval}" for one in families if one.no_interval), *lines]


def _fault(seeds: Sequence[Summary]) -> str:
    """Says why models cannot be seeds of one method; "" if they can."""
    for first, one in itertools.combinations(seeds, 2):
        for what, mine, other in (
            ("label rules", first.label_rules, one.label_rules),
            ("precision", first.evaluation.precision, one.evaluation.precision),
            ("--eval_input", first.evaluation.eval_input, one.evaluation.eval_input),
            ("input size", first.evaluation.input_size, one.evaluation.input_size),
            ("pictures", (*first.tested_on, first.missing), (*one.tested_on, one.missing)),
        ):
            if mine != other:
                return f"{first.name} and {one.name} differ in {what}"
        if first.weights_sha256 == one.weights_sha256:
            return f"{first.name} and {one.name} have equal weights, or answers"
    return ""


class Estimated(Struct, frozen=True, kw_only=True):
    """A figure on n images: of one training, or the mean of several.

    Attributes:
      ci_low, ci_high: ends of its 95 % interval; None for two trainings.
      seeds: number of trainings.
      sd: standard deviation of their figures; None for one training.
      lowest, highest: range of their figures.
    """

    n: int
    ci_low: float | None
    ci_high: float | None
    seeds: int = 1
    sd: float | None = None
    lowest: float | None = None
    highest: float | None = None

    @property
    def in_brackets(self) -> str:
        """What stands behind a mean, in percent: the range of two, else the standard deviation."""
        if self.sd is None or self.lowest is None or self.highest is None:
            return ""
        if self.seeds < MIN_SEEDS:
            return f" ({100 * self.lowest:.1f} to {100 * self.highest:.1f})"
        return f" ({100 * self.sd:.1f})"


class FamilyRow(Struct, frozen=True, kw_only=True):
    """The mean of a family's accuracies on a variant, or of its BG-Gaps."""

    family: Annotated[
        str, Meta(description="name before `#` in the labels of its models, and their settings")
    ]
    label_rule: str
    variant: str
    seeds: Annotated[int, Meta(description="number of trainings")]
    mean: Annotated[float, Meta(description="mean of their accuracies (or gaps)")]
    sd: Annotated[float, Meta(description="standard deviation of their accuracies (or gaps)")]
    lowest: Annotated[float, Meta(description="smallest of their accuracies (or gaps)")]
    highest: Annotated[float, Meta(description="largest of their accuracies (or gaps)")]
    ci_low: Annotated[
        float | None,
        Meta(
            description="lower end of the 95 % interval for other trainings on other images and "
            "backgrounds; empty for fewer than three trainings"
        ),
    ] = None
    ci_high: Annotated[float | None, Meta(description="upper end of that interval")] = None
    further_low: Annotated[
        float | None,
        Meta(description="lower end of the 95 % interval for a single further training"),
    ] = None
    further_high: Annotated[float | None, Meta(description="upper end of that interval")] = None
    among_best: Annotated[
        bool | None,
        Meta(
            description="whether it cannot be told from the highest mean of a family; empty as in "
            "`summary`, and without an interval"
        ),
    ] = None
    n: int
    members: Annotated[str, Meta(description="names of its models")]
    split: str
    eval_input: str
    precision: str
    dataset: str


FAMILIES = Table(
    "families",
    (FamilyRow,),
    "accuracy or BG-Gap of a method, the mean over several trainings: "
    "[families](results.md#families)",
)
