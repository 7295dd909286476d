"""What a source of models is: one kind of `--models` entry."""

from __future__ import annotations

import abc
import difflib
import importlib.util
import os
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch

from pipeline.errors import UsageError
from pipeline.models.known import Origin
from pipeline.models.loaded import LoadedModel
from pipeline.storage.files import absolute, files_of
from transforms.taxonomy import Taxonomy


class Source(abc.ABC):
    """One kind of `--models` entry. Libraries of its own are imported when they are used.

    Attributes:
      form: how its entries look, for help.
      text: what they are, in a line.
      extra: of setup.py, which installs its libraries; None if it needs no more than we do.
      libraries: name of each library to import, and of the distribution that has it.
    """

    form: ClassVar[str]
    text: ClassVar[str]
    extra: ClassVar[str | None] = None
    libraries: ClassVar[Mapping[str, str]] = {}

    @abc.abstractmethod
    def check(self, spec: str) -> None:
        """Raises UsageError for an entry that means nothing here. Loads no weights."""

    @abc.abstractmethod
    def load(self, spec: str, taxonomy: Taxonomy) -> LoadedModel:
        """Loads a checked entry.

        Args:
          spec: the entry.
          taxonomy: that its outputs are to fit; sources that know their classes check them.

        Raises:
          JobError: the weights cannot be fetched, read, or do not fit.
        """

    @abc.abstractmethod
    def build(self, name: str, recipe: Mapping[str, Any]) -> torch.nn.Module:
        """The module of a loaded model before it has weights.

        Args:
          name: of the `LoadedModel`.
          recipe: its.
        """

    def origin(self, spec: str, model: LoadedModel) -> Origin | None:
        """What the weights of a loaded entry came from; None where nothing tells that they are
        still the same."""
        path = self.path(spec)
        if not path:
            return None
        return Origin("folder" if files_of(path).is_folder(path) else "file", absolute(path))

    def path(self, spec: str) -> str:
        """Returns the file, or the local folder, that an entry names; empty for other entries."""
        return ""

    def outputs(self, spec: str, taxonomy: Taxonomy) -> int | None:
        """Size of the head of a checked entry where that can be told without weights, else None.

        Raises:
          ValueError: its head cannot be made for these classes.
        """
        return None

    def full_name(self, spec: str) -> str:
        """The name that results will have for an entry; the entry itself if it means nothing."""
        return spec

    def needs_hub(self, spec: str) -> bool:
        """Whether its weights come from a machine far away."""
        return False

    def catalogue(self) -> list[str]:
        """Lists the entries with ImageNet weights, which wildcards match; empty without a list."""
        return []

    @property
    def has_catalogue(self) -> bool:
        """Whether wildcards may stand for its entries. It needs no library, unlike the list."""
        return type(self).catalogue is not Source.catalogue

    def missing(self) -> list[str]:
        """Distributions of the libraries that are not installed."""
        return [
            distribution
            for library, distribution in self.libraries.items()
            if not is_installed(library)
        ]

    def check_installed(self, spec: str) -> None:
        """Raises UsageError if a library is missing, with the command that installs it."""
        missing = self.missing()
        if missing:
            raise UsageError(
                f"--models {spec} needs {' and '.join(missing)}: pip install {' '.join(missing)} "
                f"(or our extra [{self.extra}])"
            )


def is_installed(library: str) -> bool:
    """Whether a library can be imported, without doing so."""
    try:
        return importlib.util.find_spec(library) is not None
    except (ImportError, ValueError):
        return False


def closest(wanted: str, known: Iterable[str]) -> str:
    """The end of an error: names close to the one that is none, or nothing."""
    close = difflib.get_close_matches(wanted, list(dict.fromkeys(known)), n=3)
    return f"; close to it: {', '.join(close)}" if close else ""


def downloaded(address: str) -> Origin:
    """The file that torch's own hub keeps of an address."""
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    return Origin("file", os.path.join(folder, os.path.basename(address)))
