"""Faults of a job that is called for months: kills at every moment of a run that publishes, and
many published runs, after which nothing lies about that no list names."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from fault_lab import DATASET, PUBLISHED, Ended, Lab, Outcome, contents, faults_of, payload
from PIL import Image

PARTS = 8
"""Trials that share the kills: what is done side by side."""
RUNS = 30
SECONDS = 300
"""Longer than other faults, since a run that is slow is none here."""
KEPT = ("--keep", "1")


def names_in(output: Path) -> frozenset[str]:
    """Names of all files and folders, the same for any version."""
    return frozenset(re.sub(r"/v-[0-9a-f]{12}", "/v-*", name) for name in contents(output))


def versions_in(output: Path) -> int:
    """Number of the folders of published versions."""
    return len(list(output.glob(f"{PUBLISHED}/v-*")))


@dataclasses.dataclass(frozen=True)
class Kills:
    """A run that adds a picture and publishes, killed before every PARTS-th change of a file or
    folder. The same command then leaves what a quiet run leaves: content, names, no more.

    Attributes:
      part: the first change before which it is killed, from 1 on.
      step: to the next one.
    """

    part: int
    step: int = PARTS
    kind: str = "kills: run and publish, before every change"

    @property
    def name(self) -> str:
        """Of the trial."""
        return f"part {self.part}"

    def __call__(self, lab: Lab) -> list[Outcome]:
        """Tries them."""
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
                    left = _left_by(trial / "out")
                    faults += [f"left behind: {name}" for name in sorted(left[0] - quiet[0])]
                    faults += [f"missing: {name}" for name in sorted(quiet[0] - left[0])]
                    if left[1:] != quiet[1:]:
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
    """Runs, each with another picture changed, that publish and keep a version beside the newest.

    Attributes:
      runs: how many.
    """

    runs: int = RUNS
    kind: str = "published runs: growth"

    @property
    def name(self) -> str:
        """Of the trial."""
        return f"{self.runs} runs"

    def __call__(self, lab: Lab) -> list[Outcome]:
        """Tries them: an outcome for each."""
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
                found = names_in(output)
                if number > 1:
                    faults += [f"left behind: {name}" for name in sorted(found - names)]
                    faults += [f"missing: {name}" for name in sorted(names - found)]
                if (versions := versions_in(output)) != min(number + 1, 2):
                    faults.append(f"{versions} versions")
                if not (output / DATASET / "manifest.json").exists():
                    faults.append("no manifest")
                names = found
                outcomes.append(Outcome(self.kind, f"run {number}", tuple(faults), ended))
        return outcomes


def _repaint(pictures: Sequence[Path], number: int) -> None:
    """Turns a picture to another brightness, one after the other."""
    picture = pictures[number % len(pictures)]
    with Image.open(picture) as before:
        after = before.point(lambda value: value * (20 + number % 7) // 27)
    after.save(picture, "JPEG", quality=95)


def months(lab: Lab, states: Sequence[str]) -> Iterator[Kills | Months]:
    """Kills and runs without end."""
    yield from (Kills(part) for part in range(1, PARTS + 1))
    yield Months()


FAMILIES = (months,)
