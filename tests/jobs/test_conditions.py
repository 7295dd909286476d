"""Tests --fail_if: verdicts by whole intervals, exit codes, and what is no condition."""

import dataclasses
import itertools
import json
import math
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged_models import MIXED, RULES, SETTINGS, answers, models_of
from made_results import made
from runs import run_here, run_in9, table_of

from pipeline.analyses.evaluation.baseline import Baseline
from pipeline.errors import UsageError
from pipeline.evaluate.comparisons import Measured, ModelsOnSameImages
from pipeline.evaluate.summary import Summary
from pipeline.jobs.conditions import MIN_IMAGES, Gate, Judgement, judge_models, outcome
from pipeline.jobs.fail_if import Condition, parse_conditions
from pipeline.storage.store import Store
from transforms.intervals import Verdict, decide, level_of
from transforms.variants import ORIGINAL, VariantName


def verdicts(
    texts: list[str], models: ModelsOnSameImages, baseline: Baseline | str | None = None
) -> list[Judgement]:
    named = [(summary.name, summary) for summary in models.summaries]
    return judge_models([Condition.parse(text) for text in texts], named, [models], baseline)


def baseline_of(models: ModelsOnSameImages, position: int, **changes: Any) -> Baseline:
    """Makes one of the models the baseline."""
    correct = [models.correct[position]]
    values = {"subject": models.summaries[position], "correct": correct, "is_own": True}
    return Baseline(**{"store": Store("/data"), **values, **changes})


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("bg_gap>=0.05", Verdict.HOLDS),
        ("bg_gap>0.09", Verdict.OPEN),  # The estimate alone would satisfy it.
        ("bg_gap<=.15", Verdict.HOLDS),
        ("bg_gap > 0.15", Verdict.FAILS),
        ("bg_gap > baseline - 0.04", Verdict.HOLDS),
        ("bg_gap<baseline", Verdict.FAILS),
    ],
)
def test_the_whole_interval_decides(text: str, verdict: Verdict) -> None:
    assert decide(0.05, 0.15, Condition.parse(text).holds) is verdict


