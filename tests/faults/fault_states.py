"""Faults of files that an earlier command, a power cut or somebody else has left in an output.

All kinds of files in all states are discovered, not listed. `fault_documents` damages the
content of documents.
"""

import dataclasses
import functools
import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fault_lab import (
    STATES,
    Lab,
    Outcome,
    advises_again,
    contents,
    faults_of,
    is_versioned,
    payload,
)

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "cut": lambda data: data[: len(data) // 2],
    "pages": lambda data: _without_pages(data),
}
"""Kinds of damage; `pages`, of Parquet only, leaves the footer, which holds the metadata."""
DAMAGED_STATES = tuple(state for state in STATES if not state.startswith("first"))
HEALED = (
    *("layers/*.parquet", "index/*.parquet", ".in9/checksums/*.json"),
    "results/*/predictions/*.parquet",
)
"""Kinds of files that the next run makes again, wherever they are in the output. The run also makes
staged files again."""
READERS = ("verify", "evaluate", "report")


def _without_pages(data: bytes) -> bytes:
    footer = data[-8 - int.from_bytes(data[-8:-4], "little") :]
    is_parquet = data[:4] == data[-4:] == b"PAR1"
    return data[:4].ljust(len(data) - len(footer), b"\0") + footer if is_parquet else data


@dataclasses.dataclass(frozen=True)
class Fault:
    """Damage to a state of a lab, and the command of the lab that meets it.

    Attributes:
      file: path relative to the output, which a message must name.
      heals: whether the command must succeed and leave the dataset as it was.
      strict: whether a silent success counts as a failure.
      also: strings that a message may contain instead of the file's path.
    """

    kind: str
    name: str
    state: str
    file: str
    damage: Callable[[Path], None]
    command: str
    heals: bool = False
    strict: bool = False
    also: tuple[str, ...] = ()

    def __call__(self, lab: Lab) -> list[Outcome]:
        """Damages a copy of the state and runs the command; returns one outcome."""
        with lab.trial() as trial:
            output = trial / "out"
            shutil.copytree(
                lab.state(self.state), output, copy_function=shutil.copy2, symlinks=True
            )
            self.damage(trial)
            path = output / self.file
            damaged = path.read_bytes() if path.is_file() else None
            victim, held = contents(trial / "victim"), len(contents(output))
            command = lab.commands(output, versioned=is_versioned(self.state))[self.command]
            foreign = str(trial / "victim")
            ended = lab.run(trial, *command, foreign=foreign)
            # A message names the damaged file by its path relative to the output or to the dataset.
            inside = re.sub(r"^published/v-[^/]+/", "", self.file)
            names = (self.file, inside, os.path.realpath(path), *self.also)
            if "/predictions/" in self.file:
                names += (os.path.dirname(self.file),)  # All predictions of a model are made again.
            faults = faults_of(ended, *names)
            now = contents(trial / "victim")
            gone = [name for name in victim if now.get(name) != victim[name]]
            if gone:
                faults.append(f"outside of the output: {', '.join(gone[:3])} changed or deleted")
            if advises_again(ended):
                if "emove it and" in ended.stderr and path.is_file():
                    path.unlink()
                again = lab.run(trial, *command, foreign=foreign)
                if again.code != 0:
                    faults.append("'the same command again' does not help")
            if ended.code == 0 and not faults:
                after = path.read_bytes() if path.is_file() else None
                faults += self._of_success(lab, output, ended.stderr, names, damaged, after)
            elif self.heals and ended.code != 0:
                faults.append("not healed")
            remaining = len(contents(output))
            if remaining < held / 2:
                faults.append(f"of {held} files and folders of the output {remaining} are left")
        return [Outcome(self.kind, self.name, tuple(faults), ended)]

    def _of_success(
        self,
        lab: Lab,
        output: Path,
        said: str,
        names: tuple[str, ...],
        damaged: bytes | None,
        after: bytes | None,
    ) -> Iterator[str]:
        is_named = any(name in said for name in names)
        if self.strict and not is_named and after == damaged:
            yield "accepted without a word"
        if not self.heals:
            return
        if payload(output) != reference(lab, self.state, self.command):
            yield "the dataset is another than without the damage"
        if not kind_of(self.file).endswith(HEALED):
            return  # The run wrote the file anew without reading it, or dropped it.
        if damaged is not None and after == damaged:
            yield "the damage is still there, without a word" if not is_named else "still there"
        elif damaged is not None and not is_named:
            yield "no warning names the file"


def reference(lab: Lab, state: str, command: str) -> dict[str, str | bytes]:
    """Returns the files of a state after a command, as they are without damage."""
    final = "published" if is_versioned(state) else "finished"
    if command == "update":
        final = "first version" if is_versioned(state) else "first"
    return payload(lab.state(final))


def kind_of(file: str) -> str:
    """Returns the path of a file without the parts that differ between files of its kind.

    >>> kind_of("parquet/only_fg/val-00000-of-00002.parquet")
    'parquet/*/*.parquet'
    """
    parts = file.split("/")
    for at, part in enumerate(parts[:-1]):
        if at and parts[at - 1] in ("parquet", "webdataset", "staging", "results"):
            parts[at] = part if part in ("figures", "latex") else "*"
        elif part.startswith("v-"):
            parts[at] = "v-*"
    stem, dot, suffix = parts[-1].rpartition(".")
    if re.search(r"\d", stem) or parts[-2:-1] in (["figures"], ["latex"], ["results"]):
        parts[-1] = f"*{dot}{suffix}"
    return "/".join(parts)


