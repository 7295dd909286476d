"""Tests the analysis of predictions: its formulas, and all tables against independent counts."""

import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from runs import (
    ROOT,
    SHARED,
    csv_rows,
    latex_lines,
    run_here,
    table_of,
)
from small_models import lite0

from transforms.analysis import (
    bg_gap,
    class_p_values,
    compare_gaps,
    confusion_matrix,
    gaps_of_pictures,
    relative_foreground_sensitivity,
    sd_of_draws,
    worst_group,
)
from transforms.intervals import wilson
from transforms.two_way import Roles

RULES = ("argmax_then_map", "mapped_only")
MODEL = "python:tiny_models:first"


def test_labels_out_of_range_are_refused() -> None:
    for labels, predictions in (([9], [0]), ([-1], [0]), ([0], [9]), ([0], [-2])):
        with pytest.raises(ValueError, match="must be in"):
            confusion_matrix(np.asarray(labels), np.asarray(predictions), 9)


def test_a_class_is_tested_against_the_others() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(9), 100)
    correct = rng.random(900) < np.where(labels == 4, 0.5, 0.8)
    roles = Roles.from_units(np.arange(900), rng.integers(0, 900, 900))
    p_values = class_p_values(labels, correct, roles)
    assert list(p_values) == list(range(9))
    # The other classes differ a little as well, because each is compared with class 4 too.
    assert min(p_values, key=lambda label: p_values[label]) == 4
    assert p_values[4] < 1e-6 < 1e-3 < sorted(p_values.values())[1]
    # If a class has only one or two backgrounds, these may explain the difference, not the class.
    shared = Roles.from_units(np.arange(900), np.where(labels == 4, 1000 + np.arange(900) % 2, 0))
    assert min(class_p_values(labels, correct, shared).values()) == 1
    # Two pictures that are both right prove nothing, and a single class has no other to compare.
    few = np.repeat([0, 1], [2, 200])
    right = np.concatenate([[True, True], rng.random(200) < 0.7])
    assert min(class_p_values(few, right, Roles.from_units(np.arange(202))).values()) > 0.1
    assert class_p_values(np.zeros(5, int), right[:5], Roles.from_units(np.arange(5))) == {}
    assert class_p_values(few, np.ones(202, bool), Roles.from_units(np.arange(202))) == {0: 1, 1: 1}


def test_p_values_of_equal_classes_are_seldom_small() -> None:
    """Simulates nine equal classes: about 5 % of runs may find a difference by chance."""
    rng = np.random.default_rng(5)
    labels, backgrounds = np.arange(180) % 9, rng.integers(0, 180, 180)
    hard = rng.random((400, 180)) < 0.4
    is_small = [
        min(
            class_p_values(
                labels,
                rng.random(180) < np.where(of_run[backgrounds], 0.5, 0.9),
                Roles.from_units(np.arange(180), backgrounds),
            ).values()
        )
        < 0.05
        for of_run in hard
    ]
    assert np.mean(is_small) < 0.09


def test_the_worst_group_is_not_the_smallest_with_no_luck() -> None:
    counts = [(0, 2), (30, 90), (88, 90)]
    bounds = [wilson(*count) for count in counts]
    assert worst_group(bounds, [correct / n for correct, n in counts]) == 1
    # Among groups of equal size, the lowest accuracy decides, then the order.
    assert worst_group([wilson(correct, 10) for correct in (4, 2, 2)], [0.4, 0.2, 0.2]) == 1
    assert worst_group([], []) is None


@given(
    st.integers(1, 3).flatmap(
        lambda k: st.integers(1, 20).flatmap(
            lambda n: st.tuples(*[hnp.arrays(np.bool_, (k, n)) for _ in range(2)])
        )
    )
)
def test_the_gap_is_the_mean_over_replicates(drawn: tuple[Any, Any]) -> None:
    same, rand = drawn
    replicates, n = same.shape
    numbers, pairs = np.tile(np.arange(n), 2 * replicates), np.tile(np.arange(same.size), 2)
    roles = Roles.from_units(numbers, differences=pairs)
    correct = np.concatenate([same, rand]).ravel()
    is_same, draws = (
        np.arange(correct.size) < same.size,
        np.tile(np.arange(replicates).repeat(n), 2),
    )
    gap = bg_gap(correct, is_same, draws, roles)
    by_replicate = [float(s.mean() - r.mean()) for s, r in zip(same, rand, strict=True)]
    assert gap.gap == pytest.approx(np.mean(by_replicate))
    expected = np.std(by_replicate, ddof=1) if replicates > 1 else None
    assert gap.seed_sd == (None if expected is None else pytest.approx(expected))
    assert -1 <= gap.low <= gap.gap <= gap.high <= 1
    r = gaps_of_pictures(correct, is_same)[1]
    # The same holds in any order, and for several renderings at once.
    order, both = np.random.default_rng(n).permutation(correct.size), np.stack([correct, ~correct])
    gaps, contributions = gaps_of_pictures(both[:, order], is_same[order])
    np.testing.assert_allclose(gaps, [gap.gap, -gap.gap], atol=1e-12)
    np.testing.assert_allclose(contributions[0], r[order], atol=1e-12)
    compared = compare_gaps(both, is_same, roles)
    first = [float(column[0]) for column in compared[:5]]
    assert first == pytest.approx([gap.mixed_same, gap.mixed_rand, gap.gap, gap.low, gap.high])
    np.testing.assert_allclose(compared.difference, [-2 * gap.gap], atol=1e-12)
    if replicates > 1:
        assert sd_of_draws(both, is_same, draws) == pytest.approx(gap.seed_sd)


