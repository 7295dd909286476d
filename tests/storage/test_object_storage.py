"""Tests gs:// paths on a real object store, alone and behind a proxy that breaks requests."""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from broken_network import FaultProxy
from gcs import BUCKET, object_store
from runs import QUICK, TINY_MODEL, refusal, run_in9
from soundness import assert_sound

from pipeline.dataset.config import ComposeConfig, SegmentConfig
from pipeline.dataset.manifest import MANIFEST
from pipeline.dataset.records import Staging
from pipeline.errors import JobError, TooLargeError, UsageError
from pipeline.generate.scenes import DrawnScenes, examine_scenes, list_scenes
from pipeline.inputs.layout import find_layout, list_images
from pipeline.runtime.lock import DATASET_LOCK, acquire, is_held, locked, release, this_process
from pipeline.storage.files import absolute, is_below, parent
from pipeline.storage.gcs_files import _blob
from pipeline.storage.interface import read_ahead
from pipeline.storage.store import Store
from transforms.codec import encode_png
from transforms.taxonomy import imagenet9


@pytest.fixture(scope="module")
def proxy(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultProxy]:
    """Proxy that all requests of this process and of its commands pass through.

    The bucket has the small input, and a folder of more objects than one request lists.
    """
    files = tmp_path_factory.mktemp("files")
    shutil.copytree(small_sample, files / "input")
    wnid = next((small_sample / "val").iterdir()).name
    for folder, names in (
        (f"val/{wnid}", [f"i{number}.JPEG" for number in range(1010)]),
        (f"Annotations/val/{wnid}", [f"i{number}.xml" for number in range(910, 1010)]),
    ):
        (files / "many" / folder).mkdir(parents=True)
        for name in names:
            (files / "many" / folder / name).write_bytes(b"x")
    with (
        object_store(files) as server,
        FaultProxy(server) as proxy,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        yield proxy


@pytest.fixture
def store(proxy: FaultProxy, request: pytest.FixtureRequest) -> Store:
    return Store.at(f"gs://{BUCKET}/{request.node.name}/")


INPUT = f"gs://{BUCKET}/input"


def test_the_job_on_a_store_that_fails_now_and_then_equals_the_local_one(
    proxy: FaultProxy, small_sample: Path, tmp_path: Path
) -> None:
    output, local = Store.at(f"gs://{BUCKET}/out"), tmp_path / "out"
    flags = (*QUICK, *TINY_MODEL, "--pictures", "none", "--variants", "original,mixed_rand")
    run_in9("run", "--input", small_sample, "--output", local, *flags)
    command = ("run", "--input", INPUT, "--output", output.root, *flags)
    with proxy.harming(0.08):
        run_in9(*command)
    assert sum(proxy.harmed.values()) > 20
    assert len(proxy.harmed) == 5, proxy.harmed
    assert output.read(MANIFEST) == (local / MANIFEST).read_bytes()
    remaining = [path for path in output.walk(".in9") if path.count("/") > 1 or "lock" in path]
    # What is known of the input and of models is kept here, as on a disk.
    remaining = [path for path in remaining if path.split("/")[1] not in ("checksums", "models")]
    assert remaining == []
    assert "nothing to do" in run_in9(*command).stdout
    assert_sound(output.root)
    page = (local / "report.html").read_bytes()
    assert len(output.read("report.html")) == pytest.approx(len(page), rel=0.01)


def test_files_are_as_local_ones_also_for_who_holds_a_lock(store: Store, tmp_path: Path) -> None:
    here = Store(str(tmp_path / "here"))
    with locked(store, DATASET_LOCK) as held, locked(here, DATASET_LOCK) as held_here:
        for each in (store.below("a"), here.below("a"), held.below("b"), held_here.below("b")):
            do_everything(each)


def do_everything(store: Store) -> None:
    """Calls what a store has, and checks what it leaves."""
    content = os.urandom(3 << 20)
    digest = store.write("a/large", content, 1)
    assert digest.bytes == len(content)
    assert store.read("a/large") == content
    assert store.digest("a/large") == digest.sha256
    spans = [(5, 10), (1 << 20, 100), (20, 0), (len(content) - 3, 3)]
    assert store.read_ranges("a/large", spans) == [content[o : o + n] for o, n in spans]
    with pytest.raises(OSError, match=r"ends? (before|early)"):
        store.read_ranges("a/large", [(len(content) - 3, 4)])
    with store.open("a/large") as file:
        file.seek(-10, os.SEEK_END)
        assert file.read() == content[-10:]
    assert store.read("a/large", len(content)) == content
    with pytest.raises(TooLargeError, match=f"a/large has {len(content)} bytes, more than"):
        store.read("a/large", len(content) - 1)
    assert not store.update("a/large", content)
    assert store.update("a/large", b"other")
    store.move("a/large", "b/c/small")
    store.write("b/last", b"", durable=True)
    assert store.sizes("") == {"b/c/small": 5, "b/last": 0}
    assert list(store.walk("b")) == ["b/c/small", "b/last"]
    assert store.has_folder("b")
    assert store.has_folder("")
    assert store.size("a/large") is None
    assert not store.exists("b")
    assert store.files.folder_names(store.path("b")) == ["c"]
    assert store.files.folder_names(store.path("none")) == []
    with pytest.raises(FileNotFoundError, match="a/large"):
        store.read("a/large")
    with pytest.raises(FileNotFoundError):
        store.move("none", "a")
    store.copy_into(store.below("copy"), [("b/last", "x/last"), ("b/c/small", "small")])
    assert store.below("copy").sizes("") == {"small": 5, "x/last": 0}
    store.delete_tree("b")
    store.delete_tree("none")
    store.delete_all(["copy/small", "copy/none"])
    assert list(store.walk("")) == ["copy/x/last"]


def test_a_folder_that_a_console_has_made_is_one(store: Store) -> None:
    _blob(f"{store.path('made')}/").upload_from_string(b"")
    assert store.has_folder("made")
    store.write("made/a", b"1")
    assert store.has_folder("made")
    assert store.sizes("made") == {"made/a": 1}
    assert not store.has_folder("none")
    assert not Store.at("gs://no-such-bucket").has_folder("made")


def test_scenes_of_a_bucket_are_those_of_a_folder(store: Store, tmp_path: Path) -> None:
    here = Store(str(tmp_path / "scenes"))
    for number in range(4):
        pixels = np.full((40, 50, 3), 60 * number, np.uint8)
        here.write(f"{number % 2}/scene_{number}.png", encode_png(pixels))
    here.write("0/broken.jpg", b"no picture")
    here.copy_into(store.below("scenes"), [(path, path) for path in here.walk("")])
    config, compose = SegmentConfig(image_size=32, resize=32), ComposeConfig()
    tables = []
    for scenes, output in ((here, Store(str(tmp_path / "out"))), (store.below("scenes"), store)):
        summary = list_scenes(scenes.root).summary
        staging = Staging(output, ".in9/staging/x")
        table = examine_scenes(scenes.root, summary, config, staging)
        drawn = DrawnScenes(table, staging, config, compose)
        means = {scene.key: int(drawn.picture(scene).mean()) for scene in drawn.scenes}
        assert means == {f"scene_{number}": 60 * number for number in range(4)}
        tables.append((summary, table.record.files, table.statuses))
    assert tables[0] == tables[1]
    here.write("0/scene_0.png", here.read("0/scene_2.png"))
    with pytest.raises(UsageError, match="has changed since"):
        examine_scenes(here.root, tables[0][0], config, Staging(Store(str(tmp_path / "out")), "x"))


def test_what_is_not_finished_never_appears(store: Store) -> None:
    def broken_off(view: Store) -> None:
        with view.create("half") as file:
            file.write(b"x" * (9 << 20))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken_off(store)
    with pytest.raises(RuntimeError), store.together() as view:
        broken_off(view)
    assert store.sizes("") == {}
    with store.together() as view:
        for name in "abc":
            view.write(name, name.encode())
        view.below("d").write("e", b"e")
        assert store.sizes("") == {}
    assert store.sizes("") == {"a": 1, "b": 1, "c": 1, "d/e": 1}


def test_of_many_that_want_a_lock_one_gets_it(proxy: FaultProxy, store: Store) -> None:
    tokens = [f"{number:032x}" for number in range(12)]

    def tries(token: str) -> bool:
        try:
            acquire(store, DATASET_LOCK, token, this_process())
        except JobError:
            return False
        return True

    # The proxy loses answers, too.
    with proxy.harming(0.1), ThreadPoolExecutor(12) as pool:
        got = list(pool.map(tries, tokens))
    assert got.count(True) == 1
    (winner,) = (token for token, has in zip(tokens, got, strict=True) if has)
    acquire(store, DATASET_LOCK, winner, this_process())
    release(store, DATASET_LOCK, tokens[got.index(False)])
    assert is_held(store, DATASET_LOCK, winner)
    with proxy.harming(0.1):
        release(store, DATASET_LOCK, winner)
        for number in range(20):
            with locked(store, DATASET_LOCK) as fenced:
                fenced.write("manifest.json", f"{number}".encode(), durable=True)
    assert not is_held(store, DATASET_LOCK)
    assert store.read("manifest.json") == b"19"


def test_a_listing_takes_a_request_for_a_thousand_objects(proxy: FaultProxy) -> None:
    before = proxy.requests
    layout = find_layout(f"gs://{BUCKET}/many", None, "val")
    images, *_ = list_images(layout, imagenet9())
    assert len(images) == 1010
    assert sum(bool(image.annotation) for image in images) == 100
    assert all(image.md5 for image in images)
    assert all(image.annotation_md5 for image in images if image.annotation)
    assert proxy.requests - before < 30


@pytest.mark.usefixtures("proxy")
def test_an_unreadable_place_is_one_line(tmp_path: Path) -> None:
    for flags, message in (
        (("--input", "gs://no-such-bucket/x", "--output", tmp_path / "o"), "is not a folder that"),
        (("--output", f"{INPUT}/inside", "--input", INPUT), "lies"),
        (("--output", "gs://no-such-bucket/out"), "cannot be written"),
    ):
        assert message in refusal("generate", *flags)


def test_paths() -> None:
    assert absolute("gs://bucket/a//b/../c/") == "gs://bucket/a/c"
    assert absolute("gs://bucket") == absolute("gs://bucket/") == "gs://bucket/"
    assert absolute("gs://bucket//a") == absolute("gs://bucket///./a") == "gs://bucket/a"
    assert parent("gs://bucket/a/b") == "gs://bucket/a"
    assert is_below("gs://b/a/c", "gs://b/a")
    assert not is_below("gs://b/ac", "gs://b/a")
    assert not is_below("gs://b/a", "/b/a")
    with pytest.raises(UsageError, match="is not UTF-8, which names in gs:// must be"):
        absolute("gs://bucket/a\udcff")


def test_reading_ahead_keeps_the_order_and_stops() -> None:
    started = []

    def call(item: int) -> int:
        started.append(item)
        return item * item

    for ahead in (0, 3):
        started.clear()
        assert list(read_ahead(call, range(20), ahead)) == [(i, i * i) for i in range(20)]
        assert sorted(started) == list(range(20))
        started.clear()
        some = read_ahead(call, iter(range(1000)), ahead)
        assert next(some) == (0, 0)
        some.close()
        assert len(started) <= ahead + 1
