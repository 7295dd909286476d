"""The trend: accuracy on the versions against accuracy on ImageNet."""

from __future__ import annotations

from typing import Any

from pipeline.report.evidence import Evidence
from pipeline.report.panel import AT_LEAST_THREE, TREND_COMMAND, Panel


def read_trend(evidence: Evidence) -> dict[str, Any] | None:
    """Returns the content of results/trend.json; None if the file is missing or has no lines."""
    return evidence.trend if evidence.trend and evidence.trend["lines"] else None


# The section needs ImageNet-9, because the published trend is about its classes.
TREND = Panel(
    id="trend",
    title="Trend",
    make=lambda evidence, _: read_trend(evidence),
    answers="Whether better models are less fooled",
    command=TREND_COMMAND,
    needs=AT_LEAST_THREE,
    needs_imagenet9=True,
)
