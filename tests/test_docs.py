"""The documentation against the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.attack.tables import ATTACK_COLUMNS, BACKGROUND_COLUMNS
from pipeline.matrix.tables import MATRIX_COLUMNS
from pipeline.results.comparisons import COMPARISON_COLUMNS
from pipeline.results.files import PREDICTION_SCHEMA
from pipeline.results.tables import TABLES
from pipeline.results.trend import TREND_COLUMNS
from pipeline.saliency.results import SALIENCY_COLUMNS

DOCS = Path(__file__).parents[1] / "docs"

COLUMNS = {
    **{name: table.columns for name, table in TABLES.items()},
    "comparisons": COMPARISON_COLUMNS,
    "attack": ATTACK_COLUMNS,
    "backgrounds": BACKGROUND_COLUMNS,
    "trend": TREND_COLUMNS,
    "saliency": SALIENCY_COLUMNS,
    "matrix": MATRIX_COLUMNS,
}


@pytest.mark.parametrize("table", COLUMNS)
def test_every_column_of_every_table_is_documented(table: str) -> None:
    text = (DOCS / "results.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith(f"| `{table}` |")]
    common = text[text.index("How a model was run:") :].split("\n\n")[0] + "`model` `label_rule`"
    for column in COLUMNS[table]:
        assert f"`{column}`" in row + common, column


def test_every_column_of_predictions_is_documented() -> None:
    text = (DOCS / "results.md").read_text()
    for column in PREDICTION_SCHEMA.names:
        assert f"`{column}`" in text, column
