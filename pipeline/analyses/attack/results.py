"""The grid of an attack, and results: predictions of its pairs, measures of these, and tables.

results/<model>/attack/<grid>/<split>-NNNNN.parquet         predictions of a chunk of foregrounds
results/<model>/attack/<grid>/<split>-backgrounds.parquet   backgrounds, in the order of predictions
results/<model>/attack.json                                 the last attack, and its measures
results/attack.csv, results/backgrounds.csv                 tables of all attacked models

<grid> consists of the numbers of foregrounds and backgrounds, such as 4050x4050 (with -early_stop
after an attack that stopped early), so that a small attack does not overwrite a large one.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, Self

import numpy as np
import pyarrow as pa
from msgspec import Meta, Struct

from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import Row
from pipeline.display.table import TIMES, aligned, percent_interval
from pipeline.errors import UsageError
from pipeline.evaluate.evidence import FULL_GRID
from pipeline.evaluate.families import named_subjects
from pipeline.evaluate.planned import Evaluation
from pipeline.evaluate.predictions import EvalImages, read_current_results
from pipeline.evaluate.results import (
    Label,
    PicturesResult,
    Table,
    failures_without_results,
    pick,
    read_failures,
)
from pipeline.storage.state_files import Name, RelativePath, read_table
from pipeline.storage.store import Store
from transforms.adversarial import Labels
from transforms.scoring import LABEL_RULES
from transforms.selection import sample_evenly
from transforms.variants import MASK, ONLY_BG_T, ORIGINAL, VariantName

ATTACK_VARIANTS = (ORIGINAL, MASK, ONLY_BG_T)
"""The variants that an attack reads."""

_CHUNK = 16
"""The most foregrounds in a chunk."""
_CHUNK_FORWARDS = 16_384
"""The most composites in a chunk without an early stop. A chunk has at least one
foreground, even if that alone makes more composites."""


@dataclasses.dataclass(frozen=True, eq=False)
class GridAxis:
    """The n foregrounds or backgrounds of a grid, in the order of the dataset.

    Attributes:
      keys: n keys of the images.
      labels: (n,) int64, labels of the images.
      wnids: n ids of the images' classes.
      shards: n numbers of the output shards that hold the images.
    """

    keys: tuple[str, ...]
    labels: Labels
    wnids: tuple[str, ...]
    shards: tuple[int, ...]

    @classmethod
    def from_rows(cls, dataset: Dataset, split: str, rows: Sequence[Row]) -> Self:
        """Makes an axis of images, given by their index rows in the order of the dataset."""
        return cls(
            keys=tuple(row["key"] for row in rows),
            labels=np.asarray([row["label"] for row in rows], np.int64),
            wnids=tuple(row["wnid"] for row in rows),
            shards=tuple(dataset.shard_of(split, row["key"]) for row in rows),
        )

    def __len__(self) -> int:
        return len(self.keys)

    def sample(self, count: int | None, purpose: str) -> Self:
        """Draws `count` images, or all for None, spread evenly over the classes.

        Draws for different purposes are independent.
        """
        if count is None or count >= len(self):
            return self
        kept = sample_evenly(self.keys, self.labels, count, seed=0, purpose=purpose)
        return self.take(np.flatnonzero(kept).tolist())

    def take(self, positions: Sequence[int]) -> Self:
        """Selects the images at these positions."""
        return type(self)(
            keys=tuple(self.keys[i] for i in positions),
            labels=self.labels[np.asarray(positions, np.int64)],
            wnids=tuple(self.wnids[i] for i in positions),
            shards=tuple(self.shards[i] for i in positions),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class AttackGrid:
    """All pairs of F foregrounds and B backgrounds, divided into chunks of foregrounds.

    Attributes:
      chunk_size: number of foregrounds in each chunk; the last chunk may have fewer. An attack that
        was interrupted goes on with the chunks that are not done.
      units: (F,) int64, number of each foreground's unit, as in `EvalImages.unit_numbers`:
        foregrounds of the same group have the same number.
    """

    foregrounds: GridAxis
    backgrounds: GridAxis
    is_full: bool
    chunk_size: int
    units: Labels

    @property
    def chunks(self) -> range:
        """Numbers of all chunks."""
        return range(-(-len(self.foregrounds) // self.chunk_size))

    def positions(self, chunk: int) -> range:
        """Returns the positions on the axis of the foregrounds of chunk number `chunk`."""
        first = chunk * self.chunk_size
        return range(len(self.foregrounds))[first : first + self.chunk_size]


def open_grid(
    dataset: Dataset,
    evaluation: Evaluation,
    foregrounds: int | None,
    backgrounds: int | None,
    early_stop: bool = False,
) -> AttackGrid:
    """Builds the grid of an attack; the other arguments are those of `PlannedAttack`.

    Images are sampled by a keyed hash of their keys, so datasets with the same images get the same
    grid. Raises UsageError if a variant is missing, or there are no images to test on.
    """
    check_variants(dataset.variants)
    split = evaluation.split
    images = GridAxis.from_rows(dataset, split, evaluation.rows(dataset))
    if not images:
        raise UsageError(f"the dataset has no images in {split}: there is nothing to attack")
    fg_axis = images.sample(foregrounds, "attack foreground")
    bg_axis = images.sample(backgrounds, "attack background")
    tested = EvalImages.read(dataset, split)
    positions = tested.positions(pa.array(fg_axis.keys))
    chunk_size = max(1, min(_CHUNK, _CHUNK_FORWARDS // len(bg_axis)))
    return AttackGrid(
        foregrounds=fg_axis,
        backgrounds=bg_axis,
        is_full=len(fg_axis) == len(bg_axis) == len(images),
        # With an early stop, only a few pairs of a chunk are tried, so that `_CHUNK_FORWARDS` is no
        # limit. Chunks are still small, because the attack learns from earlier chunks which
        # backgrounds to try first.
        chunk_size=_CHUNK if early_stop else chunk_size,
        units=tested.unit_numbers[positions],
    )


def check_variants(variants: Sequence[VariantName]) -> None:
    """Raises UsageError if a dataset with these variants cannot be attacked."""
    missing = [str(name) for name in ATTACK_VARIANTS if name not in variants]
    if missing:
        raise UsageError(
            f"an attack needs the variants {', '.join(map(str, ATTACK_VARIANTS))}, and the "
            f"dataset has no {', '.join(missing)}; generate it with them: see --variants"
        )


CHUNK_SCHEMA = pa.schema(
    [
        pa.field("fg_key", pa.string()),
        pa.field("label", pa.int64()),
        *(pa.field(rule, pa.list_(pa.int16())) for rule in LABEL_RULES),
        pa.field("device", pa.dictionary(pa.int32(), pa.string())),
    ]
)
"""Columns of a chunk's file, which has a row for each foreground. Each label rule has a column with
the predictions on all backgrounds: labels, -1 outside the taxonomy, null for pairs that an early
stop skipped. `device` is the type of the device that computed the predictions."""


class AccuracyByBackgrounds(Struct, frozen=True):
    """Expected challenge accuracy (0 to 1) against a number of backgrounds, drawn at random."""

    backgrounds: int
    accuracy: float


class FooledClass(Struct, frozen=True):
    """What the backgrounds of one class do.

    Attributes:
      foregrounds: number of foregrounds of other classes.
      fooled: share of these that one of the backgrounds fools (0 to 1).
    """

    label: Label
    class_name: str
    backgrounds: int
    foregrounds: int
    fooled: float


class StrongestBackground(Struct, frozen=True):
    """One of the strongest backgrounds of its class.

    Attributes:
      success: share of the foregrounds of other classes that it fools (0 to 1).
    """

    label: Label
    bg_key: str
    bg_wnid: str | None
    success: float
    foregrounds: int


class AttackMeasures(Struct, frozen=True):
    """The measures under one label rule: shares (0 to 1) with 95 % intervals.

    After an early stop, only challenge accuracy is known; all other measures are None or empty.
    """

    challenge_accuracy: float | None
    challenge_ci_low: float
    challenge_ci_high: float
    fooled: float | None
    fooled_ci_low: float | None
    fooled_ci_high: float | None
    accuracy_by_backgrounds: tuple[AccuracyByBackgrounds, ...]
    by_class: tuple[FooledClass, ...]
    strongest: tuple[StrongestBackground, ...]


_Rule = Literal["argmax_then_map", "mapped_only"]


class AttackResult(PicturesResult, frozen=True, kw_only=True):
    """attack.json: the last attack on a model; `forwards` counts the composites it classified."""

    split: Name
    foregrounds: int
    backgrounds: int
    full_grid: bool
    early_stop: bool
    forwards: int
    backgrounds_file: RelativePath
    rules: Annotated[dict[_Rule, AttackMeasures], Meta(min_length=1)]

    @property
    def label_rules(self) -> tuple[_Rule, ...]:
        """The label rules of its measures; the first is its headline."""
        return tuple(sorted(self.rules, key=list(LABEL_RULES).index))

    @property
    def measures(self) -> AttackMeasures:
        """The measures under its headline's label rule."""
        return self.rules[self.label_rules[0]]

    @property
    def size(self) -> str:
        """The numbers of foregrounds and backgrounds, as text."""
        return f"{self.foregrounds:,} {TIMES} {self.backgrounds:,}"

    @property
    def is_authors_grid(self) -> bool:
        """Whether it tried all pairs of foregrounds and backgrounds, as many as the authors did."""
        return self.full_grid and self.foregrounds == FULL_GRID


