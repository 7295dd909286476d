"""The part of the graph that makes a dataset, and its first steps.

    List -> Segment -> Plan -> Compose -> Commit

Elements of the graph hold keys, paths and records, but no pixels. List finds the images of all
splits, with their masks and boxes, and deals them to source shards. With a recipe, all workers then
identify the pictures, and one sees the result before anything is made (List -> Identify -> Accept
-> Segment).
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import apache_beam as beam

from pipeline.dataset.config import SegmentConfig
from pipeline.dataset.records import DATA_FOLDERS, ShardCounts
from pipeline.errors import UsageError, counted
from pipeline.generate.commit import MoveFiles, finish_step, prepare_step
from pipeline.generate.compose import ComposeShard
from pipeline.generate.cut_source import MaskCutter
from pipeline.generate.job import GenerateJob, JobStep
from pipeline.generate.plan import PlanSplit
from pipeline.generate.previous_layers import check_rebuild
from pipeline.generate.recipe import RecipeImage, recipe_images
from pipeline.generate.segment import SegmentShard
from pipeline.generate.segmenters import index_masks, no_mask
from pipeline.generate.shard_elements import (
    ListedShard,
    OutputShard,
    SourceShard,
    SplitTotals,
    make_shards,
)
from pipeline.inputs.image_manifest import ImageManifest
from pipeline.inputs.input_format import SplitLayout
from pipeline.inputs.layout import list_images
from pipeline.inputs.location import read_location
from pipeline.inputs.packed import Packed
from pipeline.inputs.source_images import Checksums, Content, FileIndex, SourceImage
from pipeline.runtime.progress import count, timed
from pipeline.runtime.spread import Spread
from pipeline.storage.store import WORK_FOLDER, Store
from transforms.filters import Reason
from transforms.segmentation import takes_masks
from transforms.taxonomy import OUTSIDE, Taxonomy, imagenet9

_SHOWN = 40
"""The most characters of the name of a class that are shown."""


def list_split(job: GenerateJob, layout: SplitLayout) -> tuple[Sequence[SourceImage], SplitTotals]:
    """Lists a split's images with the files that the job uses; chooses its numbers of shards.

    Raises UsageError if there are no images that can be used, the input is not valid, or its images
    may not be read.
    """
    split = layout.split
    try:
        list_of = job.recipe.list_images if job.recipe else functools.partial(_list_input, job)
        images, skipped, unmatched = list_of(layout)
    except PermissionError as error:
        raise UsageError(f"{error.filename} cannot be read: {error.strerror}") from error
    _check_places(images, job.store)
    previous = None if job.reshard else job.previous.get(split)
    counts = previous or ShardCounts.for_images(len(images), job.config.images_per_shard)
    outside, other_files = skipped["outside"], skipped["other_files"]
    return images, SplitTotals(split, counts, len(images), outside, other_files, unmatched)


def _list_input(
    job: GenerateJob, layout: SplitLayout
) -> tuple[Sequence[SourceImage], Mapping[str, int], str]:
    """Returns the images with the files that are used, what was skipped, `_describe_unmatched`."""
    segment = job.config.segment
    masks = None if job.masks is None else index_masks(job.masks, layout.split)
    keeps_image_whole, keeps_masks = segment.keeps_image_whole, takes_masks(segment.segmenter)
    adapt = functools.partial(
        _with_used_files,
        masks=masks,
        keeps_image_whole=keeps_image_whole,
        keeps_masks=keeps_masks,
    )
    images, skipped, classes = list_images(
        layout, job.taxonomy, job.config.limit, job.key_lists(), adapt
    )
    unmatched = _describe_unmatched(classes, job.taxonomy)
    if not images:
        raise _no_images(skipped, unmatched, layout, job.taxonomy)
    if masks is not None and not any(image.mask for image in images):
        raise no_mask(images[0], str(job.masks), layout.split, masks)
    _check_used(images, layout, segment)
    return images, skipped, unmatched


def _describe_unmatched(classes: Mapping[str, int], taxonomy: Taxonomy) -> str:
    """Names classes that the taxonomy lacks, and classes of a user's taxonomy without an image.

    A class without a superclass is outside on purpose. The line names the first of either; it is ""
    if there are none.
    """
    lacking = {n: count for n, count in classes.items() if n and not taxonomy.holds(n)}
    frequent = sorted(lacking, key=lambda name: (-lacking[name], name))
    own = () if taxonomy == imagenet9() else zip(taxonomy.wnids, taxonomy.labels, strict=True)
    parts = {
        f"{sum(lacking.values())} of classes that the taxonomy lacks: ": [
            f"{repr(name)[:_SHOWN]} ({lacking[name]})" for name in frequent
        ],
        "classes without an image: ": [
            repr(name)[:_SHOWN] for name, label in own if label != OUTSIDE and name not in classes
        ],
    }
    return "; ".join(
        f"{start}{', '.join(names[:3])}" + f" and {len(names) - 3} more" * (len(names) > 3)
        for start, names in parts.items()
        if names
    )


def _with_used_files(
    image: SourceImage, masks: FileIndex | None, keeps_image_whole: bool, keeps_masks: bool
) -> SourceImage:
    """Adds the mask of an image from `--masks`, and drops the files that are not used.

    So a change in an unused file does not invalidate the layer. An image that stays whole, but has
    no class, keeps its files, because its annotation decides the reason of its rejection.
    """
    if masks is not None:
        mask = masks.find(image.wnid, image.key)
        return image if mask is None else replace(image, mask=mask.location, mask_md5=mask.md5)
    if keeps_masks or (keeps_image_whole and not image.wnid):
        return image
    if keeps_image_whole:
        image = replace(image, annotation=None, annotation_md5=None)
    return image if image.mask is None else replace(image, mask=None, mask_md5=None)


def _check_used(images: Sequence[SourceImage], layout: SplitLayout, config: SegmentConfig) -> None:
    """Raises UsageError if no image has what it needs: a class, a mask or boxes."""
    if config.keeps_image_whole:
        if not any(image.wnid for image in images):
            raise UsageError(
                f"nothing tells the class of an image in {layout.images}: neither folders, such as "
                "n02085620, nor annotations. Name the folder of the .xml files with --annotations"
            )
    elif takes_masks(config.segmenter):
        if not any(image.mask for image in images):
            raise UsageError(
                f"--segmenter {config.segmenter}: no image of {layout.files[0]} has a mask; name "
                "PNGs in a column mask, or elsewhere with --masks"
            )
    elif not any(image.annotation for image in images):
        if layout.kind == ImageManifest.kind:
            raise UsageError(
                f"no image of {layout.files[0]} has a box: expected the columns xmin, ymin, xmax "
                "and ymax, or boxes; with masks alone, add --segmenter masks"
            )
        raise UsageError(
            f"no image in {layout.images} has an annotation in {layout.annotations or 'it'}; "
            "name the folder of the .xml files with --annotations"
        )


def _check_places(images: Sequence[SourceImage], store: Store) -> None:
    """Raises UsageError if a file, such as one of a manifest, lies where Commit removes files."""
    cleared = tuple(store.path(f"{folder}/") for folder in (*DATA_FOLDERS, WORK_FOLDER))
    for image in images:
        for location in (image.location, image.mask, image.annotation):
            if location and location.path.startswith(cleared):
                raise UsageError(
                    f"{location.path} lies in the output, where files are replaced and removed; "
                    "move it to a place outside of it"
                )


def _no_images(
    skipped: Mapping[str, int], unmatched: str, layout: SplitLayout, taxonomy: Taxonomy
) -> UsageError:
    """Returns the error for a split without images of the taxonomy's classes."""
    where = layout.files[0] if layout.kind == ImageManifest.kind else layout.images
    others = f"{counted(skipped['outside'], 'image')} of other classes, "
    others += counted(skipped["other_files"], "other file")
    others += f" ({unmatched})" if unmatched else ""
    if taxonomy != imagenet9():
        shown = ", ".join(taxonomy.wnids[:3])
        return UsageError(f"no image of a class of --taxonomy ({shown}, ...) in {where}: {others}")
    return UsageError(
        f"no image of an ImageNet-9 class in {where}: {others}. Classes must be told by WordNet "
        "id, such as folders named n02085620; for classes of your own add --taxonomy"
    )


