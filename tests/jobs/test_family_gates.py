"""Tests --fail_if and --baseline with families: what is judged, and what it is compared with."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from answer_files import answer_files, entries, entry
from judged_models import RULES, answers, models_of
from runs import ONE, dataset_in, refusal, run_here, table_of
from two_way_by_hand import Method, spread_of

from pipeline.analyses.evaluation.baseline import Baseline, chosen_baseline
from pipeline.analyses.evaluation.parts import compare_accuracies, describe_models
from pipeline.dataset.card import markdown
from pipeline.evaluate.comparisons import Measured, ModelsOnSameImages
from pipeline.evaluate.families import subjects_of
from pipeline.jobs.conditions import Judgement, judge_models
from pipeline.jobs.fail_if import Condition
from pipeline.report.write import write_tables
from pipeline.storage.store import Store
from transforms.intervals import Verdict, level_of
from transforms.two_way import difference_interval
from transforms.variants import ORIGINAL

pytestmark = pytest.mark.usefixtures("no_figures")

FAMILIES = ("a#0", "a#1", "a#2", "b#0", "b#1", "b#2", "b#3", "c#0", "c#1", "single")


def drawn(seed: int = 0, n: int = 120) -> ModelsOnSameImages:
    """Returns families of three, four and two seeds, and a single model; `a` is the best."""
    rng = np.random.default_rng(seed)
    shares = {"a": 0.9, "b": 0.6, "c": 0.7, "single": 0.7}
    models = [answers(rng, n, original=shares[label.partition("#")[0]]) for label in FAMILIES]
    return models_of(*models, labels=FAMILIES)


def baseline_of(models: ModelsOnSameImages, name: str) -> Baseline:
    """Makes a family, or a model, the baseline."""
    known = {one.name: one for one in (*subjects_of(models.summaries), *models.summaries)}
    positions = [models.summaries.index(one) for one in known[name].members]
    correct = [models.correct[position] for position in positions]
    return Baseline(known[name], Store("/data"), is_own=True, correct=correct)


def verdicts(
    models: ModelsOnSameImages, texts: Sequence[str], baseline: Baseline | None = None
) -> dict[tuple[str, str], Judgement]:
    subjects = [(one.name, one) for one in subjects_of(models.summaries)]
    judged = judge_models(list(map(Condition.parse, texts)), subjects, [models], baseline)
    return {(one.model, one.condition): one for one in judged}


def original_of(models: ModelsOnSameImages, family: str) -> Method:
    """Returns the accuracies of a family's seeds, and what each image contributes to them."""
    positions = [i for i, label in enumerate(FAMILIES) if label.startswith(f"{family}#")]
    right = np.stack([models.correct[i][RULES[0]][ORIGINAL] for i in positions])
    shares = right.mean(axis=1)
    return Method(shares.tolist(), ((right - shares[:, np.newaxis]) / right.shape[1]).tolist())


@pytest.mark.parametrize("seed", range(3))
def test_verdicts_of_families_are_by_images_and_trainings(seed: int) -> None:
    models = drawn(seed)
    baseline = baseline_of(models, "b")
    judged = verdicts(models, ["original>baseline"], baseline)["a", "original>baseline"]
    methods = [original_of(models, name) for name in ("a", "b")]
    # Each image is its own unit.
    variance, df = spread_of([(str(i), None) for i in range(120)], methods)
    value = np.mean(methods[0].values) - np.mean(methods[1].values)
    others = [one[RULES[0]] for one in baseline.correct]
    measured = models.measure("original", subjects_of(models.summaries)[0], RULES[0], others)
    assert isinstance(measured, Measured)
    spread = dataclasses.replace(measured.spread, variance=np.asarray(variance), units=df + 1)
    # a, c and the single model are judged.
    low, high = difference_interval(np.asarray(value), spread, level_of(3))
    assert judged.value == pytest.approx(value, abs=1e-12)
    assert (judged.ci_low, judged.ci_high) == pytest.approx((low, high), abs=1e-9)
    assert judged.verdict is Verdict.HOLDS
    assert judged.trainings == 3
    assert f"holds for a: {100 * value:.1f} points above the baseline b, 98.33 % " in judged.line


def test_members_are_neither_judged_nor_counted() -> None:
    judged = verdicts(drawn(), ["original>0.1", "bg_gap>0.2"])
    assert list(dict.fromkeys(name for name, _ in judged)) == ["a", "b", "c", "single"]
    tested = {name: one for (name, text), one in judged.items() if text == "original>0.1"}
    levels = {one.confidence for one in tested.values()}
    assert levels == {level_of(4 * 2), None}
    # An interval needs three trainings.
    assert tested["c"].verdict is None
    reason = "--fail_if original>0.1 is not tested: c has 2 trainings, and an interval needs 3"
    assert tested["c"].line == reason
    mean = np.mean(original_of(drawn(), "a").values)
    assert tested["a"].value == pytest.approx(mean, abs=1e-12)


