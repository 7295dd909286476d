"""The table to fill with answers: a row for each picture that models are evaluated on.

`answers:FILE` of `--models` reads it once a column with the answers is added. A Parquet file holds
the pictures; a CSV names each by its path in an export of the released layout.
"""

from __future__ import annotations

import contextlib
import itertools

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.evaluate.predictions import evaluated_variants
from pipeline.released.export import ExportPlan

SUFFIXES = (".csv", ".parquet")

_AT_ONCE = 256
"""Number of rows that are written at a time, with some megabytes of pictures."""


def write_answer_table(plan: ExportPlan, name: str) -> int:
    """Writes the table; returns its number of rows.

    Args:
      plan: dataset, split, and the folder of the table.
      name: name of the file, which ends in one of `SUFFIXES`.
    """
    dataset, with_pixels = plan.dataset, name.endswith(".parquet")
    picture = ("image", pa.binary()) if with_pixels else ("path", pa.string())
    columns = [("key", pa.string()), ("variant", pa.string()), picture, ("dataset", pa.string())]
    schema, shards = pa.schema(columns), dataset.shards(plan.split)
    make = pq.ParquetWriter if with_pixels else pyarrow.csv.CSVWriter
    with plan.target.create(name) as file, make(file, schema) as writer:
        for variant, shard in itertools.product(evaluated_variants(dataset), shards):
            with contextlib.closing(dataset.samples(plan.split, shard, variant)) as samples:
                while batch := list(itertools.islice(samples, _AT_ONCE)):
                    rows = {
                        "key": [sample.key for sample in batch],
                        "variant": [variant] * len(batch),
                        picture[0]: [
                            sample.image if with_pixels else plan.path(variant, sample)
                            for sample in batch
                        ],
                        "dataset": [dataset.manifest.fingerprint] * len(batch),
                    }
                    writer.write_table(pa.table(rows, schema))
    return sum(dataset.pictures(plan.split, shard) for shard in shards)