class ListSplits(JobStep):
    """One element of any value -> the SourceShards of all splits.

    A single call lists all splits, so that no work begins before the guard has seen every shard.
    """

    @timed("list")
    def process(self, _: object) -> Iterable[SourceShard]:
        job = self.job
        splits = {}
        for layout in job.layouts:
            images, totals = list_split(job, layout)
            for stage in ("segment", "compose"):
                job.progress.note_total(stage, layout.split, totals.listed)
            splits[totals] = images
        if job.recipe is not None:  # The guard waits until the pictures have been identified.
            shards = (make_shards(splits[totals], totals) for totals in splits)
            return map(_MAKE, itertools.chain.from_iterable(shards))
        return deal_guarded(job, splits)


def deal_guarded(
    job: GenerateJob, splits: Mapping[SplitTotals, Sequence[SourceImage]]
) -> Iterable[SourceShard]:
    """Deals the images of all splits to shards."""
    shards: list[ListedShard] = []
    existing: list[ListedShard] = []
    for totals, images in splits.items():
        shards += make_shards(images, totals)
        if totals.split in job.previous:
            existing += make_shards(images, replace(totals, counts=job.previous[totals.split]))
    if job.guarded is not None:
        renumbered = shards if job.reshard else ()
        check_rebuild(job.guarded, existing, job.config, job.layer_staging(), renumbered)
    # Local runners deal shards in turn; the largest come first, so that workers get equal shares.
    return map(_MAKE, sorted(shards, key=lambda shard: -len(shard.rows)))


