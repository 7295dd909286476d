"""Tests the power of BG-Gap: the probe in known cases and simulations, and on the command line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_results import made
from runs import ROOT, dataset_in, table_of

from pipeline.analyses.evaluation.tables import describe_power
from pipeline.dataset.folder import selected_rows
from pipeline.evaluate.predictions import OF_LOGITS, keys_to_keep, logits_in_tables
from pipeline.evaluate.summary import Summary
from pipeline.storage.state_files import read_table
from pipeline.storage.store import Store
from transforms.power import cross_validated, folds_of, power_of_outputs

MODEL = "python:tiny_models:first"


def names(n: int, seed: int = 0) -> list[str]:
    return [f"{seed}-{number}" for number in range(n)]


@pytest.mark.parametrize(("n", "k", "seed"), [(40, 5, 0), (24, 60, 1)])
def test_it_is_ridge_regression_that_is_fitted_anew_for_each_fold(
    n: int, k: int, seed: int
) -> None:
    """Compares the probe with ridge regression that is refitted for each fold.

    The expected penalty is the best one in explicit leave-one-out without the fold's classes.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    x = rng.normal(size=(n, k)) * np.geomspace(1, 0.1, k)
    x[:, :3] += 0.5 * np.eye(3)[labels]
    folds, y = folds_of(names(n, seed)), np.eye(3)[labels]
    squares = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2
    penalties = 10.0 ** np.arange(-3, 4) * squares[squares > 1e-9 * squares[0]].mean()

    def said(x: np.ndarray, y: np.ndarray, of: np.ndarray, penalty: float) -> np.ndarray:
        c = x - x.mean(axis=0)
        weights = np.linalg.solve(c.T @ c + penalty * np.eye(k), c.T @ (y - y.mean(axis=0)))
        return (of - x.mean(axis=0)) @ weights + y.mean(axis=0)

    for fold in set(folds.tolist()):
        known = folds != fold
        targets = np.where(known[:, np.newaxis], y, y[known].mean(axis=0))
        errors = []
        for penalty in penalties:
            error = 0.0
            for out in np.flatnonzero(known):
                rest = np.arange(n) != out
                error += ((y[out] - said(x[rest], targets[rest], x[out], penalty)) ** 2).sum()
            errors.append(error)
        scores = said(x[known], y[known], x[~known], penalties[np.argmin(errors)])
        expected = (scores - y[known].mean(axis=0) + y.mean(axis=0)).argmax(axis=1)
        assert (cross_validated(x, labels, folds)[~known] == expected).all()


def test_a_held_out_picture_never_teaches_its_own_class() -> None:
    """Tests units of identical pictures with random classes.

    A probe that saw one copy of a picture would be right on the others.
    """
    rng = np.random.default_rng(1)
    features = np.repeat(rng.normal(size=(40, 60)), 5, axis=0)
    labels = np.repeat(rng.integers(0, 4, 40), 5)
    units = np.repeat(np.asarray(names(40), object), 5)
    by_unit = power_of_outputs(features, labels, units)
    alone = power_of_outputs(features, labels, names(200))
    assert by_unit is not None
    assert alone is not None
    assert alone.accuracy > 0.95
    assert not by_unit.has_power
    assert (by_unit.units, by_unit.images) == (40, 200)
    assert by_unit.high - by_unit.low > 1.5 * (alone.high - alone.low)


def test_stored_logits_are_in_order_of_keys_however_shards_are_numbered(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    rows = [
        {"key": key, "label": number, "logits": [float(number)] * 2, "of": "x"}
        for number, key in enumerate(["d", "a", "c", "b"])
    ]
    for path, part in (("1", rows[:3]), ("2", rows[3:])):
        pq.write_table(pa.Table.from_pylist([*part, {"key": "e", "logits": None}]), tmp_path / path)
    for paths in (("1", "2"), ("2", "1")):
        kept = logits_in_tables(read_table(store, path, OF_LOGITS) for path in paths)
        assert kept is not None
        assert kept.keys == ("a", "b", "c", "d")
        assert kept.labels.tolist() == [1, 3, 2, 0]
        assert kept.logits.tolist() == [[1, 1], [3, 3], [2, 2], [0, 0]]


def test_the_interval_is_honest_without_signal_and_sees_one() -> None:
    """Counts simulated data sets whose interval lies above chance.

    Without signal, about 2.5 of 100 do; more than 8 do with a probability of 0.1 %. With a signal,
    nearly all of 10 do.
    """
    rng = np.random.default_rng(2)
    labels = np.arange(90) % 9

    def power(seed: int, signal: float) -> bool:
        features = rng.normal(size=(90, 12))
        features[:, :9] += signal * np.eye(9)[labels]
        measured = power_of_outputs(features, labels, names(90, seed))
        assert measured is not None
        assert measured.chance == pytest.approx(1 / 9)
        return measured.has_power

    assert sum(power(seed, 0) for seed in range(100)) <= 8
    assert sum(power(seed, 1.5) for seed in range(10)) >= 9


def test_without_signal_a_probe_guesses_the_largest_class() -> None:
    labels = (np.arange(100) % 10 == 0).astype(int)
    assert (cross_validated(np.zeros((100, 3)), labels, folds_of(names(100))) == 0).all()


@settings(max_examples=25)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 1000))
def test_probes_of_any_shape_have_an_interval_around_their_accuracy(
    n: int, classes: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    outputs = rng.normal(size=(n, 5)).astype(np.float16)
    outputs[0, 0] = np.nan
    labels = rng.integers(0, classes, n)
    measured = power_of_outputs(outputs, labels, names(n, seed))
    if measured is None:
        assert len(set(folds_of(names(n, seed)).tolist())) == 1
        return
    assert 0 <= measured.low <= measured.accuracy <= measured.high <= 1
    assert measured.chance == np.bincount(labels).max() / n
    again = rng.permutation(n)
    assert (
        power_of_outputs(outputs[again], labels[again], np.array(names(n, seed))[again]) == measured
    )


def test_another_unit_moves_none_to_another_fold() -> None:
    few, more = folds_of(names(50)), folds_of(names(500))
    assert np.array_equal(few, more[:50])
    assert set(more.tolist()) == set(range(5))
    with pytest.raises(ValueError, match="2 outputs, 2 labels, 1 units"):
        power_of_outputs(np.zeros((2, 3)), np.zeros(2, int), ["a"])


def test_linear_algebra_of_a_command_has_one_thread() -> None:
    """Checks the variable at the first import of numpy, because OpenBLAS reads it then."""
    watch = (
        "import os, sys; sys.addaudithook(lambda event, of: event == 'import' and of[0] == 'numpy' "
        "and print(os.environ.get('OPENBLAS_NUM_THREADS'))); import pipeline.commands.finished"
    )
    free = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", watch], cwd=ROOT, env=free, capture_output=True, text=True
    )
    assert set(done.stdout.split()) == {"1"}


