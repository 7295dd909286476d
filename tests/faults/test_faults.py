"""Tests a fixed sample of the faults of `scripts/faults`, and folders, disks, threads that fail."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_lab import Lab, describe
from fault_matrix import sample
from forking import NO_FIGURES
from runs import THREADS, forks, keys, manifest_of, pictures_of, run_in9


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
    names = Counter((outcome.kind, outcome.name) for outcome in outcomes)
    assert max(names.values()) == 1
    assert len(names) > 400


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


UNPRIVILEGED = """
import ctypes

VERSION_3, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 0x20080522, 1, 2
libc = ctypes.CDLL(None, use_errno=True)
header = (ctypes.c_uint32 * 2)(VERSION_3, 0)
sets = (ctypes.c_uint32 * 6)()
done = libc.capget(header, sets) == 0
# Effective, permitted and inheritable sets, of which the first word has these capabilities.
for number in range(3):
    sets[number] &= ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)
if not done or libc.capset(header, sets) != 0:
    raise OSError(ctypes.get_errno(), "capabilities cannot be given up")
"""
"""A module that makes permissions count even for root, in the process that imports it, but not in
programs that this process executes."""
VARIANTS = ("--variants", "original,mixed_rand", "--formats", "webdataset")


@pytest.mark.parametrize(
    ("place", "mode", "said", "code"),
    [
        ("input/val/n01440764", 0, "{} cannot be read: Permission denied", 2),
        ("input/val", 0, "{} cannot be read: Permission denied", 2),
        (".", 0o555, "--output {}/out cannot be written: Permission denied", 2),
        # One image that cannot be read is an error of the machine, not of the image.
        ("input/val/n01440764/{}", 0, "Permission denied: '{}'", 1),
    ],
)
def test_what_cannot_be_read_or_written_is_named(
    place: str, mode: int, said: str, code: int, tiny_input: Path, tmp_path: Path
) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "unprivileged.py").write_text(UNPRIVILEGED)
    words = ["generate", "--input", str(tiny_input), "--output", str(tmp_path / "out"), *VARIANTS]
    picture = pictures_of(tiny_input)[0]
    place = place.replace("n01440764", picture.parent.name).format(picture.name)
    path = tmp_path / place
    path.chmod(mode)
    try:
        environment = {**os.environ, "PYTHONPATH": str(modules)}
        done = forks().run([*words, *THREADS], environment, modules=("unprivileged",))
    finally:
        path.chmod(0o755)
    assert done.returncode == code, done.stderr
    assert said.format(path) in done.stderr
    assert done.stderr.count("\n") == 1
    run_in9(*words)
    assert manifest_of(tmp_path / "out")["images"]["val"]["accepted"] == 5


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small file system cannot be mounted here: {error}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_fails_the_job_and_harms_nothing(
    small_sample: Path, tmp_path: Path, small_disk: Path
) -> None:
    output = small_disk / "out"
    flags = ("generate", "--input", small_sample, "--output", output, *keys(images_per_shard=3))
    failed = run_in9(*flags, check=1)
    assert f"No space left on device; free some space: '{output}/" in failed.stderr
    assert failed.stderr.count("\n") == 1
    assert not (output / "manifest.json").exists()
    subprocess.run(["mount", "-o", "remount,size=60m", str(small_disk)], check=True)
    assert "18 images segmented" not in run_in9(*flags).stdout
    assert not list(output.glob(".in9/tmp/*"))
    fresh = tmp_path / "fresh"
    run_in9("generate", "--input", small_sample, "--output", fresh, *keys(images_per_shard=3))
    assert (output / "manifest.json").read_bytes() == (fresh / "manifest.json").read_bytes()


# A machine that gives the process some threads, and refuses all others.
FEW_THREADS = """
import os, threading

start, left = threading._start_new_thread, int(os.environ["FEW_THREADS"])

def start_new_thread(*arguments):
    global left
    left -= 1
    if left < 0:
        threading.stack_size(1 << 46)
    return start(*arguments)

threading._start_new_thread = start_new_thread
"""


@pytest.mark.parametrize("threads", [0, 1, 2, 3, 7])
def test_a_machine_without_threads_is_one_line(
    tiny_input: Path, tmp_path: Path, threads: int
) -> None:
    (tmp_path / "few_threads.py").write_text(FEW_THREADS)
    words = ["generate", "--input", str(tiny_input), "--output", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "FEW_THREADS": str(threads)}
    done = forks().run([*words, *VARIANTS], environment, modules=("few_threads",))
    assert done.returncode == 1
    assert "the job failed" in done.stderr
    assert "can't start new thread" in done.stderr
    assert done.stderr.count("\n") == 1
