"""Runs the main job once as a user does: in processes of its own, for the fast lane."""

import subprocess
import sys
from pathlib import Path

from runs import QUICK, ROOT, run_in9


def test_the_main_job_makes_a_dataset_evaluates_a_model_and_writes_a_report(
    small_sample: Path, tmp_path: Path
) -> None:
    flags = ("--direct_running_mode=multi_processing", "--direct_num_workers=2", *QUICK)
    words = ("run", "--input", small_sample, "--output", tmp_path, *flags)
    command = (sys.executable, "-m", "pipeline", *map(str, words))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "18 images segmented" in done.stdout
    assert "BG-Gap" in (tmp_path / "report.html").read_text()
    assert "files agree with manifest.json" in run_in9("verify", "--dataset", tmp_path).stdout
