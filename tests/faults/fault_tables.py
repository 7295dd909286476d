"""Foreign Parquet files by mutation: none may end the process, or be more than a line.

Each trial reads some hundred mutated files in a process of its own, because pyarrow may end it.
"""

import dataclasses
import functools
import io
import os
import random
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from fault_lab import Ended, Lab, Outcome

from pipeline.dataset.folder import Dataset
from pipeline.errors import JobError, UsageError
from pipeline.generate.recipe import RECIPE, Recipe, sealed
from pipeline.inputs.layout import FORMATS, find_layout
from pipeline.inputs.location import read_location
from pipeline.inputs.tables import column_names, holds_pictures, read_rows
from pipeline.models.answers import read_answers
from pipeline.released.write_recipe import write_recipe
from pipeline.storage.store import Store
from transforms.taxonomy import imagenet9

MUTATIONS, TRIALS = 400, 10
"""Files of a trial, and trials of each kind of file."""


def _table(table: pa.Table, **options: object) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def _pictures(folder: Path, data: bytes) -> None:
    path = folder / "validation-00000-of-00001.parquet"
    path.write_bytes(data)
    layout = find_layout(str(path), None, "val")
    for image in FORMATS[layout.kind].list_images(layout, imagenet9()):
        if image is not None:
            read_location(image.location)


def _manifest(folder: Path, data: bytes) -> None:
    path = folder / "manifest.parquet"
    path.write_bytes(data)
    column_names(str(path), "--input")
    holds_pictures(str(path))
    list(read_rows(str(path), "--input"))


def _answers(folder: Path, data: bytes) -> None:
    path = folder / "answers.parquet"
    path.write_bytes(data)
    read_answers(f"answers:{path}", imagenet9())


def _recipe(folder: Path, data: bytes) -> None:
    path = folder / RECIPE
    path.write_bytes(sealed(data) if b"seal" in data else data)
    Recipe.open(str(path))


_IMAGES = pa.array([{"bytes": b"x" * 50, "path": f"{n}_n02085620.JPEG"} for n in range(5)])
_KEYS = {"key": ["a", "b", "c"], "variant": ["original"] * 3}
_FILES: dict[str, tuple[Callable[[Path, bytes], None], bytes]] = {
    "hub": (_pictures, _table(pa.table({"image": _IMAGES, "label": [*range(151, 156)]}))),
    "manifest": (
        _manifest,
        _table(
            pa.table({"image": ["a", "b", "c"], "class": ["n02085620"] * 3, "box": [[1, 2]] * 3}),
            row_group_size=2,
        ),
    ),
    "scores": (
        _answers,
        _table(pa.table({**_KEYS, "scores": [[0.1] * 9] * 3}), data_page_version="2.0"),
    ),
    "recipe": (_recipe, b""),
}
"""By kind of file: the function that reads it, and a sound file; a recipe is of the lab's."""


@dataclasses.dataclass(frozen=True)
class MutatedTables:
    """Mutations of a kind of file. `name` is the kind and the number of the trial."""

    name: str
    kind: str = "mutated tables"

    def __call__(self, lab: Lab) -> list[Outcome]:
        """Reads the files in a process; returns one outcome."""
        of = self.name.partition(":")[0]
        with lab.trial() as trial:
            sound = trial / "sound"
            sound.write_bytes(_FILES[of][1] or _recipe_of(lab.state("finished")))
            command = (of, self.name.rpartition(" ")[2], str(sound))
            done = subprocess.run(
                [sys.executable, __file__, *command],
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
                timeout=300,
            )
        ended = Ended(command, done.returncode, done.stdout, done.stderr, ())
        faults = [] if done.returncode == 0 else [f"exit code {done.returncode}"]
        return [Outcome(self.kind, self.name, tuple(faults + done.stdout.splitlines()), ended)]


@functools.cache
def _recipe_of(output: Path) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write_recipe(Dataset.open(Store(str(output))), Store(folder))
        return Path(folder, RECIPE).read_bytes()


def mutated(data: bytes, source: random.Random) -> bytes:
    """Returns a Parquet file with one to four other bytes, most of them in its footer."""
    changed, end = bytearray(data), len(data) - 8
    footer = end - int.from_bytes(data[end : end + 4], "little")
    for _ in range(source.choice((1, 1, 2, 4))):
        place = source.randrange(footer if source.random() < 0.8 else 0, end)
        changed[place] = source.choice((source.randrange(256), changed[place] ^ 16))
    return bytes(changed)


def main(kind: str, trial: str, sound: str) -> None:
    """Reads mutated files; prints a line for each that does not end in a line."""
    read, data = _FILES[kind][0], Path(sound).read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(MUTATIONS):
            source = random.Random(f"{kind} {trial} {number}")
            try:
                read(Path(folder), mutated(data, source))
            except (UsageError, JobError, OSError) as error:
                if folder not in str(error) and "--" not in str(error):
                    print(f"{number}: no file is named: {error}")
            except Exception:
                print(f"{number}: {traceback.format_exc().splitlines()[-1]}")


def mutated_tables(lab: Lab, states: Sequence[str]) -> Iterator[MutatedTables]:
    """Yields trials of each kind of file."""
    for kind in _FILES:
        yield from (MutatedTables(f"{kind}: {number}") for number in range(TRIALS))


FAMILIES = (mutated_tables,)

if __name__ == "__main__":
    main(*sys.argv[1:])
