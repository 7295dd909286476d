"""Measures what `in9 generate` costs beyond the method: CPU, workers, memory.

    python benchmarks/generate_cost.py [--input FOLDER] [--segmenter grabcut] [--images 72]

* CPU of an image, compared with a bare loop over the same functions (read, cut, encode the layer,
  decode it and three backgrounds, compose, encode, write) without Beam, records, hashes, tars and
  Parquet, with both formats and with one; and how much of it is segmentation.
* All of that but segmentation, which is a job with the segmenter `box`, compared with a floor: the
  bare calls of libraries that make the same bytes of the same pixels (decode, resize, encode,
  decode layers and backgrounds, hash, write), without the work on pixels, records and tables.
* Two workers compared with one, on copies of two images, which are of two classes, so that they can
  be paired; beside it, what two bare loops in separate processes gain on this machine, whose cores
  may share more than is apparent.
* Peak memory with ten times the images.

Times are slopes between two sizes, so that start-up cancels out. All are measured in turns, several
times; the cheapest run of each size counts, as other programs of the machine only add to it.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import itertools
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from measure import machine, multiply, row, run_in9, slope
from PIL import Image

from pipeline.dataset.config import SegmentConfig
from pipeline.dataset.folder import sample_folder
from pipeline.dataset.sinks import decode_layer, encode_layer
from pipeline.generate.cut_source import Cutter, read_source
from pipeline.inputs.layout import find_layout, list_images
from pipeline.inputs.source_images import SourceImage
from transforms.codec import decode_png, encode_jpeg, encode_png
from transforms.cutting import cut_objects
from transforms.segmentation import SEGMENTERS
from transforms.taxonomy import imagenet9
from transforms.variants import PAPER, VARIANTS

_JPEG = [
    *(cv2.IMWRITE_JPEG_QUALITY, 95),
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
]
FORMATS = ("parquet", "parquet,webdataset")


def bare_loop(
    images: Sequence[SourceImage], config: SegmentConfig, out: Path, copies: int
) -> float:
    """Measures the method alone: one image after the other, with all bytes written to one file.

    It is called in a new process, as the memory of an old one has grown to what the loop needs.

    Args:
      images: the images.
      config: how they are segmented.
      out: the file.
      copies: number of formats that a dataset stores each picture in.

    Returns:
      CPU seconds.
    """
    cv2.setNumThreads(1)
    segmenter = SEGMENTERS[config.segmenter]
    assert segmenter.segment is not None  # True for all segmenters that need no given masks.
    started = time.process_time()
    before: dict[str, bytes] = {}
    with open(out, "wb") as file:
        for image in images:
            source = read_source(image.location, image.annotation)
            (cut,) = cut_objects(
                source.image,
                source.annotation,
                segment=segmenter.segment,
                seed=config.grabcut_seed,
                resize=config.resize,
                crop=config.image_size,
                interpolation=config.interpolation,
            )
            if cut.layer is None:
                continue
            encoded_layer = encode_layer(cut.layer)
            for data in encoded_layer.values():
                file.write(data)
            layer = decode_layer(*encoded_layer.values(), box=cut.layer.box)
            for variant in (VARIANTS[name] for name in PAPER):
                background = None
                if variant.from_layer is None:
                    background = decode_png((before or encoded_layer)["only_bg_t"])
                picture = variant.compose(layer, background)
                encoded = encode_png(picture) if variant.lossless else encode_jpeg(picture, 95)
                for _ in range(copies):
                    file.write(encoded)
            before = encoded_layer
    return time.process_time() - started


def floor(images: Sequence[SourceImage], config: SegmentConfig, out: Path) -> float:
    """Measures the CPU seconds of bare calls of libraries for a dataset's files, without cutting.

    The pixels are made before. Called in a new process, as `bare_loop` is.
    """
    cv2.setNumThreads(1)
    made = []
    for image in images:
        source = read_source(image.location, image.annotation)
        cut = next(Cutter(config).cut(source))
        assert cut.layer is not None  # `main` chooses such images.
        layer = cut.layer
        pictures = [VARIANTS[name] for name in PAPER]
        pixels = [each.compose(layer, layer.only_bg_t) for each in pictures if not each.lossless]
        made.append((source.image, layer, pixels))
    started = time.process_time()
    with open(out, "wb") as file:
        for data, layer, pixels in made:
            native = simplejpeg.decode_jpeg(data)
            side = (config.resize, config.resize)
            # The picture, its tiled background and the mask.
            for each in (native, native, native[..., 0]):
                np.asarray(Image.fromarray(each).resize(side, Image.Resampling.NEAREST))
            mask = layer.mask.astype(np.uint8)
            pngs = (layer.image, layer.only_bg_t, mask, mask)
            files = [cv2.imencode(".png", each)[1].tobytes() for each in pngs]
            # The layer, and the backgrounds of three other images.
            for content in (*files[:2], files[1], files[1], files[1]):
                cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
            files += [cv2.imencode(".jpg", each, _JPEG)[1].tobytes() for each in pixels]
            for content in files:
                hashlib.sha256(content).digest()
                file.write(content)
    return time.process_time() - started


def time_loops(processes: int, image: SourceImage, count: int, config: SegmentConfig) -> float:
    """Measures the seconds that each of several processes at once takes for copies of an image."""
    with multiprocessing.Pool(processes) as pool:
        pool.map(_cut_repeatedly, [(image, 1, config)] * processes, chunksize=1)
        started = time.perf_counter()
        pool.map(_cut_repeatedly, [(image, count, config)] * processes, chunksize=1)
        return time.perf_counter() - started


def _cut_repeatedly(work: tuple[SourceImage, int, SegmentConfig]) -> None:
    image, count, config = work
    cv2.setNumThreads(1)
    for _ in range(count):
        list(Cutter(config).cut(read_source(image.location, image.annotation)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", default=sample_folder(), help="images to copy (the sample)")
    parser.add_argument("--segmenter", default="grabcut")
    parser.add_argument("--images", type=int, default=72, help="images of the smaller run (72)")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions, in turns (5)")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    config = SegmentConfig(segmenter=arguments.segmenter)
    listed, *_ = list_images(find_layout(arguments.input, None, "val"), imagenet9())
    accepted = [
        image
        for image in itertools.islice(listed, arguments.images)
        if next(Cutter(config).cut(read_source(image.location, image.annotation))).layer is not None
    ]
    few, many = arguments.images, 6 * arguments.images
    size = max(1, few // 4)
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        inputs = {n: multiply(accepted, n, root / f"in-{n}") for n in (few, many)}
        first, *others = accepted
        equal = [first, next(image for image in others if image.label != first.label)]
        two = {n: multiply(equal, n, root / f"two-{n}") for n in (few, many)}
        runs = iter(range(1000))

        def generate(source: Path, *flags: object, **keys: int) -> tuple[float, float, float]:
            output = root / f"out-{next(runs)}"
            chosen = () if "--segmenter" in flags else ("--segmenter", arguments.segmenter)
            cost = run_in9(
                *("generate", "--input", source, "--output", output, *chosen, *flags), **keys
            )
            return cost.cpu, cost.wall, cost.peak

        costs: dict[tuple[str, int], list[float]] = collections.defaultdict(list)

        def of_image(what: str) -> float:
            return slope((few, min(costs[what, few])), (many, min(costs[what, many])))

        for _ in range(arguments.rounds):
            for n in (few, many):
                images = list_images(find_layout(str(inputs[n]), None, "val"), imagenet9())[0]
                one = "--direct_num_workers=1"
                for copies, formats in enumerate(FORMATS, 1):
                    with multiprocessing.get_context("spawn").Pool(1) as pool:
                        settings = (images, config, root / "bare", copies)
                        costs[f"loop, {formats}", n].append(pool.apply(bare_loop, settings))
                    job = generate(inputs[n], one, "--formats", formats)
                    costs[formats, n].append(job[0])
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    boxes = SegmentConfig(segmenter="box")
                    costs["floor", n].append(pool.apply(floor, (images, boxes, root / "bare")))
                job = generate(inputs[n], one, "--formats", FORMATS[0], "--segmenter", "box")
                costs["all else", n].append(job[0])
                for workers in (1, 2):
                    several = ("--direct_num_workers", workers)
                    job = generate(two[n], *several, images_per_shard=size)
                    costs[f"workers: {workers}", n].append(job[1])
            for processes in (1, 2):
                costs["loops", processes].append(time_loops(processes, first, many, config))
        for (what, n), values in costs.items():
            print(f"{what}, {n}:", *(f"{value:.2f}" for value in values), "s")
        ten = multiply(accepted, 10 * few, root / "ten")
        peaks = [
            generate(source, "--direct_num_workers=2", images_per_shard=size)[2]
            for source in (inputs[few], ten)
        ]
    cost, rest, lowest = of_image(FORMATS[0]), of_image("all else"), of_image("floor")
    row(
        "generate: images per core-second",
        f"{1 / cost:.1f}",
        f"{arguments.segmenter}, {FORMATS[0]}",
    )
    against = f"bare calls of libraries, {1e3 * lowest:.1f} ms"
    row("generate: CPU of an image, all else", f"{rest / lowest:.2f} x", against, "<= 1.25")
    row("generate: CPU of an image, segmentation", f"{1e3 * (cost - rest):.0f} ms")
    for formats in FORMATS:
        ratio = of_image(formats) / of_image(f"loop, {formats}")
        against = "bare loop over the same functions"
        row(f"generate: CPU, {formats}", f"{ratio:.3f} x", against, "<= 1.03")
    gain = 2 * min(costs["loops", 1]) / min(costs["loops", 2])
    speed = of_image("workers: 1") / of_image("workers: 2")
    against = f"one worker; two bare loops: {gain:.2f} x"
    row("generate: speed of two workers", f"{speed:.2f} x", against, ">= 1.85")
    baseline = f"{few} images, {peaks[0]:.0f} MB"
    row(
        f"generate: peak memory, {10 * few} images",
        f"{peaks[1] / peaks[0]:.3f} x",
        baseline,
        "<= 1.10",
    )


if __name__ == "__main__":
    main()
