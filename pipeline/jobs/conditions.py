"""The gate of a job: `--fail_if` has conditions on accuracies and BG-Gap that end it with code 3.

It judges families, and models that are in none. A condition holds if the whole interval satisfies
it, and does not hold if no part of the interval does; else it is open. `bg_gap>0.1` is decided by
the interval of the gap, and `bg_gap > baseline + 0.02` by that of the difference from the baseline;
`haze < original - 0.1` by that of the paired difference within each model.
The conditions of a job on all that it judges belong together: with m of them, intervals are at
1 - 0.05 / m, so that a job in which none of them is true seldom fails by chance. If a model is
right, or wrong, on all of a few images, even the interval may satisfy a condition by chance, so
every condition is open on fewer than `MIN_IMAGES` images, or groups of images that count as so many
(`transforms.two_way`).
"""

import bisect
import dataclasses
import math
import sys
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from pipeline.analyses.evaluation.baseline import (
    Baseline,
    baseline_or_reason,
    choose_baseline,
    find_baseline,
    kept_baseline,
    may_have_results,
    models_named,
    open_baseline,
    stored_models,
)
from pipeline.dataset.folder import Dataset
from pipeline.errors import JobError, UsageError, escaped, escaped_line
from pipeline.evaluate.comparisons import (
    Measured,
    ModelsOnSameImages,
    Sample,
    read_contributions,
)
from pipeline.evaluate.families import Subject, named_subjects, planned_subjects, subjects_of
from pipeline.evaluate.planned import Evaluation
from pipeline.evaluate.results import RunSettings, read_failures
from pipeline.evaluate.summaries import read_summaries
from pipeline.evaluate.summary import Summary, without_rule
from pipeline.jobs.fail_if import Condition, parse_conditions
from pipeline.models.expand import split_labels
from pipeline.storage.files import absolute
from pipeline.storage.store import Store
from transforms.intervals import Verdict, decide, level_of
from transforms.variants import VariantName

MIN_IMAGES = 10
"""The fewest images, and effective number of groups of images, that can decide a condition."""
_MOST_IMAGES = 1_000_000
"""The most images at which a condition is said to be decided."""


@dataclasses.dataclass(frozen=True)
class Gate:
    """What a job is judged by.

    Attributes:
      baseline: value of `--baseline`, a folder as an absolute path; if a condition names a baseline
        and none was given, the one kept from an earlier command (`has_kept_baseline`); else None.
      settings: those of the job's models; None to judge all models that have results.
      subject_of: for each entry of the job the family that it is to be a seed of, else itself.
    """

    conditions: tuple[Condition, ...] = ()
    baseline: str | None = None
    fails_if_open: bool = False
    settings: RunSettings | None = None
    has_kept_baseline: bool = False
    subject_of: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def subjects(self) -> list[str]:
        """The families and other entries of the job that it judges, so without the baseline."""
        return [one for one in dict.fromkeys(self.subject_of.values()) if one != self.baseline]

    @property
    def runs_baseline(self) -> bool:
        """Whether the baseline is a family of the job, or one of its models."""
        return self.baseline in (*self.subject_of, *self.subject_of.values())

    def choose_baseline(self, dataset: Dataset) -> None:
        """Stores the choice of a baseline, if there is one, for tables and page."""
        if self.baseline is not None:
            choose_baseline(dataset, self.baseline, self.settings, self.runs_baseline)


class GateFlags(msgspec.Struct, frozen=True, kw_only=True):
    """Flags that judge models; `report` has no models of its own."""

    command: str
    baseline: str | None
    fail_if: tuple[str, ...] | None
    if_open: str
    models: tuple[str, ...] | None = None


