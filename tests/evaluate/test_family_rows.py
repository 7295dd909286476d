"""Tests which models are seeds of a method, and the figures of methods against plain loops."""

import dataclasses
import itertools
import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from answer_files import pictures_to_answer
from made_results import made
from msgspec.structs import replace
from runs import ONE, dataset_in, run_in9, table_of
from scipy import stats
from two_way_by_hand import (
    Method,
    contributions_to,
    interval_of,
    interval_of_mean,
    singles_of,
    spread_of,
    trials_of,
    wilson,
)

from pipeline.evaluate.comparisons import ComparisonRow, measure, read_contributions
from pipeline.evaluate.families import FamilyRow, describe_families, families_of, subjects_of
from pipeline.evaluate.predictions import prediction_file
from pipeline.evaluate.subjects import family_rows, mark_best
from pipeline.evaluate.summaries import read_summaries
from pipeline.evaluate.summary import Summary
from transforms.intervals import t_quantile
from transforms.scoring import CLOSED_CHOICE, PAPER_RULE
from transforms.two_way import Roles, Seeds
from transforms.variants import VariantName

pytestmark = pytest.mark.usefixtures("no_figures")

HOW = {"split": "val", "eval_input": "stored", "precision": "fp32", "holdout": 0.0}


def seed(label: str, /, **given: Any) -> Summary:
    """Makes a model with a label; `how` are the settings that are not the default."""
    how = {**HOW, "input_size": 224, **given.pop("how", {})}
    fields = {"model": f"model {label}", "label": label, "weights_sha256": label}
    return made(Summary, **{"evaluation": how, "label_rules": (PAPER_RULE,), **fields, **given})


def named(summaries: list[Summary]) -> dict[str, list[str]]:
    """Returns the names of the members of each family, by its name; no line is wanted."""
    families, lines = families_of(summaries)
    assert lines == []
    return {family.name: [one.name for one in family.members] for family in families}


def test_families_have_the_order_of_their_first_seeds_and_models_in_none_follow() -> None:
    labels = ("b#10", "plain", "a#0", "b#0", "lone#0", "a#x y", "b#2", "c#", "#0")
    models = [seed(label) for label in labels]
    # Only a label names a method, or the name of a model that `in9.evaluate_model` has evaluated.
    models += [made(Summary, model=f"answers:d#{i}.csv", evaluation=HOW) for i in range(2)]
    called = [made(Summary, model=f"call:e#{i}", evaluation=HOW, weights_sha256=i) for i in "12"]
    assert named(models + called) == {
        "b": ["b#0", "b#2", "b#10"],
        "a": ["a#0", "a#x y"],
        "call:e": ["call:e#1", "call:e#2"],
    }
    subjects = [one.name for one in subjects_of(models)]
    others = ["plain", "lone#0", "c#", "#0", "answers:d#0.csv", "answers:d#1.csv"]
    assert subjects == ["b", "a", *others]
    families, _ = families_of(models)
    assert [family.no_interval for family in families] == [
        "",
        "a has 2 trainings, and an interval needs 3",
    ]


def test_a_family_and_a_model_never_share_a_name() -> None:
    called = [
        made(Summary, model=f"call:{name}", evaluation=HOW, weights_sha256=name)
        for name in ("e", "e#1", "e#2")
    ]
    assert families_of(called) == ([], ["no family call:e: a model is called call:e, too"])


def test_seeds_of_several_labs_are_several_families() -> None:
    models = [seed(f"erm#{i}", lab=lab) for lab in ("ours", "theirs") for i in range(3)]
    assert named(models) == {
        f"erm in {lab}": [f"erm#{i} in {lab}" for i in range(3)] for lab in ("ours", "theirs")
    }


