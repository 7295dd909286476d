"""The analyses of a dataset and its models. `ANALYSES` is the list of them."""

import pkgutil

from pipeline.analyses.analysis import Analysis

ANALYSES: tuple[Analysis, ...] = tuple(
    pkgutil.resolve_name(f"{__name__}.{name}")
    for name in (
        "features:FEATURES",
        "evaluation:EVALUATION",
        "renderings:RENDERINGS",
        "imagenet:IMAGENET",
        "attack:ATTACK",
        "imagenet:TREND",
        "saliency:SALIENCY",
        "matrix:MATRIX",
    )
)
"""All analyses, each named by its folder and object, in the order in which a job runs them. An
analysis may read the results of those before it."""
