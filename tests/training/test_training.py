"""Tests that training gives the same bytes however it is run, and models for other commands."""

import dataclasses
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from gcs import BUCKET, object_store
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from runs import (
    ONE,
    csv_rows,
    dataset_in,
    hash_again,
    keys,
    manifest_of,
    run_here,
    run_in9,
    run_program,
    start_in9,
    table_of,
    wait_until,
)
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.dataset.folder import Dataset
from pipeline.errors import UsageError
from pipeline.models.checkpoint import read_metadata
from pipeline.models.registry import load_model
from pipeline.storage.store import Store
from pipeline.training import loop
from pipeline.training.batches import (
    TRAIN,
    Augmentation,
    BatchOrder,
    PictureBatches,
    Schedule,
    load_batches,
    permutation,
)
from pipeline.training.network import Learner, build_network
from pipeline.training.train_plan import TrainPlan, choose_splits, find_samples
from transforms.annotations import Annotation, Box, write_annotation
from transforms.codec import decode_image
from transforms.hashing import keyed_hashes, substream
from transforms.taxonomy import imagenet9
from transforms.variants import ORIGINAL, VariantName

CLASSES = {"n01440764": (30, 60, 200), "n02085620": (220, 40, 30)}
"""Wnid to the colour of what is drawn: superclasses fish and dog."""
SIDE = 48
TINY = "test_resnet"
FILES = ["log.csv", "model.safetensors", "state.pth"]
IN9 = imagenet9()


def draw(root: Path, counts: dict[str, int]) -> Path:
    """Draws an input of discs on noise, whose colour tells their class; returns its folder."""
    random = np.random.default_rng(1)
    y, x = np.mgrid[:60, :60]
    annotation = write_annotation(Annotation(60, 60, (Box(12, 12, 48, 48),), None))
    for split, count in counts.items():
        (root / "Annotations" / split).mkdir(parents=True)
        for wnid, colour in CLASSES.items():
            (root / split / wnid).mkdir(parents=True)
            for number in range(count):
                key = f"{wnid}_{split}{number}"
                pixels = random.integers(60, 160, (60, 60, 3)).astype(np.uint8)
                pixels[(x - 30) ** 2 + (y - 30) ** 2 < 18**2] = colour
                Image.fromarray(pixels).save(root / split / wnid / f"{key}.JPEG", quality=95)
                (root / "Annotations" / split / f"{key}.xml").write_text(annotation)
    return root


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset of 24 images to train on and 12 to validate on. Tests must not change it."""
    root = tmp_path_factory.mktemp("drawn")
    source = draw(root / "input", {"train": 12, "val": 6})
    flags = ("--variants", "original,only_bg_t,mixed_rand", "--segmenter", "box", "--image_size")
    more = (SIDE, *keys(resize=54, images_per_shard=8), "--split", "train,val", *ONE)
    run_here("generate", "--input", source, "--output", root / "out", *flags, *more)
    return root / "out"


def train(dataset: Path, output: Path, *flags: object, check: int | None = 0) -> str:
    """Trains a tiny network; returns what the command printed."""
    folders = ("--dataset", dataset, "--output", output, "--arch", TINY)
    done = run_in9("train", *folders, "--batch_size", 8, "--workers", 0, *flags, check=check)
    return done.stdout + done.stderr


def log_of(output: Path) -> list[dict[str, str]]:
    return csv_rows(output / "log.csv")


@pytest.fixture(scope="module")
def trained(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Undisturbed training of eight epochs. Tests must not change it."""
    output = tmp_path_factory.mktemp("trained") / "model"
    train(drawn, output, "--epochs", 8, "--lr", 0.03)
    return output


@given(st.integers(1, 60), st.integers(0, 20), st.integers(1, 25), st.integers(0, 9))
@settings(max_examples=60)
def test_an_epoch_shows_every_image_once(
    images: int, validation: int, batch: int, epoch: int
) -> None:
    hashes = keyed_hashes(0, "order", map(str, range(images)))
    schedule = Schedule(hashes, validation, batch, range(epoch, epoch + 1))
    orders = list(schedule)
    assert len(orders) == schedule.training_batches + schedule.validation_batches
    seen: dict[str, list[int]] = {"train": [], "validate": []}
    sizes = []
    for order in orders:
        assert 0 < len(order.indices) <= batch
        seen[order.phase] += order.indices.tolist()
        if order.phase == TRAIN:
            sizes.append(len(order.indices))
    assert seen["train"] == permutation(hashes, epoch).tolist()
    assert sorted(seen["train"]) == list(range(images))
    assert seen["validate"] == list(range(validation))
    assert max(sizes) - min(sizes) <= 1


