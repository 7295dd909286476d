"""What the matrix is of: which variants to train on and to test on, and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from pipeline.dataset.folder import Dataset
from pipeline.dataset.holdout import Holdout, selected_rows
from pipeline.errors import UsageError
from pipeline.models.checkpoint import digest_of_classes
from pipeline.models.predict_config import PredictConfig

IN9L = "in9l"
"""Name of the row and the column of IN-9L."""
ORDER = (
    *("mixed_next", "mixed_rand", "mixed_same", "no_fg", "only_bg_b", "only_bg_t", "only_fg"),
    *("original", IN9L),
)
"""Rows and columns, as in the paper's table 5; others come after them."""


@dataclasses.dataclass(frozen=True)
class MatrixPlan:
    """What to train and to test.

    Attributes:
      dataset: with the variants; results are written to it.
      in9l: dataset of IN-9L, None without.
      variants: to train and to test on, in the order of `ORDER`.
      train_split, split: to train and to test on; the same one with a holdout.
      holdout: what of `split` is left for the test.
      predict: how tests are run.
      seed: of training.
      allow_overlap: whether tests may hold images that were trained on.
    """

    dataset: Dataset
    in9l: Dataset | None
    variants: tuple[str, ...]
    train_split: str
    split: str
    holdout: Holdout
    predict: PredictConfig
    seed: int = 0
    allow_overlap: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Of rows and columns: the variants, and IN-9L."""
        return (*self.variants, *([IN9L] if self.in9l else []))

    def source(self, name: str) -> tuple[Dataset, str]:
        """The dataset and the variant behind a row's or a column's name."""
        if name == IN9L and self.in9l is not None:
            return self.in9l, "original"
        return self.dataset, name

    @property
    def is_published(self) -> bool:
        """Whether table 5 is of the same classes."""
        return self.dataset.manifest.taxonomy is None

    def suffix(self) -> str:
        """What of the plan results of a network are named after, so that they stand beside
        others."""
        parts = [self.train_split] if self.train_split != "train" else []
        if self.holdout.share:
            parts.append(f"holdout{self.holdout.share:g}")
        if self.seed:
            parts.append(f"seed{self.seed}")
        return "".join(f"-{part}" for part in parts)


@dataclasses.dataclass(frozen=True)
class Tested:
    """The images of a column.

    Attributes:
      name: of the column.
      dataset, variant: whose pictures.
      split: their split.
      units: key to unit, its group or itself, in the dataset's order.
      labels: key to label.
    """

    name: str
    dataset: Dataset
    variant: str
    split: str
    units: dict[str, str]
    labels: dict[str, int]


def tested(plan: MatrixPlan, name: str) -> Tested:
    """The images of a column: all of a split, or what a holdout leaves for the test."""
    dataset, variant = plan.source(name)
    rows = selected_rows(dataset, plan.split, plan.holdout)
    return Tested(
        name,
        dataset,
        variant,
        plan.split,
        {row["key"]: row.get("group") or row["key"] for row in rows},
        {row["key"]: row["label"] for row in rows},
    )


def make_plan(
    dataset: Dataset,
    in9l: Dataset | None,
    *,
    variants: Sequence[str] | None,
    train_split: str | None,
    split: str | None,
    share: float,
    predict: PredictConfig,
    seed: int = 0,
    allow_overlap: bool = False,
) -> MatrixPlan:
    """Checks what was asked for against what is there.

    Args:
      dataset, in9l: as the attributes of `MatrixPlan`.
      variants: names, all pictures if None.
      train_split, split: of the flags, None where they say nothing.
      share: that is held out.
      predict, seed, allow_overlap: as the attributes.

    Raises:
      UsageError: the first thing that does not fit.
    """
    there = dataset.picture_variants
    names = there if variants is None else tuple(variants)
    for name in names:
        if name not in there:
            raise UsageError(f"--variants {name}: the dataset has {', '.join(there) or 'none'}")
    ordered = sorted(dict.fromkeys(names), key=lambda name: (_place(name), there.index(name)))
    splits = dataset.manifest.config.split
    if not 0 <= share < 1:
        raise UsageError(f"--holdout must be a share from 0 to below 1: got {share:g}")
    tests = split or ("val" if "val" in splits else splits[0])
    trains = train_split or (tests if share else "train")
    if share and trains != tests:
        raise UsageError(
            f"--holdout divides one split, {tests}: leave --train_split {trains} out, or --holdout"
        )
    if trains not in splits and train_split is None:
        raise UsageError(
            f"the dataset has no split train, but {', '.join(splits)}: add --holdout 0.5, which "
            "trains on one half of the images and tests on the other, or make it with "
            "in9 generate --split train,val"
        )
    for opened in (dataset, in9l) if in9l else (dataset,):
        has = opened.manifest.config.split
        for flag, wanted in (("--train_split", trains), ("--eval_split", tests)):
            if wanted not in has:
                where = "the dataset" if opened is dataset else "--in9l"
                raise UsageError(f"{flag} {wanted}: {where} has {', '.join(has)}")
    if in9l and digest_of_classes(in9l.taxonomy) != digest_of_classes(dataset.taxonomy):
        raise UsageError("--in9l has other classes than --dataset")
    if in9l and "original" not in in9l.variants:
        raise UsageError("--in9l has no variant original")
    return MatrixPlan(
        dataset=dataset,
        in9l=in9l,
        variants=tuple(ordered),
        train_split=trains,
        split=tests,
        holdout=Holdout(share),
        predict=predict,
        seed=seed,
        allow_overlap=allow_overlap,
    )


def _place(name: str) -> int:
    return ORDER.index(name) if name in ORDER else len(ORDER)


def identity(plan: MatrixPlan) -> dict[str, Any]:
    """What a matrix says of how it was made; fit for JSON."""
    return {
        "dataset": plan.dataset.manifest.fingerprint,
        "in9l": plan.in9l.manifest.fingerprint if plan.in9l else None,
        "train_split": plan.train_split,
        "split": plan.split,
        "holdout": plan.holdout.share,
        "seed": plan.seed,
        **plan.predict.asked_for,
        "device": plan.predict.device,
    }
