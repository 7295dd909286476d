"""Tests how models run on shards: they load in turn, and predictions are made only once."""

import dataclasses
import gc
import itertools
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from runs import ONE, QUICK, SHARDS, TINY_MODEL, dataset_in, refusal, run_here, table_of
from slow_storage import slow_storage
from small_models import checkpoint

from pipeline.analyses.attack import arrays
from pipeline.analyses.attack.stage import PlannedAttack
from pipeline.analyses.evaluation.parts import PlannedEvaluation
from pipeline.analyses.saliency.stage import PlannedSaliency
from pipeline.commands.job_flags import analyses_from_flags
from pipeline.dataset.folder import Dataset
from pipeline.errors import JobError, ModelError, UsageError
from pipeline.evaluate import predict_shards, resident
from pipeline.evaluate.model_stage import (
    Block,
    BlockDone,
    FindDone,
    FinishModels,
    MakeBlocks,
    RunModels,
    SummarizeModel,
)
from pipeline.evaluate.planned import Evaluation, PlannedAnalysis
from pipeline.evaluate.predict_shards import PredictShards
from pipeline.evaluate.predictions import prediction_fingerprints
from pipeline.evaluate.results import FailedModel, RunSettings, pick, read_failures
from pipeline.models import predict
from pipeline.models.identity import PredictConfig
from pipeline.models.predict import Fetched, Predictor
from pipeline.models.registry import load_model
from pipeline.runtime import machine, progress
from pipeline.runtime.progress import Progress
from pipeline.storage.state_files import read_table
from pipeline.storage.store import Store
from transforms.codec import decode_into
from transforms.geometry import Pixels
from transforms.taxonomy import imagenet9
from transforms.variants import VariantName

pytestmark = pytest.mark.usefixtures("no_figures")

FIRST, SECOND = (f"python:tiny_models:{name}" for name in ("first", "second"))


@pytest.fixture
def copied(sharded: Path, tmp_path: Path) -> Path:
    """A copy of `sharded` that a test may change."""
    return Path(shutil.copytree(sharded, tmp_path / "out"))


@pytest.fixture
def fresh(copied: Path) -> Path:
    """A copy of `sharded` without results."""
    shutil.rmtree(copied / "results")
    return copied


def plan(output: Path, *models: str, **how: Any) -> Evaluation:
    store = Store(str(output))
    return Evaluation(store, models, "val", PredictConfig(), Progress.for_store(store), **how)


def test_a_model_that_fails_is_let_go_and_the_next_one_runs(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "counted.py").write_text(
        "import gc, torch, tiny_models\n"
        "class Own(torch.nn.Sequential): pass\n"
        "def model():\n"
        "    assert not any(type(each) is Own for each in gc.get_objects()), 'another is there'\n"
        "    made = Own(*tiny_models.first())\n"
        "    made.cycle = [made]\n"
        "    return made\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    models = ("python:counted:model", "python:tiny_models:none", FIRST)
    work = PlannedEvaluation(plan(fresh, *models), imagenet9())
    step = RunModels(work)
    for order in (0, 0, 2):
        (done,) = step.process(Block(order, 0))
        assert isinstance(done, BlockDone), done
    progress = work.evaluation.progress
    of_one = progress.count()["evaluate"][0] // 2
    for order in (0, 1, 2):
        FindDone(work).process(Block(order, 0))
    assert progress.count()["evaluate"] == (2 * of_one, 3 * of_one)
    (missing,) = step.process(Block(1, 0))
    # Nothing of it is left to do, so the stage does not seem to go on.
    assert progress.count()["evaluate"] == (3 * of_one, 3 * of_one)
    assert isinstance(missing, FailedModel)
    assert (missing.order, missing.entry) == (1, models[1])
    assert "has no function 'none'" in missing.error


def test_a_lack_of_memory_anywhere_is_the_models_failure(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, lack = PlannedEvaluation(plan(fresh, FIRST), imagenet9()), "not enough memory for it"
    for error, said in (
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), lack),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), lack),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), lack),
        (MemoryError(), lack),
        (Exception("[ONNXRuntimeError] : 1 : FAIL : CUDNN_STATUS_ALLOC_FAILED"), lack),
        (ModelError("no \n memory"), "no memory"),
    ):
        monkeypatch.setattr(PredictShards, "run", failing(error))
        (failed,) = RunModels(work).process(Block(0, 0))
        assert isinstance(failed, FailedModel)
        assert (failed.entry, failed.model) == (FIRST, FIRST)
        assert said in failed.error
        assert "\n" not in failed.error