def test_orders_of_two_epochs_and_two_seeds_have_nothing_in_common() -> None:
    keys = [str(number) for number in range(400)]
    orders = [
        permutation(keyed_hashes(seed, "order", keys), epoch) for seed in (0, 1) for epoch in (0, 1)
    ]
    for number, first in enumerate(orders):
        for second in orders[number + 1 :]:
            assert abs(np.corrcoef(first, second)[0, 1]) < 0.2


def test_seeds_are_of_image_and_epoch_and_leave_the_generator_alone() -> None:
    hashes = keyed_hashes(0, "augmentation", map(str, range(100)))
    seeds = np.concatenate([substream(hashes, epoch) for epoch in range(5)])
    assert len(set(seeds.tolist())) == 500
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first, other = (Augmentation(16).apply(pixels, int(seed)) for seed in seeds[:2])
    assert torch.rand(1) == expected
    assert torch.equal(Augmentation(16).apply(pixels, int(seeds[0])), first)
    assert not torch.equal(first, other)


def test_without_chances_a_picture_stays_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    # A crop of the whole area of a square can only be the square itself.
    same = Augmentation(40, min_area=1, flip=0, jitter=0).apply(pixels, 0)
    assert (same.permute(1, 2, 0).numpy() == pixels).all()
    flipped = Augmentation(40, min_area=1, flip=1, jitter=0).apply(pixels, 0)
    assert (flipped.permute(1, 2, 0).numpy() == pixels[:, ::-1]).all()
    grey = np.full((40, 40, 3), 100, np.uint8)
    varied = [int(Augmentation(40, jitter=0.1).apply(grey, each)[0, 0, 0]) for each in range(50)]
    # Contrast and saturation do not change a grey picture, so only brightness varies.
    assert 88 <= min(varied) < 95
    assert 105 < max(varied) <= 111


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_pictures_are_those_of_the_dataset_in_every_format(drawn: Path, form: str) -> None:
    stored = dataset_in(drawn)
    config = stored.manifest.config
    config = dataclasses.replace(
        config, compose=dataclasses.replace(config.compose, formats=(form,))
    )
    dataset = Dataset(stored.store, dataclasses.replace(stored.manifest, config=config))
    training, validation = find_samples(dataset, TrainPlan(variant="mixed_rand", eval_split="val"))
    assert validation is not None
    for samples, split in ((training, "train"), (validation, "val")):
        assert len(dataset.shards(split)) > 1
        by_key = {
            sample.key: sample
            for shard in dataset.shards(split)
            for sample in dataset.samples(split, shard, VariantName("mixed_rand"))
        }
        assert samples.keys.tolist() == list(by_key)
        order = np.random.default_rng(0).permutation(len(samples))
        with samples.fetched():
            for index, pixels in zip(order, samples.pixels(order), strict=True):
                sample = by_key[str(samples.keys[index])]
                assert (pixels == decode_image(sample.image)).all()
                assert samples.labels[index] == sample.fields["label"]


class Niceness(PictureBatches):
    """Batches that hold the niceness of the process that loads them."""

    def __init__(self) -> None:
        pass

    def __getitem__(self, order: BatchOrder) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor(os.getpriority(os.PRIO_PROCESS, 0)), torch.tensor(0)


@pytest.mark.filterwarnings("ignore:.*pin_memory")
@pytest.mark.parametrize(("device", "more"), [("cpu", 10), ("cuda", 0)])
def test_loading_gives_way_to_a_network_on_the_cpu(device: str, more: int) -> None:
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    schedule = Schedule(keyed_hashes(0, "order", ["a", "b"]), 0, 1, range(1))
    for niceness, _ in load_batches(Niceness(), schedule, workers=1, device=torch.device(device)):
        assert int(niceness) == min(19, ours + more)
    assert os.getpriority(os.PRIO_PROCESS, 0) == ours