two_answers = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        *(hnp.arrays(np.bool_, n) for _ in range(2)),
        hnp.arrays(np.int64, n, elements=st.integers(0, 15)),
    )
)


@given(two_answers)
def test_relative_foreground_sensitivity_is_that_of_its_source(drawn: tuple[Any, Any, Any]) -> None:
    fg, bg, units = drawn
    roles = Roles.from_units(units)
    sensitivity = relative_foreground_sensitivity(fg, bg, roles)
    mean = (fg.mean() + bg.mean()) / 2
    if sensitivity is None:
        assert mean in (0, 1)
        return
    assert sensitivity[0] == pytest.approx((bg.mean() - fg.mean()) / (2 * min(mean, 1 - mean)))
    assert -1 <= sensitivity[1] <= sensitivity[0] <= sensitivity[2] <= 1
    # Swapping the two sides flips the sign. Swapping right and wrong does so too, unless both are
    # equally rare.
    for other in ((bg, fg), *([(~fg, ~bg)] if mean != 0.5 else [])):
        low, high = (-x for x in reversed(relative_foreground_sensitivity(*other, roles)[1:]))
        assert (low, high) == pytest.approx(sensitivity[1:], abs=1e-9)
    order = np.arange(len(fg))[::-1]
    again = relative_foreground_sensitivity(
        fg[order], bg[order], Roles.from_units(7 - units[order])
    )
    assert again == pytest.approx(sensitivity, abs=1e-9)


def test_relative_foreground_sensitivity_by_hand() -> None:
    right, wrong, each = np.ones(40, bool), np.zeros(40, bool), Roles.from_units(np.arange(40))
    assert relative_foreground_sensitivity(right, right, each) is None
    # Either the foreground alone matters, or the background alone; the law above has the reverse.
    value, low, high = relative_foreground_sensitivity(wrong, right, each) or (0, 0, 0)
    assert (value, high) == (1, 1)
    assert 0.7 < low < 1
    # 12 and 20 of 40 are right: the value is 8 / 32, and the same for wrong answers.
    fg, bg = np.arange(40) < 12, np.arange(40) < 20
    nested = relative_foreground_sensitivity(fg, bg, each) or (0, 0, 0)
    apart = relative_foreground_sensitivity(fg, bg[::-1], each) or (0, 0, 0)
    assert nested[0] == apart[0] == pytest.approx(0.25)
    # If both sides err on the same images, the difference between them is more certain.
    assert nested[1] > 0 > apart[1]
    # A single unit tells nothing about other units.
    assert relative_foreground_sensitivity(fg, bg, Roles.from_units(fg * 0)) == (0.25, -1, 1)
    for count in (3, 0):
        with pytest.raises(ValueError, match=rf"\({count},\) answers for"):
            relative_foreground_sensitivity(fg, bg[:count], each)


# The tests below read what a job wrote: 18 pictures, two replicates, three models.


def test_the_headline_table_is_latex(three_models: Path) -> None:
    summary = {
        (row["model"], row["label_rule"], row["variant"]): row
        for row in table_of(three_models, "summary")
    }
    for name, rule in (("headline", RULES[0]), ("headline_mapped_only", RULES[1])):
        lines = latex_lines(three_models, name)
        assert len(lines) == 1 + 2 * 3
        assert {len(line) for line in lines} == {6}
        heads = [re.sub(r"\\(footnotesize |shortstack\[r\])|[{}\\]", "", cell) for cell in lines[0]]
        assert heads == ["Model", "Original", "Only-BG-T", "Mixed-Same", "Mixed-Rand", "BG-Gap"]
        expected = 100 * float(summary[MODEL, rule, "original"]["accuracy"])
        model, accuracy, *_ = lines[1]
        assert (model, lines[2][0]) == (r"tiny\_models:first", r"\scriptsize python")
        # It is bold if it cannot be told from the best one.
        assert accuracy in (f"${expected:.1f}$", rf"$\mathbf{{{expected:.1f}}}$")


