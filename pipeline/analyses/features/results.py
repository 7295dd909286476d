"""Results of an encoder's features: shares of their variance on a grid of composites.

results/<model>/features.json   the shares of an encoder
results/features.csv            table of all encoders
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pipeline.analyses.attack.results import ATTACK_VARIANTS
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.predictions import read_current_results, split_fingerprint
from pipeline.evaluate.results import PicturesResult, Table, pick
from pipeline.storage.state_files import Name
from transforms.estimates import Estimate
from transforms.feature_shares import AT_MOST
from transforms.variants import ORIGINAL

_Share = Literal["foreground", "background", "interaction", "class"]


class FeaturesResult(PicturesResult, frozen=True, kw_only=True):
    """features.json: the shares of the variance of an encoder's features, as `feature_shares` says.

    Attributes:
      features: which of the encoder's outputs they are.
      foregrounds, backgrounds, classes: numbers of these in the grid.
      fit_split: the split by whose pictures of `original` features are standardised; with a
        holdout, by those of them that are not held out.
      fit_of: `split_fingerprint` of these pictures.
    """

    features: str
    foregrounds: int
    backgrounds: int
    classes: int
    fit_split: Name
    fit_of: str
    shares: dict[_Share, Estimate | None]


class FeatureRow(Struct, frozen=True, kw_only=True):
    """A row of features.csv: an encoder."""

    model: str
    features: Annotated[str, Meta(description="which output of the encoder its features are")]
    foreground_share: Annotated[
        float | None,
        Meta(description="share of the features' variance that is the foreground's"),
    ]
    foreground_share_ci_low: float | None
    foreground_share_ci_high: float | None
    background_share: Annotated[
        float | None, Meta(description="share of the variance that is the background's")
    ]
    background_share_ci_low: float | None
    background_share_ci_high: float | None
    interaction_share: Annotated[
        float | None, Meta(description="share of the variance that is neither's alone")
    ]
    interaction_share_ci_low: float | None
    interaction_share_ci_high: float | None
    class_share: Annotated[
        float | None,
        Meta(description="share of the background's variance that its class explains"),
    ]
    class_share_ci_low: float | None
    class_share_ci_high: float | None
    foregrounds: int
    backgrounds: int
    classes: Annotated[int, Meta(description="number of classes in the grid")]
    fit_split: Annotated[
        str, Meta(description="split by whose `original` features are standardised")
    ]
    split: str
    precision: str
    weights_sha256: str
    dataset: str


FEATURES_TABLE = Table(
    "features",
    (FeatureRow,),
    "shares of the variance of an encoder's [features](results.md#features), with jackknife "
    "intervals",
)


def read_features(dataset: Dataset) -> list[FeaturesResult]:
    """Reads each encoder's features.json, in order of folders, if it is of the present pictures."""
    results, _ = read_current_results(
        dataset, "features", FeaturesResult, lambda _: ATTACK_VARIANTS
    )
    splits = {split: split_fingerprint(dataset, split, (ORIGINAL,)) for split in dataset.manifest.shards}
    return [result for result in results if splits.get(result.fit_split) == result.fit_of]


def write_features_table(dataset: Dataset) -> None:
    """Rebuilds features.csv if there ever were results; the caller must hold the tables' lock."""
    results, of = read_features(dataset), dataset.manifest.fingerprint
    if results or dataset.store.exists("results/features.csv"):
        rows = (
            pick(
                FeatureRow,
                one,
                one.evaluation,
                model=one.title,
                dataset=of,
                **{
                    f"{name}_share{end}": value
                    for name, estimate in one.shares.items()
                    for end, value in zip(("", "_ci_low", "_ci_high"), estimate or [None] * 3)
                },
            )
            for one in results
        )
        FEATURES_TABLE.write(dataset.store, ([row] for row in rows))


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
    value, low, high = (100 * share for share in estimate)
    few = value < 100 * AT_MOST
    return f"at most {high:.0f} %" if few else f"{value:.0f} % [{low:.0f}, {high:.0f}]"
