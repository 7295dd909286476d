"""The lab in which faults are tried: small datasets, guarded commands, and rules for outcomes.

Each trial has its own folder, which holds `out`, a copy of the dataset; `victim`, which nothing may
touch; and `tmp`. The kinds of fault are in the other `fault_*` modules.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import fault_hooks
from forking import Forks
from runs import keys, shrink

from pipeline.dataset.folder import sample_folder

SECONDS = 60
"""Time limit of a command; one that takes longer counts as hanging."""
MAX_LINE = 700
MAX_LINES = 12
PICTURES = (1, 2, 25, 26, 41, 46)
"""Numbers of sample pictures, two of each of three classes."""
MODEL = "python:fault_hooks:tiny"
FLAGS = (
    *("--segmenter", "box", "--image_size", "64", *keys(resize=64, images_per_shard=3)),
    *("--variants", "original,mixed_same,mixed_rand,fg_mask,only_bg_t", "--pictures", "none"),
    "--direct_num_workers=1",
)
DATASET, PUBLISHED = "dataset", "published"
"""Folders of a state with published versions."""
HELPERS = ("gs", "djpeg", "ppmtogif", "display", "xdg-open", "convert", "magick", "curl", "sh")
"""Programs that image libraries could start; the PATH has stand-ins for them."""
SAME_COMMAND = re.compile(r"(?<!then run )the same command", re.IGNORECASE)
"""Advice to repeat a command as it is. After "Correct that, then run", something else has to change
first."""


@dataclasses.dataclass(frozen=True)
class Ended:
    """The result of a command: its arguments, exit code, output, and the notes of the guard."""

    command: tuple[str, ...]
    code: int
    stdout: str
    stderr: str
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of one fault, and why it does not count as handled, if it does not."""

    kind: str
    name: str
    faults: tuple[str, ...]
    ended: Ended


def small_input(folder: Path, pictures: tuple[int, ...] = PICTURES) -> Path:
    """Makes an input folder of sample pictures at a quarter of their size, with annotations."""
    sample = Path(sample_folder())
    for number in pictures:
        (source,) = sample.glob(f"val/*/sample_val_{number:08d}.JPEG")
        shrink(sample, source, folder, 1 / 4)
    return folder


def contents(folder: Path) -> dict[str, str | bytes]:
    """Returns all that is below a folder, by relative path: bytes of files, targets of links."""
    entries: dict[str, str | bytes] = {}
    for path in sorted(folder.rglob("*")):
        name, mode = str(path.relative_to(folder)), path.lstat().st_mode
        if stat.S_ISLNK(mode):
            entries[name] = f"link to {os.readlink(path)}"
        elif stat.S_ISREG(mode):
            entries[name] = path.read_bytes()
        elif stat.S_ISDIR(mode):
            entries[name] = "folder"
        else:
            entries[name] = "other"
    return entries


