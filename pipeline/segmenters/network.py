"""Networks as segmenters: ONNX graphs in files, `--segmenter onnx:FILE`.

Salient-object networks take a picture; promptable ones its box, too, which the name of an
input tells. Both give a map of probabilities, or of logits. ONNX says nothing of mean and std,
so `FILE.json` beside the graph, or metadata properties of the graph, may: the attributes of
`Settings`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import JobError, UsageError
from pipeline.onnx_settings import read_settings, settings_file
from pipeline.segmenters.graph import Graph, GraphError
from pipeline.storage.files import absolute, files_of
from transforms.annotations import Box
from transforms.geometry import Pixels
from transforms.segmentation import Segmentation, Segmenter

PREFIX = "onnx:"
METHOD = "onnx"
VERSION = 1
"""Raised by hand when the same network would give other masks."""

_SIDE = 320
"""Side in pixels that a graph of open size is fed, unless told otherwise."""
_SLACK = 1e-3
"""How far beyond [0, 1] rounding may carry a probability."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a network is fed, and what its answer means.

    Attributes:
      mean, std: of the channels of pixels in [0, 1], R, G, B.
      input_size: side in pixels that pictures are resized to.
      activation: `none` if it gives probabilities, `sigmoid` if logits.
      threshold: smallest probability of the foreground.
      box: coordinates of a promptable network's boxes: `pixels` of its input, or `unit`, from
        0 to 1.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    input_size: int = _SIDE
    activation: str = "none"
    threshold: float = 0.5
    box: str = "pixels"

    @classmethod
    def of(cls, given: Mapping[str, Any], where: str) -> Settings:
        """Checks settings that were written down.

        Raises:
          UsageError: an unknown name, or a value that is not possible.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(given) - known)
        if unknown:
            raise UsageError(f"{where}: unknown {unknown[0]!r}; known: {', '.join(sorted(known))}")
        values: dict[str, Any] = dict(given)
        for name in ("mean", "std"):
            if name in values:
                values[name] = _three_numbers(values[name], name, where)
        settings = cls(**values)
        if not all(value > 0 for value in settings.std):
            raise UsageError(f"{where}: std must be above 0")
        if type(settings.input_size) is not int or not 16 <= settings.input_size <= 4096:
            raise UsageError(f"{where}: input_size must be between 16 and 4096")
        if settings.activation not in ("none", "sigmoid"):
            raise UsageError(f"{where}: activation must be none or sigmoid")
        if settings.box not in ("pixels", "unit"):
            raise UsageError(f"{where}: box must be pixels or unit")
        if not (type(settings.threshold) in (int, float) and 0 < settings.threshold < 1):
            raise UsageError(f"{where}: threshold must be between 0 and 1")
        return settings


def _three_numbers(value: Any, name: str, where: str) -> tuple[float, ...]:
    if not (
        isinstance(value, list)
        and len(value) == 3
        and all(type(v) in (int, float) and math.isfinite(v) for v in value)
    ):
        raise UsageError(f"{where}: {name} must be a list of three numbers")
    return tuple(float(v) for v in value)


def read_network(spec: str) -> tuple[str, tuple[str, ...], str]:
    """Looks at a network before a job.

    Args:
      spec: `onnx:FILE`.

    Returns:
      Its name in the configuration, what decides its masks (`name=value` each, the SHA-256 of
      the graph among them), and the file's absolute path.

    Raises:
      UsageError: there is no such file, onnxruntime is missing, or it is no network that
        segments.
    """
    path = absolute(spec.removeprefix(PREFIX))
    try:
        data = files_of(path).read(path)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UsageError(f"--segmenter {spec}: {path} cannot be read: {error.strerror}") from error
    try:
        graph = Graph(data)
        side = graph.side
        graph.run(np.zeros((side or _SIDE,) * 2 + (3,), np.float32), np.zeros(4, np.float32))
    except ImportError as error:
        raise UsageError(
            f"--segmenter {spec} needs onnxruntime: pip install 'imagenet9-pipeline[onnx]'"
        ) from error
    except GraphError as error:
        raise UsageError(f"--segmenter {spec}: {error}") from error
    settings = _settings(path, graph)
    if side is not None:
        settings = dataclasses.replace(settings, input_size=side)
    values: dict[str, Any] = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "prompt": "box" if graph.takes_box else "none",
        **dataclasses.asdict(settings),
    }
    if not graph.takes_box:
        del values["box"]
    parameters = tuple(f"{name}={_text(values[name])}" for name in sorted(values))
    return PREFIX + os.path.basename(path), parameters, path


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _settings(path: str, graph: Graph) -> Settings:
    """From the file beside a graph, else from its metadata."""
    names = {field.name for field in dataclasses.fields(Settings)}
    try:
        given, where = read_settings(
            path, graph.properties, names=names, texts=("activation", "box")
        )
        if not isinstance(given, dict):
            raise UsageError(f'{where} must hold an object, such as {{"threshold": 0.4}}')
        return Settings.of(given, where)
    except ValueError as error:
        raise UsageError(f"the settings of {path} cannot be read: {error}") from error


def _parsed(parameters: Sequence[str]) -> dict[str, Any]:
    """The inverse of `read_network`'s `name=value`."""
    values: dict[str, Any] = {}
    for parameter in parameters:
        name, _, text = parameter.partition("=")
        try:
            values[name] = json.loads(text) if name != "sha256" else text
        except ValueError:
            values[name] = text
    return values


