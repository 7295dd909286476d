"""The authors' claim about saliency, and its judge."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.analyses.evaluation.trained import models_trained_on
from pipeline.analyses.saliency.panel import COMMAND
from pipeline.analyses.saliency.results import SaliencyResult
from pipeline.display.claims import Claim, checkpoints, trained_command
from pipeline.display.evidence import ModelResults, Results
from pipeline.display.verdicts import Estimate, Finding, above, difference


def looks_at_foreground(results: Results) -> Iterator[Finding]:
    """Compares the share of saliency inside the mask between models trained on `mixed_rand` and
    models trained on `original`."""
    for model in models_trained_on(results, "mixed_rand"):
        for other in models_trained_on(results, "original"):
            mine, theirs = _mass_of(model), _mass_of(other)
            if mine and theirs:
                estimate = difference(mine, theirs)
                subject = f"{model.name} minus {other.name}"
                yield Finding(subject, *estimate, above(estimate[1], estimate[2], 0))


def _mass_of(model: ModelResults) -> Estimate | None:
    one = model.get(SaliencyResult)
    if one is None or one.mass_in_mask is None or one.ci_low is None or one.ci_high is None:
        return None
    return one.mass_in_mask, one.ci_low, one.ci_high


CLAIMS = (
    Claim(
        "The model trained on Mixed-Rand looks more at the foreground than the one trained on "
        "Original.",
        (4, 5),
        "blog 4, saliency maps",
        "pictures only",
        "share of saliency inside the mask: difference above 0",
        looks_at_foreground,
        trained_command(COMMAND, "original", "mixed_rand"),
        of="pairs",
        unit="points",
        needs=checkpoints("original", "mixed_rand"),
    ),
)
