"""What `in9 attack` costs beyond the forward pass: speed and memory.

    python benchmarks/attack_cost.py [--models efficientnet_lite0] [--device auto]

* Composites a second of the stage (decoding foregrounds, compositing, forward pass, scoring,
  writing) over those of a bare loop: batches of the same size through the same network, of
  float pictures that lie on the device, normalised beforehand. The two take turns chunk by
  chunk in one process, so that both meet the same machine.
* What that makes of the paper's grid, 4,050 x 4,050.
* Peak memory of the command with four times the foregrounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from measure import card, draw_small, row, run_in9

from pipeline.attack.chunks import Chunks, HeldBackgrounds
from pipeline.attack.plan import ATTACK_VARIANTS, Attacking, open_grid
from pipeline.command_line.evaluation_flags import CPU_BATCH, GPU_BATCH
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.plan import Evaluation, model_identity
from pipeline.evaluate.predict import PredictConfig, Predictor
from pipeline.memory import keep_freed_memory
from pipeline.models import load_model
from pipeline.runner.progress import Progress
from pipeline.storage.store import Store
from transforms.taxonomy import imagenet9

PAPER = 4050


@torch.inference_mode()
def bare_loop(predictor: Predictor, batches: list[torch.Tensor], precision: str) -> Iterator[float]:
    """Seconds of all batches through the network, again and again."""
    bf16 = precision == "bf16"
    while True:
        started = time.perf_counter()
        for batch in batches:
            with torch.autocast(predictor.device.type, torch.bfloat16, enabled=bf16):
                logits = predictor.module(batch)
        logits.cpu()
        yield time.perf_counter() - started


def compare_speed(root: Path, name: str, device: str, precision: str, chunk: int) -> None:
    """Prints the stage's speed over the bare loop's, and the time of the paper's grid."""
    shutil.rmtree(root / "results", ignore_errors=True)
    store = Store(str(root))
    dataset = Dataset.open(store)
    config = PredictConfig(
        device=device, precision=precision, batch_size=GPU_BATCH if device == "cuda" else CPU_BATCH
    )
    evaluation = Evaluation(store, (name,), "val", config, Progress.of(store))
    attacking = Attacking(evaluation, foregrounds=None, backgrounds=None)
    grid = dataclasses.replace(open_grid(dataset, attacking), chunk=chunk)
    model = load_model(name)
    predictor = Predictor(model, config)
    about = model_identity(model, evaluation, dataset)
    chunks = Chunks(dataset, attacking, grid, model, about)
    # The last chunk may be smaller.
    numbers = list(grid.chunks[:-1])
    backgrounds = HeldBackgrounds(dataset, "val", grid)
    making = chunks.make(numbers, predictor, backgrounds, imagenet9())
    pairs = chunk * len(grid.backgrounds)
    side = dataset.manifest.config.segment.image_size
    pictures = torch.rand(pairs, 3, side, side, device=device)
    batches = [predictor.prepare(part) for part in pictures.split(config.batch_size)]
    bare = bare_loop(predictor, batches, precision)
    ratios, rates = [], []
    for number in range(len(numbers)):
        started = time.perf_counter()
        next(making)
        seconds, bare_seconds = time.perf_counter() - started, next(bare)
        if number == 0:
            continue  # Libraries set themselves up, backgrounds are decoded.
        ratios.append(bare_seconds / seconds)
        rates.append(pairs / seconds)
    hours = PAPER**2 / statistics.median(rates) / 3600
    low, middle, high = statistics.quantiles(ratios, n=4)
    turns = f"bare forward; median of {len(ratios)} turns, quartiles {low:.2f} and {high:.2f}"
    row(f"attack: speed, {name} {precision}", f"{middle:.2f} x", turns, ">= 0.90")
    rate = f"{statistics.median(rates):.1f} composites/s"
    row(f"attack: {PAPER} x {PAPER}, {name} {precision}", f"{hours:.0f} h", rate)


def compare_memory(root: Path, name: str, device: str, few: int) -> None:
    """Prints the command's peak memory for two numbers of foregrounds."""
    peaks = []
    for foregrounds in (few, 4 * few):
        shutil.rmtree(root / "results", ignore_errors=True)
        sides = ("--foregrounds", foregrounds, "--backgrounds", 32, "--pictures", "none")
        flags = ("--models", name, "--device", device, *sides)
        peaks.append(run_in9("attack", "--dataset", root, *flags).peak)
    less = f"{few} foregrounds, {peaks[0]:.0f} MB"
    ratio = f"{peaks[1] / peaks[0]:.2f} x"
    row(f"attack: peak memory, {4 * few} foregrounds", ratio, less, "<= 1.05")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="efficientnet_lite0", help="comma-separated")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--precision", default="fp32", help="comma-separated: fp32, tf32, bf16")
    parser.add_argument("--images", type=int, default=120, help="of the dataset (120)")
    parser.add_argument("--chunk", type=int, default=4, help="foregrounds in a turn (4)")
    parser.add_argument("--only", choices=("speed", "memory"), help="one of the two")
    arguments = parser.parse_args()
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    print(torch.cuda.get_device_name() if device == "cuda" else card())
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        source = draw_small(arguments.images, Path(folder) / "in")
        dataset = Path(folder) / "out"
        flags = ("--variants", ",".join(ATTACK_VARIANTS), "--formats", "parquet")
        run_in9("generate", "--input", source, "--output", dataset, *flags)
        images = json.loads((dataset / "manifest.json").read_text())["images"]["val"]["selected"]
        for name in arguments.models.split(","):
            for precision in arguments.precision.split(","):
                if arguments.only != "memory":
                    compare_speed(dataset, name, device, precision, arguments.chunk)
            if arguments.only != "speed":
                compare_memory(dataset, name, device, images // 4)


if __name__ == "__main__":
    main()
