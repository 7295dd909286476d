"""Schemas of the JSON files of results, which detect damaged or forged files.

Every field that is written is listed here, so that no reader takes a field for granted that may be
missing. Fields must have the stated type, and must exist unless they are `NotRequired`, without
which every reader can do. A file of a later version may have more fields.
"""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired, TypedDict

import msgspec

from pipeline.storage.state_files import Name, RelativePath

_Number = int | float
_Label = Annotated[int, msgspec.Meta(ge=-1, lt=2**15)]


class EvaluationSchema(TypedDict):
    """The settings that a model was run with. The name of its folder depends on them."""

    split: Name
    eval_input: Literal["stored", "native"]
    precision: Literal["fp32", "tf32", "bf16"]
    holdout: Annotated[float, msgspec.Meta(ge=0, lt=1)]
    dataset: NotRequired[str]


class _Evaluated(EvaluationSchema):
    input_size: int
    device: NotRequired[str]


class _Preprocessing(TypedDict):
    input_size: int
    fixed_size: bool
    mean: list[_Number]
    std: list[_Number]
    interpolation: str
    crop_pct: _Number
    crop_mode: str


class _Failure(TypedDict):
    entry: str
    stage: str
    model: str
    error: str
    dataset: str
    evaluation: EvaluationSchema


Failures = dict[str, dict[str, _Failure]]
"""failures.json: entry of `--models` -> stage -> failure."""


class _Trained(TypedDict):
    variant: str
    method: str
    dataset: str
    split: str
    holdout: _Number
    pretrained: str | None
    epochs: int | None
    seed: int
    images: int
    keys_sha256: str
    penalty: NotRequired[float]


class _Model(TypedDict):
    model: str
    architecture: str
    weights: str
    weights_sha256: str
    num_outputs: int
    preprocessing: _Preprocessing
    evaluate_version: int
    evaluation: _Evaluated
    overlap: NotRequired[int | None]
    trained: NotRequired[_Trained | None]


class _Power(TypedDict):
    variant: str
    images: int
    units: int
    accuracy: float
    ci_low: float
    ci_high: float
    chance: float
    has_power: bool
    fingerprint: str


class _MatrixRow(TypedDict):
    name: Name
    row: str
    arch: str


class ModelSchema(_Model):
    """model.json. The model of a row of a matrix also has its `matrix` and the `variants` that it
    was tested on. If it was tested on another `dataset`, it has the `groups` of that dataset's
    images."""

    entry: str
    libraries: dict[str, str]
    predictions: str
    power: list[_Power]
    variants: NotRequired[list[str]]
    matrix: NotRequired[_MatrixRow]
    groups: NotRequired[dict[str, str]]


class _AccuracyByBackgrounds(TypedDict):
    backgrounds: int
    accuracy: float


class _FooledClass(TypedDict):
    label: _Label
    class_name: str
    backgrounds: int
    foregrounds: int
    fooled: float


class _StrongestBackground(TypedDict):
    label: _Label
    bg_key: str
    bg_wnid: str | None
    success: float
    foregrounds: int


class _Measures(TypedDict):
    challenge_accuracy: float | None
    challenge_ci_low: float
    challenge_ci_high: float
    fooled: float | None
    fooled_ci_low: float | None
    fooled_ci_high: float | None
    accuracy_by_backgrounds: list[_AccuracyByBackgrounds]
    by_class: list[_FooledClass]
    strongest: list[_StrongestBackground]


class _Rules(TypedDict):
    argmax_then_map: _Measures
    mapped_only: _Measures


class AttackSchema(_Model):
    """attack.json."""

    of: str
    split: Name
    foregrounds: int
    backgrounds: int
    full_grid: bool
    early_stop: bool
    forwards: int
    backgrounds_file: RelativePath
    rules: _Rules


class _SaliencyMap(TypedDict):
    key: str
    label: _Label
    prediction: _Label
    mass_in_mask: float | None
    file: RelativePath


class SaliencySchema(_Model):
    """saliency.json."""

    of: str
    variant: str
    method: str
    images: int
    mass_in_mask: float | None
    ci_low: float | None
    ci_high: float | None
    mask_area: float | None
    concentration: float | None
    maps: list[_SaliencyMap]


class ImageNetSchema(_Model):
    """imagenet.json."""

    libraries: dict[str, str]
    listing: str
    n: int
    classes: int
    unknown: int
    correct: int
    top1: float
    ci_low: float
    ci_high: float


class _TrendPoint(TypedDict):
    model: str
    variant: str
    label_rule: str
    n: int
    accuracy: float
    ci_low: float
    ci_high: float
    imagenet_top1: float | None
    imagenet_source: str | None
    imagenet_n: int | None
    imagenet_input_size: int | None
    input_size: int


class _TrendLine(TypedDict):
    variant: str
    slope: float
    slope_low: float
    slope_high: float
    intercept: float
    models: int


class TrendSchema(TypedDict):
    """trend.json."""

    dataset: str
    label_rule: str
    points: list[_TrendPoint]
    lines: list[_TrendLine]
    left_out: list[str]
    notes: list[str]
