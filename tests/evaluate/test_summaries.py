"""Tests summaries of stored predictions, comparisons of two models, and published figures."""

import dataclasses
import functools
import itertools
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_results import made
from msgspec.structs import replace
from runs import dataset_in
from two_way_by_hand import effective, interval_of, share_interval

from pipeline.analyses.evaluation.tables import (
    accuracy_table,
    latex_tables,
    measure_power,
    missing_rows,
)
from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import read_metadata, write_table
from pipeline.errors import JobError
from pipeline.evaluate import predictions
from pipeline.evaluate import results as result_files
from pipeline.evaluate.comparisons import compare_models, read_contributions
from pipeline.evaluate.predictions import evaluated_variants, prediction_file
from pipeline.evaluate.results import Failure
from pipeline.evaluate.summaries import read_summaries, summary_rows
from pipeline.evaluate.summary import Evaluated, Summary
from pipeline.storage.state_files import convert, read_table
from pipeline.storage.store import Store
from transforms.analysis import KINDS, SIZE_EDGES
from transforms.scoring import LABEL_RULES, PAPER_RULE
from transforms.taxonomy import imagenet9
from transforms.variants import MASK, ONLY_BG_T, ORIGINAL, VariantName, draws_of, with_replicates

MIXED = with_replicates(("mixed_same", "mixed_rand"), 2)
VARIANTS = (ORIGINAL, ONLY_BG_T, *MIXED)
KIND_VARIANTS = ("original", "mixed_rand", "only_bg_t")
KIND_OF = {  # Right on these variants -> the kind, as the paper defines it.
    (True, False, True): "bg_required",
    (False, True, False): "bg_fools",
    (True, False, False): "bg_fg_required",
    (False, True, True): "bg_fg_fools",
    **{(True, True, background): "right_on_both" for background in (False, True)},
    **{(False, False, background): "wrong_on_both" for background in (False, True)},
}


@pytest.fixture
def told(three_models: Path) -> Dataset:
    """Two draws of small pictures with results of three models. Tests must not change it."""
    return dataset_in(three_models)


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
    measured = read_contributions(dataset, [kept, second])
    rows = list(compare_models(dataset.manifest.fingerprint, measured))
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


