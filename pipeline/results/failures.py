"""Models that could not be evaluated: a row of the tables each, beside those that could.

A failure takes the place of a summary, `results/<model>/summary.json`, unless there is one of
the same dataset: then those results stay, and the failure is noted in it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pipeline.dataset.folder import Dataset
from pipeline.errors import JobError
from pipeline.results.files import read_result, result_folder, summary_file
from pipeline.storage.store import Store


@dataclasses.dataclass(frozen=True)
class FailedModel:
    """A model that could not be evaluated.

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


def note_failure(
    store: Store,
    failed: FailedModel,
    how: Mapping[str, Any],
    dataset: Dataset,
    file: Callable[[str], str] = summary_file,
) -> None:
    """Writes a failure where the model's summary is looked for.

    Args:
      store: the dataset folder.
      failed: the model, and why.
      how: as for `result_folder`.
      dataset: that it was to be evaluated on.
      file: gives the path of the summary, of the model's folder.
    """
    path = file(result_folder(failed.model, how))
    fingerprint = dataset.manifest.fingerprint
    summary = read_result(store, path) or {}
    if summary.get("dataset") == fingerprint and "error" not in summary:
        summary |= {"last_error": failed.error, "entry": failed.entry}
    else:
        summary = {
            "model": failed.model,
            "entry": failed.entry,
            "error": failed.error,
            "dataset": fingerprint,
            "evaluation": dict(how),
        }
    store.update(path, (json.dumps(summary, indent=1, sort_keys=True) + "\n").encode())


def forget_failure(
    store: Store,
    spec: str,
    model: str,
    how: Mapping[str, Any],
    file: Callable[[str], str] = summary_file,
) -> None:
    """Removes what `note_failure` wrote under an entry of `--models` that has been evaluated
    under its full name since."""
    path = file(result_folder(spec, how))
    if spec != model and "error" in (read_result(store, path) or {}):
        store.delete(path)


def failures(summaries: Iterable[Mapping[str, Any]], entries: Iterable[str]) -> dict[str, str]:
    """Model to error, of the entries of `--models` that failed when they were last tried."""
    wanted, found = set(entries), {}
    for summary in summaries:
        error = summary.get("error") or summary.get("last_error")
        if error and summary["entry"] in wanted:
            model = str(summary["model"])
            found[model] = str(error).removeprefix(f"{model}: ")
    return found


def say_failures(
    summaries: Iterable[Mapping[str, Any]], entries: Sequence[str], what: str, details: str = ""
) -> None:
    """Says on standard error which entries of `--models` failed.

    Args:
      summaries: what is known of all models.
      entries: of `--models`.
      what: was not done to them, such as `not evaluated`.
      details: where to read more, " (details: ...)".

    Raises:
      JobError: all of them.
    """
    failed = failures(summaries, entries)
    if failed and len(failed) == len(entries):
        every = "; ".join(f"{model}: {error}" for model, error in failed.items())
        raise JobError(every + details)
    for model, error in failed.items():
        print(f"{what}: {model}: {error}{details}", file=sys.stderr)