class AttackRow(Struct, frozen=True, kw_only=True):
    """A row of attack.csv: a model under one label rule, or a failed model, which has no measures.

    Shares have Wilson's 95 % intervals.
    """

    model: str
    label_rule: str | None = None
    challenge_accuracy: Annotated[
        float | None,
        Meta(
            description="share of foregrounds that are classified correctly on every background, "
            "including backgrounds of their own class"
        ),
    ] = None
    challenge_ci_low: Annotated[
        float | None, Meta(description="lower end of the 95 % interval of `challenge_accuracy`")
    ] = None
    challenge_ci_high: Annotated[
        float | None, Meta(description="upper end of the 95 % interval of `challenge_accuracy`")
    ] = None
    fooled: Annotated[
        float | None,
        Meta(
            description="share of foregrounds that some background of another class makes the "
            "model classify as that class: the paper's measure; empty with "
            "`--early_stop`"
        ),
    ] = None
    fooled_ci_low: Annotated[
        float | None, Meta(description="lower end of the 95 % interval of `fooled`")
    ] = None
    fooled_ci_high: Annotated[
        float | None, Meta(description="upper end of the 95 % interval of `fooled`")
    ] = None
    foregrounds: Annotated[int | None, Meta(description="number of foregrounds in the grid")] = None
    backgrounds: Annotated[int | None, Meta(description="number of backgrounds in the grid")] = None
    full_grid: Annotated[
        bool | None,
        Meta(description="whether the grid held all foregrounds and backgrounds of the dataset"),
    ] = None
    early_stop: Annotated[
        bool | None,
        Meta(
            description="`--early_stop`: whether a foreground's other backgrounds were skipped "
            "once one had fooled the model"
        ),
    ] = None
    forwards: Annotated[
        int | None, Meta(description="number of composites that the model classified")
    ] = None
    split: str
    precision: str
    device: str | None = None
    weights_sha256: str | None = None
    dataset: str
    error: str | None = None


