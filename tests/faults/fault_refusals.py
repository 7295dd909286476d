"""Faults of users: runs that are refused, which must change nothing that a later run believes."""

import csv
import dataclasses
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
from fault_lab import FLAGS, MODEL, PICTURES, Lab, Outcome, contents, faults_of, small_input
from foreign_recipes import parts_of, rejected_rows, sealed
from runs import keys

from pipeline.dataset.folder import Dataset
from pipeline.released.write_recipe import write_recipe
from pipeline.storage.store import Store

OTHERS = (3, 6, 10)
"""Numbers of sample pictures that no other input of the lab has."""


@dataclasses.dataclass(frozen=True)
class Refused:
    """A command that is refused, on a copy of a state.

    Attributes:
      name: name of the outcome.
      command: words of the command, in which {out} is the copy, {input} the input that it was made
        from, {other} another one, and {trial} the folder of the trial.
      says: text that the message must contain.
      state: one of `STATES`.
      code: exit code.
      arrange: prepares the folder of the trial.
    """

    name: str
    command: tuple[str, ...]
    says: str
    state: str = "finished"
    code: int = 2
    arrange: Callable[[Path], object] = lambda trial: None
    kind: str = "refused runs"

    def __call__(self, lab: Lab) -> list[Outcome]:
        """Runs the command; returns one outcome."""
        with lab.trial() as trial:
            output = trial / "out"
            shutil.copytree(
                lab.state(self.state), output, copy_function=shutil.copy2, symlinks=True
            )
            other = small_input(trial / "other", OTHERS)
            self.arrange(trial)
            places = {"out": output, "input": lab.input, "other": other, "trial": trial}
            words = [word.format_map(places) for word in self.command]
            before = contents(trial)
            ended = lab.run(trial, *words)
            after = contents(trial)
            faults = faults_of(ended)
            if ended.code != self.code:
                faults.append(f"exit code {ended.code} instead of {self.code}")
            if (says := self.says.format_map(places)) not in ended.stderr:
                faults.append(f"does not say {says!r}")
            faults += [f"{name} was changed" for name in before if after.get(name) != before[name]]
            # Empty folders tell nothing, and the message names the log of a job that had begun.
            faults += [
                f"{name} is new"
                for name in after.keys() - before.keys()
                if after[name] != "folder" and name not in ended.stderr and name[:4] != "tmp/"
            ]
        return [Outcome(self.kind, self.name, tuple(faults), ended)]


RUN = ("run", "--output", "{out}", *FLAGS, "--models", MODEL)
TO = ("--dataset", "{out}")

TRAINED = ("model.safetensors", "state.pth", "log.csv")
CLEARED = "where files are replaced and removed"


def _in_the_output() -> Iterator[Refused]:
    """Yields runs on files and folders that the run itself would remove."""
    flags = {
        "input": lambda path: small_input(path, OTHERS),
        "annotations": lambda path: small_input(path, OTHERS),
        "masks": lambda path: path.mkdir(parents=True),
        "backgrounds": lambda path: path.mkdir(parents=True),
        "imagenet": lambda path: path.mkdir(parents=True),
        "weights": lambda path: path.mkdir(parents=True),
        "exclude": _write,
        "include": _write,
        "taxonomy": _write,
        "config": _write,
    }
    folders = (".in9/staging", ".in9/tmp", "index", "layers", "parquet", "results")
    for (flag, make), folder in zip(flags.items(), itertools.cycle(folders), strict=False):
        yield Refused(
            f"--{flag} in {folder}",
            (*RUN, "--input", "{input}", f"--{flag}", f"{{out}}/{folder}/mine"),
            CLEARED,
            arrange=lambda trial, make=make, at=f"out/{folder}/mine": make(trial / at),
        )
    for entry in ("resnet18={}", "onnx:{}", "@{}"):
        yield Refused(
            f"--models {entry} in .in9/progress",
            (*RUN, "--input", "{input}", "--models", entry.format("{out}/.in9/progress/mine")),
            CLEARED,
            arrange=lambda trial: _write(trial / "out/.in9/progress/mine"),
        )
    yield Refused(
        "image of a manifest in .in9/staging",
        (*RUN, "--input", "{trial}/manifest.csv", "--overwrite", "config,rebuild"),
        CLEARED,
        arrange=_manifest,
    )
    yield Refused(
        "--masks in a published version",
        (*RUN, "--publish", "{trial}/published", "--masks", "{trial}/published/v-0123456789ab/m"),
        CLEARED,
        arrange=lambda trial: (trial / "published" / "v-0123456789ab" / "m").mkdir(parents=True),
    )
    yield Refused(
        "training in index",
        ("train", *TO, "--output", "{out}/index/mine", "--train_split", "val", "--probe"),
        CLEARED,
    )
    yield Refused(
        "--from in .in9/import",
        ("import", "--from", "{out}/.in9/import/mine.tar", "--output", "{out}"),
        CLEARED,
        arrange=lambda trial: _write(trial / "out/.in9/import/mine.tar"),
    )


