"""Results of an encoder's features: shares of their variance on a grid of composites.

results/<model>/features.json   the shares of an encoder
results/features.csv            table of all encoders
"""

from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from pipeline.analyses.attack.results import ATTACK_VARIANTS
from pipeline.analyses.features.grid import FeatureGrid
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.predictions import read_current_results
from pipeline.evaluate.results import PicturesResult, Table
from pipeline.storage.state_files import Name
from transforms.feature_shares import AT_MOST, feature_shares
from transforms.intervals import Estimate

Share = Literal["foreground", "background", "interaction", "class"]
"""A name of `SHARES`."""


class FeaturesResult(PicturesResult, frozen=True, kw_only=True):
    """features.json: the shares of the variance of an encoder's features (`feature_shares`).

    Attributes:
      foregrounds, backgrounds, classes: numbers of these in the grid.
      fit_split: the split by whose pictures of the fit features are standardised.
      made_from: fingerprint of the encoder, the fit and the grid.
    """

    foregrounds: int
    backgrounds: int
    classes: int
    fit_split: Name
    made_from: str
    shares: dict[Share, Estimate | None]

    @property
    def columns(self) -> dict[str, float | None]:
        """The shares and the ends of their intervals, by the names of their columns."""
        return {
            f"{share}_share{end}": value
            for share, estimate in self.shares.items()
            for end, value in zip(("", "_ci_low", "_ci_high"), estimate or [None] * 3, strict=True)
        }


class FeatureRow(Struct, frozen=True, kw_only=True):
    """A row of features.csv: an encoder."""

    model: str
    features: Annotated[str, Meta(description="which outputs of the encoder are its features")]
    foreground_share: Annotated[
        float, Meta(description="share of the features' variance that is the foreground's")
    ]
    foreground_share_ci_low: Annotated[
        float, Meta(description="lower end of the 95 % interval of `foreground_share`")
    ]
    foreground_share_ci_high: Annotated[
        float, Meta(description="upper end of the 95 % interval of `foreground_share`")
    ]
    background_share: Annotated[
        float, Meta(description="share of the variance that is the background's")
    ]
    background_share_ci_low: Annotated[
        float, Meta(description="lower end of the 95 % interval of `background_share`")
    ]
    background_share_ci_high: Annotated[
        float, Meta(description="upper end of the 95 % interval of `background_share`")
    ]
    interaction_share: Annotated[
        float, Meta(description="share of the variance that is neither's alone")
    ]
    interaction_share_ci_low: Annotated[
        float, Meta(description="lower end of the 95 % interval of `interaction_share`")
    ]
    interaction_share_ci_high: Annotated[
        float, Meta(description="upper end of the 95 % interval of `interaction_share`")
    ]
    class_share: Annotated[
        float | None,
        Meta(description="share of the background's variance that is its class's"),
    ]
    class_share_ci_low: Annotated[
        float | None, Meta(description="lower end of the 95 % interval of `class_share`")
    ]
    class_share_ci_high: Annotated[
        float | None, Meta(description="upper end of the 95 % interval of `class_share`")
    ]
    foregrounds: Annotated[int, Meta(description="number of foregrounds in the grid")]
    backgrounds: Annotated[int, Meta(description="number of backgrounds in the grid")]
    classes: Annotated[int, Meta(description="number of classes in the grid")]
    fit_split: Annotated[
        str, Meta(description="split by whose `original` pictures features are standardised")
    ]
    split: str
    precision: str
    weights_sha256: str
    dataset: str


FEATURES_TABLE = Table(
    "features",
    (FeatureRow,),
    "shares of the variance of an encoder's [features](results.md#features), with intervals by a "
    "jackknife",
)


def summarize_grid(
    features: NDArray[np.float32], fitted: NDArray[np.float32], grid: FeatureGrid
) -> dict[str, Any]:
    """Computes fields of `FeaturesResult`, by name.

    Args:
      features: (pictures, width), of the pictures of the grid, in order.
      fitted: (n, width), of the pictures of the fit, by which features are standardised. One that
        is constant in them is divided by 1.
    """
    deviations = fitted.std(axis=0, dtype=np.float64)
    labels = grid.backgrounds.labels
    by_pair = features.reshape(len(grid.foregrounds), len(labels), -1)
    return {
        "foregrounds": len(by_pair),
        "backgrounds": len(labels),
        "classes": len(np.unique(labels)),
        "shares": feature_shares(by_pair / np.where(deviations > 0, deviations, 1), labels),
    }


def read_features(dataset: Dataset) -> list[FeaturesResult]:
    """Reads each encoder's features.json, in order of folders, if it is of the present pictures."""
    return read_current_results(dataset, "features", FeaturesResult, lambda _: ATTACK_VARIANTS)[0]


def describe_features(name: str, result: FeaturesResult) -> str:
    """Says in a line what the features of the encoder `name` consist of."""
    said = {share: _said(estimate) for share, estimate in result.shares.items()}
    return (
        f"features of {name}: background {said['background']} of the variance, of which "
        f"{said['class']} is its class; foreground {said['foreground']}, interaction "
        f"{said['interaction']}"
    )


def _said(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    value, low, high = (f"{100 * share:.0f}" for share in estimate)
    return f"at most {high} %" if estimate[0] < AT_MOST else f"{value} % [{low}, {high}]"
