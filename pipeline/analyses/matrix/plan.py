"""The plan of a matrix: the variants to train and to test on, and the settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from pipeline.dataset.folder import Dataset, Holdout
from pipeline.errors import UsageError, did_you_mean
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.published import TABLE_5_NAMES
from pipeline.models.checkpoint import digest_of_classes
from pipeline.models.identity import PredictConfig
from pipeline.runtime.progress import Progress
from transforms.variants import base_of

IN9L = "in9l"
"""Name of IN-9L as a row and as a column. IN-9L is the dataset of all images of the classes, with
or without boxes."""


@dataclasses.dataclass(frozen=True)
class MatrixPlan:
    """The settings of a matrix.

    Attributes:
      dataset: the dataset with the variants; results are written to its folder.
      in9l: the dataset of IN-9L; None to leave out its row and its column.
      variants: names of the variants to train and to test on, in the order of `sort_names`.
      train_split, split: splits to train and to test on; with a holdout, both are the same split.
      holdout: the part of the images that models are tested on, and not trained on; its share is 0
        if `train_split` is another split.
      predict: settings to run models with in the tests, and to compute the features of probes.
      seed: seed of the training.
      allow_overlap: whether a model may be tested on images that it was trained on.
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
        """Names of rows and columns: the variants, and IN-9L if the plan has its dataset."""
        return (*self.variants, *([IN9L] if self.in9l else []))

    def source(self, name: str) -> tuple[Dataset, str]:
        """Returns the dataset and the variant that a row or a column stands for."""
        if name == IN9L and self.in9l is not None:
            return self.in9l, "original"
        return self.dataset, name

    @property
    def evaluation(self) -> Evaluation:
        """Settings of the tests as an `Evaluation`, which lists no models."""
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
        """Returns a suffix for matrices' names, made of training settings that are not the default.

        With it, matrices of models that were trained differently lie side by side.
        """
        parts = [self.train_split] if self.train_split != "train" else []
        parts += [f"holdout{self.holdout.share:g}"] if self.holdout.share else []
        parts += [f"seed{self.seed}"] if self.seed else []
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
    """Makes a plan from flags, and checks it against the dataset.

    Args:
      dataset: as the attribute of `MatrixPlan`.
      in9l: as the attribute of `MatrixPlan`.
      variants: names of variants; None for all variants that are pictures, without renderings.
      train_split: value of `--train_split`; None for the default.
      split: value of `--eval_split`; None for the default.
      share: share of the images that are held out to test on (0 to below 1); 0 to train and to test
        on all images.
      predict: as the attribute of `MatrixPlan`.
      seed: as the attribute of `MatrixPlan`.
      allow_overlap: as the attribute of `MatrixPlan`.

    Raises:
      UsageError: a flag does not fit the dataset.
    """
    existing = dataset.picture_variants
    names = tuple(
        variants
        if variants is not None
        else [name for name in existing if base_of(name) == name] or existing
    )
    for name in names:
        if name not in existing:
            raise UsageError(
                f"--variants {name}: the dataset has {', '.join(existing) or 'none'}"
                f"{did_you_mean(name, existing)}"
            )
    splits = dataset.manifest.config.split
    if not 0 <= share < 1:
        raise UsageError(f"--holdout must be a fraction, at least 0 and less than 1: got {share:g}")
    test_split = split or ("val" if "val" in splits else splits[0])
    trained_split = train_split or (test_split if share else "train")
    if share and trained_split != test_split:
        raise UsageError(
            f"--holdout divides one split, {test_split}: leave out --train_split {trained_split}, "
            "or --holdout"
        )
    if trained_split not in splits and train_split is None:
        raise UsageError(
            f"the dataset has no split train, but {', '.join(splits)}: add --holdout 0.5, which "
            "trains on one half of the images and tests on the other, or make it with "
            "in9 generate --split train,val"
        )
    for opened in (dataset, in9l) if in9l else (dataset,):
        available = opened.manifest.config.split
        for flag, name in (("--train_split", trained_split), ("--eval_split", test_split)):
            if name not in available:
                owner = "the dataset" if opened is dataset else "--in9l"
                raise UsageError(f"{flag} {name}: {owner} has {', '.join(available)}")
    # Refused here, and not only once the first row has been trained, which may take days.
    if trained_split == test_split and not share and not allow_overlap:
        raise UsageError(
            f"all images of {test_split} would be both trained on and tested on; divide the split "
            "with --holdout 0.5, or add --allow_overlap to test on them and mark the result"
        )
    if in9l and digest_of_classes(in9l.taxonomy) != digest_of_classes(dataset.taxonomy):
        raise UsageError("--in9l has other classes than --dataset")
    if in9l and "original" not in in9l.variants:
        raise UsageError("--in9l has no variant original")
    return MatrixPlan(
        dataset=dataset,
        in9l=in9l,
        variants=sort_names(dataset, names),
        train_split=trained_split,
        split=test_split,
        holdout=Holdout(share),
        predict=predict,
        seed=seed,
        allow_overlap=allow_overlap,
    )


def sort_names(dataset: Dataset, names: Collection[str]) -> tuple[str, ...]:
    """Sorts the names of rows or columns as in the paper's table 5; drops duplicates.

    Other names follow in the order of the dataset's variants.
    """
    order = list(dict.fromkeys((*TABLE_5_NAMES, *dataset.variants, *sorted(names))))
    return tuple(sorted(set(names), key=order.index))