def test_an_open_condition_on_a_family_names_no_number_of_images() -> None:
    models, judged = drawn(), {}
    for name in ("a", "single"):
        (subject,) = (one for one in subjects_of(models.summaries) if one.name == name)
        measured = models.measure("bg_gap", subject, RULES[0])
        assert isinstance(measured, Measured)
        text = f"bg_gap>{measured.value - 0.01:.4f}"
        judged[name] = verdicts(models, [text])[name, text]
    family, single = judged["a"], judged["single"]
    assert family.verdict is single.verdict is Verdict.OPEN
    assert single.decided_at is not None
    assert "if estimate and variance stay, decided at " in single.line
    assert family.decided_at is None
    assert "; more images or trainings may decide it; 120 images detect only" in family.line
    assert "decided at" not in family.line


KINDS = "a single model is one training, and a family several"
TOO_FEW = "c has 2 trainings, and an interval needs 3"


@pytest.mark.parametrize(("baseline", "compared", "reasons"), [
    ("a", ["b"], {"c": TOO_FEW, "single": KINDS}),
    ("single", [], dict.fromkeys("abc", KINDS)),
    # A seed may be the baseline of single models.
    ("a#1", ["single"], dict.fromkeys("abc", KINDS)),
    ("c", [], {**dict.fromkeys("ab", TOO_FEW), "single": KINDS}),
])  # fmt: skip
def test_families_and_single_models_are_not_compared(
    baseline: str, compared: list[str], reasons: dict[str, str]
) -> None:
    models = drawn()
    judged = verdicts(models, ["original>=baseline-1"], baseline_of(models, baseline))
    assert [name for (name, _), one in judged.items() if one.verdict] == compared
    for name, reason in reasons.items():
        line = judged[name, "original>=baseline-1"].line
        assert line.endswith(
            f"{name} has no original to compare with the baseline {baseline}: {reason}"
        )
    assert {name for name, _ in judged} == {*compared, *reasons}


OFF = ("--pictures", "none")
STORED = ("good#0", "good#1", "good#2", "bad#0", "bad#1", "bad#2", "pair#0", "pair#1", "odd")
SHARES = {"good": 0.97, "bad": 0.1, "late": 0.1}
"""The share of right answers of each method, if it is not a half."""