_MAKE = timed("list")(ListedShard.packed)


class IdentifySources(JobStep):
    """Listed SourceShard of a recipe -> the shard, its pictures found, or known to be missing.

    Pictures are identified by their MD5. One with another MD5 is decoded: if it gives the recipe's
    layers, it is the same picture in another file.
    """

    @timed("list")
    def process(self, shard: SourceShard) -> list[SourceShard]:
        checksums = Checksums(self.layers.store, shard.totals.split, shard.shard)
        recipe = self.job.recipe
        assert recipe is not None
        cutter = MaskCutter(self.config.segment, recipe)

        def has_md5(file: SourceImage, image: RecipeImage) -> bool:
            content = Content(file.location, None, file.md5, file.stamp)
            return checksums.identify(content).md5 == image.md5

        def gives_layers(file: SourceImage, image: RecipeImage) -> bool:
            picture = read_location(file.location)
            is_its = all(
                cutter.cut_along(picture, row, mask)
                for _, row, mask in recipe.rows_of(image)
                if mask
            )
            count("pictures_in_other_files", is_its)
            return is_its

        images = [image.found(has_md5).found(gives_layers) for image in recipe_images(shard.images)]
        checksums.save()
        found = (i.lacking(Reason.SOURCE_DIFFERS) if i.files else i for i in images)
        return [replace(shard, images=Packed(found))]


class AcceptSources(JobStep):
    """(None, all identified SourceShards) -> all SourceShards, if the job may go on."""

    @timed("list")
    def process(self, element: tuple[None, Iterable[SourceShard]]) -> Iterable[SourceShard]:
        splits: dict[SplitTotals, list[SourceImage]] = {}
        for shard in sorted(element[1], key=operator.attrgetter("totals.split", "shard")):
            splits.setdefault(shard.totals, []).extend(shard.images)
        refuse_lacking(self.job, itertools.chain.from_iterable(splits.values()))
        return deal_guarded(self.job, splits)


