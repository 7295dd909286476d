"""Measures how costs grow with the number of images.

    python benchmarks/scale.py [--images 1000,10000] [--rows 100000,300000,1300000]

* Jobs: copies of real pictures under new keys are generated, evaluated by a model that does almost
  nothing, verified and reported. The figures are each stage's time for an image, and peak memory.
* Rows alone: empty files in folders like ImageNet's are listed; simulated records go through Plan,
  the loading of the plan that every worker does, the pairing of one output shard, and Commit, with
  all files in staging. Each step is a separate process, whose peak memory is measured, and which
  reads its input elements one by one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pickle
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from measure import Cost, machine, multiply, peak_memory, row, run_in9

from pipeline.dataset.config import ComposeConfig, DatasetConfig, SegmentConfig
from pipeline.dataset.folder import sample_folder
from pipeline.dataset.manifest import MANIFEST
from pipeline.dataset.records import (
    RECORD_SCHEMA,
    ShardCounts,
    Staging,
    index_file,
    layer_record,
    layer_tar,
)
from pipeline.dataset.sinks import sample_files
from pipeline.generate.commit import finish, move_files, prepare
from pipeline.generate.cut_source import Cutter, read_source
from pipeline.generate.graph import ListSplits
from pipeline.generate.origin import GenerateJob
from pipeline.generate.plan import PlanSplit, load_plan
from pipeline.generate.shard_elements import OutputShard, SourceShard, SplitTotals
from pipeline.inputs.layout import find_layout, list_images
from pipeline.runtime.progress import Progress
from pipeline.storage.store import FileDigest, Store
from transforms.taxonomy import OUTSIDE, imagenet9

MODEL = """
import torch

class Pooled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(3, 9)

    def forward(self, pictures):
        return self.head(pictures[:, :, ::32, ::32].mean((2, 3)))

def model():
    torch.manual_seed(0)
    return Pooled()
