"""Lets real processes race for a lock, and counts how often two hold it at once.

    scripts/races [fair] [torture] [--rounds 4000] [--disturbances 5000] [--remote]

A round resembles a commit: with the lock held, a process reads the manifest, works for a moment,
and writes the next manifest, which holds the number of the round. If two processes write the same
number, both have acted on one state: they are **double holders**, whatever the clocks say.

  fair      processes on one machine race undisturbed.
  torture   processes seem to be on different machines, so none knows whether another is alive.
            At random moments, one is killed or suspended, half of the time for longer than a
            holder may be silent. It wakes up in the middle of whatever it was doing.

With `--remote`, the lock is in the object store of the tests, otherwise in a local folder. The
times of locks (`lock.RENEWAL_SECONDS`, `EXPIRY_SECONDS`) are all shorter than in a job, by the same
factor.
"""

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from gcs import BUCKET, object_store

from pipeline.errors import JobError
from pipeline.runtime import lock
from pipeline.storage import processes
from pipeline.storage.store import Store

FAIR_ROUNDS = 4000
DISTURBANCES = 5000
PROCESSES = 6
MANIFEST = "manifest.json"
WORK_SECONDS = 0.01
"""Average duration of the work in a round."""
SHORTER = 120.0
"""Factor by which the times of locks are shorter: a lock expires after half a second."""


@dataclasses.dataclass(frozen=True)
class Race:
    """The outcome of a race.

    `rounds` ended with a manifest, `doubles` of them after another process had ended the same one;
    in those that `stopped`, a process had lost the lock and wrote nothing.
    """

    rounds: int
    doubles: int
    stopped: int
    disturbances: Counter[str]
    waits: list[float]
    seconds: float

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.disturbances.items()))
        return (
            f"rounds: {self.rounds}; double holders: {self.doubles}; late holders that stopped: "
            f"{self.stopped}; disturbed: {kinds or 'none'}; wait for the lock: median "
            f"{statistics.median(self.waits):.2f} s, longest {max(self.waits):.2f} s; "
            f"{self.seconds:.0f} s"
        )


def _shorten() -> None:
    lock.RENEWAL_SECONDS /= SHORTER
    lock.EXPIRY_SECONDS /= SHORTER
    lock._LOOK_SECONDS = lock._REMOTE_LOOK_SECONDS = 0.002
    lock._LOG.disabled = True


def _contend(store: Store, place: str, log: str, seed: int) -> None:
    """Runs rounds in one process of the race, and logs the outcome of each on a line."""
    _shorten()
    if place:
        processes._place = lambda: place
    moments = random.Random(seed)
    with open(log, "ab", buffering=0) as file:

        def note(*what: object) -> None:
            file.write(f"{json.dumps(what)}\n".encode())

        while True:
            asked = time.monotonic()
            try:
                with lock.locked(store, lock.DATASET_LOCK, wait=3600) as locked:
                    waited = time.monotonic() - asked
                    last = json.loads(locked.read(MANIFEST))
                    time.sleep(moments.uniform(0, 2 * WORK_SECONDS))
                    locked.write(MANIFEST, json.dumps(last + 1).encode(), durable=True)
                note("round", last + 1, waited)
            except JobError:
                note("stopped")
            # Without a pause, the last holder would take the lock again while the others sleep.
            time.sleep(moments.uniform(0, 2 * WORK_SECONDS))


def race(store: Store, logs: Path, *, rounds: int = 0, disturbances: int = 0) -> Race:
    """Lets processes race for the lock of an empty folder, for rounds or disturbances."""
    store.write(MANIFEST, b"0")
    context = multiprocessing.get_context("fork")
    moments, kinds = random.Random(0), Counter[str]()
    started = 0

    def start() -> multiprocessing.process.BaseProcess:
        nonlocal started
        started += 1
        machine = f"{started:012x}" if disturbances else ""
        log = str(logs / f"{started}.jsonl")
        process = context.Process(target=_contend, args=(store, machine, log, started))
        process.start()
        return process

    begun = time.monotonic()
    running = [start() for _ in range(PROCESSES)]
    asleep: dict[int, float] = {}
    try:
        while disturbances and kinds.total() < disturbances:
            time.sleep(moments.expovariate(1 / 0.03))
            now = time.monotonic()
            for at in [at for at, until in asleep.items() if until <= now]:
                del asleep[at]
                os.kill(running[at].pid, signal.SIGCONT)
            at = moments.randrange(PROCESSES)
            # A race needs at least two processes that are awake.
            if at in asleep or len(asleep) >= PROCESSES - 2:
                continue
            if moments.random() < 0.3:
                kinds["killed"] += 1
                running[at].kill()
                running[at].join()
                running[at] = start()
            else:
                kinds["suspended"] += 1
                os.kill(running[at].pid, signal.SIGSTOP)
                expiry = lock.EXPIRY_SECONDS / SHORTER
                asleep[at] = now + moments.uniform(0, 2 * expiry) * moments.choice((0.1, 2))
        while not disturbances and json.loads(store.read(MANIFEST)) < rounds:
            time.sleep(0.05)
    finally:
        for process in running:
            process.kill()
            process.join()
    seconds = time.monotonic() - begun
    notes = [json.loads(line) for log in logs.iterdir() for line in log.read_bytes().splitlines()]
    completed = [note for note in notes if note[0] == "round"]
    numbers = Counter(note[1] for note in completed)
    return Race(
        rounds=len(completed),
        doubles=len(completed) - len(numbers),
        stopped=len(notes) - len(completed),
        disturbances=kinds,
        waits=[note[2] for note in completed],
        seconds=seconds,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("races", nargs="*", metavar="RACE", help="fair, torture; both by default")
    parser.add_argument("--rounds", type=int, default=FAIR_ROUNDS)
    parser.add_argument("--disturbances", type=int, default=DISTURBANCES)
    parser.add_argument("--remote", action="store_true")
    arguments = parser.parse_args()
    doubles = 0
    for name in arguments.races or ("fair", "torture"):
        options = {"rounds": arguments.rounds}
        if name == "torture":
            options = {"disturbances": arguments.disturbances}
        with (
            object_store() if arguments.remote else contextlib.nullcontext(),
            tempfile.TemporaryDirectory() as folder,
            tempfile.TemporaryDirectory() as logs,
        ):
            store = Store.at(f"gs://{BUCKET}/race" if arguments.remote else folder)
            done = race(store, Path(logs), **options)
        print(f"{name}, {'object store' if arguments.remote else 'local'}: {done}", flush=True)
        doubles += done.doubles
    return int(doubles > 0)


if __name__ == "__main__":
    sys.exit(main())
