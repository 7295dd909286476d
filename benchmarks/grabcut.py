"""Compares GrabCut's kernels with OpenCV: speed, equality of masks, stages, threads, memory.

    python benchmarks/grabcut.py [--softened 135] [--native 62] [--shared ../shared]

Both run on each picture in turn in this thread, and the thread's CPU time counts, so that ratios
are valid on a busy machine. `softened` pictures are ImageNet's at their native size, but scaled up
from small copies; `native` pictures have their original pixels. On a processor with AVX-512, speed
and masks are measured without it, too: for the kernels only, as OpenCV's GrabCut does not use it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from measure import machine, peak_memory, row

from transforms.annotations import parse_annotation
from transforms.codec import decode_image
from transforms.geometry import Pixels
from transforms.grabcut import grabcut, prepare

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
from processor import without_avx512

ITERATIONS = 5


class Job(NamedTuple):
    """A picture with the rectangle around its object."""

    image: Pixels
    rect: tuple[int, int, int, int]


def by_opencv(job: Job) -> Pixels:
    mask = np.zeros(job.image.shape[:2], np.uint8)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)
    cv2.grabCut(job.image, mask, job.rect, *models, ITERATIONS, cv2.GC_INIT_WITH_RECT)
    return mask


def by_kernels(job: Job) -> Pixels:
    return grabcut(job.image, job.rect, iterations=ITERATIONS)


IMPLEMENTATIONS = {"cv2": by_opencv, "kernels": by_kernels}


def softened(shared: Path, count: int) -> list[Job]:
    """Reads evenly spaced pictures with their first boxes."""
    jobs = []
    root = shared / "imagenet-mini"
    paths = sorted((root / "val").glob("*/*.JPEG"))
    for path in paths[:: max(1, len(paths) // max(count, 1))][:count]:
        image = decode_image(path.read_bytes())
        xml = (root / "Annotations" / "val" / f"{path.stem}.xml").read_bytes()
        box = parse_annotation(xml).boxes[0].clip(image.shape[1], image.shape[0])
        jobs.append(Job(image, (box.xmin, box.ymin, box.width, box.height)))
    return jobs


def native(shared: Path, count: int) -> list[Job]:
    """Reads pictures with their original pixels, and gives each a central rectangle."""
    jobs = []
    for path in sorted((shared / "imagenet-native").glob("*.JPEG"))[:count]:
        image = decode_image(path.read_bytes())
        height, width = image.shape[:2]
        rect = int(0.15 * width), int(0.12 * height), int(0.68 * width), int(0.72 * height)
        jobs.append(Job(image, rect))
    return jobs


SLOWEST = 15
"""Number of the slowest pictures that are measured again."""


def _timed(job: Job) -> tuple[dict[str, float], dict[str, Pixels]]:
    """Runs both implementations on a picture; returns the thread's CPU time, and the masks."""
    times, masks = {}, {}
    for implementation, function in IMPLEMENTATIONS.items():
        start = time.thread_time()
        masks[implementation] = function(job)
        times[implementation] = time.thread_time() - start
    return times, masks


def compare(name: str, jobs: list[Job], bounds: tuple[str, str, str]) -> None:
    """Prints one row of times, ratios and the number of equal masks.

    `bounds` are the wanted ratios: of the sums, in the median, and the slowest.
    """
    totals: dict[str, float] = defaultdict(float)
    pictures, agreements = [], []
    for job in jobs:
        times, masks = _timed(job)
        for implementation, seconds in times.items():
            totals[implementation] += seconds
        pictures.append((times["cv2"] / times["kernels"], job))
        agreements.append((masks["cv2"] == masks["kernels"]).mean())
    pictures.sort(key=lambda picture: picture[0])
    ratios = [ratio for ratio, _ in pictures]
    # Of many single runs, other programs have disturbed the worst ones. So those are repeated, and
    # the fastest of three runs of each implementation counts.
    for position, (_, job) in enumerate(pictures[:SLOWEST]):
        runs = [_timed(job)[0] for _ in range(3)]
        best = {each: min(run[each] for run in runs) for each in IMPLEMENTATIONS}
        ratios[position] = best["cv2"] / best["kernels"]
    print(
        f"{name:20} {len(jobs):8} {1e3 * totals['cv2'] / len(jobs):9.0f}"
        f" {1e3 * totals['kernels'] / len(jobs):10.1f}"
        f" {totals['cv2'] / totals['kernels']:7.1f} {np.median(ratios):7.1f} {min(ratios):7.1f}"
        f" {sum(a == 1 for a in agreements):10} {min(agreements):17.6f}",
        flush=True,
    )
    values = totals["cv2"] / totals["kernels"], np.median(ratios), min(ratios)
    for kind, value, bound in zip(("sum", "median", "slowest"), values, bounds, strict=True):
        row(f"GrabCut: speed, {name}, {kind}", f"{value:.1f} x", "cv2.grabCut", f">= {bound}")
    equal = f"{sum(a == 1 for a in agreements)} of {len(jobs)}"
    row(f"GrabCut: identical masks, {name}", equal, "cv2.grabCut", ">= 95 %")


