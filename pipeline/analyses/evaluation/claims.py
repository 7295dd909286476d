"""The authors' claims that accuracies decide, and what they are judged by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pipeline.analyses.evaluation.headline import COMMAND
from pipeline.analyses.evaluation.results import Summary
from pipeline.analyses.evaluation.trained import pretrained_models
from pipeline.display.claims import Claim, Measurement
from pipeline.display.evidence import ModelResults, Results
from pipeline.display.verdicts import Verdict, above, within


def background_alone(results: Results) -> Iterator[Measurement]:
    """Yields the accuracy of pretrained models on `only_bg_t`."""
    for model, summary in pretrained_models(results):
        row = summary.accuracy_on("only_bg_t")
        if row and row.estimate:
            yield Measurement(model.name, row.estimate, row.chance or 0.0)


def gaps(models: Iterable[tuple[ModelResults, Summary]]) -> Iterator[Measurement]:
    """Yields the BG-Gap of models."""
    for model, summary in models:
        if gap := summary.gap():
            yield Measurement(model.name, gap.estimate)


CLAIMS = (
    Claim(
        "Models trained on ImageNet tell some classes from the background alone (only_bg_t).",
        (2, 1),
        "paper table 2",
        "11.9 to 17.8 %",
        "accuracy above chance; an accuracy below chance leaves the claim open, because answers "
        "outside the nine classes count as wrong",
        background_alone,
        # An accuracy below chance leaves the claim open, because answers outside the classes count
        # as wrong even if the other answers carry signal.
        lambda low, _, chance: Verdict.HOLDS if low > chance else Verdict.OPEN,
        COMMAND,
    ),
    Claim(
        "Backgrounds mislead models even when the right foreground is there.",
        (2, 2),
        "blog 2",
        "BG-Gap above 0 for every model",
        "BG-Gap above 0",
        lambda results: gaps(one for one in results.models_with(Summary) if not one[1].overlap),
        above,
        COMMAND,
        unit="points",
    ),
    Claim(
        "BG-Gap is 6 to 14 points for models trained on ImageNet.",
        (2, 3),
        "blog 2, paper table 2",
        "6 to 14 points",
        "the whole interval inside 6 to 14 points",
        lambda results: gaps(pretrained_models(results)),
        lambda low, high, _: within(low, high, (0.06, 0.14)),
        COMMAND,
        unit="points",
    ),
)