@given(st.floats(-1, 1), st.sampled_from(["<", "<=", ">", ">="]), st.lists(st.floats(-1, 1)))
def test_a_condition_and_its_opposite_are_opposed(
    limit: float, comparison: str, bounds: list[float]
) -> None:
    opposite = {"<": ">=", "<=": ">", ">": "<=", ">=": "<"}[comparison]
    pair = [Condition.parse(f"bg_gap{c}{limit!r}").holds for c in (comparison, opposite)]
    mirrored = {Verdict.HOLDS: Verdict.FAILS, Verdict.FAILS: Verdict.HOLDS}
    for low, high in itertools.pairwise(sorted(bounds)):
        first, second = (decide(low, high, holds) for holds in pair)
        assert second is mirrored.get(first, Verdict.OPEN)


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(1, MIN_IMAGES - 1))
def test_too_few_images_decide_nothing(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    models = models_of(answers(rng, n), answers(rng, n), seed=seed)
    texts = ["bg_gap<0.1", "bg_gap>-0.1", "bg_gap<=1", "original>=0", "bg_gap<=baseline+1"]
    for judgement in verdicts(texts, models, baseline_of(models, 0)):
        assert judgement.verdict is Verdict.OPEN
        assert "groups that count alike, decide nothing (here" in judgement.line


def test_too_few_groups_decide_nothing() -> None:
    models = models_of({name: np.full(100, True) for name in (ORIGINAL, *MIXED)})
    for groups, verdict, units in (
        (np.arange(100) // 10, Verdict.HOLDS, 10),
        (np.arange(100) // 20, Verdict.OPEN, 5),
        # Many small groups beside one that holds half of the images do not count as many.
        (np.minimum(np.arange(100) // 2, 25), Verdict.OPEN, 3.8),
    ):
        images = dataclasses.replace(models.images, background_units=groups)
        (judgement,) = verdicts(["original>0.1"], dataclasses.replace(models, images=images))
        assert (judgement.verdict, judgement.n) == (verdict, 100)
        assert judgement.units == pytest.approx(units, abs=0.05)
        is_told = f"groups that count alike, decide nothing (here {units:.1f}); if"
        assert (is_told in judgement.line) == (verdict is Verdict.OPEN)


def test_of_images_in_groups_only_more_groups_decide() -> None:
    models = models_of(answers(np.random.default_rng(0), 100))
    groups = dataclasses.replace(models.images, background_units=np.arange(100) // 20)
    for images, count in ((models.images, None), (groups, 5)):
        one = dataclasses.replace(models, images=images)
        (judgement,) = verdicts(["bg_gap > 0.2"], one)
        assert (judgement.verdict, judgement.groups) == (Verdict.OPEN, count)
        needed = judgement.decided_at
        assert needed is not None
        (said,) = re.findall("decided at ([^;]*)", judgement.line)
        only = f" in {math.ceil(needed / 20)} groups, not by more images of these 5"
        assert said == f"{needed:,} images" + only * (count is not None)
        assert judgement.smallest is not None
        of = "100 images in 5 groups" if count else "100 images"
        detect = f"; {of} detect only differences above {100 * judgement.smallest:.1f} points from"
        assert detect in judgement.line


def test_a_condition_is_decided_with_the_error_at_its_limit() -> None:
    """One image of 151 differs; by the variance of that, the limit would seem to be far away."""
    right = {name: np.full(151, True) for name in (ORIGINAL, *MIXED)}
    models = models_of({**right, ORIGINAL: np.arange(151) > 0}, right)
    (judgement,) = verdicts(["original<baseline-0.02"], models, baseline_of(models, 1))
    assert judgement.verdict is Verdict.OPEN
    expected = 1.96**2 * 0.02 * 0.98 / (0.02 - 1 / 151) ** 2
    assert judgement.decided_at == pytest.approx(expected, rel=0.02)


@given(st.integers(0, 2**32), st.integers(10, 400), st.floats(-0.3, 0.3))
def test_an_open_condition_says_how_many_images_would_decide_it(
    seed: int, n: int, limit: float
) -> None:
    rng, rule = np.random.default_rng(seed), RULES[0]
    models = models_of(answers(rng, n), answers(rng, n), seed=seed)
    texts = [f"bg_gap>{limit}", f"original<{0.75 + limit / 4}", f"bg_gap<baseline+{abs(limit)}"]
    for text, judgement in zip(texts, verdicts(texts, models, baseline_of(models, 1)), strict=True):
        condition = Condition.parse(text)
        against = [models.correct[1][rule]] if condition.names_baseline else []
        measured = models.measure(condition.measure, models.summaries[0], rule, against)
        assert isinstance(measured, Measured)
        if judgement.verdict is not Verdict.OPEN:
            assert judgement.decided_at is judgement.smallest is None
            continue

        def verdict_at(images: int) -> Verdict:
            bounds = measured.interval(level_of(3), images / measured.n)  # noqa: B023
            return decide(*bounds, condition.holds)  # noqa: B023

        decided = judgement.decided_at or 1_000_001
        assert verdict_at(decided - 1) is Verdict.OPEN
        assert (verdict_at(decided) is Verdict.OPEN) == (judgement.decided_at is None)
        # An accuracy has no spread of pairs by which to say it.
        is_said = measured.trials is None and measured.smallest(level_of(3)) <= 1
        assert (judgement.smallest is not None) == is_said


def test_twice_the_images_have_the_interval_that_was_said() -> None:
    n, rng, rule = 200, np.random.default_rng(0), RULES[0]
    one, other = answers(rng, n), answers(rng, n)
    models = models_of(one, other)
    doubled = [{name: np.tile(right, 2) for name, right in each.items()} for each in (one, other)]
    grounds = {name: np.concatenate([u, u + n]) for name, u in models.bg_units.items()}
    twice = dataclasses.replace(models_of(*doubled), bg_units=grounds)
    for quantity, has_baseline in (("bg_gap", False), ("original", False), ("mixed_rand", True)):
        bounds = []
        for each, share in ((models, 2.0), (twice, 1.0)):
            against = [each.correct[1][rule]] if has_baseline else []
            measured = each.measure(quantity, each.summaries[0], rule, against)
            assert measured is not None
            bounds.append(measured.interval(0.99, share))
        # The correction for small numbers differs a little.
        assert bounds[0] == pytest.approx(bounds[1], abs=2e-3)


def test_conditions_and_models_are_one_family() -> None:
    rng, texts = np.random.default_rng(3), ["bg_gap>0.1", "bg_gap > baseline"]
    models = models_of(*(answers(rng, 100) for _ in range(4)))
    known = [(summary.name, summary) for summary in models.summaries]
    failed = ("m9", "m9 failed: no memory")
    conditions = [Condition.parse(text) for text in texts]
    judged = judge_models(conditions, [*known, failed], [models], baseline_of(models, 2))
    # The baseline is not judged; a model that failed counts.
    assert [one.model for one in judged] == [n for n in ("m0", "m1", "m3", "m9") for _ in texts]
    assert {one.confidence for one in judged[:-2]} == {level_of(2 * 4)}
    assert "99.38 % interval" in judged[0].line
    assert judged[1].value is not None
    side = "below" if judged[1].value < 0 else "above"
    assert f": {abs(100 * judged[1].value):.1f} points {side} the baseline m2, " in judged[1].line
    untested = [f"--fail_if {text} is not tested: m9 failed: no memory" for text in texts]
    assert [one.line for one in judged[-2:]] == untested
    (alone,) = judge_models(conditions[:1], known[2:3], [models], baseline_of(models, 2))
    assert alone.line.endswith("is not tested: there is no model to judge besides the baseline")


@pytest.mark.parametrize(
    ("changes", "others"),
    [
        ({}, ["m0", "m1", "m3"]),
        ({"weights_sha256": "f" * 64}, ["m0", "m1", "m2", "m3"]),
        ({"evaluation": {**SETTINGS, "precision": "bf16"}}, ["m0", "m1", "m2", "m3"]),
    ],
)
def test_a_baseline_elsewhere_is_another_model_by_its_weights_or_settings(
    changes: dict[str, Any], others: list[str]
) -> None:
    rng = np.random.default_rng(3)
    models = models_of(*(answers(rng, 100) for _ in range(4)))
    subject = made(
        Summary, **{"model": "m2", "evaluation": SETTINGS, "label_rules": RULES, **changes}
    )
    baseline = baseline_of(models, 2, is_own=False, subject=subject)
    judged = verdicts(["bg_gap > baseline"], models, baseline)
    assert [one.model for one in judged] == others
    assert f"the baseline {subject.name} in /data, " in judged[0].line


def test_a_difference_is_under_the_first_rule_that_both_have() -> None:
    rng = np.random.default_rng(4)
    one, other = answers(rng, 50), answers(rng, 50, original=0.2)
    models = models_of(one, other)
    for rules in (RULES, RULES[1:]):
        subject = made(Summary, model="m1", evaluation=SETTINGS, label_rules=rules)
        baseline = baseline_of(models, 1, subject=subject, correct=[dict.fromkeys(rules, other)])
        assert baseline.common_rule(models.summaries[0]) == rules[0]
        judged, *_ = verdicts(["original>baseline"], models, baseline)
        assert judged.value == pytest.approx(one[ORIGINAL].mean() - other[ORIGINAL].mean())


def test_why_there_is_no_difference_is_said() -> None:
    models = models_of(*[answers(np.random.default_rng(4), 50)] * 2)
    elsewhere, by_another_rule = (
        made(Summary, model="m1", evaluation={**SETTINGS, **changes}, label_rules=rules)
        for changes, rules in (({"holdout": 0.5}, RULES), ({}, ("another",)))
    )
    for baseline, reason in (
        (
            baseline_of(models, 1, subject=by_another_rule),
            "m0 has no original to compare with the baseline m1: they have no label rule in common",
        ),
        (
            baseline_of(models, 1, subject=elsewhere),
            "it was tested on all of split val, the baseline on split val with --holdout 0.5",
        ),
        (
            baseline_of(models, 1, correct=[{RULES[0]: {}}]),
            "they lack predictions on the same variants by the same label rule",
        ),
        ("--baseline x names no model", "is not tested: --baseline x names no model"),
    ):
        judged, *_ = verdicts(["original>baseline"], models, baseline)
        assert judged.verdict is None
        assert reason in judged.line


@pytest.mark.parametrize(
    ("found", "code", "code_if_open_fails"),
    [
        ([], 0, 0),
        ([Verdict.FAILS], 0, 0),
        ([Verdict.FAILS, Verdict.OPEN], 0, 4),
        ([None, Verdict.OPEN], 1, 1),
        ([Verdict.OPEN, Verdict.HOLDS, None], 3, 3),
    ],
)
def test_exit_codes(found: list[Verdict | None], code: int, code_if_open_fails: int) -> None:
    interval = {"value": 0.0, "ci_low": 0.0, "ci_high": 0.0}
    judged = [Judgement("c", "m", one, **interval) for one in found]
    for fails, expected in ((False, code), (True, code_if_open_fails)):
        got, lines = outcome(judged, Gate(fails_if_open=fails))
        assert got == expected
        assert len(lines) == (expected > 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bg_gap", "in quotes, or the shell"),
        ("bg_gap=0.1", "expected a measure, a comparison and a fraction"),
        ("gap>0.1", "no measure 'gap'; did you mean bg_gap?"),
        ("fg_mask<0.7", "no measure 'fg_mask'"),
        ("paper:bg_gap>0.1", "no label rule 'paper'; known: argmax_then_map, mapped_only"),
        ("bg_gap>0_1", "'0_1' is not a fraction between -1 and 1"),
        ("original<-0.1", "'-0.1' is not a fraction between 0 and 1"),
        ("original<nan", "no measure 'nan'; known: baseline, bg_gap, original"),
        ("bg_gap>baseline 0.1", "'0.1' is not a fraction between -1 and 1"),
        ("bg_gap>baseline+2", "'+2' is not a fraction between -1 and 1 (2 points: 0.02)"),
        ("bg_gap>baselines", "no measure 'baselines'; did you mean baseline?"),
        ("no_fg<orignal-0.1", "no measure 'orignal'; did you mean original?"),
        ("no_fg<original-1.5", "'-1.5' is not a fraction between -1 and 1 (-1.5 points: -0.015)"),
        ("no_fg<mixed_rand_r1", "mixed_rand_r1 is one draw of mixed_rand, whose accuracy is"),
        ("bg_gap<original", "a gap is compared with a fraction or the baseline, an accuracy"),
        ("original>bg_gap-0.1", "a gap is compared with a fraction or the baseline"),
        ("original<original", "an accuracy also with that on another variant"),
        ("bg_gap < 5", "'5' is not a fraction between -1 and 1 (5 points: 0.05)"),
        ("bg_gap>baseline-2.5", "'-2.5' is not a fraction between -1 and 1 (-2.5 points: -0.025)"),
        ("original<70%", "'70%' is not a fraction between 0 and 1 (70 points: 0.7)"),
    ],
)
def test_what_is_no_condition_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        Condition.parse(text)
    assert f"--fail_if {text!r}: " in str(error.value)
    assert message in str(error.value)
    assert ("points" in str(error.value)) == ("points" in message)


def test_conditions_need_their_variants() -> None:
    names = ("original", "fg_mask", "mixed_same", "mixed_rand", "mixed_rand_r1", "silhouette")
    variants = [VariantName.parse(name) for name in names]
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
        parse_conditions(["bg_gap>0.1"], (ORIGINAL, VariantName("mixed_same")))
    assert parse_conditions(None, ()) == ()


@pytest.mark.usefixtures("no_figures")
def test_the_job_ends_by_its_conditions(sample_run: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(sample_run, tmp_path / "out"))
    row = table_of(output, "gaps")[0]
    gap, low, high = (float(row[column]) for column in ("gap", "ci_low", "ci_high"))
    assert low < gap < high
    above, inside = f"bg_gap<{high + 0.001}", f"bg_gap>{gap - 0.001}"
    interval = f"{gap:.3f}, 95 % interval [{low:.3f}, {high:.3f}], n = 70, by argmax_then_map"
    (tmp_path / "junk.pth").write_bytes(b"junk")
    junk = f"resnet18={tmp_path / 'junk.pth'}"
    flags = ("evaluate", "--dataset", output, "--pictures", "none", "--models")

    done = run_in9(*flags, "efficientnet_lite0", "--fail_if", above, check=3)
    assert [line for line in done.stderr.splitlines() if "--fail_if" in line] == [
        f"--fail_if {above} holds for efficientnet_lite0: {interval}"
    ]
    summary = json.loads((output / ".in9" / "last_run.json").read_text())["summary"]
    (verdict,) = summary["fail_if"]
    assert (verdict["condition"], verdict["verdict"]) == (above, "holds")
    assert verdict["ci_low"] == pytest.approx(low)

    # A model that failed does not count as one that passed, and widens the intervals.
    both = (*flags, f"efficientnet_lite0,{junk}", "--fail_if", f"{inside},original<0.01")
    done = run_in9(*both, "--if_open", "fail", check=1)
    assert f"the job failed: --fail_if {inside} is not tested: {junk} failed: " in done.stderr
    lines = [line for line in done.stdout.splitlines() if "--fail_if" in line]
    assert lines[0].startswith(
        f"--fail_if {inside} is open for efficientnet_lite0: {gap:.3f}, 98.75 % interval ["
    )
    assert lines[1].startswith("--fail_if original<0.01 does not hold for efficientnet_lite0: 0.")
    assert len(lines) == 2

    # `report` judges again without a model; a failure is none of its models.
    report = ("report", "--dataset", output, "--pictures", "none", "--fail_if", inside)
    assert "open conditions pass, unless --if_open fail is given" in run_here(*report).out
    assert "is open for efficientnet_lite0" in run_here(*report, "--if_open", "fail", code=4).err


@pytest.mark.parametrize("text", ["baseline{}x y", "{}x y", "baseline -{}x y", "1{}", "1{}x"])
def test_a_long_condition_is_parsed_at_once(text: str) -> None:
    """Parses texts that would take minutes if the time grew with the square of their length."""
    started = time.process_time()
    for character in " 1x":
        with pytest.raises(UsageError):
            Condition.parse(f"bg_gap > {text.format(character * 300_000)}!")
    assert time.process_time() - started < 60
