"""Runs the main job once as a user does: in processes of its own, for the fast lane."""

import subprocess
import sys
from pathlib import Path

from runs import QUICK, ROOT


def test_the_main_job_makes_a_dataset_evaluates_a_model_and_writes_a_report(
    small_sample: Path, tmp_path: Path
) -> None:
    def in9(*words: object) -> str:
        command = (sys.executable, "-m", "pipeline", *map(str, words))
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    workers = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    done = in9("run", "--input", small_sample, *QUICK, "--output", tmp_path, *workers)
    assert "18 images segmented" in done
    assert "BG-Gap" in (tmp_path / "report.html").read_text()
    assert "files agree with manifest.json" in in9("verify", "--dataset", tmp_path)
