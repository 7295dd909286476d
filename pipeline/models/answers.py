"""What a model that ran elsewhere has answered, read from a file: `answers:FILE`.

The file is a table (CSV, JSON, JSON lines or Parquet) with a row for each answered picture, which
`key` and `variant` name. One more column is the answer:

scores   the model's outputs: a list, in a CSV as JSON
output   the class of the taxonomy that wins, by id, index or name; empty for none of them
label    the superclass that the model has named, by name or label; empty or -1 for none of them

In a CSV, a text may have the apostrophe with which the tables of in9 keep spreadsheets from running
it (`pipeline.storage.state_files`).

A column `dataset` can hold the fingerprint of the dataset that the pictures are from. This module
does not import torch.
"""

import collections
import dataclasses
import functools
import hashlib
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError, counted
from pipeline.inputs.tables import TableRow, column_names, read_rows
from pipeline.models.identity import Origin, Preprocessing
from pipeline.storage.files import absolute, files_of
from pipeline.storage.state_files import unguarded
from pipeline.storage.store import Store
from transforms.hashing import text_bytes
from transforms.limits import load_json
from transforms.scoring import NO_ANSWER, AnswerKind, labels_of_answers
from transforms.taxonomy import OUTSIDE, Taxonomy

PREFIX = "answers:"
CALLED = "call:"
"""Beginning of the names of models that `in9.evaluate_model` has evaluated."""
MISSING_ANSWERS = ("refuse", "wrong")
"""Values of the key `missing_answers`."""
_TABLES = (".csv", ".json", ".jsonl", ".parquet")
_EXAMPLES = 3
_WHOLE = re.compile(r"-?\d+(\.0*)?")

Values = NDArray[Any]


@dataclasses.dataclass(frozen=True, eq=False)
class GivenAnswers:
    """The answers of a file.

    Attributes:
      num_outputs: number of outputs of the model, as far as the answers tell.
      positions: variant -> key -> position of the answer in `values`.
      values: (n, outputs) float32 scores, on disk; or (n,) int64 outputs or labels.
    """

    path: str
    kind: AnswerKind
    num_outputs: int
    sha256: str
    positions: Mapping[str, Mapping[str, int]]
    values: Values

    def on(self, variant: str, keys: Sequence[str]) -> Values:
        """Returns answers to n pictures, as `values`; missing ones are `NO_ANSWER` or -infinity."""
        known = self.positions.get(variant, {})
        positions = np.asarray([known.get(key, -1) for key in keys], np.int64)
        answers = np.asarray(self.values[positions])
        answers[positions < 0] = -np.inf if self.kind == "scores" else NO_ANSWER
        return answers


AS_STORED = Preprocessing(224, False, (0, 0, 0), (1, 1, 1), "bicubic", 1.0, "center")
"""The preprocessing of given answers: none. What their model did with the pictures is not known."""


class AnswersWriter:
    """Collects answers on disk, because the scores of all pictures may exceed the memory.

    `twice` lists pictures that were answered before.
    """

    def __init__(self) -> None:
        self.positions: dict[str, dict[str, int]] = {}
        self.twice: list[str] = []
        self._count, self._first = 0, np.empty(0)
        self._digest = hashlib.sha256()
        self._file = tempfile.TemporaryFile()  # noqa: SIM115

    def add(self, variant: str, keys: Sequence[str], answers: Values) -> None:
        """Adds the answers to n pictures of a variant.

        They are (n, outputs) float32 scores, or (n,) int64 outputs or labels. Raises ValueError if
        they do not have the shape of those before.
        """
        self._first = answers[:1] if not self._count else self._first
        if answers.shape != (len(keys), *self._first.shape[1:]):
            raise ValueError(
                f"answers of shape {answers.shape} for {counted(len(keys), 'picture')}, where the "
                f"first has {self._first.shape[1:]}"
            )
        known = self.positions.setdefault(variant, {})
        for key in keys:
            if known.setdefault(key, self._count) != self._count:
                self.twice.append(f"{key} on {variant}")
            self._count += 1
        data = answers.tobytes()
        self._file.write(data)
        self._digest.update(text_bytes(f"{variant}\0{keys}\0{answers.dtype}") + data)

    def finish(self, path: str, kind: AnswerKind, taxonomy: Taxonomy) -> GivenAnswers:
        """Returns the answers, identified by their own hash; `path` is their file, for messages."""
        self._file.flush()
        shape = (self._count, *self._first.shape[1:])
        values = np.memmap(self._file, self._first.dtype, "r", shape=shape)
        self._file.close()
        size = shape[-1] if kind == "scores" else len(labels_of_answers(kind, 0, taxonomy))
        return GivenAnswers(path, kind, size, self._digest.hexdigest(), self.positions, values)


