"""Flink and Beam's job server on machines that are made of namespaces, with Beam's worker pools.

All of them listen on all interfaces, and run code for whoever asks, so they get a network that
nobody else reaches.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from cluster import children
from machines import HEAD, Machines, address
from runs import ROOT

JARS = Path(sys.prefix, "flink")
"""Beam's job server and what it needs, Flink included; scripts/test fetches it."""
_TOOLS = ("ip", "nsenter", "setpriv", "unshare", "java")
_PACKAGES = (
    *("lang", "lang.invoke", "lang.reflect", "util", "util.concurrent", "nio", "net", "io", "text"),
    *("time", "util.concurrent.atomic"),
)
_OPENED = (*(f"java.{package}" for package in _PACKAGES), "sun.nio.ch", "sun.net.util")
"""Packages that Flink 1.19 reaches into, which Java 17 has to be told."""
_SERVER = "org.apache.beam.runners.flink.FlinkJobServerDriver"
_MEMORY = {
    **dict.fromkeys(("framework.heap", "framework.off-heap", "managed"), "128m"),
    "task.heap": "384m",
    "task.off-heap": "0",
    "network.min": "128m",
    "network.max": "128m",
    "jvm-metaspace": "256m",
    "jvm-overhead.min": "192m",
    "jvm-overhead.max": "192m",
}
"""What Flink's start scripts would compute for a task manager."""
REST = f"{address(HEAD)}:8081"
"""Where the cluster answers."""
_ASK = f"""
import json, urllib.request
jobs = json.load(urllib.request.urlopen("http://{REST}/jobs/overview"))["jobs"]
print(*(job["state"] for job in jobs))
"""


def missing() -> str:
    """Returns what is not installed that Flink needs; "" if nothing is."""
    names = [name for name in _TOOLS if not shutil.which(name)]
    names += [] if any(JARS.glob("beam-runners-flink-*.jar")) else ["Beam's job server"]
    return f"not installed: {', '.join(names)}" if names else ""


