"""Tests shares of encoders' features: the grid, its pictures, and what people see of results."""

import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from made_results import made, of_model
from runs import dataset_in, pixels_of, table_of
from small_models import lite0

from pipeline.analyses.attack.results import ATTACK_VARIANTS
from pipeline.analyses.features.figures import make_plots
from pipeline.analyses.features.grid import FeatureGrid
from pipeline.analyses.features.parts import PARTS
from pipeline.analyses.features.results import (
    FeaturesResult,
    describe_features,
    read_features,
    summarize_grid,
)
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.evidence import Results
from pipeline.evaluate.features import encode, values_of
from pipeline.evaluate.planned import Evaluation
from pipeline.evaluate.predictions import split_fingerprint
from pipeline.evaluate.results import result_file, write_result
from pipeline.models.identity import PredictConfig
from pipeline.models.predict import Predictor
from pipeline.models.registry import load_model
from pipeline.report.write import write_report
from pipeline.runtime.progress import Progress


def evaluation_in(dataset: Dataset, holdout: float = 0.0) -> Evaluation:
    progress = Progress.for_store(dataset.store)
    return Evaluation(dataset.store, ("x",), "val", PredictConfig(), progress, holdout=holdout)


def grid_of(rows: list[dict[str, Any]]) -> FeatureGrid | None:
    """Chooses the grid of images, by the rows of their index."""
    dataset: Any = SimpleNamespace(variants=ATTACK_VARIANTS, shard_of=lambda _, key: len(key) % 3)
    evaluation: Any = SimpleNamespace(split="val", rows=lambda _: rows)
    return FeatureGrid.choose(dataset, evaluation)


def rows_of(sizes: list[int], groups: int = 0) -> list[dict[str, Any]]:
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    return [
        {"key": f"k{n}", "label": label, "wnid": "n", "group": f"g{n % groups}" if groups else None}
        for n, label in enumerate(labels)
    ]


@pytest.mark.parametrize(
    ("sizes", "groups", "per_class", "classes"),
    [
        ([20] * 9, 0, 3, 9),
        ([40] * 9, 180, 3, 9),
        ([40, 30], 0, 13, 2),
        ([90], 0, 27, 1),
        ([8] * 30, 0, 3, 9),
        ([20, 5, 1, 20], 0, 2, 3),
        ([3, 3, 3], 0, 1, 3),
    ],
)
def test_a_grid_has_as_many_of_each_class_and_none_of_one_group(
    sizes: list[int], groups: int, per_class: int, classes: int
) -> None:
    rows = rows_of(sizes, groups)
    grid = grid_of(rows)
    assert grid is not None
    axes = (grid.foregrounds, grid.backgrounds)
    for axis in axes:
        assert sorted(Counter(axis.labels.tolist()).values()) == [per_class] * classes
    assert set(axes[0].labels.tolist()) == set(axes[1].labels.tolist())
    unit_of = {row["key"]: row["group"] or row["key"] for row in rows}
    units = [unit_of[key] for axis in axes for key in axis.keys]
    assert len(set(units)) == len(units) == 2 * classes * per_class
    again = grid_of([rows[place] for place in np.random.default_rng(0).permutation(len(rows))])
    assert again is not None
    assert [set(axis.keys) for axis in (again.foregrounds, again.backgrounds)] == [
        set(axis.keys) for axis in axes
    ]


@pytest.mark.parametrize("rows", [[], rows_of([5]), rows_of([1] * 9), rows_of([9, 9], groups=4)])
def test_too_few_images_have_no_grid(rows: list[dict[str, Any]]) -> None:
    assert grid_of(rows) is None


def test_a_dataset_without_layers_has_no_grid(for_gaps: Path, small_run: Path) -> None:
    for output, has_grid in ((for_gaps, False), (small_run, True)):
        dataset = dataset_in(output)
        assert (FeatureGrid.choose(dataset, evaluation_in(dataset)) is not None) == has_grid


def encoded_by_hand(output: Path, grid: FeatureGrid) -> list[Any]:
    """Encodes all composites by EfficientNet-Lite0 without its head, one at a time."""
    network: Any = lite0()
    network.reset_classifier(0)
    originals, masks, backgrounds = (pixels_of(output, str(name)) for name in ATTACK_VARIANTS)
    features = []
    for fg in grid.foregrounds.keys:
        for bg in grid.backgrounds.keys:
            picture = np.where((masks[fg] > 127)[..., None], originals[fg], backgrounds[bg])
            pixels = torch.from_numpy(picture / 255).float().permute(2, 0, 1)[None]
            with torch.inference_mode():
                features.append(network((pixels - 0.5) / 0.5)[0].numpy())
    return features


