"""How much of an encoder's features is foreground, and how much is background."""

from pipeline.analyses import Analysis

FEATURES = Analysis(
    name="features",
    implementation="pipeline.analyses.features.parts:PARTS",
    picture_noun="picture",
    participle="encoded",
)