def gate_from_flags(
    flags: GateFlags,
    store: Store,
    variants: Sequence[VariantName],
    evaluation: Evaluation | None = None,
) -> Gate:
    """Makes a gate from flags, which are checked against the dataset.

    Raises UsageError if a condition is wrong or needs a variant that the dataset lacks,
    `--baseline` is missing or names no model or family, or a family of the job is to be compared
    with a single model, or a single model with a family.
    """
    conditions = parse_conditions(flags.fail_if, variants)
    given, stored = split_labels(flags.models or ())[1], stored_models(store)
    labels = {run.entry: run.label for run in stored if run.label} | {
        escaped_line(entry): label for entry, label in given.items()
    }
    settings = evaluation.settings if evaluation else None
    subject_of = (
        planned_subjects(evaluation.entries, labels, stored, evaluation.settings)
        if evaluation
        else {}
    )
    own = (*subject_of, *subject_of.values())
    # A model of the job may be named with its label, or by that alone.
    entries = {label: entry for entry, label in given.items()}
    entry = entries.get(flags.baseline or "", (flags.baseline or "").partition(":=")[2])
    name = escaped_line(entry) or flags.baseline
    against = [condition.text for condition in conditions if condition.names_baseline]
    if against and name is None:
        name = kept_baseline(store)
        if name is None:
            raise UsageError(
                f"--fail_if {against[0]!r}: add --baseline, a model or a folder of its results"
            )
    is_family = name not in subject_of
    # The job's own models are not run yet, and the dataset of `run` may change yet.
    if name is not None and name not in own:
        if not models_named(store, name):
            if not may_have_results(name):
                known = dict.fromkeys(
                    [*given.values(), *subject_of.values(), *named_subjects(stored)]
                )
                raise UsageError(
                    f"--baseline {name} is no entry of --models, no folder, and no model that "
                    f"{store.root} has results of; known: {', '.join(known) or 'none'}"
                )
            name = absolute(name)
        is_family = (
            len(open_baseline(store, name, settings)[1]) > 1
            if flags.command == "run"
            else find_baseline(Dataset.open(store), name, settings).subject.is_family
        )
    gate = Gate(
        conditions,
        name,
        fails_if_open=flags.if_open == "fail",
        settings=settings,
        has_kept_baseline=flags.baseline is None,
        subject_of=subject_of,
    )
    others = [one for one in gate.subjects if (one not in subject_of) != is_family]
    if against and others:
        kinds = ("a single model, which is one training", "a family")
        raise UsageError(
            f"--fail_if {against[0]!r}: the baseline {labels.get(name or '', name)} is "
            f"{kinds[is_family]}, and {', '.join(labels.get(one, one) for one in others)} "
            f"{'is' if len(others) == 1 else 'are each'} {kinds[not is_family]}: give them a "
            "baseline of their own kind"
        )
    return gate


@dataclasses.dataclass(frozen=True)
class Judgement:
    """The verdict on a condition and a subject.

    Attributes:
      model: name of the model or family, or the entry of `--models` of a model without results.
      verdict: the verdict; None if the condition could not be tested.
      reason: why it could not be tested; "" if it was.
      baseline: name of the baseline, and whether it was kept, if the condition names it; else "".
      variant: the variant that the condition compares the measure with; else "".
      label_rule: label rule by which the measure was computed, or would have been; "" if the model
        has no such rule.
      value, ci_low, ci_high: the measure, or the difference from that of the baseline or variant,
        with the interval that decides.
      groups, units: see `Sample`; here, `units` is that of the role in which it is smaller.
      decided_at: number of images at which an open condition would be decided if the estimate and
        its spread stayed; None if it is decided, that takes more than a million, or for a family,
        because more images leave the variance over trainings.
      smallest: smallest distance of the true value from the limit at which an open condition on a
        gap or a difference would be decided in 8 of 10 draws of as many images; else None.
      trainings: number of seeds of the family; 1 for a model.
    """

    condition: str
    model: str
    verdict: Verdict | None = None
    reason: str = ""
    baseline: str = ""
    variant: str = ""
    label_rule: str = ""
    value: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    confidence: float | None = None
    n: int = 0
    groups: int | None = None
    units: float = 0.0
    decided_at: int | None = None
    smallest: float | None = None
    trainings: int = 1

    @property
    def line(self) -> str:
        """The verdict in words."""
        if self.verdict is None:
            return f"--fail_if {self.condition} is not tested: {self.reason}"
        verb = "is open" if self.verdict is Verdict.OPEN else self.verdict
        against = self.variant or (self.baseline and f"the baseline {self.baseline}")
        scale, digits = (100, 1) if against else (1, 3)
        value, low, high = (
            f"{scale * (bound or 0.0):.{digits}f}"
            for bound in (self.value, self.ci_low, self.ci_high)
        )
        if against:
            side = "below" if value.startswith("-") else "above"
            value = f"{value.removeprefix('-')} points {side} {against}"
        line = (
            f"--fail_if {self.condition} {verb} for {self.model}: {value}, "
            f"{100 * (self.confidence or 0):.4g} % interval [{low}, {high}], n = {self.n}, by "
            f"{self.label_rule}"
        )
        if self.verdict is not Verdict.OPEN:
            return line
        few = (
            f"; fewer than {MIN_IMAGES} images, or groups that count alike, decide nothing (here "
            f"{self.units:.1f})"
            if round(self.units) < MIN_IMAGES
            else ""
        )
        number = f"{self.decided_at:,} images" if self.decided_at else "none up to 1,000,000 images"
        decided = (
            "more images or trainings may decide it"
            if self.trainings > 1
            else f"if estimate and variance stay, decided at {number}"
        )
        groups = (
            f" in {math.ceil(self.decided_at * self.groups / self.n):,} groups, not by more images "
            f"of these {self.groups:,}"
            if self.decided_at and self.groups
            else ""
        )
        shown = (
            f"; {Sample(self.n, self.groups, self.units)} detect only differences above "
            f"{100 * self.smallest:.1f} points from the limit"
            if self.smallest is not None
            else ""
        )
        return f"{line}{few}; {decided}{groups}{shown}"