class Picture(NamedTuple):
    """A picture of a variant: its draw and image, the units that it shares, and the answer."""

    draw: VariantName
    image: int
    fg: str
    bg: int | None
    label: int
    bg_label: int
    size: float
    answer: int

    @property
    def is_right(self) -> bool:
        return self.answer == self.label


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Answers to the pictures of n images that count, by variant, and the rows that sum them up."""

    n: int
    pictures: dict[str, list[Picture]]
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
    # The size of some foregrounds is unknown, or an edge of a bucket.
    sizes = np.choose(rng.integers(0, 3, n), [np.nan, rng.choice(SIZE_EDGES, n), rng.random(n)])
    unit_numbers = np.unique(np.asarray(units, object), return_inverse=True)[1]
    held_out = draw(st.none() | st.sets(st.integers(0, 7)))
    held = None if held_out is None else np.asarray(sorted(held_out), np.int64)
    images = predictions.EvalImages(keys, labels, sizes, keys, labels, units, unit_numbers, held)
    right = rng.random((len(VARIANTS), n)) < 0.4
    answers = dict(zip(VARIANTS, np.where(right, labels, numbers[::2]), strict=True))
    grounds = dict(zip(VARIANTS, numbers[1::2], strict=True))
    # Backgrounds are mostly the rarer role; with groups, foregrounds may be.
    bg_units = {name: rng.integers(-3, max(n // 4, 1), n) for name in MIXED}
    by_rule = {PAPER_RULE: predictions.Predictions(labels, answers, grounds, bg_units)}
    pictures: dict[str, list[Picture]] = {}
    for name in VARIANTS:
        own = bg_units[name].tolist() if name.is_mixed else [None] * n
        columns = (labels, grounds[name], sizes, answers[name])
        rows = zip(range(n), units, own, *(column.tolist() for column in columns), strict=True)
        pictures.setdefault(name.base, []).extend(
            picture
            for picture in itertools.starmap(functools.partial(Picture, name), rows)
            if not name.is_mixed or held_out is None or picture.bg in held_out
        )
    return Drawn(n, pictures, summary_rows(by_rule, images, imagenet9()))


PARTS: dict[str, Callable[[Any, Picture], bool]] = {
    "accuracy": lambda row, p: True,
    "per_class": lambda row, p: row.label == p.label,
    "groups": lambda row, p: (row.label, row.bg_label) == (p.label, p.bg_label),
    "sizes": lambda row, p: row.fg_low <= p.size < row.fg_high or p.size == row.fg_high == 1,
    "confusion": lambda row, p: (row.label, row.prediction) == (p.label, p.answer),
}
"""Tables, and which pictures of its variant a row is about."""


@settings(max_examples=40)
@given(drawn())
def test_rows_of_a_summary_are_of_the_pictures_that_they_name(of: Drawn) -> None:
    for part, is_about in PARTS.items():
        seen: Counter[str] = Counter()
        for row in of.parts[part]:
            chosen = [picture for picture in of.pictures[row.variant] if is_about(row, picture)]
            seen[row.variant] += len(chosen)
            assert row.pictures == len(chosen)
            if part == "confusion":
                continue
            right = sum(picture.is_right for picture in chosen)
            assert (row.n, row.correct) == (len({picture.image for picture in chosen}), right)
            if chosen:
                assert row.accuracy == right / len(chosen)
                expected = share_interval((p.fg, p.bg, p.is_right) for p in chosen)
                assert (row.ci_low, row.ci_high) == pytest.approx(expected, abs=1e-6)
            if part in ("accuracy", "per_class"):
                assert row.outside == sum(picture.answer == -1 for picture in chosen)
        # Every picture is in a row, unless it has no known size, or no background of a known class.
        for variant, pictures in of.pictures.items():
            without = {
                "groups": [p for p in pictures if p.bg is None or p.bg_label == -1],
                "sizes": [p for p in pictures if np.isnan(p.size)],
            }
            assert seen[variant] == len(pictures) - len(without.get(part, []))


def means(pictures: list[Picture], field: str) -> list[float]:
    """Returns the accuracy on the pictures of each value of a field."""
    by_value: dict[Any, list[bool]] = {}
    for picture in pictures:
        by_value.setdefault(getattr(picture, field), []).append(picture.is_right)
    return [float(np.mean(right)) for right in by_value.values()]


@settings(max_examples=40)
@given(drawn())
def test_accuracies_have_what_classes_and_draws_say_of_them(of: Drawn) -> None:
    assert [row.variant for row in of.parts["accuracy"]] == list(of.pictures)
    for row in of.parts["accuracy"]:
        pictures = of.pictures[row.variant]
        assert row.replicates == 1 + row.variant.startswith("mixed")
        if not pictures:
            assert row.accuracy is row.chance is row.seed_sd is row.class_mean_accuracy is None
            continue
        counts = Counter(picture.label for picture in pictures)
        assert row.chance == max(counts.values()) / len(pictures)
        assert row.class_mean_accuracy == pytest.approx(np.mean(means(pictures, "label")))
        by_draw = means(pictures, "draw")
        sd = np.std(by_draw, ddof=1) if len(by_draw) > 1 else None
        assert row.seed_sd == (sd if sd is None else pytest.approx(sd))
    # Each image is of the kind that its first pictures show.
    first = [
        {p.image: p.is_right for p in of.pictures[name] if not p.draw.draw}
        for name in KIND_VARIANTS
    ]
    kinds = Counter(KIND_OF[tuple(each[image] for each in first)] for image in first[1])
    assert {row.kind: row.n for row in of.parts["decomposition"]} == (
        {kind: kinds[kind] for kind in KINDS} if kinds else {}
    )
    for row in of.parts["decomposition"]:
        assert row.share == row.n / row.images == row.n / len(first[1])


@settings(max_examples=40)
@given(drawn())
def test_each_variant_has_one_worst_group_and_tables_have_dashes_without_images(of: Drawn) -> None:
    groups = of.parts["groups"]
    cells = [(list(of.pictures).index(row.variant), row.label, row.bg_label) for row in groups]
    assert cells == sorted(set(cells))
    worst = [row.variant for row in groups if row.is_worst]
    assert worst == list(dict.fromkeys(row.variant for row in groups))
    for row in groups:
        bounds = row.worst_ci_low, row.worst_ci_high
        if row.is_worst:
            assert bounds[0] <= row.ci_low <= row.ci_high <= bounds[1]
        else:
            assert bounds == (None, None)
    summary = made(Summary, model="m", label_rules=(PAPER_RULE,), **of.parts)
    is_whole = all(of.pictures.values()) and of.parts["gaps"]
    assert ("-" in accuracy_table([summary]).splitlines()[1].split()) == (not is_whole)
    headline = latex_tables([summary], imagenet9().names)["headline"]
    assert ("No figures in this table" in headline) == (of.n == 0)


@settings(max_examples=40)
@given(drawn())
def test_gaps_and_flips_are_of_the_pictures_and_of_their_rarer_role(of: Drawn) -> None:
    # In a gap are the images that have a picture of both variants in a draw that counts.
    every = itertools.product(of.pictures["mixed_same"], of.pictures["mixed_rand"])
    paired = [(a, b) for a, b in every if (a.image, a.draw.draw) == (b.image, b.draw.draw)]
    assert len(of.parts["gaps"]) == bool(paired)
    for gap in of.parts["gaps"]:
        means, rows = [], []
        for sign, pictures in zip((1, -1), zip(*paired, strict=True), strict=True):
            means.append(float(np.mean([picture.is_right for picture in pictures])))
            each = sign / len(pictures)
            rows += [(p.fg, p.bg, each * (p.is_right - means[-1])) for p in pictures]
        assert (gap.mixed_same, gap.mixed_rand) == pytest.approx(means)
        assert gap.gap == pytest.approx(means[0] - means[1])
        expected = interval_of(gap.gap, rows, 2 * [*range(len(paired))])
        assert (gap.ci_low, gap.ci_high) == pytest.approx(expected, abs=1e-6)
        roles = ([row[role] for row in rows] for role in (0, 1))
        assert gap.units == pytest.approx(min(map(effective, roles)))
        assert (gap.n, gap.replicates) == (len({a.image for a, _ in paired}), 2)
    for row in of.parts["flips"]:
        # Only pictures in a pair on two different backgrounds of an image count.
        first, second = of.pictures[row.variant], of.pictures[row.other_variant]
        of_two = itertools.product(first, second)
        every = itertools.combinations(first, 2) if first is second else of_two
        pairs = [(a, b) for a, b in every if a.image == b.image and a.bg != b.bg]
        flips: dict[int, list[bool]] = {}
        for one, other in pairs:
            flips.setdefault(one.image, []).append(one.answer != other.answer)
        rate = np.mean([np.mean(of_image) for of_image in flips.values()])
        assert row.flip_rate == pytest.approx(rate)
        assert (row.n, row.pairs, row.replicates) == (len(flips), len(pairs), 2)
        shown = set(itertools.chain.from_iterable(pairs))
        roles = ([getattr(picture, role) for picture in shown] for role in ("fg", "bg"))
        assert row.units == pytest.approx(min(map(effective, roles)))