class BackgroundRow(Struct, frozen=True, kw_only=True):
    """A row of backgrounds.csv: what a background does to a model under one label rule.

    There is no row without foregrounds of other classes, of which `success` is the share that the
    model takes for the background's class.
    """

    model: str
    label_rule: str
    bg_key: Annotated[str, Meta(description="key of the background's image")]
    bg_label: int
    bg_wnid: str
    success: Annotated[
        float,
        Meta(description="share of `foregrounds` that are classified as the background's class"),
    ]
    foregrounds: Annotated[
        int, Meta(description="number of foregrounds of other classes that it was tried with")
    ]


ATTACK_TABLE = Table(
    "attack",
    (AttackRow,),
    "a model under attack by adversarial backgrounds, by both measures",
)
BACKGROUNDS_TABLE = Table("backgrounds", (BackgroundRow,), "effect of one background on a model")


def read_attacks(dataset: Dataset) -> tuple[list[AttackResult], list[str]]:
    """Reads the attack.json of every model, in order of the models' folders.

    Models that were attacked on other than the present pictures are returned apart, by name.
    """
    return read_current_results(dataset, "attack", AttackResult, lambda _: ATTACK_VARIANTS)


def write_attack_tables(dataset: Dataset) -> None:
    """Rebuilds both tables if a model was ever attacked; the caller must hold the tables' lock."""
    store, fingerprint = dataset.store, dataset.manifest.fingerprint
    attacks, stale = read_attacks(dataset)
    failed, failed_before = read_failures(store, fingerprint, "attack")
    if not (attacks or failed or stale or failed_before) and not store.exists("results/attack.csv"):
        return
    rows = [
        pick(
            AttackRow,
            measures,
            attack,
            attack.evaluation,
            model=attack.title,
            label_rule=rule,
            dataset=fingerprint,
        )
        for attack in attacks
        for rule, measures in attack.rules.items()
    ]
    rows += [
        pick(AttackRow, failure, failure.evaluation)
        for failure in failures_without_results(failed, attacks)
    ]
    ATTACK_TABLE.write(store, ([row] for row in rows))
    BACKGROUNDS_TABLE.write(store, ([row] for row in _background_rows(store, attacks)))


