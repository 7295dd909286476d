"""Tests the trend of accuracies against those on ImageNet."""

import dataclasses
import itertools
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_results import made, stored
from numpy.typing import NDArray
from runs import ROOT, csv_rows, table_of

from pipeline.analyses.imagenet.figures import apart, trend_figure
from pipeline.analyses.imagenet.results import (
    BG_GAP,
    TREND_FILE,
    TREND_VARIANTS,
    ImageNetResult,
    Trend,
    describe_imagenet,
    write_trend,
)
from pipeline.evaluate.comparisons import ModelsOnSameImages
from pipeline.evaluate.predictions import EvalImages
from pipeline.evaluate.results import result_file, write_result
from pipeline.evaluate.summary import Summary
from pipeline.storage.store import Store
from transforms.scoring import LABEL_RULES
from transforms.taxonomy import imagenet9
from transforms.trend import fit_line
from transforms.variants import VariantName


def without_error(models: int) -> list[NDArray[np.float64]]:
    """Returns sums over pictures that give no model any error."""
    return [np.zeros((models, 2))]


def test_intervals_of_slopes_depend_on_models_not_on_their_order() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.uniform(0.6, 0.9, 8), rng.uniform(0.6, 0.9, 8)
    sums = [rng.normal(0, 0.01, (8, 30))]
    order = rng.permutation(8)
    line = fit_line(x, y, sums)
    shuffled = fit_line(x[order], y[order], [of_role[order] for of_role in sums])
    assert line is not None
    assert shuffled is not None
    assert (line.slope, line.intercept) == pytest.approx(np.polyfit(x, y, 1), abs=1e-9)
    np.testing.assert_allclose(shuffled.band, line.band)
    assert dataclasses.astuple(shuffled)[:-1] == pytest.approx(dataclasses.astuple(line)[:-1])
    # A band begins and ends at a model, encloses the line, and is narrowest in the middle.
    at, low, high = np.transpose(line.band)
    assert (at[0], at[-1]) == pytest.approx((x.min(), x.max()))
    np.testing.assert_allclose((low + high) / 2, line.intercept + line.slope * at)
    assert 0 < np.argmin(high - low) < len(at) - 1
    # For points exactly on a line only the images contribute to the slope's error; without their
    # errors, no interval is known.
    assert fit_line(x, 0.5 * x, without_error(8)) is None
    assert fit_line(x, 0 * x, without_error(8)) is None
    shared = fit_line(x, 0.5 * x, [np.outer(x, rng.normal(0, 0.01, 30))])
    assert shared is not None
    assert shared.slope_high - shared.slope_low > 0.05


def test_no_line_without_enough_different_points() -> None:
    x, y = [0.7, 0.72, 0.8, 0.81, 0.83], [0.1, 0.2, 0.3, 0.2, 0.4]
    assert fit_line(x[:4], y[:4], without_error(4)) is None
    assert fit_line([0.7] * 5, y, without_error(5)) is None
    # One model alone would decide this slope.
    assert fit_line([0.7] * 4 + [0.8], y, without_error(5)) is None
    assert fit_line(x, y, without_error(5)) is not None
    with pytest.raises(ValueError, match="2 and 1 accuracies for 2"):
        fit_line([0.7, 0.8], [0.1], without_error(2))


MODELS = {
    "resnet18.a1_in1k": 0.71488,
    "resnet50.a1_in1k": 0.80382,
    "vgg16.tv_in1k": 0.716,
    "resnet34.a1_in1k": 0.76414,
    "resnet101.a1_in1k": 0.81494,
    "convnext_tiny.fb_in1k": 0.82066,
}


PICTURES = 4000


def measured_of(summaries: list[Summary]) -> list[ModelsOnSameImages]:
    """Returns predictions that are right on as many of the first images as each summary states."""
    keys = pa.array([f"{i:06}" for i in range(PICTURES)])
    labels, units = np.zeros(PICTURES, np.int16), np.arange(PICTURES)
    images = EvalImages(keys, labels, np.zeros(PICTURES), keys, labels, (), units)
    correct = []
    for summary in summaries:
        shares = {VariantName(row.variant): row.accuracy or 0.0 for row in summary.accuracy}
        of_rule = {name: units < round(share * PICTURES) for name, share in shares.items()}
        correct.append(dict.fromkeys(LABEL_RULES, of_rule))
    names = dict.fromkeys(correct[0]["mapped_only"], labels)
    grounds = {name: units for name in names if name.is_mixed}
    return [ModelsOnSameImages(images, tuple(names), summaries, correct, grounds)]


