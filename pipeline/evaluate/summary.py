"""Types of what is known of a model's predictions, and the tables that they make.

A `Summary` holds the rows of all tables for one model; a table has those of all models.
Accuracies, shares and bounds are fractions (0 to 1), gaps and differences lie between -1 and 1;
intervals are 95 % intervals. What models were trained on is known as far as checkpoints or names
tell.
"""

from collections.abc import Container, Iterable, Iterator
from typing import Annotated, ClassVar, TypeVar

from msgspec import UNSET, Meta, Struct, UnsetType
from typing_extensions import override

from pipeline.evaluate.results import (
    ModelRun,
    OfModel,
    RunColumns,
    RunSettings,
    Table,
    pick,
)
from pipeline.storage.state_files import Name
from transforms.intervals import Estimate
from transforms.scoring import ALL_RULES, LABEL_RULES, AnswerKind
from transforms.variants import BG_GAP


class RuleRow(Struct, frozen=True, kw_only=True):
    """A row of a model's statistics under one label rule."""

    label_rule: str


class VariantRow(RuleRow, frozen=True, kw_only=True):
    """A row under one label rule, on one variant, whose draws are pooled."""

    variant: str


class Accuracy(Struct, frozen=True, kw_only=True):
    """An accuracy with its interval; without pictures, it is None and the interval is (0, 1)."""

    n: int
    pictures: int
    correct: int
    accuracy: float | None
    ci_low: float
    ci_high: float


class AccuracyRow(VariantRow, frozen=True, kw_only=True):
    """Accuracy on a variant."""

    n: int
    pictures: int
    correct: int
    accuracy: float | None
    ci_low: float
    ci_high: float
    chance: float | None
    replicates: int
    seed_sd: float | None
    class_mean_accuracy: Annotated[
        float | None, Meta(description="mean of the accuracies on each class")
    ]
    outside: int
    among_best: Annotated[
        bool | None,
        Meta(
            description="whether it cannot be told from the highest accuracy (`p_adjusted` in "
            "`comparisons` is at least 0.05); empty for a single model, for seeds of a family, and "
            "on `only_bg_b`, `only_bg_t` and `no_fg`"
        ),
    ] = None

    @property
    def estimate(self) -> Estimate | None:
        """The accuracy and its interval; None without pictures."""
        return None if self.accuracy is None else (self.accuracy, self.ci_low, self.ci_high)


class GapRow(VariantRow, frozen=True, kw_only=True):
    """BG-Gap, or `bg_gap_X`, of which `X_same` and `X_rand` stand for the mixed variants."""

    gap: Annotated[float, Meta(description="accuracy on `mixed_same` - accuracy on `mixed_rand`")]
    ci_low: float
    ci_high: float
    n: int
    mixed_same: Annotated[
        float, Meta(description="accuracy on `mixed_same`, averaged over its draws")
    ]
    mixed_rand: Annotated[
        float, Meta(description="accuracy on `mixed_rand`, averaged over its draws")
    ]
    replicates: int
    seed_sd: float | None
    units: float
    smallest_gap: Annotated[
        float, Meta(description="smallest gap that as many images can detect (80 % power)")
    ]

    @property
    def estimate(self) -> Estimate:
        return self.gap, self.ci_low, self.ci_high


class FlipRow(RuleRow, frozen=True, kw_only=True):
    """How often the background alone changes an answer."""

    variant: Annotated[str, Meta(description="variant of one picture of each pair")]
    other_variant: Annotated[
        str,
        Meta(description="variant of the other picture; the same variant means another draw of it"),
    ]
    flip_rate: Annotated[
        float,
        Meta(
            description="share of picture pairs that get different predictions, where a pair is "
            "one foreground on backgrounds of two different units; averaged over foregrounds"
        ),
    ]
    ci_low: float
    ci_high: float
    n: Annotated[int, Meta(description="number of foregrounds with at least one such pair")]
    pairs: Annotated[int, Meta(description="number of picture pairs")]
    replicates: int
    units: float


class SensitivityRow(RuleRow, frozen=True, kw_only=True):
    """Relative foreground sensitivity."""

    rfs: Annotated[
        float | None,
        Meta(
            description="relative foreground sensitivity, from -1 to 1: above 0 if noise on the "
            "foreground costs more accuracy than noise on the background; empty, like its "
            "interval, if all predictions on both are correct, or none is"
        ),
    ]
    ci_low: float | None
    ci_high: float | None
    n: int
    noise_fg: Annotated[float, Meta(description="accuracy on `noise_fg`")]
    noise_bg: Annotated[float, Meta(description="accuracy on `noise_bg`")]
    units: float