def test_a_batch_is_the_same_in_another_process(drawn: Path) -> None:
    dataset = dataset_in(drawn)
    training, validation = find_samples(dataset, TrainPlan(eval_split="val"))
    assert validation is not None
    pictures = PictureBatches(training, validation, Augmentation(SIDE), seed=3)
    hashes = keyed_hashes(3, "order", training.keys.tolist())
    schedule = Schedule(hashes, len(validation), 8, range(2, 4))
    with training.fetched(), validation.fetched():
        alone = load_batches(pictures, schedule, workers=0, device=torch.device("cpu"))
        elsewhere = load_batches(pictures, schedule, workers=2, device=torch.device("cpu"))
        for one, two in zip(alone, elsewhere, strict=True):
            assert torch.equal(one[0], two[0])
            assert torch.equal(one[1], two[1])
        here, _ = pictures[BatchOrder(TRAIN, 2, np.asarray([5, 1, 7]))]
        assert here.shape == (3, 3, SIDE, SIDE)
        # An image varies alike in another batch, but differently in another epoch.
        assert torch.equal(pictures[BatchOrder(TRAIN, 2, np.asarray([1]))][0][0], here[1])
        assert not torch.equal(pictures[BatchOrder(TRAIN, 3, np.asarray([1]))][0][0], here[1])


def test_it_learns_and_says_so(trained: Path) -> None:
    rows = log_of(trained)
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(1, 9)]
    rates = [0.03, 0.003, 0.0003, 0.00003]
    assert [float(row["lr"]) for row in rows[::2]] == pytest.approx(rates)
    assert [float(row["lr"]) for row in rows[1::2]] == pytest.approx(rates)
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) < 3
    assert float(rows[-1]["accuracy"]) > 0.5
    assert all(float(row["images_per_second"]) > 0 for row in rows)
    assert sorted(path.name for path in trained.iterdir()) == FILES


def stopped(how: signal.Signals, happened: Callable[[], object], *flags: object) -> str:
    """Trains until `happened` is true, then sends a signal; returns what the command printed."""
    running = start_in9("train", *flags)
    wait_until(happened, running)
    os.killpg(running.pid, how)
    out, error = running.communicate(timeout=60)
    if how == signal.SIGKILL:
        assert running.returncode == -how
    else:
        assert error == "in9 train: stopped; run the same command again to go on\n"
    return out


@pytest.mark.parametrize(("how", "workers"), [(signal.SIGKILL, 1), (signal.SIGTERM, 0)])
def test_stopped_and_resumed_it_gives_the_same_bytes_with_any_number_of_workers(
    drawn: Path,
    trained: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    how: signal.Signals,
    workers: int,
) -> None:
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("TMPDIR", str(temporary))
    flags = ("--epochs", 8, "--lr", 0.03)
    args = ("--dataset", drawn, "--output", tmp_path, "--arch", TINY, "--batch_size", 8, *flags)
    printed = stopped(how, (tmp_path / "state.pth").exists, *args, "--workers", workers)
    # The temporary file with the pictures has no name, so no signal can leave it behind.
    assert not list(temporary.glob("in9-*"))
    assert f"{TINY} on 24 images of train, original; validation on 12 of val; cpu, fp32" in printed
    assert "epoch 1 of 8: loss" in printed
    printed = train(drawn, tmp_path, *flags, "--workers", 2)
    done = int(re.findall(r"resuming after epoch (\d) of 8", printed)[0])
    assert 1 <= done < 8
    assert re.findall(r"epoch (\d) of 8: loss", printed) == [str(n) for n in range(done + 1, 9)]
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    one, two = (path / "model.safetensors" for path in (trained, tmp_path))
    assert one.read_bytes() == two.read_bytes()
    same = ("epoch", "lr", "loss", "accuracy", "val_loss", "val_accuracy")
    logs = [[[row[name] for name in same] for row in log_of(path)] for path in (trained, tmp_path)]
    assert logs[0] == logs[1]


