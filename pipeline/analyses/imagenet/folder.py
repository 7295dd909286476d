"""Lists the images of ImageNet and their classes, to measure accuracy on them.

Unlike the source images of a dataset, these images are of all classes of ImageNet and need no
boxes. Annotations are read only to learn the classes of images that all lie in one folder.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from pipeline.dataset.fingerprints import fingerprint
from pipeline.dataset.shards import bucket_hash
from pipeline.errors import UsageError
from pipeline.inputs.image_folder import find_images
from pipeline.inputs.layout import find_annotations
from pipeline.inputs.listing import image_classes
from pipeline.storage.files import relative
from transforms.taxonomy import Taxonomy

SPLIT = "val"
"""The split on which published accuracies were measured."""

IMAGES_PER_SHARD = 1024


@dataclasses.dataclass(frozen=True)
class ImageNetImage:
    """An image of ImageNet.

    Attributes:
      path: absolute path.
      name: path relative to the folder of the images, with forward slashes.
      bytes: size of the file in bytes.
      output_index: index of its class among the outputs of ImageNet models.
    """

    path: str
    name: str
    bytes: int
    output_index: int


@dataclasses.dataclass(frozen=True)
class ImageNetListing:
    """The images of the split.

    Attributes:
      images: images of the taxonomy's classes, in order of `name`.
      num_unknown: number of images whose class is unknown, or not in the taxonomy.
    """

    images: tuple[ImageNetImage, ...]
    num_unknown: int

    @functools.cached_property
    def digest(self) -> str:
        """Fingerprint of the images' names, sizes and classes."""
        return listing_digest(self.images)

    @property
    def num_classes(self) -> int:
        """Number of classes that have an image."""
        return len({image.output_index for image in self.images})

    @functools.cached_property
    def shards(self) -> list[tuple[ImageNetImage, ...]]:
        """The images, divided into shards by a hash of their names. The number of shards depends
        only on the number of images."""
        buckets: list[list[ImageNetImage]] = [
            [] for _ in range(max(1, round(len(self.images) / IMAGES_PER_SHARD)))
        ]
        for image in self.images:
            buckets[bucket_hash(image.name) % len(buckets)].append(image)
        return [tuple(bucket) for bucket in buckets]


def listing_digest(images: Sequence[ImageNetImage]) -> str:
    """Returns a fingerprint of the names, sizes and classes of images."""
    return fingerprint([[image.name, image.bytes, image.output_index] for image in images])


def check_imagenet(root: str) -> None:
    """Raises UsageError if there is no folder of images under `--imagenet`."""
    find_images(root, SPLIT, "--imagenet")


def list_imagenet(root: str, taxonomy: Taxonomy) -> ImageNetListing:
    """Lists the images of the validation set.

    Args:
      root: folder with `val/<wnid>/*.JPEG`, or with `val/*.JPEG` and annotations; or the folder
        `val` itself.
      taxonomy: maps each wnid to an output index.

    Raises:
      UsageError: there are no images, or no image has a known class.
      OSError: a folder or an annotation cannot be read.
    """
    folder = find_images(root, SPLIT, "--imagenet")
    images, num_unknown = [], 0
    for path, size, wnid in image_classes(folder, find_annotations(root, folder, SPLIT)):
        try:
            output_index = taxonomy.index_of(wnid)
        except KeyError:
            num_unknown += 1
            continue
        images.append(ImageNetImage(path, relative(path, folder), size, output_index))
    if not images:
        raise UsageError(
            f"--imagenet {root}: the ImageNet class of none of the {num_unknown} images in "
            f"{folder} is known. Put the images into folders by wnid, or add their annotations"
        )
    return ImageNetListing(tuple(sorted(images, key=lambda image: image.name)), num_unknown)