def trend_of(store: Store, summaries: list[Summary]) -> Trend:
    return write_trend(store, "f" * 32, summaries, imagenet9(), measured_of(summaries))


def summary_of(model: str, top1: float, size: int = 224, **evaluation: str) -> Summary:
    """Returns a summary on lines of known slope.

    Accuracies lie on lines of slope 0.5 and the gap on a line of slope -0.2, so the accuracy on
    mixed_same lies on a line of slope 0.3.
    """
    settings = {"split": "val", "eval_input": "stored", "precision": "fp32", **evaluation}
    row = {"ci_low": 0.0, "ci_high": 1.0, "n": 100}
    gap = 0.3 - 0.2 * top1
    shares = dict.fromkeys((*TREND_VARIANTS, "original"), 0.1 + 0.5 * top1)
    shares["mixed_same"] += gap
    return made(
        Summary,
        model=model,
        num_outputs=1000,
        weights_sha256="ab" * 32,
        evaluation={**settings, "input_size": size},
        label_rules=tuple(LABEL_RULES),
        accuracy=[
            {"label_rule": rule, "variant": variant, "accuracy": accuracy, **row}
            for rule in LABEL_RULES
            for variant, accuracy in shares.items()
        ],
        gaps=[{"label_rule": rule, "gap": gap, **row} for rule in LABEL_RULES],
    )


