"""Measures what an image costs: the figures of `docs/costs.md`.

    python benchmarks/cost_figures.py [--input FOLDER] [--model efficientnet_lite0]

CPU seconds and bytes come from the real commands on images of `FOLDER`, as slopes between two
sizes, so that start-up cancels out. Requests are counted between the job and an object store on
this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import requests
from measure import Cost, draw_small, machine, multiply, run_in9, slope

from pipeline.commands.cli import main as in9
from pipeline.dataset.folder import sample_folder
from pipeline.inputs.layout import find_layout, list_images
from transforms.taxonomy import imagenet9
from transforms.variants import PICTURES

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
from gcs import BUCKET, object_store

ONE = "--direct_num_workers=1"


def print_compute(folder: str, rounds: int, model: str, root: Path) -> None:
    """Prints CPU seconds and bytes of an image."""
    listed, _ = list_images(find_layout(folder, None, "val"), imagenet9())
    images = [image for image in listed if image.annotation]
    few, many = len(images), 2 * len(images)
    sources = {n: multiply(images, n, root / f"in-{n}") for n in (few, many)}
    outputs: dict[int, Path] = {}
    for number in range(rounds):
        costs: dict[str, dict[int, Cost]] = {"generate": {}, "compose": {}, "evaluate": {}}
        for n, source in sources.items():
            outputs[n] = root / f"out-{n}-{number}"
            make = ("generate", "--input", source, "--output", outputs[n], ONE)
            costs["generate"][n] = run_in9(*make)
            costs["compose"][n] = run_in9(*make, "--seed", 1, "--overwrite=config")
            costs["evaluate"][n] = run_in9("evaluate", "--dataset", outputs[n], "--models", model)
        manifests = {n: json.loads((outputs[n] / "manifest.json").read_text()) for n in sources}
        cpu = {
            stage: slope((few, by_size[few].cpu), (many, by_size[many].cpu))
            for stage, by_size in costs.items()
        }
        selected = {n: m["images"]["val"]["selected"] for n, m in manifests.items()}
        each = few / selected[few]
        pictures = len(PICTURES)
        print(
            f"round {number + 1}: segment {cpu['generate'] - cpu['compose']:.4f} s an image, "
            f"compose {cpu['compose'] * each:.4f} s a selected image, {model} "
            f"{cpu['evaluate'] * each / pictures:.4f} s a picture"
        )
    sizes: dict[str, Counter[str]] = {n: Counter() for n in sources}  # type: ignore[misc]
    for n, manifest in manifests.items():
        for file in manifest["files"]:
            sizes[n][file["path"].partition("/")[0]] += file["bytes"]  # type: ignore[index]
        sizes[n]["results"] = sum(  # type: ignore[index]
            path.stat().st_size for path in outputs[n].rglob("predictions/*")
        )
    print(f"selected: {selected[few]} of {few}")
    for name in ("layers", "index", "parquet", "webdataset", "results"):
        points = {n: (selected[n], sizes[n][name]) for n in sources}  # type: ignore[index]
        print(f"{name}: {slope(points[few], points[many]):.0f} bytes a selected image")


def kind(method: str, url: str) -> str:
    """Classifies a request as Cloud Storage charges it: writes (class A), reads (B) or free."""
    if method == "DELETE":
        return "free"
    is_object = "/o/" in url or "alt=media" in url
    return "reads" if method == "GET" and is_object else "writes"


def print_requests(few: int, root: Path) -> None:
    """Prints the requests of `generate` for an image, with input and output in an object store."""
    counts = {}
    with object_store():
        for n in (few, 2 * few):
            upload(draw_small(n, root / f"drawn-{n}"))
            counts[n] = count_requests(f"gs://{BUCKET}/drawn-{n}", f"gs://{BUCKET}/out-{n}")
    for name in ("reads", "writes", "free"):
        each = slope((few, counts[few][name]), (2 * few, counts[2 * few][name]))
        print(f"{name}: {each:.3f} requests an image")


def upload(folder: Path) -> None:
    """Copies a folder into the bucket."""
    from pipeline.storage.store import Store

    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    Store(str(folder)).copy_into(
        Store(f"gs://{BUCKET}/{folder.name}"), [(name, name) for name in files]
    )


def count_requests(source: str, output: str) -> Counter[str]:
    """Counts the requests of a `generate` that runs in this process."""
    counts: Counter[str] = Counter()
    request = requests.Session.request

    def counted(session: Any, method: str, url: str, **settings: Any) -> requests.Response:
        counts[kind(method, url)] += 1
        return request(session, method, url, **settings)

    with (
        mock.patch.object(requests.Session, "request", counted),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        assert in9(["generate", "--input", source, "--output", output]) == 0
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", default=sample_folder(), help="images to measure (the sample)")
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions (3)")
    parser.add_argument(
        "--stored",
        type=int,
        default=2048,
        help="images of the smaller run whose requests are counted",
    )
    arguments = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        print_requests(arguments.stored, Path(folder))
        print_compute(arguments.input, arguments.rounds, arguments.model, Path(folder))


if __name__ == "__main__":
    main()
