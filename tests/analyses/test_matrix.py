"""Tests the train x test matrix, and the checks that keep trained images out of the test."""

import dataclasses
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from made_results import made
from runs import ONE, QUICK, dataset_in, manifest_of, run_here, run_in9, stamps, table_of, write_all
from two_way_by_hand import interval_of

from pipeline.analyses.matrix.parts import make_matrices
from pipeline.analyses.matrix.results import Matrix, read_matrices
from pipeline.analyses.matrix.rows import (
    MatrixPlan,
    NetworkTrainer,
    ProbeTrainer,
    make_plan,
    make_row,
)
from pipeline.dataset.folder import Dataset, selected_rows
from pipeline.errors import UsageError
from pipeline.evaluate.evidence import TRAINED, Results
from pipeline.evaluate.features import HeadPlan
from pipeline.models.checkpoint import metadata_of_entry
from pipeline.models.identity import PredictConfig
from pipeline.report.page import _environment
from pipeline.runtime.lock import DATASET_LOCK, locked
from pipeline.storage.store import Store
from pipeline.training.probe_fit import Encoder
from pipeline.training.train_plan import TrainPlan, describe_penalty

SHOWN = ("mixed_rand", "mixed_same", "only_bg_t", "original")
PROBE = ("--probe", "--holdout", 0.5, "--variants", ",".join(SHOWN), "--pictures", "none")
NAME = "probe-efficientnet_lite0-val-holdout0.5"


def row_folder(output: Path, row: str) -> Path:
    """Returns the folder with the results of a row's model."""
    return output / "results" / f"{NAME}-{row}+holdout0.5"


def plan_of(store: Store, **how: Any) -> MatrixPlan:
    """Plans a matrix whose only row is `original`."""
    how |= {"variants": ("original",), "split": None, "predict": PredictConfig("cpu")}
    return make_plan(Dataset.open(store), None, **how)


def checkpoint(output: Path, variant: str) -> str:
    """Returns the `--models` entry of a probe."""
    return f"probe:{output}/models/{NAME}-seed0/{variant}.safetensors"


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


def test_every_cell_has_its_images_interval_and_published_figure(probed: tuple[Path, str]) -> None:
    rows = table_of(probed[0], "matrix")
    cells = [(row["train_variant"], row["test_variant"]) for row in rows]
    assert cells == [(train, test) for train in SHOWN for test in SHOWN]
    tested = selected_rows(dataset_in(probed[0]), "val", 0.5)
    keys = {image["key"] for image in tested}
    for row in rows:
        name = f"{row['test_variant']}_bg_key"
        # A mixed picture counts if its background is held out, as its foreground is.
        images = [image for image in tested if name not in image or image[name] in keys]
        classes = Counter(image["label"] for image in images)
        accuracy, published = float(row["accuracy"]), float(row["published"])
        assert float(row["ci_low"]) <= accuracy <= float(row["ci_high"])
        assert published == TRAINED[row["train_variant"]][row["test_variant"]]
        assert float(row["difference"]) == pytest.approx(accuracy - published)
        assert (row["n"], row["overlap"]) == (str(len(images)), "0")
        assert (row["method"], row["holdout"]) == ("probe", "0.5")
        assert int(row["train_n"]) <= 18 - len(tested)
        assert float(row["chance"]) == max(classes.values()) / len(images)