def test_a_finished_training_stays_unless_it_is_to_be_overwritten(
    drawn: Path, trained: Path, tmp_path: Path
) -> None:
    """`test_training_seeds` says that the same command has nothing to do."""
    output = Path(shutil.copytree(trained, tmp_path / "model"))
    printed = train(drawn, output, "--epochs", 8, "--lr", 0.02, check=2)
    assert "holds another training (--lr 0.03)" in printed
    printed = train(drawn, output, "--epochs", 1, "--lr", 0.02, "--overwrite")
    assert "epoch 1 of 1" in printed
    assert len(log_of(output)) == 1


def test_evaluation_takes_it_and_agrees(drawn: Path, trained: Path, tmp_path: Path) -> None:
    metadata = read_metadata(str(trained / "model.safetensors"))
    assert metadata is not None
    assert metadata.architecture.startswith(TINY)
    assert metadata.dataset == manifest_of(drawn)["fingerprint"]
    trained_on = (metadata.variant, metadata.split, metadata.epochs, metadata.seed)
    assert trained_on == ("original", "train", 8, 0)
    assert len(metadata.keys) == 24
    assert all("_train" in key for key in metadata.keys)
    copy = Path(shutil.copytree(drawn, tmp_path / "out"))
    entry = f"{metadata.architecture}={trained / 'model.safetensors'}"
    run_here("evaluate", "--dataset", copy, "--models", entry, "--pictures", "none", *ONE)
    (row,) = table_of(copy, "summary", variant="original", label_rule="argmax_then_map")
    assert float(row["accuracy"]) == pytest.approx(float(log_of(trained)[-1]["val_accuracy"]))
    assert row["n"] == "12"


def test_in_object_storage_it_is_the_same(drawn: Path, trained: Path) -> None:
    with object_store():
        here, remote = Store(str(drawn)), Store.at(f"gs://{BUCKET}/out")
        here.copy_into(remote, [(path, path) for path in here.walk("") if ".in9" not in path])
        flags = ("--arch", TINY, "--batch_size", 8, "--epochs", 8, "--lr", 0.03, "--workers", 1)
        args = ("--dataset", remote.root, *flags)
        stopped(
            signal.SIGKILL,
            lambda: any(path.endswith("state.pth") for path in remote.walk("models")),
            *args,
        )
        assert "resuming after epoch" in run_in9("train", *args).stdout
        (model,) = (path for path in remote.walk("models") if path.endswith(".safetensors"))
        assert remote.read(model) == (trained / "model.safetensors").read_bytes()


def test_weights_of_a_package_are_what_it_begins_with() -> None:
    network, again, other = (
        build_network("efficientnet_lite0", IN9, seed=seed, pretrained=True) for seed in (0, 0, 1)
    )
    known = load_model("efficientnet_lite0")
    theirs, ours = known.module.state_dict(), network.module.state_dict()
    assert network.pretrained == f"efficientnet_lite0 {known.weights_sha256}"
    assert network.architecture.startswith("tf_efficientnet_lite0")
    kept = [name for name in ours if not name.startswith("classifier")]
    assert all(torch.equal(ours[name], theirs[name]) for name in kept)
    head = ours["classifier.weight"]
    assert head.shape[0] == 9
    assert all(parameter.requires_grad for parameter in network.module.parameters())
    assert torch.equal(head, again.module.state_dict()["classifier.weight"])
    assert not torch.equal(head, other.module.state_dict()["classifier.weight"])


def change_column(dataset: Path, path: str, name: str, values: list[Any]) -> None:
    """Replaces a column of a dataset's Parquet file, as if a job had written it."""
    table = pq.read_table(dataset / path)
    column = pa.array(values, table.schema.field(name).type)
    changed = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(changed, dataset / path)
    hash_again(dataset, path)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_named(drawn: Path, tmp_path: Path, workers: int) -> None:
    copy = Path(shutil.copytree(drawn, tmp_path / "out"))
    (file,) = dataset_in(copy).shard_files("train", 1, (ORIGINAL,))
    images = pq.read_table(copy / file.path)["image"].to_pylist()
    keys = pq.read_table(copy / file.path)["key"].to_pylist()
    broken = [{**images[0], "bytes": bytes(200)}, *images[1:]]
    change_column(copy, file.path, "image", broken)
    printed = train(copy, tmp_path / "model", "--epochs", 1, "--workers", workers, check=1)
    _, line = printed.splitlines()
    assert f"a stored picture of {keys[0]} is broken" in line
    assert not (tmp_path / "model" / "state.pth").exists()