def test_the_table_and_the_page_say_that_power_is_not_shown(sharded: Path) -> None:
    (row,) = table_of(sharded, "power")
    assert row["model"] == MODEL
    assert row["has_power"] == "False"
    assert float(row["ci_low"]) <= float(row["chance"])
    page = " ".join((sharded / "report.html").read_text().split())
    # The page has a mark in the table, and one line.
    cannot = (
        "† A probe cannot tell the class from these backgrounds, so a gap near 0 is no evidence"
    )
    assert re.search(f"{cannot}: [^<]*</p>", page)
    assert page.count('<span class="hidden">power not shown</span>') == 2
    assert f"(probe {100 * float(row['accuracy']):.1f} [" in page
    assert f"chance {100 * float(row['chance']):.1f} %" in page


def test_kept_outputs_are_the_models_and_give_the_row(sharded: Path) -> None:
    dataset = dataset_in(sharded)
    (folder,) = sharded.glob("results/python*")
    assert len(list((folder / "predictions").iterdir())) == len(dataset.shards("val")) > 1
    predicted = pq.read_table(folder / "predictions").to_pylist()
    of_rule = [r for r in predicted if r["label_rule"] == "argmax_then_map"]
    probed = [r for r in of_rule if r["variant"] == "only_bg_t"]
    outputs = {r["key"]: np.asarray(r["logits"], np.float32) for r in probed}
    winners = {r["key"]: r["output"] for r in probed}
    assert sum(r["logits"] is not None for r in predicted) == len(probed) > 0
    for key, row in outputs.items():
        assert len(row) == 1000
        assert row[winners[key]] == row.max()
    labels = {r["key"]: r["label"] for r in of_rule}
    names = sorted(outputs)
    measured = power_of_outputs(
        np.stack([outputs[name] for name in names]), np.array([labels[n] for n in names]), names
    )
    (row,) = json.loads((folder / "model.json").read_text())["power"]
    assert measured is not None
    assert (row["accuracy"], row["ci_low"]) == (measured.accuracy, measured.low)
    assert (row["ci_high"], row["chance"]) == (measured.high, measured.chance)


def test_of_many_images_each_shard_keeps_its_share(sharded: Path) -> None:
    dataset = dataset_in(sharded)
    shards = dataset.shards("val")
    rows = [selected_rows(dataset, "val", shard=shard) for shard in shards]
    tested = [[row["key"] for row in of_shard] for of_shard in rows]
    every = [keys_to_keep(keys, len(shards)) for keys in tested]
    fewer = [keys_to_keep(keys, len(shards), most=2 * len(shards)) for keys in tested]
    assert every == [set(keys) for keys in tested]
    assert all(few <= all_ for few, all_ in zip(fewer, every, strict=True))
    assert [len(few) for few in fewer] == [min(2, len(all_)) for all_ in every]


def test_models_without_power_are_named_and_those_whose_gap_says_little() -> None:
    def model(number: int, low: float, *, has_power: bool = False, end: str = "") -> Summary:
        power = {"chance": 0.125, "ci_low": 0.0, "ci_high": 0.2, "has_power": has_power}
        return made(
            Summary,
            model=f"model-{number}{end}",
            answers="scores",
            label_rules=("argmax_then_map",),
            power=[{**power, "accuracy": number / 100}],
            gaps=[{"label_rule": "argmax_then_map", "ci_low": low, "ci_high": 0.2}],
        )

    strong, near, far = model(90, -0.1, has_power=True), model(1, -0.1), model(2, 0.1)
    for weak, says_little in (
        ([near], ", so a gap near 0 is no evidence"),
        ([far], ""),
        # Only models whose interval includes 0 are named, if there are others.
        ([near, far], f", so a gap near 0 (as of {near.name}) is no evidence"),
    ):
        (line,) = describe_power([strong, *weak])
        cannot = f"a probe cannot tell the class from these backgrounds{says_little}: "
        assert line.startswith(cannot)
        told = line.removeprefix(cannot)
        assert [one for one in (strong, near, far) if one.name in told] == weak
    assert not list(describe_power([made(Summary, model="m", answers="scores")]))
    many = [model(number, -0.1, end=40 * "x") for number in range(1, 21)]
    (line,) = describe_power(many, is_page=True)
    assert "and 17 more (probes 1.0 to 20.0 %, in power.csv, chance 12.5 %)" in line
    (line,) = describe_power([near, near])
    assert "(probes 1.0 %, in power.csv, chance 12.5 %)" in line
