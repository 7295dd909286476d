"""The figure of the renderings: differences of BG-Gap from the paper's method."""

from collections.abc import Iterator

from pipeline.analyses.renderings.results import RenderingsResult
from pipeline.display.panel import COMPARED
from pipeline.display.plot import Plot, Series, rows_figure, spoken
from pipeline.evaluate.evidence import Evidence


def make_plots(evidence: Evidence) -> Iterator[Plot]:
    """Makes the figure if there are results."""
    compared = evidence.models_with(RenderingsResult)[:COMPARED]
    estimates = {
        model.name: {name: row.compared for name, row in result.headline.items() if row.compared}
        for model, result in compared
        if result.rows
    }
    names = list(dict.fromkeys(name for of in estimates.values() for name in of))
    series = [Series(model, tuple(map(of.get, names))) for model, of in estimates.items()]
    draws = sorted({result.rows[0].replicates for _, result in compared if result.rows})
    if names:
        yield Plot(
            "method",
            "method.svg",
            "Difference of BG-Gap from the paper's method, and of the other dataset from this one, "
            f"in points, by models with {' or '.join(map(str, draws))} draws of backgrounds. "
            f"{spoken(series, names)}",
            rows_figure(
                "BG-Gap in other renderings",
                names,
                series,
                "difference of BG-Gap, points",
                signed=True,
            ),
        )
