"""What `in9 attack` costs beyond the forward pass: speed and memory.

    python benchmarks/attack_cost.py [--models efficientnet_lite0] [--device auto]

* Composites a second of the job over forward passes a second of a bare loop: batches of the
  same size through the same network, over float pictures that lie on the device, normalised
  beforehand. Times of the job are slopes between two numbers of foregrounds, so that start-up,
  loading and decoding the backgrounds drop out. In turns, so that both meet the same machine.
* What that makes of the paper's grid, 4,050 x 4,050.
* Peak memory with four times the foregrounds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from measure import Cost, card, draw_small, run_in9, slope

from pipeline.attack_plan import ATTACK_VARIANTS
from pipeline.evaluation_flags import CPU_BATCH, GPU_BATCH

PAPER = 4050

BARE_LOOP = """
import json, sys, time
import torch
from pipeline.memory import keep_freed_memory
from pipeline.models import load_model
from pipeline.predict import PredictConfig, Predictor

name, device, size, precision, forwards = sys.argv[1:6]
keep_freed_memory()
config = PredictConfig(device=device, precision=precision, batch_size=int(size))
predictor = Predictor(load_model(name), config)
pictures = torch.rand(2 * int(size), 3, 224, 224, device=device)
batches = [predictor.prepare(half) for half in pictures.split(int(size))]

def once(number):
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        return predictor.module(batches[number % 2])

with torch.inference_mode():
    once(0).cpu()
    started = time.perf_counter()
    rounds = max(1, int(forwards) // int(size))
    for number in range(rounds):
        logits = once(number)
    logits.cpu()
    print(json.dumps(rounds * int(size) / (time.perf_counter() - started)))
"""


def bare_loop(model: str, device: str, size: int, precision: str, forwards: int) -> float:
    """Forward passes a second, in a process of its own."""
    arguments = [model, device, str(size), precision, str(forwards)]
    command = [sys.executable, "-c", BARE_LOOP, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return float(json.loads(done.stdout))


def attack(dataset: Path, foregrounds: int, *flags: object) -> Cost:
    """Attacks from scratch, on all backgrounds of the dataset."""
    shutil.rmtree(dataset / "results", ignore_errors=True)
    sides = ("--foregrounds", foregrounds, "--pictures", "none")
    return run_in9("attack", "--dataset", dataset, *sides, *flags)


def compare_speed(
    dataset: Path, backgrounds: int, few: int, model: str, device: str, precision: str, rounds: int
) -> None:
    """Prints the job's speed over the bare loop's, in turns, and the time of the paper's grid."""
    size = GPU_BATCH if device == "cuda" else CPU_BATCH
    many = 4 * few
    flags = ("--models", model, "--device", device, "--precision", precision, "--batch_size", size)
    ratios, rates, peaks = [], [], []
    for _ in range(rounds):
        costs = {n: attack(dataset, n, *flags) for n in (few, many)}
        job = backgrounds / slope((few, costs[few].wall), (many, costs[many].wall))
        bare = bare_loop(model, device, size, precision, (many - few) * backgrounds)
        ratios.append(job / bare)
        rates.append(job)
        peaks.append(costs[many].peak / costs[few].peak)
        print(
            f"{model} {precision}: job {job:.1f}/s, bare loop {bare:.1f}/s: {job / bare:.2f}; "
            f"{few} foregrounds {costs[few].peak:.0f} MB, {many} {costs[many].peak:.0f} MB"
        )
    hours = PAPER**2 / statistics.median(rates) / 3600
    print(
        f"{model} {precision}: median {statistics.median(ratios):.2f} (at least 0.90); "
        f"{PAPER} x {PAPER} in {hours:.1f} h; memory {statistics.median(peaks):.2f} with four "
        "times the foregrounds (at most 1.05)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="efficientnet_lite0", help="comma-separated")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--precision", default="fp32", help="comma-separated: fp32, tf32, bf16")
    parser.add_argument("--backgrounds", type=int, default=120, help="images of the dataset (120)")
    parser.add_argument("--foregrounds", type=int, default=16, help="of the smaller run (16)")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions, in turns (3)")
    arguments = parser.parse_args()
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    print(torch.cuda.get_device_name() if device == "cuda" else card())
    with tempfile.TemporaryDirectory() as folder:
        source = draw_small(arguments.backgrounds, Path(folder) / "in")
        dataset = Path(folder) / "out"
        flags = ("--variants", ",".join(ATTACK_VARIANTS), "--formats", "parquet")
        run_in9("generate", "--input", source, "--output", dataset, *flags)
        manifest = json.loads((dataset / "manifest.json").read_text())
        images = manifest["images"]["val"]["selected"]
        for model in arguments.models.split(","):
            for precision in arguments.precision.split(","):
                compare_speed(
                    dataset,
                    images,
                    arguments.foregrounds,
                    model,
                    device,
                    precision,
                    arguments.rounds,
                )


if __name__ == "__main__":
    main()
