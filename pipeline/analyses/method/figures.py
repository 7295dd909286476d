"""The figure of the method: differences of BG-Gap from the paper's method."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.analyses.method.results import PAPER, MethodResult
from pipeline.display.panel import COMPARED, Evidence
from pipeline.display.plot import Plot, Series, rows_figure, spoken


def make_plots(evidence: Evidence) -> Iterator[Plot]:
    """Makes the figure if there are results."""
    compared = evidence.models_with(MethodResult)[:COMPARED]
    cells = {model.name: result.cells() for model, result in compared if result.rows}
    names = list(dict.fromkeys(n for of_model in cells.values() for n in of_model if n != PAPER))
    if not names:
        return
    series = [
        Series(model, tuple((cell := of.get(name)) and cell[:3] for name in names))
        for model, of in cells.items()
    ]
    draws = sorted({result.rows[0].replicates for _, result in compared if result.rows})
    yield Plot(
        "method",
        "method.svg",
        f"Difference of BG-Gap from the paper's method in points, by models with "
        f"{' or '.join(map(str, draws))} draws of backgrounds. {spoken(series, names)}",
        rows_figure(
            "BG-Gap in other renderings",
            names,
            series,
            "difference from the paper's method, points",
            signed=True,
        ),
    )
