"""Tests --fail_if and --baseline: verdicts by whole intervals, exit codes, and what is refused."""

import dataclasses
import itertools
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_results import made
from numpy.typing import NDArray
from runs import ONE, QUICK, dataset_in, everything, refusal, run_here, run_in9, table_of, write_all

from pipeline.analyses.evaluation.baseline import (
    Baseline,
    choose_baseline,
    describe_baseline,
    find_baseline,
    models_named,
    with_results,
)
from pipeline.analyses.evaluation.panel import ACCURACY, AccuracyPanel
from pipeline.dataset.folder import Dataset
from pipeline.errors import UsageError
from pipeline.evaluate.comparisons import (
    ComparisonRow,
    Measured,
    ModelsOnSameImages,
    mark_best,
    read_contributions,
)
from pipeline.evaluate.predictions import EvalImages
from pipeline.evaluate.results import (
    FailedModel,
    RunSettings,
    note_failures,
    pick,
    result_file,
    write_result,
)
from pipeline.evaluate.summaries import read_summaries
from pipeline.evaluate.summary import AccuracyRow, Evaluated, Summary
from pipeline.jobs.conditions import (
    MIN_IMAGES,
    Condition,
    Gate,
    Judgement,
    judge,
    judge_models,
    outcome,
    parse_conditions,
)
from pipeline.jobs.publish import PublishPlan, publish
from pipeline.report.write import gather, write_tables
from pipeline.storage.store import Store
from transforms.estimates import Verdict, decide
from transforms.intervals import level_of, t_quantile
from transforms.scoring import LABEL_RULES
from transforms.variants import ORIGINAL, VariantName

SETTINGS = {"split": "val", "eval_input": "stored", "precision": "fp32", "holdout": 0.0}
RULES = tuple(LABEL_RULES)
MIXED = (VariantName("mixed_same"), VariantName("mixed_rand"))
Answers = dict[VariantName, NDArray[np.bool_]]


def answers(rng: np.random.Generator, n: int, **shares: float) -> Answers:
    """Draws whether a model is right on n pictures of each variant."""
    shares = {"original": 0.8, "mixed_same": 0.8, "mixed_rand": 0.6, **shares}
    return {VariantName(name): rng.random(n) < share for name, share in shares.items()}


def models_of(
    *models: Answers, rules: tuple[str, ...] = RULES, seed: int = 0
) -> ModelsOnSameImages:
    """Returns models that are right on the given pictures, under each of the rules."""
    n = len(models[0][ORIGINAL])
    keys, numbers = pa.array([f"{i:06}" for i in range(n)]), np.arange(n)
    labels = np.zeros(n, np.int16)
    images = EvalImages(keys, labels, np.zeros(n), keys, labels, (), numbers)
    summaries = [
        made(Summary, model=f"m{i}", entry=f"m{i}", evaluation=SETTINGS, label_rules=rules)
        for i in range(len(models))
    ]
    rng = np.random.default_rng(seed)
    grounds = {name: rng.permutation(n) for name in MIXED}
    correct = [dict.fromkeys(rules, model) for model in models]
    return ModelsOnSameImages(images, tuple(models[0]), summaries, correct, grounds)


def verdicts(
    texts: list[str], models: ModelsOnSameImages, baseline: Baseline | str | None = None
) -> list[Judgement]:
    named = [(summary.name, summary) for summary in models.summaries]
    return judge_models([Condition.parse(text) for text in texts], named, [models], baseline)