@pytest.fixture(scope="module")
def with_shares(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with shares of EfficientNet-Lite0 by two names. Tests must not change it."""
    output = Path(shutil.copytree(small_run, tmp_path_factory.mktemp("shares") / "out"))
    dataset = dataset_in(output)
    grid = FeatureGrid.choose(dataset, evaluation_in(dataset))
    assert grid is not None
    predictor = Predictor(load_model("probe:efficientnet_lite0"), PredictConfig("cpu"))
    values = values_of(encode(predictor, grid))
    assert len(values) == grid.count == len(grid.foregrounds.keys) * len(grid.backgrounds.keys)
    np.testing.assert_allclose(values, encoded_by_hand(output, grid), rtol=1e-3, atol=1e-3)
    fitted = np.random.default_rng(0).normal(size=(50, values.shape[1])).astype(np.float32)
    fitted[:, 0] = 5
    fields = summarize_grid(values, fitted, grid)
    for name in ("probe:efficientnet_lite0", "knn:efficientnet_lite0"):
        result = made(
            FeaturesResult,
            model=name,
            of=split_fingerprint(dataset, "val", ATTACK_VARIANTS),
            features="input of the last linear layer",
            fit_split="train",
            weights_sha256="0" * 64,
            evaluation={"split": "val", "eval_input": "stored", "precision": "fp32"},
            **fields,
        )
        write_result(dataset.store, result_file(result.folder, "features"), result)
    return output


def test_people_see_the_shares(with_shares: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(with_shares, tmp_path / "out"))
    dataset = dataset_in(output)
    PARTS.write(dataset, ())
    first, second = table_of(output, "features")
    assert [first["model"], second["model"]] == [
        "knn:efficientnet_lite0",
        "probe:efficientnet_lite0",
    ]
    names = [f"{name}_share" for name in ("foreground", "background", "interaction")]
    assert sum(float(first[name]) for name in names) == pytest.approx(1, abs=1e-5)
    for name in names:
        low, value, high = (float(first[name + end]) for end in ("_ci_low", "", "_ci_high"))
        assert low <= value <= high
    # A class of two pictures has one foreground and one background.
    assert first["foregrounds"] == first["backgrounds"] == first["classes"]
    assert first["class_share"] == ""
    assert first["features"] == "input of the last linear layer"
    (result, _) = read_features(dataset)
    (line, _) = PARTS.lines(dataset, SimpleNamespace())  # type: ignore[arg-type]
    assert line == describe_features("knn:efficientnet_lite0", result)
    assert ", of which - is its class; foreground " in line
    write_report(dataset.store, dataset.taxonomy, "none")
    page = (output / "report.html").read_text()
    assert f"<p>F{line[1:]}.</p>" in page
    # Their order in the file is another.
    value = 100 * float(first["background_share"])
    assert f"background: knn:efficientnet_lite0 {value:.0f} %" in page


def test_results_of_other_pictures_are_left_out(with_shares: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(with_shares, tmp_path / "out"))
    dataset = dataset_in(output)
    for result in read_features(dataset):
        stale = made(FeaturesResult, model=result.model, of="other", evaluation=result.evaluation)
        write_result(dataset.store, result_file(result.folder, "features"), stale)
    assert not read_features(dataset)


def test_small_shares_are_at_most_and_missing_ones_a_dash() -> None:
    shares = {
        "foreground": (0.676, 0.61, 0.74),
        "background": (0.31, 0.24, 0.394),
        "interaction": (0.014, 0.001, 0.03),
        "class": None,
    }
    result = made(FeaturesResult, model="dino", shares=shares)
    assert describe_features("dino", result) == (
        "features of dino: background 31 % [24, 39] of the variance, of which - is its class; "
        "foreground 68 % [61, 74], interaction at most 3 %"
    )
    (plot,) = make_plots(Results((of_model("dino", result),)))  # type: ignore[arg-type]
    assert "background: dino 31 %" in plot.alt
    assert not list(make_plots(Results(())))  # type: ignore[arg-type]