def judge(gate: Gate, dataset: Dataset) -> list[Judgement]:
    """Judges the subjects of a gate, also those without results, by its conditions.

    A gate of all models that have results passes over those that lack the label rule of a
    condition, such as models that gave only labels, or are of another kind than the baseline, if it
    can judge others.
    """
    if not gate.conditions:
        return []
    summaries = read_summaries(dataset)[0]
    # Results of an earlier run do not stand for a run that failed.
    errors = {
        one.entry: f"{one.name} failed: {one.error}"
        for one in read_failures(dataset.store, dataset.manifest.fingerprint, "evaluate")[0]
    }
    baseline = (
        None
        if gate.baseline is None
        else baseline_or_reason(
            dataset, gate.baseline, gate.settings, gate.runs_baseline, gate.has_kept_baseline
        )
    )
    subjects = _subjects(gate, summaries, errors).items()
    measured = read_contributions(dataset, summaries)
    judged = judge_models(gate.conditions, subjects, measured, baseline)
    tested = {one.condition for one in judged if one.verdict and gate.settings is None}
    return [one for one in judged if one.label_rule or one.condition not in tested]


def judge_models(
    conditions: Sequence[Condition],
    subjects: Iterable[tuple[str, Subject | str]],
    measured: Sequence[ModelsOnSameImages],
    baseline: Baseline | str | None,
) -> list[Judgement]:
    """Judges each subject, except for the baseline itself, by each condition, in this order.

    They are (name, subject), or (name, why) without results; a baseline may be why it cannot be
    read.
    """
    judged = [
        (name, found)
        for name, found in subjects
        if isinstance(found, str)
        or not (isinstance(baseline, Baseline) and baseline.is_same(found))
    ] or [("", "there is no model to judge besides the baseline")]
    level = level_of(len(judged) * len(conditions))
    return [
        Judgement(condition.text, name, reason=found)
        if isinstance(found, str)
        else _judge(condition, found, measured, baseline, level)
        for name, found in judged
        for condition in conditions
    ]


def _subjects(
    gate: Gate, summaries: Sequence[Summary], errors: Mapping[str, str]
) -> dict[str, Subject | str]:
    """Returns the subjects to judge by name, or why one has no results; members are left out."""
    subjects = subjects_of(summaries)
    if gate.settings is None:
        return {one.name: one for one in subjects}
    judged: dict[str, Subject | str] = {}
    for entry, planned in gate.subject_of.items():
        found = [
            one
            for one in subjects
            if any(each.is_of((entry,), gate.settings) for each in one.members)
        ]
        if entry in errors or not found:
            name = entry if planned == entry else " ".join([planned, *gate.settings.names])
            # A family is not judged without a training that failed.
            judged[name] = errors.get(entry, f"{entry} has no results")
        else:
            judged |= {one.name: judged.get(one.name, one) for one in found}
    return judged