def test_the_terminal_and_the_page_tell_what_the_tables_hold(probed: tuple[Path, str]) -> None:
    output, printed = probed
    rows, page = table_of(output, "matrix"), (output / "report.html").read_text()
    assert f"{NAME}, %" in printed
    chances = sorted({float(row["chance"]) for row in rows})
    span = " to ".join(f"{100 * one:.1f}" for one in (chances[0], chances[-1]))
    chance = f"A constant answer gets {span} %, the share of the"
    assert chance in printed
    assert chance in page
    assert "; mixed variants: first of 3 draws" in printed
    whole, *others = (
        next(row["n"] for row in rows if row["test_variant"] == name)
        for name in ("original", "mixed_rand", "mixed_same")
    )
    of_variants = "{1} of {0} of mixed_rand, {2} of {0} of mixed_same".format(whole, *others)
    rule = "--holdout 0.5: a mixed picture counts if its background is held out, too: "
    assert f"\n{rule}{of_variants}, " in printed
    assert f">{rule}{of_variants}, " in page
    accuracies = [[float(row[name]) for name in ("accuracy", "ci_low", "ci_high")] for row in rows]
    most = max(abs(accuracy - end) for accuracy, *ends in accuracies for end in ends)
    assert f"at most ± {100 * most:.1f} points" in printed
    assert "Trained on Mixed-Rand" in page
    assert re.search(r"BG-Gap (may be 0|is (above|below) 0) when trained on", page)
    (matrix,) = json.loads((output / "results" / "matrix.json").read_text())["matrices"]
    assert {row["train_variant"] for row in matrix["gaps"]} == set(SHOWN)
    for row in SHOWN:
        (penalty,) = {each["penalty"] for each in matrix["rows"] if each["train_variant"] == row}
        words = describe_penalty(penalty)
        assert re.search(rf"{NAME}: {row}, .*; penalty {re.escape(words)}$", printed, re.MULTILINE)
        assert f"<code>{row}</code> {words}" in page
    assert (output / "results" / "figures" / f"matrix-{NAME}-difference.svg").exists()


def test_differences_cover_other_foregrounds_and_other_backgrounds(
    probed: tuple[Path, str],
) -> None:
    def answers(row: str, variant: str) -> dict[str, tuple[str, bool]]:
        table = pq.read_table(row_folder(probed[0], row) / "predictions", partitioning=None)
        rows, trained = table.to_pylist(), metadata_of_entry(checkpoint(probed[0], row))
        assert trained is not None
        held_out = {one["fg_key"] for one in rows}.difference(trained.keys)
        return {
            one["fg_key"]: (one["bg_key"], one["correct"])
            for one in rows
            if (one["variant"], one["label_rule"]) == (variant, "argmax_then_map")
            if one["bg_key"] in held_out
        }

    (matrix,) = json.loads((probed[0] / "results" / "matrix.json").read_text())["matrices"]
    sides = [
        (gap, *(answers(gap["train_variant"], name) for name in ("mixed_same", "mixed_rand")))
        for gap in matrix["gaps"]
    ]
    sides += [
        (gain, *(answers(gain[name], gain["test_variant"]) for name in ("first", "second")))
        for gain in matrix["gains"]
        if gain["test_variant"].startswith("mixed")
    ]
    for row, *both in sides:
        paired = sorted(set.intersection(*map(set, both)))
        first, second = ([(fg, *side[fg]) for fg in paired] for side in both)
        n = len(paired)
        means = [sum(right for *_, right in side) / n for side in (first, second)]
        assert (row["difference"], row["n"]) == (pytest.approx(means[0] - means[1]), n)
        pictures = [(fg, bg, (right - means[0]) / n) for fg, bg, right in first]
        pictures += [(fg, bg, (means[1] - right) / n) for fg, bg, right in second]
        expected = interval_of(row["difference"], pictures, [fg for fg, *_ in pictures])
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(expected, abs=1e-8)


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


def test_a_second_run_makes_what_is_missing_and_nothing_else(copied: Path, tmp_path: Path) -> None:
    before, published = stamps(copied), tmp_path / "published"
    printed = run_in9("matrix", "--dataset", copied, *PROBE, "--publish", published).stdout
    assert "nothing to do" in printed
    assert [*published.glob("v-*/results/matrix.csv")]
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


