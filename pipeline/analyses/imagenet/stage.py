"""The ImageNet stage: top-1 accuracy of models over all classes of ImageNet.

The images are of all classes of ImageNet and, unlike the source images of a dataset, need no boxes.
Annotations are read only to learn the classes of images that all lie in one folder.

Images go through the model's own preprocessing, as they do for published figures. The predictions
of a shard are one file. It records a fingerprint of weights, images and evaluation settings, so a
shard is not predicted again while these are the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Generator, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

import pyarrow as pa
from typing_extensions import override

from pipeline.analyses.imagenet.results import PREDICTION_SCHEMA, ImageNetResult
from pipeline.dataset.config import EVALUATE_VERSION
from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import bucket_hash
from pipeline.errors import BrokenPictureError, JobError, UsageError
from pipeline.evaluate.planned import (
    AnalysisOfModel,
    ChunkOutput,
    Evaluation,
    NoteDone,
    PlannedAnalysis,
)
from pipeline.evaluate.results import (
    LIBRARIES,
    ModelRun,
    pick,
    result_file,
    result_folder,
    result_shard,
    write_result,
)
from pipeline.inputs.imagenet import find_images
from pipeline.inputs.layout import find_annotations, image_classes
from pipeline.inputs.location import Location, changed, read_location
from pipeline.storage.files import relative
from pipeline.storage.interface import read_ahead
from pipeline.storage.state_files import read_table
from transforms.hashing import fingerprint
from transforms.intervals import wilson
from transforms.limits import Unread
from transforms.taxonomy import Taxonomy

if TYPE_CHECKING:
    from pipeline.models.predict import Predictor

SPLIT = "val"
"""The split on which published accuracies were measured."""

IMAGES_PER_SHARD = 1024

_READ_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class ImageNetImage:
    """An image of ImageNet.

    Attributes:
      path: absolute path.
      name: path relative to the folder of the images, with forward slashes.
      output_index: index of its class among the outputs of ImageNet models.
    """

    path: str
    name: str
    bytes: int
    output_index: int


@dataclasses.dataclass(frozen=True)
class ImageNetListing:
    """The split's images of the taxonomy's classes, in order of `name`."""

    images: tuple[ImageNetImage, ...]
    num_unknown: int

    @functools.cached_property
    def shards(self) -> list[tuple[ImageNetImage, ...]]:
        """The images, divided into shards by a hash of their names.

        The number of shards depends only on the number of images.
        """
        buckets: list[list[ImageNetImage]] = [
            [] for _ in range(max(1, round(len(self.images) / IMAGES_PER_SHARD)))
        ]
        for image in self.images:
            buckets[bucket_hash(image.name) % len(buckets)].append(image)
        return [tuple(bucket) for bucket in buckets]


def listing_digest(images: Sequence[ImageNetImage]) -> str:
    """Returns a fingerprint of the names, sizes and classes of images."""
    return fingerprint([[image.name, image.bytes, image.output_index] for image in images])


def list_imagenet(root: str, taxonomy: Taxonomy) -> ImageNetListing:
    """Lists the images of the validation set whose wnid the taxonomy maps to an output.

    The root has `val/<wnid>/*.JPEG`, or `val/*.JPEG` and annotations; or it is `val` itself. Raises
    UsageError if there are no images, or no image has a known class.
    """
    folder = find_images(root, SPLIT, "--imagenet")
    found = list(image_classes(folder, find_annotations(root, folder, SPLIT)))
    output_of = {wnid: index for index, wnid in enumerate(taxonomy.wnids)}
    images = [
        ImageNetImage(path, relative(path, folder), size, output_of[wnid])
        for path, size, wnid in found
        if wnid in output_of
    ]
    num_unknown = len(found) - len(images)
    if not images:
        raise UsageError(
            f"--imagenet {root}: the ImageNet class of none of the {num_unknown} images in "
            f"{folder} is known. Put the images into folders by wnid, or add their annotations"
        )
    return ImageNetListing(tuple(sorted(images, key=lambda image: image.name)), num_unknown)


class PlannedImageNet(PlannedAnalysis):
    """The stage that predicts shards of ImageNet images.

    Models whose number of outputs is not that of ImageNet's classes are skipped.

    Args:
      evaluation: the models, and the settings of their evaluation on the dataset, on which the
        names of their folders depend.
    """

    stage = "imagenet"

    def __init__(self, evaluation: Evaluation, root: str, taxonomy: Taxonomy) -> None:
        native = dataclasses.replace(evaluation.predict, eval_input="native")
        super().__init__(dataclasses.replace(evaluation, predict=native), taxonomy)
        self._evaluation_on_dataset = evaluation
        self._root = root

    @functools.cached_property
    def _listing(self) -> ImageNetListing:
        """The images of ImageNet's validation set, which are listed once for all models."""
        return list_imagenet(self._root, self.taxonomy)

    @override
    def chunks(self, dataset: Dataset) -> Sequence[int]:
        """Returns the numbers of the shards of images."""
        return range(len(self._listing.shards))

    @override
    def size(self, dataset: Dataset, chunk: int) -> int:
        return len(self._listing.shards[chunk])

    def _folder(self, run: ModelRun) -> str:
        return result_folder(run.model, self._evaluation_on_dataset.settings)

    @override
    def for_model(self, dataset: Dataset, run: ModelRun) -> ImageNetShards | None:
        if run.num_outputs != len(self.taxonomy.wnids):
            return None
        return ImageNetShards(dataset.store, run, self._folder(run), self._root, self._listing)

    @override
    def summarize(self, dataset: Dataset, run: ModelRun, entry: str) -> None:
        store, folder, listing = dataset.store, self._folder(run), self._listing
        shards = ImageNetShards(store, run, folder, self._root, listing)
        paths = [*map(shards.path, self.chunks(dataset))]
        predictions = pa.concat_tables([read_table(store, path) for path in paths])
        labels, outputs = (predictions[name].to_numpy() for name in ("label", "prediction"))
        n, correct = len(labels), int((labels == outputs).sum())
        low, high = wilson(correct, n)
        content = pick(
            ImageNetResult,
            run,
            listing=listing_digest(listing.images),
            n=n,
            classes=len({image.output_index for image in listing.images}),
            unknown=listing.num_unknown,
            correct=correct,
            top1=correct / n,
            ci_low=low,
            ci_high=high,
            libraries={name: version(name) for name in LIBRARIES},
        )
        write_result(store, result_file(folder, "imagenet"), content)
        store.delete_all(set(store.walk(f"results/{folder}/imagenet")).difference(paths))


