"""Measures what loading pictures costs, and whether models wait for slow storage.

    python benchmarks/loader.py [--quick]

The CPUs of a machine with a GPU are emulated by 16 threads whose decoder sleeps for 300 us without
the interpreter's lock, so that only the loader's own work under that lock remains. A GPU is
emulated by a network that sleeps. Decoders, and evaluations with slow storage, take turns with
their yardsticks.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from drawn import draw_dataset
from measure import ROOT, row
from PIL import Image

from pipeline.analyses.evaluation.parts import PlannedEvaluation
from pipeline.evaluate.model_stage import Block, BlockDone, RunModels
from pipeline.evaluate.planned import Evaluation
from pipeline.models.identity import GPU_BATCH, PredictConfig
from pipeline.models.loader import Decode, Loader, PixelCache
from pipeline.runtime.progress import Progress
from pipeline.storage.store import Store
from transforms.codec import decode_into, encode_jpeg
from transforms.taxonomy import imagenet9

sys.path.append(str(ROOT / "tests" / "support"))
from slow_storage import slow_storage

SIDE = 224
THREADS = 16
DECODING = 300e-6
REQUEST = 0.05
FORWARD = 0.002


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A set of pictures that repeats some pictures."""

    images: list[bytes]
    count: int
    name: str = ""

    def tables(self, columns: tuple[str, ...]) -> Generator[pa.Table, None, None]:
        """Same as `PictureSet.tables`, but in memory; row groups are as large as a dataset's."""
        size = 128
        for first in range(0, self.count, size):
            numbers = range(first, min(first + size, self.count))
            images = [self.images[n % len(self.images)] for n in numbers]
            table = pa.table({"key": [str(n) for n in numbers], "image": images})
            yield table.select(["key", *columns])


def photographs(folder: Path) -> list[bytes]:
    """Encodes the sample's pictures as composites are stored."""
    images = []
    for path in sorted(folder.rglob("*.JPEG")):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB").resize((SIDE, SIDE)))
        images.append(encode_jpeg(pixels, 95))
    return images


def load(decode: Decode, sets: list[Drawn], threads: int, ahead: int) -> float:
    """Measures the seconds that loading all pictures takes."""
    loader: Loader[Drawn] = Loader(
        decode, SIDE, GPU_BATCH, cache=PixelCache(0), kind="", threads=threads, ahead=ahead
    )
    started = time.perf_counter()
    with contextlib.closing(loader.batches(sets)) as batches:
        for batch in batches:
            loader.hand_back(batch)
    return time.perf_counter() - started


def asleep(data: bytes, out: np.ndarray) -> None:
    """Stands in for a decoder."""
    time.sleep(DECODING)


def by_pillow(data: bytes, out: np.ndarray) -> None:
    """Decodes a picture with Pillow."""
    with Image.open(io.BytesIO(data)) as image:
        out[:] = np.asarray(image)


def measure_loader(images: list[bytes], count: int) -> None:
    """Measures the loader alone, and prints its rows."""
    sets = [Drawn(images, 1024)] * (count // 1024)
    rate = max(count / load(asleep, sets, THREADS, 3) for _ in range(3))
    against = f"{THREADS} threads, a decoder that sleeps {DECODING * 1e6:.0f} us"
    row("loader: pictures/s, emulated", f"{rate:.0f}", against, ">= 15000")
    costs: dict[str, list[float]] = {"ours": [], "Pillow": []}
    for _ in range(5):
        for name, decode in (("ours", decode_into), ("Pillow", by_pillow)):
            before = time.process_time()
            load(decode, sets[:4], 1, 0)
            loaded = sum(pictures.count for pictures in sets[:4])
            costs[name].append((time.process_time() - before) / loaded * 1e3)
    ours, pillow = (statistics.median(costs[name]) for name in ("ours", "Pillow"))
    row("loader: CPU of a picture", f"{ours:.2f} ms", f"{pillow:.2f} ms by Pillow", "<= 0.40 ms")


class Asleep(torch.nn.Module):
    """Stands in for a network on a GPU."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Returns equal logits for all pictures."""
        time.sleep(FORWARD)
        return pictures.new_zeros(len(pictures), 9)


def measure_slow_storage(dataset: Path, turns: int) -> None:
    """Compares evaluations by a network that sleeps, and prints their row."""
    store = Store(str(dataset))
    entries = ("python:loader:Asleep",)
    evaluation = Evaluation(store, entries, "val", PredictConfig("cpu"), Progress.for_store(store))
    measure_evaluation(evaluation, f"a forward of {FORWARD * 1e3:.0f} ms", turns)


def measure_evaluation(evaluation: Evaluation, name: str, turns: int) -> None:
    """Compares evaluations on storage that answers late with others, and prints their row.

    Args:
      evaluation: the evaluation, whose results are removed before each turn.
      name: name of the model, for the row.
      turns: number of pairs of evaluations.
    """
    store, work = evaluation.store, PlannedEvaluation(evaluation, imagenet9())

    def evaluate(delay: float) -> float:
        store.delete_tree("results")
        with slow_storage(delay) if delay else contextlib.nullcontext():
            started = time.perf_counter()
            (done,) = RunModels(work).process(Block(0, 0))
            seconds = time.perf_counter() - started
        assert isinstance(done, BlockDone), done
        return seconds

    evaluate(0)
    ratios = []
    for _ in range(turns):
        fast, slow = evaluate(0), evaluate(REQUEST)
        ratios.append(fast / slow)
    row(
        f"slow storage, {name}",
        f"{statistics.median(ratios):.2f} x",
        f"without {REQUEST * 1e3:.0f} ms for each opening, listing and write; {fast:.1f} s",
        ">= 0.95",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few pictures")
    quick = parser.parse_args().quick
    sample = ROOT / "pipeline" / "data" / "sample"
    measure_loader(photographs(sample), 2048 if quick else 16384)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        draw_dataset(48 if quick else 4050, 224, 3 if quick else 8, root / "out")
        measure_slow_storage(root / "out", 1 if quick else 5)


if __name__ == "__main__":
    main()
