"""The trend: accuracy on the versions against accuracy on ImageNet."""

from __future__ import annotations

from pipeline.analyses.imagenet.results import Trend
from pipeline.display.evidence import Evidence
from pipeline.display.panel import Panel

COMMAND = "in9 evaluate --dataset . --models MODELS --imagenet IMAGENET"
AT_LEAST_THREE = (
    "at least three models, better ten, whose accuracy on ImageNet is known or measured"
)


def read_trend(evidence: Evidence) -> Trend | None:
    """Returns the trend; None if there is none, or it has no lines."""
    return next((trend for trend in evidence.get(Trend) if trend.lines), None)


# The section needs ImageNet-9, because the published trend is about its classes.
PANEL = Panel(
    id="trend",
    place=6,
    template="imagenet/panel.html",
    title="Trend",
    make=lambda evidence, _: read_trend(evidence),
    answers="Whether better models are less fooled",
    command=COMMAND,
    needs=AT_LEAST_THREE,
    needs_imagenet9=True,
)
