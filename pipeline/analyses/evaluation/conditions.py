"""`--fail_if`: conditions on accuracies and BG-Gap that end a job with exit code 3.

A condition holds if the whole 95 % interval satisfies it, not only the estimate, so that chance
seldom fails a job: `bg_gap>0.1` needs a lower bound above 0.1, `original<0.9` an upper bound below
0.9. If a model is right on all of a few images, or wrong on all of them, even the interval may
satisfy a condition by chance, so no condition holds on fewer than `MIN_IMAGES` images.
"""

from __future__ import annotations

import dataclasses
import difflib
import operator
import re
from collections.abc import Container, Iterable, Iterator, Sequence

from pipeline.analyses.evaluation.results import Summary, without_rule
from pipeline.analyses.parts import ConditionResult
from pipeline.display.panel import Estimate
from pipeline.errors import UsageError
from pipeline.evaluate.results import Failure, RunSettings, pick
from transforms.scoring import ALL_RULES
from transforms.variants import VARIANTS, base_of, is_picture

GAP = "bg_gap"
MIN_IMAGES = 10
"""The fewest images on which a condition can hold. With fewer images and many draws of backgrounds,
95 % intervals cover the true value in only nine cases of ten (docs/results.md)."""
_EXPRESSION = re.compile(r"(?:(\w+)\s*:)?\s*(\w+)\s*(>=|<=|>|<)\s*(\S+)")
_COMPARISONS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


@dataclasses.dataclass(frozen=True)
class Condition:
    """A parsed condition.

    Attributes:
      text: the condition as given.
      label_rule: label rule by which the measure is computed; "" for that of each model's headline.
      measure: `bg_gap`, or the name of a variant, which stands for the accuracy on it.
      comparison: `>`, `>=`, `<` or `<=`.
      limit: the fraction to compare with, from 0 to 1; for `bg_gap` from -1 to 1.
    """

    text: str
    label_rule: str
    measure: str
    comparison: str
    limit: float

    @classmethod
    def parse(cls, text: str, custom: Iterable[str] = ()) -> Condition:
        """Parses `[LABEL_RULE:]MEASURE COMPARISON LIMIT`.

        Args:
          text: the condition, as given.
          custom: names of variants that are not built in, such as the user's own.

        >>> Condition.parse("bg_gap>0.1").measure
        'bg_gap'

        Raises:
          UsageError: the text has another form, an unknown label rule or measure, or a limit out of
            range.
        """
        match = _EXPRESSION.fullmatch(text.strip())
        if match is None:
            raise UsageError(
                f"--fail_if {text!r}: expected a measure, a comparison and a fraction, such as "
                "'bg_gap>0.1' (in quotes, or the shell takes > for a redirection)"
            )
        rule, measure, comparison, limit = match.groups()
        if rule is not None and rule not in ALL_RULES:
            raise UsageError(
                f"--fail_if {text!r}: no label rule {rule!r}; known: {', '.join(ALL_RULES)}"
            )
        variants = dict.fromkeys(map(base_of, (*VARIANTS, *custom)))
        known = (GAP, *filter(is_picture, variants))
        if measure not in known:
            if base_of(measure) in known:
                raise UsageError(
                    f"--fail_if {text!r}: {measure} is one draw of {base_of(measure)}, whose "
                    "accuracy is the mean over all draws"
                )
            close = difflib.get_close_matches(measure, known, n=1)
            hint = f"; close to it: {close[0]}" if close else f"; known: {', '.join(known)}"
            raise UsageError(f"--fail_if {text!r}: no measure {measure!r}{hint}")
        lowest = -1.0 if measure == GAP else 0.0
        try:
            value = float(limit)
        except ValueError:
            value = float("nan")
        if not lowest <= value <= 1:
            raise UsageError(
                f"--fail_if {text!r}: {limit!r} is not a fraction between {lowest:g} and 1"
            )
        return cls(text, rule or "", measure, comparison, value)

    def needs(self) -> tuple[str, ...]:
        """Returns the variants that a dataset must have for the measure."""
        return ("mixed_same", "mixed_rand") if self.measure == GAP else (self.measure,)

    def estimate(self, summary: Summary) -> tuple[Estimate, int] | None:
        """Returns (a model's measure with its interval, number of images); None if not measured."""
        if self.measure == GAP:
            gap = summary.gap(self.label_rule)
            return (gap.estimate, gap.n) if gap else None
        row = summary.accuracy_on(self.measure, self.label_rule)
        return (row.estimate, row.n) if row and row.estimate else None

    def holds(self, value: float) -> bool:
        """Returns whether a value, a fraction, satisfies the condition."""
        return bool(_COMPARISONS[self.comparison](value, self.limit))


