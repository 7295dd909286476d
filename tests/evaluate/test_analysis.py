"""Tests the analysis of predictions: its formulas, and all tables against independent counts."""

import io
import itertools
import math
import re
import shutil
from collections import Counter
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
from numpy.typing import NDArray
from PIL import Image
from runs import (
    ONE,
    QUICK,
    ROOT,
    SHARDS,
    SHARED,
    csv_rows,
    dataset_in,
    index_of,
    refusal,
    run_here,
    run_in9,
    table_of,
)
from small_models import checkpoint, lite0
from two_way_by_hand import interval_of, share_interval

from pipeline.analyses import ANALYSES
from pipeline.analyses.evaluation.tables import accuracy_table
from pipeline.evaluate.summaries import read_summaries
from pipeline.evaluate.summary import TABLES
from pipeline.report.write import write_tables
from transforms.analysis import (
    KINDS,
    SIZE_EDGES,
    bg_gap,
    class_mean_accuracy,
    class_p_values,
    confusion_matrix,
    decompose,
    gaps_of_pictures,
    groups,
    relative_foreground_sensitivity,
    size_buckets,
    worst_group,
)
from transforms.intervals import wilson
from transforms.two_way import Roles
from transforms.variants import VariantName, draws_of

RULES = ("argmax_then_map", "mapped_only")
MODEL = "efficientnet_lite0"

labels_and_predictions = st.integers(0, 40).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.int16, n, elements=st.integers(0, 8)),
        hnp.arrays(np.int16, n, elements=st.integers(-1, 8)),
    )
)


@given(labels_and_predictions)
def test_every_image_is_in_one_cell(drawn: tuple[NDArray[np.int16], NDArray[np.int16]]) -> None:
    labels, predictions = drawn
    confusion = confusion_matrix(labels, predictions, 9)
    assert confusion.shape == (9, 10)
    assert confusion.sum() == len(labels)
    np.testing.assert_array_equal(confusion.sum(axis=1), np.bincount(labels, minlength=9))
    assert np.diagonal(confusion).sum() == (labels == predictions).sum()
    assert confusion[:, -1].sum() == (predictions == -1).sum()
    by_class = [
        np.mean(predictions[labels == label] == label) for label in sorted(set(labels.tolist()))
    ]
    expected = np.mean(by_class) if by_class else math.nan
    assert class_mean_accuracy(confusion) == pytest.approx(expected, nan_ok=True)


def test_labels_out_of_range_are_refused() -> None:
    for labels, predictions in (([9], [0]), ([-1], [0]), ([0], [9]), ([0], [-2])):
        with pytest.raises(ValueError, match="must be in"):
            confusion_matrix(np.asarray(labels), np.asarray(predictions), 9)


KIND_OF = {  # Right on (original, mixed_rand, only_bg_t), as the paper defines the kinds.
    (True, False, True): "bg_required",
    (False, True, False): "bg_fools",
    (True, False, False): "bg_fg_required",
    (False, True, True): "bg_fg_fools",
    **{(True, True, background): "right_on_both" for background in (False, True)},
    **{(False, False, background): "wrong_on_both" for background in (False, True)},
}


@given(hnp.arrays(np.bool_, st.tuples(st.integers(0, 60), st.just(3))))
def test_every_image_is_of_one_kind(right: NDArray[np.bool_]) -> None:
    kinds = decompose(*right.T)
    assert [KINDS[kind] for kind in kinds] == [KIND_OF[tuple(map(bool, row))] for row in right]


@given(
    st.integers(0, 60).flatmap(
        lambda n: st.tuples(
            hnp.arrays(np.int64, n, elements=st.integers(0, 8)),
            hnp.arrays(np.int64, n, elements=st.integers(-1, 8)),
        )
    )
)
def test_groups_hold_every_picture_once(drawn: tuple[Any, Any]) -> None:
    labels, backgrounds = drawn
    all_groups = groups(labels, backgrounds, 9)
    every = [picture for group in all_groups for picture in group.pictures.tolist()]
    assert sorted(every) == np.flatnonzero(backgrounds >= 0).tolist()
    for group in all_groups:
        assert len(group.pictures)
        assert set(labels[group.pictures]) == {group.label}
        assert set(backgrounds[group.pictures]) == {group.bg_label}
    order = [(group.label, group.bg_label) for group in all_groups]
    assert order == sorted(set(order))


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
    shares = [correct / n for correct, n in counts]
    assert worst_group(bounds, shares) == 1
    # Among groups of equal size, the lowest accuracy decides, then the order.
    equal = [wilson(correct, 10) for correct in (4, 2, 2)]
    assert worst_group(equal, [0.4, 0.2, 0.2]) == 1
    assert worst_group([], []) is None


