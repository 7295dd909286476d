"""What the matrix is of: which variants to train on and to test on, and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from pipeline.dataset.folder import Dataset
from pipeline.dataset.holdout import Holdout
from pipeline.errors import UsageError
from pipeline.evaluate.evaluation import Evaluation
from pipeline.models.checkpoint import digest_of_classes
from pipeline.models.predict_config import PredictConfig
from pipeline.runtime.progress import Progress

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
    def evaluation(self) -> Evaluation:
        """How tests are run."""
        store = self.dataset.store
        return Evaluation(
            store=store,
            models=(),
            split=self.split,
            predict=self.predict,
            progress=Progress.for_store(store),
            holdout=self.holdout.share,
            allow_overlap=self.allow_overlap,
        )

    def suffix(self) -> str:
        """What of the plan results of a network are named after, so that they stand beside
        others."""
        parts = [self.train_split] if self.train_split != "train" else []
        if self.holdout.share:
            parts.append(f"holdout{self.holdout.share:g}")
        if self.seed:
            parts.append(f"seed{self.seed}")
        return "".join(f"-{part}" for part in parts)


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
        variants=sort_names(dataset, names),
        train_split=trains,
        split=tests,
        holdout=Holdout(share),
        predict=predict,
        seed=seed,
        allow_overlap=allow_overlap,
    )


def sort_names(dataset: Dataset, names: Collection[str]) -> tuple[str, ...]:
    """Names of rows or columns, each once: as in table 5, then as in the dataset."""
    order = list(dict.fromkeys((*ORDER, *dataset.variants, *sorted(names))))
    return tuple(sorted(set(names), key=order.index))
