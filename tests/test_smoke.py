"""Runs the main job once as a user does: in processes of its own, for the fast lane."""

import sys
from pathlib import Path

from runs import QUICK, run_in9, run_program


def test_the_main_job_makes_a_dataset_evaluates_a_model_and_writes_a_report(
    small_sample: Path, tmp_path: Path
) -> None:
    flags = ("--direct_num_workers=2", *QUICK, "--variants", "original,mixed_same,mixed_rand")
    words = ("run", "--input", small_sample, "--output", tmp_path, *flags)
    assert "18 images segmented" in run_program(sys.executable, "-m", "pipeline", *words).stdout
    assert "BG-Gap" in (tmp_path / "report.html").read_text()
    assert "files agree with manifest.json" in run_in9("verify", "--dataset", tmp_path).stdout
