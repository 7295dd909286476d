"""Faults around a whole job: of an object store, and of the cache of compiled kernels.

Faults of the store must not change the manifest. Code of a faulty cache must not run.
"""

import dataclasses
import functools
import os
import pickle
import shutil
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from broken_network import FaultProxy
from fault_hooks import LOADS_KERNELS
from fault_lab import FLAGS, MODEL, Lab, Outcome, contents, faults_of
from fault_states import DAMAGES
from gcs import BUCKET, gcs_server

from transforms.grabcut import cache, prepare

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


class _Planted:
    """An object that starts a process, which the guard notes, when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("id",)


def _give_away(folder: Path, mode: int = 0o755) -> None:
    folder.chmod(mode)
    os.chown(folder, 4242, -1)


def _link(kernels: Path) -> Path:
    """Puts a link to the cache into a folder that all may write to."""
    (shared := kernels.parents[1] / "shared").mkdir()
    (link := shared / "link").symlink_to(kernels.parent)
    shared.chmod(0o777)
    return link


PLANTED: dict[str, Callable[[Path], Path | None]] = {
    "folder writable by all": lambda kernels: kernels.chmod(0o777),
    "below a folder writable by its group": lambda kernels: kernels.parent.chmod(0o770),
    "sticky": lambda kernels: kernels.chmod(0o1777),
    "behind a link that others may replace": _link,
    "relative path": lambda kernels: Path(os.path.relpath(kernels.parent)),
}
"""For each name, a function that makes the folder of planted kernels one that others can change. It
returns None, or another value of IN9_CACHE_DIR than the folder above that one."""
FOREIGN: dict[str, Callable[[Path], Path | None]] = {
    "folder of somebody else": _give_away,
    "below a folder of somebody else": lambda kernels: _give_away(kernels.parent),
    "below a sticky folder of somebody else": lambda kernels: _give_away(kernels.parent, 0o1777),
}
"""More of them, which only root can make."""


@dataclasses.dataclass(frozen=True)
class Cache:
    """A run that finds a foreign or damaged cache of kernels.

    Attributes:
      name: name of the fault.
      harm: harms the folder of kernels; returns like the functions of `PLANTED`.
      is_planted: whether the kernels are planted, and must be neither run nor changed. Otherwise
        they are damaged, and must be compiled anew.
    """

    name: str
    harm: Callable[[Path], Path | None]
    is_planted: bool
    kind: str = "planted caches: run"

    def __call__(self, lab: Lab) -> list[Outcome]:
        """Runs the job once; returns one outcome."""
        prepare()
        with lab.trial() as trial:
            kernels = trial / "cache" / cache.code_folder().name
            shutil.copytree(cache.Locator.folder, kernels)
            if self.is_planted:
                for path in kernels.glob("*.nbi"):
                    path.write_bytes(pickle.dumps(_Planted()))
                cache.complete(kernels)
                # No folder is left to compile in, so that the trial does not take half a minute.
                (trial / "tmp").chmod(0o777)
            place = self.harm(kernels) or kernels.parent
            before = contents(kernels)
            command = ("run", "--input", str(lab.input), "--output", str(trial / "out"), *FLAGS)
            command += ("--models", MODEL, "--segmenter", "grabcut")
            variables = {"IN9_CACHE_DIR": str(place), LOADS_KERNELS: "1"}
            ended = lab.run(trial, *command, variables=variables, seconds=SECONDS)
            faults = faults_of(ended)
            if ended.code:
                faults.append("the cache stops the run")
            if str(place) not in ended.stderr:
                faults.append("no warning names the folder")
            if self.is_planted and contents(kernels) != before:
                faults.append("the folder has been changed")
            if not self.is_planted and not cache.is_complete(kernels):
                faults.append("not healed")
        return [Outcome(self.kind, self.name, tuple(faults), ended)]


def _damage(kernels: Path, harm: Callable[[bytes], bytes]) -> None:
    path = max(kernels.glob("*.nbc"))
    path.write_bytes(harm(path.read_bytes()))


def caches(lab: Lab, states: Sequence[str]) -> Iterator[Cache]:
    """Yields a trial for each planted and each damaged cache."""
    for name, harm in {**PLANTED, **(FOREIGN if os.geteuid() == 0 else {})}.items():
        yield Cache(name, harm, is_planted=True)
    for name, change in DAMAGES.items():
        if name != "pages":  # Only Parquet has them.
            harm = functools.partial(_damage, harm=change)
            yield Cache(f"damaged, {name}", harm, is_planted=False)


FAMILIES = (storage, caches)