@pytest.fixture(scope="module")
def exported(for_gaps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 18 pictures beside files of answers, of which some have results.

    `good`, `bad` and `pair` are families of three, three and two seeds; `odd` is a single model.
    `late` is a further training of `bad`, and `one` a family's first, that are not evaluated.
    """
    root = tmp_path_factory.mktemp("families")
    output = Path(shutil.copytree(for_gaps, root / "out"))
    names = (*STORED, "late", "one")
    answer_files(output, root, {name: SHARES.get(name.partition("#")[0], 0.5) for name in names})
    run_here("evaluate", "--dataset", output, *OFF, "--models", entries(root, STORED), *ONE)
    return output


@pytest.fixture
def output(exported: Path, tmp_path: Path) -> Path:
    """A copy of `exported` that a test may change."""
    return Path(shutil.copytree(exported, tmp_path / "out"))


def test_a_job_ends_by_the_verdicts_on_its_families(exported: Path, output: Path) -> None:
    root = exported.parent

    def job(labels: str, *conditions: str) -> tuple[str, str]:
        models = entries(root, labels.split())
        flags = ("--models", models, "--fail_if", ",".join(conditions), *ONE)
        printed = run_here("evaluate", "--dataset", output, *OFF, *flags, code=3)
        return printed.out, printed.err

    mean = np.mean([figure(output, f"good#{seed}") for seed in range(3)])
    # The job names one seed, and the stored ones are of the same family.
    for labels in ("good#0 good#1 good#2", "good#2"):
        _, err = job(labels, "original>0.5")
        assert f"--fail_if original>0.5 holds for good: {mean:.3f}, 95 % interval [" in err
        assert "good#" not in err
    # Two families, a single model and two conditions are six.
    out, err = job(f"{' '.join(STORED[:6])} odd", "original>0.5", "original<0.01")
    assert "--fail_if original<0.01 does not hold for good: " in out
    for name in ("good", "bad", "odd"):
        assert f" for {name}: " in out + err
    assert out.count("99.17 % interval") + err.count("99.17 % interval") == 6


def figure(output: Path, model: str) -> float:
    """Returns a model's accuracy on `original`."""
    (row,) = (
        row
        for row in table_of(output, "summary")
        if (row["model"], row["variant"]) == (model, "original")
    )
    return float(row["accuracy"])


def test_a_family_is_not_judged_without_a_training_that_failed(
    exported: Path, output: Path, tmp_path: Path
) -> None:
    (tmp_path / "junk.pth").write_bytes(b"junk")
    root = exported.parent
    junk = f"good#3:=resnet18={tmp_path / 'junk.pth'}"
    models = f"{entries(root, STORED[:3])},{junk}"
    flags = ("--models", models, "--fail_if", "original>0.5", *ONE)
    printed = run_here("evaluate", "--dataset", output, *OFF, *flags, code=1)
    assert "--fail_if original>0.5 is not tested: " in printed.err
    assert "for good: " not in printed.out
    # What is compared with the rest of a family passes no gate.
    models += f",{entries(root, STORED[3:6])}"
    flags = ("--models", models, "--fail_if", "original>baseline+1", "--baseline", "good", *ONE)
    printed = run_here("evaluate", "--dataset", output, *OFF, *flags, code=1)
    assert "--fail_if original>baseline+1 does not hold for bad: " in printed.out
    assert "--fail_if original>baseline+1 is not tested: " in printed.err


def test_a_condition_against_a_baseline_of_the_other_kind_ends_the_job_before_work(
    exported: Path, output: Path
) -> None:
    root, single = exported.parent, "a single model, which is one training"
    job = ("evaluate", "--dataset", output, *OFF, "--fail_if", "bg_gap > baseline", *ONE)
    late, odd = f"bad#3:={entry(root, 'late')}", entries(root, ["odd"])
    mixed = entries(root, ["odd", "one", "bad#0", "bad#1"])
    two = f"x#0:={entry(root, 'late')},x#1:={entry(root, 'one')}"
    for baseline, models, said in (
        ("good", odd, f"the baseline good is a family, and odd is {single}"),
        ("good", mixed, f"the baseline good is a family, and odd, one are each {single}"),
        # One seed of the job has others in the folder.
        ("odd", entries(root, ["bad#0"]), f"the baseline odd is {single}, and bad is a family"),
        # So has one that has no results yet.
        ("good#1", late, f"the baseline good#1 is {single}, and bad is a family"),
        # Two seeds of the job are a family, whatever the folder has.
        ("odd", two, f"the baseline odd is {single}, and x is a family"),
        ("x", f"{two},{odd}", f"the baseline x is a family, and odd is {single}"),
    ):
        line = refusal(*job, "--baseline", baseline, "--models", models)
        end = "give them a baseline of their own kind"
        assert line.endswith(f"--fail_if 'bg_gap > baseline': {said}: {end}")
    # Under other settings, the folder has none.
    line = refusal(*job, "--baseline", "good", "--models", late, "--holdout", 0.9)
    assert f"the baseline good is a family, and bad#3 is {single}: " in line


def choice(output: Path) -> object:
    return json.loads((output / "results" / "baseline.json").read_text())


def test_a_family_is_the_baseline_of_later_commands(exported: Path, output: Path) -> None:
    root = exported.parent
    models = entries(root, STORED[:6])
    flags = ("--dataset", output, *OFF)
    condition = ("--fail_if", "original < baseline + 0.6")
    printed = run_here(
        "evaluate", *flags, "--models", models, *condition, "--baseline", "good", *ONE, code=3
    )
    assert " holds for bad: " in printed.err
    assert "points below the baseline good, 95 % interval [" in printed.err
    for name in ("odd", "pair"):
        assert f"\nnot compared with the baseline: {name}, as " in printed.out
    assert choice(output) == {"baseline": "good"}
    rows = table_of(output, "baseline")
    assert {(row["model"], row["baseline"]) for row in rows} == {("bad", "good")}
    (row,) = (row for row in rows if row["variant"] == "original")
    means = [np.mean([figure(output, f"{n}#{i}") for i in range(3)]) for n in ("bad", "good")]
    assert float(row["difference"]) == pytest.approx(means[0] - means[1], abs=1e-12)
    (pair,) = (
        row
        for row in table_of(output, "comparisons")
        if (row["first"], row["second"], row["variant"]) == ("bad", "good", "original")
    )
    assert (row["ci_low"], row["ci_high"]) == (pair["ci_low"], pair["ci_high"])
    # A job of one of the seeds, and one that judges all.
    seed = ("--models", entries(root, ["bad#1"]), *condition, *ONE)
    kept = "the baseline good, stored by an earlier command, 95 % interval"
    assert kept in run_here("evaluate", *flags, *seed, code=3).err
    printed = run_here("report", *flags, *condition, code=3)
    assert " holds for bad: " in printed.err
    assert choice(output) == {"baseline": "good"}
    assert table_of(output, "baseline") == rows
    assert "\nnot compared with the baseline: odd, as a single model is one training" in printed.out
    # It stays the same under other settings of a job, where nothing can be compared with it.
    held = ("--models", models, "--holdout", 0.9, *condition, *ONE)
    assert "the baseline on all of split val" in run_here("evaluate", *flags, *held, code=1).err
    assert choice(output) == {"baseline": "good"}


@pytest.fixture
def elsewhere(output: Path, tmp_path: Path) -> Path:
    """A folder that has `good` alone."""
    other = Path(shutil.copytree(output, tmp_path / "other"))
    for model in (other / "results").glob("*/model.json"):
        if not json.loads(model.read_text()).get("label", "").startswith("good#"):
            shutil.rmtree(model.parent)
    return other


def test_a_folder_with_one_family_is_that_family(output: Path, elsewhere: Path) -> None:
    for model in (output / "results").glob("*/model.json"):
        if json.loads(model.read_text()).get("label", "").startswith("good#"):
            shutil.rmtree(model.parent)
    report = ("report", "--dataset", output, *OFF, "--baseline")
    printed = run_here(*report, elsewhere, "--fail_if", "original<baseline+0.6", code=3)
    assert f"points below the baseline good in {elsewhere}, 98.33 % interval" in printed.err
    rows = table_of(output, "baseline")
    assert {(row["model"], row["baseline"]) for row in rows} == {("bad", f"good in {elsewhere}")}
    # The choice is this family, whatever else comes to lie beside it.
    (model,) = (
        path.parent
        for path in (output / "results").glob("*/model.json")
        if json.loads(path.read_text())["label"] == "odd"
    )
    shutil.copytree(model, elsewhere / "results" / model.name)
    write_tables(dataset_in(output))
    assert table_of(output, "baseline") == rows
    line = refusal(*report, elsewhere)
    assert line.endswith(f"--baseline {elsewhere} means 2 models: good, odd")
    for name in ("good", "odd"):
        run_here(*report, elsewhere / "results" / (name if name == "good" else model.name))
        assert {row["baseline"] for row in table_of(output, "baseline")} == (
            {f"good in {elsewhere}"} if name == "good" else set()
        )
    run_here(*report, elsewhere / "results" / "good")
    shutil.rmtree(elsewhere)
    write_tables(dataset_in(output))
    assert table_of(output, "baseline") == []
    assert f"{elsewhere}/results/good names no model" in str(chosen_baseline(dataset_in(output)))


def test_labels_alone_make_no_family(exported: Path, output: Path) -> None:
    """Tests seeds of which one answers with superclasses, and one with scores."""
    labels = f"{entries(exported.parent, ['one'])},x#1:=python:tiny_models:first"
    models = labels.replace("one:=", "x#0:=")
    job = ("evaluate", "--dataset", output, *OFF, *ONE, "--models", models)
    printed = run_here(*job, "--fail_if", "original>=0", code=3)
    for name in ("x#0", "x#1"):
        assert f"--fail_if original>=0 holds for {name}: " in printed.err
    line = refusal("report", "--dataset", output, *OFF, "--baseline", "x")
    assert line.endswith("--baseline x: no family x: x#0 and x#1 differ in label rules")


def test_seeds_of_a_family_are_one_row_of_what_has_changed(
    exported: Path, output: Path, tmp_path: Path
) -> None:
    after = Path(shutil.copytree(output, tmp_path / "after"))
    changed = ("good#0", "good#1")
    # The same entries have other answers, and a seed is new.
    kept = [exported.parent / f"{label}.csv" for label in changed]
    before = [path.read_bytes() for path in kept]
    try:
        answer_files(output, exported.parent, dict.fromkeys(changed, 0.6), 1)
        models = f"{entries(exported.parent, changed)},good#3:={entry(exported.parent, 'late')}"
        flags = ("--models", models, "--overwrite", "weights", *ONE)
        run_here("evaluate", "--dataset", after, *OFF, *flags)
    finally:
        for path, content in zip(kept, before, strict=True):
            path.write_bytes(content)
    found, new = compare_accuracies(dataset_in(output), dataset_in(after), [])
    assert new == ["good#3"]
    by_name = {one.model: one for one in found}
    family = by_name["good (mean of 3 trainings)"]
    assert set(STORED) < by_name.keys()
    assert (list(family.causes), family.n) == (["weights"], 18)
    for row in family.rows:
        of_seeds = [
            other.difference
            for seed in range(3)
            for other in by_name[f"good#{seed}"].rows
            if other.variant == row.variant
        ]
        assert len(of_seeds) == 3
        assert row.difference == pytest.approx(np.mean(of_seeds), abs=1e-12)
        assert row.ci_low <= row.difference <= row.ci_high
    assert any(row.difference for row in family.rows)
    assert not any(row.difference for row in by_name["bad (mean of 3 trainings)"].rows)
    lines = describe_models(found, new).lines
    assert any(line.startswith("| good (mean of 3 trainings) | weights | 18 |") for line in lines)
    assert any(line.startswith(f"| {markdown('good#0')} | weights | 18 |") for line in lines)