def _foreign_files() -> Iterator[Refused]:
    """Yields commands that would write where somebody else's files are."""
    train = ("train", *TO, "--holdout", "0.5", "--output", "{trial}/mine")
    figure = ("export", *TO, "--images", f"sample_val_{PICTURES[0]:08}", "--to")
    fetch = ("models", "fetch", "--models", "efficientnet_lite0", "--to", "{trial}/mine")
    publish = (*RUN, "--input", "{input}", "--publish", "{trial}/mine")
    for command, name in (
        ((*train, "--probe", "--arch", "efficientnet_lite0"), "original.safetensors"),
        *(
            ((*train, "--overwrite"), name)
            for name in ("model.safetensors", "state.pth", "log.csv")
        ),
        *(((*figure, f"{{trial}}/mine/a.{kind}"), f"a.{kind}") for kind in ("pdf", "png", "jpg")),
        (("export", *TO, "--to", "{trial}/mine"), "original/a"),
        (("import", "--from", "{input}", "--output", "{trial}/mine"), "index/a"),
        (("run", "--output", "{trial}/mine"), ".in9/export/source.json"),
        (("run", "--output", "{trial}/mine"), "parquet/a"),
        (fetch, "index.json"),
        *((publish, name) for name in ("latest.json", "diary.txt", "public/index.html")),
    ):
        yield Refused(
            f"in9 {command[0]} over {name}",
            command,
            "{trial}/mine",
            arrange=lambda trial, name=name: _write(trial / "mine" / name),
            kind="foreign files",
        )


def _write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("# mine\n")


def _manifest(trial: Path) -> None:
    folder = small_input(trial / "out/.in9/staging/mine", OTHERS)
    rows = [
        f"{path},{path.parent.name},1,1,20,20" for path in sorted((folder / "val").glob("*/*.JPEG"))
    ]
    text = "\n".join(["image,class,xmin,ymin,xmax,ymax", *rows, ""])
    (trial / "manifest.csv").write_text(text)


def _recipes() -> Iterator[Refused]:
    """Yields recipes with more rows than their bytes can hold, or with a path for all rows."""

    def write(trial: Path, change: Callable[[pa.Table], pa.Table], objects: str) -> None:
        write_recipe(Dataset.open(Store(str(trial / "out"))), Store(str(trial / "recipe")))
        table, content = parts_of(trial / "recipe")
        rows = change(table)
        content["config"]["objects"] = objects
        content["images"]["val"]["listed"] = len(rows)
        sealed(rows, content, trial / "recipe")

    def alike(table: pa.Table) -> pa.Table:
        return rejected_rows(table, 1).take(pa.array([0] * 100_000))

    def of_one_path(table: pa.Table) -> pa.Table:
        return rejected_rows(table, 1000, "x")

    for name, change, objects, says in (
        ("images", alike, "one", "too few for its rows"),
        ("objects", alike, "each", "too few for its rows"),
        ("one path", of_one_path, "one", "two images of val have the path x"),
    ):
        yield Refused(
            name,
            (
                *("generate", "--recipe", "{trial}/recipe", "--input", "{input}"),
                *("--output", "{trial}/made"),
            ),
            says,
            arrange=lambda trial, change=change, objects=objects: write(trial, change, objects),
            kind="recipes with too many rows",
        )


REFUSED = (
    Refused("another input", (*RUN, "--input", "{other}"), "choose another --output", code=1),
    Refused("no input", RUN, "choose another --output"),
    Refused(
        "another input, other flags",
        (*RUN, "--input", "{other}", *keys(grabcut_seed=1), "--overwrite", "config"),
        "choose another --output",
        code=1,
    ),
    Refused("other flags", (*RUN, "--input", "{input}", "--seed", "1"), "choose another --output"),
    *_in_the_output(),
    Refused("no image", (*RUN, "--input", "{out}"), "is a dataset that in9 made"),
)


def _answers() -> Iterator[Refused]:
    """Yields tables of answers that say two things of one picture."""
    row = '"key": "a", "variant": "original", "label": 0'
    tables = {
        "answers.jsonl": (f'{{{row}, "label": 1}}\n', "line 1: not JSON: an object has two fields"),
        "answers.json": (f'[{{{row}, "key": "b"}}]', "is not JSON: an object has two fields"),
        "answers.csv": ("key,variant,label,label\na,original,0,1\n", "has two columns 'label'"),
    }
    for name, (text, says) in tables.items():
        yield Refused(
            f"two equal fields of {name}",
            ("evaluate", *TO, "--pictures", "none", "--models", f"answers:{{trial}}/{name}"),
            says,
            arrange=lambda trial, name=name, text=text: (trial / name).write_text(text),
            kind="answers",
        )


@dataclasses.dataclass(frozen=True)
class SameResults:
    """A report on results that lie in two places, where tables count each model once.

    Attributes:
      name: name of the outcome.
      arrange: puts the results of the first folder into the second.
    """

    name: str
    arrange: Callable[[Path, Path], object]
    kind: str = "results through a link"

    def __call__(self, lab: Lab) -> list[Outcome]:
        """Runs the command; returns one outcome."""
        with lab.trial() as trial:
            output, other = trial / "out", trial / "other"
            shutil.copytree(lab.state("finished"), output, copy_function=shutil.copy2)
            self.arrange(output, other)
            report = ("report", "--dataset", str(output), "--pictures", "none", "--results")
            ended = lab.run(trial, *report, f"{other},{output}")
            faults = faults_of(ended)
            with (output / "results" / "summary.csv").open(newline="") as file:
                if len({row["model"] for row in csv.DictReader(file)}) != 1:
                    faults.append("a model counts twice")
            if ended.stdout.count("the same predictions count once") != 2:
                faults.append("nothing says that they count once")
        return [Outcome(self.kind, self.name, tuple(faults), ended)]


SAME_RESULTS = (
    SameResults("symbolic link", lambda output, other: other.symlink_to(output)),
    SameResults(
        "hard links", lambda output, other: shutil.copytree(output, other, copy_function=os.link)
    ),
    SameResults("copy", shutil.copytree),
)


def refused_runs(lab: Lab, states: Sequence[str]) -> Iterator[Refused | SameResults]:
    """Yields the runs that are refused, and reports that count results once."""
    yield from (*REFUSED, *_foreign_files(), *_recipes(), *_answers(), *SAME_RESULTS)


FAMILIES = (refused_runs,)
