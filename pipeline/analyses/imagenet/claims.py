"""The authors' claims about better models, and their judges."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pipeline.analyses.imagenet.panel import AT_LEAST_THREE, COMMAND
from pipeline.analyses.imagenet.trend import Trend
from pipeline.display.claims import Claim
from pipeline.display.evidence import Results
from pipeline.display.verdicts import Estimate, Finding, above, below, difference


def _slopes(results: Results) -> dict[str, Estimate]:
    """Returns the slopes of the trend, by variant."""
    return {
        line.variant: (line.slope, line.slope_low, line.slope_high)
        for trend in results.get(Trend)
        for line in trend.lines
    }


def rises(*variants: str) -> Callable[[Results], Iterator[Finding]]:
    """Returns a judge of the slopes of accuracy on these variants against accuracy on ImageNet."""

    def judge(results: Results) -> Iterator[Finding]:
        slopes = _slopes(results)
        for variant in variants:
            if variant in slopes:
                estimate = slopes[variant]
                yield Finding(variant, *estimate, above(estimate[1], estimate[2], 0))

    return judge


def slower(results: Results) -> Iterator[Finding]:
    """Compares the slopes where the background misleads with the slope on backgrounds alone."""
    slopes = _slopes(results)
    for variant in ("mixed_rand", "mixed_next"):
        if "only_bg_t" in slopes and variant in slopes:
            estimate = difference(slopes[variant], slopes["only_bg_t"])
            yield Finding(
                f"{variant} minus only_bg_t", *estimate, above(estimate[1], estimate[2], 0)
            )


def closing(results: Results) -> Iterator[Finding]:
    """Judges the slope of BG-Gap."""
    if estimate := _slopes(results).get("bg_gap"):
        yield Finding("bg_gap", *estimate, below(estimate[1], estimate[2], 0))


CLAIMS = (
    Claim(
        "Better models on ImageNet are better on all of the synthetic datasets.",
        (5, 1),
        "blog 5, paper figure 8",
        "all lines rise",
        "slopes above 0",
        rises("mixed_same", "mixed_rand", "mixed_next", "no_fg"),
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
        rises("only_bg_t"),
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
        slower,
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
        closing,
        COMMAND,
        of="lines",
        unit="slope",
        needs=AT_LEAST_THREE,
    ),
)
