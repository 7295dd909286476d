"""Faults in documents: foreign content, wrong types, huge numbers and hostile paths.

A document is a JSON file, or the JSON in the metadata of a Parquet file. All kinds of documents in
all states, and all their fields, are discovered, not listed.
"""

import copy
import functools
import itertools
import json
import operator
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fault_lab import WITHOUT_DATASET, Lab
from fault_states import READERS, Fault, files_by_kind, is_healed

DOCUMENTS = {
    "{}": b"{}",
    "list": b"[]",
    "null": b"null",
    "number": b"17",
    "text": b'"text"',
    "deep": b"[" * 100_000,
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "NaN": b'{"a": NaN}',
    "two equal fields": b'{"a": 1, "a": 2}',
}
"""Contents of files that are not documents of ours."""
WRONG: tuple[Any, ...] = (None, 7, 1.5, "text", [], {}, True, [None], {"a": 1})
"""Values of all types."""
NUMBERS: tuple[Any, ...] = (10**9, -1, 10**400)
VICTIM = "VICTIM"
MISSING = "MISSING"
"""Stands for no value: the field is removed."""
PATHS = ("../victim", VICTIM, "a/../../victim", "../victim/manifest.json", ".")
"""Hostile paths; `VICTIM` stands for the absolute path."""
FIELDS = 16
"""Approximate number of fields that are tried in a minor document."""
STRICT = ("manifest.json", "published/latest.json")
"""Documents that every command reads, so every command must report what is wrong with them."""