def test_all_seeds_may_be_run_with_several_settings() -> None:
    settings = ({}, {"precision": "bf16"}, {"holdout": 0.5, "eval_input": "native"})
    models = [seed(f"erm#{i}", how=how) for i in range(3) for how in settings]
    assert named(models) == {
        f"erm{more}": [f"erm#{i}{more}" for i in range(3)]
        for more in ("", " bf16", " native holdout0.5")
    }
    # If some seeds alone were run with other settings, no set of them is the method's.
    families, (line,) = families_of(models[:-1])
    assert families == []
    assert line == "no family erm: erm#0 and erm#0 bf16 differ in precision"
    # Faults are those of the seeds with the same settings.
    alike = [seed(f"erm#{i}", how=how, weights_sha256=f"{i}") for i in (1, 1) for how in settings]
    alike[3:] = [
        seed("erm#2", how=how, weights_sha256=weights)
        for how, weights in zip(settings, ("2", "1", "2"), strict=True)
    ]
    families, (line,) = families_of(alike)
    assert families == []
    assert line == "no family erm: erm#1 bf16 and erm#2 bf16 have equal weights, or answers"


DIFFERENCES: dict[str, dict[str, Any]] = {
    "label rules": {"label_rules": (CLOSED_CHOICE,)},
    "precision": {"how": {"precision": "fp32-compiled"}},
    "--eval_input": {"how": {"eval_input": "native"}},
    "input size": {"how": {"input_size": 288}},
    "pictures": {"missing": ("mixed_rand",)},
    "pictures, by the split": {"how": {"split": "train"}},
    "pictures, by the held-out share": {"how": {"holdout": 0.5}},
}


@pytest.mark.parametrize("what", DIFFERENCES)
def test_seeds_that_differ_in_more_than_weights_are_no_family(what: str) -> None:
    other = seed("erm#2", **DIFFERENCES[what])
    whole = [seed(f"dro#{i}") for i in range(3)]
    families, lines = families_of([seed("erm#0"), seed("erm#1"), other, *whole])
    assert [family.name for family in families] == ["dro"]
    part, _, _ = what.partition(",")
    assert lines == [f"no family erm: erm#0 and {other.name} differ in {part}"]


def test_seeds_with_equal_weights_are_no_family() -> None:
    models = [seed(f"erm#{i}", weights_sha256=weights) for i, weights in enumerate("aba")]
    assert families_of(models) == (
        [],
        ["no family erm: erm#0 and erm#2 have equal weights, or answers"],
    )
    assert subjects_of(models) == models


def with_accuracy(label: str, accuracy: float) -> Summary:
    row = {"label_rule": "r", "variant": "original", "accuracy": accuracy, "n": 400}
    return seed(label, label_rules=("r",), accuracy=(row,))


def test_bold_is_among_families_and_among_models_in_none() -> None:
    seeds = [with_accuracy(f"erm#{seed}", 0.9) for seed in range(3)]
    place = {"first": "a", "label_rule": "r", "variant": "original"}
    compared = [
        made(ComparisonRow, **place, second=second, p_adjusted=p_adjusted)
        for second, p_adjusted in (("b", 0.051), ("d", 0.049))
    ]
    # The third was never compared.
    models = [with_accuracy("a", 0.5), *(with_accuracy(name, 0.4) for name in "bcd")]
    marked, _ = mark_best([*seeds, *models], compared)
    marks = {one.name: one.accuracy[0].among_best for one in marked}
    assert [marks[one.name] for one in seeds] == [None] * 3
    assert [marks[name] for name in "abcd"] == [True, True, False, False]
    assert mark_best(models[:1], [])[0][0].accuracy[0].among_best is None
    common = {"label_rule": "r", "variant": "original", "n": 400, "split": "val"}
    rows = [
        made(FamilyRow, **common, family=name, mean=mean, ci_low=low)
        for name, mean, low in (
            ("a", 0.5, 0.1),
            ("b", 0.4, 0.1),
            ("c", 0.3, 0.1),
            ("two", 0.9, None),
        )
    ]

    def marks_of(rows: list[FamilyRow]) -> list[bool | None]:
        return [row.among_best for row in mark_best([], compared, rows)[1]]

    assert marks_of(rows) == [True, True, False, None]
    assert marks_of(rows[:1]) == [None]
    assert marks_of([replace(row, variant="no_fg") for row in rows]) == [None] * 4


SEEDS = {"erm": 3, "dro": 4, "sure": 3, "two": 2, "lone": 1}
"""Number of seeds of each method of the stored predictions."""
QUANTITIES = ("original", "only_fg", "mixed_same", "mixed_rand", "mixed_next", "bg_gap")
Row = dict[str, str]


