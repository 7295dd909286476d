"""What `in9 train` costs beyond the network's own steps: reading, decoding, augmenting.

    python benchmarks/train_cost.py [--archs resnet18,...] [--device auto] [--workers N]

Images a second of the command, by its log, over those of a bare loop on batches that lie in
memory: the same network, batch size, threads and optimizer. In turns, since other work on the
machine comes and goes; the ratio of each pair counts.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from measure import card, draw_small, row, run_in9

BARE_LOOP = """
import json, sys, time
import timm, torch
from pipeline.memory import keep_freed_memory

name, device, size, batch, precision, steps = sys.argv[1:7]
keep_freed_memory()
size, batch = int(size), int(batch)
torch.backends.cudnn.benchmark = device == "cuda"
module = timm.create_model(name, num_classes=9).to(device, memory_format=torch.channels_last)
optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
pictures = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
pictures = pictures.to(device).contiguous(memory_format=torch.channels_last)
labels = torch.randint(0, 9, (batch,), device=device)
kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}

def step():
    optimizer.zero_grad(set_to_none=True)
    inputs = (pictures.float() / 255 - 0.45) / 0.25
    with torch.autocast(device, kinds.get(precision), enabled=precision in kinds):
        loss = torch.nn.functional.cross_entropy(module(inputs), labels)
    loss.backward()
    optimizer.step()
    return loss

step().item()
started = time.perf_counter()
for _ in range(int(steps)):
    loss = step()
loss.item()
print(json.dumps(batch * int(steps) / (time.perf_counter() - started)))
"""


def bare_loop(arch: str, device: str, size: int, batch: int, precision: str, steps: int) -> float:
    """Images a second of the steps alone, in a process of its own."""
    command = [sys.executable, "-c", BARE_LOOP, arch, device]
    command += map(str, (size, batch, precision, steps))
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    return float(json.loads(done.stdout))


def train(dataset: Path, output: Path, *flags: object) -> tuple[float, float]:
    """(images a second, share of the time spent waiting for pictures) of the last epochs."""
    shutil.rmtree(output, ignore_errors=True)
    run_in9("train", "--dataset", dataset, "--output", output, "--train_split", "val", *flags)
    # In the first one, processes start and memory is taken.
    rows = list(csv.DictReader((output / "log.csv").read_text().splitlines()))[1:]
    return tuple(
        statistics.median(float(row[name]) for row in rows)
        for name in ("images_per_second", "data_wait")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", default="resnet18", help="comma-separated (resnet18)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--precision", default="fp32", help="fp32, bf16, fp16")
    parser.add_argument("--batch_size", type=int, help="64 on a GPU, else 16")
    parser.add_argument("--images", type=int, default=64, help="drawn images (64)")
    parser.add_argument("--dataset", type=Path, help="train on this one's val instead")
    parser.add_argument("--epochs", type=int, default=3, help="of each run (3)")
    parser.add_argument("--workers", help="processes that load pictures (by the cores)")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions, in turns (3)")
    arguments = parser.parse_args()
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = arguments.batch_size or (64 if device == "cuda" else 16)
    print(torch.cuda.get_device_name() if device == "cuda" else card())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        dataset = arguments.dataset
        if dataset is None:
            dataset = root / "dataset"
            flags = ("--segmenter", "box", "--variants", "original", "--formats", "parquet")
            source = draw_small(arguments.images, root / "input")
            run_in9("generate", "--input", source, "--output", dataset, *flags)
        manifest = json.loads((dataset / "manifest.json").read_text())
        size = manifest["config"]["image_size"]
        images = manifest["images"]["val"]["selected"]
        flags = ("--device", device, "--precision", arguments.precision, "--lr", 0.01)
        flags += ("--batch_size", batch, "--epochs", arguments.epochs)
        if arguments.workers is not None:
            flags += ("--workers", arguments.workers)
        for arch in arguments.archs.split(","):
            ratios = []
            for _ in range(arguments.rounds):
                speed, waited = train(dataset, root / "model", "--arch", arch, *flags)
                steps = max(1, images * (arguments.epochs - 1) // batch)
                bare = bare_loop(arch, device, size, batch, arguments.precision, steps)
                ratios.append(speed / bare)
                print(
                    f"{arch}: command {speed:.1f}/s, {100 * waited:.0f} % of it waiting for "
                    f"pictures; bare loop {bare:.1f}/s: {speed / bare:.2f}"
                )
            ratio = f"{statistics.median(ratios):.2f} x"
            loop = f"loop on resident batches; median of {arguments.rounds}"
            row(f"train: speed, {arch}", ratio, loop, ">= 0.90")


if __name__ == "__main__":
    main()
