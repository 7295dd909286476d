"""Models that could not be run: a row of the tables each, beside those that could.

results/failures.json   entry of --models -> stage -> why it failed when it was last tried

A failure goes when its model succeeds, or when one is noted on another dataset. Results that the
model has of the dataset stay, and stand in the place of its row.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.errors import JobError, escaped
from pipeline.evaluate.result_files import read_result, result_folder, write_result
from pipeline.runtime.lock import TABLES_LOCK, held
from pipeline.storage.store import Store

FAILURES = "results/failures.json"


@dataclasses.dataclass(frozen=True)
class FailedModel:
    """A model that could not be run.

    Attributes:
      order: its place among the models.
      entry: of `--models`.
      model: its name, as far as it is known.
      error: one line.
    """

    order: int
    entry: str
    model: str
    error: str


def note_failures(
    store: Store,
    dataset: str,
    stage: str,
    how: Mapping[str, Any],
    failed: Iterable[FailedModel],
    succeeded: Iterable[str],
) -> None:
    """Notes which models failed, and forgets the failures of those that did not.

    Args:
      store: the dataset folder.
      dataset: its fingerprint.
      stage: `evaluate`, `attack`, `saliency` or `imagenet`.
      how: as for `result_folder`.
      failed: models of the stage.
      succeeded: models of the stage, by name and by entry.

    Raises:
      JobError: another process holds the lock of the tables for long.
    """
    done = set(succeeded)
    with held(store, TABLES_LOCK, wait=60) as store:
        kept: dict[str, dict[str, Any]] = {}
        for one in _all(store):
            has_succeeded = one["stage"] == stage and not done.isdisjoint(
                (one["entry"], one["model"])
            )
            if one["dataset"] == dataset and not has_succeeded:
                kept.setdefault(one["entry"], {})[one["stage"]] = one
        for model in failed:
            kept.setdefault(model.entry, {})[stage] = {
                "entry": model.entry,
                "stage": stage,
                "model": model.model,
                "error": model.error,
                "dataset": dataset,
                "evaluation": dict(how),
            }
        if kept:
            write_result(store, FAILURES, kept)
        else:
            store.delete(FAILURES)


def _all(store: Store) -> list[dict[str, Any]]:
    content = read_result(store, FAILURES) or {}
    return [failure for stages in content.values() for failure in stages.values()]


def read_failures(store: Store, dataset: str, stage: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Models that failed when they were last tried, in order of their entries.

    Args:
      store: the dataset folder.
      dataset: its fingerprint.
      stage: as for `note_failures`.

    Returns:
      (`entry`, `stage`, `model`, `error`, `dataset` and `evaluation` of those that failed on this
      dataset, names of models that failed on an earlier one).
    """
    found = [failure for failure in _all(store) if failure["stage"] == stage]
    current = [failure for failure in found if failure["dataset"] == dataset]
    return current, [failure["model"] for failure in found if failure["dataset"] != dataset]


def error_rows(
    failed: Iterable[Mapping[str, Any]], results: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Rows of a table that has `error`: of models that failed, and have no results of the dataset
    that were made in the same way."""
    there = {result_folder(found["model"], found["evaluation"]) for found in results}
    return [
        {**failure, **failure["evaluation"]}
        for failure in failed
        if result_folder(failure["model"], failure["evaluation"]) not in there
    ]


def errors_of(failed: Iterable[Mapping[str, Any]], entries: Iterable[str]) -> dict[str, str]:
    """Model to error, of these entries of `--models`."""
    wanted = set(entries)
    return {
        failure["model"]: failure["error"].removeprefix(f"{failure['model']}: ")
        for failure in failed
        if failure["entry"] in wanted
    }


def say_failures(
    failed: Iterable[Mapping[str, Any]], entries: Sequence[str], what: str, details: str = ""
) -> None:
    """Says on standard error which entries of `--models` failed.

    Args:
      failed: of `read_failures`.
      entries: of `--models`.
      what: was not done to them, such as `not evaluated`.
      details: where to read more, " (details: ...)".

    Raises:
      JobError: all of them.
    """
    errors = errors_of(failed, entries)
    if errors and len(errors) == len(entries):
        every = "; ".join(f"{model}: {error}" for model, error in errors.items())
        raise JobError(every + details)
    for model, error in errors.items():
        print(escaped(f"{what}: {model}: {error}{details}"), file=sys.stderr)