KERNELS = {
    "_split": "samples",
    "cluster": "k-means",
    "assign_components": "mixtures",
    "_learn": "mixtures",
    "measure_contrast": "n-links",
    "link_pixels": "n-links",
    "weigh": "t-links",
    "_pull": "t-links",
    "minimum_cut": "cut",
    "_read_cut": "cut",
}
"""The stage of each function that `transforms.grabcut.iteration.segment` calls."""


def print_stages(jobs: list[Job]) -> None:
    """Prints the mean CPU time of each stage."""
    from transforms.grabcut import iteration

    times: dict[str, float] = defaultdict(float)

    def timed(kernel: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            start = time.thread_time()
            try:
                return kernel(*arguments)
            finally:
                times[stage] += time.thread_time() - start

        return call

    kernels = {name: vars(iteration)[name] for name in KERNELS}
    vars(iteration).update({name: timed(kernels[name], KERNELS[name]) for name in KERNELS})
    for job in jobs:
        iteration.segment(np.require(job.image, requirements=["C", "W"]), job.rect, ITERATIONS, 0)
    vars(iteration).update(kernels)
    for stage, seconds in times.items():
        print(f"{stage:9} {1e3 * seconds / len(jobs):8.2f} ms")


def print_threads(jobs: list[Job]) -> None:
    """Prints the speed-up of two threads on the same pictures, in wall time."""
    seconds: dict[int, float] = {}
    for threads in (1, 2, 1, 2):
        with ThreadPoolExecutor(threads) as pool:
            start = time.perf_counter()
            list(pool.map(by_kernels, jobs))
            seconds[threads] = min(time.perf_counter() - start, seconds.get(threads, float("inf")))
    row("GrabCut: speed of two threads", f"{seconds[1] / seconds[2]:.2f} x", "one", ">= 1.8")


def print_memory(shared: Path) -> None:
    """Prints how much one segmentation raises the peak memory of a new process."""
    for implementation in IMPLEMENTATIONS:
        command = [sys.executable, __file__, "--shared", str(shared), "--memory", implementation]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        row(f"GrabCut: peak memory of {implementation}", done.stdout.strip())


def measure_memory(shared: Path, implementation: str) -> None:
    job = max(native(shared, 20), key=lambda job: job.image.size)
    IMPLEMENTATIONS[implementation](Job(job.image[:8, :8].copy(), (2, 2, 4, 4)))
    # Resets the peak to the present size, on Linux.
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory()
    IMPLEMENTATIONS[implementation](job)
    height, width = job.image.shape[:2]
    print(f"{peak_memory() - before:.0f} MiB more for {width} x {height} pixels")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--softened", type=int, default=135, help="pictures (135)")
    parser.add_argument("--native", type=int, default=62, help="pictures (62)")
    parser.add_argument(
        "--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared"
    )
    parser.add_argument("--memory", choices=IMPLEMENTATIONS, help=argparse.SUPPRESS)
    parser.add_argument("--without_avx512", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    if arguments.memory:
        measure_memory(arguments.shared, arguments.memory)
        return
    without = ", no AVX-512" if arguments.without_avx512 else ""
    print(machine() + without)
    prepare(lambda: print("compiling the kernels, once on this machine (about 20 s)"))
    sets = {
        "softened": softened(arguments.shared, arguments.softened),
        "native": native(arguments.shared, arguments.native),
    }
    print(
        "pictures               number    cv2 ms kernels ms     sum  median   worst"
        "  identical  lowest agreement"
    )
    for function in IMPLEMENTATIONS.values():
        function(sets["softened"][0])
    for name, jobs in sets.items():
        compare(name + without, jobs, ("16", "14", "10"))
    for name, jobs in sets.items():
        print(f"\nstages, {name}{without}")
        print_stages(jobs)
    if without:
        return
    print()
    print_threads(sets["softened"])
    print_memory(arguments.shared)
    if "AVX-512" in machine():
        command = [sys.executable, *sys.argv, "--without_avx512"]
        subprocess.run(command, env={**os.environ, **without_avx512()}, check=True)


if __name__ == "__main__":
    main()