class ClassRow(VariantRow, frozen=True, kw_only=True):
    """Accuracy on the images of one class."""

    label: int
    class_name: Annotated[str, Meta(description="name of the true class")]
    n: int
    pictures: int
    correct: int
    accuracy: float
    ci_low: float
    ci_high: float
    p_adjusted: Annotated[
        float | None,
        Meta(
            description="p value of the difference to the accuracy on all other classes, with "
            "Benjamini-Hochberg's adjustment for the classes of this model, label rule and "
            "variant; empty with a single class"
        ),
    ]
    outside: int


class ConfusionRow(VariantRow, frozen=True, kw_only=True):
    """Number of pictures by label and prediction."""

    label: int
    prediction: int
    pictures: Annotated[
        int,
        Meta(description="number of pictures with this label and prediction, in all draws"),
    ]


class DecompositionRow(RuleRow, frozen=True, kw_only=True):
    """Share of images of one kind."""

    kind: Annotated[
        str,
        Meta(
            description="kind of images, by whether `original`, `mixed_rand` (its first draw) and "
            "`only_bg_t` are classified right: `bg_required` right, wrong, right; `bg_fools` "
            "wrong, right, wrong; `bg_fg_required` right, wrong, wrong; `bg_fg_fools` wrong, "
            "right, right; `right_on_both` and `wrong_on_both` the first two (together they are "
            "the paper's 'BG irrelevant')"
        ),
    ]
    n: int
    images: int
    share: Annotated[float, Meta(description="n / images")]
    ci_low: float
    ci_high: float


class GroupRow(VariantRow, frozen=True, kw_only=True):
    """Accuracy on foregrounds of one class on backgrounds of one class."""

    label: int
    bg_label: int
    n: int
    pictures: int
    correct: int
    accuracy: float
    ci_low: float
    ci_high: float
    is_worst: Annotated[
        bool,
        Meta(
            description="whether this is the worst pairing of the variant: the one with the lowest "
            "`ci_high`"
        ),
    ]
    worst_ci_low: Annotated[
        float | None,
        Meta(
            description="lower end of the worst pairing's interval at the level 1 - 0.05 / "
            "pairings, because it was chosen among that many; empty for other pairings"
        ),
    ]
    worst_ci_high: Annotated[
        float | None,
        Meta(description="upper end of the interval that `worst_ci_low` begins"),
    ]


class SizeRow(VariantRow, frozen=True, kw_only=True):
    """Accuracy on images whose foreground has a size within a range."""

    bucket: Annotated[
        str, Meta(description="range of the foreground's share of the picture, as text")
    ]
    fg_low: Annotated[float, Meta(description="lower end of the bucket, inclusive")]
    fg_high: Annotated[float, Meta(description="upper end of the bucket, exclusive except for 1")]
    n: int
    pictures: int
    correct: int
    accuracy: float | None
    ci_low: float
    ci_high: float


class PowerRow(Struct, frozen=True, kw_only=True):
    """Whether a probe can tell the class from a model's outputs on backgrounds."""

    variant: Annotated[str, Meta(description="always `only_bg_t`")]
    images: int
    units: int
    accuracy: Annotated[
        float, Meta(description="accuracy of the probe on images that it was not fitted to")
    ]
    ci_low: float
    ci_high: float
    chance: float
    has_power: Annotated[bool, Meta(description="whether the whole interval lies above chance")]


class StoredPower(PowerRow, frozen=True, kw_only=True):
    """A row of power as it is stored."""

    fingerprint: str


class MatrixRow(Struct, frozen=True, kw_only=True):
    """The row of a matrix that a model is, named after the variant that it was trained on.

    Attributes:
      name: name of the matrix of this seed.
      settings: fingerprint of the matrix without its seed; unset for a probe, which has none.
    """

    name: Name
    row: str
    arch: str
    settings: str | UnsetType = UNSET


class Evaluated(ModelRun, frozen=True, kw_only=True):
    """model.json: a model whose predictions all exist.

    Attributes:
      power: the rows of its power, which take long to compute.
      groups: group of each image that has one, by key, if it was tested on another dataset.
    """

    entry: str
    predictions: str
    power: tuple[StoredPower, ...]
    libraries: dict[str, str]
    matrix: MatrixRow | UnsetType = UNSET
    groups: dict[str, str] | UnsetType = UNSET


_Row = TypeVar("_Row", bound=RuleRow)


