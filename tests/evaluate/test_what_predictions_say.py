"""What stored predictions say of models: of each, of each two, and beside published figures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from conftest import ONE, run_in9
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset.folder import Dataset
from pipeline.errors import JobError
from pipeline.evaluate import answers, forms, results
from pipeline.evaluate.analysis import summarise, summary_parts
from pipeline.evaluate.comparisons import compare_models, quantities
from pipeline.evaluate.power import describe_power, power_of
from pipeline.evaluate.published import PRETRAINED, TRAINED, published_for, trained_on
from pipeline.storage.store import Store
from transforms.taxonomy import imagenet9

MIXED = ("mixed_same", "mixed_same_r1", "mixed_rand", "mixed_rand_r1")
VARIANTS = ("original", "only_bg_t", *MIXED)


@pytest.fixture(scope="module")
def told(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Two draws of small pictures, and three models on them. Not to be changed."""
    output = tmp_path_factory.mktemp("told") / "out"
    flags = ("--segmenter", "box", "--formats", "parquet", "--image_size", 64, "--resize", 64)
    models = ",".join(f"python:tiny_models:{name}" for name in ("first", "second", "third"))
    flags += ("--replicates", 2, "--pictures", "none", "--models", models, *ONE)
    run_in9("run", "--input", small_sample, "--output", output, *flags)
    return Dataset.open(Store(str(output)))


def summaries_of(dataset: Dataset) -> list[dict[str, Any]]:
    return results.read_summaries(dataset.store, dataset.manifest.fingerprint)[0]


def predictions_of(dataset: Dataset, summary: dict[str, Any]) -> tuple[str, pa.Table]:
    folder = results.result_folder(summary["model"], summary["evaluation"])
    path = results.result_shard(folder, "predictions", "val", 0)
    return folder, results.read_predictions(dataset.store, [path])


def test_answers_are_the_predictions_in_the_order_of_the_images(told: Dataset) -> None:
    images = answers.Images.read(told, "val")
    rows = {row["key"]: row for row in told.index("val") if row["selected"]}
    keys = images.keys.to_pylist()
    assert keys == sorted(rows)
    assert images.labels.tolist() == [rows[key]["label"] for key in keys]
    assert images.positions(pa.chunked_array([[keys[3], None, "another"]])).tolist() == [3, -1, -1]
    part = answers.Images.read(told, "val", 0.5)
    assert set(part.keys.to_pylist()) < set(keys) == set(part.background_keys.to_pylist())
    assert "fg_mask" not in answers.evaluated_variants(told)
    summary = summaries_of(told)[0]
    _, table = predictions_of(told, summary)
    found = answers.read_answers(told, images, summary)
    for row in table.to_pylist():
        of_rule, place = found[row["label_rule"]], keys.index(row["fg_key"])
        assert of_rule.predictions[row["variant"]][place] == row["prediction"]
        if row["variant"].startswith("mixed"):
            assert of_rule.bg_labels[row["variant"]][place] == rows[row["bg_key"]]["label"]
    assert found[row["label_rule"]].replicates("mixed_rand") == ["mixed_rand", "mixed_rand_r1"]
    with pytest.raises(JobError, match=r"/predictions does not fit .* of other images\. Remove"):
        summarise(told, images, table.slice(1), "folder")
    unknown = table.set_column(3, "bg_key", pa.array(["another"] * len(table)))
    with pytest.raises(ValueError, match="mixed_same has backgrounds that are not in the index"):
        answers.answers_of(unknown, images, ["original", "mixed_same"])
    summary["accuracy"][0]["correct"] += 1
    with pytest.raises(ValueError, match="have changed"):
        answers.read_answers(told, images, summary)


def test_summaries_have_a_form_and_are_made_of_predictions(told: Dataset, tmp_path: Path) -> None:
    images = answers.Images.read(told, "val")
    dataset = Dataset.open(Store(shutil.copytree(told.store.root, str(tmp_path / "out"))))
    for summary in summaries_of(told):
        folder, table = predictions_of(told, summary)
        assert summarise(told, images, table, folder).items() <= summary.items()
        assert power_of(told, images, folder, "val") == summary["power"]
        msgspec.convert({**summary, "new": 1}, forms.Summary)
        for name, value in (("accuracy", {}), ("version", "3"), ("evaluation", {"split": "../x"})):
            with pytest.raises(msgspec.ValidationError, match=name):
                msgspec.convert({**summary, name: value}, forms.Summary)
    old, current, *_ = summaries_of(told)
    # Power of the same outputs is taken over, of others not.
    folder, _ = predictions_of(dataset, current)
    path = results.result_file(folder, "summary")
    (row,) = current["power"]
    for fingerprint, accuracy in ((row["fingerprint"], 0.125), ("another", row["accuracy"])):
        noted = {**current, "power": [{**row, "accuracy": 0.125, "fingerprint": fingerprint}]}
        results.write_result(dataset.store, path, noted)
        assert power_of(dataset, images, folder, "val")[0]["accuracy"] == accuracy
    said = describe_power([{**old, "power": [{**row, "has_power": has}]} for has in (True, False)])
    assert [line.count(old["model"]) for line in said] == [1]
    assert describe_power([{**old, "power": []}]) == []


