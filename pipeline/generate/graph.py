"""Generate: the part of the graph that makes a dataset.

    list -> Examine -> Segment -> Plan -> Compose -> Commit

Through it travel keys, paths and records, never pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import apache_beam as beam

from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.records import Staging
from pipeline.dataset.shards import ShardCounts
from pipeline.errors import UsageError
from pipeline.generate.commit import STAGING, Commit
from pipeline.generate.compose import ComposedShard, ComposeShard
from pipeline.generate.examine import (
    CountRebuild,
    Examine,
    ExaminedShard,
    Hold,
    LayersBefore,
    Rebuild,
    add_up,
)
from pipeline.generate.plan import OutputShard, PlanSplit
from pipeline.generate.segment import SegmentShard
from pipeline.generate.segmented import SegmentedShard
from pipeline.runner.counters import timed
from pipeline.runner.progress import Progress
from pipeline.segmenters import takes_masks
from pipeline.segmenters.masks import with_masks
from pipeline.sources.key_lists import KeyList, KeyLists, read_key_list
from pipeline.sources.layout import AUTO, Layout, find_layout
from pipeline.sources.listing import Listing, SourceImage, SourceShard, list_images, make_shards
from pipeline.sources.shapes import MANIFEST
from pipeline.storage.store import Store
from transforms.taxonomy import Taxonomy, imagenet9


@dataclasses.dataclass(frozen=True)
class Job:
    """What to make, from what, into what.

    Attributes:
      config: of the dataset.
      source: the input folder, or a file with images.
      annotations: a folder or file of annotations, None to look beside the images.
      store: the dataset folder.
      progress: where workers note what is done.
      previous: by split, numbers of shards of the dataset as it stands.
      reshard: choose the numbers of shards anew.
      hold: how the dataset as it stands was made, if the job must not make much of it again;
        None if it may.
      masks: folder or file of masks, for a segmenter that takes them.
      layout: of the input, as `find_layout` takes it.
      exclude, include: absolute paths of lists of images, if any.
      taxonomy: classes and superclasses.
      scenes: absolute path of the folder of scenes, if there is one.
    """

    config: DatasetConfig
    source: str
    annotations: str | None
    store: Store
    previous: dict[str, ShardCounts]
    progress: Progress
    reshard: bool = False
    hold: LayersBefore | None = None
    masks: str | None = None
    layout: str = AUTO
    exclude: str | None = None
    include: str | None = None
    taxonomy: Taxonomy = dataclasses.field(default_factory=imagenet9)
    scenes: str | None = None

    @classmethod
    def of(
        cls,
        config: DatasetConfig,
        *,
        source: str,
        annotations: str | None,
        store: Store,
        manifest: Manifest | None,
        reshard: bool,
        allow_rebuild: bool = False,
        masks: str | None = None,
    ) -> Job:
        """A job that builds on the dataset that a manifest describes, if there is one; what
        `allow_rebuild` lets it make again is said in `pipeline.generate.examine`."""
        previous = {} if manifest is None else manifest.shards
        progress = Progress.of(store)
        free = manifest is None or reshard or allow_rebuild
        hold = None if manifest is None or free else LayersBefore.of(manifest)
        return cls(config, source, annotations, store, previous, progress, reshard, hold, masks)

    def key_lists(self) -> KeyLists:
        """The lists of images.

        Raises:
          UsageError: one of them is not what it was when the job was launched.
        """
        lists: dict[str, KeyList] = {}
        for name, path in (("exclude", self.exclude), ("include", self.include)):
            if path is not None:
                lists[name] = read_key_list(path, f"--{name}")
                if lists[name].about != getattr(self.config, name):
                    raise UsageError(f"--{name} {path} has changed since this run was started")
        return KeyLists(**lists)

    def layer_staging(self) -> Staging:
        """Where new layers wait: by what decides them, so that another seed of the pairing
        finds them there."""
        return Staging(self.store, f"{STAGING}/{self.config.segment.fingerprint()}")

    def output_staging(self) -> Staging:
        """Where new output shards wait."""
        return Staging(self.store, f"{STAGING}/{self.config.compose.fingerprint()}")


def list_split(job: Job, taxonomy: Taxonomy, split: str) -> tuple[Listing, ShardCounts]:
    """Lists a split's images and chooses its numbers of shards.

    Raises:
      UsageError: there is nothing to work on, or it cannot be read.
    """
    is_whole = job.config.segment.is_whole
    needs_boxes = not takes_masks(job.config.segment.segmenter) and not is_whole
    layout = find_layout(job.source, job.annotations, split, job.layout, needs_boxes=needs_boxes)
    try:
        listing = list_images(layout, taxonomy, job.config.limit, job.key_lists())
    except PermissionError as error:
        raise UsageError(f"{error.filename} cannot be read: {error.strerror}") from error
    if job.masks is not None:
        listing = dataclasses.replace(listing, images=with_masks(listing.images, job.masks, split))
    elif is_whole:
        listing = dataclasses.replace(listing, images=_whole_images(listing, layout))
    else:
        listing = _with_what_is_used(listing, layout, job.config.segment.segmenter)
    if not listing.images:
        raise _no_images(listing, layout, taxonomy)
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
            "n02084071, nor annotations. Name the folder of the .xml files with --annotations"
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
        "id, such as folders named n02084071; for classes of your own add --taxonomy"
    )


class ListSplit(beam.DoFn):
    """Split name -> its SourceShards. Listing is one element's work."""

    def __init__(self, job: Job, taxonomy: Taxonomy) -> None:
        self._job = job
        self._taxonomy = taxonomy

    def process(self, split: str) -> Iterator[SourceShard]:
        with timed("list"):
            shards = self._list(split)
        yield from shards

    def _list(self, split: str) -> list[SourceShard]:
        listing, counts = list_split(self._job, self._taxonomy, split)
        for stage in ("segment", "compose"):
            self._job.progress.note_total(stage, split, len(listing.images))
        shards = make_shards(split, listing, counts)
        # Local runners deal them to the workers in turn, once: the largest first, so that all
        # get about the same.
        return sorted(shards, key=lambda shard: -len(shard.images))


