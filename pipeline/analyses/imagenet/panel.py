"""The trend: accuracy on the versions against accuracy on ImageNet, and the authors' claims about
better models."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.analyses.imagenet.results import Trend, read_trend
from pipeline.display.claims import Claim, Measurement, differences
from pipeline.display.evidence import Results
from pipeline.display.panel import Panel
from pipeline.display.verdicts import above, below

COMMAND = "in9 evaluate --dataset . --models MODELS --imagenet IMAGENET"
AT_LEAST_THREE = (
    "at least three models, better ten, whose accuracy on ImageNet is known or measured"
)


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


def slopes(*variants: str) -> Callable[[Results], list[Measurement]]:
    """Returns a function that finds the slopes of accuracy on these variants, or of BG-Gap, against
    accuracy on ImageNet."""
    return lambda results: [
        Measurement(line.variant, (line.slope, line.slope_low, line.slope_high))
        for trend in results.get(Trend)
        for variant in variants
        for line in trend.lines
        if line.variant == variant
    ]


CLAIMS = (
    Claim(
        "Better models on ImageNet are better on all of the synthetic datasets.",
        (5, 1),
        "blog 5, paper figure 8",
        "all lines rise",
        "slopes above 0",
        slopes("mixed_same", "mixed_rand", "mixed_next", "no_fg"),
        above,
        COMMAND,
        of="lines",
        unit="slope",
        needs=AT_LEAST_THREE,
    ),
    Claim(
        "Models do improve at using backgrounds: accuracy on only_bg_t rises, too.",
        (5, 2),
        "blog 5, paper figure 8",
        "the line rises",
        "slope above 0",
        slopes("only_bg_t"),
        above,
        COMMAND,
        of="lines",
        unit="slope",
        needs=AT_LEAST_THREE,
    ),
    Claim(
        "Accuracy on backgrounds alone improves slower than where the background misleads.",
        (5, 3),
        "blog 5",
        "a flatter line",
        "difference of the slopes above 0",
        # Where the background misleads, compared with backgrounds alone.
        lambda results: differences(
            slopes("mixed_rand", "mixed_next")(results), slopes("only_bg_t")(results)
        ),
        above,
        COMMAND,
        of="lines",
        unit="slope",
        needs=AT_LEAST_THREE,
    ),
    Claim(
        "BG-Gap trends towards closing.",
        (5, 4),
        "blog 5",
        "the line falls",
        "slope below 0",
        slopes("bg_gap"),
        below,
        COMMAND,
        of="lines",
        unit="slope",
        needs=AT_LEAST_THREE,
    ),
)
