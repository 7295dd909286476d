"""The interface of a model source, which handles one kind of `--models` entry."""

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
    """One kind of `--models` entry. It imports its libraries only when it uses them.

    Attributes:
      form: syntax of the entries, for help.
      text: one-line description.
      extra: the extra in setup.py that installs its libraries; None if it needs no extra.
      libraries: import name of each library to the distribution that provides it.
    """

    form: ClassVar[str]
    text: ClassVar[str]
    extra: ClassVar[str | None] = None
    libraries: ClassVar[Mapping[str, str]] = {}

    @abc.abstractmethod
    def check(self, spec: str) -> None:
        """Raises UsageError for an invalid entry. Loads no weights."""

    @abc.abstractmethod
    def load(self, spec: str, taxonomy: Taxonomy) -> LoadedModel:
        """Loads a checked entry.

        Args:
          spec: the entry.
          taxonomy: classes that the outputs must fit; sources that know their models' classes
            check them.

        Raises:
          JobError: the weights cannot be fetched or read, or do not fit.
        """

    @abc.abstractmethod
    def build(self, name: str, recipe: Mapping[str, Any]) -> torch.nn.Module:
        """Builds the module of a loaded model, without its weights.

        Args:
          name: name of the `LoadedModel`.
          recipe: recipe of the `LoadedModel`.
        """

    def origin(self, spec: str, model: LoadedModel) -> Origin | None:
        """Returns the origin of a loaded entry's weights; None if nothing would tell that they
        have changed."""
        path = self.path(spec)
        if not path:
            return None
        return Origin("folder" if files_of(path).is_folder(path) else "file", absolute(path))

    def path(self, spec: str) -> str:
        """Returns the file, or the local folder, that an entry names; empty for other entries."""
        return ""

    def outputs(self, spec: str, taxonomy: Taxonomy) -> int | None:
        """Returns the size of a checked entry's head; None if only its weights tell.

        Raises:
          ValueError: no head can be built for these classes.
        """
        return None

    def full_name(self, spec: str) -> str:
        """Returns the name of an entry in results; the entry itself if it is unknown."""
        return spec

    def needs_hub(self, spec: str) -> bool:
        """Returns whether the weights of an entry are downloaded from a hub."""
        return False

    def catalogue(self) -> list[str]:
        """Lists the entries with ImageNet weights, which wildcards match; empty without a list."""
        return []

    @property
    def has_catalogue(self) -> bool:
        """Whether wildcards can match its entries. Unlike `catalogue`, it imports no library."""
        return type(self).catalogue is not Source.catalogue

    def missing(self) -> list[str]:
        """Lists the distributions of the libraries that are not installed."""
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
                f"(or the extra [{self.extra}])"
            )


def is_installed(library: str) -> bool:
    """Returns whether a library can be imported; does not import it."""
    try:
        return importlib.util.find_spec(library) is not None
    except (ImportError, ValueError):
        return False


def closest(wanted: str, known: Iterable[str]) -> str:
    """Returns the end of an error message: known names close to the wanted one, if any."""
    close = difflib.get_close_matches(wanted, list(dict.fromkeys(known)), n=3)
    return f"; close to it: {', '.join(close)}" if close else ""


def downloaded(url: str) -> Origin:
    """Returns the file in torch.hub's cache that was downloaded from a URL."""
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    return Origin("file", os.path.join(folder, os.path.basename(url)))
