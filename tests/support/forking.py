"""Runs commands in separate processes that need not import everything again.

A server process imports the command line once. Each command is a fork of it, with its own
environment, working directory and output. Importing takes longer than most commands work. Test
processes that run side by side share the server; each has a fork of its own that takes its orders.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
NO_FIGURES = "IN9_TEST_NO_FIGURES"
"""Environment variable of commands whose page has no figures."""
SERVER = "IN9_TEST_FORKS"
"""Environment variable with the address of the server that test processes share."""

_LIVES: list[socket.socket] = []
"""Ends of connections that are closed when this process ends. A server waits for that."""


def start_server(root: Path = ROOT) -> str:
    """Starts a server of forks, which ends with this process; returns its address."""
    address = os.path.join(tempfile.mkdtemp(), "forks")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    ours, theirs = socket.socketpair()
    _LIVES.append(ours)
    with listener, theirs:
        files = (listener.fileno(), theirs.fileno())
        subprocess.Popen(
            [sys.executable, __file__, *map(str, files), str(root)],
            pass_fds=files,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    return address


class Forks:
    """A connection with a server of forks: the shared one, or one for another checkout."""

    def __init__(self, root: Path = ROOT) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        shared = os.environ.get(SERVER) if root == ROOT else None
        self._socket.connect(shared or start_server(root))

    def run(
        self,
        arguments: list[str],
        environment: dict[str, str],
        *,
        seconds: int = 0,
        modules: tuple[str, ...] = (),
    ) -> subprocess.CompletedProcess[str]:
        """Runs `in9` to its end, or for so many seconds, after it has imported modules."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            files = (out.fileno(), err.fileno())
            self._send(files, arguments, environment, seconds=seconds, modules=modules)
            code = int.from_bytes(_receive(self._socket, 4), "big", signed=True)
            return subprocess.CompletedProcess(["in9", *arguments], code, _text(out), _text(err))

    def start(
        self,
        arguments: list[str],
        environment: dict[str, str],
        stderr: int | None = None,
        *,
        program: Path | None = None,
    ) -> Started:
        """Starts `in9`, or another Python program, in its own session and process group."""
        out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        ours, theirs = socket.socketpair()
        errors = err.fileno() if stderr is None else stderr
        with theirs:
            files = (out.fileno(), errors, theirs.fileno())
            self._send(files, arguments, environment, program=program)
        return Started(ours, out, err)

    def _send(
        self,
        files: tuple[int, ...],
        arguments: list[str],
        environment: dict[str, str],
        *,
        seconds: int = 0,
        modules: tuple[str, ...] = (),
        program: Path | None = None,
    ) -> None:
        order = {
            "arguments": arguments,
            "environment": environment,
            "folder": os.getcwd(),
            "seconds": seconds,
            "modules": modules,
            "program": program and str(program),
        }
        data = json.dumps(order).encode()
        socket.send_fds(self._socket, [len(data).to_bytes(8, "big")], files)
        self._socket.sendall(data)


class Started:
    """A running command, with the part of `subprocess.Popen` that tests need."""

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

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def written(self) -> bool:
        """Returns whether the command has written anything."""
        return any(os.fstat(file.fileno()).st_size for file in self._files)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for the end; returns the contents of standard output and standard error."""
        self.wait(timeout)
        out, error = map(_text, self._files)
        return out, error


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise EOFError("the server of forks has gone")
        data += part
    return data


def _prepare() -> None:
    """Imports what commands need."""
    # Imports make millions of objects, and next to no garbage.
    gc.disable()
    # Commands import most of these modules only while they work.
    import PIL.Image
    import pyarrow.dataset  # noqa: F401
    import rich.progress  # noqa: F401
    import scipy.ndimage  # noqa: F401
    from quick_beam import hasten_beam

    import pipeline.analyses.evaluation.parts
    import pipeline.commands.cli  # noqa: F401
    from pipeline.commands.command_line import COMMANDS, find_command
    from pipeline.report.page import _environment
    from transforms.grabcut import prepare

    for command in COMMANDS:
        find_command(command)
    PIL.Image.init()
    # Compiled code is loaded once, and templates are compiled once, too.
    prepare()
    hasten_beam()
    # At the end of each fork, torch would take back what it has registered.
    for finalizer in weakref.finalize._registry:
        finalizer.atexit = False
    templates = _environment()
    for name in templates.list_templates(["html", "js", "css"]):
        templates.get_template(name)
    # A fork that searches for garbage would copy all pages that hold objects.
    gc.collect()
    gc.freeze()
    gc.enable()
    _use_huge_pages()


def _use_huge_pages() -> None:
    """Moves memory into huge pages, where Linux can, because forks copy the table of all pages.

    With pages of 4 kB, a fork takes 60 ms of CPU, which is longer than many commands work.
    """
    if sys.platform != "linux":
        return
    size, collapse = 2 << 20, 25  # MADV_COLLAPSE, which fails before Linux 6.1.
    madvise = ctypes.CDLL(None).madvise
    for area in Path("/proc/self/maps").read_text().splitlines():
        addresses, permissions, _, _, file, *_ = area.split()
        if permissions == "rw-p" and file == "0":
            start, end = (int(address, 16) for address in addresses.split("-"))
            start, end = -(-start // size) * size, end // size * size
            if start < end:
                madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), collapse)


def _accept(listener: socket.socket, life: socket.socket) -> None:
    """Forks a process for each connection that takes its orders, until `life` is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while life not in select.select([listener, life], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            life.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _serve(connection)
            os._exit(0)
        connection.close()
    os.remove(listener.getsockname())
    os.rmdir(os.path.dirname(listener.getsockname()))


def _serve(connection: socket.socket) -> None:
    """Runs what a test process orders, until it closes the connection."""
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
        connection.sendall(_end_of(child, connection.fileno()))


def _keep(order: dict[str, Any], files: list[int]) -> None:
    """Starts the command; sends its process id at once, and its exit code in the end."""
    *streams, reply = files
    child = os.fork()
    if child == 0:
        os.setsid()
        os.write(reply, os.getpid().to_bytes(4, "big"))
        os.close(reply)
        _become(order, streams)
    code = _end_of(child, reply)
    with contextlib.suppress(BrokenPipeError):
        os.write(reply, code)
    os._exit(0)


def _end_of(child: int, connection: int) -> bytes:
    """Waits for a command, and returns its exit code in four bytes.

    If the test process at the other end of the connection goes first, because the tests were
    aborted, the command is killed.
    """
    if sys.platform == "linux":
        end = os.pidfd_open(child)
        if end not in select.select([end, connection], [], [])[0]:
            os.kill(child, signal.SIGKILL)
        os.close(end)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True)


def leave_figures_out() -> None:
    """Leaves figures out of the pages of this process, if its environment says so."""
    if NO_FIGURES in os.environ:
        from pipeline.analyses.parts import Parts

        Parts.plots = lambda *_: iter(())  # type: ignore[method-assign]


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
    leave_figures_out()
    from pipeline.commands.cli import run_process

    try:
        if program := order["program"]:
            sys.argv[0] = program
            runpy.run_path(program, run_name="__main__")
        else:
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
    sys.path.insert(0, sys.argv[3])
    _prepare()
    _accept(*(socket.socket(fileno=int(number)) for number in sys.argv[1:3]))
    # Some libraries report objects that were kept out of garbage collection.
    os._exit(0)
