"""Tests the dial of a matrix: BG-Gap by strength, from which strength on it shows, worst groups."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from judged_models import MIXED, Answers, answers, models_of
from runs import ONE, QUICK, dataset_in, run_here, run_in9, table_of
from two_way_by_hand import (
    Method,
    contributions_to,
    interval_of,
    share_interval,
    singles_of,
    spread_of,
)

from pipeline.analyses.matrix.dial import COLUMNS, ROWS, DialRow, describe_dial, dial_rows
from pipeline.analyses.matrix.rows import make_plan
from pipeline.errors import UsageError
from pipeline.models.identity import PredictConfig
from transforms.taxonomy import imagenet9
from transforms.variants import DIAL_VARIANTS, VariantName

N, CLASSES = 240, 5
SAME, RAND = MIXED
LABELS = np.arange(N, dtype=np.int16) % CLASSES
FROM_90 = {"mixed_p90": 0.35, "mixed_p95": 0.4, "mixed_p99": 0.45, "mixed_p100": 0.6}
"""Planted gaps by strength; the others, and `mixed_rand`, have none."""


def of_row(rng: np.random.Generator, gap: float, seeds: int) -> list[Answers]:
    """Draws the answers of a row's models; class 1 is seldom recognised on others' backgrounds."""
    models = [answers(rng, N, mixed_same=0.9, mixed_rand=0.9 - gap) for _ in range(seeds)]
    for model in models:
        model[RAND] &= (LABELS != 1) | (rng.random(N) < 0.4)
        model[RAND][3::CLASSES][:9] = False
    return models


def dial(gaps: Mapping[str, float], seeds: int = 1) -> tuple[list[DialRow], Any, Any]:
    """Returns the dial of planted gaps, its models' answers by row, and the backgrounds."""
    rng = np.random.default_rng(5)
    by_row = {name: of_row(rng, gaps.get(name, 0.0), seeds) for name in ROWS}
    models = models_of(*(one for row in by_row.values() for one in row))
    grounds = dict(models.bg_units)
    # Nine pictures of class 3, always wrong, are on backgrounds of other classes, the rest on own.
    own = grounds[RAND].copy()
    third = np.flatnonzero(LABELS == 3)
    own[third] = np.where(np.arange(len(third)) < 9, np.arange(len(third)) * CLASSES, third)
    grounds[RAND] = own
    images = dataclasses.replace(models.images, labels=LABELS, background_labels=LABELS)
    models = dataclasses.replace(models, images=images, bg_units=grounds)
    summaries = iter(models.summaries)
    rows: Any = {
        name: [SimpleNamespace(summary=next(summaries)) for _ in row]
        for name, row in by_row.items()
    }
    bg_labels = {SAME: LABELS, RAND: LABELS[own]}
    return [*dial_rows(models, rows, bg_labels, imagenet9())], by_row, grounds


def interval_by_hand(
    grounds: Mapping[VariantName, Any], confidence: float, *methods: Sequence[Answers]
) -> tuple[float, float, float]:
    """Returns the gap of a method, less that of a second if there is one, and its interval."""
    roles = [(str(fg), str(bg)) for side in MIXED for fg, bg in enumerate(grounds[side])]
    of = []
    for seeds in methods:
        means = [[model[side].mean() for side in MIXED] for model in seeds]
        r = [
            [*(model[SAME] - same) / N, *(rand - model[RAND]) / N]
            for model, (same, rand) in zip(seeds, means, strict=True)
        ]
        of.append(Method([same - rand for same, rand in means], r))
    difference = float(np.subtract.reduce([np.mean(one.values) for one in of]))
    pictures = [(*role, x) for role, x in zip(roles, contributions_to(of), strict=True)]
    spread = spread_of(roles, of) if len(methods[0]) > 1 else None
    paired = [fg for fg, _ in roles]
    ends = interval_of(difference, pictures, paired, spread, singles_of(of), confidence)
    return difference, *ends


@pytest.mark.parametrize("seeds", [1, 3])
def test_gaps_and_paired_differences_are_those_by_hand(seeds: int) -> None:
    rows, by_row, grounds = dial(FROM_90, seeds)
    names = ["mixed_p00", "mixed_rand", *DIAL_VARIANTS[1:]]
    assert [row.train_variant for row in rows] == names
    assert [row.label for row in rows][:4] == ["never", f"1/{CLASSES}", "25 %", "50 %"]
    for row in rows:
        assert (row.level, row.n, row.seeds) == (1 - 0.05 / 8, N, seeds)
        seen = by_row[row.train_variant]
        expected = interval_by_hand(grounds, row.level, seen)
        assert (row.gap, row.gap_ci_low, row.gap_ci_high) == pytest.approx(expected, abs=1e-7)
        found = (row.difference, row.difference_ci_low, row.difference_ci_high)
        if row.train_variant == "mixed_rand":
            assert found == (None, None, None)
        else:
            expected = interval_by_hand(grounds, row.level, seen, by_row["mixed_rand"])
            assert found == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    ("gaps", "shown", "rest"),
    [
        (FROM_90, "from mixed_p90 on", "; smaller strengths: not shown, which"),
        (
            {**FROM_90, "mixed_p95": 0.0},
            "from mixed_p99 on",
            "; smaller strengths: not shown, which",
        ),
        ({**FROM_90, "mixed_p100": 0.0}, "at no strength", ", which is no statement that none"),
        (dict.fromkeys(DIAL_VARIANTS, 0.5), "from mixed_p00 on", ""),
    ],
)
def test_a_gap_shows_from_the_strength_at_which_all_greater_ones_show_it(
    gaps: dict[str, float], shown: str, rest: str
) -> None:
    words = describe_dial(dial(gaps)[0])
    start = f"BG-Gap above that of mixed_rand: shown {shown} (n = {N}, intervals at 1 - 0.05 / 8)"
    assert words.startswith(start + rest)
    assert rest or words == start


