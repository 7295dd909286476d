"""Models of the user's own: Python functions, ONNX graphs in files, and answers in files.

A function returns a `torch.nn.Module` (`python:my_models:trained`). A graph is run by onnxruntime
(`onnx:FILE`). Answers come from a model that ran elsewhere (`answers:FILE`).

ONNX does not define how to normalise pictures. `FILE.json` beside the graph, or else the graph's
metadata properties, can set any attribute of `Preprocessing` except `fixed_size`, which the graph
itself tells. The defaults are those of `Preprocessing.from_settings`.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from pipeline.errors import JobError, ModelError, UsageError, one_line
from pipeline.models import answers
from pipeline.models.identity import Origin, Preprocessing
from pipeline.models.source import LoadedModel, Recipe, Source, measured_model
from pipeline.runtime.custom_functions import PREFIX, call_own, import_function
from pipeline.storage.files import files_of
from transforms.limits import load_json
from transforms.taxonomy import Taxonomy


class PythonFunctions(Source):
    """`python:MODULE:FUNCTION`: a function that returns a model.

    The function takes no arguments and returns a `torch.nn.Module`, or (module, dict of
    `Preprocessing` settings). Its weights may come from anywhere, so they have no origin.
    """

    form = "python:MODULE:FUNCTION"
    text = "a function that returns a torch.nn.Module; MODULE is found on PYTHONPATH"

    def check(self, spec: str) -> None:
        _import(spec)

    def load(self, spec: str, taxonomy: Taxonomy, *, encoder: bool = False) -> LoadedModel:
        module, settings = _call(spec)
        model = measured_model(
            settings,
            where=f"{spec}: preprocessing",
            taxonomy=taxonomy,
            name=spec,
            architecture=type(module).__name__,
            weights=spec.removeprefix(PREFIX),
            module=module.float(),
            features=_FEATURES * encoder,
        )
        return dataclasses.replace(model, is_shared=True)

    def build(self, name: str, recipe: Recipe) -> torch.nn.Module:
        # `load` gives each of these models its spec as its name.
        return _call(name)[0].float()


def _import(spec: str) -> Callable[[], Any]:
    """Imports the function that an entry names. Raises UsageError if there is no such function."""
    return import_function(
        spec.removeprefix(PREFIX), f"--models {spec}", f"{PREFIX}my_models:trained"
    )


def _call(spec: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Calls the function that an entry names; returns its module and its `Preprocessing` settings.

    The settings are empty if it returns a module alone. Raises JobError if the function raised an
    error, or returned anything else.
    """
    try:
        result = call_own(_import(spec))
    except (UsageError, JobError):
        raise
    except Exception as error:  # A user's function can raise anything.
        raise JobError(f"{spec} raised {type(error).__name__}: {one_line(error)}") from error
    module, settings = result if isinstance(result, tuple) and len(result) == 2 else (result, {})
    if not isinstance(module, torch.nn.Module) or not isinstance(settings, dict):
        raise JobError(
            f"{spec} must return a torch.nn.Module, or (module, preprocessing as a dict), not "
            f"{type(result).__name__}"
        )
    return module, settings


_FEATURES = "its output"
_PREFIX = "onnx:"
_TYPES: dict[str, type[np.floating[Any]]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}
_CPU = torch.device("cpu")
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclasses.dataclass(frozen=True)
class _Input:
    """The input of a graph.

    Attributes:
      batch: number of pictures that the graph takes at once, None for any number.
      side: side of the pictures in pixels, None for any size.
      channels_last: whether the layout is NHWC.
    """

    name: str
    dtype: type[np.floating[Any]]
    batch: int | None
    side: int | None
    channels_last: bool


