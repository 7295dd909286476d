"""The authors' claims about adversarial backgrounds, and their judges."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.analyses.attack.panel import COMMAND
from pipeline.analyses.attack.results import AttackMeasures, AttackResult, FooledClass
from pipeline.display.claims import Claim
from pipeline.display.evidence import ModelResults, Results
from pipeline.display.text import TIMES
from pipeline.display.verdicts import Finding, Verdict, above, below
from pipeline.evaluate.published import FULL_GRID
from transforms.intervals import level_of, wilson

_INSECT = 5
"""Label of the class insect."""
_AUTHORS_GRID = f"{FULL_GRID:,} {TIMES} {FULL_GRID:,}"


def _finding(
    model: ModelResults,
    attack: AttackResult,
    value: float,
    low: float,
    high: float,
    verdict: Verdict,
) -> Finding:
    """Returns a finding. If a larger grid could change its verdict, that is `SMALL`.

    More backgrounds can only fool more foregrounds, so a claim that holds on a small grid holds on
    a larger one, too. A claim that does not hold on a small grid may still hold on a larger one.
    """
    is_settled = attack.is_authors_grid or verdict is Verdict.HOLDS
    subject = f"{model.name}, {attack.size}"
    return Finding(subject, value, low, high, verdict if is_settled else Verdict.SMALL)


def fooled(results: Results) -> Iterator[Finding]:
    """Judges the share of foregrounds that some background of another class fools."""
    for model, attack in results.models_with(AttackResult):
        one = attack.measures
        value, low, high = one.fooled, one.fooled_ci_low, one.fooled_ci_high
        if value is not None and low is not None and high is not None:
            yield _finding(model, attack, value, low, high, above(low, high, 0.5))


def challenge(results: Results) -> Iterator[Finding]:
    """Judges the share of foregrounds that are recognised on every background."""
    for model, attack in results.models_with(AttackResult):
        one = attack.measures
        value, low, high = one.challenge_accuracy, one.challenge_ci_low, one.challenge_ci_high
        if value is not None and low is not None and high is not None:
            yield _finding(model, attack, value, low, high, below(low, high, 0.25))


def best_insect(results: Results) -> Iterator[Finding]:
    """Judges the best single insect background. Its interval is widened, because it is the best of
    as many backgrounds as were tried."""
    for model, attack in results.models_with(AttackResult):
        one = attack.measures
        successes = [row.success for row in one.strongest if row.label == _INSECT]
        for row in _insects(one):
            best, tried = max(successes), row.foregrounds
            low, high = wilson(round(best * tried), tried, level_of(row.backgrounds))
            yield _finding(model, attack, best, low, high, above(low, high, 0.45))


def any_insect(results: Results) -> Iterator[Finding]:
    """Judges the share of foregrounds that some insect background turns into insects."""
    for model, attack in results.models_with(AttackResult):
        for row in _insects(attack.measures):
            share, tried = row.fooled, row.foregrounds
            low, high = wilson(round(share * tried), tried)
            yield _finding(model, attack, share, low, high, above(low, high, 0.6))


def _insects(measures: AttackMeasures) -> list[FooledClass]:
    """Returns the row of `by_class` for the insects, in a list that is empty without such a row."""
    return [row for row in measures.by_class if row.label == _INSECT]


CLAIMS = (
    Claim(
        "Nearly every foreground can be fooled by some background of another class.",
        (3, 1),
        f"blog 3, at {_AUTHORS_GRID}",
        "87.5 %",
        "more than half; a smaller grid can only show that it holds",
        fooled,
        COMMAND,
    ),
    Claim(
        "Few foregrounds survive every background (challenge accuracy).",
        (3, 2),
        f"README, at {_AUTHORS_GRID}",
        "22.3 %",
        "under a quarter; a smaller grid can only show that it holds",
        challenge,
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
        best_insect,
        COMMAND,
    ),
    Claim(
        "Some insect background or other turns over 2/3 of the foregrounds into insects.",
        (3, 4),
        f"blog 3, at {_AUTHORS_GRID}",
        "66.6 %",
        "more than 60 %; a smaller grid can only show that it holds",
        any_insect,
        COMMAND,
    ),
)