def test_two_trainings_have_no_interval_and_show_nothing() -> None:
    rows, *_ = dial(FROM_90, 2)
    assert describe_dial(rows) == ""
    for row in rows:
        assert (row.gap_ci_low, row.difference_ci_high, row.worst) == (None, None, "-")
        assert row.figures[0] == (row.gap,) * 3


def test_the_worst_group_has_ten_pictures_and_an_interval_for_all_groups() -> None:
    rows, by_row, grounds = dial(FROM_90)
    for row in rows:
        (model,) = by_row[row.train_variant]
        by_group = defaultdict[tuple[int, bool], list[tuple[str, str, bool]]](list)
        for side in MIXED:
            for fg, bg in enumerate(grounds[side].tolist()):
                is_own = side == SAME or LABELS[bg] == LABELS[fg]
                picture = (str(fg), str(bg), bool(model[side][fg]))
                by_group[int(LABELS[fg]), is_own].append(picture)
        assert len(by_group[3, False]) == 9
        large = {key: group for key, group in by_group.items() if len(group) >= 10}
        (label, is_own), worst = min(large.items(), key=lambda one: share_interval(one[1])[1])
        assert (label, is_own) == (1, False)
        assert (row.worst_class, row.worst_background) == (imagenet9().names[1], "other")
        assert (row.groups, row.worst_pictures) == (len(large), len(worst))
        share = sum(right for *_, right in worst) / len(worst)
        expected = (share, *share_interval(worst, 1 - 0.05 / len(large)))
        found = (row.worst_accuracy, row.worst_ci_low, row.worst_ci_high)
        assert found == pytest.approx(expected, abs=1e-9)


def test_a_dial_beside_the_matrix_of_the_other_variants(small_sample: Path, tmp_path: Path) -> None:
    output, name = tmp_path / "out", "test_efficientnet-1ep-val-holdout0.5-dial"
    how = ("--holdout", 0.5, "--arch", "test_efficientnet", "--epochs", 1, "--batch_size", 4)
    how += ("--workers", 0, "--lr", 0.01, "--pictures", "none", "--dataset")
    variants = ("--variants", "dial,mixed_same,original,only_fg", "--replicates", 3)
    run_here("generate", "--output", output, "--input", small_sample, *variants, *QUICK, *ONE)
    refused = ("--variants", "dial", "--in9l", output, *how, output)
    assert "leave out --in9l" in run_here("matrix", *refused, code=2).err
    run_here("matrix", "--variants", "original", *how, output)
    plain = table_of(output, "matrix")
    assert not (output / "results" / "dial.csv").exists()
    printed = run_in9("matrix", "--variants", "dial", *how, output, figures=True).stdout
    both = table_of(output, "matrix")
    assert [row for row in both if row in plain] == plain
    cells = [row for row in both if row not in plain]
    names = {(row["train_variant"], row["test_variant"], row["published"]) for row in cells}
    assert names == {(row, column, "") for row in ROWS for column in COLUMNS}
    lines, page = table_of(output, "dial"), (output / "report.html").read_text()
    assert [row["train_variant"] for row in lines] == ["mixed_p00", RAND.base, *DIAL_VARIANTS[1:]]
    words = f"BG-Gap above that of mixed_rand: shown at no strength (n = {lines[0]['n']}, inter"
    assert "No model but those that in9 matrix has trained has been evaluated" in page
    for text in (printed, page):
        assert words in text
        assert "never" in text
    figure = (output / "results" / "figures" / f"matrix-{name}-dial.svg").read_text()
    assert all(f">{label}</text>" in figure for label in ("never", "1/9", "25", "100"))
    # Where mixed_rand is never of the own class, it is no reference.
    dataset = dataset_in(output)
    compose = dataclasses.replace(dataset.config.compose, mixed_rand="other")
    config = dataclasses.replace(dataset.config, compose=compose)
    manifest = dataclasses.replace(dataset.manifest, config=config)
    plan = {"split": None, "train_split": None, "share": 0.5, "predict": PredictConfig("cpu")}
    assert set(make_plan(dataset, None, variants=None, **plan).rows) == set(COLUMNS)
    with pytest.raises(UsageError, match="without --mixed_rand other"):
        make_plan(dataclasses.replace(dataset, manifest=manifest), None, variants=("dial",), **plan)
