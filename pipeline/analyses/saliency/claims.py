"""The authors' claim about saliency, and what it is judged by."""

from __future__ import annotations

from pipeline.analyses.evaluation.trained import models_trained_on
from pipeline.analyses.saliency.panel import COMMAND
from pipeline.analyses.saliency.results import SaliencyResult
from pipeline.display.claims import Claim, Measurement, checkpoints, differences, trained_command
from pipeline.display.evidence import Results
from pipeline.display.verdicts import above, estimate_of


def on_foreground(results: Results, trained_on: str) -> list[Measurement]:
    """Returns the share of saliency inside the mask of models trained on a variant."""
    return [
        Measurement(model.name, estimate)
        for model in models_trained_on(results, trained_on)
        if (one := model.get(SaliencyResult))
        and (estimate := estimate_of(one.mass_in_mask, one.ci_low, one.ci_high))
    ]


CLAIMS = (
    Claim(
        "The model trained on Mixed-Rand looks more at the foreground than the one trained on "
        "Original.",
        (4, 5),
        "blog 4, saliency maps",
        "pictures only",
        "share of saliency inside the mask: difference above 0",
        lambda results: differences(
            on_foreground(results, "mixed_rand"), on_foreground(results, "original")
        ),
        above,
        trained_command(COMMAND, "original", "mixed_rand"),
        of="pairs",
        unit="points",
        needs=checkpoints("original", "mixed_rand"),
    ),
)
