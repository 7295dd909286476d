"""Results of the method: BG-Gap in each rendering.

results/<model>/method/<split>-NNNNN.parquet   predictions in all renderings
results/<model>/method.json                    the model, and its rows
results/method.csv, results/latex/method.tex   tables of all models
"""

from typing import Annotated

from msgspec import Meta, Struct

from pipeline.dataset.folder import Dataset
from pipeline.display.panel import Estimate, estimate_of
from pipeline.display.table import Cell, OfModel, RunColumns, Table
from pipeline.evaluate.predictions import read_current_results
from pipeline.evaluate.results import PicturesResult
from transforms.intervals import CONFIDENCE
from transforms.renderings import COMMON, GAPS
from transforms.variants import base_of

PAIRS = ("mixed_same", "mixed_rand")
"""The variants whose accuracies BG-Gap compares."""
PAPER = GAPS[0]
"""Name of the paper's method among renderings."""
HOLES = ("all", "small", "medium", "large")
"""All pictures, and thirds of them by the share that the background's box covers."""


class MethodRow(Struct, frozen=True, kw_only=True):
    """A rendering, on all pictures or on a third of them.

    The difference is that of the gap from the paper's method on the same pairs, and for `AGAINST`
    from `COMMON`; the rows of `PAPER` and `COMMON` have none.
    """

    label_rule: str
    rendering: Annotated[
        str,
        Meta(
            description="`paper`, the [rendering](variants.md#renderings), or with `--against`: "
            "`common` for the images that both datasets have, `against` for the other dataset's "
            "pictures of them"
        ),
    ]
    of: Annotated[
        str,
        Meta(
            description="entry of the fill with its version, if it is your own; for `common` and "
            "`against` the fingerprint of the other dataset; else empty"
        ),
    ]
    hole: Annotated[
        str,
        Meta(
            description="`all` pictures, or the third of them in which the box of the background "
            "is `small`, `medium` or `large`"
        ),
    ]
    hole_low: Annotated[
        float | None,
        Meta(
            description="least share of these pictures that the background's box covers; empty for "
            "`against`, whose boxes may be others"
        ),
    ]
    hole_high: Annotated[
        float | None, Meta(description="greatest share that it covers, in the same way")
    ]
    mixed_same: Annotated[float, Meta(description="accuracy on `mixed_same` in this rendering")]
    mixed_rand: Annotated[float, Meta(description="accuracy on `mixed_rand` in this rendering")]
    gap: Annotated[float, Meta(description="`mixed_same` - `mixed_rand`")]
    ci_low: float
    ci_high: float
    difference: Annotated[
        float | None,
        Meta(
            description="gap - that of the paper's method on the same pairs; for `against`, gap - "
            "that of `common`"
        ),
    ] = None
    difference_low: Annotated[
        float | None, Meta(description="lower end of the 95 % interval of `difference`")
    ] = None
    difference_high: Annotated[
        float | None, Meta(description="upper end of the 95 % interval of `difference`")
    ] = None
    p_adjusted: Annotated[
        float | None,
        Meta(description="p value of the difference, with Holm's adjustment for all renderings"),
    ] = None
    replicates: int
    seed_sd: float | None
    pictures: int

    @property
    def title(self) -> str:
        """Names what was rendered, so that results under one title can be compared."""
        # At the head of a narrow column, words stand below each other.
        return (
            self.of.partition("python:")[2].replace(":", " ")
            or f"{self.rendering} {self.of[:12]}".strip()
        )

    @property
    def cell(self) -> Cell:
        """The difference, or the gap if it is one of `GAPS`, with its interval."""
        of = None if self.rendering in GAPS else self.compared
        return Cell(
            *(of or (self.gap, self.ci_low, self.ci_high)),
            is_bold=self.p_adjusted is not None and self.p_adjusted < 1 - CONFIDENCE,
        )

    @property
    def compared(self) -> Estimate | None:
        """The difference with its interval; None if there is none."""
        return estimate_of(self.difference, self.difference_low, self.difference_high)


class MethodResult(PicturesResult, frozen=True, kw_only=True):
    """method.json: BG-Gap of a model in all renderings.

    Attributes:
      rows: its rows.
    """

    rows: tuple[MethodRow, ...]

    @property
    def headline(self) -> dict[str, MethodRow]:
        """By title, each rendering's row on all pictures, under the first label rule."""
        return {
            row.title: row
            for row in self.rows
            if (row.label_rule, row.hole) == (self.rows[0].label_rule, HOLES[0])
        }

    @property
    def against_text(self) -> str:
        """What `COMMON` and `AGAINST` of the model are of; "" without them."""
        return next(
            (
                f"{self.name}: common, against: BG-Gap of this dataset and of {row.of[:12]}, in "
                f"the same pairs of the {row.pictures // (2 * row.replicates)} images that both "
                "have"
                for row in self.rows
                if row.rendering == COMMON
            ),
            "",
        )


METHOD = Table(
    "method",
    (OfModel, MethodRow, RunColumns),
    "BG-Gap of a model in a rendering, with two-way intervals: [method](method.md)",
)


def stored_pairs(dataset: Dataset) -> tuple[str, ...]:
    """Returns the stored variants that results depend on: `PAIRS` in all draws and renderings."""
    return tuple(name for name in dataset.variants if base_of(name) in PAIRS)


def read_method(dataset: Dataset) -> tuple[list[MethodResult], list[str]]:
    """Reads method.json of all models: (results on the present pictures, names of other models)."""
    return read_current_results(dataset, "method", MethodResult, lambda _: stored_pairs(dataset))
