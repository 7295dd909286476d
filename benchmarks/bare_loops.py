"""The stages of `gpu.py` that are compared with bare loops: evaluate, attack, saliency, train."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import io
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from pipeline.analyses.attack.results import open_grid
from pipeline.analyses.attack.stage import AttackChunks, PlannedAttack
from pipeline.analyses.saliency.stage import BATCH_DIVISOR, PlannedSaliency
from pipeline.commands.train import default_workers
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.planned import AnalysisOfModel, Evaluation
from pipeline.evaluate.predict_shards import PredictShards
from pipeline.evaluate.resident import in_memory, on_device
from pipeline.models.identity import PredictConfig
from pipeline.runtime.progress import Progress
from pipeline.storage.store import Store
from pipeline.training.batches import Batch, training_batches
from pipeline.training.loop import run_epoch, torch_settings
from pipeline.training.network import MOMENTUM, Learner, build_network
from pipeline.training.train_plan import TrainPlan, find_samples

TURN_SECONDS = 2.0
"""Length of a turn, at least: its work is repeated so often. With --quick, it is done once."""


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
class Setting:
    """The settings of a measurement.

    Attributes:
      folder: folder for files that a figure needs.
      dataset: folder of the dataset.
      model: entry of `--models`.
      arch: architecture of the model.
      predict: settings with which the model is run.
      images: number of images of a drawn dataset.
      grid: numbers of foregrounds and backgrounds of the attack.
      turns: number of turns of the other stages.
      turn_seconds: how long a turn lasts at least.
      epochs: number of epochs of the training; the first does not count.
    """

    folder: Path
    dataset: Path
    model: str
    arch: str
    predict: PredictConfig
    images: int
    grid: tuple[int | None, int | None]
    turns: int
    turn_seconds: float
    epochs: int

    @property
    def name(self) -> str:
        """Name of the model and its arithmetic, for rows."""
        return f"{self.arch} {self.predict.arithmetic}"

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
        shards = loaded.dataset.shards("val")
        pictures = sum(loaded.dataset.pictures("val", shard) for shard in shards)
        return take_turns(setting, pictures, loaded.evaluate, loaded.forward)


def attack(setting: Setting) -> list[Turn]:
    """Times decoding fore- and background, composing and forward passes, against forward passes."""
    with Loaded(setting) as loaded:
        attacking = PlannedAttack(loaded.evaluation, loaded.dataset.taxonomy, *setting.grid)
        attack_grid = open_grid(loaded.dataset, loaded.evaluation, *setting.grid)
        chunks = AttackChunks(
            loaded.evaluation.store, loaded.dataset, attacking, attack_grid, loaded.metadata
        )
        pairs = len(attack_grid.foregrounds) * len(attack_grid.backgrounds)
        work = loaded.work_on(chunks, attack_grid.chunks)
        return take_turns(setting, pairs, work, loaded.forward)


def saliency(setting: Setting) -> list[Turn]:
    """Times decoding, gradients and their share on a mask, against forward and backward passes."""
    with Loaded(setting) as loaded:
        planned = PlannedSaliency(loaded.evaluation, loaded.dataset.taxonomy, num_maps=0)
        explaining = planned.for_model(loaded.dataset, loaded.metadata)
        size = max(1, setting.batch_size // BATCH_DIVISOR)
        pictures = len(loaded.evaluation.rows(loaded.dataset))
        work = loaded.work_on(explaining, loaded.dataset.shards("val"))
        bare = functools.partial(loaded.backward, size)
        return take_turns(setting, pictures, work, bare)


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

    def __init__(self, setting: Setting, evaluation: Evaluation | None = None) -> None:
        super().__init__()
        self.evaluation = evaluation or setting.evaluation
        self.dataset = Dataset.open(self.evaluation.store)
        taxonomy = self.dataset.taxonomy
        model = self.enter_context(in_memory(setting.model, self.evaluation, taxonomy))
        self.predictor = self.enter_context(on_device(model, self.evaluation))
        self.metadata = self.evaluation.describe(self.dataset, model)
        side = self.dataset.manifest.config.segment.image_size
        size, device = setting.batch_size, self.predictor.device
        self._batch = self.predictor.prepare(torch.rand(size, 3, side, side, device=device))
        module = self.predictor.module
        self._network = torch.compile(module) if setting.predict.compile else module
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

    def evaluate(self) -> None:
        """Predicts all pictures of the dataset."""
        shards = self.dataset.shards("val")
        self.work_on(PredictShards(self.dataset, self.metadata), shards)()

    @torch.inference_mode()
    def forward(self, pictures: int) -> None:
        """Runs forward passes of a number of pictures."""
        for batch in self._batches(pictures, len(self._batch)):
            with self._autocast():
                logits = self._network(batch)
        logits.cpu()

    def backward(self, size: int, pictures: int) -> None:
        """Computes gradients with respect to a number of pictures, in batches of `size`."""
        for batch in self._batches(pictures, size):
            leaf = batch.detach().requires_grad_(True)
            with self._autocast():
                logits = self._network(leaf)
            (gradients,) = torch.autograd.grad(logits.amax(dim=1).sum(), leaf)
        gradients.cpu()

    def _batches(self, pictures: int, size: int) -> Iterator[torch.Tensor]:
        for first in range(0, pictures, size):
            yield self._batch[: min(size, pictures - first)]


def take_turns(
    setting: Setting, pictures: int, work: Callable[[], None], bare: Callable[[int], None]
) -> list[Turn]:
    """Times the work on a number of pictures and the bare loop on as many, in turns.

    The first turns, in which libraries initialise, are left out: the second tells how often the
    work is repeated in a turn.
    """

    def turn(times: int) -> Turn:
        started = time.perf_counter()
        for _ in range(times):
            work()
        between = time.perf_counter()
        bare(times * pictures)
        return Turn(times * pictures, between - started, time.perf_counter() - between)

    turn(1)
    first = turn(1)
    times = max(1, math.ceil(setting.turn_seconds / min(first.seconds, first.bare)))
    return [turn(times) for _ in range(setting.turns)]


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
            if time.perf_counter() - self._began >= TURN_SECONDS / 2:
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
