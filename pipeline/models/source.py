"""The interface of a model source, and of the model that it loads.

A source handles one kind of `--models` entry. The model is the input of evaluation, attack and
saliency.
"""

import abc
import contextlib
import dataclasses
import difflib
import functools
import hashlib
import importlib.util
import os
import ssl
import textwrap
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch

from pipeline.errors import JobError, UsageError, one_line, text_of
from pipeline.models.answers import GivenAnswers
from pipeline.models.identity import HUB_SECONDS, ModelIdentity, Origin, Preprocessing, own_settings
from pipeline.runtime.custom_functions import call_own
from pipeline.storage.files import absolute, files_of
from pipeline.storage.store import Store
from transforms.hashing import text_bytes
from transforms.scoring import Labels, labels_of_outputs
from transforms.taxonomy import Taxonomy

Recipe = Mapping[str, Any]
"""JSON-serialisable values from which a source rebuilds a module without its weights."""


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedModel(ModelIdentity):
    """A model in memory, with the attributes of `ModelIdentity` and these.

    Attributes:
      module: maps normalised (n, 3, S, S) float32 pictures to (n, outputs) logits; in
        evaluation mode, in float32, on the CPU until a `Predictor` moves it to its device.
      recipe: what `Source.build` needs besides the name.
      is_shared: whether the code that made the module may still hold it.
      given: its answers, if a file has them; the module then cannot be run.
    """

    module: torch.nn.Module
    recipe: Recipe = dataclasses.field(default_factory=dict)
    is_shared: bool = False
    given: GivenAnswers | None = None

    @property
    def identity(self) -> ModelIdentity:
        """Identity of the model, without its module."""
        fields = dataclasses.fields(ModelIdentity)
        return ModelIdentity(**{field.name: getattr(self, field.name) for field in fields})


def loaded_model(
    *,
    name: str,
    architecture: str,
    weights: str,
    module: torch.nn.Module,
    preprocessing: Preprocessing,
    num_outputs: int,
    recipe: Recipe | None = None,
    weights_sha256: str | None = None,
    features: str = "",
) -> LoadedModel:
    """Makes a `LoadedModel` from a module with loaded weights, and prepares it for evaluation.

    The arguments are the attributes of `LoadedModel`. `weights_sha256` defaults to `state_hash` of
    the module's state dict.
    """
    module.eval().requires_grad_(False)
    return LoadedModel(
        name=name,
        architecture=architecture,
        weights=weights,
        weights_sha256=weights_sha256 or state_hash(module.state_dict()),
        module=module,
        preprocessing=preprocessing,
        num_outputs=num_outputs,
        recipe=recipe or {},
        features=features,
    )


def measured_model(
    settings: Mapping[str, object],
    *,
    where: str,
    taxonomy: Taxonomy,
    name: str,
    architecture: str,
    weights: str,
    module: torch.nn.Module,
    recipe: Recipe | None = None,
    weights_sha256: str | None = None,
    features: str = "",
) -> LoadedModel:
    """Makes a `LoadedModel` from a module.

    Forward passes tell its number of outputs, and whether it takes pictures of other sizes.
    `settings` are those of `Preprocessing.from_settings`; for a module of timm, its own are the
    defaults. `where` is their source, for the error message, and `taxonomy` that of the outputs.
    Other arguments are those of `loaded_model`. Raises JobError if a setting is wrong, or for the
    reasons of `count_outputs`.
    """
    parse = functools.partial(Preprocessing.from_settings, where=where, taxonomy=taxonomy)
    # Parsed twice: the size is checked before a forward pass, which tells the number of outputs,
    # which decides the default mean and std.
    side = parse({**own_settings(module, 0, taxonomy), **settings}, num_outputs=0).input_size
    num_outputs = count_outputs(name, module.eval(), side, "features" if features else "logits")
    # Features are no superclasses, even if there are nine.
    classes = 0 if features else num_outputs
    settings = {**own_settings(module, classes, taxonomy), **settings}
    if "fixed_size" not in settings:
        settings = {**settings, "fixed_size": not takes_other_sizes(module, side)}
    return loaded_model(
        name=name,
        architecture=architecture,
        weights=weights,
        module=module,
        preprocessing=parse(settings, num_outputs=classes),
        num_outputs=num_outputs,
        recipe=recipe,
        weights_sha256=weights_sha256,
        features=features,
    )


