"""Jobs on the workers of an engine: their flags, what they print, where they listen, signs."""

import contextlib
import time
from pathlib import Path

from cluster import children, listens_at
from forking import Started
from machines import until
from runs import TINY_MODEL

EVERY_STEP = (*TINY_MODEL, "--attack", "4x3", "--saliency", 2, "--pictures", "none")
"""Flags of a job that runs models for all analyses."""

_SEGMENTER = """
import os, pathlib, time
import numpy as np

HERE = pathlib.Path({folder!r})

def segment(image, box):
    until = time.monotonic() + 120
    while not (HERE / "go").exists() and time.monotonic() < until:
        (HERE / "signs" / str(os.getpid())).touch()
        time.sleep(0.1)
    mask = np.zeros(image.shape[:2], bool)
    mask[box[1] : box[3] + 1, box[0] : box[2] + 1] = True
    return mask

segment.version = 1
"""


class Signs:
    """A segmenter that works for minutes unless it may go on, and what it shows of itself."""

    flags = ("--segmenter", "python:at_work:segment")

    def __init__(self, modules: Path) -> None:
        self._go, self._folder = modules / "go", modules / "signs"
        self._folder.mkdir()
        # A worker may still have imported the module of another test, unless its content differs.
        (modules / "at_work.py").write_text(_SEGMENTER.format(folder=str(modules)))

    def seen(self) -> set[int]:
        """Returns the ids of processes that have been at work."""
        return {int(path.name) for path in self._folder.iterdir()}

    def wait_for_end(self, seconds: float = 5) -> None:
        """Waits until nobody is at work any more; fails if somebody still is after this time."""
        last = time.time() + seconds

        def latest() -> float:
            return max(path.stat().st_mtime for path in self._folder.iterdir())

        until(lambda: time.time() - latest() > 1.5, seconds + 1.5)
        assert latest() < last

    def go_on(self) -> None:
        """Lets all calls end soon."""
        self._go.touch()


def printed(stdout: str, output: Path) -> list[str]:
    """Returns the lines that a command prints, without times and without its folder."""
    lines = [line for line in stdout.splitlines() if not line.startswith("time: ")]
    return [line.replace(str(output), "OUT") for line in lines]


def listened_at(running: Started) -> set[tuple[str, int]]:
    """Waits for the end of a command; returns where it or its children listened."""
    places: set[tuple[str, int]] = set()
    while running.poll() is None:
        for process in _with_descendants(running.pid):
            with contextlib.suppress(OSError):  # It may end, or close a file, at any moment.
                places |= listens_at(process)
        time.sleep(0.03)
    return places


def _with_descendants(pid: int) -> set[int]:
    return {pid}.union(*(_with_descendants(child) for child in children(pid)))
