"""Tests the train x test matrix, and the checks that keep trained images out of the test."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from made_results import made, stored
from runs import (
    ONE,
    QUICK,
    dataset_in,
    manifest_of,
    run_here,
    run_in9,
    stamps,
    table_of,
    write_all,
)
from two_way_by_hand import interval_of, variance_of

from pipeline.analyses.matrix.results import Matrix, read_matrices
from pipeline.analyses.matrix.rows import NetworkTrainer, ProbeTrainer, make_plan, make_row
from pipeline.commands.cli import main
from pipeline.dataset.folder import Dataset, Holdout, selected_rows
from pipeline.errors import UsageError
from pipeline.evaluate.evidence import Evidence
from pipeline.evaluate.published import TRAINED
from pipeline.evaluate.results import PREDICTION_SCHEMA
from pipeline.evaluate.summary import Evaluated
from pipeline.models.identity import PredictConfig
from pipeline.report.page import check_claims
from pipeline.runtime.lock import DATASET_LOCK, locked
from pipeline.storage.state_files import convert
from pipeline.storage.store import Store
from pipeline.training.probe_fit import Backbone, ProbePlan, fit_variant
from pipeline.training.train_plan import TrainPlan, describe_penalty
from transforms.estimates import Verdict
from transforms.taxonomy import imagenet9

SHOWN = ("mixed_rand", "mixed_same", "only_bg_t", "original")
PROBE = ("--probe", "--holdout", 0.5, "--variants", ",".join(SHOWN), "--pictures", "none")
NAME = "probe-efficientnet_lite0-val-holdout0.5"


def row_folder(output: Path, row: str) -> Path:
    """Returns the folder with the results of a row's model."""
    return output / "results" / f"{NAME}-{row}+holdout0.5"


def checkpoint(output: Path, variant: str) -> str:
    """Returns the `--models` entry of a probe."""
    return f"tf_efficientnet_lite0={output}/models/{NAME}-seed0/{variant}.safetensors"


