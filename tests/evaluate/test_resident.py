"""Tests models in memory: how many there are, on which device, and what they keep."""

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from pipeline.errors import ModelError
from pipeline.evaluate import resident
from pipeline.evaluate.planned import Evaluation
from pipeline.evaluate.resident import in_memory, on_device
from pipeline.models.identity import PredictConfig
from pipeline.models.predict import device_of
from pipeline.runtime.progress import Progress
from pipeline.storage.store import Store
from transforms.taxonomy import imagenet9

FIRST = "python:tiny_models:first"


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    store = Store(str(tmp_path))
    return Evaluation(store, (FIRST,), "val", PredictConfig(), Progress.for_store(store))


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretends that the machine has two GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_a_worker_with_a_share_of_a_machine_is_told_how_much(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.evaluate.planned.usable_cores", lambda: 8)
    here = dataclasses.replace(evaluation, blocks=2)
    elsewhere, threads = dataclasses.replace(evaluation, has_machines=True), []
    for told in ("", "3", "64", "0"):
        monkeypatch.setenv("OMP_NUM_THREADS", told)
        assert here.threads == 4
        threads.append(elsewhere.threads)
    assert threads == [8, 3, 8, 1]


def test_one_model_is_on_the_device_while_the_next_is_loaded(evaluation: Evaluation) -> None:
    order, begun = list[str](), threading.Event()
    first_works, second_waits = threading.Event(), threading.Event()

    def run(name: str, loaded: threading.Event, wait: threading.Event) -> None:
        with in_memory(FIRST, evaluation, imagenet9()) as model:
            loaded.set()
            with on_device(model, evaluation):
                order.append(f"{name} begins")
                begun.set()
                assert wait.wait(60)
                order.append(f"{name} ends")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(run, "first", first_works, second_waits)
        assert begun.wait(60)
        # The second model loads while the first works, and only then lets the first end.
        second = pool.submit(run, "second", second_waits, first_works)
        first.result(60), second.result(60)
    assert order == ["first begins", "first ends", "second begins", "second ends"]


def test_models_that_load_side_by_side_draw_their_own_weights(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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

    def weights(_: int) -> str:
        with in_memory("python:seeded:model", evaluation, imagenet9()) as model:
            return model.weights_sha256

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(weights, range(2)))
    assert together == [weights(0)] * 2


def test_caches_of_all_processes_take_a_quarter_of_the_memory(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "usable_memory", lambda: 160)
    monkeypatch.setattr(resident, "similar_processes", lambda: 4)
    for pixel_cache, alone, of_several in ((None, 0, 10), (7, 0, 7), (0, 0, 0)):
        one = dataclasses.replace(evaluation, pixel_cache=pixel_cache)
        several = dataclasses.replace(one, models=(FIRST, "python:tiny_models:second"))
        rooms = [
            resident._pixel_cache(each).allocate((count, 1, 1, 1))
            for each, room in ((one, alone), (several, of_several))
            for count in (room + 1, room)
        ]
        resident.forget_pictures()
        assert [room is not None for room in rooms] == [False, False, False, of_several > 0]


@pytest.mark.usefixtures("two_cards")
def test_models_of_one_card_do_not_wait_for_those_of_another(evaluation: Evaluation) -> None:
    of_cards = dataclasses.replace(evaluation, predict=PredictConfig("cuda"))

    def load(group: int) -> None:
        with in_memory(FIRST, of_cards, imagenet9(), group):
            pass

    with ThreadPoolExecutor(2) as pool:
        with in_memory(FIRST, of_cards, imagenet9(), 0), in_memory(FIRST, of_cards, imagenet9()):
            pool.submit(load, 1).result(60)
            third = pool.submit(load, 2)
            time.sleep(0.1)
            assert not third.done()
        third.result(60)


@pytest.mark.usefixtures("two_cards")
def test_groups_take_the_cards_of_a_machine_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [str(device_of("cuda", group)) for group in range(4)] == ["cuda:0", "cuda:1"] * 2
    assert str(device_of("cpu", 3)) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def old_driver() -> None:
        raise RuntimeError("The NVIDIA driver is too old (found version 12040). Please update it")

    monkeypatch.setattr(torch.cuda, "init", old_driver)
    with pytest.raises(ModelError, match=r"no CUDA device .*\(found version 12040\); PyTorch 2"):
        device_of("cuda", 0)