def fields(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the paths of all values in a document.

    The first entry of a list stands for all entries, and the first two of a large object do if all
    have one type.
    """
    if path or not isinstance(document, list | dict):
        yield path
    if isinstance(document, list):
        items = list(enumerate(document))[:1]
    elif isinstance(document, dict):
        items = list(document.items())
        if len(items) > 4 and len({type(value) for _, value in items}) == 1:
            items = items[:2]
    else:
        items = []
    for key, value in items:
        yield from fields(value, (*path, key))


def with_value(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Returns a copy of a document with another value, or `MISSING`, at a path."""
    if not path:
        return value
    changed = copy.deepcopy(document)
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    if value == MISSING:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return changed


_FREE = (("stages",), ("libraries",), ("segmenter",))
"""Parts of a manifest that describe, for people or as a whole, how the dataset was made."""


def read_document(path: Path) -> Any:
    """Returns the content of a JSON file, or of the JSON in a Parquet file's metadata, or None."""
    if path.suffix == ".json":
        return json.loads(path.read_bytes())
    metadata = pq.read_schema(path).metadata or {}
    return json.loads(metadata[b"in9"]) if b"in9" in metadata else None


def _replace(file: str, text: bytes, trial: Path) -> None:
    """Writes the bytes of a document, valid or not."""
    path = trial / "out" / file
    if path.suffix == ".json":
        path.unlink()
        path.write_bytes(text)
    else:
        _replace_table(file, lambda table: table.replace_schema_metadata({b"in9": text}), trial)


def _replace_table(file: str, change: Callable[[pa.Table], pa.Table], trial: Path) -> None:
    path = trial / "out" / file
    table = pq.read_table(path)
    path.unlink()
    pq.write_table(change(table), path)


def _documents(lab: Lab, states: Sequence[str]) -> Iterator[tuple[str, str, str, Any]]:
    """Yields (state, kind, file, content) of each kind of document."""
    seen = set()
    for state in states:
        for kind, file in files_by_kind(lab.state(state)).items():
            short = kind.removeprefix("dataset/")
            if not kind.endswith((".json", ".parquet")) or short in seen or "v-*" in kind:
                continue
            content = read_document(lab.state(state) / file)
            if content is not None:
                seen.add(short)
                yield state, kind, file, content


def wrong_documents(lab: Lab, states: Sequence[str]) -> Iterator[Fault]:
    """Yields faults that replace each kind of document with another one; commands take turns."""
    turn = itertools.cycle(("run", *READERS))
    for state, kind, file, _ in _documents(lab, states):
        for name, data in DOCUMENTS.items():
            is_strict = kind in STRICT
            commands = ("run", *READERS) if is_strict else (next(turn),)
            if is_healed(kind) or state in WITHOUT_DATASET:
                commands = ("run",)
            if "checksums" in kind and name == "{}":
                continue  # An empty cache of checksums is valid.
            for command in dict.fromkeys(commands):
                yield Fault(
                    kind=f"whole document: {kind}",
                    name=f"{name}, in9 {command}",
                    state=state,
                    file=file,
                    damage=functools.partial(_replace, file, data),
                    command=command,
                    heals=is_healed(kind) and command == "run",
                    strict=is_strict,
                )


def _change(file: str, path: tuple[Any, ...], content: Any, value: Any, trial: Path) -> None:
    text = json.dumps(with_value(content, path, value))
    text = text.replace(json.dumps(VICTIM)[1:-1], str(trial / "victim"))
    _replace(file, text.encode(), trial)


def wrong_fields(lab: Lab, states: Sequence[str]) -> Iterator[Fault]:
    """Yields faults with a wrong type or a bad value in each field, or without the field.

    A bad value is a huge number, a hostile path or a lone surrogate. The commands take turns.
    """
    main = itertools.cycle(("verify", "run", "verify", "report", "verify", "evaluate"))
    # Commands for documents that only jobs read.
    minor = itertools.cycle(("run", "run", "evaluate"))
    some = itertools.count()
    for state, kind, file, content in _documents(lab, states):
        is_main = kind in STRICT
        all_paths = list(fields(content))
        # A minor document is sampled: some fields, evenly spread, and some values for each field.
        step = 1 if is_main else max(1, len(all_paths) // FIELDS)
        for path in all_paths[::step]:
            before = functools.reduce(operator.getitem, path, content)
            wrong = [w for w in WRONG if type(w) is not type(before)]
            at = next(some)
            wrong = [wrong[(at + 3 * n) % len(wrong)] for n in range(4 if is_main else 1)]
            tries = [("wrong type", value) for value in wrong]
            tries += [("missing", MISSING)] if path else []
            if type(before) in (int, float):
                tries += [("number", NUMBERS[at % 3])]
                tries += [("number", 10**9)] if is_main and at % 3 else []
            if isinstance(before, str):
                paths = (
                    PATHS
                    if is_main or len(path) < 2 or "/" in before
                    else PATHS[at % 4 : at % 4 + 1]
                )
                tries += [("path", value) for value in paths]
                tries += [("text", "x\ud800\n")]
            for defect, value in tries:
                # Only the writer of a field knows whether it may be null or hold any value.
                free = value is None or path[:1] in _FREE or before is None
                command = next(minor if is_healed(kind) else main)
                command = "run" if state in WITHOUT_DATASET else command
                field = ".".join(map(str, path))
                # A plausible value means another configuration, or another number of samples.
                also = ("the manifest says",) if command == "verify" else ()
                also += ("(the dataset has", str(value)) if defect != "wrong type" else ()
                yield Fault(
                    kind=f"field, {defect}: {kind}",
                    name=f"{field} = {str(value)[:30]!r}, in9 {command}",
                    state=state,
                    file=file,
                    damage=functools.partial(_change, file, path, content, value),
                    command=command,
                    strict=is_main and defect == "wrong type" and not free,
                    also=also if is_main or "manifest" in kind else (),
                )


FOREIGN_TABLES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "other columns": lambda table: pa.table({"a": [1]}),
    "no rows": lambda table: table.slice(0, 0),
    "no metadata": lambda table: table.replace_schema_metadata(None),
}


def foreign_tables(lab: Lab, states: Sequence[str]) -> Iterator[Fault]:
    """Yields faults that replace Parquet files with intact ones that are not ours."""
    for kind, file in files_by_kind(lab.state("finished")).items():
        if not kind.endswith(".parquet"):
            continue
        for name, change in FOREIGN_TABLES.items():
            for command in ("run", "evaluate"):
                yield Fault(
                    kind="foreign tables",
                    name=f"{kind} with {name}, in9 {command}",
                    state="finished",
                    file=file,
                    damage=functools.partial(_replace_table, file, change),
                    command=command,
                )


FAMILIES = (wrong_documents, wrong_fields, foreign_tables)
