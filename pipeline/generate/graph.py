"""The part of the graph that makes a dataset, and its first steps.

    List -> Segment -> Plan -> Compose -> Commit

Elements of the graph hold keys, paths and records, but no pixels. List finds the images of all
splits, with their masks and boxes, and deals them to source shards. With a recipe, all workers then
identify the pictures, and one sees the result before anything is made (List -> Identify -> Accept
-> Segment).
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import apache_beam as beam

from pipeline.dataset.records import DATA_FOLDERS, ShardCounts
from pipeline.errors import UsageError
from pipeline.generate.commit import MoveFiles, finish_step, prepare_step
from pipeline.generate.compose import ComposeShard
from pipeline.generate.origin import GenerateJob, JobStep
from pipeline.generate.plan import PlanSplit
from pipeline.generate.previous_layers import check_rebuild
from pipeline.generate.segment import SegmentShard
from pipeline.generate.shard_elements import (
    ListedShard,
    OutputShard,
    SourceShard,
    SplitTotals,
    make_shards,
)
from pipeline.inputs.input_format import SplitLayout
from pipeline.inputs.source_images import Checksums, Packed, SourceImage
from pipeline.runtime.progress import timed
from pipeline.runtime.spread import Spread
from pipeline.storage.store import WORK_FOLDER, Store


def list_split(job: GenerateJob, layout: SplitLayout) -> tuple[Sequence[SourceImage], SplitTotals]:
    """Lists a split's images with the files that the job uses; chooses its numbers of shards.

    Raises UsageError if there are no images that can be used, the input is not valid, or its images
    may not be read.
    """
    split = layout.split
    try:
        images, skipped, unmatched = job.origin.list_images(job.config, job.taxonomy, layout)
    except PermissionError as error:
        raise UsageError(f"{error.filename} cannot be read: {error.strerror}") from error
    _check_places(images, job.store)
    previous = None if job.reshard else job.previous.get(split)
    counts = previous or ShardCounts.for_images(len(images), job.config.images_per_shard)
    others = skipped["outside"], skipped["other_files"]
    return images, SplitTotals(split, counts, len(images), *others, unmatched)


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
        if job.origin.recipe:  # The guard waits until the pictures have been found.
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
    """Listed SourceShard of a recipe -> the shard, its pictures found, or known to be missing."""

    @timed("list")
    def process(self, shard: SourceShard) -> list[SourceShard]:
        checksums = Checksums(self.layers.store, shard.totals.split, shard.shard)
        found = self.job.origin.find_pictures(self.config.segment, shard.images, checksums)
        checksums.save()
        return [replace(shard, images=Packed(found))]


class AcceptSources(JobStep):
    """(None, all identified SourceShards) -> all SourceShards, if the job may go on."""

    @timed("list")
    def process(self, element: tuple[None, Iterable[SourceShard]]) -> Iterable[SourceShard]:
        splits: dict[SplitTotals, list[SourceImage]] = {}
        for shard in sorted(element[1], key=operator.attrgetter("totals.split", "shard")):
            splits.setdefault(shard.totals, []).extend(shard.images)
        self.job.origin.refuse_lacking(itertools.chain.from_iterable(splits.values()))
        return deal_guarded(self.job, splits)


@dataclass(eq=False, repr=False)
class GenerateDataset(beam.PTransform):
    """Start -> one element, the dataset's fingerprint; makes the missing parts of the dataset.

    The start is one element of any value, which arrives when work may begin.
    """

    job: GenerateJob

    def expand(self, start: beam.pvalue.PCollection) -> beam.pvalue.PCollection:
        job = self.job
        list_all = beam.FlatMap(ListSplits(job).process)
        listed = start | "List" >> list_all.with_output_types(SourceShard)
        if job.origin.recipe:
            identify, accept = IdentifySources(job), AcceptSources(job)
            listed = (
                listed
                | "Identify" >> Spread(identify, SourceShard)
                | "Together" >> beam.WithKeys(None)
                | "AllIdentified" >> beam.GroupByKey()
                | "Accept" >> beam.FlatMap(accept.process).with_output_types(SourceShard)
            )
        segmented = listed | "Segment" >> Spread(SegmentShard(job), SourceShard)
        composed = (
            segmented
            | "ForPlan" >> beam.Map(SourceShard.for_plan).with_output_types(SourceShard)
            | "BySplit" >> beam.WithKeys(operator.attrgetter("totals.split"))
            | "GatherSplit" >> beam.GroupByKey()
            | "Plan" >> beam.FlatMap(PlanSplit(job).process).with_output_types(OutputShard)
            | "Compose" >> Spread(ComposeShard(job), OutputShard)
        )
        # Source shards go to Commit directly, so that output shards need not carry them. It needs
        # no locations of source files.
        shards = (
            segmented | "ForCommit" >> beam.Map(replace, sources=b""),
            composed,
            start | "Nothing" >> beam.Map(lambda _: None),
        )
        return shards | "AllShards" >> beam.Flatten() | "Commit" >> Commit(job)


@dataclass(eq=False, repr=False)
class Commit(beam.PTransform):
    """All segmented SourceShards, all composed OutputShards, one None -> the dataset's fingerprint.

    Without the None, Commit would not run if no shard arrived, and the job would seem to succeed.
    """

    job: GenerateJob

    def expand(self, shards: beam.pvalue.PCollection) -> beam.pvalue.PCollection:
        job = self.job
        finish = beam.Map(finish_step, job.store, job.taxonomy, job.source, job.origin)
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