def test_pictures_that_find_no_room_are_one_line(drawn: Path, tmp_path: Path) -> None:
    places = ("--dataset", str(drawn), "--output", str(tmp_path / "model"))
    command = shlex.join([sys.executable, "-m", "pipeline", "train", "--arch", TINY, *places])
    limited = ("bash", "-c", f"ulimit -f 8; exec {command}")
    done = run_program(*limited, code=1, TMPDIR=str(tmp_path))
    (line,) = done.stderr.splitlines()
    assert f"the pictures to train on do not fit into {tmp_path}" in line
    assert not [path for path in (tmp_path / "model").rglob("*") if path.is_file()]


def test_a_shard_without_its_picture_is_one_line(drawn: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(drawn, tmp_path / "out"))
    (file,) = dataset_in(copy).shard_files("train", 0, (ORIGINAL,))
    key, *others = pq.read_table(copy / file.path)["key"].to_pylist()
    change_column(copy, file.path, "key", ["other", *others])
    printed = train(copy, tmp_path / "model", "--epochs", 1, check=1)
    assert f"the shards of train have no picture of {key}; see: in9 verify" in printed


def test_splits_to_train_on_are_chosen_or_asked_for(one_worker: Path, drawn: Path) -> None:
    with pytest.raises(UsageError, match="leave --eval_split val out"):
        choose_splits(dataset_in(drawn), None, "val", 0.5)
    dataset = dataset_in(one_worker)
    with pytest.raises(UsageError, match=r"in9 generate --split train,val.*--holdout 0\.5"):
        choose_splits(dataset, None, None, 0)
    assert choose_splits(dataset, None, None, 0.5) == ("val", None)
    assert choose_splits(dataset, "val", None, 0) == ("val", None)


def test_a_loss_that_runs_away_fails_and_keeps_what_was_done(drawn: Path, tmp_path: Path) -> None:
    printed = train(drawn, tmp_path, "--epochs", 3, "--lr", 1e30, check=1)
    assert re.search(r"the loss of \d+ of 24 pictures is no longer finite in epoch", printed)
    assert "Try a smaller --lr than 1e+30" in printed
    # The only step's loss is finite, and its weights are not.
    once = ("--epochs", 1, "--batch_size", 24, "--lr", 1e30, "--weight_decay", 1e38)
    printed = train(drawn, tmp_path / "once", *once, check=1)
    assert "the weights are no longer finite in epoch 1" in printed
    assert not (tmp_path / "once" / "model.safetensors").exists()


def test_a_training_restores_torchs_settings(drawn: Path, tmp_path: Path) -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, torch.get_num_threads()
    plan = TrainPlan(
        arch=TINY, epochs=1, batch_size=8, precision="bf16", workers=0, train_split="val"
    )
    try:
        # Both values, because one of them is what the training itself sets.
        for allowed in (True, False):
            matmul.allow_tf32 = cudnn.allow_tf32 = allowed
            loop.train(dataset_in(drawn), plan, Store(str(tmp_path / str(allowed))))
            assert (matmul.allow_tf32, cudnn.allow_tf32) == (allowed, allowed)
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before[:2]
    assert (cudnn.benchmark, torch.get_num_threads()) == before[2:]


class Dispatched(TorchDispatchMode):
    """Notes the operations that torch dispatches."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
        self.names.add(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_never_waits_for_the_device(precision: str) -> None:
    plan = TrainPlan(arch=TINY, epochs=1, batch_size=4, precision=precision, device="cpu")
    learner = Learner(build_network(TINY, imagenet9(), seed=0), plan, 32)
    learner.begin_training(0.1)
    with Dispatched() as step:
        sums = learner.step(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.arange(4))
    # The first makes a tensor of a number of the host, the second a number of a tensor.
    assert not step.names & {"aten::lift_fresh", "aten::_local_scalar_dense"}
    assert int(sums[2]) == 4