def test_the_trend_is_made_of_what_is_there(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    summaries = [summary_of(model, top1) for model, top1 in MODELS.items()]
    summaries.append(summary_of("resnet18.a1_in1k", 0.9, precision="bf16"))
    trend = trend_of(store, summaries)
    assert json.loads(store.read(TREND_FILE)) == stored(trend)
    assert trend.label_rule == "argmax_then_map"
    assert trend.left_out == ("resnet18.a1_in1k bf16",)
    assert len(trend.points) == 6 * 6
    assert {point.imagenet_top1 for point in trend.points} == set(MODELS.values())
    slopes = {line.variant: line.slope for line in trend.lines}
    expected = {**dict.fromkeys(TREND_VARIANTS, 0.5), "mixed_same": 0.3, BG_GAP: -0.2}
    # Each accuracy is rounded to a whole number of pictures.
    assert slopes == pytest.approx(expected, abs=0.01)
    assert all(line.models == 6 for line in trend.lines)
    assert all(line.slope_low < line.slope < line.slope_high for line in trend.lines)
    assert all(low < high for line in trend.lines for _, low, high in line.band)
    for beginning in ("models of one architecture are not", "published: timm results-imagenet.csv"):
        assert any(beginning in note for note in trend.notes)
    # The figure draws only the paper's rule; the table lists both rules.
    assert len(table_of(tmp_path, "trend")) == 2 * 6 * 6
    # A model without stored predictions has points but does not enter the lines.
    trend = write_trend(store, "f" * 32, summaries, imagenet9(), measured_of(summaries[:5]))
    assert {line.models for line in trend.lines} == {5}
    assert len(trend.points) == 6 * 6
    trend = trend_of(store, summaries[:4])
    assert trend.lines == ()
    assert any("at least 5 models" in note for note in trend.notes)
    unknown = trend_of(store, [summary_of("mine", 0.5)])
    assert {point.imagenet_top1 for point in unknown.points} == {None}


def test_a_family_is_one_point_of_the_trend(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    shared = {model: summary_of(model, top1) for model, top1 in MODELS.items()}
    seeds = [
        msgspec.structs.replace(
            summary_of(f"m={seed}.pth", 0.5 + seed / 10),
            label=f"mine#{seed}",
            weights_sha256=f"{seed:064}",
        )
        for seed in range(3)
    ]
    for seed, top1 in zip(seeds, (0.6, 0.7, 0.74), strict=True):
        measured = {"model": seed.model, "evaluation": seed.evaluation, "top1": top1}
        measured |= {"weights_sha256": seed.weights_sha256, "n": 50_000, "classes": 1000}
        path = result_file(seed.folder, "imagenet")
        write_result(store, path, made(ImageNetResult, **measured))
    trend = trend_of(store, [*shared.values(), *seeds])
    assert all(line.models == len(MODELS) + 1 for line in trend.lines)
    points = {(point.model, point.variant): point for point in trend.points}
    assert {model for model, _ in points} == {*MODELS, "mine"}
    point = points["mine", "no_fg"]
    assert point.imagenet_top1 == pytest.approx(0.68, abs=1e-12)
    assert point.accuracy == pytest.approx(0.1 + 0.5 * 0.6, abs=1e-12)
    assert (point.lowest, point.highest) == pytest.approx((0.35, 0.45), abs=1e-12)
    assert point.ci_low is point.ci_high is None
    assert point.reach == (point.lowest, point.highest)
    assert points["vgg16.tv_in1k", "no_fg"].reach == (0.0, 1.0)
    (line,) = (line for line in trend.lines if line.variant == "no_fg")
    x = [*MODELS.values(), 0.68]
    y = [round((0.1 + 0.5 * top1) * PICTURES) / PICTURES for top1 in MODELS.values()]
    assert line.slope == pytest.approx(np.polyfit(x, [*y, 0.4], 1)[0], abs=1e-9)
    (note,) = (note for note in trend.notes if note.startswith("one point for all trainings"))
    assert note.endswith(": mine")
    assert b"mine" in trend_figure(trend).svg
    # A training without an accuracy on ImageNet leaves that of the method unknown.
    store.delete(result_file(seeds[1].folder, "imagenet"))
    trend = trend_of(store, [*shared.values(), *seeds])
    assert {line.models for line in trend.lines} == {len(MODELS)}
    assert "no accuracy on ImageNet is known for mine" in trend.notes
    rows = table_of(tmp_path, "trend", model="mine")
    assert {(row["imagenet_top1"], row["ci_low"]) for row in rows} == {("", "")}
    # Nor is there a family if one of them was also run with other settings.
    settings = msgspec.structs.replace(seeds[0].evaluation, precision="bf16")
    again = msgspec.structs.replace(seeds[0], evaluation=settings)
    trend = trend_of(store, [*shared.values(), *seeds, again])
    assert {point.model for point in trend.points} == {*MODELS, "mine#0", "mine#1", "mine#2"}
    assert trend.left_out == ("mine#0 bf16",)


def test_the_trend_uses_accuracies_on_one_set_of_images_at_a_time(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    summaries = [summary_of(model, top1) for model, top1 in MODELS.items()]

    def measure(model: str, **other: Any) -> None:
        part = {"n": 10, "classes": 3, "listing": "part", "top1": 0.5, "weights_sha256": "ab" * 32}
        part |= {"model": model, "ci_low": 0.2, "ci_high": 0.8, **other}
        part |= {"evaluation": summaries[0].evaluation}
        write_result(store, result_file(model, "imagenet"), made(ImageNetResult, **part))

    def known(are_left_out: bool) -> dict[str, float | None]:
        current = trend_of(store, summaries)
        said = ["measured on other images are left out" in note for note in current.notes]
        assert any(said) == are_left_out
        return {point.model: point.imagenet_top1 for point in current.points}

    for model in list(MODELS)[:-1]:
        measure(model)
        assert known(are_left_out=True) == MODELS
    measure("convnext_tiny.fb_in1k", weights_sha256="cd" * 32)
    assert known(are_left_out=True) == MODELS
    measure("convnext_tiny.fb_in1k")
    assert known(are_left_out=False) == dict.fromkeys(MODELS, 0.5)
    for model in MODELS:
        measure(model, n=50_000, classes=1000, top1=0.6)
    assert known(are_left_out=False) == dict.fromkeys(MODELS, 0.6)


def test_accuracies_of_earlier_weights_are_not_listed(tmp_path: Path) -> None:
    store, summary = Store(str(tmp_path)), summary_of("resnet18.a1_in1k", 0.7)
    measured = {"model": "resnet18.a1_in1k", "weights_sha256": "ab" * 32, "listing": "part"}
    measured |= {"n": 10, "classes": 3, "top1": 0.5, "ci_low": 0.2, "ci_high": 0.8}
    path = result_file("resnet18.a1_in1k", "imagenet")
    write_result(store, path, made(ImageNetResult, evaluation=summary.evaluation, **measured))
    assert "50.0 % [20.0, 80.0]" in describe_imagenet(store, "f" * 32, [summary], ())
    changed = msgspec.structs.replace(summary, weights_sha256="cd" * 32)
    assert describe_imagenet(store, "f" * 32, [changed], ()) == ""


def test_both_axes_are_of_one_input_size_or_the_page_says_which(tmp_path: Path) -> None:
    def sizes(size: int) -> tuple[dict[str, int], str, str]:
        # ResNet-50 has published figures at 224 and 288 pixels, VGG-16 only at 224.
        names = ("resnet50.a1_in1k", "vgg16.tv_in1k")
        trend = trend_of(Store(str(tmp_path)), [summary_of(name, 0.7, size) for name in names])
        assert {point.input_size for point in trend.points} == {size}
        input_sizes = {point.model: point.imagenet_input_size for point in trend.points}
        notes = [note for note in trend.notes if "another input size" in note]
        return input_sizes, " ".join(notes), trend_figure(trend).svg.decode()

    # Accuracy is measured at the model's own input size, whatever size the pictures have.
    assert sizes(96)[0]["resnet50.a1_in1k"] == 224
    input_sizes, notes, figure = sizes(224)
    assert (set(input_sizes.values()), notes) == ({224}, "")
    assert "published at 224 px" in figure
    input_sizes, notes, figure = sizes(288)
    assert input_sizes == {"resnet50.a1_in1k": 288, "vgg16.tv_in1k": 224}
    assert "for vgg16.tv_in1k (224 px, here 288);" in notes
    assert "published at 224 to 288 px" in figure


def test_the_figure_names_every_model_and_repeats(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    summaries = [summary_of(model, top1) for model, top1 in MODELS.items()]
    trend = trend_of(store, summaries)
    figure = trend_figure(trend).svg
    assert figure == trend_figure(trend).svg
    text = figure.decode()
    texts = [e.text for e in ElementTree.fromstring(text).iter() if e.tag.endswith("text")]
    for model in MODELS:
        assert model in texts
    for name in ("Mixed-Same", "Mixed-Rand", "Mixed-Next", "No-FG", "Only-BG-T", "BG-Gap"):
        assert name in texts
    # Each line has its band.
    bands = re.findall('id="FillBetweenPolyCollection_|opacity: 0.12', text)
    assert len(bands) >= len(trend.lines) == 6
    assert "date" not in text.lower()
    # With many models, only some get a name, but all are drawn.
    rows = [
        row
        for row in csv_rows(ROOT / "pipeline" / "data" / "imagenet_top1.csv")
        if "." in row["name"]
    ][:60]
    many = [summary_of(row["name"], float(row["top1"]) / 100) for row in rows]
    assert b"<svg" in trend_figure(trend_of(store, many)).svg


@given(st.lists(st.tuples(st.floats(0, 300), st.floats(1, 20)), max_size=15))
def test_labels_do_not_touch(labels: list[tuple[float, float]]) -> None:
    wanted, sizes = [centre for centre, _ in labels], [size for _, size in labels]
    places = apart(wanted, sizes, 300)
    order = sorted(range(len(labels)), key=lambda i: (wanted[i], i))
    for one, other in itertools.pairwise(order):
        assert places[other] - places[one] >= (sizes[one] + sizes[other]) / 2 - 1e-6
    for centre, size in zip(places, sizes, strict=True):
        assert size / 2 - 1e-6 <= centre <= 300 - size / 2 + 1e-6
    if len(labels) == 1 and sizes[0] / 2 <= wanted[0] <= 300 - sizes[0] / 2:
        assert places == pytest.approx(wanted)