def baseline_of(models: ModelsOnSameImages, position: int, **changes: Any) -> Baseline:
    """Makes one of the models the baseline."""
    summary = models.summaries[position]
    run = made(Evaluated, model=summary.model, evaluation=SETTINGS)
    values = {"run": run, "store": Store("/data"), "is_own": True, **changes}
    return Baseline(**{"correct": models.correct[position], **values})


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("bg_gap>0.04", Verdict.HOLDS),
        ("bg_gap>=0.05", Verdict.HOLDS),
        ("bg_gap>0.09", Verdict.OPEN),  # The estimate alone would satisfy it.
        ("bg_gap<=.15", Verdict.HOLDS),
        ("bg_gap > -1", Verdict.HOLDS),
        ("bg_gap > 0.15", Verdict.FAILS),
        ("bg_gap > baseline - 0.04", Verdict.HOLDS),
        ("bg_gap>baseline+0.1", Verdict.OPEN),
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
    right = {name: np.full(100, True) for name in (ORIGINAL, *MIXED)}
    models = models_of(right)
    for size, verdict in ((10, Verdict.HOLDS), (20, Verdict.OPEN)):
        images = dataclasses.replace(models.images, background_units=np.arange(100) // size)
        grouped = dataclasses.replace(models, images=images)
        (judgement,) = verdicts(["original>0.1"], grouped)
        assert (judgement.verdict, judgement.n, judgement.units) == (verdict, 100, 100 // size)
    assert "groups that count alike, decide nothing (here 5.0); if " in judgement.line
    assert "decided at 200 images" in judgement.line
    # Many small groups beside one that holds half of the images do not count as many.
    images = dataclasses.replace(
        models.images, background_units=np.minimum(np.arange(100) // 2, 25)
    )
    (judgement,) = verdicts(["original>0.1"], dataclasses.replace(models, images=images))
    assert (judgement.verdict, round(judgement.units, 1)) == (Verdict.OPEN, 3.8)


def test_a_condition_is_decided_with_the_error_at_its_limit() -> None:
    """One image of 151 differs; by the variance of that, the limit would seem to be far away."""
    right = {name: np.full(151, True) for name in (ORIGINAL, *MIXED)}
    wrong = {**right, ORIGINAL: np.arange(151) > 0}
    models = models_of(wrong, right)
    (judgement,) = verdicts(["original<baseline-0.02"], models, baseline_of(models, 1))
    assert judgement.verdict is Verdict.OPEN
    z, distance = 1.96, 0.02 - 1 / 151
    assert judgement.decided_at == pytest.approx(z**2 * 0.02 * 0.98 / distance**2, rel=0.02)
    errors = z + 0.84
    x = 0.02 + (judgement.smallest or 0)
    assert judgement.smallest == pytest.approx(errors * (x * (1 - x) / 151) ** 0.5, rel=0.02)


@given(st.integers(0, 2**32), st.integers(10, 400), st.floats(-0.3, 0.3))
def test_an_open_condition_says_how_many_images_would_decide_it(
    seed: int, n: int, limit: float
) -> None:
    rng = np.random.default_rng(seed)
    models = models_of(answers(rng, n), answers(rng, n), seed=seed)
    texts = [f"bg_gap>{limit}", f"original<{0.75 + limit / 4}", f"bg_gap<baseline+{abs(limit)}"]
    baseline, level = baseline_of(models, 1), level_of(3)
    for text, judgement in zip(texts, verdicts(texts, models, baseline), strict=True):
        condition = Condition.parse(text)
        measured = models.measure(
            condition.measure,
            models.summaries[0],
            RULES[0],
            models.correct[1][RULES[0]] if condition.names_baseline else None,
        )
        assert isinstance(measured, Measured)
        assert judgement.confidence == level
        assert (judgement.ci_low, judgement.ci_high) == measured.interval(level)
        if judgement.verdict is not Verdict.OPEN:
            assert judgement.decided_at is judgement.smallest is None
            continue

        def verdict_at(images: int) -> Verdict:
            bounds = measured.interval(level, images / measured.n)  # noqa: B023
            return decide(*bounds, condition.holds)  # noqa: B023

        decided = judgement.decided_at or 1_000_001
        assert verdict_at(decided - 1) is Verdict.OPEN
        assert (verdict_at(decided) is Verdict.OPEN) == (judgement.decided_at is None)
        is_said = measured.correct is None and measured.smallest(level) <= 1
        assert (judgement.smallest is None) != is_said
        if judgement.smallest is not None:
            # What an interval reaches would show in only half of the draws.
            reach = t_quantile(measured.spread.units - 1, level) * measured.spread.variance**0.5
            assert judgement.smallest > reach


def test_twice_the_images_have_the_interval_that_was_said() -> None:
    n, rng = 200, np.random.default_rng(0)
    one, other = answers(rng, n), answers(rng, n)
    models = models_of(one, other)
    doubled = [{name: np.tile(right, 2) for name, right in each.items()} for each in (one, other)]
    grounds = {name: np.concatenate([u, u + n]) for name, u in models.bg_units.items()}
    twice = dataclasses.replace(models_of(*doubled), bg_units=grounds)
    rule = RULES[0]
    for quantity, against in (("bg_gap", None), ("original", None), ("mixed_rand", 1)):
        measured, later = (
            each.measure(
                quantity,
                each.summaries[0],
                rule,
                None if against is None else each.correct[against][rule],
            )
            for each in (models, twice)
        )
        assert measured is not None
        assert later is not None
        # The correction for small numbers differs a little.
        assert measured.interval(0.99, 2.0) == pytest.approx(later.interval(0.99), abs=2e-3)


def test_conditions_and_models_are_one_family() -> None:
    rng = np.random.default_rng(3)
    models = models_of(*(answers(rng, 100) for _ in range(4)))
    texts = ["bg_gap>0.1", "bg_gap > baseline"]
    known = [(summary.name, summary) for summary in models.summaries]
    failed = ("m9", "m9 failed: no memory")
    conditions = [Condition.parse(text) for text in texts]
    judged = judge_models(conditions, [*known, failed], [models], baseline_of(models, 2))
    # The baseline is not judged; a model that failed counts.
    assert [one.model for one in judged] == [n for n in ("m0", "m1", "m3", "m9") for _ in texts]
    assert {one.confidence for one in judged[:-2]} == {level_of(2 * 4)}
    assert [one.line for one in judged[-2:]] == [
        f"--fail_if {text} is not tested: m9 failed: no memory" for text in texts
    ]
    assert "99.38 % interval" in judged[0].line
    assert "from the baseline m2, " in judged[1].line
    # A baseline in another folder is no other model for that, but for other weights or settings.
    elsewhere = baseline_of(models, 2, is_own=False)
    for changes, others in (
        ({}, ["m0", "m1", "m3"]),
        ({"weights_sha256": "f" * 64}, ["m0", "m1", "m2", "m3"]),
        ({"evaluation": {**SETTINGS, "precision": "bf16"}}, ["m0", "m1", "m2", "m3"]),
    ):
        run = made(Evaluated, **{"model": "m2", "evaluation": SETTINGS, **changes})
        baseline = dataclasses.replace(elsewhere, run=run)
        judged = judge_models(conditions, known, [models], baseline)
        assert [one.model for one in judged[::2]] == others
        assert f"from the baseline {run.name} in /data, " in judged[1].line
    (alone,) = judge_models(conditions[:1], known[2:3], [models], baseline_of(models, 2))
    assert alone.line.endswith("is not tested: there is no model to judge besides the baseline")


def test_a_difference_is_under_the_first_rule_that_both_have() -> None:
    rng = np.random.default_rng(4)
    one, other = answers(rng, 50), answers(rng, 50, original=0.2)
    models = models_of(one, other)
    for rules, expected in ((RULES, RULES[0]), (RULES[1:], RULES[1]), (("another",), None)):
        baseline = baseline_of(models, 1, correct=dict.fromkeys(rules, other))
        assert baseline.common_rule(RULES) == expected
        judged, *_ = verdicts(["original>baseline"], models, baseline)
        if expected:
            assert judged.value == pytest.approx(one[ORIGINAL].mean() - other[ORIGINAL].mean())
        else:
            assert judged.line == (
                "--fail_if original>baseline is not tested: m0 has no original to compare with the "
                "baseline m1: they have no label rule in common"
            )
    # A baseline that was tested on other images has no paired difference.
    run = made(Evaluated, model="m1", evaluation={**SETTINGS, "holdout": 0.5})
    judged, *_ = verdicts(["original>baseline"], models, baseline_of(models, 1, run=run))
    assert judged.verdict is None
    assert judged.line.endswith(
        "it was tested on all of split val, the baseline on split val with --holdout 0.5"
    )
    lacking = baseline_of(models, 1, correct={RULES[0]: {}})
    judged, *_ = verdicts(["original>baseline"], models, lacking)
    assert "they lack predictions on the same variants by the same label rule; if" in judged.line
    (judged, *_) = verdicts(["original>baseline"], models, "--baseline x names no model")
    assert judged.line.endswith("is not tested: --baseline x names no model")


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
    judged = [
        Judgement("c", "m", one, value=0.0, ci_low=0.0, ci_high=0.0, confidence=0.95, n=20)
        for one in found
    ]
    for fails, expected in ((False, code), (True, code_if_open_fails)):
        got, lines = outcome(judged, Gate(fails_if_open=fails))
        assert got == expected
        assert len(lines) == (expected > 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bg_gap", "in quotes, or the shell"),
        ("bg_gap=0.1", "expected a measure, a comparison and a fraction"),
        ("bg_gap>", "expected a measure"),
        ("gap>0.1", "no measure 'gap'; did you mean bg_gap?"),
        ("mixd_rand<0.7", "; did you mean mixed_rand?"),
        ("fg_mask<0.7", "no measure 'fg_mask'"),
        ("paper:bg_gap>0.1", "no label rule 'paper'; known: argmax_then_map, mapped_only"),
        ("bg_gap>0_1", "'0_1' is not a fraction between -1 and 1"),
        ("bg_gap>10", "'10' is not a fraction between -1 and 1"),
        ("original<-0.1", "'-0.1' is not a fraction between 0 and 1"),
        ("original<nan", "'nan' is not a fraction"),
        ("original<70%", "'70%' is not a fraction"),
        ("bg_gap>baseline0.1", "'0.1' is not a fraction between -1 and 1"),
        ("bg_gap>baseline+", "'+' is not a fraction"),
        ("bg_gap>baseline+2", "'+2' is not a fraction between -1 and 1"),
        ("bg_gap>baselines", "'s' is not a fraction"),
    ],
)
def test_what_is_no_condition_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_conditions([text])
    assert f"--fail_if {text!r}: " in str(error.value)
    assert message in str(error.value)


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
    assert parse_conditions(None) == ()


@pytest.mark.usefixtures("no_figures")
def test_the_job_ends_by_its_conditions(
    sample_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    run_here(*report)
    assert "open conditions pass, unless --if_open fail is given" in capsys.readouterr().out
    run_here(*report, "--if_open", "fail", code=4)
    assert "is open for efficientnet_lite0" in capsys.readouterr().err


@pytest.fixture(scope="module")
def compared(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of three models on small pictures. Tests must not change it."""
    output = tmp_path_factory.mktemp("compared") / "out"
    flags = (*QUICK, "--pictures", "none", *ONE, "--models", entries("first", "second", "third"))
    run_here("run", "--input", small_sample, "--output", output, *flags)
    return output


@pytest.fixture
def copied(compared: Path, tmp_path: Path) -> Path:
    """A copy of `compared` that a test may change."""
    return Path(shutil.copytree(compared, tmp_path / "out"))


def entries(*names: str) -> str:
    return ",".join(f"python:tiny_models:{name}" for name in names)


def test_models_are_compared_with_a_baseline(copied: Path) -> None:
    dataset = dataset_in(copied)
    assert table_of(copied, "baseline") == []
    first, second, third = (entries(name) for name in ("first", "second", "third"))
    gate = Gate((Condition.parse("bg_gap>baseline"),), first)
    gate.choose_baseline(dataset)
    write_all(copied, "none")
    rows = table_of(copied, "baseline")
    assert list(dict.fromkeys(row["model"] for row in rows)) == [second, third]
    assert {row["baseline"] for row in rows} == {first}
    pairs = {
        (row["first"], row["second"], row["label_rule"], row["variant"]): row
        for row in table_of(copied, "comparisons")
    }
    mirrored = {"difference": "difference", "ci_low": "ci_high", "ci_high": "ci_low"}
    for row in rows:
        pair = pairs[first, row["model"], RULES[0], row["variant"]]
        assert row["label_rule"] == RULES[0]
        for column, other in mirrored.items():
            assert float(row[column]) == pytest.approx(-float(pair[other]), abs=1e-12)
        # Holm's adjustment is for two models here, and for three pairs there.
        assert float(row["p_adjusted"]) <= float(pair["p_adjusted"]) + 1e-12
        assert float(row["smallest_difference"]) > 0
    lines = list(describe_baseline(dataset, read_summaries(dataset)[0]))
    assert lines[0].startswith(f"minus {first}, points")
    assert [one.model for one in judge(gate, dataset)] == [second, third]
    assert "Differences from the baseline" in (copied / "report.html").read_text()


def test_a_baseline_that_fails_in_a_job_is_compared_with_nothing_until_it_succeeds(
    copied: Path,
) -> None:
    dataset, first = dataset_in(copied), entries("first")
    (run,) = models_named(dataset.store, first)
    settings = pick(RunSettings, run.evaluation)
    choose_baseline(dataset, first, settings)
    write_tables(dataset)
    rows = table_of(copied, "baseline")
    assert rows
    notes = (dataset.store, dataset.manifest.fingerprint, "evaluate", settings)
    note_failures(*notes, [FailedModel(0, first, first, "no memory")], [])
    for was_run, failed, expected in ((False, True, rows), (True, True, []), (True, False, rows)):
        if not failed:
            note_failures(*notes, [], [first])
        else:
            choose_baseline(dataset, first, settings, was_run)
        write_tables(dataset)
        assert table_of(copied, "baseline") == expected
        line = next(describe_baseline(dataset, read_summaries(dataset)[0]))
        reason = f"{first} failed: no memory"
        assert (line == f"not compared with the baseline: {reason}") == (not expected)


@pytest.fixture
def production(compared: Path, tmp_path: Path) -> tuple[Path, Summary]:
    """A copy of the results in another folder, and the first of its models."""
    folder = Path(shutil.copytree(compared, tmp_path / "production"))
    (first,) = [one for one in read_summaries(dataset_in(folder))[0] if "first" in one.model]
    return folder, first


def rows_with(output: Path, baseline: Path) -> list[dict[str, str]]:
    """Returns the table of differences from the results of a folder."""
    choose_baseline(dataset_in(output), str(baseline))
    write_tables(dataset_in(output))
    return table_of(output, "baseline")


def test_the_baseline_may_lie_in_another_folder(
    copied: Path, production: tuple[Path, Summary], tmp_path: Path
) -> None:
    other, first = production
    dataset, folder = dataset_in(copied), other / "results" / first.folder
    rows = rows_with(copied, folder)
    # The same model in this folder is not compared with itself, whether it is there or not.
    shutil.rmtree(copied / "results" / first.folder)
    assert rows_with(copied, folder) == rows
    assert {row["baseline"] for row in rows} == {f"{first.name} in {other}"}
    assert {row["model"] for row in rows} == {entries("second"), entries("third")}
    # A folder with this model alone means the same, and so does its newest published version.
    for path in (other / "results").glob("*/model.json"):
        if path.parent != folder:
            shutil.rmtree(path.parent)
    assert rows_with(copied, other) == rows
    published = tmp_path / "published"
    publish(PublishPlan(Store(str(other)), Store(str(published))))
    for row, same in zip(rows, rows_with(copied, published), strict=True):
        assert same["baseline"].startswith(f"{first.name} in {published}/v-")
        assert {**same, "baseline": row["baseline"]} == row
    # Once it is gone, nothing is compared with it, and a line says so.
    shutil.rmtree(published)
    write_tables(dataset)
    assert table_of(copied, "baseline") == []
    (line,) = describe_baseline(dataset, [])
    assert line.startswith(f"not compared with the baseline: --baseline {published}/v-")


@pytest.mark.usefixtures("empty_pdfs")
def test_what_is_no_baseline_is_refused(
    copied: Path,
    production: tuple[Path, Summary],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other, first = production
    report = ("report", "--dataset", copied, "--pictures", "none", "--baseline")
    several = refusal(capsys, *report, other)
    assert f"--baseline {other} means 3 models: " in several
    assert all(entries(name) in several for name in ("first", "second", "third"))
    # A model's results in this folder are that model.
    run_here(*report, copied / "results" / first.folder)
    capsys.readouterr()
    assert {row["baseline"] for row in table_of(copied, "baseline")} == {first.name}
    folder = other / "results" / first.folder
    (prediction,) = (folder / "predictions").iterdir()
    prediction.write_bytes(b"no table")
    line = f"{first.name} has no predictions on these pictures"
    assert line in refusal(capsys, *report, folder)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "fingerprint": "f" * 32}))
    line = f"{other} has results on another dataset: {'f' * 12}, not "
    assert line in refusal(capsys, *report, folder)
    assert "holds no finished dataset" in refusal(capsys, *report, tmp_path)


@pytest.mark.parametrize("text", ["baseline{}x y", "{}x y", "baseline -{}x y", "1{}", "1{}x"])
@pytest.mark.parametrize("character", " 1x")
def test_a_long_condition_is_parsed_at_once(text: str, character: str) -> None:
    started = time.process_time()
    with pytest.raises(UsageError):
        Condition.parse(f"bg_gap > {text.format(character * 50_000)}!")
    assert time.process_time() - started < 1


def test_a_name_means_one_model(copied: Path) -> None:
    dataset, first = dataset_in(copied), entries("first")
    (run,) = models_named(dataset.store, first)
    # Under other settings it is another model, whose name has them.
    settings = msgspec.structs.replace(run.evaluation, precision="bf16")
    other = msgspec.structs.replace(run, evaluation=settings, entry="production")
    write_result(dataset.store, result_file(other.folder, "model"), other)
    for name in (run.name, run.folder):
        assert models_named(dataset.store, name) == [run]
    for name in (f"{first} bf16", other.folder, "production"):
        assert models_named(dataset.store, name) == [other]
    with pytest.raises(UsageError, match=r"--baseline fourth names no model; known: python:tiny"):
        find_baseline(dataset, "fourth")
    # An entry that was run twice means the one with the job's settings.
    again = msgspec.structs.replace(run, entry="production")
    write_result(dataset.store, result_file(run.folder, "model"), again)
    with pytest.raises(UsageError, match=rf"means 2 models: {first}, {first} bf16"):
        find_baseline(dataset, "production")
    assert find_baseline(dataset, "production", pick(RunSettings, run.evaluation)).run == again


@pytest.mark.usefixtures("no_figures")
def test_a_job_is_judged_against_a_model_of_its_own(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = entries("first", "second")
    flags = ("evaluate", "--dataset", copied, "--models", models, "--pictures", "none", *ONE)
    conditions = "bg_gap>baseline+1,bg_gap<=baseline+1"
    run_here(*flags, "--fail_if", conditions, "--baseline", entries("first"), code=3)
    printed = capsys.readouterr()
    second = entries("second")
    assert f"--fail_if bg_gap>baseline+1 does not hold for {second}: " in printed.out
    assert f"--fail_if bg_gap<=baseline+1 holds for {second}: " in printed.err
    assert f"for {entries('first')}: " not in printed.out + printed.err
    missing = refusal(capsys, *flags, "--baseline", "nowhere")
    assert "--baseline nowhere is no entry of --models, no folder, and no model that " in missing
    assert f"has results of; known: {entries('first', 'second', 'third')}" in (
        missing.replace(", python", ",python")
    )


@pytest.mark.usefixtures("no_figures")
def test_a_label_names_a_baseline_under_the_settings_of_the_job(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (f"{label}:={entries(n)}" for label, n in (("prod", "first"), ("x", "second")))
    flags = ("--dataset", copied, "--pictures", "none", "--fail_if", "bg_gap>baseline+1")
    job = ("evaluate", *flags, "--models", f"{first},{second}", "--holdout", 0.7, *ONE)
    # Neither is there anything of its name, nor is the baseline stored yet.
    for name in ("prod", first):
        run_here(*job, "--baseline", name)
        printed = capsys.readouterr().out
        assert "does not hold for x holdout0.7: " in printed
        assert "from the baseline prod holdout0.7, " in printed
        assert (
            f"not compared with the baseline: {entries('third')}, as it was tested on all of split "
            "val, the baseline on split val with --holdout 0.7\n"
        ) in printed
    assert "known: prod, x, python:tiny_models:first," in refusal(capsys, *job, "--baseline", "y")
    # The choice is kept. `report` judges all models, and those of other images cannot be compared.
    run_here("report", *flags, code=1)
    assert "from the baseline prod holdout0.7, " in capsys.readouterr().out
    # A model without results under these settings is known by its label, too.
    assert models_named(Store(str(copied)), "prod")[0].title == "prod"


@pytest.mark.usefixtures("no_figures")
def test_a_kept_baseline_is_the_same_run_under_other_settings_of_a_job(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "efficientnet_lite0"  # Its folder in `results/` has the same name.
    flags = ("evaluate", "--dataset", copied, "--pictures", "none", *ONE, "--models")
    run_here(*flags, name, "--baseline", name)
    chosen = (copied / "results" / "baseline.json").read_text()
    capsys.readouterr()
    models = f"{name},{entries('second')}"
    run_here(*flags, models, "--holdout", 0.7, "--fail_if", "bg_gap>baseline+1", code=1)
    printed = capsys.readouterr()
    assert "the baseline on all of split val" in printed.out + printed.err
    assert json.loads((copied / "results" / "baseline.json").read_text()) == json.loads(chosen)


def test_the_extremes_of_many_models_have_wider_intervals(
    compared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = dataset_in(compared)
    evidence = gather(dataset, dataset.taxonomy)
    (models,) = read_contributions(dataset, read_summaries(dataset)[0])
    gaps = {
        one.value: one
        for summary in models.summaries
        if (one := models.measure("bg_gap", summary, evidence.rule))
    }
    for named, extremes, level in ((3, None, 0.95), (2, (max(gaps), min(gaps)), level_of(3))):
        monkeypatch.setattr(AccuracyPanel, "named", named)
        panel = ACCURACY.make(evidence, False)
        assert isinstance(panel, AccuracyPanel)
        assert panel.models == 3
        assert len(panel.gaps) == named
        for _, cell in panel.gaps:
            bounds = gaps[cell.value or 0].interval(level)
            assert (cell.low, cell.high) == pytest.approx(bounds)
        assert extremes in (None, tuple(cell.value for _, cell in panel.gaps))


def test_the_best_models_are_marked(compared: Path) -> None:
    pairs = {
        (frozenset((row["first"], row["second"])), row["label_rule"], row["variant"]): row
        for row in table_of(compared, "comparisons")
    }
    figures: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in table_of(compared, "summary"):
        figures.setdefault((row["label_rule"], row["variant"]), []).append(row)
    for figure, rows in figures.items():
        best = max(rows, key=lambda row: float(row["accuracy"]))
        assert best["among_best"] == "True"
        for row in rows:
            if row is not best:
                pair = pairs[frozenset((row["model"], best["model"])), *figure]
                assert (row["among_best"] == "True") == (float(pair["p_adjusted"]) >= 0.05)
    tied = models_of(*[answers(np.random.default_rng(0), 400)] * 2).summaries
    accuracy = {"label_rule": "r", "variant": "original", "accuracy": 0.5, "n": 400}
    lower = made(AccuracyRow, **{**accuracy, "accuracy": 0.4})
    two = [
        msgspec.structs.replace(one, accuracy=(row,))
        for one, row in zip(tied, (made(AccuracyRow, **accuracy), lower), strict=True)
    ]
    for p_adjusted, marks in ((0.049, [True, False]), (0.051, [True, True])):
        row = made(
            ComparisonRow,
            first="m1",
            second="m0",
            p_adjusted=p_adjusted,
            label_rule="r",
            variant="original",
        )
        assert [one.accuracy[0].among_best for one in mark_best(two, [row])] == marks
    # A model that was never compared with the best may well differ.
    assert [one.accuracy[0].among_best for one in mark_best(two, [])] == [True, False]
    assert mark_best(two[:1], [])[0].accuracy[0].among_best is None


def test_the_same_predictions_count_once_whatever_path_leads_to_them(
    compared: Path, tmp_path: Path
) -> None:
    own = shutil.copytree(compared, tmp_path / "own")
    (tmp_path / "link").symlink_to(own)
    shutil.copytree(own, tmp_path / "linked files", copy_function=os.link)
    shutil.copytree(own, tmp_path / "copy")
    (tmp_path / "of links").mkdir()
    for name in ("manifest.json", "results"):
        (tmp_path / "of links" / name).symlink_to(own / name)
    dataset = dataset_in(own)
    alone, _ = read_summaries(dataset)
    folder = f"results/{alone[0].folder}"
    places = ("own", "link", "linked files", "copy", "of links", f"link/{folder}", f"copy/{folder}")
    store, lines = with_results(dataset, [str(tmp_path / name) for name in places])
    assert store.elsewhere == {}
    assert read_summaries(Dataset.open(store))[0] == alone
    for place, line in zip(places, lines, strict=True):
        models, count = ("1 model", 1) if "/" in place else ("3 models", 3)
        said = f"results: {tmp_path / place} has {models}, {count} shown already: "
        assert line == f"{said}the same predictions count once"
    # A folder without models of its own shows those of a copy, once.
    shutil.rmtree(own / "results")
    copies = [str(tmp_path / name) for name in ("copy", "linked files")]
    store, _ = with_results(dataset, copies)
    assert {place.partition("/results/")[0] for place in store.elsewhere.values()} == {copies[0]}
    assert [run.name for run in read_summaries(Dataset.open(store))[0]] == [o.name for o in alone]
    # One other byte is another result.
    (file,) = (tmp_path / "copy" / folder / "predictions").iterdir()
    pq.write_table(pq.read_table(file), file, compression="none")
    _, lines = with_results(dataset, copies)
    assert lines[1].endswith(" has 3 models, 2 shown already: the same predictions count once")


@dataclasses.dataclass(frozen=True)
class Labs:
    """Results in several folders, of which the first shows those of the others, too.

    Attributes:
      own: has the first model alone.
      lab: has the first and the second model, from runs of its own.
      other, changed: have another dataset, and another picture.
      folders: folder in `results/` of each model, by its name.
    """

    own: Path
    lab: Path
    other: Path
    changed: Path
    folders: dict[str, str]


@pytest.fixture
def labs(compared: Path, tmp_path: Path) -> Labs:
    own, lab, other, changed = (
        Path(shutil.copytree(compared, tmp_path / name))
        for name in ("own", "lab", "other", "changed")
    )
    folders = {one.name: one.folder for one in read_summaries(dataset_in(own))[0]}
    first, second, third = folders.values()
    for path in (own / "results" / second, own / "results" / third, lab / "results" / third):
        shutil.rmtree(path)
    manifest = json.loads((own / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "fingerprint": "f" * 32}))
    (file,) = [one for one in manifest["files"] if one["path"].startswith("parquet/original/")]
    file["sha256"] = "0" * 64
    (changed / "manifest.json").write_text(json.dumps(manifest))
    # The lab has the same answers as from a run of its own.
    (file,) = (lab / "results" / first / "predictions").iterdir()
    pq.write_table(pq.read_table(file), file, compression="none")
    return Labs(own, lab, other, changed, folders)


@pytest.mark.usefixtures("empty_pdfs")
def test_models_of_other_folders_are_shown(
    labs: Labs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, lab, link = labs.own, labs.lab, tmp_path / "link"
    (first, second, _), results = labs.folders, lab / "results"
    link.symlink_to(own)
    report = ("report", "--dataset", own, "--pictures", "none", "--results")
    assert f"--results: {tmp_path} holds no finished dataset" in refusal(capsys, *report, tmp_path)
    # One folder means all of its models, or the model whose folder it is.
    others = f"{results / labs.folders[first]},{lab},{link},{labs.other},{labs.changed}"
    conditions = ("--baseline", second, "--fail_if", "original>=baseline-1")
    run_here(*report, others, *conditions, code=3)
    printed = capsys.readouterr()
    again = "1 shown already: the same predictions count once"
    assert f"results: {lab} has 2 models, {again}\n" in printed.out
    assert f"results: {link} has 1 model, {again}\n" in printed.out
    other = f"\nresults: {labs.other} has results on another dataset: {'f' * 12}, not "
    assert other in printed.out
    assert f"\nresults: {labs.changed} has other pictures: 1 of " in printed.out
    # Both folders have the first model, and only the other one has the second.
    shown, rows = [first, f"{first} in {lab}", second], table_of(own, "summary")
    figures = [[row["accuracy"] for row in rows if row["model"] == name] for name in shown]
    assert figures[0] == figures[1] != figures[2]
    assert len(rows) == sum(map(len, figures))
    pairs = {frozenset((row["first"], row["second"])) for row in table_of(own, "comparisons")}
    assert pairs == {frozenset(pair) for pair in itertools.combinations(shown, 2)}
    for name in shown[:2]:
        assert f" holds for {name}: " in printed.err
        assert f"from the baseline {second}, " in printed.err
    assert {row["baseline"] for row in table_of(own, "baseline")} == {second}
    page = (own / "report.html").read_text()
    assert all(name in page for name in shown)
    assert f'href="results/{labs.folders[first]}/predictions/"' in page
    assert f"results/{labs.folders[second]}" not in page


@pytest.mark.usefixtures("empty_pdfs")
def test_models_of_other_folders_are_not_copied(labs: Labs) -> None:
    first, second, _ = labs.folders
    watched = (labs.lab, labs.own / "results" / labs.folders[first])
    before = [everything(path) for path in watched]
    report = ("report", "--dataset", labs.own, "--pictures", "none", "--results", labs.lab)
    run_here(*report, "--baseline", second)
    # Later commands show the folder's own models, but keep the baseline.
    write_tables(dataset_in(labs.own))
    assert {row["model"] for row in table_of(labs.own, "summary")} == {first}
    baselines = {row["baseline"] for row in table_of(labs.own, "baseline")}
    assert baselines == {f"{second} in {labs.lab}"}
    assert [everything(path) for path in watched] == before
    assert len(list((labs.own / "results").glob("*/model.json"))) == 1