class Flink(Machines):
    """Beam's job server on the head; Flink is embedded in it, or a cluster that `cluster` starts.

    Args:
      stack: ends everything.
      folder: an empty folder for files and logs.
      jars: folder of the jars of a cluster.
      delay: time before Flink tries a failed task again, longer than workers are kept idle. Other
        settings of this kind are those of deploy/flink/compose.yaml.

    Attributes:
      folder: the same folder.

    Raises:
      RefusedError: this process may not make namespaces and networks.
    """

    def __init__(
        self,
        stack: contextlib.ExitStack,
        folder: Path,
        *,
        jars: Path = JARS,
        delay: str = "6 s",
    ) -> None:
        super().__init__(stack, folder)
        self.folder, self._jars = folder, jars
        self._environment = {
            **os.environ,
            # A pool starts its workers as `python`; the models of tests are in this folder.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'support'}",
            "HF_HUB_OFFLINE": "1",
        }
        compose = yaml.safe_load((ROOT / "deploy" / "flink" / "compose.yaml").read_text())
        settings = yaml.safe_load(compose["x-flink"]["environment"]["FLINK_PROPERTIES"])
        settings["restart-strategy.exponential-delay.initial-backoff"] = delay
        used = {name: settings[name] for name in settings if name.startswith(("restart", "heart"))}
        (folder / "flink-conf.yaml").write_text(yaml.safe_dump(used))
        ports = ("--job-port=8099", "--artifact-port=8098", "--expansion-port=-1")
        flags = ("--flink-master=[local]", f"--flink-conf-dir={folder}", "--job-host=localhost")
        self._java(
            HEAD, "server", JARS, _SERVER, *flags, *ports, f"--artifacts-dir={folder}/staged"
        )

    def cluster(self, *nodes: str) -> None:
        """Starts Flink's job manager on the head, and a task manager on each of these machines."""
        settings = {
            "jobmanager.rpc.address": address(HEAD),
            "jobmanager.bind-host": "0.0.0.0",
            "rest.address": address(HEAD),
            "rest.bind-address": "0.0.0.0",
            "rest.port": 8081,
        }
        main = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
        self._flink(HEAD, "jobmanager", main, settings)
        for node in nodes:
            self.task_manager(node)

    def task_manager(self, node: str) -> None:
        """Starts a task manager of the cluster on a machine."""
        settings = {
            "jobmanager.rpc.address": address(HEAD),
            "taskmanager.host": address(node),
            "taskmanager.numberOfTaskSlots": 2,
            "taskmanager.cpu.cores": 2,
            **{_memory(part): size for part, size in _MEMORY.items()},
        }
        main = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
        self._flink(node, f"taskmanager-{node}", main, settings)

    def pool(
        self, machine: str, port: int = 50000, *, forks: bool = False, **more: str
    ) -> subprocess.Popen[bytes]:
        """Starts a worker pool on a machine.

        Args:
          machine: the machine.
          port: its port.
          forks: whether its workers are forks (`worker_pool.py`), not those of Beam's own pool.
          more: further environment variables.
        """
        own = (ROOT / "tests" / "support" / "worker_pool.py",)
        pool = own if forks else ("-m", "apache_beam.runners.worker.worker_pool_main")
        words = self.inside(machine, sys.executable, *pool, f"--service_port={port}")
        return self.start(f"pool-{machine}-{port}", *words, env={**self._environment, **more})

    def start_in9(
        self,
        command: str,
        *flags: object,
        port: int = 50000,
        cluster: bool = False,
        program: Sequence[str] = ("-m", "pipeline"),
    ) -> subprocess.Popen[str]:
        """Starts a command in the head's network, with the pools at a port beside task managers."""
        runner = ("--runner=PortableRunner", "--job_endpoint=localhost:8099", "--parallelism=2")
        pools = ("--environment_type=EXTERNAL", f"--environment_config=localhost:{port}")
        more = (*pools, "--sdk_worker_parallelism=2", *((f"--flink_master={REST}",) * cluster))
        words = self.in_network(HEAD, sys.executable, *program, command, *runner, *more, *flags)
        return subprocess.Popen(
            words,
            cwd=ROOT,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def states(self) -> list[str]:
        """Returns the states of all jobs of the cluster; none while it does not answer."""
        words = self.in_network(HEAD, sys.executable, "-c", _ASK)
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        return done.stdout.split()

    def _flink(self, machine: str, log: str, main: str, settings: Mapping[str, object]) -> None:
        flags = [f"-D{name}={value}" for name, value in settings.items()]
        self._java(machine, log, self._jars, main, "--configDir", self.folder, *flags)

    def _java(self, machine: str, log: str, jars: Path, main: str, *flags: object) -> None:
        opened = [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED]
        # These programs end before it pays to compile them well.
        quick = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx768m")
        java = ("java", *quick, *opened, "-cp", f"{jars}/*", main)
        self.start(log, *self.inside(machine, *java, *flags), env=self._environment)


def job_server_jar(folder: Path) -> Path:
    """Makes a jar for FlinkRunner: the job server, by the names of its parts."""
    lines = {
        "Manifest-Version": "1.0",
        "Main-Class": _SERVER,
        "Add-Opens": " ".join(f"java.base/{package}" for package in _OPENED),
        "Class-Path": " ".join(jar.as_uri() for jar in sorted(JARS.glob("*.jar"))),
    }
    texts = [f"{name}: {value}" for name, value in lines.items()]
    # A line may have 72 bytes, and goes on behind a space.
    parts = ["\n ".join(re.findall(".{1,70}", text)) for text in texts]
    with zipfile.ZipFile(folder / "server.jar", "w") as jar:
        jar.writestr("META-INF/MANIFEST.MF", "\n".join([*parts, ""]))
    return folder / "server.jar"


def _memory(part: str) -> str:
    """Returns the name of the setting for a part of a task manager's memory."""
    return f"taskmanager.memory.{part}" + ("" if part.endswith(("min", "max")) else ".size")


def workers_of(pool: subprocess.Popen[bytes]) -> list[int]:
    """Returns the process ids of a pool's live workers."""
    return children(*children(*children(pool.pid)))
