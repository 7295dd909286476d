"""Making a matrix: row after row, cell after cell; what is there is not made again."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

from pipeline.analyses.matrix.cells import Cell, Trainer, cell_file, make_row
from pipeline.analyses.matrix.plan import MatrixPlan, tested
from pipeline.analyses.matrix.results import describe
from pipeline.analyses.matrix.tables import FOLDER, write_matrix, write_matrix_tables
from pipeline.runtime.lock import TABLES_LOCK, held
from pipeline.runtime.progress import duration
from pipeline.storage.store import WORK_FOLDER


@dataclasses.dataclass(frozen=True)
class Made:
    """What came of it.

    Attributes:
      matrices: what is said of each network.
      cells: how many had to be made.
      kept: how many were there.
    """

    matrices: tuple[dict[str, Any], ...]
    cells: int
    kept: int


def make_matrices(
    plan: MatrixPlan, trainers: Iterable[Trainer], say: Callable[[str], None] = print
) -> Made:
    """Trains and tests, and writes results after every row that was not there.

    Args:
      plan: of the matrix.
      trainers: one for each network.
      say: takes each line of what happens.

    Raises:
      UsageError: images of the test were trained on.
      ModelError, JobError: training or testing failed; rows that are done are kept.
    """
    columns = [tested(plan, name) for name in plan.names]
    store = plan.dataset.store
    made = kept = 0
    found = []
    for trainer in trainers:
        with held(store, f"{WORK_FOLDER}/lock-matrix-{trainer.name}"):
            cells: list[Cell] = []
            for row in plan.names:
                started, before = time.monotonic(), made
                for cell, is_new in make_row(trainer, plan, row, columns):
                    made += is_new
                    kept += not is_new
                    cells.append(cell)
                if made > before:
                    _write(plan, describe(trainer, plan, cells))
                    say(
                        f"{trainer.name}: {row}, {cells[-1].train_n} pictures trained on, "
                        f"{made - before} cells tested, {duration(time.monotonic() - started)}"
                    )
            content = describe(trainer, plan, cells)
            _write(plan, content)
            found.append(content)
            _remove_others(plan, trainer, cells)
    store.remove_temporary()
    return Made(tuple(found), made, kept)


def _write(plan: MatrixPlan, content: dict[str, Any]) -> None:
    store = plan.dataset.store
    with held(store, TABLES_LOCK, wait=60):
        write_matrix(store, content)
        write_matrix_tables(store, plan.dataset.manifest.fingerprint)


def _remove_others(plan: MatrixPlan, trainer: Trainer, cells: Iterable[Cell]) -> None:
    """Removes cells of earlier matrices of that name."""
    current = {cell_file(trainer.name, cell.row, cell.column) for cell in cells}
    store = plan.dataset.store
    for path in list(store.walk(f"{FOLDER}/{trainer.name}")):
        if path not in current:
            store.delete(path)
