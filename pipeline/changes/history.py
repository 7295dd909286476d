"""History: what is kept of finished states of a dataset, to say later what has changed.

.in9/history/history.json   which states are kept, and what for; written last
.in9/history/<state>/       manifest, index, records of layers, summaries, predictions: no pixels

A state is a dataset with the results of its models. It is kept as it is (copied by the store,
on one machine by hard links), so what reads a dataset reads it, too.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Annotated, Any

import msgspec

from pipeline.dataset.fingerprints import fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.dataset.manifest import MANIFEST, read_manifest
from pipeline.results.files import read_results, result_file, result_folder, result_shard
from pipeline.storage.state_files import read_json
from pipeline.storage.store import WORK_FOLDER, Store

HISTORY = f"{WORK_FOLDER}/history"
_NOTE = f"{HISTORY}/history.json"

_STATE_NAME = re.compile("[0-9a-f]{32}")
StateName = Annotated[str, msgspec.Meta(pattern=rf"\A{_STATE_NAME.pattern}\Z")]

Summary = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class State:
    """A dataset with results.

    Attributes:
      name: fingerprint of all that follows.
      dataset: the dataset.
      summaries: of its models, by their folder under `results/`.
    """

    name: str
    dataset: Dataset
    summaries: dict[str, Summary]

    @classmethod
    def of(cls, dataset: Dataset) -> State:
        """The state that a dataset folder is in."""
        store = dataset.store
        # Of whatever form: what is compared is made from predictions.
        summaries = {
            result_folder(summary["model"], summary["evaluation"]): summary
            for summary in read_results(store, "summary")
            if summary["dataset"] == dataset.manifest.fingerprint
        }
        name = fingerprint(store.digest(MANIFEST), sorted(summaries.items()))
        return cls(name, dataset, summaries)

    def files(self) -> list[str]:
        """Paths of what is kept of it, the manifest last."""
        paths = [
            file.path
            for file in self.dataset.manifest.files
            if file.path.startswith(("index/", "layers/")) and file.path.endswith(".parquet")
        ]
        for folder, summary in self.summaries.items():
            split = summary["evaluation"]["split"]
            there = set(self.dataset.store.walk(f"results/{folder}/predictions"))
            of_shards = (
                result_shard(folder, "predictions", split, shard)
                for shard in self.dataset.shards(split)
            )
            paths += [
                result_file(folder, "summary"),
                *(path for path in of_shards if path in there),
            ]
        return [*paths, MANIFEST]


@dataclasses.dataclass(frozen=True)
class History:
    """Which states of a dataset folder are kept.

    Attributes:
      before: name of the last one that differs from `now` in more than models beside the
        others: what changes are told against. None if there was none.
      now: name of the one that was found last.
    """

    before: StateName | None = None
    now: StateName | None = None


def read_history(store: Store) -> History:
    """What is kept; nothing if there is no note."""
    return read_json(store, _NOTE, History) or History()


def read_state(store: Store, name: str | None) -> State | None:
    """A kept state, None if it is not there any more."""
    if name is None:
        return None
    folder = store.below(f"{HISTORY}/{name}")
    manifest = read_manifest(folder)
    return None if manifest is None else State.of(Dataset(folder, manifest))


def keep_state(state: State) -> None:
    """Keeps the state that a dataset folder is in. Repeatable."""
    store = state.dataset.store
    *paths, manifest = state.files()
    for part in (paths, [manifest]):
        store.copy_into(store, [(path, f"{HISTORY}/{state.name}/{path}") for path in part])


def write_history(store: Store, history: History) -> None:
    """Notes which states are kept, and removes all others."""
    store.update(_NOTE, json.dumps(dataclasses.asdict(history), sort_keys=True).encode())
    names = {path.split("/")[2] for path in store.walk(HISTORY)}
    for name in sorted(names - {history.before, history.now}):
        if _STATE_NAME.fullmatch(name):
            store.delete_tree(f"{HISTORY}/{name}")
