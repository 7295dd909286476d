"""Two machines on this one, and Slurm on them: namespaces with own networks and process ids.

Files and clock are shared, as in a cluster. This needs root; `why_not` says what is missing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from runs import ROOT

HEAD = "10.77.0.1"
"""Address of this machine in the network of both."""
NODES = ("n1", "n2")
MUNGE = Path("/run/munge/munge.socket.2")
"""Where Slurm's programs prove to each other who they are."""
_SLURM = ("slurmctld", "slurmd", "munged", "srun")


def why_not() -> str:
    """Returns what is missing here for machines with Slurm; "" if nothing is."""
    if os.geteuid() != 0:
        return "namespaces need root"
    missing = [name for name in ("ip", "nsenter", "unshare", *_SLURM) if not shutil.which(name)]
    return f"{', '.join(missing)}: not installed" if missing else ""


def address(node: str) -> str:
    """Returns the address of a machine."""
    return f"10.77.0.1{node[1:]}"


class Machines:
    """Machines that end with a stack.

    Args:
      stack: runs what removes them.
      folder: an empty folder for their files.
    """

    def __init__(self, stack: contextlib.ExitStack, folder: Path) -> None:
        self._stack, self._folder = stack, folder
        self._lives: dict[str, subprocess.Popen[bytes]] = {}
        name = os.uname().nodename
        hosts = [f"127.0.0.1 localhost\n{HEAD} {name}"]
        hosts += [f"{address(node)} {node}" for node in NODES]
        (folder / "hosts").write_text("\n".join([*hosts, ""]))
        for line in (
            "link add in9br type bridge",
            f"addr add {HEAD}/24 dev in9br",
            "link set in9br up",
        ):
            _ip(line)
        stack.callback(_ip, "link del in9br")
        for node in NODES:
            _ip(f"netns add {node}")
            stack.callback(_ip, f"netns del {node}")
            _ip(f"link add in9{node} type veth peer name eth0 netns {node}")
            # A process that is about to end would keep it for a while.
            stack.callback(_ip, f"link del in9{node}")
            for line in (
                f"link set in9{node} master in9br up",
                f"-n {node} addr add {address(node)}/24 dev eth0",
                f"-n {node} link set eth0 up",
                f"-n {node} link set lo up",
            ):
                _ip(line)

    def boot(self, node: str, *command: object) -> None:
        """Starts a machine whose first process is a command."""
        hosts = self._folder / "hosts"
        script = f'mount --bind {hosts} /etc/hosts; hostname {node}; exec "$@"'
        alone = ("unshare", "-m", "-u", "-p", "--fork", "--kill-child", "--mount-proc")
        words = ("nsenter", f"--net=/run/netns/{node}", *alone, "sh", "-c", script, "sh", *command)
        self._lives[node] = self.start(node, *words)
        self._stack.callback(self._halt, node)
        until(lambda: _children(self._lives[node].pid))

    def start(self, log: str, *command: object, **options: object) -> subprocess.Popen[bytes]:
        """Starts a process that ends with the stack; its output goes to a file of this name."""
        with (self._folder / f"{log}.log").open("ab") as file:
            process = subprocess.Popen(
                [*map(str, command)],
                stdout=file,
                stderr=file,
                **options,  # type: ignore[call-overload]
            )
        self._stack.callback(_end, process)
        return process

    def inside(self, node: str, *command: object) -> list[str]:
        """Returns the words of a command that runs on a machine."""
        (first,) = _children(self._lives[node].pid)
        kinds = ("--net", "--mount", "--uts", "--pid", f"--wd={ROOT}")
        return ["nsenter", f"--target={first}", *kinds, *map(str, command)]

    def take_away(self, node: str) -> None:
        """Takes a machine away: its network first, so that nobody is told."""
        _ip(f"link set in9{node} down")
        self._halt(node)

    def _halt(self, node: str) -> None:
        """Kills the first process of a machine, and so all others."""
        life = self._lives[node]
        for pid in _children(life.pid) or [life.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        life.wait()


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []  # It has ended.


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


_CONF = """\
ClusterName=one
SlurmctldHost={name}({head})
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
SlurmdTimeout=15
KillWait=5
MailProg=/bin/true
SlurmdParameters=config_overrides
{nodes}
PartitionName=all Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
"""


class Slurm(Machines):
    """Both machines as nodes of a Slurm cluster, whose controller runs here."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path) -> None:
        super().__init__(stack, folder)
        nodes = "\n".join(
            f"NodeName={node} NodeAddr={address(node)} CPUs=2 RealMemory=8000" for node in NODES
        )
        conf = folder / "slurm.conf"
        name = os.uname().nodename
        conf.write_text(_CONF.format(name=name, head=HEAD, folder=folder, nodes=nodes))
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
        MUNGE.parent.mkdir(exist_ok=True)
        shutil.chown(MUNGE.parent, "munge", "munge")
        # Another one may run here already, which does as well.
        self.start("munge", "munged", "--foreground", user="munge", group="munge")
        until(MUNGE.exists)
        self.start("slurmctld", "slurmctld", "-D", "-f", conf)
        for node in NODES:
            self.boot(node, "slurmd", "-D", "-N", node, "-f", conf)
        until(lambda: self.ask(NODES[0], "sinfo", "-h", "-t", "idle", "-o", "%D").strip() == "2")

    def ask(self, node: str, *command: object) -> str:
        """Runs a command on a node, and returns its output; "" if it fails."""
        words = self.inside(node, *command)
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
