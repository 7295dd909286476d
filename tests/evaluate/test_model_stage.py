"""Tests that finished results are found without a model, before the step that runs models."""

import json
import shutil
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from runs import results_of, run_python, stamps

from pipeline.analyses.attack.stage import PlannedAttack
from pipeline.analyses.evaluation.parts import PlannedEvaluation
from pipeline.analyses.imagenet.stage import PlannedImageNet
from pipeline.analyses.saliency.stage import PlannedSaliency
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.model_stage import ModelStage
from pipeline.evaluate.planned import Evaluation, PlannedAnalysis
from pipeline.models.expand import DEFAULT_MODEL
from pipeline.models.identity import PredictConfig
from pipeline.runners.beam_options import pipeline_options
from pipeline.runtime.progress import Progress, counters_of
from pipeline.storage.store import Store

pytestmark = pytest.mark.usefixtures("no_figures")

GPU = (("accelerator", "type:nvidia-l4;count:1;install-nvidia-driver"),)
TINY = "python:tiny_models:first"
MADE = {
    "predictions/val-00001.parquet": "evaluate_chunks_made",
    "imagenet/val-00000.parquet": "imagenet_chunks_made",
    "attack/18x4-early_stop/val-00000.parquet": "attack_chunks_made",
    "saliency/val-00001.parquet": "saliency_chunks_made",
}
"""Some result files of a model, and for each the counter of its creation."""


def run_stages(
    output: Path,
    imagenet: Path | None,
    *,
    hints: tuple[tuple[str, str], ...] = GPU,
    models: tuple[str, ...] = (TINY,),
    grid: tuple[int, int] = (20, 4),
    batch_size: int | None = None,
) -> dict[str, int]:
    """Runs all stages with models on this machine, or only the attack if `imagenet` is None.

    Returns:
      The counters of the job.
    """
    store = Store(str(output))
    dataset = Dataset.open(store)
    progress = Progress.for_store(store)
    progress.clear()
    evaluation = Evaluation(
        store, models, "val", PredictConfig(batch_size=batch_size), progress, hints=hints
    )
    pipeline = beam.Pipeline(options=pipeline_options(["--direct_num_workers=1"]))
    works: list[PlannedAnalysis] = [
        PlannedAttack(evaluation, dataset.taxonomy, *grid, early_stop=True)
    ]
    if imagenet is not None:
        works += [
            PlannedEvaluation(evaluation, dataset.taxonomy),
            PlannedImageNet(evaluation, str(imagenet), dataset.taxonomy),
            PlannedSaliency(evaluation, dataset.taxonomy, num_maps=2),
        ]
    done = pipeline | beam.Create([dataset.manifest.fingerprint])
    for work in works:
        done = done | work.stage >> ModelStage(work)
    result = pipeline.run()
    result.wait_until_finish()
    return counters_of(result)


@pytest.fixture(scope="module")
def looked(
    quick_shards: Path, small_sample: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A dataset with all results, from a job with resource hints for its models."""
    output = Path(shutil.copytree(quick_shards, tmp_path_factory.mktemp("looked") / "out"))
    counters = run_stages(output, small_sample)
    assert counters["models_on_device"] == 4
    assert counters["attack_pictures"] > 0
    return output


def test_asking_for_machines_changes_no_result(
    looked: Path, quick_shards: Path, small_sample: Path, tmp_path: Path
) -> None:
    plain = Path(shutil.copytree(quick_shards, tmp_path / "out"))
    run_stages(plain, small_sample, hints=())
    assert results_of(looked / "results") == results_of(plain / "results")


def test_what_is_there_never_reaches_the_step_with_the_hint(
    looked: Path, small_sample: Path
) -> None:
    before, expected = stamps(looked), results_of(looked / "results")
    counters = run_stages(looked, small_sample)
    assert "models_on_device" not in counters
    assert counters["evaluate_chunks_kept"] == 3
    assert stamps(looked) == before

    (results,) = looked.glob("results/python*")
    (picture, *_) = results.glob("saliency/*.png")
    picture.unlink()
    counters = run_stages(looked, small_sample)
    assert (counters["models_on_device"], counters["saliency_pictures"]) == (1, 1)
    for name in MADE:
        (results / name).unlink()
    for path in results.glob("*.json"):
        content = json.loads(path.read_text())
        # A file is refused, whichever of these it lacks.
        del content["weights_sha256"]
        path.write_text(json.dumps(content))
    counters = run_stages(looked, small_sample)
    assert counters["models_on_device"] == 4
    assert {counter: counters[counter] for counter in MADE.values()} == dict.fromkeys(
        MADE.values(), 1
    )
    assert results_of(looked / "results") == expected


def test_an_early_stop_learns_from_what_is_there(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Path(shutil.copytree(small_run, tmp_path / "out"))
    monkeypatch.setattr("pipeline.analyses.attack.results._CHUNK", 4)
    # If all pairs of a chunk fitted into one batch, what is known of other chunks would not matter.
    flags: dict[str, Any] = {"models": (DEFAULT_MODEL,), "grid": (12, 12), "batch_size": 8}
    assert run_stages(output, None, **flags)["attack_chunks_made"] == 3
    expected = results_of(output / "results")
    folder = output / "results" / DEFAULT_MODEL / "attack" / "12x12-early_stop"
    (folder / "val-00001.parquet").unlink()
    counters = run_stages(output, None, **flags)
    assert (counters["models_on_device"], counters["attack_chunks_kept"]) == (1, 2)
    assert results_of(output / "results") == expected


def test_a_model_that_cannot_be_loaded_fails_before(
    looked: Path, small_sample: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(looked, tmp_path / "out"))
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"no checkpoint")
    counters = run_stages(output, small_sample, models=(f"resnet18={broken}", TINY))
    assert "models_on_device" not in counters
    assert counters["evaluate_failed"] == counters["attack_failed"] == 1
    assert counters["evaluate_chunks_kept"] == 3


NOTHING_TO_DO = """
import sys
from pipeline.commands.cli import main
code = main(sys.argv[1:])
assert not {"torch", "timm", "torchvision"} & set(sys.modules)
sys.exit(code)
"""


def test_nothing_to_do_is_known_without_torch(small_run: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(small_run, tmp_path / "out"))
    before = stamps(output)
    flags = ("evaluate", "--dataset", str(output), "--models", DEFAULT_MODEL)
    printed = run_python(NOTHING_TO_DO, *flags).stdout
    assert "nothing to do: everything is up to date" in printed
    assert stamps(output) == before
