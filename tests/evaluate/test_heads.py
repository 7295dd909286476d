"""Tests heads on frozen encoders: the fit, its place in a job, and what users get of it."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from numpy.typing import NDArray
from runs import ONE, dataset_in, pixels_of, refusal, run_here, run_in9, table_of
from safetensors.numpy import load_file
from safetensors.torch import load_file as torch_file
from sklearn.neighbors import KNeighborsClassifier

import in9
from pipeline.dataset.folder import selected_rows
from pipeline.errors import ModelError, UsageError
from pipeline.evaluate.features import FeatureFiles, HeadPlan
from pipeline.evaluate.planned import refuse_no_fit, split_to_fit
from pipeline.models.checkpoint import head_file, read_metadata, save_checkpoint
from pipeline.models.heads import NEIGHBOURS, TEMPERATURE, Neighbours
from pipeline.models.identity import PredictConfig
from pipeline.models.registry import load_model
from pipeline.storage.store import Store
from pipeline.training import probe_fit

pytestmark = pytest.mark.usefixtures("no_figures")

NAME = "efficientnet_lite0"
BOTH = ("--models", f"probe:{NAME},knn:{NAME}", "--holdout", 0.5, "--pictures", "none", *ONE)


@pytest.fixture(scope="module")
def evaluated(three_draws: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset on which a probe and neighbours were evaluated. Tests must not change it."""
    output = Path(shutil.copytree(three_draws, tmp_path_factory.mktemp("heads") / "out"))
    run_in9("evaluate", "--dataset", output, *BOTH)
    return output


@pytest.fixture
def copied(evaluated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(evaluated, tmp_path / "out"))


