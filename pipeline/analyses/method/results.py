"""Results of the method: BG-Gap in each rendering.

results/<model>/method/<split>-NNNNN.parquet   predictions in all renderings
results/<model>/method.json                    the model, and its rows
results/method.csv, results/latex/method.tex   tables of all models
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct

from pipeline.dataset.folder import Dataset
from pipeline.display.panel import estimate_of
from pipeline.display.table import Cell, OfModel, RunColumns, Table, aligned, interval, tabular
from pipeline.errors import shown_bytes
from pipeline.evaluate.predictions import read_current_results
from pipeline.evaluate.results import PicturesResult, pick
from transforms.intervals import CONFIDENCE
from transforms.variants import base_of

PAIRS = ("mixed_same", "mixed_rand")
"""The variants whose accuracies BG-Gap compares."""
PAPER = "paper"
"""Name of the paper's method among renderings."""
HOLES = ("all", "small", "medium", "large")
"""All pictures, and thirds of them by the share that the background's box covers."""

DIFFERENCE = ("difference", "difference_low", "difference_high", "p_adjusted")
"""Fields of a row that the paper's method does not have."""


class MethodRow(Struct, frozen=True, kw_only=True):
    """A rendering, on all pictures or on a third of them.

    The difference is that of the gap from the paper's method on the same pairs; the row of the
    paper's method has none.
    """

    label_rule: str
    rendering: Annotated[
        str, Meta(description="`paper`, or the rendering: [variants](variants.md#renderings)")
    ]
    hole: Annotated[
        str,
        Meta(
            description="`all` pictures, or the third of them in which the box of the background "
            "is `small`, `medium` or `large`"
        ),
    ]
    hole_low: Annotated[
        float, Meta(description="least share of these pictures that the background's box covers")
    ]
    hole_high: Annotated[
        float, Meta(description="greatest share of these pictures that the background's box covers")
    ]
    mixed_same: Annotated[float, Meta(description="accuracy on `mixed_same` in this rendering")]
    mixed_rand: Annotated[float, Meta(description="accuracy on `mixed_rand` in this rendering")]
    gap: Annotated[float, Meta(description="`mixed_same` - `mixed_rand`")]
    ci_low: float
    ci_high: float
    difference: Annotated[
        float | None, Meta(description="gap - that of the paper's method on the same pairs")
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
    def cell(self) -> Cell:
        """The difference, or the gap of the paper's method, with its interval."""
        of = estimate_of(self.difference, self.difference_low, self.difference_high)
        is_bold = self.p_adjusted is not None and self.p_adjusted < 1 - CONFIDENCE
        return Cell(*(of or (self.gap, self.ci_low, self.ci_high)), is_bold)


class MethodResult(PicturesResult, frozen=True, kw_only=True):
    """method.json: BG-Gap of a model in all renderings.

    Attributes:
      rows: its rows.
    """

    rows: tuple[MethodRow, ...]

    def cells(self) -> dict[str, Cell]:
        """Returns the cell of each rendering on all pictures, under the first label rule."""
        return {
            row.rendering: row.cell
            for row in self.rows
            if (row.label_rule, row.hole) == (self.rows[0].label_rule, "all")
        }


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


def write_method_tables(dataset: Dataset) -> None:
    """Rebuilds method.csv and method.tex; nothing if there never were results.

    The caller must hold the lock of the tables.
    """
    store, (results, _) = dataset.store, read_method(dataset)
    if not results and not store.exists(f"results/{METHOD.name}.csv"):
        return
    METHOD.write(
        store,
        (
            [
                OfModel(one.model),
                row,
                pick(RunColumns, one, one.evaluation, dataset=dataset.manifest.fingerprint),
            ]
            for one in results
            for row in one.rows
        ),
    )
    names = list(dict.fromkeys(name for one in results for name in one.cells()))
    text = tabular(
        "BG-Gap of the paper's method, and differences from it, in points; 95 % intervals; bold: "
        "differs (Holm, 5 %)",
        names,
        results,
        [[one.cells().get(name) for name in names] for one in results],
    )
    store.update("results/latex/method.tex", shown_bytes(text))


def method_table(results: Sequence[MethodResult]) -> str:
    """Formats a table of models x renderings: BG-Gap, then differences from it, in points."""
    names = list(dict.fromkeys(name for one in results for name in one.cells()))
    rows = (
        [one.name, *(interval(*c[:3]) if (c := one.cells().get(n)) else "-" for n in names)]
        for one in results
    )
    return aligned([["method: BG-Gap, differences", *names], *rows])
