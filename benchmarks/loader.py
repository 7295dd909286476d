"""Measures what loading pictures costs, and whether models wait for slow storage.

    python benchmarks/loader.py [--quick]

The CPUs of a machine with a GPU are emulated by 16 threads whose decoder sleeps for 300 us without
the interpreter's lock, so that only the loader's own work under that lock remains. Decoders, and
evaluations with slow storage, take turns with their yardsticks.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import BinaryIO
from unittest import mock

import numpy as np
import pyarrow as pa
from measure import draw_small, row, run_in9
from PIL import Image

from pipeline.dataset.folder import Dataset
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.predict_shards import PredictShards
from pipeline.evaluate.resident import in_memory, on_device
from pipeline.models.identity import GPU_BATCH, PredictConfig
from pipeline.models.loader import Decode, Loader, PixelCache
from pipeline.runtime.progress import Progress
from pipeline.storage.store import Store
from transforms.codec import decode_into, encode_jpeg

SIDE = 224
THREADS = 16
DECODING = 300e-6
OPENING = 0.05


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


def evaluating(dataset: Path) -> Iterator[Callable[[], None]]:
    """Yields a function that predicts all pictures of a dataset with a loaded model."""
    store = Store(str(dataset))
    predict = PredictConfig("cpu")
    evaluation = Evaluation(
        store, ("efficientnet_lite0",), "val", predict, Progress.for_store(store), blocks=1
    )
    opened = Dataset.open(store)
    with (
        in_memory(evaluation.models[0], evaluation, opened.taxonomy) as model,
        on_device(model, evaluation) as predictor,
    ):
        metadata = evaluation.describe(opened, model)
        units = opened.shards("val")

        def predict_all() -> None:
            tables = PredictShards(opened, metadata).run(predictor, units, units, lambda *_: None)
            for _ in tables:
                pass

        yield predict_all


def measure_slow_storage(dataset: Path, turns: int) -> None:
    """Compares an evaluation on storage that opens files slowly, and prints its row."""
    open_file = Store.arrow_source

    def slowly(self: Store, relative: str) -> str | BinaryIO:
        time.sleep(OPENING)
        return open_file(self, relative)

    times: dict[str, list[float]] = {"fast": [], "slow": []}
    with contextlib.contextmanager(evaluating)(dataset) as predict_all:
        predict_all()
        for _ in range(turns):
            for name, source in (("fast", open_file), ("slow", slowly)):
                with mock.patch.object(Store, "arrow_source", source):
                    started = time.perf_counter()
                    predict_all()
                    times[name].append(time.perf_counter() - started)
    ratio = statistics.median(s / f for s, f in zip(times["slow"], times["fast"], strict=True))
    row(
        "loader: evaluate with slow storage",
        f"{ratio:.2f} x",
        f"without {OPENING * 1e3:.0f} ms for each opening of a file",
        "<= 1.10",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few pictures")
    quick = parser.parse_args().quick
    sample = Path(__file__).parents[1] / "pipeline" / "data" / "sample"
    measure_loader(photographs(sample), 2048 if quick else 16384)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        flags = ("--segmenter", "box", "--formats", "parquet", "--images_per_shard", 16)
        source = draw_small(32 if quick else 48, root / "in")
        run_in9("generate", "--input", source, "--output", root / "out", *flags)
        measure_slow_storage(root / "out", 1 if quick else 3)


if __name__ == "__main__":
    main()
