"""List: the images of all splits, with what the segmenter needs of each, dealt to source shards."""

from __future__ import annotations

import dataclasses
from typing import Any

import apache_beam as beam

from pipeline.dataset.shards import ShardCounts
from pipeline.errors import UsageError
from pipeline.generate.guard import check_rebuild
from pipeline.generate.job import Job
from pipeline.inputs.found import SourceImage
from pipeline.inputs.layout import Layout
from pipeline.inputs.listing import Listing, SourceShard, list_images, make_shards
from pipeline.inputs.shapes import MANIFEST
from pipeline.runtime.counters import timed
from pipeline.segmenters.masks import with_masks
from transforms.segmentation import takes_masks
from transforms.taxonomy import Taxonomy, imagenet9


def list_split(job: Job, layout: Layout) -> tuple[Listing, ShardCounts]:
    """Lists the images of one of a job's splits and chooses its numbers of shards.

    Raises:
      UsageError: there is nothing to work on, or it cannot be read.
    """
    split = layout.split
    try:
        listing = list_images(layout, job.taxonomy, job.config.limit, job.key_lists())
    except PermissionError as error:
        raise UsageError(f"{error.filename} cannot be read: {error.strerror}") from error
    if job.masks is not None:
        listing = dataclasses.replace(listing, images=with_masks(listing.images, job.masks, split))
    elif job.config.segment.is_whole:
        listing = dataclasses.replace(listing, images=_whole_images(listing, layout))
    else:
        listing = _with_what_is_used(listing, layout, job.config.segment.segmenter)
    if not listing.images:
        raise _no_images(listing, layout, job.taxonomy)
    counts = ShardCounts.of(len(listing.images), job.config.images_per_shard)
    if split in job.previous and not job.reshard:
        counts = job.previous[split]
    return listing, counts


def _whole_images(listing: Listing, layout: Layout) -> tuple[SourceImage, ...]:
    """The images without annotations where those have nothing to tell: no image is looked at
    again because its boxes have changed.

    Raises:
      UsageError: the class of none of them is known.
    """
    if listing.images and not any(image.wnid for image in listing.images):
        raise UsageError(
            f"nothing tells the class of an image in {layout.images}: neither folders, such as "
            "n02085620, nor annotations. Name the folder of the .xml files with --annotations"
        )
    return tuple(_bare(image) if image.wnid else image for image in listing.images)


def _bare(image: SourceImage) -> SourceImage:
    """An image without annotation and mask."""
    return dataclasses.replace(
        image, annotation=None, annotation_md5=None, mask=None, mask_md5=None
    )


def _with_what_is_used(listing: Listing, layout: Layout, segmenter: str) -> Listing:
    """A listing without masks that the segmenter has no use for.

    Raises:
      UsageError: no image has what it needs, though there are images.
    """
    if takes_masks(segmenter):
        if listing.images and not any(image.mask for image in listing.images):
            raise UsageError(
                f"--segmenter {segmenter}: no image of {layout.files[0]} has a mask; name PNGs in "
                "a column mask, or elsewhere with --masks"
            )
        return listing
    if listing.images and not any(image.annotation for image in listing.images):
        if layout.kind == MANIFEST:
            raise UsageError(
                f"no image of {layout.files[0]} has a box: expected the columns xmin, ymin, xmax "
                "and ymax, or boxes; with masks alone, add --segmenter masks"
            )
        raise UsageError(
            f"no image in {layout.images} has an annotation in {layout.annotations or 'it'}; "
            "name the folder of the .xml files with --annotations"
        )
    images = (dataclasses.replace(i, mask=None, mask_md5=None) for i in listing.images)
    return dataclasses.replace(listing, images=tuple(images))


def _no_images(listing: Listing, layout: Layout, taxonomy: Taxonomy) -> UsageError:
    """That a split has nothing to work on."""
    where = layout.files[0] if layout.kind == MANIFEST else layout.images
    counted = f"{listing.outside} images of other classes, {listing.other_files} other files"
    if taxonomy != imagenet9():
        shown = ", ".join(taxonomy.wnids[:3])
        return UsageError(f"no image of a class of --taxonomy ({shown}, ...) in {where}: {counted}")
    return UsageError(
        f"no image of an ImageNet-9 class in {where}: {counted}. Classes must be told by WordNet "
        "id, such as folders named n02085620; for classes of your own add --taxonomy"
    )


class ListSplits(beam.DoFn):
    """Anything -> the SourceShards of all splits. Listing is one element's work, so that nothing
    is done before the guard has seen all."""

    def __init__(self, job: Job) -> None:
        self._job = job

    @timed("list")
    def process(self, _: Any) -> list[SourceShard]:
        job = self._job
        shards: list[SourceShard] = []
        before: list[SourceShard] = []
        for layout in job.layouts:
            split = layout.split
            listing, counts = list_split(job, layout)
            for stage in ("segment", "compose"):
                job.progress.note_total(stage, split, len(listing.images))
            shards += make_shards(split, listing, counts)
            if split in job.previous:
                before += make_shards(split, listing, job.previous[split])
        if job.guarded is not None:
            renumbered = shards if job.reshard else ()
            check_rebuild(job.guarded, before, job.config, job.layer_staging(), renumbered)
        # Local runners deal them to the workers in turn, once: the largest first, so that all
        # get about the same.
        return sorted(shards, key=lambda shard: -len(shard.images))
