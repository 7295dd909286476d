"""The authors' claims that accuracies decide, and their judges."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.analyses.evaluation.headline import COMMAND
from pipeline.analyses.evaluation.results import Summary
from pipeline.analyses.evaluation.trained import overlap_of, pretrained_models
from pipeline.display.claims import Claim
from pipeline.display.evidence import Results
from pipeline.display.verdicts import Finding, Verdict, above, within


def background_alone(results: Results) -> Iterator[Finding]:
    """Compares the accuracy of pretrained models on `only_bg_t` with chance.

    An accuracy below chance leaves the claim open, because answers outside the classes count as
    wrong even if the other answers carry signal.
    """
    for model, summary in pretrained_models(results):
        if estimate := summary.estimate("only_bg_t"):
            chance = summary.chance("only_bg_t")
            is_above = above(estimate[1], estimate[2], chance) is Verdict.HOLDS
            verdict = Verdict.HOLDS if is_above else Verdict.OPEN
            yield Finding(model.name, *estimate, verdict, chance)


def gap_above(results: Results) -> Iterator[Finding]:
    """Compares the BG-Gap of every model that was tested on no training image with 0."""
    for model, summary in results.models_with(Summary):
        if not overlap_of(model) and (gap := summary.gap()):
            verdict = above(gap.ci_low, gap.ci_high, 0)
            yield Finding(model.name, *gap.estimate, verdict)


def gap_pretrained(results: Results) -> Iterator[Finding]:
    """Compares the BG-Gap of pretrained models with the published range."""
    for model, summary in pretrained_models(results):
        if gap := summary.gap():
            verdict = within(gap.ci_low, gap.ci_high, (0.06, 0.14))
            yield Finding(model.name, *gap.estimate, verdict)


CLAIMS = (
    Claim(
        "Models trained on ImageNet tell some classes from the background alone (only_bg_t).",
        (2, 1),
        "paper table 2",
        "11.9 to 17.8 %",
        "accuracy above chance; an accuracy below chance leaves the claim open, because answers "
        "outside the nine classes count as wrong",
        background_alone,
        COMMAND,
    ),
    Claim(
        "Backgrounds mislead models even when the right foreground is there.",
        (2, 2),
        "blog 2",
        "BG-Gap above 0 for every model",
        "BG-Gap above 0",
        gap_above,
        COMMAND,
        unit="points",
    ),
    Claim(
        "BG-Gap is 6 to 14 points for models trained on ImageNet.",
        (2, 3),
        "blog 2, paper table 2",
        "6 to 14 points",
        "the whole interval inside 6 to 14 points",
        gap_pretrained,
        COMMAND,
        unit="points",
    ),
)