def files_by_kind(output: Path) -> dict[str, str]:
    """Returns one file of each kind: the last, but in staging the first.

    It is the last, because commands that try one file try the first. In staging it is the first,
    because a killed run may have left no record of the last shard.
    """
    files: dict[str, str] = {}
    for path in sorted(output.rglob("*")):
        if path.is_file() and path.stat().st_size:
            name = str(path.relative_to(output))
            kind = kind_of(name)
            files[kind] = files.get(kind, name) if "/staging/" in kind else name
    return files


def is_healed(kind: str) -> bool:
    """Returns whether the next run makes files of a kind again."""
    return kind.endswith(HEALED) or "/staging/" in kind


def _damage(files: Sequence[str], damage: Callable[[bytes], bytes], trial: Path) -> None:
    for file in files:
        path = trial / "out" / file
        data = path.read_bytes()
        # Versions share files as links: a write in place would damage them all.
        path.unlink()
        path.write_bytes(damage(data))


def damaged_files(lab: Lab, states: Sequence[str]) -> Iterator[Fault]:
    """Yields faults that damage each kind of file in each way.

    Each is tried with `run`, and with one of the readers.
    """
    turn, some = itertools.cycle(READERS), itertools.cycle(DAMAGES.items())
    seen: set[str] = set()
    for state in states:
        for kind, file in files_by_kind(lab.state(state)).items():
            if kind in seen:
                continue
            seen.add(kind)
            # Versions repeat the files of a dataset, so one kind of damage is enough for each file.
            damages = list(DAMAGES.items())
            if is_versioned(state) and kind.count("/"):
                damages = [next(some)]
            data = (lab.state(state) / file).read_bytes()
            damages = [each for each in damages if each[1](data) != data]
            for name, damage in damages:
                commands = ["run"] if state.startswith("killed") else ["run", next(turn)]
                for command in commands:
                    yield Fault(
                        kind=f"{state}: {kind}",
                        name=f"{name}, in9 {command}",
                        state=state,
                        file=file,
                        damage=functools.partial(_damage, [file], damage),
                        command=command,
                        heals=is_healed(kind)
                        and command in ("run", "update")
                        and "v-*" not in kind,
                    )


def power_cuts(lab: Lab, states: Sequence[str]) -> Iterator[Fault]:
    """Yields faults that damage all files of a state that the next run makes again."""
    for state, name in itertools.product(states, DAMAGES):
        files = [
            str(path.relative_to(lab.state(state)))
            for path in sorted(lab.state(state).rglob("*"))
            if path.is_file() and is_healed(kind_of(str(path.relative_to(lab.state(state)))))
        ]
        files = [file for file in files if "/v-" not in file]
        # A message must name the file that is read first.
        yield Fault(
            kind="power cut: all records, memory, notes and predictions",
            name=f"{state}, {name}",
            state=state,
            file=next((file for file in files if "layers/" in file), files[0]),
            damage=functools.partial(_damage, files, DAMAGES[name]),
            command="run",
            heals=True,
        )


# Strays and swapped files.


def _folders(lab: Lab) -> list[str]:
    output = lab.state("finished")
    return [
        name
        for path in sorted(output.rglob("*"))
        if path.is_dir()
        and (name := str(path.relative_to(output)))
        and (name.count("/") == 0 or name in (".in9/tmp", ".in9/checksums"))
    ]


def _put(name: str, data: bytes | None, trial: Path) -> None:
    path = trial / "out" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if data is None else path.write_bytes(data)


def strays(lab: Lab, states: Sequence[str]) -> Iterator[Fault]:
    """Yields faults that put foreign files, folders and invalid locks into an output."""
    stray: list[tuple[str, bytes | None]] = []
    for folder in ("", *_folders(lab)):
        stray += [(os.path.join(folder, name), b"?") for name in (".nfs0001", ".DS_Store")]
        stray.append((os.path.join(folder, "foreign", "notes.txt"), b"?"))
    for data in (b"{}", b"[]", b"", b"7"):
        stray.append(("results/foreign/model.json", data))
        stray.append((".in9/manifest.previous.json", data))
    stray += [(".in9/lock", b"{}"), (".in9/lock-tables", b""), (".in9/lock/notes.txt", b"?")]
    stray += [(".in9/lock", None), (".in9/staging/x/layers/val-00000.parquet", None)]
    turn = itertools.cycle(("run", "evaluate", "update", "report"))
    for name, data in stray:
        commands = ("run", "report") if "lock" in name else (next(turn),)
        for command in commands:
            yield Fault(
                kind="strays: locks" if "lock" in name else "strays",
                name=f"{name} {data!r}, in9 {command}",
                state="finished",
                file=name,
                damage=functools.partial(_put, name, data),
                command=command,
            )


def _swap(file: str, trial: Path) -> None:
    path = trial / "out" / file
    if path.is_dir():
        shutil.rmtree(path)
        path.write_bytes(b"?")
    else:
        path.unlink()
        path.mkdir()
        (path / "inside").write_bytes(b"?")


def swapped(lab: Lab, states: Sequence[str]) -> Iterator[Fault]:
    """Yields faults that put a folder in place of a file, or a file in place of a folder."""
    turn = itertools.cycle(("run", *READERS))
    files = {**files_by_kind(lab.state("finished")), **{name: name for name in _folders(lab)}}
    for kind, file in files.items():
        yield Fault(
            kind="file and folder swapped",
            name=f"{kind}, in9 {(command := next(turn))}",
            state="finished",
            file=file,
            damage=functools.partial(_swap, file),
            command=command,
        )


FAMILIES = (damaged_files, power_cuts, strays, swapped)
