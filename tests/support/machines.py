"""Machines on this one, and Slurm on them: namespaces with own networks and process ids.

Files and clock are shared, as in a cluster. This needs root. A machine is nothing but processes,
which end with the process that started them, however that ends. So nothing is left behind, and
several such clusters may run at once.
"""

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from forking import Started
from runs import ROOT

HEAD = "head"
"""The machine on which jobs and Slurm's controller run."""
NODES = ("n1", "n2")
_ADDRESSES = {HEAD: "10.77.0.1", "n1": "10.77.0.11", "n2": "10.77.0.12"}
_ALONE = ("unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
_TOOLS = ("ip", "nsenter", "setpriv", "unshare", "slurmctld", "slurmd", "munged", "srun")
_NO_RIGHT = re.compile(
    "Operation not permitted|Permission denied|Read-only file system|Function not implemented"
)
"""What the kernel says to a process that lacks a right, as a container may."""


class RefusedError(PermissionError):
    """This kernel allows no such machines, or not what Slurm's daemons do."""


def missing() -> str:
    """Returns what is not installed that machines need; "" if nothing is."""
    names = [name for name in _TOOLS if not shutil.which(name)]
    return f"not installed: {', '.join(names)}" if names else ""


def address(machine: str) -> str:
    """Returns the address of a machine, which all others reach."""
    return _ADDRESSES[machine]


def enter_network(process: int) -> None:
    """Lets this thread, and those that it starts, be in the network of another process."""
    with open(f"/proc/{process}/ns/net") as network:
        if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), 0):
            raise OSError(ctypes.get_errno(), "no way into a network")