class Summary(ModelRun, frozen=True, kw_only=True):
    """All statistics of a model's valid predictions on a dataset.

    The page is about the models that have one: it orders them by it, and suggests commands for
    them.

    Attributes:
      label_rules: the rules by which the answers are labelled; the first is the headline's.
      gaps and those after it: the rows of the tables of these names; `accuracy`: of `summary`.
      is_family, no_interval: see `pipeline.evaluate.families.Family`.
    """

    is_family: ClassVar[bool] = False
    no_interval: ClassVar[str] = ""

    entry: str
    libraries: dict[str, str]
    dataset: str
    label_rules: tuple[str, ...]
    missing: tuple[str, ...]
    unanswered: int
    accuracy: tuple[AccuracyRow, ...] = ()
    gaps: tuple[GapRow, ...] = ()
    flips: tuple[FlipRow, ...] = ()
    rfs: tuple[SensitivityRow, ...] = ()
    per_class: tuple[ClassRow, ...] = ()
    confusion: tuple[ConfusionRow, ...] = ()
    decomposition: tuple[DecompositionRow, ...] = ()
    groups: tuple[GroupRow, ...] = ()
    sizes: tuple[SizeRow, ...] = ()
    power: tuple[StoredPower, ...] = ()

    @property
    def members(self) -> tuple["Summary"]:
        """The model itself, as a family has several."""
        return (self,)

    def is_of(self, entries: Container[str], settings: RunSettings) -> bool:
        """Returns whether it is of one of the entries, and was made with these settings."""
        return self.entry in entries and pick(RunSettings, self.evaluation) == settings

    @property
    @override
    def title(self) -> str:
        """Also says how many answers are missing, because all figures depend on it."""
        note = f" ({self.unanswered} missing answers count as wrong)" if self.unanswered else ""
        return super().title + note

    @property
    def headline(self) -> str:
        """The label rule of its headline figures."""
        return self.label_rules[0]

    def by_rule(self, rows: tuple[_Row, ...], rule: str = "") -> Iterator[_Row]:
        """Yields the rows of a table under one label rule, by default the headline's."""
        return (row for row in rows if row.label_rule == (rule or self.headline))

    def accuracy_on(self, variant: str, rule: str = "") -> AccuracyRow | None:
        """Returns a variant's row, by default of the headline's rule; None if not tested."""
        rows = self.by_rule(self.accuracy, rule)
        return next((row for row in rows if row.variant == variant and row.n), None)

    def estimate(self, variant: str) -> Estimate | None:
        """Returns a variant's accuracy by the headline's rule; None if not tested."""
        row = self.accuracy_on(variant)
        return row.estimate if row else None

    def gap(self, rule: str = "") -> GapRow | None:
        """Returns the row of BG-Gap, by default under the headline's rule; None without one."""
        rows = self.by_rule(self.gaps, rule)
        return next((row for row in rows if row.variant == BG_GAP), None)


def rules_of(summaries: Iterable[Summary]) -> tuple[str, ...]:
    """Returns models' label rules, in the order of `ALL_RULES`; without models, those of logits."""
    known = {rule for summary in summaries for rule in summary.label_rules} or set(LABEL_RULES)
    return tuple(rule for rule in ALL_RULES if rule in known)


_ANSWERS: dict[AnswerKind, str] = {
    "scores": "scores of outputs",
    "output": "single outputs without scores",
    "label": "superclasses",
}


def without_rule(summaries: Iterable[Summary], rule: str) -> str:
    """Names the models without figures by a label rule, and says why; "" if all have some."""
    return "; ".join(
        f"{one.name}, whose answers are {_ANSWERS[one.answers]}"
        for one in summaries
        if rule not in one.label_rules
    )


class SummaryRun(Struct, frozen=True, kw_only=True):
    """The last columns of summary.csv, which also has rows of models that failed."""

    split: str
    input_size: int | None = None
    eval_input: str
    precision: str
    device: str | None = None
    weights_sha256: str | None = None
    dataset: str
    holdout: float
    overlap: int | None = None
    error: str | None = None


TABLES = tuple(
    Table(name, (OfModel, row, SummaryRun if name == "summary" else RunColumns), description)
    for name, row, description in (
        (
            "summary",
            AccuracyRow,
            "accuracy of a model on a variant, or a model that failed",
        ),
        (
            "gaps",
            GapRow,
            "BG-Gap of a model, with its two-way interval: [intervals](results.md#intervals)",
        ),
        (
            "flips",
            FlipRow,
            "how often the prediction for a foreground changes with the background alone: "
            "[flip rate](results.md#flip-rate)",
        ),
        (
            "rfs",
            SensitivityRow,
            "relative foreground sensitivity of a model, if the dataset has both variants with "
            "noise: [how it is defined](results.md#relative-foreground-sensitivity)",
        ),
        (
            "per_class",
            ClassRow,
            "accuracy on the images of one class, and whether it differs from that on the others",
        ),
        (
            "confusion",
            ConfusionRow,
            "number of pictures by label and prediction; pairs that never occurred are left out",
        ),
        (
            "decomposition",
            DecompositionRow,
            "share of images that need the background, or are misled by it",
        ),
        ("groups", GroupRow, "accuracy by pairing: foregrounds of one class on backgrounds of one"),
        (
            "sizes",
            SizeRow,
            "accuracy on images whose foreground covers a share of the picture within a range",
        ),
        (
            "power",
            PowerRow,
            "whether the class can be told from a model's outputs on pictures of backgrounds, with "
            "the interval of a bootstrap over units: [power](results.md#power)",
        ),
    )
)