def state_hash(state: Mapping[str, Any]) -> str:
    """Computes the SHA-256 of a module's state dict, in hexadecimal digits.

    It covers names, dtypes, shapes and values of the module's parameters, of the buffers that are
    stored with it, and of its extra state. Raises JobError if an entry is not a tensor.
    """
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        if not isinstance(value, torch.Tensor):
            raise JobError(f"its state {name!r} is not a tensor ({type(value).__name__})")
        tensor = value.detach().cpu().contiguous()
        digest.update(text_bytes(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0"))
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def module_with(
    name: str, make: Callable[[], torch.nn.Module], state: Mapping[str, torch.Tensor]
) -> torch.nn.Module:
    """Builds a module by `make`, and loads the weights of its state dict."""
    try:
        module = make()
        module.load_state_dict(state)
    except RuntimeError as error:
        # For weights of another architecture, torch lists hundreds of tensors.
        lines = [textwrap.shorten(line, 150) for line in text_of(error).splitlines()[:3]]
        raise JobError(f"{name}: {' '.join(lines)}") from error
    return module


@torch.inference_mode()
def count_outputs(name: str, module: torch.nn.Module, side: int, kind: str = "logits") -> int:
    """Determines the size of a model's head by a forward pass on a picture of `side` pixels.

    `kind` says what its outputs are. Raises JobError if the module fails, or does not map a picture
    to a row of them.
    """
    try:
        outputs = call_own(module, torch.zeros(1, 3, side, side))
    except JobError:
        raise
    except Exception as error:  # A user's forward() can raise anything.
        raise JobError(
            f"{name} fails on a picture of {side} x {side} "
            f"({type(error).__name__}: {one_line(error)})"
        ) from error
    if other := unlike_logits(outputs, 1):
        raise JobError(f"{name} must return real {kind} of shape (pictures, outputs), not {other}")
    return int(outputs.shape[1])


def unlike_logits(outputs: object, pictures: int, num_outputs: int | None = None) -> str:
    """Returns type and shape of what a model returned for some pictures; "" if it is logits.

    Logits are a dense tensor (pictures, num_outputs), or (pictures, any), of any real dtype.
    """
    if not isinstance(outputs, torch.Tensor) or outputs.is_nested or outputs.is_meta:
        return f"{type(outputs).__name__}, and no plain tensor"
    if (
        outputs.layout == torch.strided
        and torch.can_cast(outputs.dtype, torch.float32)
        and (outputs.ndim, *outputs.shape[:1]) == (2, pictures)
        and num_outputs in (None, outputs.shape[1])
    ):
        return ""
    return f"{outputs.type()} of shape {tuple(outputs.shape)}"


@torch.inference_mode()
def takes_other_sizes(module: torch.nn.Module, side: int) -> bool:
    """Tests by a forward pass whether a model also takes pictures whose side is not `side`.

    The other side is half of it, or twice if half would be under 32 pixels.
    """
    # A multiple of 32, because many architectures take no other sides.
    other = side // 2 // 32 * 32 or 2 * side
    try:
        call_own(module, torch.zeros(1, 3, other, other))
    except Exception:  # Each architecture raises its own exception.
        return False
    return True


def check_head(model: LoadedModel, taxonomy: Taxonomy) -> Labels:
    """Returns the superclass of each output, as `labels_of_outputs` does.

    Raises JobError if the number of outputs fits neither the classes nor the superclasses.
    """
    try:
        return labels_of_outputs(model.num_outputs, taxonomy)
    except ValueError as error:
        raise JobError(f"{model.name}: {error}") from error


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
    def load(self, spec: str, taxonomy: Taxonomy, *, encoder: bool = False) -> LoadedModel:
        """Loads a checked entry, whose outputs must fit the classes.

        A source that knows the names of its models' classes compares them with the taxonomy's. With
        `encoder`, the model has no head, and its outputs are the features that a head would get.
        Raises JobError if the weights cannot be fetched or read, or do not fit the architecture.
        """

    @abc.abstractmethod
    def build(self, name: str, recipe: Recipe) -> torch.nn.Module:
        """Builds the module of a `LoadedModel` by its name and recipe, without its weights."""

    def origin(self, spec: str, model: LoadedModel) -> Origin | None:
        """Returns the origin of a loaded entry's weights; None if changes cannot be detected."""
        path = self.path(spec)
        if not path:
            return None
        return Origin("folder" if files_of(path).is_folder(path) else "file", absolute(path))

    def path(self, spec: str) -> str:
        """Returns the path of the file or local folder that an entry names; empty if none."""
        return ""

    def digest(self, spec: str) -> str | None:
        """Returns a hash of the file that holds all of an entry's weights; None without one."""
        path = absolute(self.path(spec))
        info = files_of(path).info(path)
        return (info.md5 or Store.at(path).digest("")) if info else None

    def outputs(self, spec: str, taxonomy: Taxonomy) -> int | None:
        """Returns a checked entry's number of outputs; None if only loading the entry tells it.

        Raises ValueError if the source cannot build outputs for the taxonomy's classes.
        """
        return None

    def full_name(self, spec: str) -> str:
        """Returns an entry's name in results, else itself; raises UsageError if it is not valid."""
        return spec

    def needs_hub(self, spec: str) -> bool:
        """Returns whether the weights of an entry are downloaded from a hub."""
        return False

    def catalogue(self) -> list[str]:
        """Lists the entries with ImageNet weights, which wildcards match; empty without a list."""
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
        if missing := self.missing():
            raise UsageError(
                f"--models {spec} needs {' and '.join(missing)}: pip install {' '.join(missing)} "
                f"(or the extra [{self.extra}])"
            )


def is_installed(library: str) -> bool:
    """Returns whether a library, not a module in a package, can be imported; does not import it."""
    return importlib.util.find_spec(library) is not None


def closest(wanted: str, known: Iterable[str]) -> str:
    """Returns the end of a message: up to three known names like the wanted one; "" if none is."""
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
    """Keeps the Hugging Face hub's libraries from asking it in the block if it does not answer.

    They would repeat each question for half a minute before they use their cache.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not answers(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def refuse_without_answer(url: str) -> None:
    """Raises ConnectionError if torch.hub must download a file whose server does not answer.

    torch.hub would wait for the answer without a limit.
    """
    if not os.path.exists(downloaded(url).name) and not answers(url):
        raise ConnectionError(f"no answer from {url}")


def downloaded(url: str) -> Origin:
    """Returns the origin of weights that torch.hub downloads, by their address or file name."""
    return Origin("file", os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url)))
