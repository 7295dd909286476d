"""Measures how fast libraries read the shards that are made for them.

    python benchmarks/reading.py [--images 360]

`webdataset`, `datasets`, `pyarrow` and our own `open_dataset` read one variant in turns, with and
without decoding. The yardstick with decoding is a loop that decodes the same pictures from memory
with Pillow; without decoding, a loop that reads the whole files.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import datasets
import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import webdataset
from measure import machine, multiply, row, run_in9
from PIL import Image

import in9
from pipeline.dataset.folder import sample_folder
from pipeline.inputs.layout import find_layout, list_images
from transforms.taxonomy import imagenet9

VARIANT = "mixed_rand"


def consume(samples: Iterable[object]) -> int:
    """Counts samples."""
    return sum(1 for _ in samples)


def decode(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def readers(root: Path) -> dict[str, tuple[Callable[[], int], Callable[[], int]]]:
    """Returns a reader with and one without decoding for each library.

    Readers return the number of samples, 0 if the library has no such mode.
    """
    tars = sorted(map(str, root.glob(f"webdataset/{VARIANT}/*.tar")))
    parquet = sorted(map(str, root.glob(f"parquet/{VARIANT}/*.parquet")))

    def by_webdataset(decoded: bool) -> int:
        samples = webdataset.WebDataset(tars, shardshuffle=False)
        return consume(samples.decode("rgb8") if decoded else samples)

    def by_datasets(decoded: bool) -> int:
        samples = datasets.load_dataset(
            "parquet", data_files=parquet, split="train", streaming=True
        ).cast_column("image", datasets.Image(decode=decoded))
        return sum(1 for each in samples if not decoded or np.asarray(each["image"]).size)

    def by_pyarrow(decoded: bool) -> int:
        count = 0
        for batch in pyarrow.dataset.dataset(parquet).to_batches(columns=["image", "label"]):
            for image in batch.column("image").to_pylist():
                count += bool(decode(image["bytes"]).size) if decoded else 1
        return count

    dataset = in9.open_dataset(str(root), VARIANT)
    return {
        "webdataset": (lambda: by_webdataset(True), lambda: by_webdataset(False)),
        "datasets (streaming)": (lambda: by_datasets(True), lambda: by_datasets(False)),
        "pyarrow": (lambda: by_pyarrow(True), lambda: by_pyarrow(False)),
        "open_dataset": (lambda: consume(dataset), lambda: 0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--images", type=int, default=360, help="approximate number of images (360)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="repetitions, in turns (3)")
    arguments = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "out"
        images, *_ = list_images(find_layout(sample_folder(), None, "val"), imagenet9())
        source = multiply(images, arguments.images, Path(folder) / "in")
        run_in9("generate", "--input", source, "--output", root, images_per_shard=128)
        files = [*root.glob(f"parquet/{VARIANT}/*"), *root.glob(f"webdataset/{VARIANT}/*.tar")]
        pictures = [
            image["bytes"]
            for path in files
            if path.suffix == ".parquet"
            for image in pq.read_table(path, columns=["image"])["image"].to_pylist()
        ]
        rates: dict[str, list[float]] = {}

        def note(name: str, work: Callable[[], int]) -> None:
            started = time.perf_counter()
            count = work()
            if count:
                rates.setdefault(name, []).append(count / (time.perf_counter() - started))

        def read_whole() -> int:
            for path in files:
                path.read_bytes()
            return 2 * len(pictures)

        by_library = readers(root)
        for _ in range(arguments.rounds):
            note("bare decoding", lambda: sum(bool(decode(data).size) for data in pictures))
            note("bare reading", read_whole)
            for name, (decoded, raw) in by_library.items():
                note(f"{name}, decoded", decoded)
                note(f"{name}, not decoded", raw)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    row("reading: bare decoding", f"{medians['bare decoding']:.0f} pictures/s", "Pillow, in memory")
    for name in by_library:
        rate = medians[f"{name}, decoded"]
        ratio = f"{rate / medians['bare decoding']:.2f} x"
        row(f"reading: {name}", ratio, f"bare decoding; {rate:.0f} pictures/s")
    for name in by_library:
        if speed := medians.get(f"{name}, not decoded"):
            row(f"reading: {name}, not decoded", f"{speed:.0f} pictures/s")


if __name__ == "__main__":
    main()
