"""Where the time of `in9 generate` goes: one worker under Python's profiler, by kind of work.

    python benchmarks/generate_profile.py [--input FOLDER] [--images 288]

The profiler slows Python down and compiled code not at all, so the shares of segmentation and
of the codecs are understated a little.
"""

from __future__ import annotations

import argparse
import pstats
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import card, multiply, row

from pipeline.command_line.job_flags import sample_folder
from pipeline.sources.layout import find_layout
from pipeline.sources.listing import list_images
from transforms.taxonomy import imagenet9

WORK = {
    "GrabCut, minimum cuts": ("transforms/grabcut/max_flow.py:minimum_cut",),
    "GrabCut, colour models and links": ("transforms/segmentation.py:segment_grabcut",),
    "loading the kernels, once a process": ("transforms/segmentation.py:_prepare_grabcut",),
    "decoding sources and layers": (
        "transforms/codec.py:decode_image",
        "transforms/codec.py:decode_mask",
    ),
    "encoding layers as PNG": ("pipeline/dataset/layer_files.py:encode_layer",),
    "encoding versions as JPEG and PNG": ("pipeline/generate/variant_files.py:_sample",),
    "resizing, cropping, tiling": ("transforms/cutting.py:_cut",),
    "composing pixels": ("transforms/variants.py:compose",),
    "listing, reading and hashing sources": (
        "pipeline/generate/list_split.py:_list",
        "pipeline/generate/segment.py:_digests",
        "pipeline/generate/segment.py:_read",
    ),
    "writing tars and Parquet": (
        "pipeline/dataset/sinks.py:add",
        "pipeline/dataset/layer_files.py:add_layer",
    ),
    "Plan and Commit": ("pipeline/generate/plan.py:_plan", "pipeline/generate/commit.py:commit"),
}
"""Functions, by what they are for. None is called by another, but for the cuts by GrabCut."""

INSIDE = {"GrabCut, colour models and links": "GrabCut, minimum cuts"}
"""Kinds of work that are counted within another."""

WHOLE = "pipeline/runner/run.py:run_pipeline"


def seconds_of(profile: Path) -> dict[str, float]:
    """Seconds inside each of our functions, callees included, by `module:name`."""
    found: dict[str, float] = {}
    for (file, _, name), (_, _, _, inside, _) in pstats.Stats(str(profile)).stats.items():  # type: ignore[attr-defined]
        for package in ("pipeline", "transforms"):
            if f"/{package}/" in file and "site-packages" not in file:
                at = f"{package}/{file.rpartition(f'/{package}/')[2]}:{name}"
                found[at] = found.get(at, 0) + inside
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", default=sample_folder(), help="images to copy (the sample)")
    parser.add_argument("--images", type=int, default=288, help="how many (288)")
    arguments = parser.parse_args()
    print(card())
    listing = list_images(find_layout(arguments.input, None, "val"), imagenet9())
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "profile"
        images = [image for image in listing.images if image.annotation]
        source = multiply(images, arguments.images, Path(folder) / "in")
        command = [sys.executable, "-m", "cProfile", "-o", profile, "-m", "pipeline", "generate"]
        command += ["--input", source, "--output", Path(folder) / "out", "--direct_num_workers=1"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found = seconds_of(profile)
    whole = found[WHOLE]
    shares = {name: sum(found[function] for function in of) for name, of in WORK.items()}
    for outer, inner in INSIDE.items():
        shares[outer] -= shares[inner]
    shares["the rest: records, progress, Beam"] = whole - sum(shares.values())
    for name, seconds in sorted(shares.items(), key=lambda share: -share[1]):
        each = f"{1e3 * seconds / arguments.images:.1f} ms an image"
        row(f"profile: {name}", f"{100 * seconds / whole:.1f} %", each)


if __name__ == "__main__":
    main()
