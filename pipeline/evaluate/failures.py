"""Records models that failed to run, so that the tables list them beside the models that ran.

results/failures.json   entry of --models -> stage -> why its last attempt failed

A failure is dropped when its model succeeds in the stage, or when any stage has run on another
version of the dataset. A model that failed but has results on this dataset under the same settings
keeps them, and usually gets no row for the failure (`failures_without_results`).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Sequence

from pipeline.errors import JobError, escaped, escaped_line
from pipeline.evaluate.results import Failure, Named, RunSettings, read_result, write_result
from pipeline.runtime.lock import TABLES_LOCK, held
from pipeline.storage.store import Store

FAILURES = "results/failures.json"


@dataclasses.dataclass(frozen=True)
class FailedModel:
    """A model that failed to run.

    Attributes:
      order: position of the model in `--models`.
      entry: the model's entry of `--models`.
      model: name of the model; its entry if it was not loaded.
      error: error message, one line.
    """

    order: int
    entry: str
    model: str
    error: str


def note_failures(
    store: Store,
    dataset: str,
    stage: str,
    settings: RunSettings,
    failed: Iterable[FailedModel],
    succeeded: Iterable[str],
) -> None:
    """Records the models that failed in a stage, and forgets earlier failures of the models that
    succeeded.

    Args:
      store: the dataset folder.
      dataset: the dataset's fingerprint.
      stage: name of the stage.
      settings: the settings that the models were run with.
      failed: models that failed in the stage.
      succeeded: names and entries of the models that succeeded in the stage.

    Raises:
      JobError: another process has held the lock of the tables for a minute.
    """
    succeeded = set(map(escaped_line, succeeded))
    with held(store, TABLES_LOCK, wait=60) as store:
        kept: dict[str, dict[str, Failure]] = {}
        for failure in _read_all(store):
            names = (failure.entry, failure.model)
            has_succeeded = failure.stage == stage and not succeeded.isdisjoint(names)
            if failure.dataset == dataset and not has_succeeded:
                kept.setdefault(failure.entry, {})[failure.stage] = failure
        for model in failed:
            entry = escaped_line(model.entry)
            kept.setdefault(entry, {})[stage] = Failure(
                entry=entry,
                stage=stage,
                model=model.model,
                error=model.error,
                dataset=dataset,
                evaluation=settings,
            )
        if kept:
            write_result(store, FAILURES, kept)
        else:
            store.delete(FAILURES)


def _read_all(store: Store) -> list[Failure]:
    """Reads the failures of all stages, on any version of the dataset."""
    content = read_result(store, FAILURES, dict[str, dict[str, Failure]]) or {}
    return [failure for stages in content.values() for failure in stages.values()]


def read_failures(store: Store, dataset: str, stage: str) -> tuple[list[Failure], list[str]]:
    """Reads the models whose last attempt in a stage failed, in order of their entries.

    Args:
      store: the dataset folder.
      dataset: the dataset's fingerprint.
      stage: name of the stage, as for `note_failures`.

    Returns:
      (failures on this version of the dataset; names of models that failed on an earlier version).
    """
    failures = [failure for failure in _read_all(store) if failure.stage == stage]
    current = [failure for failure in failures if failure.dataset == dataset]
    return current, [failure.model for failure in failures if failure.dataset != dataset]


def failures_without_results(failed: Iterable[Failure], results: Iterable[Named]) -> list[Failure]:
    """Returns the failures that get a row in a table with a column `error`: those whose `model` has
    no results on the dataset under the same settings.

    A model that was not loaded has a row beside its results, if their name has a tag that its entry
    lacks.

    Args:
      failed: failures on this dataset, from `read_failures`.
      results: the models' results on this dataset.
    """
    existing = {result.folder for result in results}
    return [failure for failure in failed if failure.folder not in existing]


def errors_by_model(failed: Iterable[Failure], entries: Iterable[str]) -> dict[str, str]:
    """Maps each failed model among these entries of `--models` to its error."""
    wanted = set(entries)
    return {
        failure.model: failure.error.removeprefix(f"{failure.model}: ")
        for failure in failed
        if failure.entry in wanted
    }


def print_failures(
    failed: Iterable[Failure], entries: Sequence[str], prefix: str, details: str = ""
) -> None:
    """Prints to standard error which entries of `--models` failed.

    Args:
      failed: failures on this dataset, from `read_failures`.
      entries: entries of `--models` in this run.
      prefix: beginning of each line, such as `not evaluated`.
      details: end of each line, and of the error, that says where to read more, such as
        " (details: ...)".

    Raises:
      JobError: all entries failed.
    """
    errors = errors_by_model(failed, entries)
    if errors and len(errors) == len(entries):
        raise JobError("; ".join(f"{model}: {error}" for model, error in errors.items()) + details)
    for model, error in errors.items():
        print(escaped(f"{prefix}: {model}: {error}{details}"), file=sys.stderr)
