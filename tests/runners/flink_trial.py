"""Runs a job on a Flink of two task managers, each of which is lost, and prints what came out.

    scripts/machines

The machines are namespaces (`tests/support/machines.py`), so this needs root. Flink is the one of
the release, from PyPI, with the settings of deploy/flink/compose.yaml.
"""

import contextlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from flink import Flink, missing
from machines import NODES
from runs import finished_shards, keys, results_of, run_in9

VERSION = "1.19.3"
RUN = ("--limit", 2, *keys(images_per_shard=2), "--models", "efficientnet_lite0")
RUN = (*RUN, "--attack", 4, "--saliency", 2, "--output")


def fetch() -> Path:
    """Fetches the jars of Flink's release, once; returns their folder."""
    folder = Path(sys.prefix, f"flink-{VERSION}")
    if not folder.exists():
        with tempfile.TemporaryDirectory() as temporary:
            flags = ("--quiet", "--no-deps", "--dest", temporary)
            package = f"apache-flink-libraries=={VERSION}"
            subprocess.run([sys.executable, "-m", "pip", "download", *flags, package], check=True)
            (archive,) = Path(temporary).iterdir()
            with tarfile.open(archive) as tar:
                tar.extractall(temporary, filter="data")
            (jars,) = Path(temporary).glob("*/deps/lib")
            shutil.move(jars, folder)
    return folder


def main() -> None:
    """Runs the job, and takes task managers away while it works."""
    if reason := missing():
        sys.exit(f"machines: {reason}")
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        run_in9("run", *RUN, folder / "here", figures=True)
        (folder / "flink").mkdir()
        flink = Flink(stack, folder / "flink", jars=fetch(), delay="20 s")
        flink.cluster()

        def start(node: str) -> None:
            flink.boot(node, "sleep", "infinity")
            flink.pool(node)
            flink.task_manager(node)

        for node in NODES:
            start(node)
        output, started, lost = folder / "out", time.monotonic(), 0
        running = flink.start_in9("run", "--parallelism=4", *RUN, output, cluster=True)
        for node in (*NODES, NODES[0]):
            before = len(finished_shards(output))
            while running.poll() is None and len(finished_shards(output)) == before:
                time.sleep(0.2)
            if running.poll() is None:
                flink.take_away(node)
                lost += 1
                start(node)
        _, error = running.communicate()
        seconds = time.monotonic() - started
        ours, theirs = results_of(output), results_of(folder / "here")
        equal = sum(ours.get(path) == data for path, data in theirs.items())
        print(
            f"{lost} task managers lost, exit code {running.returncode} after {seconds:.0f} s, "
            f"{equal} of {len(theirs)} files equal, {len(ours.keys() - theirs.keys())} more",
            *error.splitlines()[-1:],
            sep="\n",
        )


if __name__ == "__main__":
    main()
