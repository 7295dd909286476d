"""Measures the requests and bytes of an image, for `docs/costs.md`.

    python benchmarks/cost_figures.py [--input FOLDER]

Both are slopes between two sizes, so that what a job has once cancels out. Requests are counted
between the job and an object store on this machine; bytes are those of the files that the manifest
lists, made of the images of `FOLDER`.
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
from measure import draw_small, machine, multiply, run_in9, slope

from pipeline.commands.cli import main as in9
from pipeline.dataset.folder import sample_folder
from pipeline.inputs.layout import find_layout, list_images
from transforms.taxonomy import imagenet9

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
from gcs import BUCKET, object_store


def print_bytes(folder: str, root: Path) -> None:
    """Prints the bytes of a selected image, by folder of the dataset."""
    listed, *_ = list_images(find_layout(folder, None, "val"), imagenet9())
    images = [image for image in listed if image.annotation]
    selected, sizes = [], []
    for n in (len(images), 2 * len(images)):
        source, output = multiply(images, n, root / f"in-{n}"), root / f"out-{n}"
        run_in9("generate", "--input", source, "--output", output)
        manifest = json.loads((output / "manifest.json").read_text())
        selected.append(manifest["images"]["val"]["selected"])
        sizes.append(Counter[str]())
        for file in manifest["files"]:
            folder, slash, _ = file["path"].partition("/")
            sizes[-1][folder] += file["bytes"] if slash else 0
    print(f"selected: {selected[0]} of {len(images)}")
    for name in +sizes[0]:
        few, many = zip(selected, (size[name] for size in sizes), strict=True)
        print(f"{name}: {slope(few, many):.0f} bytes a selected image")


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
        print_bytes(arguments.input, Path(folder))


if __name__ == "__main__":
    main()