class OnnxModule(torch.nn.Module):
    """A module that runs a graph. Its state is the serialised graph, which includes the weights.

    Pictures reach onnxruntime through host memory, even if it runs on a GPU.

    Args:
      probabilities: whether the graph ends in a softmax. The module then returns the logarithm of
        the probabilities as logits.
    """

    def __init__(self, probabilities: bool = False) -> None:
        super().__init__()
        self.probabilities = probabilities
        self._graph = b""
        self._sessions: dict[torch.device, Any] = {}

    def get_extra_state(self) -> torch.Tensor:
        return torch.frombuffer(bytearray(self._graph), dtype=torch.uint8)

    def set_extra_state(self, state: torch.Tensor) -> None:
        self._graph = state.numpy().tobytes()
        self._sessions = {}

    @property
    def input(self) -> _Input:
        """The graph's input; raises JobError if it is not one of square pictures."""
        (argument, *others) = self.session(_CPU).get_inputs()
        if others:
            raise JobError(f"its graph has {len(others) + 1} inputs, not one")
        shape = [axis if isinstance(axis, int) else None for axis in argument.shape]
        if argument.type not in _TYPES or len(shape) != 4 or 3 not in (shape[1], shape[3]):
            raise JobError(
                f"its graph takes {argument.type} of shape {argument.shape}; expected float "
                "pictures of shape (pictures, 3, height, width), or with the channels last"
            )
        channels_last = shape[1] != 3
        height, width = shape[1:3] if channels_last else shape[2:4]
        if height != width:
            raise JobError(f"its pictures are {height} x {width}, not square")
        return _Input(argument.name, _TYPES[argument.type], shape[0], height, channels_last)

    def session(self, device: torch.device) -> Any:
        """Returns onnxruntime's session that runs the graph on a device.

        Raises ModelError if onnxruntime cannot use the device.
        """
        if device not in self._sessions:
            import onnxruntime

            provider = _PROVIDERS[device.type]
            if provider not in onnxruntime.get_available_providers():
                raise ModelError(
                    "the installed onnxruntime has no CUDA: replace it with pip install "
                    "onnxruntime-gpu, or use --device cpu"
                )
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            # Threads that spin while they wait for a batch would take cores from the decoders.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            options.log_severity_level = 3
            settings = {"use_tf32": str(int(torch.backends.cuda.matmul.allow_tf32))}
            settings["device_id"] = str(device.index or 0)
            session = onnxruntime.InferenceSession(
                self._graph,
                options,
                providers=[(provider, settings if device.type == "cuda" else {})],
            )
            # A provider whose libraries are missing or too old is replaced by that of the CPU.
            if (used := session.get_providers()[0]) != provider:
                raise ModelError(
                    f"onnxruntime cannot use this GPU and would run on {used}: install the "
                    "onnxruntime-gpu for this machine's CUDA, or use --device cpu"
                )
            self._sessions[device] = session
        return self._sessions[device]

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        if pictures.requires_grad:
            raise ModelError("ONNX graphs have no gradients; use a model of another kind")
        if torch.is_autocast_enabled(pictures.device.type):
            raise ModelError("ONNX graphs have a fixed precision; leave --precision out")
        session, graph_input = self.session(pictures.device), self.input
        pixels = pictures.cpu().numpy()
        if graph_input.channels_last:
            pixels = pixels.transpose(0, 2, 3, 1)
        pixels = np.ascontiguousarray(pixels, graph_input.dtype)
        batch_size = graph_input.batch or len(pixels)
        outputs = []
        for start in range(0, len(pixels), batch_size):
            batch = pixels[start : start + batch_size]
            padded = np.concatenate([batch, np.repeat(batch[-1:], batch_size - len(batch), axis=0)])
            (output, *_) = session.run(None, {graph_input.name: padded})
            outputs.append(np.asarray(output, np.float32)[: len(batch)])
        logits = torch.from_numpy(np.concatenate(outputs)).to(pictures.device)
        return logits.clamp_min(1e-12).log() if self.probabilities else logits


