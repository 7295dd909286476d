"""Tests how models run on shards: they load in turn, and predictions are made only once."""

import dataclasses
import gc
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
import timm
import torch
from runs import (
    ONE,
    QUICK,
    SHARDS,
    TINY_MODEL,
    dataset_in,
    refusal,
    run_here,
    run_in9,
    stamps,
    table_of,
)
from slow_storage import slow_storage

from pipeline.analyses.attack import arrays
from pipeline.analyses.attack.stage import PlannedAttack
from pipeline.analyses.evaluation.stage import PlannedEvaluation
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
from pipeline.evaluate.resident import in_memory, on_device
from pipeline.evaluate.results import FailedModel, RunSettings, pick, read_failures
from pipeline.models import predict
from pipeline.models.identity import PredictConfig
from pipeline.models.predict import Fetched, Predictor, device_of
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


@pytest.fixture(scope="module")
def made(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small pictures in some shards, evaluated by FIRST. Tests must not change them."""
    output = tmp_path_factory.mktemp("made") / "out"
    run_in9("run", "--input", small_sample, "--output", output, *QUICK, *SHARDS, *TINY_MODEL, *ONE)
    return output


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """A copy of `made` that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "out"))


@pytest.fixture
def fresh(copied: Path) -> Path:
    """A copy of `made` without results."""
    shutil.rmtree(copied / "results")
    return copied


def plan(output: Path, *models: str, **how: Any) -> Evaluation:
    store = Store(str(output))
    return Evaluation(store, models, "val", PredictConfig(), Progress.for_store(store), **how)


def test_a_worker_with_a_share_of_a_machine_is_told_how_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.evaluate.planned.usable_cores", lambda: 8)
    here, elsewhere = plan(tmp_path, FIRST, blocks=2), plan(tmp_path, FIRST, has_machines=True)
    threads = []
    for told in ("", "3", "64", "0"):
        monkeypatch.setenv("OMP_NUM_THREADS", told)
        assert here.threads == 4
        threads.append(elsewhere.threads)
    assert threads == [8, 3, 8, 1]


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
    # A model that fails after loading is known by its name, and its error is one line.
    shutil.rmtree(fresh / "results")
    monkeypatch.setattr(PredictShards, "run", no_memory)
    (failed,) = RunModels(work).process(Block(2, 0))
    assert failed == FailedModel(2, FIRST, FIRST, "no memory")


