"""An ONNX graph that makes a map out of a picture, and possibly a box."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import in_short

_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


class GraphError(ValueError):
    """A graph that cannot be run, or whose inputs and outputs are not those of a segmenter."""


class Graph:
    """A graph with its session, which threads share.

    It runs on a GPU where onnxruntime finds one, else on the CPU, in one thread: the runner's
    workers are the parallelism, and the order of its sums must not depend on the machine.

    Args:
      data: the file's bytes.

    Raises:
      GraphError: as above.
      ImportError: onnxruntime is not installed.
    """

    def __init__(self, data: bytes) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        there = onnxruntime.get_available_providers()
        try:
            self._session = onnxruntime.InferenceSession(
                data, options, providers=[name for name in _PROVIDERS if name in there]
            )
        except Exception as error:  # onnxruntime has an exception for each kind of fault.
            raise GraphError(f"onnxruntime cannot load it ({in_short(error)})") from error
        inputs = self._session.get_inputs()
        self._picture = _the_picture(inputs)
        boxes = [each for each in inputs if "box" in each.name.lower()]
        self._box = boxes[0] if len(boxes) == 1 and _is_box(boxes[0]) else None
        others = [each.name for each in inputs if each not in (self._picture, self._box)]
        if others:
            raise GraphError(
                f"it has an input {others[0]!r}; expected a picture, and possibly boxes of shape "
                "(1, 4) or (1, 1, 4), of float, under a name with 'box' in it"
            )
        self._channels_last = self._picture.shape[1] != 3

    @property
    def takes_box(self) -> bool:
        """Whether it is promptable."""
        return self._box is not None

    @property
    def side(self) -> int | None:
        """Side in pixels of the pictures it takes, None for any."""
        shape = self._picture.shape
        height, width = shape[1:3] if self._channels_last else shape[2:4]
        if not isinstance(height, int) and not isinstance(width, int):
            return None
        if height != width:
            raise GraphError(f"its pictures are {height} x {width}, not square")
        return int(height)

    @property
    def properties(self) -> dict[str, str]:
        """Its metadata."""
        found: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        return found

    def run(self, pixels: NDArray[np.float32], box: NDArray[np.float32]) -> NDArray[np.float32]:
        """The map of one picture.

        Args:
          pixels: (S, S, 3) float32, normalised.
          box: (4,) float32, xmin, ymin, xmax, ymax as the graph takes them.

        Returns:
          (h, w) float32: its first output.

        Raises:
          GraphError: it cannot be run, or its first output is no map.
        """
        arranged = pixels if self._channels_last else pixels.transpose(2, 0, 1)
        given = {
            self._picture.name: np.ascontiguousarray(arranged[np.newaxis], _type(self._picture))
        }
        if self._box is not None:
            shape = (1,) * (len(self._box.shape) - 1) + (4,)
            given[self._box.name] = box.reshape(shape).astype(_type(self._box))
        try:
            found = np.asarray(self._session.run(None, given)[0])
        except Exception as error:  # As above.
            raise GraphError(f"onnxruntime cannot run it ({in_short(error)})") from error
        # Axes of length 1 are batch and channel; a map of one row would be no map.
        squeezed = found.squeeze()
        if squeezed.ndim != 2:
            raise GraphError(f"its first output has shape {found.shape}, which is no single map")
        return squeezed.astype(np.float32)


def _the_picture(inputs: list[Any]) -> Any:
    """The input that takes a picture."""
    found = [
        each
        for each in inputs
        if each.type in _FLOATS and len(each.shape) == 4 and 3 in (each.shape[1], each.shape[3])
    ]
    if len(found) != 1:
        shown = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
        raise GraphError(
            f"it takes {shown}; expected one float picture of shape (1, 3, height, width), or with "
            "the channels last"
        )
    if isinstance(found[0].shape[0], int) and found[0].shape[0] != 1:
        raise GraphError(f"it takes {found[0].shape[0]} pictures at once; expected 1, or any")
    return found[0]


def _is_box(given: Any) -> bool:
    return given.type in _FLOATS and len(given.shape) in (2, 3) and given.shape[-1] == 4


def _type(given: Any) -> Any:
    return _FLOATS[given.type]
