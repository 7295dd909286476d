"""Tests of jobs that run in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import BrokenPictureError, JobError
from pipeline.runners import beam_options
from pipeline.runtime.local_loop import run_locally
from pipeline.runtime.progress import Progress
from pipeline.storage.store import Store


def test_an_error_that_is_made_from_several_values_keeps_its_message(tmp_path: Path) -> None:
    error = BrokenPictureError("dog", ValueError("cut off"))
    progress = Progress.for_store(Store(str(tmp_path)))
    with (
        pytest.raises(JobError, match=r"picture of dog is broken \(cut off\)"),
        run_locally(progress, str(tmp_path / "log")),
    ):
        raise error
    assert str(beam_options._translate(error)) == str(error)
