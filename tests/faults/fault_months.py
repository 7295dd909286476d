"""Faults of a job that runs for months.

A run that publishes is killed at every moment, and many published runs must leave nothing behind.
"""

import dataclasses
import itertools
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from fault_lab import DATASET, PUBLISHED, Ended, Lab, Outcome, contents, faults_of, payload
from PIL import Image

PARTS = 8
"""Number of trials that share the kills and can run side by side."""
RUNS = 30
SECONDS = 300
"""More time than for other faults, because a slow run is not a fault here."""
KEPT = ("--keep", "1")


def names_in(output: Path) -> frozenset[str]:
    """Returns the names of all files and folders, with the same name for any version."""
    return frozenset(re.sub(r"/v-[0-9a-f]{12}", "/v-*", name) for name in contents(output))


def versions_in(output: Path) -> int:
    """Returns the number of folders of published versions."""
    return len(list(output.glob(f"{PUBLISHED}/v-*")))


@dataclasses.dataclass(frozen=True)
class Kills:
    """A run that adds a picture and publishes, killed before every `step`-th change on disk.

    The same command must then leave exactly what an undisturbed run leaves: the same content and
    names.

    Attributes:
      part: number of the first change before which the run is killed, from 1 on.
      step: distance to the next such change.
    """

    part: int
    step: int = PARTS
    kind: str = "kills: run and publish, before every change"

    @property
    def name(self) -> str:
        return f"part {self.part}"

    def __call__(self, lab: Lab) -> list[Outcome]:
        """Kills the run before each of its changes; returns an outcome for each kill."""
        with lab.trial() as trial:
            self._run(lab, trial, "")
            again = self._run(lab, trial, "", copy=False)
            quiet = _left_by(trial / "out")
            assert again.code == 0, again
        outcomes = []
        for number in itertools.count(self.part, self.step):
            with lab.trial() as trial:
                if self._run(lab, trial, str(number)).code == 0:
                    return outcomes
                ended = self._run(lab, trial, "", copy=False)
                faults = faults_of(ended)
                if ended.code:
                    faults.append("the same command again does not help")
                else:
                    remains = _left_by(trial / "out")
                    faults += [f"left behind: {name}" for name in sorted(remains[0] - quiet[0])]
                    faults += [f"missing: {name}" for name in sorted(quiet[0] - remains[0])]
                    if remains[1:] != quiet[1:]:
                        faults.append("another dataset, or other versions")
                outcomes.append(Outcome(self.kind, f"change {number}", tuple(faults), ended))
        raise AssertionError

    def _run(self, lab: Lab, trial: Path, kill: str, *, copy: bool = True) -> Ended:
        output = trial / "out"
        if copy:
            shutil.copytree(lab.state("first version"), output, copy_function=shutil.copy2)
        command = lab.commands(output, versioned=True)["run"]
        return lab.run(
            trial, *command, "--keep", "0", "--overwrite", "rebuild", kill=kill, seconds=SECONDS
        )


def _left_by(output: Path) -> tuple[frozenset[str], int, dict[str, str | bytes]]:
    return names_in(output), versions_in(output), payload(output)


@dataclasses.dataclass(frozen=True)
class Months:
    """Runs that each change a picture, publish, and keep one version beside the newest.

    Attributes:
      runs: number of runs.
    """

    runs: int = RUNS
    kind: str = "published runs: growth"

    @property
    def name(self) -> str:
        return f"{self.runs} runs"

    def __call__(self, lab: Lab) -> list[Outcome]:
        """Runs the command several times; returns an outcome for each run."""
        outcomes = []
        with lab.trial() as trial:
            pictures = shutil.copytree(lab.input, trial / "input")
            output, names = trial / "out", frozenset[str]()
            command = [
                str(pictures) if part == str(lab.input) else part
                for part in lab.commands(output, versioned=True)["run"]
            ]
            for number in range(self.runs):
                _repaint(sorted(pictures.glob("val/*/*.JPEG")), number)
                ended = lab.run(trial, *command, *KEPT, "--overwrite", "rebuild", seconds=SECONDS)
                faults = faults_of(ended)
                if ended.code:
                    faults.append("it failed")
                current = names_in(output)
                if number > 1:
                    faults += [f"left behind: {name}" for name in sorted(current - names)]
                    faults += [f"missing: {name}" for name in sorted(names - current)]
                if (versions := versions_in(output)) != min(number + 1, 2):
                    faults.append(f"{versions} versions")
                if not (output / DATASET / "manifest.json").exists():
                    faults.append("no manifest")
                names = current
                outcomes.append(Outcome(self.kind, f"run {number}", tuple(faults), ended))
        return outcomes


def _repaint(pictures: Sequence[Path], number: int) -> None:
    """Changes the brightness of one picture; consecutive numbers change different pictures."""
    picture = pictures[number % len(pictures)]
    with Image.open(picture) as before:
        after = before.point(lambda value: value * (20 + number % 7) // 27)
    after.save(picture, "JPEG", quality=95)


def months(lab: Lab, states: Sequence[str]) -> Iterator[Kills | Months]:
    """Yields the kills and the repeated runs."""
    yield from (Kills(part) for part in range(1, PARTS + 1))
    yield Months()


FAMILIES = (months,)
