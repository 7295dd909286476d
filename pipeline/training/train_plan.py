"""What to train on what, and how: the paper's training (appendix C) as the defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pipeline.dataset.folder import Dataset
from pipeline.dataset.holdout import Holdout, selected_rows, training_pictures
from pipeline.errors import UsageError
from pipeline.training.samples import Samples
from transforms.variants import base_of

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")

_ELSEWHERE = ("device", "workers", "weights")
"""Fields that do not decide what is trained: another machine may go on with it."""


@dataclasses.dataclass(frozen=True)
class TrainPlan:
    """One training. Field names are the flags' names.

    Attributes:
      variant: whose pictures.
      arch: timm's name of the architecture, with or without the tag of weights.
      pretrained: whether to begin with weights for ImageNet.
      epochs, batch_size, lr, weight_decay: of SGD; the rate is divided by 10 after
        each quarter of the epochs.
      seed: of weights, order, augmentation and dropout.
      train_split: to train on.
      eval_split: to validate on, None for none.
      holdout: share of `train_split` that is left out and validated on instead.
      precision: `fp32` (TF32 off), `tf32`, or autocast to `bf16` or `fp16`.
      device: `cpu` or `cuda`.
      workers: processes that load pictures, 0 for none beside this one.
      weights: folder of `in9 models fetch`.

    Raises:
      ValueError: a value out of range, named with its flag.
    """

    variant: str = "original"
    arch: str = "resnet50"
    pretrained: bool = False
    epochs: int = 200
    batch_size: int = 256
    lr: float = 0.1
    weight_decay: float = 1e-4
    seed: int = 0
    train_split: str = "train"
    eval_split: str | None = None
    holdout: float = 0.0
    precision: str = "fp32"
    device: str = "cpu"
    workers: int = 1
    weights: str | None = None

    def __post_init__(self) -> None:
        for flag, fits, expected in (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("lr", self.lr > 0, "above 0"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("holdout", 0 <= self.holdout < 1, "between 0 and 1"),
            ("workers", self.workers >= 0, "at least 0"),
            ("precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
        ):
            if not fits:
                raise ValueError(f"--{flag} must be {expected}: got {getattr(self, flag)}")

    @property
    def name(self) -> str:
        """Of the folder that it is written to, unless another one is named."""
        parts = [self.arch, self.variant.replace(":", "_"), f"{self.epochs}ep"]
        if self.pretrained:
            parts.append("pretrained")
        if self.holdout:
            parts.append(f"holdout{self.holdout:g}")
        return "-".join([*parts, f"seed{self.seed}"])

    def identity(self, dataset: Dataset) -> dict[str, Any]:
        """What decides the weights on a given machine; fit for JSON."""
        fields = dataclasses.asdict(self)
        for name in _ELSEWHERE:
            del fields[name]
        return {**fields, "dataset": dataset.manifest.fingerprint}


def check_same(found: Mapping[str, Any], wanted: Mapping[str, Any], folder: str) -> None:
    """Raises UsageError if what a folder holds is another training than the one wanted."""
    differing = sorted(name for name in wanted if found.get(name) != wanted[name])
    if differing == ["dataset"]:
        what = "the dataset has changed since"
    else:
        what = ", ".join(f"--{name} {found.get(name)}" for name in differing if name != "dataset")
    if differing:
        raise UsageError(
            f"{folder} holds another training ({what}): choose another --output, or begin it "
            "anew with --overwrite"
        )


def check_variant(dataset: Dataset, variant: str) -> None:
    """Raises UsageError if a dataset has no pictures of a variant."""
    pictures = dataset.picture_variants
    if variant not in pictures:
        raise UsageError(
            f"--variant {variant}: the dataset has {', '.join(pictures) or 'no pictures'}"
        )


def find_samples(dataset: Dataset, plan: TrainPlan) -> tuple[Samples, Samples | None]:
    """The pictures to train on, and those to validate on, if any.

    Raises:
      UsageError: the dataset has no such variant or split, or no pictures in one.
      OSError: the index cannot be read.
    """
    check_variant(dataset, plan.variant)
    holdout = Holdout(plan.holdout)
    training = _samples(
        dataset,
        plan.train_split,
        training_pictures(dataset, plan.train_split, plan.variant, holdout),
    )
    eval_split = plan.train_split if plan.holdout else plan.eval_split
    if eval_split is None:
        return training, None
    rows = selected_rows(dataset, eval_split, holdout)
    shown = {row["key"]: base_of(plan.variant) for row in rows}
    return training, _samples(dataset, eval_split, shown)


def _samples(dataset: Dataset, split: str, pictures: Mapping[str, str]) -> Samples:
    if not pictures:
        raise UsageError(f"no images of {split} are left to train on, or to validate on")
    labels = {row["key"]: row["label"] for row in selected_rows(dataset, split)}
    return Samples(dataset, split, pictures, labels)


def choose_splits(
    dataset: Dataset, train_split: str | None, eval_split: str | None, holdout: float
) -> tuple[str, str | None]:
    """The splits to train and to validate on, where flags leave them open.

    Args:
      dataset: the dataset.
      train_split, eval_split: of the flags, None where they say nothing.
      holdout: of the flag.

    Returns:
      (train_split, eval_split); without `--holdout` they differ.

    Raises:
      UsageError: the dataset does not have them.
    """
    there = dataset.manifest.config.split
    for flag, name in (("train_split", train_split), ("eval_split", eval_split)):
        if name is not None and name not in there:
            raise UsageError(f"--{flag} {name}: the dataset has {', '.join(there)}")
    if train_split is None and "train" not in there and not holdout:
        raise UsageError(
            f"the dataset has no split train, but {', '.join(there)}: make one with it "
            "(in9 generate --split train,val), or train on a part of what is there with "
            "--holdout 0.5"
        )
    chosen = train_split or ("train" if "train" in there else there[0])
    if holdout:
        if eval_split not in (None, chosen):
            raise UsageError(
                f"with --holdout, what is held out of {chosen} is validated on; leave "
                f"--eval_split {eval_split} out"
            )
        return chosen, None
    if eval_split == chosen:
        raise UsageError(
            f"--eval_split {eval_split} is what is trained on; name another split, or hold out a "
            "part of it with --holdout 0.5"
        )
    return chosen, eval_split or ("val" if "val" in there and chosen != "val" else None)
