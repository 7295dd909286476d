"""Flink and Beam's job server on machines that are made of namespaces, with Beam's worker pools.

All of them listen on all interfaces, and run code for whoever asks, so they get a network that
nobody else reaches.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
import uuid
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml
from forking import NO_FIGURES, Started
from machines import HEAD, Machines, address, children, enter_network
from runs import ROOT, forks, words_of

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
    **dict.fromkeys(("framework.heap.size", "framework.off-heap.size", "managed.size"), "128m"),
    "task.heap.size": "384m",
    "task.off-heap.size": "0",
    "network.min": "128m",
    "network.max": "128m",
    "jvm-metaspace.size": "256m",
    "jvm-overhead.min": "192m",
    "jvm-overhead.max": "192m",
}
"""What Flink's start scripts would compute for a task manager."""
REST = f"{address(HEAD)}:8081"
"""Where the cluster answers."""
_EMPTY_ZIP = b"PK\5\6" + bytes(18)
_IN9 = """
from machines import enter_network
enter_network({process})
{before}
from pipeline.commands.cli import run_process
run_process()
"""
"""in9 in the network of a machine whose first process is known."""


def missing() -> str:
    """Returns what is not installed that Flink needs; "" if nothing is."""
    names = [name for name in _TOOLS if not shutil.which(name)]
    names += [] if any(JARS.glob("beam-runners-flink-*.jar")) else ["Beam's job server"]
    return f"not installed: {', '.join(names)}" if names else ""


class Flink(Machines):
    """Beam's job server on the head; Flink is embedded in it, or a cluster that `cluster` starts.

    All ends with the stack. Flink tries a failed task again after six seconds, which is longer than
    workers are kept idle; other settings of this kind are those of deploy/flink/compose.yaml.
    Raises RefusedError if this process may not make namespaces and networks.
    """

    def __init__(self, stack: contextlib.ExitStack, folder: Path) -> None:
        super().__init__(stack, folder)
        self.folder = folder
        self._environment = {
            **os.environ,
            # A pool starts its workers as `python`; the models of tests are in this folder.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'support'}",
            "HF_HUB_OFFLINE": "1",
            NO_FIGURES: "1",
            # Java's programs end before it pays to compile them well.
            "JAVA_TOOL_OPTIONS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xmx768m",
        }
        compose = yaml.safe_load((ROOT / "deploy" / "flink" / "compose.yaml").read_text())
        settings = yaml.safe_load(compose["x-flink"]["environment"]["FLINK_PROPERTIES"])
        settings["restart-strategy.exponential-delay.initial-backoff"] = "6 s"
        used = {name: settings[name] for name in settings if name.startswith(("restart", "heart"))}
        (folder / "flink-conf.yaml").write_text(yaml.safe_dump(used))
        ports = ("--job-port=8099", "--artifact-port=8098", "--expansion-port=-1")
        flags = ("--flink-master=[local]", f"--flink-conf-dir={folder}", "--job-host=localhost")
        self._java("server", _SERVER, *flags, *ports, f"--artifacts-dir={folder}/staged")

    def cluster(self) -> None:
        """Starts Flink's job manager, and a task manager."""
        settings: dict[str, object] = {
            "jobmanager.rpc.address": address(HEAD),
            "jobmanager.bind-host": "0.0.0.0",
            "rest.address": address(HEAD),
            "rest.bind-address": "0.0.0.0",
            "rest.port": 8081,
            "taskmanager.host": address(HEAD),
            "taskmanager.numberOfTaskSlots": 2,
            "taskmanager.cpu.cores": 2,
            **{f"taskmanager.memory.{part}": size for part, size in _MEMORY.items()},
        }
        flags = [f"-D{name}={value}" for name, value in settings.items()]
        for log, main in (
            ("jobmanager", "entrypoint.StandaloneSessionClusterEntrypoint"),
            ("taskmanager", "taskexecutor.TaskManagerRunner"),
        ):
            name = f"org.apache.flink.runtime.{main}"
            self._java(log, name, "--configDir", self.folder, *flags)

    def pool(
        self, port: int = 50000, *, forks: bool = False, **more: str
    ) -> subprocess.Popen[bytes]:
        """Starts a worker pool, whose workers are Beam's own or forks, with more variables."""
        own = (ROOT / "tests" / "support" / "worker_pool.py",)
        pool = own if forks else ("-m", "apache_beam.runners.worker.worker_pool_main")
        words = self.inside(HEAD, sys.executable, *pool, f"--service_port={port}")
        return self.start(f"pool-{port}", *words, env={**self._environment, **more})

    def start_in9(
        self,
        command: str,
        *flags: object,
        port: int = 50000,
        cluster: bool = False,
        before: str = "",
    ) -> Started:
        """Starts a command in the head's network, with the pools at a port beside task managers.

        `before` is code that it runs first.
        """
        runner = ("--runner=PortableRunner", "--job_endpoint=localhost:8099", "--parallelism=2")
        pools = ("--environment_type=EXTERNAL", f"--environment_config=localhost:{port}")
        more = (*pools, "--sdk_worker_parallelism=2", *((f"--flink_master={REST}",) * cluster))
        if cluster:
            # Otherwise the job server uploads its whole class path, which this Flink has.
            (empty := self.folder / "empty.jar").write_bytes(_EMPTY_ZIP)
            more += (f"--files_to_stage={empty}",)
        program = self.folder / f"{uuid.uuid4().hex}.py"
        program.write_text(_IN9.format(process=self.first(HEAD), before=before))
        words = words_of([command, *runner, *more, *flags])
        return forks().start(words, self._environment, program=program)

    def states(self) -> list[str]:
        """Returns the states of all jobs of the cluster; none while it does not answer."""
        inside = {"initializer": enter_network, "initargs": (self.first(HEAD),)}
        with ThreadPoolExecutor(1, **inside) as thread:
            return thread.submit(_states).result()

    def _java(self, log: str, main: str, *flags: object) -> None:
        opened = [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED]
        java = ("java", *opened, "-cp", f"{JARS}/*", main)
        self.start(log, *self.inside(HEAD, *java, *flags), env=self._environment)


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


def workers_of(pool: subprocess.Popen[bytes]) -> list[int]:
    """Returns the process ids of a pool's live workers."""
    return children(*children(*children(pool.pid)))


def _states() -> list[str]:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{REST}/jobs/overview") as of:
        return [job["state"] for job in json.load(of)["jobs"]]
    return []
