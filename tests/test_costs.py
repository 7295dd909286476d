"""Costs: the formula, the page against it, and what --dry_run says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import run_in9

from pipeline.dry_run.costs import (
    FIGURES,
    Assumptions,
    Cost,
    cost_tables,
    describe_cost,
    evaluate_cost,
    generate_cost,
)
from pipeline.errors import UsageError

PAGE = Path(__file__).parents[1] / "docs" / "costs.md"


def test_the_page_shows_what_the_formula_gives() -> None:
    text = PAGE.read_text()
    assert cost_tables() in text
    for name, value in vars(Assumptions()).items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
        assert f"| {value:.5g} |" in row


def test_a_price_is_the_sum_of_its_parts() -> None:
    assumed = Assumptions(
        core_hour=2, gpu_hour=10, gb_month=3, reads_1000=0.5, writes_1000=7, gpu_rate=100
    )
    cost = generate_cost(FIGURES, 1000, 500, 400)
    assert set(cost.core_seconds) == {"segment", "compose"}
    assert cost.core_seconds["segment"] == 1000 * FIGURES.segment_seconds
    assert cost.bytes == 500 * FIGURES.layer_bytes + 400 * FIGURES.output_bytes
    cost += evaluate_cost("evaluate", 360_000, 0.01, assumed.gpu_rate)
    assert cost.gpu_hours == 1
    expected = cost.core_hours * 2 + 10 + cost.reads / 1000 * 0.5 + cost.writes / 1000 * 7
    assert cost.price(assumed) == pytest.approx(expected)
    assert cost.price_a_month(assumed) == pytest.approx(cost.bytes / 1e9 * 3)
    on_cores = evaluate_cost("evaluate", 360_000, 0.01, 0.0)
    assert (on_cores.core_hours, on_cores.gpu_hours) == (1, 0)
    assert "1 GPU-hours" in describe_cost(cost, assumed)
    assert "10 a GPU-hour" in describe_cost(cost, assumed)
    assert "GPU" not in describe_cost(on_cores, assumed)


def test_layers_that_are_dropped_are_not_stored() -> None:
    kept = generate_cost(FIGURES, 10, 10, 10)
    dropped = generate_cost(FIGURES, 10, 10, 10, keep_layers=False)
    assert kept.bytes - dropped.bytes == pytest.approx(10 * FIGURES.layer_bytes)
    assert Cost() + kept == kept


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("core_hours=1", "--assume core_hours: expected one of core_hour, gb_month,"),
        ("core_hour=cheap", "--assume core_hour: expected a number from 0 on, got 'cheap'"),
        ("core_hour=-1", "got '-1'"),
        ("core_hour", "got ''"),
        ("gpu_rate=inf", "got 'inf'"),
    ],
)
def test_assumptions_that_mean_nothing_are_refused(part: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        Assumptions.parse([part])


def test_dry_run_says_cost_and_price(tiny_input: Path, tmp_path: Path) -> None:
    flags = ("run", "--input", tiny_input, "--output", tmp_path / "out", "--dry_run")
    done = run_in9(*flags, "--assume", "core_hour=3600,gb_month=1000,gpu_rate=0.5,gpu_hour=2")
    (cost,) = re.findall(r"^cost: .*", done.stdout, re.MULTILINE)
    (price,) = re.findall(r"^price: .*", done.stdout, re.MULTILINE)
    assert re.search(r" core-hours \(segment .*, compose .*\), .* GPU-hours, .* GB, ", cost)
    assert re.search(r"\d reads and \d+ writes of objects$", cost)
    (pictures,) = re.findall(r" for (\d+) pictures on cpu", done.stdout)
    (gpu_hours,) = re.findall(r"([\d.]+) GPU-hours", cost)
    assert float(gpu_hours) == pytest.approx(int(pictures) / 0.5 / 3600, rel=0.1)
    # A dollar a core-second: what was measured can be seen in the price.
    (segment,) = re.findall(r"segment ([\d.]+) s an image", done.stdout)
    (amount,) = re.findall(r"^price: \$([\d.]+) on", price)
    assert float(amount) > 6 * float(segment)
    assert "3600 a core-hour, 2 a GPU-hour" in price
    assert "1000 a GB and month (assumed, as of 20" in price
    refused = run_in9(*flags, "--assume", "cores=1", check=2)
    assert "--assume cores: expected one of" in refused.stderr