def test_tests_on_trained_images_are_refused_and_marked(copied: Path, evaluated: Path) -> None:
    output, entry = copied, checkpoint(copied, "mixed_rand")
    marked = {r["overlap"] for r in table_of(evaluated, "summary") if float(r["holdout"]) == 0}
    of_row = [r for r in table_of(output, "matrix") if r["train_variant"] == "mixed_rand"]
    trained = of_row[0]["train_n"]
    assert marked == {trained}
    for command in ("evaluate", "attack"):
        message = run_here(command, "--dataset", output, "--models", entry, code=2).err
        assert f"was trained on {trained} of the images" in message
        assert "--holdout 0.5" in message
        assert message.count("\n") == 1
    # A row is refused before any of its cells is tested.
    store = Store(str(output))
    plan = plan_of(store, train_split="val", share=0, allow_overlap=True)
    strict = dataclasses.replace(plan, allow_overlap=False)
    trainer = ProbeTrainer(Encoder("efficientnet_lite0", plan.predict, store), strict)
    with pytest.raises(UsageError, match=r"were trained on \(row original\)"):
        make_row(trainer, strict, "original")
    page = (evaluated / "report.html").read_text()
    assert f"trained on {trained} of these images" in page


def test_the_main_job_refuses_them_where_models_run(copied: Path, small_sample: Path) -> None:
    command = ("run", "--output", copied, "--input", small_sample, "--replicates", 3, *QUICK)
    done = run_in9(*command, *ONE, "--models", checkpoint(copied, "only_bg_t"), check=1)
    assert "of the images to test on" in done.stderr