def network_segmenter(name: str, parameters: Sequence[str], path: str) -> Segmenter:
    """A network as a segmenter.

    Args:
      name, parameters: of `read_network`.
      path: where it lies; used when the first picture comes.

    Raises:
      ValueError: the parameters do not say which network it is.
    """
    values = _parsed(parameters)
    if "sha256" not in values:
        raise ValueError(f"--segmenter {name}: nothing says which network that is")
    return Segmenter(
        name=name,
        method=METHOD,
        version=VERSION,
        parameters=values,
        segment=_Network(path, tuple(parameters)),
    )


@dataclasses.dataclass(frozen=True)
class _Network:
    """The function of a network's segmenter; the graph is loaded once in each process."""

    path: str
    parameters: tuple[str, ...]

    def __call__(self, image: Pixels, box: Box, seed: int) -> Segmentation:
        values = _parsed(self.parameters)
        graph = _load(self.path, values.pop("sha256"))
        values.pop("prompt")
        settings = Settings.of(values, self.path)
        height, width = image.shape[:2]
        side = settings.input_size
        resized = cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR)
        mean, std = np.array(settings.mean, np.float32), np.array(settings.std, np.float32)
        pixels = (resized.astype(np.float32) / 255 - mean) / std
        scale = (
            np.array([side / width, side / height] * 2)
            if settings.box == "pixels"
            else 1 / np.array([width, height] * 2)
        )
        try:
            found = graph.run(pixels.astype(np.float32), (np.array(box) * scale).astype(np.float32))
        except GraphError as error:
            raise JobError(f"{self.path}: {error}") from error
        probabilities = self._probabilities(found, settings)
        fitted = cv2.resize(probabilities, (width, height), interpolation=cv2.INTER_LINEAR)
        mask = np.zeros((height, width), np.bool_)
        # As GrabCut does, which takes all that lies outside for background.
        inside = np.s_[box.ymin : box.ymax + 1, box.xmin : box.xmax + 1]
        mask[inside] = fitted[inside] >= settings.threshold
        return Segmentation(mask)

    def _probabilities(self, found: NDArray[np.float32], settings: Settings) -> NDArray[np.float32]:
        if not np.isfinite(found).all():
            raise JobError(f"{self.path} gives values that are no numbers")
        if settings.activation == "sigmoid":
            return (1 / (1 + np.exp(-found.astype(np.float64)))).astype(np.float32)
        low, high = float(found.min()), float(found.max())
        if low < -_SLACK or high > 1 + _SLACK:
            raise JobError(
                f"{self.path} gives values from {low:.3g} to {high:.3g}, which are no "
                f'probabilities; if they are logits, write {{"activation": "sigmoid"}} into '
                f"{settings_file(self.path)}"
            )
        return found


@functools.lru_cache(maxsize=2)
def _load(path: str, sha256: str) -> Graph:
    """Loads a graph once for each process.

    Raises:
      JobError: it is not the one that the job was started with.
      OSError: it cannot be read.
    """
    data = files_of(path).read(path)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise JobError(f"{path} has changed since the job was started. Run it again")
    try:
        return Graph(data)
    except GraphError as error:
        raise JobError(f"{path}: {error}") from error
