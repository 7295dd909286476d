"""Measures what the stages that run models cost beyond the network, on any device.

    python benchmarks/gpu.py [--device auto] [--stages evaluate,attack,saliency,train]
    python benchmarks/gpu.py --quick    # a minute, on any device, to see that everything runs

The result is the pictures per second of each stage over those of a bare loop: the same network,
precision and batch size, on random pictures that are already normalised and on the device. Both
take turns in one process, so that conditions are the same, and the median of the turns' ratios
counts. Training takes turns of a second, whose sums count; its loader's processes stop during those
of the bare loop. Peak memory is that of the stage's process or, on a GPU, of torch's tensors there,
and includes the bare loop's; with --quick, all stages share a process.

It needs this project's checkout and the packages that run models, but no Beam, none of Google's
libraries and no network. The pictures are the embedded sample's. A model whose weights no package
ships gets random ones. No ratio is printed if a turn, or all of a training, takes less than a
second, because set-up would dominate it.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
import io
import itertools
import multiprocessing
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import timm
import torch
from drawn import draw_dataset
from measure import machine, peak_memory, row

from pipeline.analyses.attack.results import AttackPlan, open_grid
from pipeline.analyses.attack.stage import AttackChunks
from pipeline.analyses.saliency.stage import BATCH_DIVISOR, SaliencyPlan, SaliencyShards
from pipeline.commands.train import default_workers
from pipeline.dataset.folder import Dataset
from pipeline.display.table import aligned
from pipeline.evaluate.evaluation import AnalysisOfModel, Evaluation
from pipeline.evaluate.predict_shards import PredictShards
from pipeline.evaluate.resident import in_memory, on_device
from pipeline.models.identity import CPU_BATCH, GPU_BATCH, PredictConfig
from pipeline.models.library_names import EFFICIENTNETS, Packaged
from pipeline.runtime.flag_types import WordListParser, comma_separated, grid
from pipeline.runtime.machine import keep_freed_memory
from pipeline.runtime.progress import Progress
from pipeline.storage.store import Store
from pipeline.training.batches import Batch, training_batches
from pipeline.training.loop import run_epoch, torch_settings
from pipeline.training.network import MOMENTUM, Learner, build_network
from pipeline.training.train_plan import TrainPlan, find_samples

PAPER = 4050

TURNS = {"cpu": 9, "cuda": 3}
"""Number of turns of a stage. A CPU has more, because they are short and other programs disturb."""

TURN_SECONDS = 1.0
"""Length of a turn of a training, at least."""

LEAST_SECONDS = 1.0
"""Shortest time of a `Turn` whose ratio is meaningful."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """Times of a stage and of the bare loop right after it; of a training, the sums of all turns.

    Attributes:
      pictures: number of pictures that each of them processed.
      seconds, bare: seconds that the stage and the bare loop took.
    """

    pictures: int
    seconds: float
    bare: float


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Medians over the turns of a stage.

    Attributes:
      rate, bare: pictures per second of the stage and of the bare loop.
      ratio: of the two rates; None if there were too few pictures to tell.
      peak: peak memory in MB.
    """

    rate: float
    bare: float
    ratio: float | None
    peak: float


@dataclasses.dataclass(frozen=True)
class Setting:
    """The settings of a measurement.

    Attributes:
      dataset: folder of the drawn dataset.
      model: entry of `--models`.
      arch: architecture of the model.
      predict: settings with which the model is run.
      grid: numbers of foregrounds and backgrounds of the attack.
      turns: number of turns of the other stages.
      epochs: number of epochs of the training; the first does not count.
    """

    dataset: Path
    model: str
    arch: str
    predict: PredictConfig
    grid: tuple[int | None, int | None]
    turns: int
    epochs: int

    @property
    def batch_size(self) -> int:
        """Number of pictures in a batch of the evaluation."""
        assert self.predict.batch_size is not None  # `main` chooses it.
        return self.predict.batch_size

    @property
    def evaluation(self) -> Evaluation:
        """The evaluation that the stages are part of."""
        store = Store(str(self.dataset))
        return Evaluation(store, (self.model,), "val", self.predict, Progress.for_store(store))