def refuse_lacking(job: GenerateJob, images: Iterable[SourceImage]) -> None:
    """Raises UsageError if images of a recipe lack their pictures, unless they may."""
    needed = [image for image in recipe_images(images) if image.is_needed]
    lacking = [image for image in needed if image.lacks]
    if lacking and not job.allow_partial:
        missing = sum(image.lacks == Reason.MISSING_SOURCE for image in lacking)
        raise UsageError(
            f"of {counted(len(needed), 'picture')} of the recipe, {missing} missing and "
            f"{len(lacking) - missing} with other pixels: "
            f"{', '.join(f'{image.name} ({image.lacks})' for image in lacking[:3])}"
            f"{', ...' * (len(lacking) > 3)}. No dataset was written; name the recipe's "
            "pictures with --input, or add --allow_partial to leave these images out"
        )


class GenerateDataset(beam.PTransform):
    """Start -> one element, the dataset's fingerprint; makes the missing parts of the dataset.

    The start is PBegin, or one element of any value that arrives when work may begin.
    """

    def __init__(self, job: GenerateJob) -> None:
        super().__init__()
        self._job = job

    def expand(
        self, start: beam.pvalue.PBegin | beam.pvalue.PCollection
    ) -> beam.pvalue.PCollection:
        job = self._job
        if isinstance(start, beam.pvalue.PBegin):
            start = start | "Once" >> beam.Create([None], reshuffle=False)
        listed = start | "List" >> beam.ParDo(ListSplits(job)).with_output_types(SourceShard)
        if job.recipe is not None:
            identify, accept = IdentifySources(job), AcceptSources(job)
            listed = (
                listed
                | "Identify" >> Spread(identify, SourceShard)
                | "Together" >> beam.WithKeys(None)
                | "AllIdentified" >> beam.GroupByKey()
                | "Accept" >> beam.ParDo(accept).with_output_types(SourceShard)
            )
        segmented = listed | "Segment" >> Spread(SegmentShard(job), SourceShard)
        composed = (
            segmented
            | "ForPlan" >> beam.Map(SourceShard.for_plan).with_output_types(SourceShard)
            | "BySplit" >> beam.WithKeys(operator.attrgetter("totals.split"))
            | "GatherSplit" >> beam.GroupByKey()
            | "Plan" >> beam.ParDo(PlanSplit(job)).with_output_types(OutputShard)
            | "Compose" >> Spread(ComposeShard(job), OutputShard)
        )
        # Source shards go to Commit directly, so that output shards need not carry them.
        shards = (
            segmented | "ForCommit" >> beam.Map(SourceShard.for_commit),
            composed,
            start | "Nothing" >> beam.Map(_nothing),
        )
        return shards | "AllShards" >> beam.Flatten() | "Commit" >> Commit(job)


class Commit(beam.PTransform):
    """All segmented SourceShards, all composed OutputShards, one None -> the dataset's fingerprint.

    Without the None, Commit would not run if no shard arrived, and the job would seem to succeed.
    """

    def __init__(self, job: GenerateJob) -> None:
        super().__init__()
        self._job = job

    def expand(self, shards: beam.pvalue.PCollection) -> beam.pvalue.PCollection:
        job = self._job
        finish = beam.Map(finish_step, job.store, job.taxonomy, job.source, job.recipe)
        return (
            shards
            | "Together" >> beam.WithKeys(None)
            | "Gather" >> beam.GroupByKey()
            | "Prepare"
            >> beam.FlatMap(prepare_step, job.config, job.store, job.taxonomy, job.about)
            | "Move" >> Spread(MoveFiles(job.store), tuple[str, int])
            | "AllMoved" >> beam.GroupByKey()
            | "Finish" >> finish.with_output_types(str)
        )


def _nothing(_: object) -> None:
    return None