class Machines:
    """Machines that end with a stack; raises RefusedError if it may not make namespaces."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path) -> None:
        self._stack, self._folder = stack, folder
        self._lives: dict[str, subprocess.Popen[bytes]] = {}
        # A bridge and a pair of interfaces are what machines are connected by.
        script = "ip link add name x type bridge && ip link add name y type veth peer name z"
        tried = subprocess.run([*_ALONE, "sh", "-c", script], capture_output=True, text=True)
        if tried.returncode:
            raise RefusedError(tried.stderr.strip())
        hosts = [f"{number} {name}" for name, number in _ADDRESSES.items()]
        (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *hosts, ""]))
        # Slurm's programs prove to each other who they are by a socket in this folder.
        (folder / "munge").mkdir()
        Path("/run/munge").mkdir(exist_ok=True)
        self.boot(HEAD, "sleep", "infinity")

    def boot(self, machine: str, *command: object) -> None:
        """Starts a machine whose first process is a command."""
        script = """
            read -r _ || true
            set -e
            mount --bind "$1/hosts" /etc/hosts; mount --bind "$1/munge" /run/munge; hostname "$2"
            touch "$1/$2.up"
            shift 2; exec "$@"
        """
        words = (*_ALONE, "sh", "-c", script, "sh", self._folder, machine, *command)
        life = self._lives[machine] = self.start(machine, *words, stdin=subprocess.PIPE)
        self._stack.callback(self._halt, machine)
        until(lambda: children(life.pid))
        interface = "bridge" if machine == HEAD else "eth0"
        if machine == HEAD:
            self._ip(HEAD, "link add name bridge type bridge")
        else:
            pair = f"link add name {machine} type veth peer name eth0 netns {self.first(machine)}"
            self._ip(HEAD, pair, f"link set {machine} master bridge up")
        up = (f"addr add {_ADDRESSES[machine]}/24 dev {interface}", f"link set {interface} up")
        self._ip(machine, *up, "link set lo up")
        assert life.stdin
        life.stdin.close()  # It has waited for its network.
        until(lambda: (self._folder / f"{machine}.up").exists() or life.poll() is not None)
        if life.poll() is not None:
            raise RefusedError(self._log(machine).read_text())

    def start(self, log: str, *command: object, **options: object) -> subprocess.Popen[bytes]:
        """Starts a process that ends with the stack, or this process; `log` is for its output."""
        with self._log(log).open("ab") as file:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", *map(str, command)],
                stdout=file,
                stderr=file,
                **options,  # type: ignore[call-overload]
            )
        self._stack.callback(_end, process)
        return process

    def first(self, machine: str) -> int:
        """Returns the id of a machine's first process."""
        (first,) = children(self._lives[machine].pid)
        return first

    def inside(self, machine: str, *command: object) -> list[str]:
        """Returns the words of a command that runs on a machine."""
        kinds = ("--net", "--mount", "--uts", "--pid", f"--wd={ROOT}")
        return ["nsenter", f"--target={self.first(machine)}", *kinds, *map(str, command)]

    def in_network(self, machine: str, *command: object) -> list[str]:
        """Returns the words of a command that runs here, but in the network of a machine."""
        return ["nsenter", f"--net=/proc/{self.first(machine)}/ns/net", *map(str, command)]

    def take_away(self, node: str) -> None:
        """Takes a machine away: its network first, so that nobody is told."""
        self._ip(HEAD, f"link delete {node}")
        self._halt(node)

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _ip(self, machine: str, *lines: str) -> None:
        words = self.in_network(machine, "ip", "-batch", "-")
        subprocess.run(words, input="\n".join(lines), check=True, text=True)

    def _halt(self, machine: str) -> None:
        """Kills the first process of a machine, and so all others."""
        life = self._lives[machine]
        for pid in children(life.pid) or [life.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        life.wait()


M = TypeVar("M", bound=Machines)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def started(kind: type[M], folder: Path, missing: str) -> Iterator[M]:
    """Makes machines in a new folder, if nothing is missing.

    Tests are skipped without a right that this takes, also in continuous integration.
    """
    if os.geteuid() != 0:
        pytest.skip("namespaces need root")
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        try:
            machines = kind(stack, folder)
        except PermissionError as error:
            pytest.skip(f"refused here: {error}")
        yield machines


_CONF = """\
ClusterName=one
SlurmctldHost=head({head})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MpiDefault=none
ReturnToService=2
SlurmdTimeout=6
MessageTimeout=2
TCPTimeout=1
SchedulerParameters=batch_sched_delay=0
KillWait=20
MailProg=/bin/true
SlurmdParameters=config_overrides
{nodes}
PartitionName=all Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
"""


class Slurm(Machines):
    """Two machines as nodes of a Slurm cluster, whose controller runs on the head."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path) -> None:
        super().__init__(stack, folder)
        nodes = "\n".join(
            f"NodeName={node} NodeAddr={_ADDRESSES[node]} CPUs=2 RealMemory=8000" for node in NODES
        )
        conf = folder / "slurm.conf"
        conf.write_text(_CONF.format(head=_ADDRESSES[HEAD], folder=folder, nodes=nodes))
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(conf),
            "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}",
        }
        # The in9 of this checkout, whatever is installed.
        command = folder / "in9"
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m pipeline "$@"\n')
        command.chmod(0o755)
        (folder / "state").mkdir()
        shutil.chown(folder / "munge", "munge", "munge")
        user = ("setpriv", "--reuid=munge", "--regid=munge", "--clear-groups")
        self._serve("munged", *user, "munged", "--foreground")
        self._await((folder / "munge" / "munge.socket.2").exists)
        self._serve("slurmctld", "slurmctld", "-D", "-f", conf)
        for node in NODES:
            self.boot(node, "slurmd", "-D", "-N", node, "-f", conf)
        idle = ("sinfo", "-h", "-t", "idle", "-o", "%D")
        self._await(lambda: self.ask(HEAD, *idle).strip() == "2")

    def _serve(self, name: str, *command: object) -> None:
        """Starts a daemon on the head."""
        self._lives[name] = self.start(name, *self.inside(HEAD, *command))

    def _await(self, happened: Callable[[], object]) -> None:
        """Waits for something that all daemons together do.

        Raises:
          RefusedError: it does not happen, and the log of a daemon says that it lacks a right.
        """
        lives = self._lives.values()
        with contextlib.suppress(AssertionError):
            until(lambda: happened() or any(life.poll() is not None for life in lives))
        if happened():
            return
        logs = {name: self._log(name).read_text(errors="replace") for name in self._lives}
        for name, log in logs.items():
            for line in log.splitlines():
                if _NO_RIGHT.search(line):
                    raise RefusedError(f"{name}: {line}")
        raise AssertionError("\n".join(log[-2000:] for log in logs.values()))

    def ask(self, machine: str, *command: object) -> str:
        """Runs a command on a machine, and returns its output; "" if it fails."""
        words = self.inside(machine, *command)
        done = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, check=False
        )
        return done.stdout if done.returncode == 0 else ""


def until(happened: Callable[[], object], seconds: float = 60) -> None:
    """Waits for something; fails if it does not happen in this time."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"not in {seconds} s"
        time.sleep(0.1)


def children(pid: int, running: bytes = b"") -> list[int]:
    """Returns the ids of a process's live children whose command lines have a word."""
    found: list[int] = []
    with contextlib.suppress(OSError):  # It may end at any moment.
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (thread / "children").read_text().split()):
                found += [child] if is_running(child, running) else []
    return found


def is_running(pid: int, running: bytes = b"") -> bool:
    """Returns whether a process is alive and its command line has a word."""
    with contextlib.suppress(OSError):
        # That of a process that has ended is empty.
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        return bool(words) and running in words
    return False


def kill(process: subprocess.Popen[bytes] | Started) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