@dataclasses.dataclass(eq=False)
class ImageNetShards(AnalysisOfModel):
    """Predictions of a model on shards of ImageNet images, beside its results on the dataset."""

    model: ModelRun
    folder: str
    root: str
    listing: ImageNetListing

    @override
    def path(self, chunk: int) -> str:
        return result_shard(self.folder, "imagenet", "val", chunk)

    @override
    def fingerprint(self, chunk: int) -> str:
        return fingerprint(
            *self.model.identity,
            self.model.evaluation.precision,
            EVALUATE_VERSION,
            listing_digest(self.listing.shards[chunk]),
        )

    @override
    def run(
        self, predictor: Predictor, chunks: Sequence[int], missing: Sequence[int], note: NoteDone
    ) -> Generator[ChunkOutput, None, None]:
        for shard in missing:
            rows = []
            images = _ImageNetPictures(self.listing.shards[shard])
            try:
                with contextlib.closing(predictor.logits([images], 0)) as batches:
                    for batch, logits in batches:
                        columns = [*batch.rows.select(["key", "index"]).columns, logits.argmax(1)]
                        rows.append(pa.table(columns, PREDICTION_SCHEMA))
                        note(shard, len(batch.rows), len(batch.rows))
            except BrokenPictureError as error:
                raise JobError(
                    f"{error.key} of --imagenet {self.root} cannot be decoded; replace it with an "
                    "intact copy"
                ) from error
            yield ChunkOutput(shard, pa.concat_tables([PREDICTION_SCHEMA.empty_table(), *rows]))


@dataclasses.dataclass(frozen=True)
class _ImageNetPictures:
    """A shard of images as a `PictureSet`, whose rows have the columns key and index.

    Models with the same preprocessing share the decoded crops.
    """

    images: Sequence[ImageNetImage]

    @property
    def name(self) -> str:
        return listing_digest(self.images)

    @property
    def count(self) -> int:
        return len(self.images)

    def tables(self, columns: tuple[str, ...]) -> Generator[pa.Table, None, None]:
        """Reads several files at a time."""
        needs_images = bool(columns)

        def read(image: ImageNetImage) -> bytes:
            if not needs_images:
                return b""
            data = read_location(Location(image.path))
            if len(data) != image.bytes and not isinstance(data, Unread):
                raise changed(image.path)
            return data

        with contextlib.closing(read_ahead(read, self.images)) as files:
            while batch := list(itertools.islice(files, _READ_AT_ONCE)):
                table = {
                    "key": [image.name for image, _ in batch],
                    "index": [image.output_index for image, _ in batch],
                    "image": pa.array([data for _, data in batch], pa.binary()),
                }
                yield pa.table(table).select(["key", "index", *columns])