def has_network(entry: str) -> bool:
    """Returns whether an entry or name of a model stands for one that can be run."""
    return not entry.startswith((PREFIX, CALLED))


def refuse_answers(entry: str) -> None:
    """Raises UsageError if an entry of `--models` is a file of answers and no network."""
    if not has_network(entry):
        raise UsageError(
            f"{entry} holds the answers of a model, and this needs a network that can be run; use "
            "it with in9 run or in9 evaluate"
        )


def read_answers(entry: str, taxonomy: Taxonomy) -> GivenAnswers:
    """Reads the answers of an entry of `--models`, `answers:FILE`.

    The last file is kept, because a job asks for it several times. Raises UsageError if there is no
    such file, or it holds something else.
    """
    path = _table_of(entry)
    return _read(path, Origin("file", path).stamp(), taxonomy)


def _table_of(entry: str) -> str:
    path = absolute(entry.removeprefix(PREFIX))
    if files_of(path).info(path) is None:
        raise UsageError(f"--models {entry}: there is no file {path}")
    if not path.lower().endswith(_TABLES):
        raise UsageError(f"--models {entry}: answers are in a table, {', '.join(_TABLES)}")
    return path


@functools.cache
def _tell_empty(path: str, stamp: str | None, count: int) -> None:
    """Prints how many answers of a file are empty, once, though a job may read it several times."""
    print(f"{path}: {counted(count, 'empty answer')}, none of the classes", file=sys.stderr)


@functools.lru_cache(1)
def _read(path: str, stamp: str | None, taxonomy: Taxonomy) -> GivenAnswers:
    flag = f"--models {PREFIX}"
    columns = set(column_names(path, flag))
    kinds = [kind for kind in get_args(AnswerKind) if kind in columns]
    if len(kinds) != 1 or not {"key", "variant"} <= columns:
        raise UsageError(
            f"{path} must have the columns key, variant, and only one of scores, output and label; "
            f"it has {', '.join(sorted(columns))}"
        )
    kind: AnswerKind = kinds[0]
    names, count = ({}, 0) if kind == "scores" else _names(kind, taxonomy)
    datasets: set[str] = set()
    writer, empty = AnswersWriter(), 0
    for row in read_rows(path, flag):
        if path.lower().endswith(".csv"):
            row = dataclasses.replace(
                row, values={name: unguarded(text) for name, text in row.values.items()}
            )
        if kind not in row.values:
            raise row.error(kind, "it is missing")
        empty += kind != "scores" and not row.text(kind)
        try:
            answer = _number(row, kind, names, count) if names else _scores(row)
            writer.add(row.text("variant"), [row.text("key")], answer)
        except ValueError as error:
            raise row.error(kind, str(error)) from error
        datasets.add(row.text("dataset"))
    if writer.twice:
        raise UsageError(
            f"{path} answers {counted(len(writer.twice), 'picture')} twice: {_some(writer.twice)}"
        )
    if len(datasets) > 1:
        raise UsageError(f"{path} is of several datasets: {_some(sorted(datasets))}")
    if empty:
        _tell_empty(path, stamp, empty)
    sha256 = Store.at(path).digest("")
    return dataclasses.replace(writer.finish(path, kind, taxonomy), sha256=sha256)