def failing(error: Exception) -> Callable[..., Iterator[Any]]:
    def fail(*_: object) -> Iterator[Any]:
        raise error
        yield

    return fail


def test_pictures_are_decoded_once_for_several_models(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests a local job, which is one process, on a machine of 16 cores."""
    entries = [checkpoint(tmp_path / f"{n}.pth", "test_efficientnet", seed=n) for n in range(3)]
    work, dataset = PlannedEvaluation(plan(fresh, *entries), imagenet9()), dataset_in(fresh)
    pictures = sum(work.size(dataset, chunk) for chunk in work.chunks(dataset))
    monkeypatch.setattr(resident, "usable_memory", lambda: 4 * pictures * 64 * 64 * 3)
    monkeypatch.setattr(machine, "usable_cores", lambda: 16)
    resident.free_memory()  # Of the models of tests before.
    monkeypatch.setattr(gc, "collect", lambda *_: pytest.fail("stops all threads"))
    decoded = []

    def decode(image: bytes, out: Pixels) -> None:
        decoded.append(len(image))
        decode_into(image, out)

    monkeypatch.setattr("pipeline.models.predict.decode_into", decode)
    step, after_model = RunModels(work), []
    for order in range(3):
        (done,) = step.process(Block(order, 0))
        assert isinstance(done, BlockDone), done
        after_model.append(len(decoded))
    step.teardown()
    assert after_model[0] > 0
    assert after_model == after_model[:1] * 3


@pytest.fixture
def in_chunks(copied: Path, monkeypatch: pytest.MonkeyPatch) -> PlannedAttack:
    """An attack in chunks of two foregrounds, of which two are under way at a time."""
    monkeypatch.setattr("pipeline.analyses.attack.results._CHUNK", 2)
    monkeypatch.setitem(predict.IN_FLIGHT, "cpu", 1)
    return PlannedAttack(plan(copied, FIRST), imagenet9(), 9, 9)


def test_a_chunk_of_an_attack_is_fetched_once_the_next_is_launched(
    in_chunks: PlannedAttack, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, launch = list[tuple[str, int]](), arrays.try_all

    def launched(*arguments: Any) -> Callable[[], Any]:
        fetch, number = launch(*arguments), len([e for e in events if e[0] == "launch"])
        events.append(("launch", number))

        def fetched() -> Any:
            events.append(("fetch", number))
            return fetch()

        return fetched

    monkeypatch.setattr(arrays, "try_all", launched)
    (done,) = RunModels(in_chunks).process(Block(0, 0))
    assert isinstance(done, BlockDone), done
    chunks = len(done.chunks)
    assert chunks > 2
    pairs = [(("launch", n + 1), ("fetch", n)) for n in range(chunks - 1)]
    assert events == [("launch", 0), *sum(pairs, ()), ("fetch", chunks - 1)]


def test_a_chunk_of_an_attack_is_kept_if_the_next_one_fails(
    in_chunks: PlannedAttack, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch, launched = arrays.try_all, itertools.count(1)

    def fail_later(*arguments: Any) -> Callable[[], Any]:
        if next(launched) == 2:
            raise ModelError("it fails")
        return launch(*arguments)

    monkeypatch.setattr(arrays, "try_all", fail_later)
    (failed,) = RunModels(in_chunks).process(Block(0, 0))
    assert isinstance(failed, FailedModel)
    assert len(list(copied.glob("results/*/attack/*/*.parquet"))) == 1


def test_a_module_that_users_hold_is_left_to_them(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "held.py").write_text(
        "import tiny_models\nnetwork = tiny_models.first()\ndef model(): return network\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    evaluation = plan(copied, "python:held:model")
    for work in (
        PlannedEvaluation(evaluation, imagenet9()),
        PlannedSaliency(evaluation, imagenet9(), num_maps=0),
    ):
        (done,) = RunModels(work).process(Block(0, 0))
        assert isinstance(done, BlockDone), done


def test_predictions_say_what_was_run_on_which_pictures(sharded: Path) -> None:
    evaluation, model, dataset = (
        plan(sharded, FIRST),
        load_model(FIRST),
        dataset_in(sharded),
    )
    ours, accepting = (
        dataclasses.replace(evaluation, **how).describe(dataset, model)
        for how in ({}, {"blocks": 3, "accept_new_weights": True, "allow_overlap": True})
    )
    # How a job runs decides no prediction.
    of_run, of_other = (prediction_fingerprints(dataset, run, 1) for run in (ours, accepting))
    assert of_run == of_other
    assert PredictShards(dataset, ours).is_done(1)
    rows = read_table(evaluation.store, PredictShards(dataset, ours).path(1)).to_pylist()
    mixed = {row["key"]: row["bg_key"] for row in rows if row["variant"] == "mixed_rand"}
    samples = dataset.samples("val", 1, VariantName("mixed_rand"))
    assert mixed == {sample.key: sample.fields["bg_key"] for sample in samples}
    native = dataclasses.replace(evaluation, predict=PredictConfig(eval_input="native"))
    assert pick(RunSettings, ours.evaluation) == evaluation.settings
    assert (ours.evaluation.input_size, ours.weights_sha256) == (64, model.weights_sha256)
    size = native.describe(dataset, model).evaluation.input_size
    assert size == model.preprocessing.input_size
    by_shard = [evaluation.rows(dataset, shard) for shard in dataset.shards("val")]
    assert [row for rows in by_shard for row in rows] == evaluation.rows(dataset)


def test_progress_counts_the_tested_pictures(copied: Path) -> None:
    evaluation, dataset = plan(copied, FIRST, holdout=0.5), dataset_in(copied)
    for work in (
        PlannedEvaluation(evaluation, imagenet9()),
        PlannedSaliency(evaluation, imagenet9(), num_maps=0),
    ):
        FindDone(work).process(Block(0, 0))
        RunModels(work).process(Block(0, 0))
        done, total = evaluation.progress.count()[work.stage]
        assert done == sum(work.size(dataset, unit) for unit in work.chunks(dataset))
        assert total in (0, done)


def test_a_killed_evaluation_keeps_the_batches_that_it_has_done(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = dataclasses.replace(plan(copied, FIRST), predict=PredictConfig(batch_size=2))
    dataset, work = Dataset.open(evaluation.store), PlannedEvaluation(evaluation, imagenet9())
    of_model = PredictShards(dataset, evaluation.describe(dataset, load_model(FIRST)))
    path, original = copied / of_model.path(1), Predictor.logits
    path.unlink()
    RunModels(work).process(Block(0, 0))
    quiet = path.read_bytes()
    path.unlink()
    images = len(evaluation.rows(dataset, 1))
    killed_at, shown = 3 * images + 2, 0

    def logits(self: Predictor, *arguments: Any) -> Iterator[Any]:
        nonlocal shown
        for batch in original(self, *arguments):
            yield batch
            shown += len(batch[0].rows)
            if shown >= killed_at:
                raise OSError("killed")

    monkeypatch.setattr(Predictor, "logits", logits)
    monkeypatch.setattr(predict_shards, "CHECKPOINT_SECONDS", -1.0)
    with pytest.raises(OSError, match="killed"):
        RunModels(work).process(Block(0, 0))
    assert path.exists()
    assert not of_model.is_done(1)
    done, shown, killed_at = shown, 0, 10**9
    RunModels(work).process(Block(0, 0))
    # Up to three batches may be lost, because their tables were not complete yet.
    assert shown - 3 * 2 <= len(dataset.picture_variants) * images - done < shown + 1
    assert path.read_bytes() == quiet


def test_another_variant_costs_only_its_own_pictures(small_sample: Path, tmp_path: Path) -> None:
    """Compares the predictions byte by byte with those of a dataset made at once."""
    grown, fresh = tmp_path / "grown", tmp_path / "fresh"
    command = ("run", "--input", small_sample, *QUICK, *SHARDS, *TINY_MODEL, *ONE, "--output")
    run_here(*command, grown, "--variants", "original,mixed_same")
    three = ("--variants", "original,only_fg,mixed_same", "--overwrite", "config")
    said = run_here(*command, grown, *three).out
    assert re.search(r"(?s)val: \d+ images, (1\d) accepted.* \1 pictures predicted", said)
    run_here(*command, fresh, *three)
    files = [sorted(output.glob("results/*/predictions/*")) for output in (grown, fresh)]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    assert len(files[0]) > 1
    assert table_of(grown, "summary") == table_of(fresh, "summary")


def test_a_model_without_all_units_is_not_summed_up(sharded: Path, tmp_path: Path) -> None:
    dataset = dataset_in(sharded)
    store = Store(str(shutil.copytree(sharded, tmp_path / "out")))
    evaluation = dataclasses.replace(plan(sharded, FIRST, SECOND, blocks=2), store=store)
    work = PlannedEvaluation(evaluation, imagenet9())
    run = evaluation.describe(dataset, load_model(FIRST))
    units = (*work.chunks(dataset),)
    halves = [BlockDone(0, run, units[::2]), BlockDone(0, run, units[1::2])]
    assert SummarizeModel(work).process((0, reversed(halves))) == [FIRST, FIRST]
    for parts in (halves[1:], [*halves, halves[0]]):
        with pytest.raises(JobError, match=f"{FIRST}: evaluate of .* Run the same command"):
            SummarizeModel(work).process((0, parts))
    another = dataclasses.replace(halves[1], run=msgspec.structs.replace(run, model=SECOND))
    with pytest.raises(JobError, match=f"{FIRST} has changed while it was run"):
        SummarizeModel(work).process((0, [halves[0], another]))
    # This entry names the same model, so its failure is dropped once the model succeeds.
    failed = FailedModel(1, "a=older", FIRST, "no")
    assert SummarizeModel(work).process((1, [failed, halves[0]])) == [failed]

    def finish(*results: str | FailedModel) -> list[str]:
        assert FinishModels(work).process(dataset.manifest.fingerprint, results) == [
            dataset.manifest.fingerprint
        ]
        failures = read_failures(store, dataset.manifest.fingerprint, "evaluate")[0]
        return [failure.entry for failure in failures]

    assert finish(failed) == ["a=older"]
    assert finish(SECOND, SECOND) == ["a=older"]
    assert finish(FIRST, FIRST) == []


def test_groups_follow_from_the_work_unless_they_are_given(
    sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, two = dataset_in(sharded), plan(sharded, FIRST, SECOND)
    works = [
        PlannedEvaluation(dataclasses.replace(two, blocks=groups), imagenet9())
        for groups in (None, 1, 5)
    ]
    units = works[0].chunks(dataset)
    pictures = sum(works[0].size(dataset, unit) for unit in units)
    assert len(units) > 2
    numbers = []
    for size in (1, pictures // 2, pictures, 2 * pictures):
        monkeypatch.setattr("pipeline.evaluate.planned._PICTURES_OF_BLOCK", size)
        numbers.append([work.blocks(dataset) for work in works])
        for work in works:
            step, blocks = MakeBlocks(work), list(MakeBlocks(work).process(""))
            assert len(blocks) == 2 * work.blocks(dataset)
            for order in (0, 1):
                parts = [step.chunks_of(block) for block in blocks if block.order == order]
                assert sorted(chunk for part in parts for chunk in part) == list(units)
                assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert numbers == [[len(units), 1, 5], [2, 1, 5], [1, 1, 5], [1, 1, 5]]
    # An early stop learns from the chunks before, so that it has one block.
    attack = PlannedAttack(plan(sharded, FIRST, blocks=None), imagenet9(), 9, 9)
    monkeypatch.setattr("pipeline.evaluate.planned._PICTURES_OF_BLOCK", 1)
    assert attack.blocks(dataset) == len(attack.chunks(dataset))
    assert dataclasses.replace(attack, early_stop=True).blocks(dataset) == 1


def test_a_job_on_this_machine_has_one_group(
    sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def note(*arguments: Any) -> dict[str, PlannedAnalysis]:
        seen.append(analyses_from_flags(*arguments)["evaluate"].evaluation.blocks)
        raise UsageError("seen")

    monkeypatch.setattr("pipeline.commands.run.analyses_from_flags", note)
    for flags in ((), ("--gpus", "3"), ("--direct_running_mode=multi_processing",)):
        refusal("evaluate", "--dataset", sharded, "--models", FIRST, *flags)
    assert seen == [1, 3, 1]


def test_the_thread_that_launches_asks_nothing_of_storage(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = PlannedEvaluation(plan(fresh, FIRST), imagenet9())
    chunks = len(work.chunks(dataset_in(fresh)))
    assert chunks > 2
    events: list[tuple[str, int]] = []

    def note(event: str) -> None:
        events.append((event, threading.get_ident()))

    def launch(*arguments: Any) -> Fetched:
        note("launch")
        return launch_batch(*arguments)

    launch_batch = Predictor._launch
    monkeypatch.setattr(Predictor, "_launch", launch)
    # Notes of progress are due at each batch.
    monkeypatch.setattr(progress, "_NOTE_SECONDS", 0.0)
    with slow_storage(0.001, lambda: note("ask")):
        RunModels(work).process(Block(0, 0))
    first, *_, last = [at for at, (event, _) in enumerate(events) if event == "launch"]
    launching = threading.get_ident()
    between = events[first:last]
    assert ("ask", launching) not in between
    # Those of the chunks but the first two, which are read ahead, and of those that are written.
    assert sum(event == "ask" for event, _ in between) > 4 * chunks
