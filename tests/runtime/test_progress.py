"""Tests progress: what is noted, and what is shown of it."""

import io
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from machines import until
from runs import TINY_MODEL, run_here

from pipeline.errors import BrokenPictureError, JobError
from pipeline.runners import beam_options
from pipeline.runtime import progress
from pipeline.runtime.progress import Progress, Tally, live_bar, run_locally, show_progress
from pipeline.storage.store import Store


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def text_of(out: io.StringIO) -> str:
    """Returns what was shown, without colours and moves of the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())


def wait_for(out: io.StringIO, text: str) -> None:
    """Waits until something is shown."""
    until(lambda: text in re.sub(" +", " ", text_of(out)))


@pytest.mark.parametrize("terminal", [False, True])
def test_lines_say_stage_count_rate_and_time_left(
    tmp_path: Path, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "TERMINAL_SECONDS", 0.02)
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.02)
    monkeypatch.setattr("sys.stderr", out := Terminal() if terminal else io.StringIO())
    notes = Progress.for_store(Store(str(tmp_path)))
    notes.note_done("segment", "of-an-earlier-run", 999)
    with show_progress(notes, {"evaluate": "pictures"}):
        notes.note_total("segment", "val", 96)
        wait_for(out, "0/96 images" if terminal else "segment: 0 of 96 images")
        notes.note_done("segment", "val-00000", 16)
        wait_for(out, "16/96 images" if terminal else "segment: 16 of 96 images")
        for _ in range(2):
            notes.note_done("segment", "val-00000", 32)
        wait_for(out, "32/96 images, " if terminal else "segment: 32 of 96 images, ")
        wait_for(out, "/s, ")
        wait_for(out, " s left")
        notes.note_done("segment", "val-00001", 64)
        notes.note_total("evaluate", "0-0", 700)
        notes.note_total("evaluate", "1-0", 700)
        wait_for(out, "0/1400 pictures" if terminal else "evaluate: 0 of 1400 pictures")
    assert ("\x1b[" in out.getvalue()) == terminal
    assert not (tmp_path / ".in9" / "progress").exists()


@pytest.mark.parametrize(("terminal", "notebook"), [(False, False), (True, False), (True, True)])
def test_a_bar_is_shown_on_a_terminal_and_in_a_notebook_and_leaves_nothing(
    terminal: bool, notebook: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if notebook:
        monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    else:
        # As on servers for tests, whose pages show colours of a pipe.
        monkeypatch.setenv("FORCE_COLOR", "1")
    is_piped = notebook or not terminal
    monkeypatch.setattr("sys.stderr", out := io.StringIO() if is_piped else Terminal())
    with live_bar("call:[bold]", 18, "pictures") as advance:
        for _ in range(2):
            advance(5)
        wait_for(out, "10/18 pictures" if terminal else "")
    assert ("call:[bold]" in text_of(out)) == terminal
    assert out.getvalue().endswith("\x1b[1A\x1b[2K" if terminal else "")
    assert terminal or not out.getvalue()


@pytest.mark.usefixtures("no_figures")
def test_a_job_shows_its_stages_and_leaves_no_notes(
    tiny_input: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.002)
    output = tmp_path / "out"
    lines = run_here(
        "run", "--input", tiny_input, "--output", output, *TINY_MODEL, "--pictures", "none"
    ).err.splitlines()
    stages = {line.partition(":")[0] for line in lines}
    # Later stages may end before their progress is shown.
    assert "segment" in stages <= {"segment", "compose", "evaluate"}
    assert any(line.startswith("segment: 0 of 6 images") for line in lines)
    assert not (output / ".in9" / "progress").exists()


def test_a_part_counts_by_its_largest_note(tmp_path: Path) -> None:
    """Checks that work that a retry repeats, and notes again, counts once."""
    notes = Progress.for_store(Store(str(tmp_path)))
    for done in (32, 70, 32, 64):
        notes.note_done("evaluate", "0-00001", done)
    notes.note_done("evaluate", "0-00002", 5)
    assert notes.count()["evaluate"] == (75, 0)


def test_a_tally_notes_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = Progress.for_store(Store(str(tmp_path)))
    monkeypatch.setattr(progress, "_NOTE_SECONDS", 3600.0)
    seldom = Tally(notes, "evaluate", "seldom")
    seldom.advance(3)
    assert "evaluate" not in notes.count()
    seldom.advance(4)
    seldom.note_done()
    assert notes.count()["evaluate"] == (7, 0)
    monkeypatch.setattr(progress, "_NOTE_SECONDS", 0.0)
    often = Tally(notes, "evaluate", "often")
    for number in range(1, 4):
        often.advance(1)
        assert notes.count()["evaluate"] == (7 + number, 0)
    # Only one note of each task is left, however often it was noted.
    assert len([*notes.store.walk(notes.folder)]) == 2


def test_an_error_that_is_made_from_several_values_keeps_its_message(tmp_path: Path) -> None:
    error = BrokenPictureError("dog", ValueError("cut off"))
    progress = Progress.for_store(Store(str(tmp_path)))
    with (
        pytest.raises(JobError, match=r"picture of dog is broken \(cut off\)"),
        run_locally(progress, str(tmp_path / "log")),
    ):
        raise error
    assert str(beam_options._translate(error)) == str(error)
