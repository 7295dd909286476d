"""Tests a job whose bundles all run twice, as on a runner that has lost sight of a machine."""

from __future__ import annotations

from pathlib import Path

from bundle_server import FATES
from bundles_twice import STAGES, files_below, run_job
from runs import TINY_MODEL
from soundness import assert_sound


def test_a_job_whose_bundles_all_run_twice(small_sample: Path, tmp_path: Path) -> None:
    few = ("--images_per_shard", 3, "--formats", "parquet")
    flags = ("run", "--input", small_sample, *few, *TINY_MODEL, *STAGES)
    expected, before = run_job(tmp_path / "once", *flags)
    printed, notes = run_job(tmp_path / "twice", *flags, fates=FATES, before=before)
    assert {note.executions for note in notes} == {2}
    assert sorted(note.bundle for note in notes) == sorted(note.bundle for note in before)
    half_done = [note for note in notes if note.stopped]
    assert {note.fate for note in half_done} == set(FATES)
    assert len(half_done) > len(notes) / 2
    assert printed == expected
    assert files_below(tmp_path / "twice") == files_below(tmp_path / "once")
    assert_sound(tmp_path / "twice" / "out")
