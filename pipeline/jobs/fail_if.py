"""The conditions of `--fail_if`, and the text that they are parsed from."""

from __future__ import annotations

import dataclasses
import math
import operator
import re
from collections.abc import Iterable, Sequence

from pipeline.errors import UsageError, did_you_mean
from pipeline.evaluate.predictions import gaps_of, variants_behind
from transforms.scoring import ALL_RULES
from transforms.variants import VARIANTS, VariantName, draws_of

_EXPRESSION = re.compile(
    r"(?:(\w+)\s*:)?\s*(\w+)\s*(>=|<=|>|<)\s*(?=\S)([^\W\d]\w*+)?\s*+([+-]?)\s*+(\S*)"
)
_BASELINE = "baseline"
_NUMBER = re.compile(r"[+-]?(\d++\.?\d*|\.\d+)([eE][+-]?\d+)?|")
"""A number, or nothing. Python itself would read 0_1 as 1."""
_COMPARISONS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


@dataclasses.dataclass(frozen=True)
class Condition:
    """A parsed condition.

    Attributes:
      label_rule: label rule by which the measure is computed; "" for that of each model's headline.
      measure: a gap, or the name of a variant, which stands for the accuracy on it.
      comparison: `>`, `>=`, `<` or `<=`.
      against: what the measure is compared with: `baseline` for that of the baseline, or a variant
        for the accuracy of the same model on it; else "".
      limit: the fraction to compare with, from 0 to 1; for a gap, and for what is added to that of
        the baseline or variant, from -1 to 1.
    """

    text: str
    label_rule: str
    measure: str
    comparison: str
    against: str
    limit: float

    @property
    def names_baseline(self) -> bool:
        return self.against == _BASELINE

    @property
    def quantity(self) -> str:
        """What is measured of a model, as in `variants_behind`: the measure, or its difference."""
        is_alone = self.against in ("", _BASELINE)
        return self.measure if is_alone else f"{self.measure} - {self.against}"

    @property
    def needs(self) -> tuple[str, ...]:
        """The variants that a dataset must have for the quantity."""
        return variants_behind(self.quantity)

    @classmethod
    def parse(cls, text: str, custom: Iterable[VariantName] = ()) -> Condition:
        """Parses `[LABEL_RULE:]MEASURE COMPARISON LIMIT`.

        LIMIT may begin with `baseline` or a variant. `custom` are names of variants that are not
        built in. Raises UsageError if the text has another form, an unknown label rule or measure,
        or a limit out of range.

        >>> Condition.parse("bg_gap>0.1").measure
        'bg_gap'
        >>> Condition.parse("original < baseline - 0.02").limit
        -0.02
        >>> Condition.parse("no_fg > original - 0.1").quantity
        'no_fg - original'
        """
        match = _EXPRESSION.fullmatch(text.strip())
        if match is None:
            raise UsageError(
                f"--fail_if {text!r}: expected a measure, a comparison and a fraction, such as "
                "'bg_gap>0.1' (in quotes, or the shell takes > for a redirection)"
            )
        rule, measure, comparison, against, sign, number = match.groups(default="")
        limit = f"{sign}{number}"
        if rule and rule not in ALL_RULES:
            raise UsageError(
                f"--fail_if {text!r}: no label rule {rule!r}; known: {', '.join(ALL_RULES)}"
            )
        names = [name for name in (*map(VariantName.parse, VARIANTS), *custom) if name.is_picture]
        gaps, variants = gaps_of(names), list(draws_of(names))
        for one, known in (
            (measure, [*gaps, *variants]),
            (against, ["", _BASELINE, *gaps, *variants]),
        ):
            if one not in known:
                if (variant := str(VariantName.parse(one).variant)) in known:
                    raise UsageError(
                        f"--fail_if {text!r}: {one} is one draw of {variant}, whose "
                        "accuracy is the mean over all draws"
                    )
                hint = did_you_mean(one, known) or f"; known: {', '.join(filter(None, known))}"
                raise UsageError(f"--fail_if {text!r}: no measure {one!r}{hint}")
        if against in (measure, *gaps) or (against in variants and measure in gaps):
            raise UsageError(
                f"--fail_if {text!r}: a gap is compared with a fraction or the baseline, an "
                "accuracy also with that on another variant"
            )
        lowest = -1.0 if measure in gaps or against else 0.0
        figure = limit.removesuffix("%")
        value = float(figure or 0) if _NUMBER.fullmatch(figure) else math.nan
        if figure != limit or not lowest <= value <= 1 or (against and number and not sign):
            raise UsageError(
                f"--fail_if {text!r}: {limit!r} is not a fraction between {lowest:g} and 1"
                + (f" ({value:g} points: {value / 100:g})" if 1 < abs(value) <= 100 else "")
            )
        return cls(text, rule, measure, comparison, against, value)

    def holds(self, value: float) -> bool:
        """Returns whether a value, a fraction, satisfies the condition."""
        return bool(_COMPARISONS[self.comparison](value, self.limit))


def parse_conditions(
    texts: Sequence[str] | None, variants: Sequence[VariantName]
) -> tuple[Condition, ...]:
    """Parses all values of `--fail_if`, None without it.

    `variants` are those that the dataset has or will have. Raises UsageError if a condition is
    wrong, or needs a variant that the dataset lacks.
    """
    conditions = tuple(Condition.parse(text, variants) for text in texts or ())
    for condition in conditions:
        if lacking := [one for one in condition.needs if VariantName.parse(one) not in variants]:
            raise UsageError(
                f"--fail_if {condition.text!r}: the dataset has no {lacking[0]}; see --variants"
            )
    return conditions