def _names(kind: AnswerKind, taxonomy: Taxonomy) -> tuple[dict[str, int], int]:
    """Returns each lowercase name's output or label, unless classes share it, and their number."""
    count = len(labels_of_answers(kind, 0, taxonomy))
    if kind == "label":
        labels = {name.casefold(): label for label, name in enumerate(taxonomy.names)}
        return labels | {"": OUTSIDE}, count
    outputs = taxonomy.outputs or range(len(taxonomy.wnids))
    named = [
        (name, output)
        for output, synonyms in zip(outputs, taxonomy.class_names, strict=True)
        for name in {synonyms.casefold(), *synonyms.casefold().split(", ")}
    ]
    times = collections.Counter(name for name, _ in named)
    by_name = {name: output for name, output in named if times[name] == 1}
    by_id = {wnid.casefold(): out for wnid, out in zip(taxonomy.wnids, outputs, strict=True)}
    return by_name | by_id | {"": OUTSIDE}, count


def _scores(row: TableRow) -> NDArray[np.float32]:
    value = row.values["scores"]
    try:
        scores = np.asarray(load_json(value) if isinstance(value, str) else value, np.float32)
    except (TypeError, ValueError):
        scores = np.empty(0, np.float32)
    if scores.ndim != 1 or not scores.size:
        raise row.error("scores", f"{str(value)[:40]!r} is not a list of numbers")
    if not np.isfinite(scores.max()):
        raise row.error("scores", "some are NaN or infinity, or all are -infinity")
    return scores[np.newaxis]


def _number(row: TableRow, kind: str, names: Mapping[str, int], count: int) -> NDArray[np.int64]:
    text = row.text(kind).casefold()
    is_number = text not in names and _WHOLE.fullmatch(text)
    number = row.integer(kind) if is_number else names.get(text, count)
    if not OUTSIDE <= number < count:
        what = "class" if kind == "output" else "superclass"
        raise row.error(kind, f"{text[:40]!r} is no {what} of the dataset, or of several")
    return np.asarray([number], np.int64)


def refuse_other_dataset(entry: str, dataset: str) -> None:
    """Refuses an entry `answers:FILE` whose answers are to another dataset, by the first row alone.

    The classes of that dataset may be others, so this comes before the answers are read. Raises
    UsageError if they are to another dataset, or there is no such table.
    """
    if not entry.startswith(PREFIX):
        return
    path = _table_of(entry)
    named = next(read_rows(path, f"--models {PREFIX}")).text("dataset")
    if named not in ("", dataset):
        raise UsageError(
            f"{path} answers pictures of dataset {named[:12]}, and this is {dataset[:12]}; get its "
            "table from: in9 export --layout answers"
        )


def refuse_unfit(
    answers: GivenAnswers,
    *,
    known: frozenset[str],
    tested: frozenset[str],
    variants: Sequence[str],
    missing: str = MISSING_ANSWERS[0],
) -> None:
    """Raises UsageError unless answers are those to a dataset's pictures, and none is missing.

    Args:
      known: keys of the split's images.
      tested: keys of those to test on.
      missing: value of the key `missing_answers`.
    """
    unknown = [
        f"{key} on {variant}"
        for variant, positions in answers.positions.items()
        for key in (positions if variant not in variants else positions.keys() - known)
    ]
    if unknown:
        raise UsageError(
            f"{answers.path} answers {counted(len(unknown), 'picture')} that the split does not "
            f"have: {_some(sorted(unknown))}"
        )
    absent = {
        variant: sorted(tested.difference(answers.positions.get(variant, ())))
        for variant in variants
    }
    pictures = [f"{key} on {variant}" for variant, keys in absent.items() for key in keys]
    if pictures and missing == MISSING_ANSWERS[0]:
        counts = ", ".join(f"{len(keys)} on {variant}" for variant, keys in absent.items() if keys)
        raise UsageError(
            f"{answers.path} lacks {counted(len(pictures), 'answer')} ({counts}), such as "
            f"{_some(pictures)}; add them, or count them as wrong: "
            'missing_answers = "wrong" in the file that --config names'
        )


def _some(texts: Sequence[str]) -> str:
    """Lists up to three texts."""
    return ", ".join(texts[:_EXAMPLES]) + (", ..." if len(texts) > _EXAMPLES else "")