class Generate(beam.PTransform):
    """Makes what is missing of a dataset: PBegin, or one element that comes when work may
    begin -> the dataset's fingerprint, one element."""

    def __init__(self, job: Job, taxonomy: Taxonomy) -> None:
        super().__init__()
        self._job = job
        self._taxonomy = taxonomy

    def expand(
        self, start: beam.pvalue.PBegin | beam.pvalue.PCollection
    ) -> beam.pvalue.PCollection:
        job, config = self._job, self._job.config
        if isinstance(start, beam.pvalue.PBegin):
            start = start | "Once" >> beam.Create([None], reshuffle=False)
        splits = list(config.split)
        examined = (
            start
            | "Splits" >> beam.FlatMap(lambda _: splits).with_output_types(str)
            | "List" >> beam.ParDo(ListSplit(job, self._taxonomy)).with_output_types(SourceShard)
            | "SpreadSources" >> beam.Reshuffle()
            | "Examine"
            >> beam.ParDo(
                Examine(config.segment, job.layer_staging(), config.layers)
            ).with_output_types(ExaminedShard)
        )
        allowed = []
        if job.hold is not None:
            allowed.append(beam.pvalue.AsIter(self._hold(examined, job.hold)))
            examined = examined | "SpreadExamined" >> beam.Reshuffle()
        segment = SegmentShard(
            config.segment,
            job.layer_staging(),
            job.previous,
            job.progress,
            self._taxonomy.num_labels,
        )
        segmented = examined | "Segment" >> beam.ParDo(segment, *allowed).with_output_types(
            SegmentedShard
        )
        composed = (
            segmented
            | "BySplit" >> beam.WithKeys(_split_of)
            | "GatherSplit" >> beam.GroupByKey()
            | "Plan"
            >> beam.ParDo(
                PlanSplit(config.compose, job.output_staging(), config.segment, job.scenes)
            ).with_output_types(OutputShard)
            | "SpreadOutputs" >> beam.Reshuffle()
            | "Compose"
            >> beam.ParDo(
                ComposeShard(
                    config.segment,
                    config.compose,
                    job.output_staging(),
                    self._taxonomy,
                    job.progress,
                )
            ).with_output_types(ComposedShard)
        )
        commit = Commit(config, job.store, self._taxonomy)
        return start | "Commit" >> beam.ParDo(
            commit, shards=beam.pvalue.AsList(composed)
        ).with_output_types(str)

    def _hold(
        self, examined: beam.pvalue.PCollection, before: LayersBefore
    ) -> beam.pvalue.PCollection:
        """One element, if what has to be made again is little enough."""
        config = self._job.config.segment
        return (
            examined
            | "CountRebuild"
            >> beam.ParDo(CountRebuild(self._job.layer_staging())).with_output_types(Rebuild)
            | "AddUp" >> beam.CombineGlobally(add_up)
            | "Hold" >> beam.ParDo(Hold(config, before)).with_output_types(Rebuild)
        )


def _split_of(shard: SegmentedShard) -> str:
    return shard.totals.split
