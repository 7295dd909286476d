"""Measures the work that a killed run and its continuation need more than an undisturbed run.

    python benchmarks/after_kill.py [--input FOLDER] [--pairs 5]

Work is the CPU time of the process. A run is killed when it has spent half of the CPU time of the
preceding undisturbed run. The start-up of each process is subtracted: that of a run that finds
nothing to do (imports, listing the input and the dataset), plus the time for loading the model and
importing its library.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import IN9, machine, row, run_in9

from pipeline.dataset.folder import sample_folder
from pipeline.dataset.manifest import MANIFEST

LOADING = """
import sys
import apache_beam
if sys.argv[1:]:
    from pipeline.models.registry import load_model
    for entry in sys.argv[1].split(","):
        load_model(entry)
"""

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_of(pid: int) -> float:
    """Returns the CPU seconds that a running process has spent so far, in all of its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def run_and_kill(seconds: float, *arguments: object) -> float:
    """Kills a command once it has spent `seconds` of CPU time; returns what it spent in all."""
    command = [*IN9, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while cpu_of(process.pid) < seconds:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    return usage.ru_utime + usage.ru_stime


def cpu_of_loading(*models: str) -> float:
    """Measures the CPU seconds of a process that imports Beam and loads models, if any."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-P", "-c", LOADING, *models], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", default=sample_folder(), help="images (the sample)")
    parser.add_argument("--models", default="efficientnet_lite0", help="to evaluate")
    parser.add_argument(
        "--at", type=float, default=0.5, help="share of the work that is done at the kill (0.5)"
    )
    parser.add_argument(
        "--pairs", type=int, default=5, help="pairs of an undisturbed and a killed run (5)"
    )
    arguments = parser.parse_args()
    print(machine())
    ratios, quiet_work = [], []
    for _ in range(arguments.pairs):
        with tempfile.TemporaryDirectory() as folder:
            quiet, stopped = Path(folder) / "quiet", Path(folder) / "stopped"
            run = ("run", "--input", arguments.input, "--models", arguments.models, "--output")
            total = run_in9(*run, quiet).cpu
            start_up = run_in9(*run, quiet).cpu
            start_up += cpu_of_loading(arguments.models) - cpu_of_loading()
            before = run_and_kill(arguments.at * total, *run, stopped)
            after = run_in9(*run, stopped).cpu
            if not filecmp.cmp(quiet / MANIFEST, stopped / MANIFEST, shallow=False):
                sys.exit("the dataset differs after a kill")
            work = total - start_up
            print(
                f"quiet {total:.1f} s, start-up {start_up:.1f} s, killed after {before:.1f} s, "
                f"the rest {after:.1f} s",
                flush=True,
            )
            ratios.append((before + after - 2 * start_up) / work)
            quiet_work.append(work)
    row(
        "after a kill half-way: CPU of both runs, beside start-up",
        f"{statistics.median(ratios):.3f} x",
        f"a quiet run, {statistics.median(quiet_work):.0f} s; {min(ratios):.3f} to "
        f"{max(ratios):.3f}",
        "<= 1.06",
    )


if __name__ == "__main__":
    main()