def evaluate(setting: Setting) -> list[Turn]:
    """Times reading, decoding, forward passes, scoring and tables, against forward passes."""
    with Loaded(setting) as loaded:
        predicting = PredictShards(loaded.dataset, loaded.metadata)
        shards = loaded.dataset.shards("val")
        pictures = sum(loaded.dataset.pictures("val", shard) for shard in shards)
        work = loaded.work_on(predicting, shards)
        return take_turns(setting.turns, pictures, work, loaded.forward)


def attack(setting: Setting) -> list[Turn]:
    """Times decoding fore- and background, composing and forward passes, against forward passes."""
    with Loaded(setting) as loaded:
        attacking = AttackPlan(loaded.evaluation, *setting.grid)
        attack_grid = open_grid(loaded.dataset, attacking)
        chunks = AttackChunks(loaded.dataset, attacking, attack_grid, loaded.metadata)
        pairs = len(attack_grid.foregrounds) * len(attack_grid.backgrounds)
        work = loaded.work_on(chunks, attack_grid.chunks)
        return take_turns(setting.turns, pairs, work, loaded.forward)


def saliency(setting: Setting) -> list[Turn]:
    """Times decoding, gradients and their share on a mask, against forward and backward passes."""
    with Loaded(setting) as loaded:
        plan = SaliencyPlan(loaded.evaluation, num_maps=0)
        explaining = SaliencyShards(loaded.dataset, plan, loaded.metadata, {})
        size = max(1, setting.batch_size // BATCH_DIVISOR)
        pictures = len(loaded.evaluation.rows(loaded.dataset))
        work = loaded.work_on(explaining, loaded.dataset.shards("val"))
        bare = functools.partial(loaded.backward, size)
        return take_turns(setting.turns, pictures, work, bare)


def training(setting: Setting) -> list[Turn]:
    """Times reading, decoding, augmenting and steps, against steps on a batch in memory."""
    predict = setting.predict
    dataset = Dataset.open(Store(str(setting.dataset)))
    plan = TrainPlan(
        arch=setting.arch,
        epochs=setting.epochs,
        batch_size=max(1, setting.batch_size // 2),
        lr=0.01,
        train_split="val",
        precision=predict.precision,
        device=predict.device,
        workers=default_workers(predict.device),
    )
    samples, _ = find_samples(dataset, plan)
    network = build_network(plan.arch, dataset.taxonomy, seed=plan.seed)
    side = dataset.manifest.config.segment.image_size
    bare = BareSteps(plan, copy.deepcopy(network.module), side)
    learner = Learner(network, plan, side)
    with (
        torch_settings(plan),
        # On a terminal there would be a progress bar, which needs another package.
        contextlib.redirect_stderr(io.StringIO()),
        training_batches(plan, learner, samples, None, range(plan.epochs)) as (schedule, batches),
    ):
        alternating = bare.between(batches)
        for epoch in schedule.epochs:
            run_epoch(epoch, plan, learner, schedule, alternating)
            bare.catch_up()
            if epoch == 0:
                # Libraries initialise in it, so it does not count.
                counted = time.perf_counter()
                bare.seconds = 0.0
        seconds = time.perf_counter() - counted - bare.seconds
    pictures = (plan.epochs - 1) * len(samples)
    return [Turn(pictures, seconds, bare.seconds)]


STAGES = {"evaluate": evaluate, "attack": attack, "saliency": saliency, "train": training}


class Loaded(contextlib.ExitStack):
    """A context with a model on its device, and with batches for a bare loop."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.evaluation = setting.evaluation
        self.dataset = Dataset.open(self.evaluation.store)
        taxonomy = self.dataset.taxonomy
        model = self.enter_context(in_memory(setting.model, self.evaluation, taxonomy))
        self.predictor = self.enter_context(on_device(model, self.evaluation))
        self.metadata = self.evaluation.describe(self.dataset, model)
        side = self.dataset.manifest.config.segment.image_size
        size, device = setting.batch_size, self.predictor.device
        self._batch = self.predictor.prepare(torch.rand(size, 3, side, side, device=device))
        self._autocast = functools.partial(
            torch.autocast,
            device.type,
            torch.bfloat16,
            enabled=setting.predict.precision == "bf16",
        )

    def work_on(self, work: AnalysisOfModel, units: Sequence[int]) -> Callable[[], None]:
        """Returns a function that makes all tables of some units."""

        def make() -> None:
            for _ in work.run(self.predictor, units, units, lambda *_: None):
                pass

        return make

    @torch.inference_mode()
    def forward(self, pictures: int) -> None:
        """Runs forward passes of a number of pictures."""
        for batch in self._batches(pictures, len(self._batch)):
            with self._autocast():
                logits = self.predictor.module(batch)
        logits.cpu()

    def backward(self, size: int, pictures: int) -> None:
        """Computes gradients with respect to a number of pictures, in batches of `size`."""
        for batch in self._batches(pictures, size):
            leaf = batch.detach().requires_grad_(True)
            with self._autocast():
                logits = self.predictor.module(leaf)
            (gradients,) = torch.autograd.grad(logits.amax(dim=1).sum(), leaf)
        gradients.cpu()

    def _batches(self, pictures: int, size: int) -> Iterator[torch.Tensor]:
        for first in range(0, pictures, size):
            yield self._batch[: min(size, pictures - first)]


def take_turns(
    turn_count: int, pictures: int, work: Callable[[], None], bare: Callable[[int], None]
) -> list[Turn]:
    """Times the work on a number of pictures and the bare loop on as many, in turns.

    The first turn, in which libraries initialise, is left out.
    """
    turns = []
    for _ in range(turn_count + 1):
        started = time.perf_counter()
        work()
        between = time.perf_counter()
        bare(pictures)
        ended = time.perf_counter()
        turns.append(Turn(pictures, between - started, ended - between))
    return turns[1:]


@contextlib.contextmanager
def stopped(processes: Sequence[multiprocessing.process.BaseProcess]) -> Iterator[None]:
    """Stops processes while the block runs."""
    idents = [process.ident for process in processes if process.ident is not None]
    for ident in idents:
        os.kill(ident, signal.SIGSTOP)
    try:
        yield
    finally:
        for ident in idents:
            os.kill(ident, signal.SIGCONT)


class BareSteps:
    """Steps of a training on one batch that is already on the device, in turns with a training.

    Turns are short and the loader's processes are stopped meanwhile, so both meet the same
    conditions.

    Args:
      plan: settings of the training.
      module: the network; it is moved to the device.
      side: side of the pictures, in pixels.

    Attributes:
      seconds: how long the steps have taken.
    """

    def __init__(self, plan: TrainPlan, module: torch.nn.Module, side: int) -> None:
        self.seconds = 0.0
        self._plan = plan
        self._module = module.to(plan.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._module.train()
        self._optimizer = torch.optim.SGD(
            module.parameters(), lr=plan.lr, momentum=MOMENTUM, weight_decay=plan.weight_decay
        )
        pictures = torch.rand(plan.batch_size, 3, side, side, device=plan.device)
        self._pictures = pictures.contiguous(memory_format=torch.channels_last)
        self._labels = torch.randint(0, 9, (plan.batch_size,), device=plan.device)
        self._sizes: list[int] = []
        self._began = time.perf_counter()

    def between(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yields a training's batches, and takes as many steps between them."""
        for batch in batches:
            if time.perf_counter() - self._began >= TURN_SECONDS:
                self.catch_up()
            self._sizes.append(len(batch[0]))
            yield batch

    def catch_up(self) -> None:
        """Takes a step for each batch since the last call, of the same size."""
        self._finish()
        with stopped(multiprocessing.active_children()):
            started = time.perf_counter()
            for size in self._sizes:
                self._step(size)
            self._finish()
            self.seconds += time.perf_counter() - started
        self._sizes.clear()
        self._began = time.perf_counter()

    def _step(self, size: int) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast(
            self._plan.device, torch.bfloat16, enabled=self._plan.precision == "bf16"
        ):
            logits = self._module(self._pictures[:size])
            loss = torch.nn.functional.cross_entropy(logits, self._labels[:size])
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    def _finish(self) -> None:
        """Waits for a GPU to finish what it has been told."""
        if self._plan.device == "cuda":
            torch.cuda.synchronize()


def measure(stage: str, setting: Setting) -> Measurement:
    """Measures a stage; called in another process, whose peak memory includes both loops."""
    keep_freed_memory()  # As `in9` does.
    turns = STAGES[stage](setting)
    is_meaningful = min(min(turn.seconds, turn.bare) for turn in turns) >= LEAST_SECONDS
    peak = peak_memory()
    if setting.predict.device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    return Measurement(
        rate=statistics.median(turn.pictures / turn.seconds for turn in turns),
        bare=statistics.median(turn.pictures / turn.bare for turn in turns),
        ratio=statistics.median(turn.bare / turn.seconds for turn in turns)
        if is_meaningful
        else None,
        peak=peak,
    )


def with_weights(arch: str, folder: Path) -> str:
    """Returns an entry of `--models`, with weights of an installed package or random ones."""
    if arch in EFFICIENTNETS and Packaged().has_package(arch):
        return arch
    file = folder / f"{arch}.pth"
    torch.save(timm.create_model(arch).state_dict(), file)
    return f"{arch}={file}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument(
        "--stages", type=WordListParser(*STAGES), default=tuple(STAGES), help="(all)"
    )
    parser.add_argument(
        "--models",
        type=comma_separated,
        help="of timm (efficientnet_lite0; on a GPU resnet50, too)",
    )
    precisions = WordListParser("fp32", "tf32", "bf16")
    parser.add_argument("--precision", type=precisions, default=("fp32",), help="fp32, tf32, bf16")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, to see that everything runs"
    )
    parser.add_argument("--images", type=int, help="number of images (2000 on a GPU, else 128)")
    parser.add_argument("--grid", type=grid, help="of the attack (160x256 on a GPU, else 64x16)")
    parser.add_argument("--batch_size", type=int, help="(that of in9 on this device)")
    parser.add_argument(
        "--epochs", type=int, help="of the training; the first does not count (33 on a GPU, else 9)"
    )
    arguments = parser.parse_args()
    has_gpu = torch.cuda.is_available()
    if arguments.device == "cuda" and not has_gpu:
        parser.error("there is no CUDA device: nothing was measured")
    device = arguments.device if arguments.device != "auto" else "cuda" if has_gpu else "cpu"
    device_name = torch.cuda.get_device_name() if device == "cuda" else machine()
    default_models = ("efficientnet_lite0", "resnet50")[: 2 if device == "cuda" else 1]
    is_large = device == "cuda" and not arguments.quick
    images = arguments.images or (16 if arguments.quick else 2000 if is_large else 128)
    grid_size = arguments.grid or (
        (8, 4) if arguments.quick else (160, 256) if is_large else (64, 16)
    )
    size = arguments.batch_size or (GPU_BATCH if is_large else CPU_BATCH)
    epochs = arguments.epochs or (2 if arguments.quick else 33 if is_large else 9)
    if epochs < 2:
        parser.error("--epochs must be at least 2: the first one does not count")
    turns = 1 if arguments.quick else TURNS[device]
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # As `in9` sets it for its processes.
    table = [["stage", "device", "images/s", "bare loop", "ratio", "peak memory"]]
    # Each stage has a process of its own, whose peak memory is that of the stage; with --quick, one
    # process is enough.
    tasks = None if arguments.quick else 1
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, spawn, max_tasks_per_child=tasks) as pool,
    ):
        root = Path(folder)
        dataset = root / "out"
        # At least 64 images in a shard, as a batch never has pictures of several shards.
        shards = max(2, images // 500)
        draw_dataset(images, 64 if arguments.quick else 224, shards, dataset)
        models = {arch: with_weights(arch, root) for arch in arguments.models or default_models}
        for arch, precision, stage in itertools.product(
            models, arguments.precision, arguments.stages
        ):
            predict = PredictConfig(device, precision, size)
            setting = Setting(dataset, models[arch], arch, predict, grid_size, turns, epochs)
            result = pool.submit(measure, stage, setting).result()
            name = f"{stage}, {arch} {precision}"
            rates = (f"{result.rate:.1f}", f"{result.bare:.1f}")
            peak = f"{result.peak:.0f} MB"
            ratio = "too few to tell" if result.ratio is None else f"{result.ratio:.2f} x"
            against = f"bare loop, {rates[1]} images/s; {rates[0]} on {device_name}; peak {peak}"
            row(name, ratio, against, ">= 0.90")
            table.append([name, device_name, *rates, ratio, peak])
            if stage == "attack" and result.ratio is not None:
                hours = PAPER**2 / result.rate / 3600
                row(f"attack: {PAPER} x {PAPER}, {arch} {precision}", f"{hours:.1f} h", device_name)
    print(aligned(table))
    for stage in arguments.stages:
        print(f"{stage}: {STAGES[stage].__doc__}")


if __name__ == "__main__":
    main()
