"""Reads datasets and exports of them side by side."""

from collections.abc import Iterator
from pathlib import Path

from runs import csv_rows, dataset_in

from pipeline.dataset.sinks import Sample


def samples_of(output: Path, variant: str) -> Iterator[Sample]:
    """Yields the samples of a dataset's variant in split val."""
    dataset = dataset_in(output)
    for shard in dataset.shards("val"):
        yield from dataset.samples("val", shard, variant)


def truth_of(export: Path) -> dict[str, dict[str, str]]:
    """Reads the rows of the export's table, by released name."""
    return {row["stem"]: row for row in csv_rows(export / "images-val.csv")}