def _judge(
    condition: Condition,
    subject: Subject,
    measured: Iterable[ModelsOnSameImages],
    baseline: Baseline | str | None,
    level: float,
) -> Judgement:
    """Judges a subject that has results; `level` is that of the interval."""
    against, rule = None, condition.label_rule or subject.headline
    if condition.names_baseline:
        if not isinstance(baseline, Baseline):
            return Judgement(condition.text, subject.name, reason=baseline or "")
        against, rule = baseline, baseline.common_rule(subject) or ""
        rule = condition.label_rule if rule and condition.label_rule else rule
    found = next(
        (
            against.measure(models, subject, rule, condition.quantity)
            if against
            else models.measure(condition.quantity, subject, rule)
            for models in measured
            if subject.members[0] in models.summaries
        ),
        None,
    )
    if found is None:
        common = (
            f" to compare with the baseline {against.name}: {against.unlike(subject)}"
            if against
            else ""
        )
        whose = (not against and without_rule(subject.members[:1], rule)) or subject.name
        return Judgement(
            condition.text,
            subject.name,
            reason=(not against and subject.no_interval)
            or f"{whose} has no {condition.quantity}{common}",
            label_rule=rule if rule in subject.label_rules else "",
        )
    low, high = found.interval(level)
    units, groups = min(found.n, found.roles.units), int(found.roles.foregrounds.max()) + 1
    verdict = decide(low, high, condition.holds) if round(units) >= MIN_IMAGES else Verdict.OPEN
    is_open, smallest = verdict is Verdict.OPEN, found.smallest(level, condition.limit)
    return Judgement(
        condition.text,
        subject.name,
        verdict,
        baseline=against.name if against else "",
        variant="" if against else condition.against,
        label_rule=rule,
        value=found.value,
        ci_low=low,
        ci_high=high,
        confidence=level,
        n=found.n,
        groups=groups if groups < found.n else None,
        units=units,
        decided_at=_decided_at(condition, found, level)
        if is_open and not subject.is_family
        else None,
        smallest=smallest if is_open and found.trials is None and smallest <= 1 else None,
        trainings=len(subject.members),
    )


def _decided_at(condition: Condition, measured: Measured, level: float) -> int | None:
    """Finds the number of images at which a condition is decided; see `Judgement`."""

    def is_decided(images: int) -> bool:
        bounds = measured.interval(level, images / measured.n)
        return decide(*bounds, condition.holds) is not Verdict.OPEN

    in_groups = math.ceil(MIN_IMAGES * measured.n / measured.roles.units)
    numbers = range(max(measured.n, in_groups, MIN_IMAGES), _MOST_IMAGES + 1)
    position = bisect.bisect_left(numbers, True, key=is_decided)
    return numbers[position] if position < len(numbers) else None


def outcome(judgements: Sequence[Judgement], gate: Gate) -> tuple[int, list[str]]:
    """Returns the exit code that verdicts lead to, and their lines.

    The code is 3 if a condition holds; else 1 if one could not be tested; else 4 if one is open and
    the gate fails then; else 0, without lines.
    """
    verdicts = {3: Verdict.HOLDS, 1: None} | ({4: Verdict.OPEN} if gate.fails_if_open else {})
    for code, verdict in verdicts.items():
        if lines := [one.line for one in judgements if one.verdict is verdict]:
            return code, lines
    return 0, []


def conclude(judgements: Sequence[Judgement], gate: Gate) -> int:
    """Prints the verdicts, those that fail the job to standard error; returns the exit code.

    Raises JobError if no condition holds, but some could not be tested.
    """
    code, lines = outcome(judgements, gate)
    for line in (one.line for one in judgements if one.verdict is not None):
        print(escaped(line), file=sys.stderr if code > 1 and line in lines else sys.stdout)
    if not gate.fails_if_open and any(one.verdict is Verdict.OPEN for one in judgements):
        print("open conditions pass, unless --if_open fail is given")
    if code == 1:
        raise JobError("; ".join(lines))
    return code