class Shown(NamedTuple):
    """A picture: the variant and its draw, the foreground, and the background if it is another."""

    variant: str
    draw: int
    fg: str
    bg: str | None


Seed = dict[Shown, bool]
"""Whether a seed is right on each picture."""


@pytest.fixture(scope="module")
def output(three_draws: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 18 pictures with answers of methods with several seeds, and of a single model.

    All seeds of `sure` are right on each original picture.
    """
    output = Path(shutil.copytree(three_draws, tmp_path_factory.mktemp("families") / "out"))
    pictures = pictures_to_answer(output, output.parent / "a.csv")
    labels = {row["key"]: row["label"] for row in dataset_in(output).index("val")}
    rng, entries = np.random.default_rng(67), []
    for method, seeds in {**SEEDS, "plain": 1}.items():
        skill, common = rng.uniform(0.5, 0.8), rng.random(len(pictures))
        for number in range(seeds):
            own = rng.random(len(pictures))
            is_right = np.where(own < 0.5, common, rng.random(len(pictures))) < skill
            path = output.parent / f"{method}-{number}.csv"
            lines = ["key,variant,label"]
            for row, right in zip(pictures, is_right.tolist(), strict=True):
                is_sure = method == "sure" and row["variant"] == "original"
                answer = (labels[row["key"]] + (not right and not is_sure)) % 9
                lines.append(f"{row['key']},{row['variant']},{answer}")
            path.write_text("\n".join(lines))
            label = method if method == "plain" else f"{method}#{number}"
            entries.append(f"{label}:=answers:{path}")
    run_in9("evaluate", "--dataset", output, "--models", ",".join(entries), *ONE)
    return output


@pytest.fixture(scope="module")
def right(output: Path) -> dict[str, list[Seed]]:
    """What the seeds of each method are right on, by the stored predictions."""
    by_method: dict[str, list[Seed]] = {}
    for summary in read_summaries(dataset_in(output))[0]:
        seed: Seed = {}
        for row in pq.read_table(output / prediction_file(summary, 0)).to_pylist():
            name = VariantName.parse(row["variant"])
            bg = row["bg_key"] if name.is_mixed else None
            seed[Shown(name.base, name.draw, row["fg_key"], bg)] = row["correct"]
        by_method.setdefault(summary.family or summary.name, []).append(seed)
    return by_method


class Quantity(NamedTuple):
    """A quantity of the seeds of a method: pictures, their paired differences, estimates."""

    units: list[tuple[str, str | None]]
    pairs: list[object]
    method: Method


def quantity_of(seeds: list[Seed], name: str) -> Quantity:
    variants = ("mixed_same", "mixed_rand") if name == "bg_gap" else (name,)
    shown = [one for one in seeds[0] if one.variant in variants]
    values, rows = [], []
    for seed in seeds:
        means = {
            variant: [seed[one] for one in shown if one.variant == variant] for variant in variants
        }
        value, row = 0.0, []
        for variant, sign in zip(variants, (1, -1), strict=False):
            value += sign * sum(means[variant]) / len(means[variant])
        for one in shown:
            answers = means[one.variant]
            sign = 1 if one.variant == variants[0] else -1
            row.append(sign * (seed[one] - sum(answers) / len(answers)) / len(answers))
        values.append(value)
        rows.append(row)
    return Quantity(
        [(one.fg, one.bg) for one in shown],
        [(one.draw, one.fg) if name == "bg_gap" else one for one in shown],
        Method(values, rows),
    )


def mean(values: Any) -> float:
    values = list(values)
    return float(sum(values) / len(values))


def interval(of: Quantity, name: str, *, further: bool = False) -> tuple[float, float]:
    value = mean(of.method.values)
    variance, df = spread_of(of.units, [of.method], further=further)
    t = float(stats.t.ppf(0.975, df))
    if name == "bg_gap":
        rows = [(*unit, r) for unit, r in zip(of.units, of.method.mean, strict=True)]
        singles = singles_of([of.method])
        low, high = interval_of(value, rows, of.pairs, (variance, df), singles)
    else:
        low, high = interval_of_mean(of.units, of.method, further=further)
    if further:
        lowest, reach = (-1 if name == "bg_gap" else 0), t * math.sqrt(variance)
        low, high = max(min(low, value - reach), lowest), min(max(high, value + reach), 1)
    return low, high


def test_figures_of_a_method_are_those_of_plain_loops(
    output: Path, right: dict[str, list[Seed]]
) -> None:
    rows = {(row["family"], row["variant"]): row for row in table_of(output, "families")}
    methods = [method for method, seeds in SEEDS.items() if seeds > 1]
    assert {method for method, _ in rows} == set(methods)
    assert {row["label_rule"] for row in rows.values()} == {CLOSED_CHOICE}
    for method, name in itertools.product(methods, QUANTITIES):
        row, of = rows[method, name], quantity_of(right[method], name)
        values = of.method.values
        sd = math.sqrt(sum((one - mean(values)) ** 2 for one in values) / (len(values) - 1))
        for column, expected in (
            ("mean", mean(values)),
            ("sd", sd),
            ("lowest", min(values)),
            ("highest", max(values)),
        ):
            assert float(row[column]) == pytest.approx(expected, rel=1e-12, abs=1e-12)
        assert (int(row["seeds"]), int(row["n"])) == (len(values), 18)
        assert row["members"] == "; ".join(f"{method}#{i}" for i in range(len(values)))
        ends = ("ci_low", "ci_high", "further_low", "further_high")
        if len(values) < 3:
            assert [row[end] for end in ends] == [""] * 4
            continue
        expected_ends = interval(of, name), interval(of, name, further=True)
        found = [float(row[end]) for end in ends]
        assert found == pytest.approx([*expected_ends[0], *expected_ends[1]], abs=1e-8)
    # The answers are such that all kinds of intervals are there.
    assert float(rows["sure", "original"]["mean"]) == 1
    assert float(rows["erm", "original"]["sd"]) > 0


def test_differences_of_methods_are_those_of_plain_loops(
    output: Path, right: dict[str, list[Seed]]
) -> None:
    table = table_of(output, "comparisons")
    for name in QUANTITIES:
        rows = {
            (row["first"], row["second"]): row
            for row in table
            if row["variant"] == name and row["first"] in SEEDS
        }
        pairs, p_values = list(rows), {}
        assert sorted(map(sorted, pairs)) == [["dro", "erm"], ["dro", "sure"], ["erm", "sure"]]
        for first, second in pairs:
            row = rows[first, second]
            of, other = (quantity_of(right[method], name) for method in (first, second))
            both = [of.method, other.method]
            value = mean(of.method.values) - mean(other.method.values)
            assert float(row["difference"]) == pytest.approx(value, rel=1e-12, abs=1e-12)
            variance, df = spread_of(of.units, both)
            total = [(*u, r) for u, r in zip(of.units, contributions_to(both), strict=True)]
            singles = singles_of(both)
            expected = interval_of(value, total, of.pairs, (variance, df), singles)
            assert (float(row["ci_low"]), float(row["ci_high"])) == pytest.approx(
                expected, abs=1e-8
            )
            # If the true difference were 0, each paired difference would be as often -1 as 1.
            square, trials, rest = trials_of(value, total, of.pairs, (variance, df), singles)
            error = math.sqrt(square / trials + rest)
            p_values[first, second] = 2 * float(stats.t.sf(abs(value) / error, df))
        # Holm: the smallest of m p values counts m times, the next m - 1 times.
        adjusted, largest = {}, 0.0
        for place, pair in enumerate(sorted(pairs, key=lambda pair: p_values[pair])):
            largest = max(largest, min(1.0, (len(pairs) - place) * p_values[pair]))
            adjusted[pair] = largest
        for pair in pairs:
            assert float(rows[pair]["p_adjusted"]) == pytest.approx(adjusted[pair], rel=1e-9)
        # Single models have no spread of seeds.
        (row,) = (
            row
            for row in table
            if (row["variant"], {row["first"], row["second"]}) == (name, {"lone#0", "plain"})
        )
        of, other = (
            quantity_of(right[row[end].partition("#")[0]], name) for end in ("first", "second")
        )
        value = mean(of.method.values) - mean(other.method.values)
        r = contributions_to([of.method, other.method])
        expected = interval_of(value, [(*u, x) for u, x in zip(of.units, r, strict=True)], of.pairs)
        found = [float(row[column]) for column in ("difference", "ci_low", "ci_high")]
        assert found == pytest.approx([value, *expected], abs=1e-8)
        assert row["n"] == "18"


def test_no_two_seeds_of_a_method_are_compared_and_no_method_with_a_model(output: Path) -> None:
    table = table_of(output, "comparisons")
    seeds = {f"{method}#{i}": method for method, number in SEEDS.items() for i in range(number)}
    (plain,) = {row["model"] for row in table_of(output, "summary")} - set(seeds)
    compared = [
        sorted((row["first"], row["second"])) for row in table if row["variant"] == "bg_gap"
    ]
    models = itertools.combinations([*seeds, plain], 2)
    expected = [sorted(pair) for pair in models if seeds.get(pair[0]) != seeds.get(pair[1])]
    expected += map(sorted, itertools.combinations(("erm", "dro", "sure"), 2))
    assert sorted(compared) == sorted(expected)


def test_a_method_needs_three_seeds_and_is_measured_against_methods_alone(output: Path) -> None:
    dataset = dataset_in(output)
    summaries = read_summaries(dataset)[0]
    (models,) = read_contributions(dataset, summaries)
    by_name = {one.name: one for one in subjects_of(summaries)}
    (plain,) = (one for one in summaries if not one.family)

    def measure(name: str, other: str = "", rule: str = CLOSED_CHOICE) -> Any:
        others = models.answers(by_name[other], rule) if other else ()
        return models.measure("bg_gap", by_name[name], rule, others)

    (row,) = table_of(output, "gaps", model=plain.name)
    assert measure(plain.name).interval() == (float(row["ci_low"]), float(row["ci_high"]))
    assert measure("lone#0", plain.name) is not None
    assert measure("erm", "dro").value == -measure("dro", "erm").value
    assert measure("erm") is not None
    for nothing in (
        measure("two"),
        measure("erm", "two"),
        measure("erm", plain.name),
        measure(plain.name, "erm"),
        measure("erm", rule=PAPER_RULE),
    ):
        assert nothing is None
    # A family with missing predictions has no row of what is missing.
    position = [one.name for one in summaries].index("erm#1")
    correct = [*models.correct]
    correct[position] = {
        rule: {name: right for name, right in by_variant.items() if str(name) != "only_fg"}
        for rule, by_variant in correct[position].items()
    }
    lacking = dataclasses.replace(models, correct=correct)
    known = {(row.family, row.variant) for row in family_rows("f", [lacking])}
    every = {(row.family, row.variant) for row in family_rows("f", [models])}
    assert every - known == {("erm", "only_fg")}


def test_a_line_says_why_a_family_has_no_interval_or_was_not_formed() -> None:
    other = {"how": {"precision": "bf16"}}
    seeds = [seed("erm#0"), seed("erm#1"), seed("dfr#0")]
    assert describe_families([*seeds, seed("dfr#1", **other)]) == [
        "no interval: erm has 2 trainings, and an interval needs 3",
        "no family dfr: dfr#0 and dfr#1 bf16 differ in precision",
    ]


def test_trainings_that_differ_much_make_an_accuracy_less_certain_than_its_units() -> None:
    """Takes seeds whose accuracies are 0.1, 0.5 and 0.9 on 20 images without shared pairs."""
    right = np.arange(20) < np.asarray([[2], [10], [18]])
    shares = right.mean(axis=1)
    seeds = Seeds(shares, (right - shares[:, np.newaxis]) / 20)
    rows = Method(shares.tolist(), seeds.r.tolist())
    variance, df = spread_of([(str(image), None) for image in range(20)], [rows])
    assert 0.25 / variance < 5
    measured = measure(Roles.from_units(np.arange(20)), 20, seeds, is_share=True)
    assert measured is not None
    expected = wilson(0.5, 0.25 / variance, t_quantile(df, 0.95))
    assert measured.interval() == pytest.approx(expected, abs=1e-9)
