"""Tests a fixed sample of the faults that `scripts/faults` tries: at least one of each kind."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_lab import Lab, describe
from fault_matrix import sample
from fault_months import Months
from fault_pictures import hostile_pictures
from forking import NO_FIGURES
from runs import forks


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with pytest.MonkeyPatch.context() as patch:
        # `scripts/faults` tries all faults with figures.
        patch.setenv(NO_FIGURES, "1")
        yield Lab(tmp_path_factory.mktemp("faults"), forks=forks())


def test_faults_of_each_kind_are_handled(lab: Lab) -> None:
    outcomes = [outcome for trial in sample(lab) for outcome in trial(lab)]
    unhandled = [describe(outcome) for outcome in outcomes if outcome.faults]
    assert not unhandled, "\n\n".join(unhandled)


def test_months_of_runs_leave_nothing_behind(lab: Lab) -> None:
    outcomes = Months(runs=2)(lab)
    assert outcomes
    unhandled = [describe(outcome) for outcome in outcomes if outcome.faults]
    assert not unhandled, "\n\n".join(unhandled)


def test_hostile_pictures_are_many_and_differ() -> None:
    pictures = hostile_pictures()
    assert max(Counter(each.name for each in pictures).values()) == 1
    assert len(pictures) > 100


def test_the_guard_notes_what_must_not_be_done(lab: Lab, tmp_path: Path) -> None:
    """Tests the guard itself, because a lab that notes nothing would prove nothing."""

    def guarded(code: str) -> int:
        (lab.folder / "notes").write_text("")
        command = [sys.executable, "-c", f"import fault_hooks, os, subprocess\n{code}"]
        return subprocess.run(command, env=lab.environment(tmp_path), check=False).returncode

    guarded("subprocess.run(['gs', '-v'])")
    assert [note.split(":")[0] for note in lab.notes()] == ["starts a process", "runs gs -v"]
    assert guarded("os.remove('/nowhere/x')") == 97
    assert lab.notes() == ("deletes /nowhere/x",)