class Lab:
    """A folder in which faults are tried, and a server of commands, for one thread at a time.

    Its input and states are those of another lab, if one is given, and the server is its own, if
    none is given.
    """

    def __init__(self, folder: Path, states: Lab | None = None, forks: Forks | None = None) -> None:
        self.folder = folder
        self._forks = forks or Forks()
        self._numbers = itertools.count()
        self._states = states.folder if states else folder
        self.input, self.fewer = self._states / "input", self._states / "fewer"
        if states is None:
            small_input(self.input)
            small_input(self.fewer, PICTURES[:-1])
        self._bin = folder / "bin"
        self._bin.mkdir()
        for name in HELPERS:
            helper = self._bin / name
            helper.write_text(f'#!/bin/bash\necho "runs {name} $*" >> "${fault_hooks.NOTES}"\n')
            helper.chmod(0o755)

    def commands(self, output: Path, *, versioned: bool = False) -> dict[str, tuple[str, ...]]:
        """Returns the commands that faults are tried with, by name.

        `update` is `run` on an input that has changed.
        """
        dataset, read = (output / DATASET, output / PUBLISHED) if versioned else (output, output)
        publish = ("--publish", str(read)) if versioned else ()
        output_flags = ("--output", str(dataset), *FLAGS, "--models", MODEL, *publish)
        dataset_flags = ("--dataset", str(dataset), *publish)
        return {
            "run": ("run", "--input", str(self.input), *output_flags),
            "update": ("run", "--input", str(self.fewer), *output_flags, "--overwrite", "rebuild"),
            "verify": ("verify", "--dataset", str(read)),
            "evaluate": (
                *("evaluate", *dataset_flags, "--models", MODEL),
                *("--pictures", "none", "--direct_num_workers=1"),
            ),
            "report": ("report", *dataset_flags, "--pictures", "none"),
        }

    @contextlib.contextmanager
    def trial(self) -> Iterator[Path]:
        """Yields a folder for one fault, whose `victim` must not be touched."""
        folder = self.folder / f"trial-{next(self._numbers)}"
        (folder / "tmp").mkdir(parents=True)
        shutil.copytree(self._victim, folder / "victim")
        yield folder
        shutil.rmtree(folder)

    @functools.cached_property
    def _victim(self) -> Path:
        """A folder with files that somebody else keeps beside an output."""
        victim = small_input(self.folder / "victim", PICTURES[:1])
        for name in ("diary.txt", "manifest.json", "latest.json", "lock", "foreign.parquet"):
            (victim / name).write_text(f'"{name} of somebody else"\n')
        return victim

    def run(
        self, trial: Path, *command: str, kill: str = "", foreign: str = "", seconds: int = SECONDS
    ) -> Ended:
        """Runs a command that may delete only in the folder of a trial.

        `kill` is the value of `fault_hooks.KILL`; nothing may be opened in the `foreign` folder.
        """
        notes = self.folder / "notes"
        notes.write_text("")
        done = self._forks.run(
            list(command),
            self.environment(trial, kill, foreign),
            seconds=seconds,
            modules=("fault_hooks",),
        )
        return Ended(command, done.returncode, done.stdout, done.stderr, self.notes())

    def notes(self) -> tuple[str, ...]:
        """Returns the notes that the guard and the stand-ins made during the last command."""
        text = (self.folder / "notes").read_text(errors="replace")
        return tuple(dict.fromkeys(text.splitlines()))

    def environment(self, trial: Path, kill: str = "", foreign: str = "") -> dict[str, str]:
        """Returns the environment of a command under guard; the arguments are those of `run`."""
        return {
            **os.environ,
            "PATH": f"{self._bin}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(Path(__file__).parent),
            "HF_HUB_OFFLINE": "1",
            "TMPDIR": str(trial / "tmp"),
            fault_hooks.NOTES: str(self.folder / "notes"),
            fault_hooks.ROOT: os.path.realpath(trial),
            fault_hooks.KILL: kill,
            fault_hooks.FOREIGN: foreign and os.path.realpath(foreign),
        }

    # States of a dataset, each made when it is first needed.

    def state(self, name: str) -> Path:
        """Returns a dataset in one of `STATES`, which must be copied, not changed."""
        folder = self._states / "states" / name
        if not folder.exists():
            before, command, kill = STATES[name]
            if before:
                shutil.copytree(self.state(before), folder, copy_function=shutil.copy2)
            folder.parent.mkdir(exist_ok=True)
            (self.folder / "tmp").mkdir(exist_ok=True)
            commands = self.commands(folder, versioned=is_versioned(name))
            ended = self.run(self.folder, *commands[command], kill=kill)
            wanted = -9 if kill else 0
            if ended.code != wanted:
                raise RuntimeError(f"{name} could not be made: {ended}")
        return folder


