"""Faults of a job that runs for months: many published runs must leave nothing behind."""

import dataclasses
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from fault_lab import DATASET, PUBLISHED, Lab, Outcome, contents, faults_of
from PIL import Image

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
class Months:
    """Runs that each change a picture, publish, and keep one version beside the newest."""

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


def months(lab: Lab, states: Sequence[str]) -> Iterator[Months]:
    """Yields the repeated runs."""
    yield Months()


FAMILIES = (months,)
