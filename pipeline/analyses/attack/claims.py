"""The authors' claims about adversarial backgrounds, and what they are judged by."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pipeline.analyses.attack.panel import COMMAND
from pipeline.analyses.attack.results import AttackMeasures, AttackResult, FooledClass
from pipeline.display.claims import Claim, Measurement
from pipeline.display.evidence import Results
from pipeline.display.text import TIMES
from pipeline.display.verdicts import Estimate, above, below, estimate_of
from pipeline.evaluate.published import FULL_GRID
from transforms.intervals import level_of, wilson

_INSECT = 5
"""Label of the class insect."""
_AUTHORS_GRID = f"{FULL_GRID:,} {TIMES} {FULL_GRID:,}"


def on_grids(
    measure: Callable[[AttackMeasures], Estimate | None],
) -> Callable[[Results], Iterator[Measurement]]:
    """Returns a function that yields a measure of each attack that has it."""

    def measurements(results: Results) -> Iterator[Measurement]:
        for model, attack in results.models_with(AttackResult):
            if estimate := measure(attack.measures):
                subject = f"{model.name}, {attack.size}"
                yield Measurement(subject, estimate, may_rise=not attack.is_authors_grid)

    return measurements


def best_insect(measures: AttackMeasures) -> Estimate | None:
    """Returns the success of the best single insect background. Its interval is widened, because it
    is the best of as many backgrounds as were tried."""
    row = _insects(measures)
    if row is None:
        return None
    best = max(one.success for one in measures.strongest if one.label == _INSECT)
    hits = round(best * row.foregrounds)
    return best, *wilson(hits, row.foregrounds, level_of(row.backgrounds))


def any_insect(measures: AttackMeasures) -> Estimate | None:
    """Returns the share of foregrounds that some insect background turns into insects."""
    row = _insects(measures)
    if row is None:
        return None
    return row.fooled, *wilson(round(row.fooled * row.foregrounds), row.foregrounds)


def _insects(measures: AttackMeasures) -> FooledClass | None:
    return next((row for row in measures.by_class if row.label == _INSECT), None)


CLAIMS = (
    Claim(
        "Nearly every foreground can be fooled by some background of another class.",
        (3, 1),
        f"blog 3, at {_AUTHORS_GRID}",
        "87.5 %",
        "more than half; a smaller grid can only show that it holds",
        on_grids(lambda one: estimate_of(one.fooled, one.fooled_ci_low, one.fooled_ci_high)),
        lambda low, high, _: above(low, high, 0.5),
        COMMAND,
    ),
    Claim(
        "Few foregrounds survive every background (challenge accuracy).",
        (3, 2),
        f"README, at {_AUTHORS_GRID}",
        "22.3 %",
        "under a quarter; a smaller grid can only show that it holds",
        on_grids(
            lambda one: estimate_of(
                one.challenge_accuracy, one.challenge_ci_low, one.challenge_ci_high
            )
        ),
        lambda low, high, _: below(low, high, 0.25),
        COMMAND,
    ),
    Claim(
        "Single backgrounds fool a model whatever the foreground: the best insect background "
        "about half of those that are no insects.",
        (3, 3),
        f"blog 3, at {_AUTHORS_GRID}",
        "52 %",
        "more than 45 %, by the interval of the best of so many; a smaller grid can only show that "
        "it holds",
        on_grids(best_insect),
        lambda low, high, _: above(low, high, 0.45),
        COMMAND,
    ),
    Claim(
        "Some insect background or other turns over 2/3 of the foregrounds into insects.",
        (3, 4),
        f"blog 3, at {_AUTHORS_GRID}",
        "66.6 %",
        "more than 60 %; a smaller grid can only show that it holds",
        on_grids(any_insect),
        lambda low, high, _: above(low, high, 0.6),
        COMMAND,
    ),
)
