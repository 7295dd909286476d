r"""Measures what the stages that run models cost beyond the network, on any device.

    python benchmarks/gpu.py [--device auto] [--stages evaluate,attack,loads,ten_models]
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
loads; the whole stage on storage that answers late; how many answers of each precision are those of
fp32; all GPUs beside one.

It needs this project's checkout and the packages that run models, but no Beam, none of Google's
libraries and no network; figures that need more say so. The pictures are the embedded sample's. A
model whose weights no package ships gets random ones. No ratio is printed with --quick, because
set-up would dominate it.

On a machine without a network, such as a rented GPU, take along what its Python lacks as wheels,
fetched for its version of Python on any machine:

    pip download --no-deps --only-binary=:all: --python-version 3.12 --dest wheels \
        --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 msgspec simplejpeg
    pip install --no-index --no-deps wheels/*.whl    # there, in the checkout that holds the wheels

The packages are in benchmarks/README.md. Images with PyTorch for GPUs usually lack these two;
`pip list` tells. For evaluation by `in9` itself, and so for slow storage and several GPUs, take
along apache-beam and what it needs, too.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import multiprocessing
import os
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from bare_loops import STAGES, TURN_SECONDS, Setting
from drawn import draw_dataset
from measure import machine, peak_memory, row
from whole_stage import FIGURES, with_weights

from pipeline.display.table import aligned
from pipeline.models.identity import CPU_BATCH, GPU_BATCH, PredictConfig
from pipeline.runtime.flag_types import comma_separated, grid, some_of
from pipeline.runtime.machine import keep_freed_memory, missing_to_compile

PAPER = 4050

TURNS = {"cpu": 9, "cuda": 3}
"""Number of turns of a stage. A CPU has more, because they are short and other programs disturb."""

LEAST_SECONDS = 1.0
"""Shortest time of a `Turn` whose ratio is meaningful."""

BOUNDS = {"evaluate": ">= 0.95", "attack": ">= 0.95", "saliency": ">= 0.90", "train": ">= 0.95"}

COMPILED = ("evaluate", "attack")
"""Stages that are measured with compiled networks, too."""

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    known = (*STAGES, *FIGURES)
    parser.add_argument(
        "--stages", type=functools.partial(some_of, known), default=known, help="(all)"
    )
    parser.add_argument(
        "--models",
        type=comma_separated,
        help="of timm (efficientnet_lite0; on a GPU resnet50, too)",
    )
    precisions = functools.partial(some_of, ("fp32", "tf32", "bf16"))
    parser.add_argument(
        "--precision", type=precisions, help="fp32, tf32, bf16 (fp32; on a GPU bf16, too)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, to see that everything runs"
    )
    parser.add_argument("--dataset", type=Path, help="dataset for agreement (a drawn one)")
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
    precisions_to_measure = arguments.precision or ("fp32", "bf16")[: 2 if device == "cuda" else 1]
    is_large = device == "cuda" and not arguments.quick
    images = arguments.images or (16 if arguments.quick else 2000 if is_large else 128)
    grid_size = arguments.grid or (
        (8, 4) if arguments.quick else (160, 256) if is_large else (64, 16)
    )
    size = arguments.batch_size or (GPU_BATCH if is_large else CPU_BATCH)
    epochs = arguments.epochs or (2 if arguments.quick else 33 if is_large else 9)
    if epochs < 2:
        parser.error("--epochs must be at least 2: the first one does not count")
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
        # At least 64 images in a shard, as a batch never has pictures of several shards.
        shards = max(2, images // 500, 4 * torch.cuda.device_count())
        draw_dataset(images, 64 if arguments.quick else 224, shards, root / "out")
        models = {arch: with_weights(arch, root) for arch in arguments.models or default_models}
        for arch, precision, stage in itertools.product(
            models, precisions_to_measure, arguments.stages
        ):
            setting = Setting(
                folder=root,
                dataset=root / "out",
                model=models[arch],
                arch=arch,
                predict=PredictConfig(device, precision, batch_size=size),
                grid=grid_size,
                turns=1 if arguments.quick else TURNS[device],
                turn_seconds=0 if arguments.quick else TURN_SECONDS,
                epochs=epochs,
            )
            if stage in ONCE and precision != precisions_to_measure[0]:
                continue
            if stage in FIGURES:
                if stage == "agreement" and arguments.dataset:
                    setting = dataclasses.replace(setting, dataset=arguments.dataset)
                pool.submit(figure, stage, setting).result()
                continue
            # With --quick, one stage is enough, because each takes a minute.
            stages_compiled = COMPILED[: 1 if arguments.quick else None]
            for compiled in (False, True)[: 2 if stage in stages_compiled else 1]:
                predict = dataclasses.replace(setting.predict, compile=compiled)
                setting = dataclasses.replace(setting, predict=predict)
                name = f"{stage}, {setting.name}"
                if compiled and (missing := missing_to_compile(device == "cuda")):
                    row(name, "not compiled", f"missing: {missing}")
                    continue
                result = pool.submit(measure, stage, setting).result()
                rates = (f"{result.rate:.1f}", f"{result.bare:.1f}")
                peak = f"{result.peak:.0f} MB"
                ratio = "too few to tell" if result.ratio is None else f"{result.ratio:.2f} x"
                against = (
                    f"bare loop, {rates[1]} images/s; {rates[0]} on {device_name}; peak {peak}"
                )
                row(name, ratio, against, ">= 0.90" if compiled else BOUNDS[stage])
                table.append([name, device_name, *rates, ratio, peak])
                if stage == "attack" and result.ratio is not None:
                    hours = PAPER**2 / result.rate / 3600
                    row(f"attack: {PAPER} x {PAPER}, {setting.name}", f"{hours:.1f} h", device_name)
    print(aligned(table))
    for stage in arguments.stages:
        print(f"{stage}: {(STAGES.get(stage) or FIGURES[stage]).__doc__}")


if __name__ == "__main__":
    main()
