"""What grows with the number of images, and how fast.

    python benchmarks/scale.py [--images 1000,10000,30000] [--rows 1300000,20000000]

* Jobs: copies of real pictures under new keys, generated, evaluated by a model that does next to
  nothing, verified and put on a page: seconds of each stage for 1,000 images, and peak memory.
* Rows alone: a simulated index through Plan, what every worker loads of it, the pairs of one
  output shard, and Commit with its manifest; each number in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from measure import Cost, card, multiply, peak_of_this_process, row, run_in9

from pipeline.dataset.config import ComposeConfig, DatasetConfig, SegmentConfig
from pipeline.dataset.manifest import MANIFEST
from pipeline.dataset.records import Record, Staging
from pipeline.dataset.sample import sample_folder
from pipeline.dataset.shards import (
    ShardCounts,
    index_file,
    layer_record,
    layer_tar,
    parquet_file,
    webdataset_file,
)
from pipeline.generate.commit import commit
from pipeline.generate.cut_source import cut_source, read_source
from pipeline.generate.plan import PlanSplit, load_plan
from pipeline.generate.shards import (
    CANDIDATE_SCHEMA,
    OutputShard,
    SourceShard,
    SplitTotals,
)
from pipeline.inputs.layout import find_layout
from pipeline.inputs.listing import list_images
from pipeline.storage.store import FileDigest, Store
from transforms.taxonomy import imagenet9

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
    """Whole commands on so many images."""
    listed, _ = list_images(find_layout(source, None, "val"), imagenet9())
    images = [image for image in listed if image.annotation]
    accepted = [
        image
        for image in images
        if next(cut_source(read_source(image.path, image.annotation), SegmentConfig())).layer
    ]
    (folder / "tiny_model.py").write_text(MODEL)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    found: dict[int, dict[str, float]] = {}
    peaks: dict[int, float] = {}
    for count in counts:
        root = folder / f"job-{count}"
        inputs = multiply(accepted, count, root / "in")
        output = root / "out"
        cost = run_in9("generate", "--input", inputs, "--output", output)
        peaks[count] = cost.peak
        found[count] = {**stages(cost), "generate, CPU": cost.cpu}
        of = ("--dataset", output)
        for name, arguments in {
            "generate again": ("generate", "--input", inputs, "--output", output),
            "verify": ("verify", *of),
            "evaluate": ("evaluate", *of, "--models", "python:tiny_model:model"),
            "report": ("report", *of),
        }.items():
            cost = run_in9(*arguments)
            found[count][name] = cost.wall
            peaks[count] = max(peaks[count], cost.peak)
        manifest = (output / MANIFEST).stat().st_size / count
        page = (output / "report.html").stat().st_size / 1e6
        row(f"scale: {count:,} images, manifest and page", f"{manifest:.0f} B/image, {page:.1f} MB")
    few = counts[0]
    for name, seconds in found[few].items():
        each = ", ".join(f"{1e6 * found[n][name] / n:.0f}" for n in counts)
        row(f"scale: {name}, us an image at {sizes(counts)}", each)
        del seconds
    for count in counts[1:]:
        ratio = f"{peaks[count] / peaks[few]:.2f} x"
        row(f"scale: peak memory, {count:,} images", ratio, f"{few:,} images, {peaks[few]:.0f} MB")


def stages(cost: Cost) -> dict[str, float]:
    """Seconds of the stages, summed over workers, of what a command said."""
    line = re.search(r"summed over workers: (.*)", cost.said)
    parts = line[1].split(", ") if line else []
    return {name: float(seconds) for name, seconds, _ in (part.rsplit(" ", 2) for part in parts)}


def sizes(counts: list[int]) -> str:
    return ", ".join(f"{count:,}" for count in counts)


def simulated_shards(count: int, config: DatasetConfig) -> tuple[SplitTotals, list[SourceShard]]:
    """Source shards of so many accepted images, whose files exist in name alone."""
    counts = ShardCounts.of(count, config.images_per_shard)
    totals = SplitTotals("val", counts, count, 0, 0)
    shards = []
    for shard in range(counts.source):
        rows = len(range(shard, count, counts.source))
        columns = {
            "key": [f"ILSVRC2012_val_{n:012d}" for n in range(shard, count, counts.source)],
            "label": pa.array((np.arange(rows) + shard) % 9, pa.int8()),
            "wnid": ["n02085620"] * rows,
            "layer_digest": [f"{shard * 131 + n:016x}" for n in range(rows)],
            "offset": pa.array(np.arange(rows) * 200_000, pa.int64()),
            "length": pa.array(np.full(rows, 90_000), pa.int64()),
        }
        arrays = [
            pa.array(columns.get(field.name, [None] * rows), field.type)
            for field in CANDIDATE_SCHEMA
        ]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, CANDIDATE_SCHEMA) as stream:
            stream.write_table(pa.Table.from_arrays(arrays, schema=CANDIDATE_SCHEMA))
        record, tar = layer_record("val", shard), layer_tar("val", shard)
        digests = (FileDigest(tar, 1, "0" * 64, rows), FileDigest(record, 1, "0" * 64, rows))
        records = (Record(f"{shard:032x}", record, digests, {tar: tar, record: record}),)
        shards.append(SourceShard(totals, shard, (), rows, records, bytes(sink.getvalue())))
    return totals, shards


def composed(output: OutputShard, config: DatasetConfig, images: int) -> OutputShard:
    """An output shard whose files are in place."""
    totals, shard = output.totals, output.shard
    of = totals.counts.output
    paths = [
        path
        for variant in config.compose.composed
        for path in (
            parquet_file(variant, "val", shard, of),
            webdataset_file(variant, "val", shard),
        )
    ]
    paths.append(index_file("val", shard, of))
    digests = tuple(FileDigest(path, 1, "0" * 64, images) for path in paths)
    index = Record(f"{shard:032x}", paths[-1], digests, {path: path for path in paths})
    row = {"status": "accepted", "label": 0, "selected": True, "object": None}
    return output.composed(index, [row] * images)


def measure_rows(count: int) -> None:
    """Plan and Commit of a simulated index; prints seconds and memory as JSON."""
    config = DatasetConfig(compose=ComposeConfig())
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        staging = Staging(store, ".in9/staging/x")
        totals, shards = simulated_shards(count, config)
        rows = {shard.shard: shard.segmented for shard in shards}
        before = peak_of_this_process()
        started = time.perf_counter()
        plan = PlanSplit(config.compose, staging, config.segment)
        outputs = list(plan.process(("val", shards)))
        seconds["plan"] = time.perf_counter() - started
        peak_plan = peak_of_this_process() - before
        del shards
        worker = [sys.executable, __file__, "--load", folder, outputs[0].plan]
        said = json.loads(subprocess.run(worker, check=True, capture_output=True).stdout)
        seconds |= said["seconds"]
        images = [sum(rows[s] for s in totals.counts.sources_of(o.shard)) for o in outputs]
        done = [composed(o, config, n) for o, n in zip(outputs, images, strict=True)]
        files = [file for shard in done for record in shard.records for file in record.files]
        for file in files:
            path = Path(folder) / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        started = time.perf_counter()
        commit(config, store, imagenet9(), done)
        seconds["commit"] = time.perf_counter() - started
        manifest = (Path(folder) / MANIFEST).stat().st_size
    print(
        json.dumps(
            {
                "seconds": seconds,
                "plan": peak_plan,
                "worker": said["memory"],
                "manifest": manifest,
                "files": len(files),
            }
        )
    )


def load(folder: str, plan: str) -> None:
    """What a worker does with a plan; prints seconds and memory as JSON."""
    config = ComposeConfig()
    before = resident()
    started = time.perf_counter()
    loaded = load_plan(Store(folder), plan, config, "x")
    middle = time.perf_counter()
    step = max(1, len(loaded.rows) // 1024)
    loaded.backgrounds([loaded.keys[int(n)].as_py() for n in loaded.rows[::step]][:1024])
    seconds = {
        "load a plan": middle - started,
        "pairs of a shard": time.perf_counter() - middle,
    }
    print(json.dumps({"seconds": seconds, "memory": resident() - before}))


def resident() -> float:
    """Resident memory of this process, in MB. Its peak would be that of the parent, which Linux
    hands on."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", default=sample_folder(), help="images to copy (the sample)")
    parser.add_argument("--images", default="1000,10000", help="of the jobs (1000,10000)")
    parser.add_argument("--rows", default="1300000", help="of the simulated index (1300000)")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--load", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        load(*arguments.load)
        return
    if arguments.one:
        measure_rows(arguments.one)
        return
    print(card())
    for count in (int(number) for number in arguments.rows.split(",") if number):
        command = [sys.executable, __file__, "--one", str(count)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        for name, seconds in found["seconds"].items():
            each = f"{1e6 * seconds / count:.2f} us an image"
            row(f"scale: {name}, {count:,} rows", f"{seconds:.1f} s", each)
        for name in ("plan", "worker"):
            each = f"{1e6 * found[name] / count:.0f} bytes an image"
            row(f"scale: memory of {name}, {count:,} rows", f"{found[name]:,.0f} MB", each)
        size = f"{found['manifest'] / 1e6:.1f} MB"
        row(f"scale: manifest, {count:,} rows", size, f"{found['files']:,} files")
    counts = [int(number) for number in arguments.images.split(",") if number]
    if counts:
        with tempfile.TemporaryDirectory() as folder:
            measure_jobs(Path(folder), arguments.input, counts)


if __name__ == "__main__":
    main()
