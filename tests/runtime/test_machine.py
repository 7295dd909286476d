"""Tests of what control groups leave of a machine, and of standard streams that are closed."""

import os
import sys
from pathlib import Path

import pytest
from runs import ROOT

from pipeline.runtime import machine
from pipeline.runtime.machine import usable_cores, usable_memory

GB = 1 << 30
CORES = 64


def written(root: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    """Writes what /proc and /sys/fs/cgroup say on a machine into a folder."""
    contents = {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts}
    contents |= {f"sys/fs/cgroup/{name}": f"{text}\n" for name, text in files.items()}
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


STREAMS = """
import os, subprocess, sys
from pipeline.runtime.machine import open_standard_streams

open_standard_streams()
streams = (sys.stdin, sys.stdout, sys.stderr)
assert [stream.fileno() for stream in streams] == [0, 1, 2]
assert streams == (sys.__stdin__, sys.__stdout__, sys.__stderr__)
with open(sys.argv[1], "w") as file:
    assert file.fileno() > 2
    print("said \\udcff" if sys.stdout.errors == "backslashreplace" else "said")
    print("told \\udcff", file=sys.stderr)
    child = "import sys; print('child'); print('child', file=sys.stderr); sys.stdin.read()"
    subprocess.run([sys.executable, "-c", child], check=True)
assert os.path.getsize(sys.argv[1]) == 0
"""


@pytest.mark.parametrize("closed", [(), (1,), (0, 1, 2)])
def test_what_is_printed_to_closed_streams_is_in_no_file(
    closed: tuple[int, ...], tmp_path: Path
) -> None:
    files = [tmp_path / name for name in ("in", "out", "err")]
    arguments = [sys.executable, "-c", STREAMS, str(tmp_path / "file")]
    child = os.posix_spawn(
        sys.executable,
        arguments,
        {**os.environ, "PYTHONPATH": str(ROOT)},
        file_actions=[
            (os.POSIX_SPAWN_CLOSE, number)
            if number in closed
            else (os.POSIX_SPAWN_OPEN, number, str(path), os.O_RDWR | os.O_CREAT, 0o600)
            for number, path in enumerate(files)
        ],
    )
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, files[2].exists() and files[2].read_text()
    said = [path.read_text() if path.exists() else None for path in files]
    whole = ["", "said\nchild\n", "told \\udcff\nchild\n"]
    expected = [None if number in closed else text for number, text in enumerate(whole)]
    assert [text and "".join(sorted(text)) for text in said] == [
        text and "".join(sorted(text)) for text in expected
    ]


SECOND = "35 24 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
FIRST = (
    "33 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "34 31 0:30 / /sys/fs/cgroup/memory rw,relatime shared:16 - cgroup cgroup rw,memory\n"
    "35 31 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)
IN_DOCKER = FIRST.replace(" / /sys", " /docker/c0ffee /sys")
JOB = "system.slice/slurmstepd.scope/job_7"
SERVICE = "system.slice/in9.service"
NO_LIMIT = "9223372036854771712"


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "cores", "memory"),
    [
        pytest.param("", "", {}, CORES, None, id="no group"),
        pytest.param(
            "0::/\n",
            SECOND,
            {"cpu.max": "400000 100000", "memory.max": f"{GB}"},
            *(4, GB),
            id="the root of a container",
        ),
        pytest.param(
            f"0::/{JOB}/step_0/user/task_0\n",
            SECOND,
            {
                f"{JOB}/memory.max": f"{GB}",
                f"{JOB}/step_0/memory.max": "max",
                f"{JOB}/step_0/user/task_0/cpu.max": "150000 100000",
                f"{JOB}/cpu.max": "max 100000",
                f"{SERVICE}/memory.max": "4096",
            },
            *(2, GB),
            id="Slurm: a job, a step and a task",
        ),
        pytest.param(
            "4:memory:/slurm/uid_5/job_7\n3:cpu,cpuacct:/slurm\n1:name=systemd:/a:b\n0::/\n",
            FIRST,
            {
                "memory/memory.limit_in_bytes": NO_LIMIT,
                "memory/slurm/uid_5/memory.limit_in_bytes": f"{GB}",
                "memory/slurm/uid_5/job_7/memory.limit_in_bytes": NO_LIMIT,
                "cpu,cpuacct/slurm/cpu.cfs_quota_us": "300000",
                "cpu,cpuacct/slurm/cpu.cfs_period_us": "100000",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            *(3, GB),
            id="version 1",
        ),
        pytest.param(
            "4:memory:/docker/c0ffee\n3:cpu,cpuacct:/docker/c0ffee/in/side\n",
            IN_DOCKER,
            {
                "memory/memory.limit_in_bytes": f"{GB}",
                "cpu,cpuacct/in/cpu.cfs_quota_us": "200000",
                "cpu,cpuacct/in/cpu.cfs_period_us": "100000",
            },
            *(2, GB),
            id="version 1 in a container that sees the names of the machine",
        ),
        pytest.param(
            "4:memory:/kubepods/pod1\n",
            IN_DOCKER,
            {"memory/memory.limit_in_bytes": f"{GB}"},
            *(CORES, GB),
            id="a group beside the mount",
        ),
    ],
)
def test_the_lowest_limit_of_all_groups_holds(
    groups: str,
    mounts: str,
    files: dict[str, str],
    cores: int,
    memory: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(CORES), raising=False)
    root = written(tmp_path, groups, mounts, files)
    assert usable_cores(root) == cores
    assert usable_memory(root) == memory or memory is None


def test_only_workers_share_their_machine_with_their_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 7)
    # As the worker pool of Beam 2 starts its workers.
    worker = "from apache_beam.runners.worker.sdk_worker import SdkHarness; SdkHarness;"
    for code, number in (("", 1), (worker, 7)):
        monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-c", code])
        assert machine.similar_processes() == number
