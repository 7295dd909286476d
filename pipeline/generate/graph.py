"""The part of the graph that makes a dataset.

    List -> Segment -> Plan -> Compose -> Commit

Elements of the graph hold keys, paths and records, but no pixels.
"""

from __future__ import annotations

import operator
from typing import Any

import apache_beam as beam

from pipeline.generate.commit import finish_step, move_step, prepare_step
from pipeline.generate.compose import ComposeShard
from pipeline.generate.job import GenerateJob
from pipeline.generate.list_split import ListSplits
from pipeline.generate.plan import PlanSplit
from pipeline.generate.segment import SegmentShard
from pipeline.generate.shard_elements import OutputShard, SourceShard


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
        segmented = (
            start
            | "List" >> beam.ParDo(ListSplits(job)).with_output_types(SourceShard)
            | "SpreadSources" >> beam.Reshuffle()
            | "Segment" >> beam.ParDo(SegmentShard(job)).with_output_types(SourceShard)
        )
        composed = (
            segmented
            | "ForPlan" >> beam.Map(SourceShard.for_plan).with_output_types(SourceShard)
            | "BySplit" >> beam.WithKeys(operator.attrgetter("totals.split"))
            | "GatherSplit" >> beam.GroupByKey()
            | "Plan" >> beam.ParDo(PlanSplit(job)).with_output_types(OutputShard)
            | "SpreadOutputs" >> beam.Reshuffle()
            | "Compose" >> beam.ParDo(ComposeShard(job)).with_output_types(OutputShard)
        )
        # Source shards go to Commit directly, so that output shards need not carry them.
        shards = (
            segmented | "ForCommit" >> beam.Map(SourceShard.for_commit),
            composed,
            start | "Nothing" >> beam.Map(_nothing),
        )
        return shards | "AllShards" >> beam.Flatten() | "Commit" >> Commit(job)


class Commit(beam.PTransform):
    """All segmented SourceShards, all composed OutputShards and one None -> one element, the
    dataset's fingerprint.

    Without the None, Commit would not run if no shard arrived, and the job would seem to succeed.
    """

    def __init__(self, job: GenerateJob) -> None:
        super().__init__()
        self._job = job

    def expand(self, shards: beam.pvalue.PCollection) -> beam.pvalue.PCollection:
        job = self._job
        finish = beam.Map(finish_step, job.store, job.taxonomy, job.source)
        return (
            shards
            | "Together" >> beam.WithKeys(None)
            | "Gather" >> beam.GroupByKey()
            | "Prepare" >> beam.FlatMap(prepare_step, job.config, job.store, job.taxonomy)
            | "SpreadMoves" >> beam.Reshuffle()
            | "Move" >> beam.Map(move_step, job.store)
            | "AllMoved" >> beam.GroupByKey()
            | "Finish" >> finish.with_output_types(str)
        )


def _nothing(_: Any) -> None:
    return None