def no_memory(*_: object) -> Iterator[Any]:
    raise ModelError("no \n memory")
    yield


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
        MemoryError(),
        Exception("[ONNXRuntimeError] : 1 : FAIL : CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_a_lack_of_memory_anywhere_is_the_models_failure(
    error: Exception, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Iterator[Any]:
        raise error
        yield

    work = PlannedEvaluation(plan(fresh, FIRST), imagenet9())
    monkeypatch.setattr(PredictShards, "run", fail)
    (failed,) = RunModels(work).process(Block(0, 0))
    assert isinstance(failed, FailedModel)
    assert "not enough memory for it" in failed.error


def test_pictures_are_decoded_once_for_ten_models(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests a local job, which is one process, on a machine of 16 cores."""
    entries = []
    for number in range(10):
        torch.manual_seed(number)
        path = tmp_path / f"{number}.pth"
        torch.save(timm.create_model("test_efficientnet", num_classes=9).state_dict(), path)
        entries.append(f"test_efficientnet={path}")
    work = PlannedEvaluation(plan(fresh, *entries), imagenet9())
    dataset = dataset_in(fresh)
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
    for order in range(10):
        (done,) = step.process(Block(order, 0))
        assert isinstance(done, BlockDone), done
        after_model.append(len(decoded))
    step.teardown()
    assert after_model[0] > 0
    assert after_model == after_model[:1] * 10


def test_a_chunk_of_an_attack_is_fetched_once_the_next_is_launched(
    copied: Path, monkeypatch: pytest.MonkeyPatch
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
    monkeypatch.setattr("pipeline.analyses.attack.results._CHUNK", 2)
    monkeypatch.setitem(predict.IN_FLIGHT, "cpu", 1)
    work = PlannedAttack(plan(copied, FIRST), imagenet9(), 9, 9)
    (done,) = RunModels(work).process(Block(0, 0))
    assert isinstance(done, BlockDone), done
    chunks = len(done.chunks)
    assert chunks > 2
    pairs = [(("launch", n + 1), ("fetch", n)) for n in range(chunks - 1)]
    assert events == [("launch", 0), *sum(pairs, ()), ("fetch", chunks - 1)]


def test_a_chunk_of_an_attack_is_kept_if_the_next_one_fails(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch, launched = arrays.try_all, list[int]()

    def fail_later(*arguments: Any) -> Callable[[], Any]:
        launched.append(1)
        if len(launched) == 2:
            raise ModelError("it fails")
        return launch(*arguments)

    monkeypatch.setattr(arrays, "try_all", fail_later)
    monkeypatch.setattr("pipeline.analyses.attack.results._CHUNK", 2)
    monkeypatch.setitem(predict.IN_FLIGHT, "cpu", 1)
    work = PlannedAttack(plan(copied, FIRST), imagenet9(), 9, 9)
    (failed,) = RunModels(work).process(Block(0, 0))
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


def test_one_model_is_on_the_device_while_the_next_is_loaded(made: Path) -> None:
    evaluation, order = plan(made, FIRST), list[str]()
    first_works, second_waits = threading.Event(), threading.Event()

    def run(name: str, loaded: threading.Event, wait: threading.Event) -> None:
        with in_memory(FIRST, evaluation, imagenet9()) as model:
            loaded.set()
            with on_device(model, evaluation):
                order.append(f"{name} begins")
                assert wait.wait(60)
                order.append(f"{name} ends")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(run, "first", first_works, second_waits)
        assert first_works.wait(60)
        while not order:
            time.sleep(0.01)
        # The second model loads while the first works, and only then lets the first end.
        second = pool.submit(run, "second", second_waits, first_works)
        first.result(60), second.result(60)
    assert order == ["first begins", "first ends", "second begins", "second ends"]


def test_models_that_load_side_by_side_draw_their_own_weights(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests user code that seeds the random generator, which all threads share."""
    (tmp_path / "seeded.py").write_text(
        "import time, torch\n"
        "def model():\n"
        "    torch.manual_seed(7)\n"
        "    time.sleep(0.3)\n"
        "    flat = torch.nn.AdaptiveAvgPool2d(8), torch.nn.Flatten()\n"
        "    return torch.nn.Sequential(*flat, torch.nn.Linear(192, 1000))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    evaluation, entry = plan(made), "python:seeded:model"

    def weights(_: int) -> str:
        with in_memory(entry, evaluation, imagenet9()) as model:
            return model.weights_sha256

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(weights, range(2)))
    assert together == [weights(0)] * 2


def test_predictions_are_of_what_decides_scores_and_of_nothing_else(made: Path) -> None:
    evaluation, model = plan(made, FIRST), load_model(FIRST)
    dataset = Dataset.open(evaluation.store)

    def find(model: Any = model, shard: int = 1, **how: Any) -> tuple[dict[VariantName, str], bool]:
        run = dataclasses.replace(evaluation, **how).describe(dataset, model)
        is_there = PredictShards(dataset, run).is_done(shard)
        return prediction_fingerprints(dataset, run, shard), is_there

    wanted, are_there = find()
    assert are_there
    assert len(set(wanted.values())) == len(wanted) == 8
    same = (
        find(blocks=3, accept_new_weights=True, allow_overlap=True),
        find(predict=PredictConfig(batch_size=8)),
        find(predict=PredictConfig(device="cuda")),
    )
    assert all(result == (wanted, True) for result in same)
    others = [
        *(find(load_model(SECOND)), find(shard=0), find(holdout=0.5)),
        find(predict=PredictConfig(precision="bf16")),
        find(dataclasses.replace(model, weights_sha256="ab" * 32)),
    ]
    for variant in wanted:
        assert len({each[variant] for each in (wanted, *(o for o, _ in others))}) == len(others) + 1
    assert [is_there for _, is_there in others].count(True) == 1


def test_predictions_are_made_once_and_again_the_same(made: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(made, tmp_path / "out"))
    evaluation, model = plan(output, FIRST), load_model(FIRST)
    dataset = Dataset.open(evaluation.store)
    work = PlannedEvaluation(evaluation, imagenet9())
    before = stamps(output)
    (done,) = RunModels(work).process(Block(0, 0))
    assert isinstance(done, BlockDone)
    units = (*work.chunks(dataset),)
    assert done.chunks == units
    # Notes about models go to the work folder only.
    assert stamps(output) == before
    path = PredictShards(dataset, evaluation.describe(dataset, model)).path(1)
    (output / path).unlink()
    assert RunModels(work).process(Block(0, 0)) == [done]
    assert (output / path).read_bytes() == (made / path).read_bytes()
    rows = read_table(evaluation.store, path).to_pylist()
    mixed = {row["key"]: row["bg_key"] for row in rows if row["variant"] == "mixed_rand"}
    samples = dataset.samples("val", 1, VariantName("mixed_rand"))
    assert mixed == {sample.key: sample.fields["bg_key"] for sample in samples}
    native = dataclasses.replace(evaluation, predict=PredictConfig(eval_input="native"))
    ours, theirs = (each.describe(dataset, model) for each in (evaluation, native))
    assert pick(RunSettings, ours.evaluation) == evaluation.settings
    assert (ours.evaluation.input_size, ours.weights_sha256) == (64, model.weights_sha256)
    assert theirs.evaluation.input_size == model.preprocessing.input_size
    by_shard = [evaluation.rows(dataset, shard) for shard in dataset.shards("val")]
    assert [row for rows in by_shard for row in rows] == evaluation.rows(dataset)


@pytest.mark.parametrize("holdout", [0.0, 0.5])
def test_progress_counts_the_tested_pictures(copied: Path, holdout: float) -> None:
    evaluation = plan(copied, FIRST, holdout=holdout)
    works = (
        PlannedEvaluation(evaluation, imagenet9()),
        PlannedSaliency(evaluation, imagenet9(), num_maps=0),
    )
    dataset = Dataset.open(evaluation.store)
    for work in works:
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


def test_another_variant_costs_only_its_own_pictures(
    small_sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Compares the predictions byte by byte with those of a dataset made at once."""
    grown, fresh = tmp_path / "grown", tmp_path / "fresh"
    command = ("run", "--input", small_sample, *QUICK, *SHARDS, *TINY_MODEL, *ONE)
    run_here(*command, "--output", grown, "--variants", "original,mixed_same")
    capsys.readouterr()
    command += ("--variants", "original,only_fg,mixed_same", "--overwrite", "config")
    run_here(*command, "--output", grown)
    (images,) = re.findall(
        r"(?s)val: \d+ images, (\d+) accepted.* \1 pictures predicted", capsys.readouterr().out
    )
    assert int(images) > 9
    run_here(*command, "--output", fresh)
    files = [sorted(output.glob("results/*/predictions/*")) for output in (grown, fresh)]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    assert len(files[0]) > 1
    assert table_of(grown, "summary") == table_of(fresh, "summary")


def test_a_model_without_all_units_is_not_summed_up(made: Path, tmp_path: Path) -> None:
    dataset = dataset_in(made)
    store = Store(str(shutil.copytree(made, tmp_path / "out")))
    evaluation = dataclasses.replace(plan(made, FIRST, SECOND, blocks=2), store=store)
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
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = dataset_in(made)
    works = {
        groups: PlannedEvaluation(plan(made, FIRST, SECOND, blocks=groups), imagenet9())
        for groups in (None, 1, 5)
    }
    units = works[None].chunks(dataset)
    pictures = sum(works[None].size(dataset, unit) for unit in units)
    assert len(units) > 2
    numbers = {}
    for size in (1, pictures // 2, pictures, 2 * pictures):
        monkeypatch.setattr("pipeline.evaluate.planned._PICTURES_OF_BLOCK", size)
        numbers[size] = [work.blocks(dataset) for work in works.values()]
        for work in works.values():
            step, number = MakeBlocks(work), work.blocks(dataset)
            blocks = list(step.process(""))
            assert len(blocks) == 2 * number
            for order in (0, 1):
                parts = [step.chunks_of(block) for block in blocks if block.order == order]
                assert sorted(chunk for part in parts for chunk in part) == list(units)
                assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert list(numbers.values()) == [[len(units), 1, 5], [2, 1, 5], [1, 1, 5], [1, 1, 5]]
    attack = PlannedAttack(plan(made, FIRST, blocks=None), imagenet9(), 9, 9)
    monkeypatch.setattr("pipeline.evaluate.planned._PICTURES_OF_BLOCK", 1)
    assert attack.blocks(dataset) == len(attack.chunks(dataset))
    assert dataclasses.replace(attack, early_stop=True).blocks(dataset) == 1


def test_a_job_on_this_machine_has_one_group(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def note(*arguments: Any) -> dict[str, PlannedAnalysis]:
        works = analyses_from_flags(*arguments)
        seen.append(works["evaluate"].evaluation.blocks)
        raise UsageError("seen")

    monkeypatch.setattr("pipeline.commands.run.analyses_from_flags", note)
    for flags in ((), ("--gpus", "3"), ("--direct_running_mode=multi_processing",)):
        refusal(capsys, "evaluate", "--dataset", made, "--models", FIRST, *flags)
    assert seen == [1, 3, 1]


def test_caches_of_all_processes_take_a_quarter_of_the_memory(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "usable_memory", lambda: 160)
    monkeypatch.setattr(resident, "similar_processes", lambda: 4)
    for pixel_cache, alone, of_several in ((None, 0, 10), (7, 0, 7), (0, 0, 0)):
        evaluation = dataclasses.replace(plan(made, FIRST), pixel_cache=pixel_cache)
        several = dataclasses.replace(evaluation, models=(FIRST, SECOND))
        rooms = [
            resident._pixel_cache(each).allocate((count, 1, 1, 1))
            for each, room in ((evaluation, alone), (several, of_several))
            for count in (room + 1, room)
        ]
        resident.forget_pictures()
        assert [room is not None for room in rooms] == [False, False, False, of_several > 0]


def test_the_thread_that_launches_asks_nothing_of_storage(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = PlannedEvaluation(plan(fresh, FIRST), imagenet9())
    chunks = len(work.chunks(dataset_in(fresh)))
    assert chunks > 2
    events: list[tuple[str, int]] = []

    def note(event: str) -> None:
        events.append((event, threading.get_ident()))

    def launch(predictor: Predictor, pixels: Pixels) -> Fetched:
        note("launch")
        return launch_batch(predictor, pixels)

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


def test_models_of_one_card_do_not_wait_for_those_of_another(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The test pretends that the machine has two GPUs.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    evaluation = dataclasses.replace(plan(made, FIRST), predict=PredictConfig("cuda"))

    def load(group: int) -> None:
        with in_memory(FIRST, evaluation, imagenet9(), group):
            pass

    with ThreadPoolExecutor(2) as pool:
        with (
            in_memory(FIRST, evaluation, imagenet9(), 0),
            in_memory(FIRST, evaluation, imagenet9()),
        ):
            pool.submit(load, 1).result(60)
            third = pool.submit(load, 2)
            time.sleep(0.1)
            assert not third.done()
        third.result(60)


def test_groups_take_the_cards_of_a_machine_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    # The test pretends that the machine has two GPUs.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(device_of("cuda", group)) for group in range(4)] == ["cuda:0", "cuda:1"] * 2
    assert str(device_of("cpu", 3)) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def old_driver() -> None:
        raise RuntimeError("The NVIDIA driver is too old (found version 12040). Please update it")

    monkeypatch.setattr(torch.cuda, "init", old_driver)
    with pytest.raises(ModelError, match=r"no CUDA device .*\(found version 12040\); PyTorch 2"):
        device_of("cuda", 0)
