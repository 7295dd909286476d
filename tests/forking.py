"""Commands in processes of their own that need not import everything again.

A server process imports the command line once; each command is a fork of it, with its own
environment, working directory and output. Importing takes longer than most commands work.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


class Forks:
    """The server, which ends with this process."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._socket = ours
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        theirs.close()

    def run(
        self,
        arguments: list[str],
        environment: dict[str, str],
        *,
        seconds: int = 0,
        modules: tuple[str, ...] = (),
    ) -> subprocess.CompletedProcess[str]:
        """Runs `in9` with these arguments to its end.

        Args:
          arguments: of the command line.
          environment: of the process, all of it.
          seconds: after which SIGALRM ends it, 0 for never.
          modules: of its PYTHONPATH, which it imports before it begins.
        """
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            order = {
                "arguments": arguments,
                "environment": environment,
                "folder": os.getcwd(),
                "seconds": seconds,
                "modules": modules,
            }
            data = json.dumps(order).encode()
            socket.send_fds(
                self._socket, [len(data).to_bytes(8, "big")], [out.fileno(), err.fileno()]
            )
            self._socket.sendall(data)
            code = int.from_bytes(_receive(self._socket, 4), "big", signed=True)
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
        return subprocess.CompletedProcess(["in9", *arguments], code, *texts)


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise EOFError("the server of forks has gone")
        data += part
    return data


def _serve(connection: socket.socket) -> None:
    import pipeline.evaluate.stage  # noqa: F401
    from pipeline.command_line.commands import WITH_BEAM, WITHOUT_BEAM

    for module, _ in (*WITH_BEAM.values(), *WITHOUT_BEAM.values()):
        importlib.import_module(module)
    while True:
        header, files, _, _ = socket.recv_fds(connection, 8, 2)
        if not header:
            return
        order = json.loads(_receive(connection, int.from_bytes(header, "big")))
        child = os.fork()
        if child == 0:
            connection.close()
            _become(order, files)
        for file in files:
            os.close(file)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        connection.sendall(code.to_bytes(4, "big", signed=True))


def _become(order: dict[str, Any], files: list[int]) -> None:
    """Turns this fork into the command."""
    null = os.open(os.devnull, os.O_RDONLY)
    for number, file in enumerate([null, *files]):
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["folder"])
    sys.path[:0] = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    sys.argv = ["in9", *order["arguments"]]
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = os.fdopen(number, "w", buffering=1, closefd=False)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.alarm(order["seconds"])
    for module in order["modules"]:
        importlib.import_module(module)
    from pipeline.cli import run_process

    try:
        run_process()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    _serve(socket.socket(fileno=int(sys.argv[1])))