def features_of(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Computes what EfficientNet-Lite0 gives its last layer, by timm alone."""
    packaged = load_model(NAME).module
    network: Any = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    network.load_state_dict(packaged.state_dict(), strict=False)
    config = packaged.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    pictures = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        return np.asarray(network((pictures - mean) / std))


def head_in(output: Path, kind: str) -> dict[str, NDArray[Any]]:
    (file,) = output.glob(f"models/{kind}-{NAME}-val-holdout0.5-*/original.safetensors")
    return load_file(file)


def answers_of(output: Path, kind: str, variant: str) -> dict[str, int]:
    (folder,) = output.glob(f"results/{kind}_{NAME}*/predictions")
    rows = pq.read_table(folder, partitioning=None).to_pylist()
    return {
        row["fg_key"]: row["output"]
        for row in rows
        if (row["variant"], row["label_rule"]) == (variant, "argmax_then_map")
    }


def test_both_heads_answer_as_by_hand(evaluated: Path) -> None:
    dataset = dataset_in(evaluated)
    chosen = [*HeadPlan(dataset, "original", "val", 0.5).pictures]
    original, mixed = (pixels_of(evaluated, name) for name in ("original", "mixed_rand"))
    labels = {row["key"]: row["label"] for row in dataset.index("val")}
    bank = features_of(np.stack([original[key] for key in chosen]))
    tested = answers_of(evaluated, "probe", "mixed_rand")
    assert tested
    assert not set(tested) & set(chosen)
    values = features_of(np.stack([mixed[key] for key in tested]))
    head = head_in(evaluated, "probe")
    scores = values @ head["weight"].T + head["bias"]
    assert [*tested.values()] == scores.argmax(axis=1).tolist()
    stored = head_in(evaluated, "knn")
    assert np.allclose(np.sort(stored["features"], axis=0), np.sort(bank, axis=0), atol=1e-4)
    nearest = answers_of(evaluated, "knn", "mixed_rand")
    unit, seen = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (bank, values))
    votes = np.exp(seen @ unit.T / TEMPERATURE) @ np.eye(9)[[labels[key] for key in chosen]]
    assert [nearest[key] for key in tested] == votes.argmax(axis=1).tolist()


def test_neighbours_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(60, 8)), rng.normal(size=(40, 8))
    labels = rng.integers(0, 7, 60)
    head = Neighbours(torch.from_numpy(bank).float(), torch.from_numpy(labels), 9)
    shares = head(torch.from_numpy(queries).float()).exp().numpy()
    unit, seen = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (bank, queries))
    # The squared distance of unit vectors is 2 - 2 cos.
    known = KNeighborsClassifier(
        NEIGHBOURS, weights=lambda distances: np.exp((1 - distances**2 / 2) / TEMPERATURE)
    ).fit(unit, labels)
    assert np.allclose(shares[:, :7], known.predict_proba(seen), atol=1e-5)
    few = Neighbours(torch.eye(3), torch.arange(3), 9)(torch.eye(3)).exp()
    assert few.argmax(dim=1).tolist() == [0, 1, 2]


def test_a_second_run_does_nothing_and_a_lost_head_is_fitted_from_stored_features(
    copied: Path,
) -> None:
    before = {name: head_in(copied, name) for name in ("probe", "knn")}
    command = ("evaluate", "--dataset", copied, *BOTH)
    assert "nothing to do: everything is up to date" in run_here(*command).out
    for file in copied.glob("models/*/original.safetensors"):
        file.unlink()
    # Features of the fit and of the grid are kept, and so are predictions.
    assert "nothing to do: everything is up to date" in run_here(*command).out
    for name, head in before.items():
        assert all((head_in(copied, name)[key] == value).all() for key, value in head.items())


def test_the_head_of_train_is_that_of_evaluate(copied: Path) -> None:
    flags = ("--probe", "--holdout", 0.5, "--arch", NAME, "--output", copied / "own")
    printed = run_in9("train", "--dataset", copied, *flags).stdout
    (entry,) = (word for word in printed.split() if word.startswith("probe:"))
    own = load_file(entry.removeprefix("probe:"))
    assert all((own[key] == value).all() for key, value in head_in(copied, "probe").items())
    few = ("--pictures", "none", *ONE)
    refused = run_in9("evaluate", "--dataset", copied, "--models", entry, *few, check=2).stderr
    assert "of the images to test on" in refused
    run_in9("evaluate", "--dataset", copied, "--models", entry, "--holdout", 0.5, *few)
    rows = table_of(copied, "summary", label_rule="argmax_then_map")
    figures = {(row["model"], row["variant"]): row["accuracy"] for row in rows}
    for (model, variant), accuracy in figures.items():
        if model == f"probe:{NAME}":
            assert figures[entry, variant] == accuracy


def test_what_was_fitted_on_is_not_tested_unless_that_is_allowed(
    copied: Path,
) -> None:
    command = ("evaluate", "--dataset", copied, "--models", f"probe:{NAME}")
    assert "--holdout 0.5" in refusal(*command)
    run_here(*command, "--holdout", 0.5, "--allow_overlap", "--pictures", "none", *ONE)
    rows = table_of(copied, "summary", model=f"probe:{NAME}", label_rule="argmax_then_map")
    strict, marked = (
        {row["variant"]: row for row in rows if bool(float(row["holdout"])) is held}
        for held in (True, False)
    )
    assert {row["overlap"] for row in strict.values()} == {"0"}
    fitted = len(HeadPlan(dataset_in(copied), "original", "val", 0.5).pictures)
    assert {row["overlap"] for row in marked.values()} == {str(fitted)}
    assert {row["n"] for row in marked.values()} == {"18"}
    # Half of the foregrounds were in the fit.
    assert float(marked["only_fg"]["accuracy"]) > float(strict["only_fg"]["accuracy"])


def test_an_attack_and_saliency_run_on_a_probe(copied: Path) -> None:
    few = ("--dataset", copied, "--models", f"probe:{NAME}", "--holdout", 0.5, *ONE)
    run_in9("attack", *few, "--pictures", "none")
    run_in9("saliency", *few, "--pictures", "none", "--maps", 1)
    for name in ("attack", "saliency"):
        (file,) = copied.glob(f"results/probe_*/{name}.json")
        result = json.loads(file.read_text())
        trained = result["trained"]
        assert (trained["method"], trained["variant"]) == ("probe", "original")
        assert result["overlap"] == 0
        # By default, an attack takes all images that are tested.
        assert result.get("full_grid", True)
    tested = len(selected_rows(dataset_in(copied), "val", 0.5))
    (row,) = table_of(copied, "attack", label_rule="argmax_then_map")
    assert (row["foregrounds"], row["backgrounds"]) == (str(tested), str(tested))


def test_an_encoder_in_memory_gives_the_figures_of_the_command(evaluated: Path) -> None:
    network: Any = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    network.load_state_dict(load_model(NAME).module.state_dict(), strict=False)
    network.pretrained_cfg = load_model(NAME).module.pretrained_cfg
    figures = {
        row["variant"]: float(row["accuracy"])
        for row in table_of(
            evaluated, "summary", model=f"probe:{NAME}", label_rule="argmax_then_map"
        )
    }
    for encoder in (network, features_of):
        found = in9.evaluate_model(evaluated, encoder, name="e", probe=True, holdout=0.5)
        assert {name: of[0] for name, of in found.accuracy.items()} == pytest.approx(figures)
        assert found.summary.trained
        assert found.summary.trained.method == "probe"


def test_heads_that_cannot_be_right_are_refused(copied: Path, tmp_path: Path) -> None:
    """Tries heads of other weights, encoders that have seen the test, and a lack of `original`."""
    few = ("--dataset", copied, "--holdout", 0.5, "--pictures", "none", *ONE)
    (head,) = copied.glob("models/knn-*/original.safetensors")
    (other,) = copied.glob("models/probe-*/original.safetensors")
    trained = read_metadata(str(head))
    assert trained
    encoder = f"test_efficientnet={tmp_path / 'seen.safetensors'}"
    network = timm.create_model("test_efficientnet", num_classes=9)
    seen = dataclasses.replace(trained, method="train", keys=tuple(pixels_of(copied, "original")))
    save_checkpoint(Store(str(tmp_path)), "seen.safetensors", network.state_dict(), seen)
    of_seen = dataclasses.replace(trained, pretrained=encoder)
    save_checkpoint(Store(str(tmp_path)), "head.safetensors", torch_file(str(head)), of_seen)
    for entry in (f"probe:{encoder}", f"probe:{tmp_path / 'head.safetensors'}"):
        assert "of the images to test on" in refusal("evaluate", *few, "--models", entry)
    assert "equal weights" in refusal(
        "evaluate", *few, "--models", f"a#0:=probe:{NAME},a#1:=knn:{NAME}"
    )
    changed = dataclasses.replace(trained, settings={**trained.settings, "weights_sha256": "0"})
    save_checkpoint(Store(str(tmp_path)), "other.safetensors", torch_file(str(other)), changed)
    entry = f"probe:{tmp_path / 'other.safetensors'}"
    printed = run_here("evaluate", *few, "--models", f"{entry},probe:{NAME}")
    assert "is the head of other weights" in printed.err
    assert f"probe:{NAME}" in printed.out
    with pytest.raises(UsageError, match=r"holdout=1\.5 must be"):
        in9.evaluate_model(copied, features_of, name="e", probe=True, holdout=1.5)


def test_encoders_do_not_share_what_is_theirs(copied: Path) -> None:
    """Compares entries of equal weights, and entries whose names are alike or long."""
    identity = load_model(f"probe:{NAME}").identity
    store, settings = Store(str(copied)), PredictConfig("cpu")

    def of(name: str) -> str:
        return FeatureFiles(store, dataclasses.replace(identity, name=name), settings).folder

    assert of("probe:python:a:first") == of("knn:python:a:first")
    assert of("probe:python:a:first") != of("probe:python:a:second")
    names = (
        "probe:hf:a/b_c",
        "probe:hf:a_b/c",
        "probe:hf:a/b/c",
        "knn:hf:a/b_c",
        "probe:" + 300 * "a",
    )
    files = {head_file(name, "val", 0.5) for name in names}
    assert len(files) == len(names)
    assert max(len(part) for file in files for part in file.split("/")) < 200


@pytest.mark.parametrize(
    ("splits", "split", "holdout", "fit"),
    [
        (("val",), "val", 0.5, ("val", 0.5)),
        (("train", "val"), "val", 0.0, ("train", 0.0)),
        (("train", "val"), "val", 0.5, ("train", 0.0)),
        (("train", "val"), "train", 0.5, ("train", 0.5)),
        (("train", "val"), "train", 0.0, None),
        (("val",), "val", 0.0, None),
    ],
)
def test_the_fit_is_on_train_else_on_what_is_not_held_out(
    splits: tuple[str, ...], split: str, holdout: float, fit: tuple[str, float] | None
) -> None:
    assert split_to_fit(splits, split, holdout) == fit
    if not fit:
        with pytest.raises(UsageError, match="x: its head must be fitted on pictures that are not"):
            refuse_no_fit("x", fit, ["original"])
    with pytest.raises(UsageError, match="x: its head is fitted on pictures of original"):
        refuse_no_fit("x", fit, ["mixed_rand"])


def test_a_fit_that_fails_is_its_models_alone(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> float:
        raise ModelError("a probe does not converge")

    monkeypatch.setattr(probe_fit, "choose_penalty", fail)
    few = ("--dataset", copied, "--holdout", 0.4, "--pictures", "none", *ONE)
    printed = run_here("evaluate", *few, "--models", f"probe:{NAME},knn:{NAME}")
    assert f"not evaluated: probe:{NAME}: a probe does not converge" in printed.err
    assert f"knn:{NAME} holdout0.4" in printed.out


def test_another_fit_is_no_other_weights_but_other_predictions(
    copied: Path, tmp_path: Path
) -> None:
    (file,) = copied.glob("models/probe-*/original.safetensors")
    trained, tensors = read_metadata(str(file)), torch_file(str(file))
    assert trained
    others = dataclasses.replace(trained, keys=trained.keys[1:])
    always_second = {**tensors, "bias": 1e6 * torch.eye(9)[1]}
    command = ("evaluate", "--dataset", copied, "--holdout", 0.5, "--pictures", "none", *ONE)
    answers = []
    for state, of in ((tensors, trained), (always_second, others)):
        save_checkpoint(Store(str(tmp_path)), "head.safetensors", state, of)
        run_here(*command, "--models", f"probe:{tmp_path / 'head.safetensors'}")
        (folder,) = copied.glob("results/probe_*head.safetensors*/predictions")
        answers.append(set(pq.read_table(folder, partitioning=None)["output"].to_pylist()))
    assert len(answers[0]) > 1
    assert answers[1] == {1}