@given(hnp.arrays(np.float64, st.integers(0, 50), elements=st.floats(0, 1)))
def test_sizes_lie_between_their_edges(sizes: NDArray[np.float64]) -> None:
    for size, bucket in zip(sizes, size_buckets(sizes), strict=True):
        assert SIZE_EDGES[bucket] <= size <= SIZE_EDGES[bucket + 1]
        assert size < SIZE_EDGES[bucket + 1] or size == 1


def test_size_edges_belong_to_the_upper_bucket() -> None:
    assert size_buckets(np.asarray(SIZE_EDGES)).tolist() == [0, 1, 2, 3, 4, 5, 5]


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
    gap = bg_gap(same, rand, Roles.from_units(numbers, differences=pairs))
    by_replicate = [float(s.mean() - r.mean()) for s, r in zip(same, rand, strict=True)]
    assert gap.gap == pytest.approx(np.mean(by_replicate))
    assert gap.gap == pytest.approx(gap.mixed_same - gap.mixed_rand)
    expected = np.std(by_replicate, ddof=1) if replicates > 1 else None
    assert gap.seed_sd == (None if expected is None else pytest.approx(expected))
    assert -1 <= gap.low <= gap.gap <= gap.high <= 1
    correct = np.concatenate([same, rand]).ravel()
    r = gaps_of_pictures(correct, np.arange(correct.size) < same.size)[1]
    assert r.sum() == pytest.approx(0)
    pictures = zip(numbers.astype(str), [None] * len(r), r, strict=True)
    assert (gap.low, gap.high) == pytest.approx(interval_of(gap.gap, pictures, pairs), abs=1e-8)


def test_gaps_need_answers_of_equal_shape() -> None:
    for rand, pictures in ((np.ones((2, 2), bool), 6), (np.ones((1, 2), bool), 3)):
        with pytest.raises(ValueError, match=f"answers for {pictures} pictures"):
            bg_gap(np.ones((1, 2), bool), rand, Roles.from_units(np.arange(pictures)))


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
    # Either the foreground alone matters, or the background alone.
    above = relative_foreground_sensitivity(wrong, right, each)
    below = relative_foreground_sensitivity(right, wrong, each)
    assert above is not None
    assert below is not None
    assert (above[0], above[2], below[0], below[1]) == (1, 1, -1, -1)
    assert 0.7 < above[1] == pytest.approx(-below[2])
    # 12 and 20 of 40 are right: the value is 8 / 32, and the same for wrong answers.
    fg, bg = np.arange(40) < 12, np.arange(40) < 20
    nested = relative_foreground_sensitivity(fg, bg, each)
    apart = relative_foreground_sensitivity(fg, bg[::-1], each)
    assert nested is not None
    assert apart is not None
    assert nested[0] == apart[0] == pytest.approx(0.25)
    # If both sides err on the same images, the difference between them is more certain.
    assert nested[1] > 0 > apart[1]
    # A single unit tells nothing about other units.
    assert relative_foreground_sensitivity(fg, bg, Roles.from_units(fg * 0)) == (0.25, -1, 1)
    for count in (3, 0):
        with pytest.raises(ValueError, match=rf"\({count},\) answers for"):
            relative_foreground_sensitivity(fg, bg[:count], each)


# The tests below read what a job wrote: 18 pictures in three shards, two replicates, two models.