def _background_rows(store: Store, attacks: Sequence[AttackResult]) -> Iterator[BackgroundRow]:
    for attack in attacks:
        file = attack.backgrounds_file
        backgrounds = read_table(store, file).to_pylist() if store.exists(file) else []
        for rule in attack.rules:
            for row in backgrounds:
                if row[rule] is not None and row["foregrounds"]:
                    yield BackgroundRow(
                        model=attack.title,
                        label_rule=rule,
                        bg_key=row["bg_key"],
                        bg_label=row["bg_label"],
                        bg_wnid=row["bg_wnid"],
                        success=row[rule] / row["foregrounds"],
                        foregrounds=row["foregrounds"],
                    )


def describe_families(attacks: Sequence[AttackResult]) -> Iterator[str]:
    """Yields a line on each family whose trainings were attacked on one grid: mean and range."""
    for name, seeds in named_subjects(attacks).items():
        if len(seeds) > 1 and len({(one.size, one.early_stop) for one in seeds}) == 1:
            measures = {
                "challenge accuracy": [one.measures.challenge_accuracy for one in seeds],
                "fooled": [one.measures.fooled for one in seeds],
            }
            parts = [
                f"{what} {100 * np.mean(shares):.1f} % ({100 * min(shares):.1f} to "
                f"{100 * max(shares):.1f})"
                for what, values in measures.items()
                if (shares := [one for one in values if one is not None])
            ]
            yield f"{name}, mean of {len(seeds)} trainings (range): {', '.join(parts)}"


def attack_table(attacks: Sequence[AttackResult]) -> str:
    """Formats models' measures in percent, by the headline's label rule, with the grid's size."""
    heads = ["adversarial backgrounds, %", "challenge accuracy", "fooled", "grid", "forwards"]
    rows = (
        [
            attack.name,
            percent_interval(one.challenge_accuracy, one.challenge_ci_low, one.challenge_ci_high),
            percent_interval(one.fooled, one.fooled_ci_low, one.fooled_ci_high),
            f"{attack.foregrounds} x {attack.backgrounds}",
            str(attack.forwards),
        ]
        for attack, one in ((attack, attack.measures) for attack in attacks)
    )
    return aligned([heads, *rows])
