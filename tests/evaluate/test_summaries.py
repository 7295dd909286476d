"""Tests summaries of stored predictions, comparisons of two models, and published figures."""

import dataclasses
import itertools
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_results import made
from msgspec.structs import replace
from numpy.typing import NDArray
from runs import ONE, QUICK, dataset_in, run_in9
from two_way_by_hand import effective

from pipeline.analyses.evaluation.tables import (
    accuracy_table,
    describe_power,
    latex_tables,
    measure_power,
    missing_rows,
)
from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import read_metadata, write_table
from pipeline.errors import JobError
from pipeline.evaluate import predictions
from pipeline.evaluate import results as result_files
from pipeline.evaluate.comparisons import ComparisonRow, compare_models, read_contributions
from pipeline.evaluate.predictions import evaluated_variants, prediction_file
from pipeline.evaluate.results import Failure
from pipeline.evaluate.summaries import read_summaries, summary_rows
from pipeline.evaluate.summary import Evaluated, Summary
from pipeline.storage.state_files import convert, read_table
from pipeline.storage.store import Store
from transforms.scoring import LABEL_RULES, PAPER_RULE
from transforms.taxonomy import imagenet9
from transforms.variants import MASK, ONLY_BG_T, ORIGINAL, VariantName, draws_of, with_replicates

MIXED = with_replicates(("mixed_same", "mixed_rand"), 2)
VARIANTS = (ORIGINAL, ONLY_BG_T, *MIXED)


