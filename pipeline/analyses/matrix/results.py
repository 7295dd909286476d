"""What is said of a matrix: accuracies with intervals, beside the paper's table 5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.analyses.matrix.cells import Cell, Trainer
from pipeline.analyses.matrix.plan import MatrixPlan, identity
from pipeline.evaluate.published import TRAINED
from transforms.intervals import paired_bootstrap
from transforms.two_way import Roles, wilson_of_pictures


def describe(trainer: Trainer, plan: MatrixPlan, cells: Sequence[Cell]) -> dict[str, Any]:
    """What a network's file says of the cells that are there."""
    by_row: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        by_row.setdefault(cell.row, {})[cell.column] = cell
    return {
        "name": trainer.name,
        "arch": trainer.arch,
        "method": trainer.method,
        **identity(plan),
        "columns": list(plan.names),
        "classes": plan.dataset.taxonomy.num_labels,
        "rows": [_row(cell, plan.is_published) for cell in cells],
        "gaps": [
            {"train_variant": row, **_paired(of_row["mixed_same"], of_row["mixed_rand"])}
            for row, of_row in by_row.items()
            if {"mixed_same", "mixed_rand"} <= of_row.keys()
        ],
        "gains": [
            {
                "first": "mixed_rand",
                "second": "original",
                "test_variant": name,
                **_paired(by_row["mixed_rand"][name], by_row["original"][name]),
            }
            for name in plan.names
            if all(name in by_row.get(row, {}) for row in ("mixed_rand", "original"))
        ],
    }


def _row(cell: Cell, is_published: bool) -> dict[str, Any]:
    units = np.unique(np.asarray(cell.units, object), return_inverse=True)[1]
    low, high = wilson_of_pictures(np.asarray(cell.correct, np.bool_), Roles.of(units))
    total = len(cell.correct)
    found: dict[str, Any] = {
        "train_variant": cell.row,
        "test_variant": cell.column,
        "n": total,
        "correct": int(cell.correct.sum()),
        "accuracy": float(cell.correct.mean()) if total else None,
        "ci_low": low,
        "ci_high": high,
        "train_n": cell.train_n,
        "overlap": cell.overlap,
        "weights_sha256": cell.weights_sha256,
        "checkpoint": cell.checkpoint,
    }
    published = TRAINED.get(cell.row, {}).get(cell.column) if is_published else None
    found["published"] = published
    if published is not None and total:
        found |= {
            "difference": found["accuracy"] - published,
            "difference_ci_low": low - published,
            "difference_ci_high": high - published,
        }
    return found


def _paired(first: Cell, second: Cell) -> dict[str, Any]:
    """First less second, over the images of both."""
    place = {key: number for number, key in enumerate(second.keys)}
    mine = [number for number, key in enumerate(first.keys) if key in place]
    theirs = [place[first.keys[number]] for number in mine]
    if not mine:
        return {"difference": None, "ci_low": None, "ci_high": None, "n": 0}
    difference, low, high = paired_bootstrap(
        first.correct[mine], second.correct[theirs], [first.units[number] for number in mine]
    )
    return {"difference": difference, "ci_low": low, "ci_high": high, "n": len(mine)}