class OnnxFiles(Source):
    """`onnx:FILE`."""

    form = "onnx:FILE"
    text = "ONNX graphs; mean and std from FILE.json or the graph's metadata"
    extra = "onnx"
    libraries = {"onnxruntime": "onnxruntime", "onnx": "onnx"}  # noqa: RUF012

    def check(self, spec: str) -> None:
        path = spec.removeprefix(_PREFIX)
        if files_of(path).info(path) is None:
            raise UsageError(f"--models {spec}: there is no file {path}")

    def load(self, spec: str, taxonomy: Taxonomy, *, encoder: bool = False) -> LoadedModel:
        path = spec.removeprefix(_PREFIX)
        graph = _read_graph(path)
        module = OnnxModule().eval()
        try:
            module.set_extra_state(torch.frombuffer(bytearray(graph), dtype=torch.uint8))
            side = module.input.side
            metadata = module.session(_CPU).get_modelmeta().custom_metadata_map
        except JobError as error:
            raise JobError(f"{spec}: {error}") from error
        except Exception as error:  # onnxruntime raises a different exception for each fault.
            raise JobError(f"{path} cannot be run by onnxruntime ({one_line(error)})") from error
        settings = _read_settings(path, metadata)
        if side is not None and settings.setdefault("input_size", side) != side:
            raise JobError(f"{spec} takes {side} pixels, not input_size {settings['input_size']}")
        settings["fixed_size"] = side is not None
        model = measured_model(
            settings,
            where=f"{path}.json",
            taxonomy=taxonomy,
            name=spec,
            architecture="onnx",
            weights=os.path.basename(path),
            module=module,
            features=_FEATURES * encoder,
        )
        side = model.preprocessing.input_size
        trial = module(torch.zeros(1, 3, side, side))
        module.probabilities = not encoder and bool(
            (trial >= 0).all() and torch.allclose(trial.sum(), torch.ones(()), atol=1e-3)
        )
        return dataclasses.replace(model, recipe={"probabilities": module.probabilities})

    def origin(self, spec: str, model: LoadedModel) -> Origin | None:
        path = self.path(spec)
        is_here = files_of(path).info(path) is not None  # `in9 models fetch` may have stored it.
        if is_here and _has_weights_elsewhere(files_of(path).read(path, None)):
            # The state of the graph's file does not change with weights in other files.
            return None
        return super().origin(spec, model)

    def build(self, name: str, recipe: Recipe) -> torch.nn.Module:
        return OnnxModule(recipe["probabilities"])

    def path(self, spec: str) -> str:
        return spec.removeprefix(_PREFIX)

    def digest(self, spec: str) -> str | None:
        """Returns a hash of the graph with its weights, of which other files may hold some."""
        try:
            return hashlib.sha256(_read_graph(self.path(spec))).hexdigest()
        except JobError:  # The model's own row will say so.
            return None


class AnswerFiles(Source):
    """`answers:FILE`."""

    form = "answers:FILE"
    text = "answers of a model that ran elsewhere; FILE has the columns of docs/models.md"

    def check(self, spec: str) -> None:
        """Leaves the check to `outputs`, which knows the classes."""

    def outputs(self, spec: str, taxonomy: Taxonomy) -> int:
        return answers.read_answers(spec, taxonomy).num_outputs

    def load(self, spec: str, taxonomy: Taxonomy, *, encoder: bool = False) -> LoadedModel:
        given = answers.read_answers(spec, taxonomy)
        return LoadedModel(
            name=spec,
            architecture="answers",
            weights=os.path.basename(given.path),
            weights_sha256=given.sha256,
            preprocessing=answers.AS_STORED,
            num_outputs=given.num_outputs,
            answers=given.kind,
            module=torch.nn.Module(),
            given=given,
        )

    def build(self, name: str, recipe: Recipe) -> torch.nn.Module:
        raise JobError(f"{name} has no weights that could be stored")

    def path(self, spec: str) -> str:
        return spec.removeprefix(answers.PREFIX)


def _read_graph(path: str) -> bytes:
    """Reads a graph, and includes weights that the exporter stored in separate files."""
    import onnx

    try:
        data = files_of(path).read(path, None)
        if _has_weights_elsewhere(data):
            return bytes(onnx.load(path).SerializeToString(deterministic=True))
        return data
    except Exception as error:  # Broken bytes, a missing weights file, over 2 GB.
        raise JobError(f"{path} cannot be read as an ONNX graph: {type(error).__name__}") from error


def _has_weights_elsewhere(data: bytes) -> bool:
    """Returns whether a graph refers to other files that hold its weights."""
    import onnx
    from onnx.external_data_helper import uses_external_data

    graph = onnx.load_from_string(data).graph
    return any(uses_external_data(tensor) for tensor in graph.initializer)


def _read_settings(path: str, properties: Mapping[str, str]) -> dict[str, Any]:
    """Reads a graph's preprocessing from the JSON file beside it or else its metadata properties.

    Unrelated properties, such as the exporter's, are skipped.
    """
    names = {field.name for field in dataclasses.fields(Preprocessing)} - {"fixed_size"}
    sidecar = f"{path}.json"
    files = files_of(sidecar)
    try:
        if files.info(sidecar) is None:
            return {
                name: text if name in ("interpolation", "crop_mode") else load_json(text)
                for name, text in properties.items()
                if name in names
            }
        settings = load_json(files.read(sidecar))
    except (OSError, ValueError) as error:
        raise JobError(
            f"the preprocessing of {path} cannot be read ({error}); "
            "it must be JSON, such as [0, 0, 0]"
        ) from error
    if not isinstance(settings, dict):
        raise JobError(f'{sidecar} must hold an object, such as {{"mean": [0, 0, 0]}}')
    return settings