@pytest.mark.usefixtures("no_figures")
def test_the_columns_of_the_headline_can_be_chosen(three_models: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(three_models, tmp_path / "out"))
    flags = ("report", "--dataset", output, "--pictures", "none", "--columns")
    by_default = latex_lines(output, "headline")
    run_here(*flags, "bg_gap,only_fg,original,no_fg,only_bg_b,mixed_next,mixed_same")
    lines = latex_lines(output, "headline")
    assert {len(line) for line in lines} == {6}
    first, second = lines[:7], lines[7:]
    assert [row[1] for row in first[1:]] == [row[-1] for row in by_default[1:]]
    assert [row[3] for row in first[1:]] == [row[1] for row in by_default[1:]]
    # Columns beyond five continue in a second block.
    assert [row[2] for row in second[1:]] == [row[3] for row in by_default[1:]]
    assert all(row[3:] == [""] * 3 for row in second)


@pytest.mark.parametrize(
    ("file", "part", "column", "of_row"),
    [
        ("decomposition", "decomposition", "share", {"kind": "wrong_on_both"}),
        ("per_class_mixed_rand", "per_class", "accuracy", {"label": "8", "variant": "mixed_rand"}),
    ],
)
def test_further_tables_are_latex(
    three_models: Path, file: str, part: str, column: str, of_row: dict[str, str]
) -> None:
    lines = latex_lines(three_models, file)
    assert len(lines) % (1 + 2 * 3) == 0
    wanted = {"model": MODEL, "label_rule": RULES[0], **of_row}
    (row,) = [r for r in table_of(three_models, part) if wanted.items() <= r.items()]
    # `of_row` names the last kind or class, so the last columns hold its values.
    first, second = ([cell for cell in line if cell] for line in lines[-6:-4])
    assert first[-1] == f"${100 * float(row[column]):.1f}$"
    assert f"{100 * float(row['ci_low']):.1f}, {100 * float(row['ci_high']):.1f}" in second[-1]


# The paper's protocol, implemented again without our code.


def stored_pictures(output: Path, variant: str) -> Iterator[tuple[str, int, torch.Tensor]]:
    """Yields key, label and pixels (as ToTensor gives them) of every stored picture."""
    for path in sorted((output / "parquet" / variant).glob("*.parquet")):
        for row in pq.read_table(path, columns=["key", "label", "image"]).to_pylist():
            with Image.open(io.BytesIO(row["image"]["bytes"])) as picture:
                pixels = np.asarray(picture.convert("RGB"), np.float32) / 255
            yield row["key"], row["label"], torch.from_numpy(pixels).permute(2, 0, 1)


def label_of_output() -> list[int]:
    """Reads the released class map, from the reference data if they exist."""
    path = SHARED / "classes.csv"
    if not path.exists():
        path = ROOT / "transforms" / "data" / "classes.csv"
    rows = sorted(csv_rows(path), key=lambda row: int(row["index"]))
    return [int(row["label"]) for row in rows]


def test_predictions_agree_image_by_image_with_the_protocol(small_run: Path) -> None:
    """Repeats the protocol: ToTensor, mean and std, argmax over 1000, class map; -1 is wrong."""
    model, labels = lite0(), label_of_output()
    (path,) = small_run.glob("results/efficientnet_lite0/predictions/*.parquet")
    stored = {
        (row["variant"], row["key"]): row
        for row in pq.read_table(path).to_pylist()
        if row["label_rule"] == "argmax_then_map"
    }
    accuracies = {
        row["variant"]: row for row in table_of(small_run, "summary", label_rule="argmax_then_map")
    }
    outside = 0
    for variant in ("no_fg", "mixed_rand", "mixed_next"):
        keys, truth, pictures = zip(*stored_pictures(small_run, variant), strict=True)
        best: list[tuple[int, float]] = []
        for first in range(0, len(pictures), 10):
            with torch.inference_mode():
                logits = model((torch.stack(pictures[first : first + 10]) - 0.5) / 0.5)
            scores, outputs = logits.softmax(dim=1).max(dim=1)
            best += zip(outputs.tolist(), scores.tolist(), strict=True)
        correct = 0
        for key, label, (output, score) in zip(keys, truth, best, strict=True):
            row = stored[variant, key]
            prediction = labels[output]
            assert (row["output"], row["prediction"]) == (output, prediction), (variant, key)
            assert row["top1_score"] == pytest.approx(score, abs=1e-4)
            assert row["correct"] == (prediction != -1 and prediction == label)
            correct += prediction != -1 and prediction == label
            outside += prediction == -1
        assert int(accuracies[variant]["correct"]) == correct
        assert int(accuracies[variant]["n"]) == len(keys) > 12
    assert outside > 0
