"""Accuracy of models on ImageNet itself, and the trend of accuracies on the variants against it.

The trend runs no model: it comes from stored results and published figures.
"""

from pipeline.analyses import Analysis
from pipeline.runtime.flag_types import Flag

IMAGENET = Analysis(
    name="imagenet",
    implementation="pipeline.analyses.imagenet.parts:PARTS",
    job_flags=(
        (
            ("run", "evaluate"),
            Flag(
                "--imagenet",
                "DIR",
                "measure top-1 accuracy on DIR/val, for the trend (default: published figures)",
            ),
        ),
    ),
    picture_noun="ImageNet image",
    participle="classified",
)

TREND = Analysis(name="trend", implementation="pipeline.analyses.imagenet.parts:TREND_PARTS")
