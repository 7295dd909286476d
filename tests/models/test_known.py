"""Tests that what is remembered of a model is valid until its source changes."""

import contextlib
import dataclasses
import json
import os
import socket
import threading
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
from pipeline.models.checkpoint import KnownModels, WeightsFolder
from pipeline.models.identity import Origin
from pipeline.models.registry import load_model, source_of, store_model
from pipeline.models.source import LoadedModel
from pipeline.storage.store import Store
from transforms.taxonomy import imagenet9

pytestmark = pytest.mark.usefixtures("no_figures")

ARCHITECTURE = "mobilenetv3_small_050"


def learn(known: KnownModels, entry: str) -> LoadedModel:
    """Loads a model and remembers it."""
    model = load_model(entry, known.weights)
    source, inner = source_of(entry)
    known.store_identity(entry, model.identity, source.origin(inner, model))
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
    store_model(WeightsFolder(Store.at(str(tmp_path / "weights"))), load_model(entry))
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
from pipeline.models.checkpoint import KnownModels
from pipeline.storage.store import Store
from transforms.taxonomy import imagenet9
found = KnownModels(Store(sys.argv[1]), None, imagenet9()).load(sys.argv[2])
print(found and found.name, "torch" in sys.modules)
"""


def test_a_model_of_the_hub_is_known_by_its_commit(
    known: KnownModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checks that offline, the commit is the one that was fetched last."""
    name = "mobilenetv3_small_050.lamb_in1k"
    cached(tmp_path, f"timm/{name}", "a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    learn(known, ARCHITECTURE)
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    asked = run_python(OFFLINE, known.store.root, ARCHITECTURE, **environment)
    assert asked.stdout.split() == [name, "False"]
    (tmp_path / f"hub/models--timm--{name}/refs/main").write_text("b" * 40)
    assert known.load(ARCHITECTURE) is None


class Server:
    """Gives each request one answer; if it is empty, it accepts and stays silent.

    Attributes:
      url: its address.
      asked: number of connections so far.
    """

    def __init__(self, answer: bytes) -> None:
        self._listening, self._answer = socket.create_server(("127.0.0.1", 0)), answer
        self._silent: list[socket.socket] = []
        self.url, self.asked = f"http://127.0.0.1:{self._listening.getsockname()[1]}", 0

    def __enter__(self) -> "Server":
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)  # Else it would listen until the next request.

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self.asked += 1
                if not self._answer:
                    self._silent.append(connection)
                    continue
                with connection:
                    connection.recv(1000)
                    connection.sendall(self._answer)


def test_the_hub_is_asked_where_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = Origin("hub", "org/name")
    head = b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n"
    answer = head + json.dumps({"id": "org/name", "sha": "a" * 40}).encode()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with Server(answer) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        assert origin.stamp() == "a" * 40
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert origin.stamp() is None
    cached(tmp_path, "org/name", "c" * 40)
    assert origin.stamp() == "c" * 40


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
        with Server(answer) as hub:
            assert source.answers(hub.url)
    assert not source.answers(hub.url)  # Nobody listens any more.
    monkeypatch.setattr(source, "HUB_SECONDS", 0.2)
    with Server(b"") as silent:
        assert not source.answers(silent.url)
        # huggingface_hub alone would repeat its questions for half a minute.
        monkeypatch.setattr(constants, "ENDPOINT", silent.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        with pytest.raises(JobError, match="resnet10t could not be fetched"):
            load_model("resnet10t")
        assert silent.asked == 2
        assert not constants.HF_HUB_OFFLINE
        with pytest.raises(ConnectionError):
            source.refuse_without_answer(f"{silent.url}/nothing-like-it.pth")
    found, is_known = [], threading.Event()

    def look_up(*_: object) -> None:
        is_known.wait(60)
        found.append(True)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert not source.answers("http://a-hub.test")
    assert not found
    is_known.set()
