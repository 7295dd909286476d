"""Writes files of answers of models that are right on a known share of a dataset's pictures."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from runs import csv_rows, index_of, run_here


def pictures_to_answer(dataset: Path, table: Path) -> list[dict[str, str]]:
    """Returns the rows of the table that `in9 export` writes for answers."""
    if not table.exists():
        run_here("export", "--dataset", dataset, "--layout", "answers", "--to", table)
    return csv_rows(table)


def answer_files(
    dataset: Path, folder: Path, shares: Mapping[str, float], seed: int = 0, **others: float
) -> None:
    """Writes FOLDER/NAME.csv for each name of `shares`, of which about this share is right.

    Args:
      dataset: the dataset's folder.
      folder: where files are written.
      shares: share of right answers, by name.
      seed: other seeds give other answers.
      others: share of right answers on the pictures of a variant, whatever the model.
    """
    pictures = pictures_to_answer(dataset, folder / "pictures.csv")
    labels = {row["key"]: row["label"] for row in index_of(dataset)}
    for name, share in shares.items():
        rng = np.random.default_rng([seed, *name.encode()])
        rows = []
        for row in pictures:
            is_wrong = bool(rng.random() >= others.get(row["variant"], share))
            rows.append({**row, "label": (labels[row["key"]] + is_wrong) % 9})
        path = folder / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.csv.write_csv(pa.Table.from_pylist(rows), path)


def entry(folder: Path, label: str) -> str:
    """Returns the `--models` entry of the file of answers with this name, without its label."""
    return f"answers:{folder / label}.csv"


def entries(folder: Path, labels: Iterable[str]) -> str:
    """Returns a value of `--models` with labels."""
    return ",".join(f"{label}:={entry(folder, label)}" for label in labels)
