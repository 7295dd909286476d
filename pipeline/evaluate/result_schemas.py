"""Forms of the JSON files of results, by which files that are damaged or made up are told.

More names than are listed here may stand in a file; of those that are, the types hold.
"""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired, TypedDict

import msgspec

from pipeline.storage.state_files import Name, RelativePath

_Label = Annotated[int, msgspec.Meta(ge=-1, lt=2**15)]


class EvaluationSchema(TypedDict):
    """How a model was run: its folder's name is made of this."""

    split: Name
    eval_input: Literal["stored", "native"]
    precision: Literal["fp32", "tf32", "bf16"]
    holdout: NotRequired[Annotated[float, msgspec.Meta(ge=0, lt=1)]]
    dataset: NotRequired[str]


class _Preprocessing(TypedDict):
    input_size: int


class _Failure(TypedDict):
    entry: str
    stage: str
    model: str
    error: str
    dataset: str
    evaluation: EvaluationSchema


Failures = dict[str, dict[str, _Failure]]
"""failures.json: by entry of `--models`, and stage."""


class _Trained(TypedDict):
    variant: str
    method: str
    split: str
    seed: int
    images: int
    penalty: NotRequired[float]


class _Model(TypedDict):
    model: str
    weights_sha256: str
    num_outputs: int
    preprocessing: _Preprocessing
    evaluation: EvaluationSchema
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


class _Row(TypedDict):
    name: Name
    row: str
    arch: str


class ModelSchema(_Model):
    """model.json; of a row of a matrix with its place there, and the variants that it was run on:
    those of another `dataset` with the groups of its images."""

    entry: str
    evaluate_version: int
    predictions: str
    power: list[_Power]
    variants: NotRequired[list[str]]
    matrix: NotRequired[_Row]
    groups: NotRequired[dict[str, str]]


class _OfBackgrounds(TypedDict):
    backgrounds: int
    accuracy: float


class _FooledClass(TypedDict):
    label: _Label
    class_name: str
    backgrounds: int
    foregrounds: int
    fooled: float | None


class _Strongest(TypedDict):
    label: _Label
    bg_key: str
    bg_wnid: str | None
    success: float
    foregrounds: int


class _Measures(TypedDict):
    challenge_accuracy: float | None
    challenge_ci_low: float | None
    challenge_ci_high: float | None
    fooled: float | None
    fooled_ci_low: float | None
    fooled_ci_high: float | None
    accuracy_by_backgrounds: list[_OfBackgrounds]
    by_class: list[_FooledClass]
    strongest: list[_Strongest]


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
    rules: dict[Literal["argmax_then_map", "mapped_only"], _Measures]


class _Map(TypedDict):
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
    maps: list[_Map]


class ImageNetSchema(TypedDict):
    """imagenet.json."""

    model: str
    weights_sha256: str
    listing: str
    n: int
    classes: int
    top1: float
    ci_low: float
    ci_high: float


class _Point(TypedDict):
    model: str
    variant: str
    label_rule: str
    n: int
    accuracy: float
    ci_low: float | None
    ci_high: float | None
    imagenet_top1: float | None
    imagenet_source: str | None
    imagenet_n: int | None


class _Line(TypedDict):
    variant: str
    slope: float
    slope_low: float
    slope_high: float
    intercept: float
    models: int


class TrendSchema(TypedDict):
    """trend.json."""

    dataset: str
    points: list[_Point]
    lines: list[_Line]
    left_out: list[str]
    notes: list[str]
