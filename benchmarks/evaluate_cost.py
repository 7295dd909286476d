"""What `in9 evaluate` costs beyond the forward pass: speed and memory.

    python benchmarks/evaluate_cost.py [--models efficientnet_lite0,...] [--device auto]

* Pictures a second of one job with all models over those of bare loops, one model after the
  other: batches of the same size, decoded beforehand, through the same networks. Times of the
  job are slopes between two sizes, so that start-up and loading drop out.
* Peak memory of twelve models in one job over that of the largest alone.
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

import timm
import torch
from measure import Cost, card, draw_small, row, run_in9, slope

from pipeline.command_line.evaluation_flags import CPU_BATCH, GPU_BATCH

TWELVE = (
    *("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"),
    *("resnet18", "resnet50", "mobilenetv3_large_100", "regnety_008", "densenet121"),
    *("vit_small_patch16_224", "convnext_tiny", "resnet101", "wide_resnet50_2"),
)
"""Architectures of several kinds; without weights of their own, they get random ones."""

BARE_LOOP = """
import json, sys, time
import numpy as np, torch
from pipeline.dataset.folder import Dataset
from pipeline.memory import keep_freed_memory
from pipeline.models import load_model
from pipeline.evaluate.predict import PredictConfig
from pipeline.storage.store import Store
from transforms.codec import decode_image
from transforms.variants import PICTURES

dataset, name, device, size, precision = sys.argv[1:6]
keep_freed_memory()
data = Dataset.open(Store(dataset))
samples = (s for shard in data.shards("val") for v in data.variants if v in PICTURES
           for s in data.samples("val", shard, v))
pixels = np.stack([decode_image(sample.image) for sample in samples])
model = load_model(name)
module = model.module.to(device, memory_format=torch.channels_last)
tf32 = precision == "tf32"
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
shape = (1, 3, 1, 1)
mean = torch.tensor(model.preprocessing.mean, device=device).view(shape)
std = torch.tensor(model.preprocessing.std, device=device).view(shape)

def once(batch):
    batch = torch.from_numpy(batch).to(device).permute(0, 3, 1, 2).float() / 255
    batch = ((batch - mean) / std).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        return module(batch).float().cpu()

with torch.inference_mode():
    batches = [pixels[i : i + int(size)] for i in range(0, len(pixels), int(size))]
    once(batches[0])
    started = time.perf_counter()
    for batch in batches:
        once(batch)
    print(json.dumps(len(pixels) / (time.perf_counter() - started)))
"""


def bare_loop(dataset: Path, model: str, device: str, size: int, precision: str) -> float:
    """Pictures a second of the forward pass, in a process of its own."""
    command = [sys.executable, "-c", BARE_LOOP, str(dataset), model, device, str(size), precision]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return float(json.loads(done.stdout))


def evaluate(dataset: Path, models: str, device: str, *flags: object) -> Cost:
    """Evaluates from scratch."""
    shutil.rmtree(dataset / "results", ignore_errors=True)
    return run_in9("evaluate", "--dataset", dataset, "--models", models, "--device", device, *flags)


def compare_speed(
    datasets: dict[int, Path], models: str, device: str, precision: str, rounds: int
) -> None:
    """Prints the job's speed over the bare loops', in turns."""
    size = GPU_BATCH if device == "cuda" else CPU_BATCH
    few, many = datasets
    ratios = []
    for _ in range(rounds):
        flags = ("--precision", precision, "--batch_size", size)
        times = {n: evaluate(datasets[n], models, device, *flags).wall for n in datasets}
        job = 1 / slope((few, times[few]), (many, times[many]))
        names = models.split(",")
        bare = 1 / sum(
            1 / bare_loop(datasets[many], name, device, size, precision) for name in names
        )
        ratios.append(job / bare)
        print(f"{models} {precision}: job {job:.1f}/s, bare loop {bare:.1f}/s: {job / bare:.2f}")
    count = len(models.split(","))
    loops = f"bare forward of decoded arrays; median of {rounds}"
    ratio = f"{statistics.median(ratios):.2f} x"
    row(f"evaluate: speed, {count} models, {precision}", ratio, loops, ">= 0.90")


def compare_memory(dataset: Path, device: str, folder: Path) -> None:
    """Prints the peak of twelve models in one job over that of the largest alone."""
    specs = []
    for name in TWELVE:
        if name.startswith("efficientnet_lite"):
            specs.append(name)
            continue
        file = folder / f"{name}.pth"
        torch.save(timm.create_model(name).state_dict(), file)
        specs.append(f"{name}={file}")
    alone = {}
    for name, spec in zip(TWELVE, specs, strict=True):
        alone[name] = evaluate(dataset, spec, device).peak
        print(f"{name}: {alone[name]:.0f} MB")
    largest = max(alone, key=alone.__getitem__)
    together = evaluate(dataset, ",".join(specs), device).peak
    ratio = f"{together / alone[largest]:.2f} x"
    row("evaluate: peak memory of twelve models", ratio, f"{largest} alone", "<= 1.10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(TWELVE[:3]), help="comma-separated")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--precision", default="fp32", help="comma-separated: fp32, tf32, bf16")
    parser.add_argument("--images", type=int, default=40, help="images of the smaller run (40)")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions, in turns (3)")
    parser.add_argument("--only", choices=("speed", "memory"), help="one of the two")
    arguments = parser.parse_args()
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    print(torch.cuda.get_device_name() if device == "cuda" else card())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        datasets = {}
        for count in (arguments.images, 5 * arguments.images):
            source = draw_small(count, root / f"in-{count}")
            output = root / f"out-{count}"
            run_in9("generate", "--input", source, "--output", output, "--formats", "parquet")
            datasets[8 * count] = output
        if arguments.only != "memory":
            for precision in arguments.precision.split(","):
                compare_speed(datasets, arguments.models, device, precision, arguments.rounds)
        if arguments.only != "speed":
            compare_memory(datasets[8 * arguments.images], device, root)


if __name__ == "__main__":
    main()
