"""Measures time and size by running a job on a few images in a temporary folder."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence

import pyarrow as pa

from pipeline.dataset.config import FORMATS
from pipeline.dataset.folder import read_tables
from pipeline.dataset.records import ACCEPTED
from pipeline.dataset.shards import ShardCounts
from pipeline.generate.compose import ComposeShard
from pipeline.generate.cut_source import Cutter, announce
from pipeline.generate.job import GenerateJob
from pipeline.generate.plan import PlanSplit
from pipeline.generate.segment import SegmentShard
from pipeline.generate.shard_elements import SourceShard, SplitTotals
from pipeline.inputs.source_images import SourceImage
from pipeline.jobs.dry_run.forecast import Forecast
from pipeline.runtime.progress import Progress
from pipeline.storage.store import FileDigest, Store
from transforms.hashing import keyed_hash
from transforms.variants import is_picture

SAMPLE_IMAGES = 24
"""Number of images that are measured, chosen by the hash of their name."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """A few images of a job, made in a temporary folder on one core of this machine.

    Attributes:
      store: the temporary folder.
      pictures: paths, in this folder, of the files with composed pictures to evaluate models on.
      images: number of segmented images, at least 1.
      accepted: number of the segmented images that were accepted and got a layer.
      selected: number of the accepted images that were composed.
      segment_seconds: mean time to segment an image, in seconds.
      segment_error: half-width of the 95 % interval of `segment_seconds`; 0 for a single image.
      compose_seconds: mean time to compose all variants of a selected image, in seconds; 0 if no
        image was selected.
      layer_bytes: mean size of an accepted image's layer.
      output_bytes: mean size of all variants of a selected image, by folder of the dataset.
    """

    store: Store
    pictures: tuple[str, ...]
    images: int
    accepted: int
    selected: int
    segment_seconds: float
    segment_error: float
    compose_seconds: float
    layer_bytes: float
    output_bytes: dict[str, float]

    def parts(self) -> Iterator[_Part]:
        """Yields the composed pictures in the form in which a `Predictor` reads them."""
        return (_Part(self.store, path) for path in self.pictures)


@dataclasses.dataclass(frozen=True)
class _Part:
    """The pictures of a file, to be read once, in the form of a `pipeline.models.loader.Part`."""

    store: Store
    path: str
    name: str = ""
    count: int = 0

    def tables(self, columns: tuple[str, ...]) -> Generator[pa.Table, None, None]:
        """Same as `Part.tables`."""
        yield from read_tables(self.store, self.path, ("key", *columns))


def choose(forecast: Forecast) -> list[SourceImage]:
    """Chooses the images to measure among those to segment; if there are none, among accepted
    images."""
    pool = [image for split in forecast.splits for image in split.left]
    if not pool:
        # An image is repeated for each of its objects.
        pool = list(dict.fromkeys(image for split in forecast.splits for image in split.accepted))
    return sorted(pool, key=lambda image: keyed_hash(0, "estimate", image.name))[:SAMPLE_IMAGES]


def run_trial(job: GenerateJob, images: Sequence[SourceImage], folder: str) -> Trial:
    """Runs the stages of a job on a few images.

    Args:
      job: the job.
      images: at least one image; each image becomes a shard of its own.
      folder: an empty temporary folder.

    Raises:
      OSError: an image cannot be read, or the temporary folder is full.
      JobError: a custom segmenter or variant failed.
    """
    store = Store(folder)
    # So few images must find partners among themselves, so rules are relaxed, and --per_class must
    # not leave any of them out.
    lenient = dataclasses.replace(
        job.config.compose, own_background=True, mixed_rand="any", per_class="all"
    )
    job = dataclasses.replace(
        job,
        config=dataclasses.replace(job.config, compose=lenient),
        store=store,
        progress=Progress.for_store(store),
        previous={},
    )
    totals = SplitTotals("trial", ShardCounts(len(images), 1), len(images), 0, 0)
    segment, compose = SegmentShard(job), ComposeShard(job)
    segment.setup()
    Cutter(job.config.segment).segmenter.prepare(announce)
    segmented: list[SourceShard] = []
    seconds = []
    for number, image in enumerate(images):
        started = time.perf_counter()
        segmented += segment.process(SourceShard(totals, number, (image,)))
        seconds.append(time.perf_counter() - started)
    (output,) = PlanSplit(job).process(("trial", segmented))
    compose.setup()
    started = time.perf_counter()
    (composed,) = compose.process(output)
    compose_seconds = time.perf_counter() - started
    accepted = composed.statuses.get(ACCEPTED, 0)
    files = [file for shard in segmented for file in shard.record.files]
    files += composed.record.files
    sizes = _bytes_by_folder(files)
    selected = sum(composed.selected.values())
    error = 1.96 * statistics.stdev(seconds) / len(seconds) ** 0.5 if len(seconds) > 1 else 0.0
    format_ = lenient.formats[0]
    pictures = [
        compose.outputs.staged(file.path)
        for file in files
        if file.path.split("/")[0] == format_ and is_picture(file.path.split("/")[1])
    ]
    return Trial(
        store=store,
        pictures=tuple(pictures),
        images=len(images),
        accepted=accepted,
        selected=selected,
        segment_seconds=statistics.fmean(seconds),
        segment_error=error,
        compose_seconds=compose_seconds / selected if selected else 0.0,
        layer_bytes=sizes.pop("layers", 0) / max(accepted, 1),
        output_bytes={name: size / max(selected, 1) for name, size in sizes.items()},
    )


def _bytes_by_folder(files: Sequence[FileDigest]) -> Counter[str]:
    """Sums up sizes in bytes by folder. Records and index do not count, because for a few images
    they are mostly overhead that the many images of a real shard share."""
    sizes: Counter[str] = Counter()
    for file in files:
        folder = file.path.partition("/")[0]
        if folder in FORMATS or file.path.endswith(".tar"):
            sizes[folder] += file.bytes
    return sizes
