"""Tests --fail_if: it judges the whole interval, exits with code 3, and reports its findings."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_results import made
from runs import run_in9

from pipeline.analyses.evaluation.conditions import (
    MIN_IMAGES,
    Condition,
    judge,
    parse_conditions,
)
from pipeline.analyses.evaluation.results import Summary
from pipeline.errors import UsageError
from pipeline.evaluate.results import Failure, RunSettings
from transforms.analysis import bg_gap
from transforms.two_way import Roles

SETTINGS = {"split": "val", "eval_input": "stored", "precision": "fp32", "holdout": 0.0}
HOW = RunSettings(**SETTINGS)  # type: ignore[arg-type]


def summary(**columns: Any) -> Summary:
    gap = {"label_rule": "argmax_then_map", "gap": 0.1, "ci_low": 0.05, "ci_high": 0.15, "n": 90}
    accuracy = {"label_rule": "mapped_only", "variant": "original", "accuracy": 0.9, "n": 90}
    accuracy |= {"ci_low": 0.8, "ci_high": 0.95}
    rows = {"gaps": [gap], "accuracy": [accuracy]}
    known = {"model": "m.tag", "entry": "m", "evaluation": SETTINGS, **rows, **columns}
    return made(Summary, label_rules=("argmax_then_map", "mapped_only"), **known)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("bg_gap>0.04", True),
        ("bg_gap>0.05", False),
        ("bg_gap>=0.05", True),
        ("bg_gap>0.09", False),  # The estimate alone would satisfy it.
        ("bg_gap<0.16", True),
        ("bg_gap<=.15", True),
        ("bg_gap<0.15", False),
        ("bg_gap > -1", True),
        ("mapped_only:original<0.96", True),
        (" mapped_only : original < 0.92 ", False),
        ("mapped_only:original>0.79", True),
        ("argmax_then_map:original>0.5", None),  # There is no such row.
    ],
)
def test_the_whole_interval_must_satisfy_a_condition(text: str, holds: bool | None) -> None:
    (verdict,) = judge([Condition.parse(text)], [summary()], [], ["m"], HOW)
    assert verdict.holds is holds


@given(st.data(), st.integers(1, MIN_IMAGES - 1), st.integers(1, 3))
def test_too_few_images_never_fail_a_job(data: st.DataObject, n: int, draws: int) -> None:
    bits = st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=draws, max_size=draws)
    same, rand = (np.asarray(data.draw(bits)) for _ in range(2))
    grounds = data.draw(st.lists(st.integers(0, n - 1), min_size=2 * n, max_size=2 * n))
    roles = Roles.from_units(np.tile(np.arange(n), 2 * draws), np.repeat(grounds, draws))
    gap = bg_gap(same, rand, roles)
    # Intervals of a few images are wide, even where all outcomes agree.
    assert gap.high - gap.low > 0.01
    row = {"label_rule": "argmax_then_map", "ci_low": gap.low, "ci_high": gap.high, "n": n}
    few = summary(gaps=[{**row, "gap": gap.gap}])
    for text in ("bg_gap<0.1", "bg_gap>-0.1", "bg_gap<=1", "bg_gap>=-1"):
        (verdict,) = judge([Condition.parse(text)], [few], [], ["m"], HOW)
        assert verdict.holds is False
    assert verdict.line.endswith("; no condition holds on fewer than 10 images")


@given(st.floats(-1, 1), st.sampled_from(["<", "<=", ">", ">="]))
def test_a_condition_and_its_opposite_never_both_hold(limit: float, comparison: str) -> None:
    opposite = {"<": ">=", "<=": ">", ">": "<=", ">=": "<"}[comparison]
    pair = [Condition.parse(f"bg_gap{c}{limit!r}") for c in (comparison, opposite)]
    first, second = judge(pair, [summary()], [], ["m"], HOW)
    assert not (first.holds and second.holds)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bg_gap", "in quotes, or the shell"),
        ("bg_gap=0.1", "expected a measure, a comparison and a fraction"),
        ("bg_gap>", "expected a measure"),
        ("gap>0.1", "no measure 'gap'; close to it: bg_gap"),
        ("mixd_rand<0.7", "close to it: mixed_rand"),
        ("fg_mask<0.7", "no measure 'fg_mask'"),
        ("paper:bg_gap>0.1", "no label rule 'paper'; known: argmax_then_map, mapped_only"),
        ("bg_gap>10", "'10' is not a fraction between -1 and 1"),
        ("original<-0.1", "'-0.1' is not a fraction between 0 and 1"),
        ("original<nan", "'nan' is not a fraction"),
        ("original<70%", "'70%' is not a fraction"),
    ],
)
def test_what_is_no_condition_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_conditions([text])
    assert f"--fail_if {text!r}: " in str(error.value)
    assert message in str(error.value)


def test_conditions_need_their_variants() -> None:
    variants = ("original", "fg_mask", "mixed_same", "mixed_rand", "mixed_rand_r1", "silhouette")
    parse_conditions(["bg_gap>0.1", "mixed_rand<0.5", "silhouette<0.5"], variants)
    for text, missing in (
        ("only_bg_t>0.5", "no only_bg_t; see --variants"),
        ("mixed_rand_r1<0.5", "mixed_rand_r1 is one draw of mixed_rand, whose accuracy is the"),
        # A model is not evaluated on the mask, whether the dataset has it or not.
        ("fg_mask<0.9", "no measure 'fg_mask'; known: bg_gap, original"),
    ):
        with pytest.raises(UsageError, match=missing):
            parse_conditions([text], variants)
    with pytest.raises(UsageError, match="no mixed_rand; see --variants"):
        parse_conditions(["bg_gap>0.1"], ("original", "mixed_same"))
    assert parse_conditions(None) == ()


def test_only_the_models_of_the_job_are_judged() -> None:
    condition = Condition.parse("bg_gap>0.01")
    others = [
        summary(entry="other"),
        summary(evaluation={**SETTINGS, "precision": "bf16"}),
        summary(entry=""),
    ]
    (verdict,) = judge([condition], [*others, summary()], [], ["m"], HOW)
    assert verdict.holds
    (verdict,) = judge([condition], others, [], ["m"], HOW)
    assert verdict.holds is None
    assert verdict.line == "--fail_if bg_gap>0.01 is not tested: m has no results"
    # Results of an earlier run do not stand for a run that failed.
    failure = made(Failure, entry="m", model="m.tag", error="no memory", evaluation=HOW)
    for summaries in ([], [summary()]):
        (verdict,) = judge([condition], summaries, [failure], ["m"], HOW)
        assert verdict.holds is None
        assert "m.tag failed: no memory" in verdict.line


def gap_of(output: Path) -> dict[str, str]:
    with (output / "results" / "gaps.csv").open(newline="") as file:
        return next(csv.DictReader(file))


def test_the_job_ends_with_exit_code_3(sample_run: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(sample_run, tmp_path / "out"))
    gap, low, high = (float(gap_of(output)[column]) for column in ("gap", "ci_low", "ci_high"))
    assert low < gap < high
    inside, above, below = f"bg_gap>{gap - 0.001}", f"bg_gap<{high + 0.001}", "original<0.01"
    interval = f"{gap:.3f}, 95 % interval [{low:.3f}, {high:.3f}], n = 70"
    (tmp_path / "junk.pth").write_bytes(b"junk")
    junk = f"resnet18={tmp_path / 'junk.pth'}"
    flags = ("evaluate", "--dataset", output, "--pictures", "none", "--models")
    both = (*flags, f"efficientnet_lite0,{junk}")

    # A model that failed does not hide the verdict on another.
    done = run_in9(*both, "--fail_if", f"{inside},{below}", "--fail_if", above, check=3)
    assert [line for line in done.stderr.splitlines() if "--fail_if" in line] == [
        f"--fail_if {above} holds for efficientnet_lite0: {interval}"
    ]
    lines = [line for line in done.stdout.splitlines() if "--fail_if" in line]
    assert lines[0] == (
        f"--fail_if {inside} does not hold for efficientnet_lite0: {interval}; "
        "its interval reaches beyond the limit"
    )
    assert lines[1].startswith(f"--fail_if {below} does not hold for efficientnet_lite0: 0.")
    assert len(lines) == 2

    # Nor does a model that failed count as one that passed.
    done = run_in9(*both, "--fail_if", inside, check=1)
    assert f"the job failed: --fail_if {inside} is not tested: {junk} failed: " in done.stderr

    refused = run_in9(*flags, "efficientnet_lite0", "--fail_if", "fg_mask<0.9", check=2)
    assert "--fail_if 'fg_mask<0.9': no measure 'fg_mask'; known: bg_gap" in refused.stderr
    done = run_in9(*flags, "efficientnet_lite0", "--fail_if", inside, check=0)
    assert "does not hold for efficientnet_lite0" in done.stdout
    assert "--fail_if" not in done.stderr


def test_wrong_conditions_are_refused_before_anything_starts(
    tiny_input: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    flags = ("run", "--input", tiny_input, "--output", output, "--variants", "original,no_fg")
    for text, message in (
        ("bg_gap", "--fail_if 'bg_gap': expected a measure"),
        ("original<0.9,bg_gap>0.1", "--fail_if 'bg_gap>0.1': the dataset has no mixed_same"),
    ):
        done = run_in9(*flags, "--fail_if", text, check=2)
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (output / "manifest.json").exists()
    assert not (output / "layers").exists()
