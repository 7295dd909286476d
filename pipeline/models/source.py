"""The interface of a model source, which handles one kind of `--models` entry."""

from __future__ import annotations

import abc
import contextlib
import difflib
import importlib.util
import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar

import torch

from pipeline.errors import UsageError
from pipeline.models.known import HUB_SECONDS, Origin
from pipeline.models.loaded import LoadedModel, Recipe
from pipeline.storage.files import absolute, files_of
from transforms.taxonomy import Taxonomy


class Source(abc.ABC):
    """One kind of `--models` entry. A source imports its libraries only when it uses them.

    Attributes:
      form: syntax of the entries, for help.
      text: one-line description of the models, for help.
      extra: the extra in setup.py that installs the libraries; None if they need no extra.
      libraries: maps the import name of each library to the distribution that provides it.
    """

    form: ClassVar[str]
    text: ClassVar[str]
    extra: ClassVar[str | None] = None
    libraries: ClassVar[Mapping[str, str]] = {}

    @abc.abstractmethod
    def check(self, spec: str) -> None:
        """Raises UsageError for an invalid entry, without loading weights."""

    @abc.abstractmethod
    def load(self, spec: str, taxonomy: Taxonomy) -> LoadedModel:
        """Loads a checked entry.

        Args:
          spec: the entry.
          taxonomy: classes that the outputs must fit. A source that knows the names of its models'
            classes compares them with the taxonomy's.

        Raises:
          JobError: the weights cannot be fetched or read, or do not fit the architecture.
        """

    @abc.abstractmethod
    def build(self, name: str, recipe: Recipe) -> torch.nn.Module:
        """Builds the module of a loaded model, without its weights.

        Args:
          name: name of the `LoadedModel`.
          recipe: recipe of the `LoadedModel`.
        """

    def origin(self, spec: str, model: LoadedModel) -> Origin | None:
        """Returns the origin of a loaded entry's weights; None if a change of the weights could not
        be detected."""
        path = self.path(spec)
        if not path:
            return None
        return Origin("folder" if files_of(path).is_folder(path) else "file", absolute(path))

    def path(self, spec: str) -> str:
        """Returns the path of the file or local folder that an entry names; empty if none."""
        return ""

    def outputs(self, spec: str, taxonomy: Taxonomy) -> int | None:
        """Returns the number of outputs of a checked entry; None if only loading the entry tells
        it.

        Raises:
          ValueError: the source cannot build outputs for the taxonomy's classes.
        """
        return None

    def full_name(self, spec: str) -> str:
        """Returns the name of an entry's model in results; the entry itself if it is unknown."""
        return spec

    def needs_hub(self, spec: str) -> bool:
        """Returns whether the weights of an entry are downloaded from a hub."""
        return False

    def catalogue(self) -> list[str]:
        """Lists the entries with weights for ImageNet, which wildcards match; empty if the source
        has no list of its models."""
        return []

    @property
    def has_catalogue(self) -> bool:
        """Whether wildcards can match entries of this source. Imports no library to find out."""
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
    """Returns the end of an error message, with up to three known names that resemble the wanted
    name; empty if no name does."""
    close = difflib.get_close_matches(wanted, list(dict.fromkeys(known)), n=3)
    return f"; close to it: {', '.join(close)}" if close else ""


def answers(url: str) -> bool:
    """Returns whether a server answers within `HUB_SECONDS`, with whatever answer.

    It is asked in a thread, because no timeout applies to the look-up of its name.
    """
    found = threading.Event()

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=HUB_SECONDS).close()
        except urllib.error.HTTPError:
            pass
        except Exception as error:  # Networks fail in many ways.
            # The libraries that fetch weights may trust a certificate that this request does not.
            if not isinstance(getattr(error, "reason", None), ssl.SSLError):
                return
        found.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    return found.is_set()


@contextlib.contextmanager
def offline_without_answer() -> Iterator[None]:
    """Keeps the libraries of the Hugging Face hub from asking it in the block if it does not
    answer: they would repeat each question for half a minute before they use their cache."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not answers(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def refuse_without_answer(url: str) -> None:
    """Raises ConnectionError if torch.hub would have to download a file whose server does not
    answer, for which it would wait without a limit."""
    if not os.path.exists(downloaded(url).name) and not answers(url):
        raise ConnectionError(f"no answer from {url}")


def downloaded(url: str) -> Origin:
    """Returns the origin of weights that torch.hub downloads.

    Args:
      url: where the weights come from, or only the name of their file.
    """
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    return Origin("file", os.path.join(folder, os.path.basename(url)))
