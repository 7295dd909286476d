"""Faults of an object store around a whole job, which must not change the manifest."""

import dataclasses
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence

from broken_network import FaultProxy
from fault_lab import FLAGS, MODEL, Lab, Outcome, faults_of
from gcs import BUCKET, gcs_server

SETS = {
    "refused now and then": (0.2, ("503", "429")),
    "connections reset": (0.1, ("reset",)),
    "slow": (0.3, ("slow",)),
    "answers cut short": (0.1, ("truncated",)),
}
"""For each name, the share of requests that are harmed, and the faults (`broken_network`)."""
SECONDS = 600
"""More time than for other faults, because pauses between retries grow."""
AT_LEAST = 10
"""Number of requests that must have been harmed for a trial to show anything."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run whose input, output and versions are in a store that fails.

    Attributes:
      name: name of the set of faults.
      share: share of the requests that are harmed.
      faults: faults that are injected (`broken_network`).
    """

    name: str
    share: float
    faults: tuple[str, ...]
    kind: str = "storage faults: run and publish over gs://"

    def __call__(self, lab: Lab) -> list[Outcome]:
        """Runs the job once; returns one outcome."""
        quiet = (lab.state("finished") / "manifest.json").read_bytes()
        root = f"gs://{BUCKET}"
        with lab.trial() as trial, gcs_server() as url, FaultProxy(url) as proxy:
            for path in sorted(lab.input.rglob("*")):
                if path.is_file():
                    _put(url, f"input/{path.relative_to(lab.input)}", path.read_bytes())
            command = ("run", "--input", f"{root}/input", "--output", f"{root}/out", *FLAGS)
            command += ("--models", MODEL, "--publish", f"{root}/published")
            with proxy.harming(self.share, self.faults):
                store = {"STORAGE_EMULATOR_HOST": proxy.url}
                ended = lab.run(trial, *command, variables=store, seconds=SECONDS)
            faults = faults_of(ended)
            if ended.code:
                faults.append("one run does not do")
            elif _get(url, "out/manifest.json") != quiet:
                faults.append("another manifest than without faults")
            if (harmed := sum(proxy.harmed.values())) < AT_LEAST:
                faults.append(f"only {harmed} requests were harmed")
        return [Outcome(self.kind, self.name, tuple(faults), ended)]


def _put(url: str, name: str, data: bytes) -> None:
    where = f"{url}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={urllib.parse.quote(name)}"
    urllib.request.urlopen(urllib.request.Request(where, data=data)).close()


def _get(url: str, name: str) -> bytes:
    where = f"{url}/storage/v1/b/{BUCKET}/o/{urllib.parse.quote(name, safe='')}?alt=media"
    with urllib.request.urlopen(where) as answer:
        return bytes(answer.read())


def storage(lab: Lab, states: Sequence[str]) -> Iterator[Storage]:
    """Yields a trial for each set of faults."""
    for name, (share, faults) in SETS.items():
        yield Storage(name, share, faults)


FAMILIES = (storage,)