"""


def measure_jobs(folder: Path, source: str, counts: list[int]) -> None:
    """Measures whole commands on each number of images."""
    listed, *_ = list_images(find_layout(source, None, "val"), imagenet9())
    images = [image for image in listed if image.annotation]
    accepted = [
        image
        for image in images
        if next(Cutter(SegmentConfig()).cut(read_source(image.location, image.annotation))).layer
    ]
    (folder / "tiny_model.py").write_text(MODEL)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    seconds: dict[int, dict[str, float]] = {}
    peaks: dict[int, float] = {}
    # By default, a thousand images make one shard, and one core that works alone is faster than
    # each of two.
    shards = {"images_per_shard": 500}
    outputs = {count: folder / f"job-{count}" / "out" for count in counts}
    generate = {
        count: ("generate", "--input", multiply(accepted, count, output.parent / "in"))
        + ("--output", output)
        for count, output in outputs.items()
    }
    for count in counts:
        cost = run_in9(*generate[count], **shards)
        peaks[count] = cost.peak
        seconds[count] = {**stages(cost), "generate, CPU": cost.cpu}
    # Other pictures from the same layers. A host that gives a core to somebody else for a while
    # adds to wall time, and more to that of a long job; so the jobs take turns.
    composed = compose_in_turns(generate, shards)
    for count, output in outputs.items():
        seconds[count]["generate again"] = run_in9(*generate[count], **shards).wall
        dataset = ("--dataset", output)
        for name, arguments in {
            "verify": ("verify", *dataset),
            "evaluate": ("evaluate", *dataset, "--models", "python:tiny_model:model"),
            "report": ("report", *dataset),
        }.items():
            cost = run_in9(*arguments)
            seconds[count][name] = cost.wall
            peaks[count] = max(peaks[count], cost.peak)
        manifest = (output / MANIFEST).stat().st_size / count
        page = (output / "report.html").stat().st_size / 1e6
        row(f"scale: {count:,} images, manifest and page", f"{manifest:.0f} B/image, {page:.1f} MB")
    few = counts[0]
    for name in seconds[few]:
        each = ", ".join(f"{1e6 * seconds[n][name] / n:.0f}" for n in counts)
        row(f"scale: {name}, us an image at {sizes(counts)}", each)
    for count in counts[1:]:
        growth = statistics.median(
            (many / count) / (one / few)
            for one, many in zip(composed[few], composed[count], strict=True)
        )
        against = f"{few:,} images, {1e3 * statistics.median(composed[few]) / few:.1f} ms"
        row(
            f"scale: compose, CPU of an image, {count:,} images",
            f"{growth:.2f} x",
            against,
            "<= 1.1",
        )
        ratio = f"{peaks[count] / peaks[few]:.2f} x"
        against = f"{few:,} images, {peaks[few]:.0f} MB"
        row(f"scale: peak memory, {count:,} images", ratio, against, "<= 1.05")


def compose_in_turns(
    generate: Mapping[int, Sequence[object]], shards: Mapping[str, int]
) -> dict[int, list[float]]:
    """Composes the pictures of each job three times; returns CPU seconds by number of images."""
    seconds: dict[int, list[float]] = {count: [] for count in generate}
    for before, quality in itertools.pairwise((95, 94, 93, 95)):
        for count, words in generate.items():
            again, composed = (
                run_in9(*words, "--overwrite", "config", jpeg_quality=each, **shards)
                for each in (before, quality)
            )
            seconds[count].append(composed.cpu - again.cpu)
    return seconds


def stages(cost: Cost) -> dict[str, float]:
    """Parses the seconds of each stage, summed over workers, from the output of a command."""
    line = re.search(r"summed over workers: (.*)", cost.output)
    parts = line[1].split(", ") if line else []
    return {name: float(seconds) for name, seconds, _ in (part.rsplit(" ", 2) for part in parts)}


def sizes(counts: list[int]) -> str:
    return ", ".join(f"{count:,}" for count in counts)


CONFIG = DatasetConfig(compose=ComposeConfig())
LISTED, SEGMENTED, PLANNED, COMPOSED, MOVES = (
    "listed",
    "segmented",
    "planned",
    "composed",
    "moves",
)


def write_elements(folder: Path, name: str, elements: Iterable[Any]) -> float:
    """Writes the elements for a later step; returns their mean size in bytes."""
    with open(folder / name, "wb") as file:
        for number, element in enumerate(elements, 1):  # noqa: B007
            pickle.dump(element, file)
        return file.tell() / number


def read_elements(folder: Path, name: str) -> Iterator[Any]:
    """Yields the elements that `write_elements` has written."""
    size = (folder / name).stat().st_size
    with open(folder / name, "rb") as file:
        while file.tell() < size:
            yield pickle.load(file)


def write_input(root: Path, count: int) -> None:
    """Writes empty images and boxes in as many classes as ImageNet-9 has."""
    wnids = [wnid for wnid in imagenet9().wnids if imagenet9().label_of(wnid) != OUTSIDE]
    for start, wnid in enumerate(wnids):
        for kind in ("train", "Annotations/train"):
            (root / kind / wnid).mkdir(parents=True)
        for number in range(start, count, len(wnids)):
            (root / "train" / wnid / f"{wnid}_{number}.JPEG").touch()
            (root / "Annotations" / "train" / wnid / f"{wnid}_{number}.xml").touch()


def staging_of(folder: Path) -> Staging:
    return Staging(Store(str(folder / "dataset")), ".in9/staging/0123456789abcdef0123456789abcdef")


def stage(staging: Staging, paths: list[str], rows: int) -> list[FileDigest]:
    """Writes dummy files of a shard, which are recorded with `rows` rows."""
    for path in paths:
        staging.store.write(staging.staged(path), b"x")
    return [FileDigest(path, 1, "0" * 64, rows) for path in paths]


def segmented(staging: Staging, totals: SplitTotals, shard: int) -> SourceShard:
    """Creates a source shard of accepted images."""
    numbers = range(shard, totals.listed, totals.counts.source)
    rows = len(numbers)
    columns = {
        "key": [f"ILSVRC2012_val_{n:012d}" for n in numbers],
        "path": [f"n02085620/ILSVRC2012_val_{n:012d}.JPEG" for n in numbers],
        "status": ["accepted"] * rows,
        "label": (np.arange(rows) + shard) % 9,
        "wnid": ["n02085620"] * rows,
        "layer_digest": [f"{n:032x}" for n in numbers],
        "only_bg_t_offset": np.arange(rows) * 200_000,
        "only_bg_t_length": np.full(rows, 90_000),
    }
    table = pa.table(
        [pa.array(columns.get(field.name, [None] * rows), field.type) for field in RECORD_SCHEMA],
        RECORD_SCHEMA,
    )
    files = stage(staging, [layer_tar("val", shard)], rows)
    record = staging.write(layer_record("val", shard), table, f"{shard:032x}", files)
    return SourceShard(totals, shard, (), rows, record)


def composed(staging: Staging, output: OutputShard, images: int) -> OutputShard:
    """Creates an output shard of selected images."""
    totals, shard = output.totals, output.shard
    shards = totals.counts.output
    paths = list(
        sample_files(CONFIG.compose.composed, CONFIG.compose.formats, "val", shard, shards)
    )
    files = stage(staging, paths, images)
    index, table = index_file("val", shard, shards), pa.table({"key": ["x"] * images})
    row = {"status": "accepted", "label": 0, "selected": True}
    record = staging.write(index, table, f"{shard:032x}", files)
    return output.with_result(record, [row] * images, images)


def do(step: str, folder: Path, count: int) -> dict[str, float]:
    """Runs a step of the simulated job, and returns its measurements."""
    staging = staging_of(folder)
    store = staging.store
    started = time.perf_counter()
    if step == "write an input":
        write_input(folder / "input", count)
        return {}
    if step == "list":
        layout = find_layout(str(folder / "input"), None, "train")
        progress = Progress.for_store(store)
        job = GenerateJob(CONFIG, (layout,), imagenet9(), store, progress, previous={})
        size = write_elements(folder, LISTED, ListSplits(job).process(None))
        return {"seconds": time.perf_counter() - started, "listed shard, bytes": size}
    if step == "segment":
        counts = ShardCounts.for_images(count, CONFIG.images_per_shard)
        totals = SplitTotals("val", counts, count, 0, 0)
        shards = (segmented(staging, totals, shard) for shard in range(counts.source))
        return {"segmented shard, bytes": write_elements(folder, SEGMENTED, shards)}
    if step == "plan":
        shards = (shard.for_plan() for shard in read_elements(folder, SEGMENTED))
        progress = Progress.for_store(store)
        job = GenerateJob(CONFIG, (), imagenet9(), store, progress, previous={})
        outputs = PlanSplit(job).process(("val", shards))
        seconds = time.perf_counter() - started
        return {
            "seconds": seconds,
            "planned shard, bytes": write_elements(folder, PLANNED, outputs),
        }
    if step == "load a plan":
        output = next(read_elements(folder, PLANNED))
        plan = load_plan(store, output.plan, CONFIG.compose, output.plan_digest)
        seconds = time.perf_counter() - started
        numbers = plan.rows[:: max(1, len(plan.rows) // 1024)][:1024]
        plan.backgrounds([plan.keys[int(n)].as_py() for n in numbers])
        pairing = time.perf_counter() - started - seconds
        return {"seconds": seconds, "pairs, ms": 1e3 * pairing}
    if step == "compose":
        rows = {shard.shard: shard.segmented for shard in read_elements(folder, SEGMENTED)}
        composed_shards = (
            composed(staging, o, sum(rows[n] for n in o.totals.counts.sources_of(o.shard)))
            for o in read_elements(folder, PLANNED)
        )
        return {"composed shard, bytes": write_elements(folder, COMPOSED, composed_shards)}
    if step == "prepare":
        shards = (each for name in (SEGMENTED, COMPOSED) for each in read_elements(folder, name))
        fingerprint, moves = prepare(CONFIG, store, imagenet9(), shards)
        seconds = time.perf_counter() - started
        write_elements(folder, MOVES, [fingerprint, *moves])
        return {"seconds": seconds, "files": sum(map(len, moves))}
    fingerprint, *moves = read_elements(folder, MOVES)
    if step == "move":
        move_files(store, [move for shard in moves for move in shard])
    else:
        finish(store, imagenet9(), fingerprint)
    return {"seconds": time.perf_counter() - started}


STEPS = (
    "write an input",
    "list",
    "segment",
    "plan",
    "load a plan",
    "compose",
    "prepare",
    "move",
    "finish",
)


def measure_rows(count: int) -> None:
    """Measures all steps of a simulated job."""
    with tempfile.TemporaryDirectory() as folder:
        for step in STEPS:
            command = [sys.executable, __file__, "--step", step, folder, str(count)]
            figures = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            seconds, peak = figures.pop("seconds", None), figures.pop("peak")
            for name, value in figures.items():
                row(f"scale: {name}, {count:,} rows", f"{value:,.1f}")
            if seconds is not None:
                each = f"{1e6 * seconds / count:.2f} us an image"
                row(f"scale: {step}, {count:,} rows", f"{seconds:.2f} s", each)
                row(f"scale: peak memory of {step}, {count:,} rows", f"{peak:,.0f} MB")
        manifest = (Path(folder) / "dataset" / MANIFEST).stat().st_size
        row(f"scale: manifest, {count:,} rows", f"{manifest / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", default=sample_folder(), help="images to copy (the sample)")
    parser.add_argument(
        "--images", default="1000,10000", help="numbers of images of the jobs (1000,10000)"
    )
    parser.add_argument(
        "--rows", default="1300000", help="numbers of rows of the simulated index (1300000)"
    )
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        step, folder, count = arguments.step
        print(json.dumps(do(step, Path(folder), int(count)) | {"peak": peak_memory()}))
        return
    print(machine())
    for count in (int(number) for number in arguments.rows.split(",") if number):
        measure_rows(count)
    counts = [int(number) for number in arguments.images.split(",") if number]
    if counts:
        with tempfile.TemporaryDirectory() as folder:
            measure_jobs(Path(folder), arguments.input, counts)


if __name__ == "__main__":
    main()
