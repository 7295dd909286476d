"""Tests a job whose bundles all run twice, as on a runner that has lost sight of a machine."""

from pathlib import Path

from bundle_server import FATES
from bundles_twice import STAGES, Server, files_below
from runs import QUICK, TINY_MODEL, forks, keys
from soundness import assert_sound


def test_a_job_whose_bundles_all_run_twice(small_sample: Path, tmp_path: Path) -> None:
    folder = ("--input", small_sample)
    flags = ("run", *folder, *QUICK, *keys(images_per_shard=3), *TINY_MODEL, *STAGES)
    with Server(tmp_path, ((), FATES), forks()) as server:
        expected, before = server.run(tmp_path / "once", *flags)
        printed, notes = server.run(tmp_path / "twice", *flags)
    assert {note.executions for note in notes} == {2}
    assert sorted(note.bundle for note in notes) == sorted(note.bundle for note in before)
    half_done = [note for note in notes if note.stopped]
    assert {note.fate for note in half_done} == set(FATES)
    assert len(half_done) > len(notes) / 2
    assert printed == expected
    assert files_below(tmp_path / "twice") == files_below(tmp_path / "once")
    assert_sound(tmp_path / "twice" / "out")