@pytest.fixture(scope="module")
def of_networks(
    three_draws: Path, small_sample: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A dataset with a matrix of a network on one variant and on IN-9L, and that IN-9L.

    Tests must leave the results as they are.
    """
    root = tmp_path_factory.mktemp("networks")
    output, in9l = Path(shutil.copytree(three_draws, root / "out")), root / "in9l"
    whole = ("--selection", "in9l", "--variants", "original", *QUICK[2:], *ONE)
    run_here("generate", "--input", small_sample, *whole, "--output", in9l)
    command = ("matrix", "--dataset", output, "--in9l", in9l, "--holdout", 0.5, "--lr", 0.01)
    command += ("--arch", "test_efficientnet", "--epochs", 1, "--batch_size", 4, "--workers", 0)
    command += ("--variants", "only_bg_t", "--pictures", "none")
    assert "test_efficientnet-1ep-val-holdout0.5, %" in run_in9(*command).stdout
    assert "nothing to do" in run_in9(*command).stdout
    return output, in9l


def test_whole_networks_and_in9l(of_networks: tuple[Path, Path], tmp_path: Path) -> None:
    output, in9l = of_networks[0], Path(shutil.copytree(of_networks[1], tmp_path / "in9l"))
    rows, names = table_of(output, "matrix"), ("only_bg_t", "in9l")
    cells = [(row["train_variant"], row["test_variant"]) for row in rows]
    assert cells == [(train, test) for train in names for test in names]
    assert {(row["method"], row["overlap"]) for row in rows} == {("train", "0")}
    entry = f"test_efficientnet={output / rows[-1]['checkpoint']}"
    evaluate = ("evaluate", "--dataset", in9l, "--holdout", 0.5, "--pictures", "none", *ONE)
    run_in9(*evaluate, "--models", entry)
    (correct,) = (
        row["correct"]
        for row in table_of(in9l, "summary")
        if (row["variant"], row["label_rule"]) == ("original", "argmax_then_map")
    )
    assert correct == rows[-1]["correct"]


def test_images_of_a_group_count_as_related_on_in9l_too(of_networks: tuple[Path, Path]) -> None:
    """Checks groups that are stored with the results, since IN-9L's index lies elsewhere."""
    output, in9l = of_networks

    def width() -> float | None:
        (matrix,) = read_matrices(dataset_in(output))
        results = {(row.train_variant, row.test_variant): row for row in matrix.rows}
        row = results.get(("only_bg_t", "in9l"))
        return row and row.ci_high - row.ci_low

    fingerprint = manifest_of(in9l)["fingerprint"]
    (folder,) = output.glob(f"results/*-only_bg_t+holdout0.5+{fingerprint[:12]}")
    model, (file,) = folder / "model.json", folder.glob("predictions/*")
    content, whole = json.loads(model.read_text()), file.read_bytes()
    keys = pq.read_table(file, partitioning=None)["key"].to_pylist()
    alone = width()
    assert alone is not None
    model.write_text(json.dumps({**content, "groups": dict.fromkeys(keys, "one")}))
    assert (width() or 0) > alone
    model.write_text(json.dumps(content))
    file.write_bytes(b"PAR1, but no table")
    assert width() is None
    file.write_bytes(whole)


def test_a_network_stays_on_its_device_for_the_next_probe(
    three_draws: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(shutil.copytree(three_draws, tmp_path / "out")))
    encoder = Encoder("efficientnet_lite0", PredictConfig("cpu"), store)
    moved: list[torch.nn.Module] = []

    def cpu(module: torch.nn.Module) -> torch.nn.Module:
        moved.append(module)
        return module

    monkeypatch.setattr(torch.nn.Module, "cpu", cpu)
    encoder.fit(HeadPlan(Dataset.open(store), "original", "val", 0.5), store)
    assert not moved


def test_overwrite_replaces_only_trainings_with_other_flags(
    three_draws: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(str(shutil.copytree(three_draws, tmp_path / "out")))
    plan = plan_of(store, train_split=None, share=0.5)
    training = TrainPlan(arch="test_efficientnet", epochs=1, batch_size=4, lr=0.01, workers=0)
    trainer = NetworkTrainer(plan, training, overwrite=True)
    entry = trainer.train("original")
    assert capsys.readouterr().out.count("\n") == 2
    assert trainer.train("original") == entry
    assert not capsys.readouterr().out
    slower = dataclasses.replace(training, lr=0.005)
    with pytest.raises(UsageError, match=r"another training \(--lr 0\.01\)"):
        NetworkTrainer(plan, slower).train("original")
    NetworkTrainer(plan, slower, overwrite=True).train("original")
    assert capsys.readouterr().out.count("\n") == 2
    Path(entry.partition("=")[2]).with_name("state.pth").write_bytes(b"junk")
    NetworkTrainer(plan, slower, overwrite=True).train("original")
    assert capsys.readouterr().out.count("\n") == 2


def test_one_process_at_a_time_writes_a_probe(copied: Path, tmp_path: Path) -> None:
    folder = tmp_path / "probe"
    flags = ("--probe", "--arch", "efficientnet_lite0", "--holdout", 0.5, "--output", folder)
    command = ("train", "--dataset", copied, *flags)
    with locked(Store(str(folder)), DATASET_LOCK):
        assert "is at work on it" in run_here(*command, code=1).err
    run_here(*command)
    run_here(*command)
    assert [path.name for path in folder.iterdir()] == ["original.safetensors"]


def test_each_matrix_shows_its_own_figures() -> None:
    variants = dict.fromkeys(("train_variant", "test_variant"), "original")
    row = {**variants, "n": 0, "train_n": 1, "overlap": 0, "penalty": None, "chance": 0.1}
    shared = {"columns": ["original"], "rows": [row], "gaps": [], "gains": [], "method": "probe"}
    shared |= {"arch": "a", "holdout": 0.5, "split": "val"}
    names = ("probe-a", "probe-a-seed1")
    matrices = tuple(made(Matrix, **shared, name=name) for name in names)
    drawn = [
        (SimpleNamespace(file=f"matrix-{name}-accuracy.svg"), f"[{name}]", ()) for name in names
    ]
    environment = _environment()
    text = environment.get_template("matrix/panel.html").render(
        macros=environment.get_template("report/macros.html").module,
        panel=make_matrices(Results((), matrices)),  # type: ignore[arg-type]
        plots={"matrix": drawn},
        is_comparable=False,
        manifest=SimpleNamespace(config=SimpleNamespace(compose=SimpleNamespace(replicates=1))),
        gap_column="BG-Gap",
    )
    assert re.findall(r"<figure>(.*)", text) == ["[probe-a]", "[probe-a-seed1]"]
