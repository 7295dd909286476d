"""Tests that what is remembered of a model is valid until its source changes."""

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import timm
import torch
from huggingface_hub import constants
from runs import run_python
from safetensors.torch import save_file
from small_models import checkpoint

from pipeline.errors import JobError
from pipeline.models import source
from pipeline.models.identity import KnownModels, Origin, WeightsFolder
from pipeline.models.registry import load_model, source_of, store_model
from pipeline.models.source import LoadedModel
from pipeline.storage.store import Store
from transforms.taxonomy import imagenet9

pytestmark = pytest.mark.usefixtures("no_figures")

ARCHITECTURE = "mobilenetv3_small_050"


def learn(known: KnownModels, entry: str) -> LoadedModel:
    """Loads a model and remembers it."""
    model = load_model(entry, known.weights)
    known.store_identity(entry, model.identity, source_of(entry).origin(entry, model))
    return model


@pytest.fixture
def known(tmp_path: Path) -> KnownModels:
    return KnownModels(Store(str(tmp_path / "dataset")), None, imagenet9())


def test_a_file_is_known_until_it_changes(known: KnownModels, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    entry = checkpoint(path)
    assert known.load(entry) is None
    identity = learn(known, entry).identity
    assert known.load(entry) == identity
    # The meaning of the outputs decides how pictures are normalised.
    swapped = imagenet9().names[::-1]
    other = dataclasses.replace(known, taxonomy=dataclasses.replace(imagenet9(), names=swapped))
    assert other.load(entry) is None
    os.utime(path, (1, 1))
    assert known.load(entry) is None
    learn(known, entry)
    assert known.load(entry) == identity
    path.unlink()
    assert known.load(entry) is None


def test_a_graph_is_known_unless_its_weights_lie_elsewhere(
    known: KnownModels, tmp_path: Path
) -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 9)).eval()
    path = tmp_path / "one.onnx"
    torch.onnx.export(module, (torch.zeros(1, 3, 8, 8),), path, dynamo=False)
    identity = learn(known, f"onnx:{path}").identity
    assert known.load(f"onnx:{path}") == identity
    two = f"onnx:{tmp_path / 'two.onnx'}"
    onnx.save(onnx.load(path), tmp_path / "two.onnx", save_as_external_data=True, size_threshold=0)
    before = learn(known, two).identity
    (weights,) = set(tmp_path.iterdir()) - {path, tmp_path / "two.onnx", Path(known.store.root)}
    weights.write_bytes(bytes(len(weights.read_bytes())))
    assert (known.load(two) or learn(known, two).identity) != before


def test_a_package_is_known_by_its_version(
    known: KnownModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = learn(known, "efficientnet_lite0").identity
    assert known.load("efficientnet_lite0") == identity
    assert known.load("efficientnet_lite1") is None
    monkeypatch.setattr("pipeline.models.identity._version", lambda package: f"{package} 9")
    assert known.load("efficientnet_lite0") is None


def test_code_of_ones_own_is_never_known(known: KnownModels) -> None:
    learn(known, "python:tiny_models:first")
    assert known.load("python:tiny_models:first") is None


def test_weights_of_a_folder_are_known_by_their_file(known: KnownModels, tmp_path: Path) -> None:
    entry = checkpoint(tmp_path / "a.pth", outputs=1000)
    store_model(WeightsFolder.from_path(str(tmp_path / "weights")), load_model(entry))
    (tmp_path / "a.pth").unlink()
    known = dataclasses.replace(known, weights=str(tmp_path / "weights"))
    identity = learn(known, entry).identity
    assert known.load(entry) == identity
    (stored,) = (tmp_path / "weights").glob("*.safetensors")
    os.utime(stored, (1, 1))
    assert known.load(entry) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"no JSON", b'{"entry": "a"}'])
def test_a_damaged_memory_is_none(
    content: bytes, known: KnownModels, caplog: pytest.LogCaptureFixture
) -> None:
    learn(known, "efficientnet_lite0")
    (path,) = Path(known.store.root).rglob("*.json")
    path.write_bytes(content)
    assert known.load("efficientnet_lite0") is None


