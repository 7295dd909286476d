"""Faults of standard streams: commands whose input, output or errors lead nowhere.

Each command has a process of its own, without the guard of the lab, because what Python finds when
it starts matters.
"""

import dataclasses
import itertools
import os
import shutil
import sys
from collections.abc import Iterator, Sequence

from fault_lab import Ended, Lab, Outcome, faults_of, payload
from forking import ROOT

STREAMS = ("input", "output", "errors")
CODES = {"run": 0, "verify": 0, "report": 0, "nope": 2}
"""Commands with their exit codes; the last does not exist."""


@dataclasses.dataclass(frozen=True)
class Streams:
    """A command that is started with some of its standard streams closed, or with a full disk.

    Attributes:
      command: one of `CODES`.
      closed: streams that are closed.
      full: the stream whose disk is full; "" for none.
    """

    command: str
    closed: tuple[str, ...] = ()
    full: str = ""
    kind: str = "standard streams"

    @property
    def name(self) -> str:
        """What is wrong with the streams, and the command."""
        wrong = f"full {self.full}" if self.full else f"closed {', '.join(self.closed)}"
        return f"{wrong}, in9 {self.command}"

    def __call__(self, lab: Lab) -> list[Outcome]:
        """Runs the command on a state that it completes; returns one outcome."""
        with lab.trial() as trial:
            output = trial / "out"
            state = "first" if self.command == "run" else "finished"
            shutil.copytree(lab.state(state), output, copy_function=shutil.copy2)
            command = lab.commands(output).get(self.command, (self.command,))
            starts = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import in9; in9.main()"
            paths = [trial / f"tmp/{name}" for name in STREAMS]
            paths[0].touch()
            places = [
                (number, "/dev/full" if name == self.full else str(path))
                for number, (name, path) in enumerate(zip(STREAMS, paths, strict=True))
            ]
            child = os.posix_spawn(
                sys.executable,
                [sys.executable, "-c", starts, *command],
                lab.environment(trial),
                file_actions=[
                    (os.POSIX_SPAWN_CLOSE, number)
                    if STREAMS[number] in self.closed
                    else (os.POSIX_SPAWN_OPEN, number, place, os.O_RDWR | os.O_CREAT, 0o600)
                    for number, place in places
                ],
            )
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            texts = [path.read_text() if path.exists() else "" for path in paths]
            ended = Ended(command, code, texts[1], texts[2], ())
            # Without errors, nobody reads a closing line; what was to be read has gone elsewhere.
            is_told = "errors" not in self.closed and self.full != "errors"
            faults = faults_of(ended) if is_told else []
            wanted = 1 if self.full == "output" else CODES[self.command]
            if code != wanted:
                faults.append(f"exit code {code}, where {wanted} was wanted")
            if not (texts[1] or self.full or "output" in self.closed or wanted):
                faults.append("nothing on its output")
            if payload(output) != payload(lab.state("finished")):
                faults.append("the dataset is another than with open streams")
        return [Outcome(self.kind, self.name, tuple(faults), ended)]


def streams(lab: Lab, states: Sequence[str]) -> Iterator[Streams]:
    """Yields each set of streams, closed, and each stream without room."""
    for number, command in itertools.product((3, 2, 1), CODES):
        for closed in itertools.combinations(STREAMS, number):
            yield Streams(command, closed)
    for full in STREAMS[1:]:
        yield Streams("run", full=full)


FAMILIES = (streams,)