def parse_conditions(
    texts: Sequence[str] | None,
    variants: Iterable[str] | None = None,
    custom: Iterable[str] = (),
) -> tuple[Condition, ...]:
    """Parses all values of `--fail_if`.

    Args:
      texts: the values; None if the flag was not given.
      variants: variants that the dataset has or will have; None if they are not known yet.
      custom: names of the user's variants, if they are known already.

    Raises:
      UsageError: a condition is wrong, or needs a variant that the dataset lacks.
    """
    if texts is None:
        return ()
    variants = None if variants is None else tuple(variants)
    custom = (*custom, *(variants or ()))
    conditions = tuple(Condition.parse(text, custom) for text in texts)
    if variants is not None:
        for condition in conditions:
            for variant in condition.needs():
                if variant not in variants:
                    raise UsageError(
                        f"--fail_if {condition.text!r}: the dataset has no {variant}; see "
                        "--variants"
                    )
    return conditions


def is_of_evaluation(summary: Summary, entries: Container[str], settings: RunSettings) -> bool:
    """Returns whether a summary is of one of the entries, and was made with these settings."""
    return summary.entry in entries and pick(RunSettings, summary.evaluation) == settings


def judge(
    conditions: Iterable[Condition],
    summaries: Iterable[Summary],
    failed: Iterable[Failure],
    entries: Iterable[str],
    settings: RunSettings,
) -> Iterator[ConditionResult]:
    """Yields the result of each condition on each model of a job, in the order of the models.

    Args:
      conditions: the conditions.
      summaries: summaries of the dataset's models. Models that are not among `entries` are ignored.
      failed: the models that failed, from `read_failures`.
      entries: entries of `--models` that the job was to evaluate, in order.
      settings: settings of the job's evaluation; summaries with other settings are ignored.
    """
    conditions = tuple(conditions)
    by_entry: dict[str, list[Summary]] = {entry: [] for entry in entries}
    for summary in summaries:
        if is_of_evaluation(summary, by_entry, settings):
            by_entry[summary.entry].append(summary)
    errors = {failure.entry: failure for failure in failed}
    for entry, entry_summaries in by_entry.items():
        failure = errors.get(entry)
        reason = f"{failure.name} failed: {failure.error}" if failure else f"{entry} has no results"
        for condition in conditions:
            if failure or not entry_summaries:
                yield ConditionResult(None, f"--fail_if {condition.text} is not tested: {reason}")
            else:
                yield from (_judge(condition, summary) for summary in entry_summaries)


def _judge(condition: Condition, summary: Summary) -> ConditionResult:
    """Returns the result of a condition on the model of a summary."""
    name = summary.name
    found = condition.estimate(summary)
    if found is None:
        why = without_rule([summary], condition.label_rule or summary.headline) or name
        return ConditionResult(
            None,
            f"--fail_if {condition.text} is not tested: {why} has no result for "
            f"{condition.measure}",
        )
    (value, low, high), n = found
    interval_satisfies = condition.holds(low) and condition.holds(high)
    holds = interval_satisfies and n >= MIN_IMAGES
    verb = "holds" if holds else "does not hold"
    line = (
        f"--fail_if {condition.text} {verb} for {name}: {value:.3f}, "
        f"95 % interval [{low:.3f}, {high:.3f}], n = {n}"
    )
    if interval_satisfies and not holds:
        line += f"; no condition holds on fewer than {MIN_IMAGES} images"
    elif condition.holds(value) and not holds:
        line += "; its interval reaches beyond the limit"
    return ConditionResult(holds, line)
