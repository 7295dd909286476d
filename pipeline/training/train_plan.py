"""The plan of a training: settings, splits and pictures, and the penalties of a linear probe."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import IO

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.folder import Dataset, selected_rows, training_pictures
from pipeline.errors import BrokenPictureError, JobError, UsageError, did_you_mean
from transforms.codec import UndecodableError, decode_image
from transforms.variants import VariantName

PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Penalties to try, strongest first. Each is the `penalty` of `probe_fit.fit_probes`: a factor of
half the sum of the squared weights, for standardised features."""


def describe_penalty(penalty: float) -> str:
    """Formats a penalty, and says so if it is the first or last of `PENALTIES`.

    A penalty beyond that end might fit better.

    >>> describe_penalty(0.1), describe_penalty(10.0)
    ('0.1', '10 (the strongest that is tried)')
    """
    ends = {
        PENALTIES[0]: " (the strongest that is tried)",
        PENALTIES[-1]: " (the weakest that is tried)",
    }
    return f"{penalty:g}{ends.get(penalty, '')}"


_MACHINE_FIELDS = ("device", "workers", "weights")
"""Fields that may differ when a training is resumed, for example on another machine."""


@dataclasses.dataclass(eq=False)
class Samples:
    """Pictures in a fixed order, (n,) keys and labels, which can be read while `fetched` is active.

    `pictures` maps the key of each image to the variant to use. Raises UsageError if there are
    none.
    """

    dataset: Dataset
    split: str
    pictures: Mapping[str, VariantName]

    def __post_init__(self) -> None:
        if not self.pictures:
            raise UsageError(f"no images of {self.split} are left to train on, or to validate on")
        label_of = {row["key"]: row["label"] for row in selected_rows(self.dataset, self.split)}
        # Workers read arrays, not lists of objects, because counting the references of objects
        # would copy their memory pages into every forked process.
        self.keys = np.asarray(list(self.pictures), np.str_)
        self.labels = np.asarray([label_of[key] for key in self.pictures], np.int64)

    def __len__(self) -> int:
        return len(self.keys)

    @contextlib.contextmanager
    def fetched(self) -> Iterator[None]:
        """Copies the encoded pictures to a temporary file, which exists while the block runs.

        Raises JobError if a shard cannot be read or contradicts the index, or the disk has no room
        for the file.
        """
        with tempfile.TemporaryFile(buffering=0, prefix="in9-") as file:
            try:
                # Closing `buffered` writes the last bytes, for which the disk may have no room
                # either. So it is closed inside the `try`.
                with open(file.fileno(), "wb", closefd=False) as buffered:
                    spans = self._copy(buffered)
            except OSError as error:
                raise JobError(
                    f"the pictures to train on do not fit into {tempfile.gettempdir()} ({error}): "
                    "free some space, or set TMPDIR to a folder with more"
                ) from error
            missing = next((key for key in self.pictures if key not in spans), None)
            if missing is not None:
                raise JobError(
                    f"the shards of {self.split} have no picture of {missing}; see: in9 verify"
                )
            self._spans = np.asarray([spans[key] for key in self.pictures], np.int64)
            self._file = file.fileno()
            yield

    def pixels(self, indices: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """Yields decoded pictures, (S, S, 3) uint8 RGB each, in the order of `indices`.

        Raises BrokenPictureError if a picture cannot be decoded.
        """
        for index in indices:
            offset, length = self._spans[index]
            try:
                yield decode_image(os.pread(self._file, length, offset))
            except UndecodableError as error:
                raise BrokenPictureError(str(self.keys[index]), error) from error

    def _copy(self, file: IO[bytes]) -> dict[str, tuple[int, int]]:
        """Writes the pictures shard by shard; returns the (offset, length) of each key."""
        spans = {}
        offset = 0
        for variant in sorted(set(self.pictures.values()), key=str):
            for shard in self.dataset.shards(self.split):
                for sample in self.dataset.samples(self.split, shard, variant):
                    if self.pictures.get(sample.key) == variant:
                        spans[sample.key] = (offset, file.write(sample.image))
                        offset += len(sample.image)
        return spans


class TrainingFlags(msgspec.Struct, frozen=True, kw_only=True):
    """Flags that `in9 train` and `in9 matrix` share; the latter lacks those with a default."""

    variant: str = "original"
    pretrained: bool
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float = 1e-4
    seeds: tuple[int, ...]
    holdout: float
    precision: str
    device: str
    workers: int | None
    weights: str | None


@dataclasses.dataclass(frozen=True)
class TrainPlan:
    """Settings of one training. Each field has the name of its flag.

    Attributes:
      arch: timm's name of the architecture, with or without the tag of its weights.
      epochs, batch_size, lr, weight_decay: parameters of SGD. `lr` is the learning rate of the
        first epoch; it is divided by 10 after each quarter of the epochs.
      seed: seed of the random weights, the order of the pictures, augmentation and dropout.
      eval_split: split to validate on, None for no validation.
      holdout: share of `train_split` that is held out for validation.
      precision: `fp32` (TF32 off), `tf32`, or autocast to `bf16` or `fp16`.
      device: `cpu` or `cuda`.
      workers: number of processes that load pictures, 0 to load in the main process.

    Raises:
      UsageError: a value is out of range that its flag does not refuse; the message names it.
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
            ("lr", self.lr > 0, "above 0"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("workers", self.workers >= 0, "at least 0"),
        ):
            if not fits:
                raise UsageError(f"--{flag} must be {expected}: got {getattr(self, flag)}")

    @property
    def name(self) -> str:
        """Default name of the output folder."""
        parts = [self.arch, self.variant.replace(":", "_"), f"{self.epochs}ep"]
        parts += ["pretrained"] if self.pretrained else []
        parts += [f"holdout{self.holdout:g}"] if self.holdout else []
        return "-".join([*parts, f"seed{self.seed}"])

    def identity(self, dataset: Dataset) -> dict[str, object]:
        """Returns what decides weights on a machine: dataset and settings, JSON-serialisable."""
        fields = dataclasses.asdict(self).items()
        kept = {name: value for name, value in fields if name not in _MACHINE_FIELDS}
        return {**kept, "dataset": dataset.manifest.fingerprint}


def check_variant(dataset: Dataset, variant: str) -> None:
    """Raises UsageError if a dataset has no pictures of a variant."""
    pictures = list(map(str, dataset.picture_variants))
    if variant not in pictures:
        raise UsageError(
            f"--variant {variant}: the dataset has {', '.join(pictures) or 'no pictures'}"
            f"{did_you_mean(variant, pictures)}"
        )


def find_samples(dataset: Dataset, plan: TrainPlan) -> tuple[Samples, Samples | None]:
    """Returns the pictures to train on, and the pictures to validate on (None without validation).

    Raises:
      UsageError: the dataset does not have the variant, or no pictures are left to train on or to
        validate on.
      JobError: the index is damaged or has changed.
    """
    check_variant(dataset, plan.variant)
    training = Samples(
        dataset,
        plan.train_split,
        training_pictures(dataset, plan.train_split, plan.variant, plan.holdout),
    )
    eval_split = plan.train_split if plan.holdout else plan.eval_split
    if eval_split is None:
        return training, None
    pictures = dict.fromkeys(
        (row["key"] for row in selected_rows(dataset, eval_split, plan.holdout)),
        VariantName.parse(plan.variant),
    )
    return training, Samples(dataset, eval_split, pictures)


def choose_splits(
    dataset: Dataset, train_split: str | None, eval_split: str | None, holdout: float
) -> tuple[str, str | None]:
    """Chooses (train_split, eval_split), two different splits, by the values of the flags.

    `eval_split` is None with `--holdout`, or if the dataset has no split for validation. Raises
    UsageError if the dataset does not have the splits, or the flags contradict each other.
    """
    splits = dataset.manifest.config.split
    for flag, name in (("train_split", train_split), ("eval_split", eval_split)):
        if name is not None and name not in splits:
            raise UsageError(f"--{flag} {name}: the dataset has {', '.join(splits)}")
    if train_split is None and "train" not in splits and not holdout:
        raise UsageError(
            f"the dataset has no split train, but {', '.join(splits)}: generate one with it "
            "(in9 generate --split train,val), or train on a part of a split with --holdout 0.5"
        )
    chosen = train_split or ("train" if "train" in splits else splits[0])
    if holdout:
        if eval_split not in (None, chosen):
            raise UsageError(
                f"with --holdout, validation uses the held-out part of {chosen}; leave "
                f"--eval_split {eval_split} out"
            )
        return chosen, None
    if eval_split == chosen:
        raise UsageError(
            f"--eval_split {eval_split} is the split to train on; name another one, or hold out a "
            "part of it with --holdout 0.5"
        )
    return chosen, eval_split or ("val" if "val" in splits and chosen != "val" else None)