@pytest.fixture(scope="module")
def probed(three_draws: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A dataset with a matrix, and the output of the command. Tests must not change it."""
    output = tmp_path_factory.mktemp("matrix") / "out"
    shutil.copytree(three_draws, output)
    return output, run_in9("matrix", "--dataset", output, *PROBE, figures=True).stdout


@pytest.fixture
def copied(probed: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the dataset with a matrix that a test may change."""
    return Path(shutil.copytree(probed[0], tmp_path / "out"))


@pytest.fixture(scope="module")
def evaluated(probed: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with one probe evaluated on the held-out images, and one on all images."""
    output = Path(shutil.copytree(probed[0], tmp_path_factory.mktemp("evaluated") / "out"))
    command = ("evaluate", "--dataset", output, *ONE, "--pictures", "none", "--models")
    run_in9(*command, checkpoint(output, "original"), "--holdout", 0.5)
    run_in9(*command, checkpoint(output, "mixed_rand"), "--allow_overlap")
    return output


def test_every_cell_has_its_images_interval_and_published_figure(
    probed: tuple[Path, str],
) -> None:
    output, printed = probed
    rows = table_of(output, "matrix")
    assert [(row["train_variant"], row["test_variant"]) for row in rows] == [
        (train, test) for train in SHOWN for test in SHOWN
    ]
    dataset = dataset_in(output)
    tested = selected_rows(dataset, "val", Holdout(0.5))
    for row in rows:
        accuracy, published = float(row["accuracy"]), float(row["published"])
        assert int(row["n"]) == len(tested)
        assert float(row["ci_low"]) <= accuracy <= float(row["ci_high"])
        assert published == TRAINED[row["train_variant"]][row["test_variant"]]
        assert float(row["difference"]) == pytest.approx(accuracy - published)
        assert (row["overlap"], row["method"], row["holdout"]) == ("0", "probe", "0.5")
        assert int(row["train_n"]) <= 18 - len(tested)
        classes = Counter(image["label"] for image in tested)
        assert float(row["chance"]) == max(classes.values()) / len(tested)
    assert f"{NAME}, %" in printed
    chance = f"A constant answer gets {100 * float(rows[0]['chance']):.1f} %, the share of the"
    assert chance in printed
    assert "; mixed variants: first of 3 draws" in printed
    sides = [
        abs(float(row["accuracy"]) - float(row[end]))
        for row in rows
        for end in ("ci_low", "ci_high")
    ]
    assert f"at most ± {100 * max(sides):.1f} points" in printed
    assert "Trained on Mixed-Rand" in printed
    for row in SHOWN:
        model = json.loads((row_folder(output, row) / "model.json").read_text())
        assert stored(convert(model, Evaluated)) == model
    content = json.loads((output / "results" / "matrix.json").read_text())
    (matrix,) = content["matrices"]
    assert {row["train_variant"] for row in matrix["gaps"]} == set(SHOWN)
    page = (output / "report.html").read_text()
    assert re.search(r"BG-Gap (may be 0|is (above|below) 0) when trained on", page)
    assert chance in page
    for row in SHOWN:
        (penalty,) = {each["penalty"] for each in matrix["rows"] if each["train_variant"] == row}
        words = describe_penalty(penalty)
        assert re.search(rf"{NAME}: {row}, .*; penalty {re.escape(words)}$", printed, re.MULTILINE)
        assert f"<code>{row}</code> {words}" in page
    assert (output / "results" / "figures" / f"matrix-{NAME}-difference.svg").exists()


def test_differences_cover_other_foregrounds_and_other_backgrounds(
    probed: tuple[Path, str],
) -> None:
    """Compares intervals with those by hand, whose ends are seldom exactly 0."""
    output, _ = probed

    def answers(row: str, variant: str) -> list[tuple[str, str, bool]]:
        table = pq.read_table(row_folder(output, row) / "predictions", partitioning=None)
        rows = [
            one
            for one in table.to_pylist()
            if (one["variant"], one["label_rule"]) == (variant, "argmax_then_map")
        ]
        return [(one["fg_key"], one["bg_key"], one["correct"]) for one in rows]

    content = json.loads((output / "results" / "matrix.json").read_text())
    (matrix,) = content["matrices"]
    sides = [
        (gap, *(answers(gap["train_variant"], name) for name in ("mixed_same", "mixed_rand")))
        for gap in matrix["gaps"]
    ]
    sides += [
        (gain, *(answers(gain[name], gain["test_variant"]) for name in ("first", "second")))
        for gain in matrix["gains"]
        if gain["test_variant"].startswith("mixed")
    ]
    compared = 0
    for row, first, second in sides:
        n = len(first)
        means = [sum(right for *_, right in side) / n for side in (first, second)]
        assert row["difference"] == pytest.approx(means[0] - means[1])
        pictures = [(fg, bg, (right - means[0]) / n) for fg, bg, right in first]
        pictures += [(fg, bg, (means[1] - right) / n) for fg, bg, right in second]
        if variance_of(pictures)[0]:
            expected = interval_of(row["difference"], pictures, [fg for fg, *_ in pictures])
            assert (row["ci_low"], row["ci_high"]) == pytest.approx(expected, abs=1e-8)
            compared += 1
    assert compared


def test_a_cell_is_what_evaluate_says_of_the_checkpoint(evaluated: Path) -> None:
    """Compares a layer on stored features (the matrix) with the whole network (evaluate)."""
    cells = {
        row["test_variant"]: row
        for row in table_of(evaluated, "matrix")
        if row["train_variant"] == "original"
    }
    summary = {
        row["variant"]: row
        for row in table_of(evaluated, "summary")
        if row["holdout"] == "0.5" and row["label_rule"] == "argmax_then_map"
    }
    for variant in ("only_bg_t", "original"):
        for column in ("n", "correct", "accuracy", "ci_low", "weights_sha256"):
            assert summary[variant][column] == cells[variant][column], (variant, column)
    assert {row["overlap"] for row in summary.values()} == {"0"}
    # The head of the page says on how many images of the dataset its figures are.
    page = (evaluated / "report.html").read_text()
    images, half = (f"{n} images of split val" for n in (18, summary["original"]["n"]))
    assert f"Tested on {images}, {half} (--holdout 0.5)</p>" in page
    (gap,) = [
        row
        for row in table_of(evaluated, "gaps")
        if row["model"].endswith("original.safetensors") and row["label_rule"] == "argmax_then_map"
    ]
    content = json.loads((evaluated / "results" / "matrix.json").read_text())
    (ours,) = [r for r in content["matrices"][0]["gaps"] if r["train_variant"] == "original"]
    # `evaluate` counts all three draws, the matrix only the first.
    assert (gap["n"], gap["replicates"]) == (str(ours["n"]), "3")


def test_a_second_run_makes_what_is_missing_and_nothing_else(copied: Path, tmp_path: Path) -> None:
    before, published = stamps(copied), tmp_path / "published"
    printed = run_in9("matrix", "--dataset", copied, *PROBE, "--publish", published).stdout
    assert "nothing to do" in printed
    (version,) = published.glob("v-*")
    assert f"published: {version} (older ones: 0)" in printed
    assert (version / "results" / "matrix.csv").exists()
    assert stamps(copied) == before
    (predictions,) = row_folder(copied, "original").glob("predictions/*")
    content = predictions.read_bytes()
    predictions.unlink()
    (copied / "models" / f"{NAME}-seed0" / "mixed_same.safetensors").unlink()
    printed = run_in9("matrix", "--dataset", copied, *PROBE, figures=True).stdout
    # Training gives the same probe again, so its predictions stay valid.
    assert "rows tested: 1 of 4" in printed
    assert predictions.read_bytes() == content
    after = stamps(copied)
    changed = {path for path in after if after[path] != before.get(path)}
    assert {Path(path).name for path in changed} == {predictions.name, "mixed_same.safetensors"}


def test_rows_are_models_whose_pivot_the_matrix_is(probed: tuple[Path, str]) -> None:
    output = probed[0]
    for row in SHOWN:
        folder = row_folder(output, row)
        model = json.loads((folder / "model.json").read_text())
        assert model["trained"]["variant"] == row
        (file,) = folder.glob("predictions/*")
        table = pq.read_table(file, partitioning=None)
        assert table.schema.equals(PREDICTION_SCHEMA)
        assert set(table["variant"].to_pylist()) == set(SHOWN)
        predictions = table.filter(pc.equal(table["label_rule"], "argmax_then_map")).to_pylist()
        for cell in (one for one in table_of(output, "matrix") if one["train_variant"] == row):
            hits = [one["correct"] for one in predictions if one["variant"] == cell["test_variant"]]
            assert (len(hits), sum(hits)) == (int(cell["n"]), int(cell["correct"]))


def test_a_smaller_matrix_keeps_what_is_in_it(copied: Path) -> None:
    before = {(r["train_variant"], r["test_variant"]): r for r in table_of(copied, "matrix")}
    # A row whose model is damaged disappears; the other rows do not depend on it.
    row_folder(copied, "mixed_rand").joinpath("model.json").write_bytes(b"{}")
    write_all(copied, "none")
    assert table_of(copied, "matrix") == [
        row for (train, _), row in before.items() if train != "mixed_rand"
    ]
    # Probes of a matrix appear in no other table.
    assert {path.name for path in copied.glob("results/*.csv")} == {"matrix.csv"}
    flags = ("--probe", "--holdout", 0.5, "--pictures", "none", "--variants", "original,only_bg_t")
    run_in9("matrix", "--dataset", copied, *flags)
    names = ("only_bg_t", "original")
    assert table_of(copied, "matrix") == [before[row, column] for row in names for column in names]
    assert not [*row_folder(copied, "mixed_same").rglob("*.*")]
    (file,) = row_folder(copied, "original").glob("predictions/*")
    assert set(pq.read_table(file, partitioning=None)["variant"].to_pylist()) == set(names)


def test_tests_on_trained_images_are_refused_and_marked(
    copied: Path, evaluated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = copied
    entry = checkpoint(output, "mixed_rand")
    rows = table_of(evaluated, "summary")
    marked = {row["overlap"] for row in rows if row["holdout"] in ("0", "0.0")}
    content = json.loads((output / "results" / "matrix.json").read_text())
    trained = next(
        row["train_n"]
        for row in content["matrices"][0]["rows"]
        if row["train_variant"] == "mixed_rand"
    )
    assert marked == {str(trained)}
    for command in ("evaluate", "attack"):
        run_here(command, "--dataset", output, "--models", entry, code=2)
        message = capsys.readouterr().err
        assert f"was trained on {trained} of the images" in message
        assert "--holdout 0.5" in message
        assert message.count("\n") == 1
    # A row is refused before any of its cells is tested.
    store = Store(str(output))
    plan = make_plan(
        Dataset.open(store),
        None,
        variants=("original",),
        train_split="val",
        split=None,
        share=0,
        predict=PredictConfig("cpu"),
        allow_overlap=True,
    )
    strict = dataclasses.replace(plan, allow_overlap=False)
    trainer = ProbeTrainer(Backbone("efficientnet_lite0", plan.predict, store), strict)
    with pytest.raises(UsageError, match=r"were trained on \(row original\)"):
        make_row(trainer, strict, "original")
    page = (evaluated / "report.html").read_text()
    assert f"trained on {trained} of these images" in page


def test_the_main_job_refuses_them_where_models_run(copied: Path, small_sample: Path) -> None:
    command = ("run", "--output", copied, "--input", small_sample, "--replicates", 3, *QUICK)
    done = run_in9(*command, *ONE, "--models", checkpoint(copied, "only_bg_t"), check=1)
    assert "of the images to test on" in done.stderr


def test_an_attack_on_held_out_images(copied: Path) -> None:
    entry = checkpoint(copied, "original")
    run_in9(
        *("attack", "--dataset", copied, "--models", entry, "--holdout", 0.5),
        *("--pictures", "none", *ONE),
    )
    dataset = dataset_in(copied)
    tested = len(selected_rows(dataset, "val", Holdout(0.5)))
    (file,) = copied.glob("results/*/attack.json")
    content = json.loads(file.read_text())
    assert not file.with_name("model.json").exists()
    assert (content["foregrounds"], content["backgrounds"]) == (tested, tested)
    assert content["overlap"] == 0
    assert content["trained"]["variant"] == "original"


def test_whole_networks_and_in9l(three_draws: Path, small_sample: Path, tmp_path: Path) -> None:
    output, in9l = Path(shutil.copytree(three_draws, tmp_path / "out")), tmp_path / "in9l"
    whole = ("--selection", "in9l", "--variants", "original", *QUICK[2:], *ONE)
    run_here("generate", "--input", small_sample, *whole, "--output", in9l)
    command = ("matrix", "--dataset", output, "--in9l", in9l, "--holdout", 0.5)
    flags = ("--arch", "test_efficientnet", "--epochs", 1, "--batch_size", 4, "--workers", 0)
    variants = ("--variants", "only_bg_t", "--pictures", "none", "--lr", 0.01)
    printed = run_in9(*command, *flags, *variants).stdout
    assert "test_efficientnet-1ep-val-holdout0.5, %" in printed
    rows = table_of(output, "matrix")
    names = ("only_bg_t", "in9l")
    assert [(row["train_variant"], row["test_variant"]) for row in rows] == [
        (train, test) for train in names for test in names
    ]
    assert {(row["method"], row["overlap"]) for row in rows} == {("train", "0")}
    assert "nothing to do" in run_in9(*command, *flags, *variants).stdout
    entry = output / rows[-1]["checkpoint"]
    evaluate = ("evaluate", "--dataset", in9l, "--holdout", 0.5, "--pictures", "none", *ONE)
    run_in9(*evaluate, "--models", f"test_efficientnet={entry}")
    (results,) = (
        row
        for row in table_of(in9l, "summary")
        if (row["variant"], row["label_rule"]) == ("original", "argmax_then_map")
    )
    assert results["correct"] == rows[-1]["correct"]
    assert table_of(output, "matrix") == rows

    def interval() -> tuple[float, float] | None:
        (matrix,) = read_matrices(dataset_in(output))
        results = {(row.train_variant, row.test_variant): row for row in matrix.rows}
        row = results.get(("only_bg_t", "in9l"))
        return (row.ci_low, row.ci_high) if row else None

    # Images of a group count as related. This holds for IN-9L as well, whose index lies in another
    # dataset.
    fingerprint = manifest_of(in9l)["fingerprint"]
    (folder,) = output.glob(f"results/*-only_bg_t+holdout0.5+{fingerprint[:12]}")
    model = folder / "model.json"
    content = json.loads(model.read_text())
    (file,) = folder.glob("predictions/*")
    keys = set(pq.read_table(file, partitioning=None)["key"].to_pylist())
    alone = interval()
    model.write_text(json.dumps({**content, "groups": dict.fromkeys(keys, "one")}))
    together = interval()
    assert alone
    assert together
    assert together[1] - together[0] > alone[1] - alone[0]
    model.write_text(json.dumps(content))
    file.write_bytes(b"PAR1, but no table")
    assert interval() is None


def test_a_network_stays_on_its_device_for_the_next_probe(
    three_draws: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(shutil.copytree(three_draws, tmp_path / "out")))
    backbone = Backbone("efficientnet_lite0", PredictConfig("cpu"), store)
    moved: list[torch.nn.Module] = []

    def cpu(module: torch.nn.Module) -> torch.nn.Module:
        moved.append(module)
        return module

    monkeypatch.setattr(torch.nn.Module, "cpu", cpu)
    fit_variant(backbone, ProbePlan(Dataset.open(store), "original", "val", Holdout(0.5)), store)
    assert not moved


def test_overwrite_replaces_only_trainings_with_other_flags(
    three_draws: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(str(shutil.copytree(three_draws, tmp_path / "out")))
    plan = make_plan(
        Dataset.open(store),
        None,
        variants=("original",),
        train_split=None,
        split=None,
        share=0.5,
        predict=PredictConfig("cpu"),
    )
    training = TrainPlan(arch="test_efficientnet", epochs=1, batch_size=4, lr=0.01, workers=0)
    trainer = NetworkTrainer(plan, training, overwrite=True)
    path = Path(trainer.train("original"))
    assert capsys.readouterr().out.count("\n") == 2
    assert trainer.train("original") == str(path)
    assert not capsys.readouterr().out
    slower = dataclasses.replace(training, lr=0.005)
    with pytest.raises(UsageError, match=r"another training \(--lr 0\.01\)"):
        NetworkTrainer(plan, slower).train("original")
    NetworkTrainer(plan, slower, overwrite=True).train("original")
    assert capsys.readouterr().out.count("\n") == 2
    path.with_name("state.pth").write_bytes(b"junk")
    NetworkTrainer(plan, slower, overwrite=True).train("original")
    assert capsys.readouterr().out.count("\n") == 2


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--probe",), "no split train, but val: add --holdout 0.5"),
        (("--probe", "--holdout", 0.5, "--variants", "mixed"), "--variants mixed: the dataset has"),
        (("--probe", "--holdout", 0.5, "--train_split", "train"), "--holdout divides one split"),
        (("--probe", "--train_split", "test"), "--train_split test: the dataset has val"),
        (("--train_split", "val"), "all images of val would be both trained on and tested on"),
        (("--holdout", 2), "at least 0 and less than 1"),
        (
            ("--probe", "--holdout", 0.5, "--in9l", "{dataset}"),
            "is not an IN-9L dataset; make one with: in9 generate --selection in9l",
        ),
        (("--probe", "--holdout", 0.5, "--in9l", "/nowhere"), "--in9l: /nowhere does not exist"),
        (("--arch", "resnet_50", "--holdout", 0.5), "no such architecture"),
        (("--probe", "--arch", "python:tiny_models:first", "--holdout", 0.5), "network of timm"),
    ],
)
def test_what_does_not_fit_is_one_line(
    probed: tuple[Path, str], capsys: pytest.CaptureFixture[str], flags: Any, line: str
) -> None:
    before = stamps(probed[0])
    flags = [str(flag).format(dataset=probed[0]) for flag in flags]
    run_here("matrix", "--dataset", probed[0], *flags, code=2)
    message = capsys.readouterr().err
    assert line in message
    assert message.count("\n") == 1
    assert stamps(probed[0]) == before


def matrix_of(overlap: int = 0) -> Matrix:
    """Returns the paper's own figures as a matrix on its 4,050 images."""
    rows = [
        {
            "train_variant": train,
            "test_variant": test,
            "n": 4050,
            "accuracy": share,
            "chance": 1 / 9,
            "ci_low": share - 0.015,
            "ci_high": share + 0.015,
            "overlap": overlap,
            "weights_sha256": train,
        }
        for train, of_row in TRAINED.items()
        for test, share in of_row.items()
    ]
    gains = [
        {
            "first": "mixed_rand",
            "second": "original",
            "test_variant": test,
            "n": 4050,
            "difference": (gain := TRAINED["mixed_rand"][test] - TRAINED["original"][test]),
            "ci_low": gain - 0.02,
            "ci_high": gain + 0.02,
        }
        for test in TRAINED
    ]
    return made(Matrix, name="resnet50", rows=rows, gains=gains)


def test_one_process_at_a_time_writes_a_probe(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "probe"
    flags = ("--probe", "--arch", "efficientnet_lite0", "--holdout", 0.5, "--output", folder)
    command = list(map(str, ("train", "--dataset", copied, *flags)))
    with locked(Store(str(folder)), DATASET_LOCK):
        assert main(command) == 1
    assert "is at work on it" in capsys.readouterr().err
    assert main(command) == main(command) == 0
    assert [path.name for path in folder.iterdir()] == ["original.safetensors"]


def test_claims_on_training_are_judged_by_a_matrix(probed: tuple[Path, str]) -> None:
    dataset = dataset_in(probed[0])

    def verdicts(*matrices: Matrix) -> dict[str, Verdict]:
        evidence = Evidence((), {Matrix: matrices}, dataset=dataset, taxonomy=imagenet9())
        return {one.claim.text: one.verdict for one in check_claims(evidence)}

    judged = {text: v for text, v in verdicts(matrix_of()).items() if v is not Verdict.NOT_RUN}
    assert len(judged) == 5
    assert set(judged.values()) == {Verdict.HOLDS}
    # A test on a model's own training images is no evidence.
    assert set(verdicts(matrix_of(overlap=7)).values()) == {Verdict.NOT_RUN}