@given(st.integers(0, 30), st.integers(0, 2**32), st.booleans())
def test_parts_of_a_summary_count_the_same_images(n: int, seed: int, grouped: bool) -> None:
    rng = np.random.default_rng(seed)
    labels, *drawn = rng.integers(-1, 9, (13, n)).astype(np.int16)
    labels = np.maximum(labels, 0)
    keys = pa.array([f"{number:02}" for number in range(n)], pa.string())
    units = tuple(f"g{number // 3}" if grouped else f"{number:02}" for number in range(n))
    # Of some nobody knows how large the foreground is.
    sizes = np.where(rng.random(n) < 0.3, np.nan, rng.random(n))
    images = answers.Images(keys, labels, sizes, keys, labels, units, grouped and n > 0)
    said, grounds = (dict(zip(VARIANTS, part, strict=True)) for part in (drawn[::2], drawn[1::2]))
    found = {"rule": answers.Answers(labels, said, grounds)}
    parts = summary_parts(found, images, imagenet9())
    correct = {name: int((prediction == labels).sum()) for name, prediction in said.items()}
    for row in parts["accuracy"]:
        name = row["variant"]
        assert row["accuracy"] == (correct[name] / n if n else None)
        assert row["outside"] == (said[name] == -1).sum()
        for part in ("accuracy", "per_class", "sizes", "confusion"):
            rows = [each for each in parts[part] if each["variant"] == name]
            known = ~np.isnan(sizes) if part == "sizes" else np.full(n, True)
            right = int((said[name] == labels)[known].sum())
            assert sum(each["n"] for each in rows) == known.sum()
            assert part == "confusion" or sum(each["correct"] for each in rows) == right
    assert sum(row["n"] for row in parts["decomposition"]) == n
    # One group of each variant is the worst, if there is any background whose class is known.
    worst = [row["variant"] for row in parts["groups"] if row["is_worst"]]
    assert worst == list(dict.fromkeys(row["variant"] for row in parts["groups"]))
    names, values = quantities(found)
    assert names == [("rule", name) for name in (*said, "bg_gap")]
    assert values[:, :-1].sum(axis=0).tolist() == list(correct.values())
    assert len(parts["gaps"]) == (n > 0)
    for gap in parts["gaps"]:
        *_, same, same_again, rand, rand_again = correct.values()
        assert gap["gap"] == pytest.approx((same + same_again - rand - rand_again) / 2 / n)
        assert gap["gap"] == pytest.approx(values[:, -1].mean())
        assert (gap["units"], gap["replicates"]) == (len(set(units)), 2)


def test_the_difference_of_two_models_is_minus_that_of_the_reverse(told: Dataset) -> None:
    summaries = summaries_of(told)
    rows, back = (list(compare_models(told, each)) for each in (summaries, summaries[::-1]))
    reverse = {(r["second"], r["first"], r["label_rule"], r["variant"]): r for r in back}
    assert len(rows) == len(reverse) == 3 * 2 * (len(answers.evaluated_variants(told)) + 1)
    said = {
        (each["model"], row["label_rule"], row.get("variant", "bg_gap")): row
        for each in summaries
        for row in (*each["accuracy"], *each["gaps"])
    }
    for row in rows:
        of = row["label_rule"], row["variant"]
        value = "gap" if row["variant"] == "bg_gap" else "accuracy"
        ours, theirs = (said[row[name], *of][value] for name in ("first", "second"))
        other = reverse[row["first"], row["second"], *of]
        assert row["difference"] == pytest.approx(ours - theirs)
        assert row["ci_low"] <= row["difference"] <= row["ci_high"]
        for name, mirrored in (("difference",) * 2, ("ci_low", "ci_high"), ("ci_high", "ci_low")):
            assert row[name] == pytest.approx(-other[mirrored])
    summaries[1]["accuracy"][0]["correct"] += 1  # Other predictions than it was made of.
    (pair,) = {(row["first"], row["second"]) for row in compare_models(told, summaries)}
    assert pair == (summaries[0]["model"], summaries[2]["model"])
    assert list(compare_models(told, summaries[:1])) == []


def test_published_figures_are_found_by_any_name_of_the_model() -> None:
    for published in PRETRAINED:
        for name in published.architectures:
            for spelt in (name, f"tf_{name}.ns_in1k", f"torchvision:{name}"):
                assert published in published_for(spelt)
            assert published_for(f"{name}d") == published_for(f"my_{name}") == ()
    for variant in TRAINED:
        assert trained_on(f"resnet50=/only_fg/mine-{variant}.pt", 9) == variant
        assert trained_on(f"resnet50=/only_fg/{variant}/mine.pt", 9) is None