def cached(home: Path, repository: str, commit: str, outputs: int = 1000) -> None:
    """Stores a model in the hub's cache, as the hub's client lays it out."""
    folder = home / "hub" / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    state = timm.create_model(ARCHITECTURE, num_classes=outputs).state_dict()
    save_file(state, snapshot / "model.safetensors")


OFFLINE = """
import sys
from pipeline.models.identity import KnownModels
from pipeline.storage.store import Store
from transforms.taxonomy import imagenet9
known = KnownModels(Store(sys.argv[1]), None, imagenet9())
if sys.argv[2] == "learn":
    from pipeline.models.registry import load_model, source_of
    model = load_model(sys.argv[3])
    origin = source_of(sys.argv[3]).origin(sys.argv[3], model)
    known.store_identity(sys.argv[3], model.identity, origin)
found = known.load(sys.argv[3])
print(found and found.name, "torch" in sys.modules)
"""


def test_a_model_of_the_hub_is_known_by_its_commit(tmp_path: Path) -> None:
    """Checks that offline, the commit is the one that was fetched last."""
    home = tmp_path / "hf"
    cached(home, "timm/mobilenetv3_small_050.lamb_in1k", "a" * 40)

    def ask(what: str) -> list[str]:
        asked = (OFFLINE, str(tmp_path / "d"), what, ARCHITECTURE)
        return run_python(*asked, HF_HOME=str(home), HF_HUB_OFFLINE="1").stdout.split()

    name = "mobilenetv3_small_050.lamb_in1k"
    assert ask("learn") == [name, "True"]
    assert ask("load") == [name, "False"]
    (home / "hub/models--timm--mobilenetv3_small_050.lamb_in1k/refs/main").write_text("b" * 40)
    assert ask("load") == ["None", "False"]


@contextlib.contextmanager
def server(answer: bytes) -> Iterator[str]:
    """Gives each request one answer; if it is empty, the server accepts and stays silent."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection:
                        connection.recv(1000)
                        connection.sendall(answer)

        if answer:
            threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)  # Else it would listen until the thread's next call.


def test_the_hub_is_asked_where_it_answers(tmp_path: Path) -> None:
    ask = "from pipeline.models.identity import Origin; print(Origin('hub', 'org/name').stamp())"

    def stamp(endpoint: str) -> str:
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path)}
        environment.pop("HF_HUB_OFFLINE", None)
        command = [sys.executable, "-c", ask]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    head = b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n"
    with server(head + json.dumps({"id": "org/name", "sha": "a" * 40}).encode()) as hub:
        assert stamp(hub) == "a" * 40
    assert stamp("http://127.0.0.1:9") == "None"
    cached(tmp_path, "org/name", "c" * 40)
    assert stamp("http://127.0.0.1:9") == "c" * 40


def test_folders_and_missing_files(tmp_path: Path) -> None:
    assert Origin("file", str(tmp_path / "none")).stamp() is None
    assert Origin("folder", str(tmp_path / "none")).stamp() is None
    (tmp_path / "a").write_bytes(b"1")
    of_folder, of_file = Origin("folder", str(tmp_path)), Origin("file", str(tmp_path / "a"))
    before = of_folder.stamp(), of_file.stamp()
    # The file beside a graph says how to normalise pictures.
    (tmp_path / "a.json").write_bytes(b"{}")
    assert None not in before
    assert of_folder.stamp() != before[0]
    assert of_file.stamp() != before[1]


def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer in (b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.0 404 Not Found\r\n\r\n"):
        with server(answer) as url:
            assert source.answers(url)
    assert not source.answers(url)  # Nobody listens any more.
    monkeypatch.setattr(source, "HUB_SECONDS", 0.2)
    with server(b"") as silent:
        assert not source.answers(silent)
        # huggingface_hub alone would repeat its questions for half a minute.
        monkeypatch.setattr(constants, "ENDPOINT", silent)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        started = time.monotonic()
        with pytest.raises(JobError, match="resnet10t could not be fetched"):
            load_model("resnet10t")
        assert time.monotonic() - started < 10
        assert not constants.HF_HUB_OFFLINE
        with pytest.raises(ConnectionError):
            source.refuse_without_answer(f"{silent}/nothing-like-it.pth")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: time.sleep(1))
    started = time.monotonic()
    assert not source.answers("http://a-hub.test")
    assert time.monotonic() - started < 1