@pytest.fixture(scope="module")
def told(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Two draws of small pictures with results of three models. Tests must not change it."""
    output = tmp_path_factory.mktemp("told") / "out"
    models = ",".join(f"python:tiny_models:{name}" for name in ("first", "second", "third"))
    flags = (*QUICK, "--replicates", 2, "--pictures", "none", "--models", models, *ONE)
    run_in9("run", "--input", small_sample, "--output", output, *flags)
    return dataset_in(output)


RULES = tuple(LABEL_RULES)


def summaries_of(dataset: Dataset) -> list[Summary]:
    return read_summaries(dataset)[0]


def predictions_of(dataset: Dataset, summary: Summary) -> pa.Table:
    return read_table(dataset.store, prediction_file(summary, 0)).replace_schema_metadata()


def test_answers_are_the_predictions_in_the_order_of_the_images(told: Dataset) -> None:
    images = predictions.EvalImages.read(told, "val")
    rows = {row["key"]: row for row in told.index("val") if row["selected"]}
    keys = images.keys.to_pylist()
    assert keys == sorted(rows)
    assert images.labels.tolist() == [rows[key]["label"] for key in keys]
    assert images.positions(pa.chunked_array([[keys[3], None, "another"]])).tolist() == [3, -1, -1]
    part = predictions.EvalImages.read(told, "val", 0.5)
    assert set(part.keys.to_pylist()) < set(keys) == set(part.background_keys.to_pylist())
    assert MASK not in evaluated_variants(told)
    summary = summaries_of(told)[0]
    table = predictions_of(told, summary)
    answered = predictions.read_predictions(told, images, summary)
    assert (answered.missing, answered.devices) == ((), ("cpu",))
    by_rule = answered.by_rule
    for row in table.to_pylist():
        of_rule, position = by_rule[row["label_rule"]], keys.index(row["fg_key"])
        variant = VariantName.parse(row["variant"])
        assert of_rule.predicted[variant][position] == row["prediction"]
        if variant.is_mixed:
            assert of_rule.bg_labels[variant][position] == rows[row["bg_key"]]["label"]
    names = [ORIGINAL, VariantName("mixed_same")]
    assert predictions.predictions_in_table(table.slice(1), images, names, RULES).missing == (
        ORIGINAL,
    )
    assert predictions.predictions_in_table(
        table.slice(0, 0), images, names, RULES
    ).missing == tuple(names)
    position = table.column_names.index("bg_key")
    unknown = table.set_column(position, "bg_key", pa.array(["another"] * len(table)))
    with pytest.raises(JobError, match="mixed_same has backgrounds that are not in the index"):
        predictions.predictions_in_table(unknown, images, names, RULES)


def test_unnamed_backgrounds_have_the_same_units_whatever_else_a_model_has(told: Dataset) -> None:
    images = predictions.EvalImages.read(told, "val")
    table = predictions_of(told, summaries_of(told)[0])
    position = table.column_names.index("bg_key")
    unnamed = table.set_column(position, "bg_key", pa.nulls(len(table), pa.string()))
    fewer = unnamed.filter(pc.not_equal(unnamed["variant"].cast(pa.string()), "mixed_same"))

    def units(rows: pa.Table) -> dict[VariantName, list[int]]:
        by_rule = predictions.predictions_in_table(rows, images, MIXED, RULES).by_rule
        return {name: found.tolist() for name, found in by_rule["mapped_only"].bg_units.items()}

    every, some = units(unnamed), units(fewer)
    assert set(every) == set(MIXED) == {*some, VariantName("mixed_same")}
    assert some == {name: every[name] for name in some}
    numbers = [number for of_variant in every.values() for number in of_variant]
    assert max(numbers) < 0
    assert len(set(numbers)) == len(numbers)


def test_only_predictions_of_the_pictures_that_are_there_count(
    told: Dataset, tmp_path: Path
) -> None:
    dataset = Dataset.open(Store(shutil.copytree(told.store.root, str(tmp_path / "out"))))
    first, second, third = summaries_of(dataset)
    assert first.missing == second.missing == third.missing == ()
    path = prediction_file(first, 0)
    table, metadata = read_table(dataset.store, path), read_metadata(dataset.store, path)
    assert metadata is not None
    fingerprints = table["of"].cast(pa.string()).to_pylist()
    variants = table["variant"].cast(pa.string()).to_pylist()
    others = [
        "another" if variant == "original" else this
        for variant, this in zip(variants, fingerprints, strict=True)
    ]
    column, kind = table.column_names.index("of"), table.schema.field("of").type
    changed = table.set_column(column, "of", pa.array(others).cast(kind))
    write_table(dataset.store, path, changed, metadata.fingerprint)
    dataset.store.delete(prediction_file(second, 0))
    (dataset.store.write(prediction_file(third, 0), b"PAR1, but no table"))
    (kept,), stale = read_summaries(dataset)
    assert sorted(stale) == sorted((second.model, third.model))
    assert kept.missing == ("original",)
    for part in ("accuracy", "per_class", "gaps", "confusion", "groups", "sizes"):
        rows = getattr(first, part)
        expected = tuple(row for row in rows if getattr(row, "variant", "") != "original")
        assert getattr(kept, part) == expected
    assert (kept.decomposition, kept.power) == ((), first.power)
    assert [row[1].variant for row in missing_rows([kept], [])] == ["original"] * 2
    failure = made(Failure, model=first.model, evaluation=first.evaluation, error="no memory")
    ((_, _, failed), _) = missing_rows([kept], [failure])
    assert failed.error == "missing: no memory"
    lost = prediction_file(second, 0)
    told.store.copy_into(dataset.store, [(lost, lost)])
    # A comparison of two models has the variants that both have.
    rows = compared(dataset, [kept, second])
    shown = {*draws_of(evaluated_variants(told)), "bg_gap"}
    assert {row.variant for row in rows} == shown - {"original"}
    assert len(rows) == 2 * (len(shown) - 1)


def test_summaries_have_a_form_and_are_made_of_predictions(told: Dataset) -> None:
    images = predictions.EvalImages.read(told, "val")
    for summary in summaries_of(told):
        answered = predictions.read_predictions(told, images, summary).by_rule
        for part, rows in summary_rows(answered, images, told.taxonomy).items():
            assert getattr(summary, part) == rows
        assert measure_power(told, images, summary) == summary.power
        path = result_files.result_file(summary.folder, "model")
        model = result_files.read_result(told.store, path, Evaluated)
        assert model is not None
        assert result_files.read_results(told.store, "model", Evaluated, summary.model) == [model]
        content = msgspec.to_builtins(model)
        convert({**content, "new": 1}, Evaluated)
        for name, value in (("power", {}), ("entry", 3), ("evaluation", {"split": "../x"})):
            with pytest.raises(msgspec.ValidationError, match=name):
                convert({**content, name: value}, Evaluated)


def test_stored_power_is_reused_only_if_it_was_measured_on_the_same_outputs(
    told: Dataset, tmp_path: Path
) -> None:
    images, current = predictions.EvalImages.read(told, "val"), summaries_of(told)[1]
    dataset = Dataset.open(Store(shutil.copytree(told.store.root, str(tmp_path / "out"))))
    path = result_files.result_file(current.folder, "model")
    model = result_files.read_result(told.store, path, Evaluated)
    assert model is not None
    (row,) = current.power
    for fingerprint, accuracy in ((row.fingerprint, 0.125), ("another", row.accuracy)):
        noted = replace(row, accuracy=0.125, fingerprint=fingerprint)
        result_files.write_result(dataset.store, path, replace(model, power=(noted,)))
        assert measure_power(dataset, images, current)[0].accuracy == accuracy


def test_models_without_power_are_named_and_those_whose_gap_says_little(told: Dataset) -> None:
    summary, *_ = summaries_of(told)
    (row,) = summary.power
    gap = next(row for row in summary.gaps if row.label_rule == "argmax_then_map")
    near, far = (replace(gap, ci_low=low, ci_high=0.2) for low in (-0.1, 0.1))
    little = "; so a BG-Gap whose interval includes 0"
    for gaps, says_little in (
        ((near,), f"{little} says little about the model"),
        ((far,), ""),
        # Only models whose interval includes 0 are named, if there are others.
        ((near, far), f"{little}, as for {summary.model}, says little"),
    ):
        shown = [replace(summary, gaps=(gap,), power=(replace(row, has_power=True),))]
        weak = (replace(row, has_power=False),)
        shown += [replace(summary, gaps=(one,), power=weak) for one in gaps]
        (line,) = describe_power(shown)
        before, _, after = line.partition(" %)")
        assert before.count(summary.model) == len(gaps)
        assert after.startswith(says_little)
        assert bool(after) == bool(says_little)
    assert not list(describe_power([replace(summary, power=())]))


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Answers on n images with their labels, sizes and units, and the rows that sum them up."""

    n: int
    labels: NDArray[np.int16]
    sizes: NDArray[np.float64]
    units: tuple[str, ...]
    answers: dict[VariantName, NDArray[np.int16]]
    bg_units: dict[VariantName, NDArray[np.int64]]
    parts: dict[str, Any]

    def __repr__(self) -> str:
        return f"{self.n} images"


@st.composite
def drawn(draw: st.DrawFn) -> Drawn:
    n, grouped = draw(st.integers(0, 30)), draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    labels, *numbers = rng.integers(-1, 9, (13, n)).astype(np.int16)
    labels = np.maximum(labels, 0)
    keys = pa.array([f"{number:02}" for number in range(n)], pa.string())
    units = tuple(f"g{number // 3}" if grouped else f"{number:02}" for number in range(n))
    # The size of some foregrounds is unknown.
    sizes = np.where(rng.random(n) < 0.3, np.nan, rng.random(n))
    unit_numbers = np.unique(np.asarray(units, object), return_inverse=True)[1]
    images = predictions.EvalImages(keys, labels, sizes, keys, labels, units, unit_numbers)
    answers, grounds = (
        dict(zip(VARIANTS, part, strict=True)) for part in (numbers[::2], numbers[1::2])
    )
    # Backgrounds are mostly the rarer role; with groups, foregrounds may be.
    bg_units = {name: rng.integers(-3, max(n // 4, 1), n) for name in MIXED}
    by_rule = {PAPER_RULE: predictions.Predictions(labels, answers, grounds, bg_units)}
    parts = summary_rows(by_rule, images, imagenet9())
    return Drawn(n, labels, sizes, units, answers, bg_units, parts)


@given(drawn())
def test_parts_of_a_summary_count_the_same_images(of: Drawn) -> None:
    draws = draws_of(VARIANTS)
    assert [row.variant for row in of.parts["accuracy"]] == list(draws)
    for row in of.parts["accuracy"]:
        predicted = np.stack([of.answers[name] for name in draws[row.variant]])
        assert row.accuracy == (pytest.approx((predicted == of.labels).mean()) if of.n else None)
        assert row.outside == (predicted == -1).sum()
        shares = [(of.labels == label).mean() for label in set(of.labels)]
        assert row.chance == max(shares, default=None)
        assert row.replicates == len(predicted)
        assert (row.seed_sd is None) == (len(predicted) == 1 or of.n == 0)
        for part in ("accuracy", "per_class", "sizes", "confusion"):
            rows = [each for each in of.parts[part] if each.variant == row.variant]
            known = ~np.isnan(of.sizes) if part == "sizes" else np.full(of.n, True)
            assert sum(each.pictures for each in rows) == known.sum() * len(predicted)
            if part != "confusion":
                assert sum(each.n for each in rows) == known.sum()
                right = int((predicted == of.labels)[:, known].sum())
                assert sum(each.correct for each in rows) == right
    for row in of.parts["confusion"]:
        predicted = np.stack([of.answers[name] for name in draws[row.variant]])
        expected = ((of.labels == row.label) & (predicted == row.prediction)).sum()
        assert row.pictures == expected
    assert sum(row.n for row in of.parts["decomposition"]) == of.n


@given(drawn())
def test_intervals_of_a_summary_contain_its_accuracies(of: Drawn) -> None:
    for part in ("accuracy", "per_class", "groups", "sizes"):
        for row in of.parts[part]:
            assert not row.n or 0 <= row.ci_low <= row.accuracy <= row.ci_high <= 1
    # Each variant with a known background class has exactly one worst group.
    groups = of.parts["groups"]
    worst = [row.variant for row in groups if row.is_worst]
    assert worst == list(dict.fromkeys(row.variant for row in groups))
    for row in groups:
        bounds = row.worst_ci_low, row.worst_ci_high
        if row.is_worst:
            assert bounds[0] <= row.ci_low <= row.ci_high <= bounds[1]
        else:
            assert bounds == (None, None)
    # Every table has a dash for a figure that does not exist.
    summary = made(Summary, model="m", label_rules=(PAPER_RULE,), **of.parts)
    assert ("-" in accuracy_table([summary]).splitlines()[1].split()) == (of.n == 0)
    headline = latex_tables([summary], imagenet9().names)["headline"]
    assert ("Without results" in headline) == (of.n == 0)


@given(drawn())
def test_gaps_and_flips_have_the_units_of_their_rarer_role(of: Drawn) -> None:
    assert len(of.parts["gaps"]) == (of.n > 0)
    for gap in of.parts["gaps"]:
        beside = {row.variant: row.accuracy for row in of.parts["accuracy"]}
        assert gap.gap == pytest.approx(beside["mixed_same"] - beside["mixed_rand"])
        for variant in ("mixed_same", "mixed_rand"):
            assert getattr(gap, variant) == pytest.approx(beside[variant])
        of_backgrounds = [unit for name in MIXED for unit in of.bg_units[name].tolist()]
        assert gap.units == pytest.approx(min(effective(of.units), effective(of_backgrounds)))
        assert gap.replicates == 2
    draws = draws_of(VARIANTS)
    for row in of.parts["flips"]:
        # Only pictures in a pair on two different backgrounds count.
        pictures = {
            (name, i): (of.units[i], of.bg_units[name][i])
            for one, other in itertools.product(draws[row.variant], draws[row.other_variant])
            for i in np.flatnonzero(of.bg_units[one] != of.bg_units[other])
            for name in (one, other)
        }
        roles = zip(*pictures.values(), strict=True)
        assert row.units == pytest.approx(min(effective(role) for role in roles))


def compared(dataset: Dataset, summaries: list[Summary]) -> list[ComparisonRow]:
    measured = read_contributions(dataset, summaries)
    return list(compare_models(dataset.manifest.fingerprint, measured))


def test_the_difference_of_two_models_is_minus_that_of_the_reverse(told: Dataset) -> None:
    summaries = summaries_of(told)
    rows, back = (compared(told, each) for each in (summaries, summaries[::-1]))
    reverse = {(r.second, r.first, r.label_rule, r.variant): r for r in back}
    assert len(rows) == len(reverse) == 3 * 2 * (len(draws_of(evaluated_variants(told))) + 1)
    figures = {
        (each.model, row.label_rule, getattr(row, "variant", "bg_gap")): row
        for each in summaries
        for row in (*each.accuracy, *each.gaps)
    }
    for row in rows:
        key = row.label_rule, row.variant
        value = "gap" if row.variant == "bg_gap" else "accuracy"
        ours, theirs = (getattr(figures[name, *key], value) for name in (row.first, row.second))
        other = reverse[row.first, row.second, *key]
        assert row.difference == pytest.approx(ours - theirs)
        assert row.ci_low <= row.difference <= row.ci_high
        for name, mirrored in (("difference",) * 2, ("ci_low", "ci_high"), ("ci_high", "ci_low")):
            assert getattr(row, name) == pytest.approx(-getattr(other, mirrored))
        assert row.p_adjusted == pytest.approx(other.p_adjusted)
        # A difference that is significant after adjustment is significant without it.
        if row.p_adjusted < 0.05:
            assert row.ci_low > 0 or row.ci_high < 0
    assert compared(told, summaries[:1]) == []
