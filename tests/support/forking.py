"""Runs commands in separate processes that need not import everything again.

A server process imports the command line once. Each command is a fork of it, with its own
environment, working directory and output. Importing takes longer than most commands work.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
NO_FIGURES = "IN9_TEST_NO_FIGURES"
"""Environment variable of commands whose page has no figures."""


class Forks:
    """The server of forks, which ends with this process.

    Args:
      root: folder of the checkout whose code the commands run.
    """

    def __init__(self, root: Path = ROOT) -> None:
        ours, theirs = socket.socketpair()
        self._socket = ours
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno()), str(root)],
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
          arguments: arguments of the command line.
          environment: complete environment of the process.
          seconds: time after which SIGALRM ends the process, 0 for never.
          modules: modules on its PYTHONPATH that it imports first.
        """
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            files = (out.fileno(), err.fileno())
            self._send(files, arguments, environment, seconds=seconds, modules=modules)
            code = int.from_bytes(_receive(self._socket, 4), "big", signed=True)
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
        return subprocess.CompletedProcess(["in9", *arguments], code, *texts)

    def start(
        self, arguments: list[str], environment: dict[str, str], stderr: int | None = None
    ) -> Started:
        """Starts `in9` with these arguments in its own session and process group.

        Args:
          arguments: arguments of the command line.
          environment: complete environment of the process.
          stderr: descriptor of the terminal to which it writes errors, None for a file.
        """
        out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        ours, theirs = socket.socketpair()
        errors = err.fileno() if stderr is None else stderr
        with theirs:
            self._send((out.fileno(), errors, theirs.fileno()), arguments, environment)
        return Started(ours, out, err)

    def _send(
        self,
        files: tuple[int, ...],
        arguments: list[str],
        environment: dict[str, str],
        *,
        seconds: int = 0,
        modules: tuple[str, ...] = (),
    ) -> None:
        order = {
            "arguments": arguments,
            "environment": environment,
            "folder": os.getcwd(),
            "seconds": seconds,
            "modules": modules,
        }
        data = json.dumps(order).encode()
        socket.send_fds(self._socket, [len(data).to_bytes(8, "big")], files)
        self._socket.sendall(data)


class Started:
    """A running command, with the part of `subprocess.Popen` that tests need.

    Attributes:
      pid: id of its process and of its process group.
      returncode: exit code; None until the end has been seen.
    """

    def __init__(self, connection: socket.socket, *files: IO[bytes]) -> None:
        self._connection, self._files = connection, files
        self.pid = int.from_bytes(_receive(connection, 4), "big")
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end and returns the exit code; raises TimeoutError after `timeout`."""
        if self.returncode is None:
            self._connection.settimeout(timeout)
            self.returncode = int.from_bytes(_receive(self._connection, 4), "big", signed=True)
        return self.returncode

    def poll(self) -> int | None:
        """Returns the exit code, or None while the command runs."""
        with contextlib.suppress(BlockingIOError):
            self.wait(0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for the end; returns the contents of standard output and standard error."""
        self.wait(timeout)
        texts = []
        for file in self._files:
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return texts[0], texts[1]


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise EOFError("the server of forks has gone")
        data += part
    return data


def _serve(connection: socket.socket) -> None:
    # Imports make millions of objects, and next to no garbage.
    gc.disable()
    # Commands import most of these modules only while they work.
    import scipy.ndimage  # noqa: F401
    from beam_signatures import remember_signatures

    import pipeline.analyses.evaluation.stage  # noqa: F401
    from pipeline.commands.command_line import find_command
    from pipeline.commands.parser import COMMANDS
    from pipeline.report.page import _environment
    from transforms.grabcut import prepare

    for command in COMMANDS:
        find_command(command)
    # Compiled code is loaded once, and templates are compiled once, too.
    prepare()
    remember_signatures()
    templates = _environment()
    for name in templates.list_templates(["html", "js", "css"]):
        templates.get_template(name)
    # A fork that searches for garbage would copy all pages that hold objects.
    gc.collect()
    gc.freeze()
    gc.enable()
    while True:
        header, files, _, _ = socket.recv_fds(connection, 8, 3)
        if not header:
            return
        order = json.loads(_receive(connection, int.from_bytes(header, "big")))
        child = os.fork()
        if child == 0:
            connection.close()
            if len(files) == 3:
                _keep(order, files)
            _become(order, files)
        for file in files:
            os.close(file)
        if len(files) == 3:
            continue
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        connection.sendall(code.to_bytes(4, "big", signed=True))


def _keep(order: dict[str, Any], files: list[int]) -> None:
    """Starts the command; sends its process id at once, and its exit code in the end."""
    *streams, reply = files
    child = os.fork()
    if child == 0:
        os.setsid()
        os.write(reply, os.getpid().to_bytes(4, "big"))
        os.close(reply)
        _become(order, streams)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(BrokenPipeError):
        os.write(reply, os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))
    os._exit(0)


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
    tempfile.tempdir = None
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = os.fdopen(number, "w", buffering=1, closefd=False)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # Under nohup, the tests ignore it.
    signal.alarm(order["seconds"])
    for module in order["modules"]:
        importlib.import_module(module)
    if NO_FIGURES in os.environ:
        from pipeline.analyses.parts import Parts

        Parts.plots = lambda *_: iter(())  # type: ignore[method-assign]
    from pipeline.commands.cli import run_process

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
    sys.path.insert(0, sys.argv[2])
    _serve(socket.socket(fileno=int(sys.argv[1])))