@pytest.fixture(scope="module")
def nine_way(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The `--models` entry of a random network over the nine classes."""
    return checkpoint(tmp_path_factory.mktemp("nine") / "net_9%.pth")


@pytest.fixture(scope="module")
def evaluated(small_sample: Path, nine_way: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluated dataset. Tests must not change it."""
    output = tmp_path_factory.mktemp("evaluated") / "out"
    command = ("run", "--output", output, "--input", small_sample, *QUICK, *SHARDS, *ONE)
    run_in9(*command, "--replicates", 2, "--models", f"{MODEL},{nine_way}")
    return output


@pytest.fixture(scope="module")
def predictions(evaluated: Path) -> dict[tuple[str, str, str], dict[str, dict[str, Any]]]:
    """Stored predictions by key, for each (model, label rule, variant)."""
    by_variant: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for path in evaluated.glob("results/*/predictions/*.parquet"):
        for row in pq.read_table(path).to_pylist():
            of_variant = by_variant.setdefault(
                (row["model"], row["label_rule"], row["variant"]), {}
            )
            of_variant[row["key"]] = row
    return by_variant


@pytest.fixture(scope="module")
def index(evaluated: Path) -> dict[str, dict[str, Any]]:
    """Rows of the selected images, by key."""
    return {row["key"]: row for row in index_of(evaluated) if row["selected"]}


def accuracy_of(row: dict[str, str], answers: list[dict[str, Any]]) -> None:
    """Checks the accuracy columns of a row against predictions."""
    pictures = [(answer["fg_key"], answer["bg_key"], answer["correct"]) for answer in answers]
    n, correct = len({foreground for foreground, *_ in pictures}), sum(r for *_, r in pictures)
    counts = tuple(int(row[column]) for column in ("n", "pictures", "correct"))
    assert counts == (n, len(pictures), correct)
    assert float(row["accuracy"]) == pytest.approx(correct / len(pictures))
    bounds = float(row["ci_low"]), float(row["ci_high"])
    assert bounds == pytest.approx(share_interval(pictures), abs=1e-6)


def of_all_draws(predictions: dict[Any, Any], row: dict[str, str]) -> list[dict[str, Any]]:
    """Returns the predictions behind a row of a table, one draw after the other."""
    variants = dict.fromkeys(VariantName.parse(variant) for _, _, variant in predictions)
    names = map(str, draws_of(variants)[row["variant"]])
    return [
        answer
        for name in names
        for answer in predictions[row["model"], row["label_rule"], name].values()
    ]


def test_the_tables_are_those_that_are_documented(evaluated: Path) -> None:
    written = {path.stem for path in evaluated.glob("results/*.csv")}
    for analysis in ANALYSES:
        for table in analysis.parts.tables:
            if table.name in written:
                header = (evaluated / "results" / f"{table.name}.csv").read_text().splitlines()[0]
                assert header == ",".join(table.columns)
    assert TABLES[0].columns[-1] == "error"
    assert written >= {*(table.name for table in TABLES), "comparisons"}


def test_summary_agrees_with_the_predictions(
    evaluated: Path, predictions: dict[Any, Any], index: dict[str, Any]
) -> None:
    assert len(predictions) == 2 * 2 * (5 + 2 * 3)
    summary = table_of(evaluated, "summary")
    assert len(summary) == 2 * 2 * (5 + 3)
    for row in summary:
        answers = of_all_draws(predictions, row)
        draws = 2 if row["variant"].startswith("mixed") else 1
        assert sorted(a["fg_key"] for a in answers) == sorted(list(index) * draws)
        assert int(row["replicates"]) == draws
        accuracy_of(row, answers)
        right = [a["prediction"] == index[a["fg_key"]]["label"] for a in answers]
        assert (row["seed_sd"] == "") == (draws == 1)
        if draws == 2:
            halves = [np.mean(right[: len(index)]), np.mean(right[len(index) :])]
            assert float(row["seed_sd"]) == pytest.approx(np.std(halves, ddof=1))
        assert int(row["outside"]) == sum(a["prediction"] == -1 for a in answers)
    assert any(int(row["outside"]) for row in summary)


def test_classes_agree_with_the_predictions(
    evaluated: Path, predictions: dict[Any, Any], index: dict[str, Any]
) -> None:
    classes, labels = table_of(evaluated, "per_class"), {row["label"] for row in index.values()}
    means: dict[Any, list[float]] = {}
    for row in classes:
        answers = [a for a in of_all_draws(predictions, row) if a["label"] == int(row["label"])]
        accuracy_of(row, answers)
        assert int(row["outside"]) == sum(a["prediction"] == -1 for a in answers)
        assert 0 <= float(row["p_adjusted"]) <= 1
        of_variant = row["model"], row["label_rule"], row["variant"]
        means.setdefault(of_variant, []).append(float(row["accuracy"]))
    assert {(row["label"], row["class_name"]) for row in classes} >= {("0", "dog"), ("8", "fish")}
    for row in table_of(evaluated, "summary"):
        of_variant = means.pop((row["model"], row["label_rule"], row["variant"]))
        assert len(of_variant) == len(labels)
        assert float(row["class_mean_accuracy"]) == pytest.approx(np.mean(of_variant))
    assert not means


def test_flip_rates_are_over_pairs_of_pictures(
    evaluated: Path, predictions: dict[Any, Any], index: dict[str, Any]
) -> None:
    rows = table_of(evaluated, "flips")
    # There is nothing to compare within mixed_same: a class has two images, so both draws use the
    # same background.
    assert len(rows) == 2 * 2 * (1 + 2)
    for row in rows:
        of_model = row["model"], row["label_rule"]
        drawn = [
            [predictions[(*of_model, f"{row[name]}{suffix}")] for suffix in ("", "_r1")]
            for name in ("variant", "other_variant")
        ]
        is_within = row["variant"] == row["other_variant"]
        compared = [(drawn[0][0], drawn[0][1])] if is_within else [*itertools.product(*drawn)]
        flips: dict[str, list[bool]] = {}
        for first, second in compared:
            for key in index:
                if first[key]["bg_key"] != second[key]["bg_key"]:
                    differ = first[key]["prediction"] != second[key]["prediction"]
                    flips.setdefault(key, []).append(differ)
        pairs = sum(map(len, flips.values()))
        # With few images, some get the same background twice.
        assert 0 < pairs < len(index) * (1 if is_within else 4)
        rate = np.mean([np.mean(of_image) for of_image in flips.values()])
        assert float(row["flip_rate"]) == pytest.approx(rate)
        assert (int(row["n"]), int(row["pairs"]), row["replicates"]) == (len(flips), pairs, "2")
    assert any(float(row["flip_rate"]) > 0 for row in rows)


def test_decomposition_agrees_with_the_predictions(
    evaluated: Path, predictions: dict[Any, Any], index: dict[str, Any]
) -> None:
    counts: dict[Any, dict[str, int]] = {}
    for row in table_of(evaluated, "decomposition"):
        assert int(row["images"]) == len(index)
        assert float(row["share"]) == pytest.approx(int(row["n"]) / len(index))
        counts.setdefault((row["model"], row["label_rule"]), {})[row["kind"]] = int(row["n"])
    assert len(counts) == 4
    for (model, rule), kinds in counts.items():
        sides = [predictions[model, rule, v] for v in ("original", "mixed_rand", "only_bg_t")]
        expected = Counter(KIND_OF[tuple(side[key]["correct"] for side in sides)] for key in index)
        assert list(kinds) == list(KINDS)
        assert kinds == {kind: expected[kind] for kind in KINDS}


def test_groups_name_the_true_background(
    evaluated: Path, predictions: dict[Any, Any], index: dict[str, Any]
) -> None:
    """Checks that a background has the class of the picture it was cut from."""
    worst: Counter[Any] = Counter()
    seen: Counter[Any] = Counter()
    for row in table_of(evaluated, "groups"):
        group = int(row["label"]), int(row["bg_label"])
        of_variant = row["model"], row["label_rule"], row["variant"]
        answers = [
            answer
            for answer in of_all_draws(predictions, row)
            if group == (index[answer["fg_key"]]["label"], index[answer["bg_key"]]["label"])
        ]
        accuracy_of(row, answers)
        seen[of_variant] += len(answers)
        worst[of_variant] += row["is_worst"] == "True"
        if row["variant"] == "mixed_same":
            assert group[0] == group[1]
    assert set(seen.values()) == {2 * len(index)}
    assert set(worst.values()) == {1}
    assert len(seen) == 2 * 2 * 3


def test_models_are_compared_on_the_same_pictures(
    evaluated: Path, predictions: dict[Any, Any], nine_way: str
) -> None:
    rows = table_of(evaluated, "comparisons")
    bases = {VariantName.parse(variant).base for _, _, variant in predictions}
    assert len(rows) == 2 * (len(bases) + 1)
    assert {(row["first"], row["second"]) for row in rows} == {(MODEL, nine_way)}
    for row in rows:
        signs = {"mixed_same": 1, "mixed_rand": -1} if row["variant"] == "bg_gap" else {}
        signs = signs or {row["variant"]: 1}
        of_models = []
        for model in (row["first"], row["second"]):
            values = [
                (answer["fg_key"], answer["bg_key"], sign * answer["correct"], sign)
                for name, sign in signs.items()
                for answer in of_all_draws(predictions, {**row, "model": model, "variant": name})
            ]
            n = len(values) / len(signs)
            means = {s: sum(v for *_, v, sign in values if sign == s) / n for s in (1, -1)}
            r = [(fg, bg, (value - means[sign]) / n) for fg, bg, value, sign in values]
            of_models.append((sum(means.values()), r))
        (first, r_first), (second, r_second) = of_models
        pictures = [(fg, bg, a - b) for (fg, bg, a), (*_, b) in zip(r_first, r_second, strict=True)]
        assert float(row["difference"]) == pytest.approx(first - second)
        if any(abs(r) > 1e-9 for *_, r in pictures):
            interval = float(row["ci_low"]), float(row["ci_high"])
            pairs = np.arange(len(pictures)) % n
            expected = interval_of(first - second, pictures, pairs)
            assert interval == pytest.approx(expected, abs=1e-8)
        assert int(row["n"]) == len({fg for fg, *_ in pictures})
        # Two models make one pair, so there is nothing to adjust for.
        stands_out = float(row["ci_low"]) > 0 or float(row["ci_high"]) < 0
        assert (float(row["p_adjusted"]) < 0.05) == stands_out


def test_figures_beside_the_gap_add_up_to_it(evaluated: Path) -> None:
    """Checks that BG-Gap is the difference of the two accuracies that are shown beside it."""
    values: dict[Any, dict[str, float]] = {}
    for name, column in (("trend", "accuracy"), ("comparisons", "difference")):
        for row in table_of(evaluated, name):
            key = name, row.get("model"), row["label_rule"]
            values.setdefault(key, {})[row["variant"]] = float(row[column])
    for row in table_of(evaluated, "gaps"):
        sides = {name: float(row[name]) for name in ("mixed_same", "mixed_rand")}
        values["gaps", row["model"], row["label_rule"]] = {**sides, "bg_gap": float(row["gap"])}
    assert len(values) == 4 + 2 + 4
    for of_table in values.values():
        difference = of_table["mixed_same"] - of_table["mixed_rand"]
        assert difference == pytest.approx(of_table["bg_gap"])
    (line, _) = accuracy_table(read_summaries(dataset_in(evaluated))[0]).splitlines()[1:]
    *_, same, rand, _, gap = map(float, line.partition("[")[0].split()[1:])
    # All three numbers are rounded.
    assert abs(same - rand - gap) < 0.15 + 1e-9


def latex_lines(text: str) -> list[list[str]]:
    """Splits the lines of a LaTeX table into cells."""
    return [
        line.removesuffix(r" \\").split(" & ") for line in text.splitlines() if line.endswith(r"\\")
    ]


def test_the_headline_table_is_latex(evaluated: Path) -> None:
    summary = {
        (row["model"], row["label_rule"], row["variant"]): row
        for row in table_of(evaluated, "summary")
    }
    for name, rule in (("headline", RULES[0]), ("headline_mapped_only", RULES[1])):
        text = (evaluated / "results" / "latex" / f"{name}.tex").read_text()
        lines = latex_lines(text)
        assert len(lines) == 1 + 2 * 2
        assert {len(line) for line in lines} == {6}
        heads = [re.sub(r"\\(footnotesize |shortstack\[r\])|[{}\\]", "", cell) for cell in lines[0]]
        assert heads == ["Model", "Original", "Only-BG-T", "Mixed-Same", "Mixed-Rand", "BG-Gap"]
        expected = 100 * float(summary[MODEL, rule, "original"]["accuracy"])
        name, accuracy, *_ = lines[1]
        # It is bold if it cannot be told from the best one.
        assert name == r"efficientnet\_lite0"
        assert accuracy in (f"${expected:.1f}$", rf"$\mathbf{{{expected:.1f}}}$")
        # A file name is shown without its folder, and LaTeX's special characters are escaped.
        assert lines[3][0] == r"mobilenetv3\_small\_050"
        assert lines[4][0] == r"\scriptsize net\_9\%.pth"


@pytest.mark.usefixtures("empty_pdfs")
def test_the_columns_of_the_headline_can_be_chosen(
    evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Path(shutil.copytree(evaluated, tmp_path / "out"))
    flags = ("report", "--dataset", output, "--pictures", "none", "--columns")
    refused = refusal(capsys, *flags, "original,sharp")
    assert "--columns sharp: the dataset has original, only_bg_b," in refused
    by_default = latex_lines((output / "results" / "latex" / "headline.tex").read_text())
    run_here(*flags, "bg_gap,only_fg,original,no_fg,only_bg_b,mixed_next,mixed_same")
    assert list(output.glob("results/figures/*.pdf"))
    lines = latex_lines((output / "results" / "latex" / "headline.tex").read_text())
    assert {len(line) for line in lines} == {6}
    first, second = lines[:5], lines[5:]
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
    evaluated: Path, file: str, part: str, column: str, of_row: dict[str, str]
) -> None:
    text = (evaluated / "results" / "latex" / f"{file}.tex").read_text()
    lines = latex_lines(text)
    assert len(lines) % (1 + 2 * 2) == 0
    wanted = {"model": MODEL, "label_rule": RULES[0], **of_row}
    (row,) = [r for r in table_of(evaluated, part) if wanted.items() <= r.items()]
    # `of_row` names the last kind or class, so the last columns hold its values.
    first, second = ([cell for cell in line if cell] for line in lines[-4:-2])
    assert first[-1] == f"${100 * float(row[column]):.1f}$"
    assert f"{100 * float(row['ci_low']):.1f}, {100 * float(row['ci_high']):.1f}" in second[-1]


def test_tables_are_made_of_predictions_alone(
    evaluated: Path, nine_way: str, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(evaluated, tmp_path / "out"))
    csvs = {p.name: p.read_bytes() for p in output.glob("results/*.csv")}
    for name in csvs:
        (output / "results" / name).unlink()
    write_tables(dataset_in(output))
    assert {p.name: p.read_bytes() for p in output.glob("results/*.csv")} == csvs
    (predictions,) = output.glob("results/mobilenet*/predictions")
    shutil.rmtree(predictions)
    write_tables(dataset_in(output))
    assert nine_way not in {row["model"] for row in table_of(output, "summary")}
    flags = ("--dataset", output, "--pictures", "none", "--models", nine_way, *ONE)
    run_in9("evaluate", *flags)
    assert {p.name: p.read_bytes() for p in output.glob("results/*.csv")} == csvs


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


def test_predictions_agree_image_by_image_with_the_protocol(sample_run: Path) -> None:
    """Repeats the protocol: ToTensor, mean and std, argmax over 1000, class map; -1 is wrong."""
    model, labels = lite0(), label_of_output()
    (path,) = sample_run.glob("results/efficientnet_lite0/predictions/*.parquet")
    stored = {
        (row["variant"], row["key"]): row
        for row in pq.read_table(path).to_pylist()
        if row["label_rule"] == "argmax_then_map"
    }
    accuracies = {
        row["variant"]: row
        for row in table_of(sample_run, "summary")
        if row["label_rule"] == "argmax_then_map"
    }
    outside = 0
    for variant in ("no_fg", "mixed_rand", "mixed_next"):
        keys, truth, pictures = zip(*stored_pictures(sample_run, variant), strict=True)
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
        assert int(accuracies[variant]["n"]) == len(keys) == 70
    assert outside > 0