STATES = {
    "first": ("", "update", ""),
    "finished": ("first", "run", ""),
    "killed in compose": ("", "run", r"2 staging/.*/index/"),
    "killed in commit": ("first", "run", r"2 killed in commit/(layers|index|parquet)/"),
    "first version": ("", "update", ""),
    "published": ("first version", "run", ""),
    "killed in publish": ("first version", "run", r"1 /latest\.json$"),
}
"""For each state of a dataset: (previous state, command, where the command is killed)."""
WITHOUT_DATASET = ("killed in compose", "killed in commit")
"""States in which there is no dataset to read yet."""


def is_versioned(state: str) -> bool:
    """Returns whether a state has published versions."""
    return state in ("first version", "published", "killed in publish")


def dataset_of(output: Path) -> Path:
    """Returns the dataset in an output; with published versions, the newest one."""
    latest = output / PUBLISHED / "latest.json"
    newest = json.loads(latest.read_text())["version"] if latest.exists() else ""
    return output / PUBLISHED / newest if newest else output


def payload(output: Path) -> dict[str, str | bytes]:
    """Returns what faults must not change: the manifest, its files, and predictions."""
    dataset = dataset_of(output)
    names = [file["path"] for file in json.loads((dataset / "manifest.json").read_text())["files"]]
    names += [
        str(path.relative_to(dataset)) for path in dataset.glob("results/*/predictions/*.parquet")
    ]
    return {name: (dataset / name).read_bytes() for name in (*names, "manifest.json")}


def faults_of(ended: Ended, *names: str) -> list[str]:
    """Returns what is wrong with a result, whose closing line must contain one of the names."""
    faults = list(ended.notes)
    if ended.code == -14:
        return [*faults, "did not end"]
    if ended.code not in (0, 1, 2):
        faults.append(f"exit code {ended.code}")
    if "Traceback" in ended.stderr:
        faults.append("traceback")
        return faults
    lines = ended.stderr.splitlines()
    if len(lines) > MAX_LINES or any(len(line) > MAX_LINE for line in lines):
        faults.append(f"{len(lines)} lines on stderr, up to {max(map(len, lines))} characters")
    if ended.code not in (1, 2):
        return faults
    if ended.command[0] == "verify":  # It prints a line for each fault, in any order.
        if names and not any(name in ended.stderr + ended.stdout for name in names):
            faults.append("no line names the file")
    elif not lines or not lines[-1].startswith("in9"):
        faults.append("no closing line")
    elif names and not any(name in lines[-1] for name in names):
        faults.append("the closing line does not name the file")
    return faults


def advises_again(ended: Ended) -> bool:
    """Returns whether a message advises running the same command again, without a correction."""
    return ended.code != 0 and bool(SAME_COMMAND.search(ended.stderr))


Trial = Callable[[Lab], list[Outcome]]
"""Tries one fault, or several at once."""


def table(outcomes: list[Outcome]) -> str:
    """Returns a table of the numbers of faults tried and handled, by kind and in all."""
    kinds = list(dict.fromkeys(outcome.kind for outcome in outcomes))
    rows = [("kind", "tried", "handled")]
    for kind in [*kinds, "all"]:
        of_kind = [outcome for outcome in outcomes if kind in (outcome.kind, "all")]
        rows.append((kind, str(len(of_kind)), str(sum(not each.faults for each in of_kind))))
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"{kind:{width}}  {tried:>6}  {done:>7}" for kind, tried, done in rows)


def describe(outcome: Outcome) -> str:
    """Describes a fault that is not handled: its name, the reasons, and the command's messages."""
    ended = outcome.ended
    lines = ended.stderr.strip().splitlines()
    # The first and last lines of a traceback are enough: the place and the error.
    lines = lines if len(lines) <= 8 else [*lines[:2], "...", *lines[-4:]]
    return "\n".join(
        [
            f"{outcome.kind}: {outcome.name}",
            *(f"  ! {fault[:400]}" for fault in outcome.faults),
            f"  $ in9 {' '.join(ended.command)[:200]}: exit code {ended.code}",
            *(f"  > {line[:500]}" for line in lines),
        ]
    )
