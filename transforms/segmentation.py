"""Segmenters, which separate the foreground of a picture from its background.

A segmenter is a function (image, box, seed) -> Segmentation. To add one, write the function and
add an entry to `SEGMENTERS`. Custom functions are called by `pipeline.generate.segmenters`.
"""

import dataclasses
import difflib
import logging
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from transforms import grabcut
from transforms.annotations import Box
from transforms.geometry import Mask, Pixels

GRABCUT_ITERATIONS = 5


class SegmentationError(ValueError):
    """The segmenter cannot separate foreground and background of this picture."""


class Segmentation(NamedTuple):
    """The result of a segmenter.

    Attributes:
      mask: (H, W) bool, True on the foreground.
      fallback: why another implementation of the same method computed the mask; empty if the
        intended implementation did.
    """

    mask: Mask
    fallback: str = ""


SegmentFunction = Callable[[Pixels, Box, int], Segmentation]
"""Takes an image, (H, W, 3) uint8 RGB, an object's box and a seed; SegmentationError rejects it."""


def _nothing(announce: Callable[[], None]) -> None:
    """Prepares nothing."""


@dataclasses.dataclass(frozen=True)
class Segmenter:
    """A segmenter, with the description that a manifest records.

    Attributes:
      name: value of `--segmenter`.
      method: name of the method. Implementations of one method give equal masks, so switching
        between them does not invalidate layers.
      version: version of the method, raised by hand whenever the method's masks change; text for a
        custom function.
      parameters: other values that decide the masks, JSON-serialisable.
      segment: the function; None if the masks come with the images, and for a custom function that
        `pipeline.generate.segmenters` has not added yet.
      prepare: function that is called before the first picture. It calls its argument before it
        begins work that takes seconds, so that the user can be told.
      needs_box: whether images are cut apart; if not, they are kept whole, without boxes.
      description: sentence about the masks for a dataset's card. It may contain `label`, and the
        names of flags, in braces.
    """

    name: str
    method: str
    version: int | str
    parameters: dict[str, object]
    segment: SegmentFunction | None
    prepare: Callable[[Callable[[], None]], None] = _nothing
    needs_box: bool = True
    description: str = (
        "Masks are computed by the user's own function, `{label}`, and not corrected by hand."
    )

    @property
    def label(self) -> str:
        """Method, version and parameters in one line.

        >>> SEGMENTERS["cv2"].label
        'grabcut 1 iterations=5'
        """
        parameters = (f"{name}={value}" for name, value in sorted(self.parameters.items()))
        return " ".join([self.method, str(self.version), *parameters])


def segment_cv2(image: Pixels, box: Box, seed: int) -> Segmentation:
    """Runs `cv2.grabCut` from a rectangle, as the authors' script does, but seeded.

    The call uses the rectangle (xmin, ymin, width, height), 5 iterations and GC_INIT_WITH_RECT. The
    labels GC_FGD and GC_PR_FGD count as foreground. OpenCV's random generator belongs to the thread
    and keeps its state from call to call, so it is seeded before every picture (`cv2.setRNGSeed`).

    Raises:
      SegmentationError: OpenCV refuses the picture.
      MemoryError: the picture does not fit into memory, which is not the picture's fault.
    """
    height, width = image.shape[:2]
    labels = np.zeros((height, width), np.uint8)
    background_model, foreground_model = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(seed)
    try:
        cv2.grabCut(
            image,
            labels,
            _rectangle(box),
            background_model,
            foreground_model,
            GRABCUT_ITERATIONS,
            cv2.GC_INIT_WITH_RECT,
        )
    except cv2.error as error:
        # A lack of memory is not the picture's fault, so it must not reject the picture.
        if error.code == cv2.Error.StsNoMem or "bad_alloc" in str(error):
            raise MemoryError(f"cv2.grabCut on {width} x {height} pixels") from error
        raise SegmentationError(f"cv2.grabCut: {error.err or error}") from error
    return Segmentation(_foreground(labels))


def segment_grabcut(image: Pixels, box: Box, seed: int) -> Segmentation:
    """Same as `segment_cv2`, but an order of magnitude faster, by `transforms.grabcut`.

    Calls `segment_cv2` if the kernels cannot compute the mask; `fallback` then says why.
    """
    try:
        labels = grabcut.grabcut(image, _rectangle(box), iterations=GRABCUT_ITERATIONS, seed=seed)
    except (grabcut.Unsupported, grabcut.Unavailable) as error:
        return segment_cv2(image, box, seed)._replace(fallback=str(error))
    return Segmentation(_foreground(labels))


def segment_box(image: Pixels, box: Box, seed: int) -> Segmentation:
    """Returns the box as the mask: the pixels that `only_bg_b` blackens, up to xmax and ymax."""
    mask = np.zeros(image.shape[:2], np.bool_)
    mask[box.ymin : box.ymax + 1, box.xmin : box.xmax + 1] = True
    return Segmentation(mask)


def _rectangle(box: Box) -> tuple[int, int, int, int]:
    return box.xmin, box.ymin, box.width, box.height


def _foreground(labels: NDArray[np.uint8]) -> Mask:
    """Returns True where GrabCut's label is GC_FGD (1) or GC_PR_FGD (3)."""
    return (labels & 1).astype(np.bool_)


_warned = threading.Lock()


def _prepare_grabcut(announce: Callable[[], None]) -> None:
    """Compiles the kernels; if that fails, the first call warns that GrabCut runs in OpenCV."""
    try:
        grabcut.prepare(announce)
    except grabcut.Unavailable as error:
        # The lock is never released, so only the first call passes.
        if _warned.acquire(blocking=False):
            logging.getLogger(__name__).warning(
                "GrabCut runs in OpenCV, which takes some 15 times as long, with the same masks: "
                "%s",
                error,
            )


SEGMENTERS = {
    segmenter.name: segmenter
    for segmenter in (
        *(
            Segmenter(
                name=name,
                method="grabcut",
                version=1,
                parameters={"iterations": GRABCUT_ITERATIONS},
                segment=segment,
                prepare=prepare,
                description="Masks are computed by GrabCut from the annotated box, seeded before "
                "every image (`grabcut_seed {grabcut_seed}`), and not corrected by hand.",
            )
            for name, segment, prepare in (
                ("grabcut", segment_grabcut, _prepare_grabcut),
                ("cv2", segment_cv2, _nothing),
            )
        ),
        Segmenter(
            name="masks",
            method="masks",
            version=1,
            parameters={},
            segment=None,
            description="Masks were supplied with the images.",
        ),
        Segmenter(
            name="box",
            method="box",
            version=1,
            parameters={},
            segment=segment_box,
            description="Masks are the annotated boxes.",
        ),
    )
}
"""Segmenters by name. The first two run GrabCut: `grabcut` in this package's kernels, `cv2` in
OpenCV."""

WHOLE = Segmenter("none", "none", 1, {}, segment=None, needs_box=False)
"""What keeps images whole."""


def describe_segmenter(name: str, parameters: Sequence[str] = ()) -> Segmenter:
    """Returns the segmenter of a configuration, as a manifest describes it.

    Args:
      name: value of `--segmenter`, such as `grabcut` or `python:my_segmenters:salient`; `segment`
        is None for the latter.
      parameters: parameters of a custom function, each as `name=value`, including `version`.

    Raises:
      ValueError: the name is unknown, a built-in segmenter has parameters, or a custom segmenter
        has no version.
    """
    if name in SEGMENTERS and not parameters:
        return SEGMENTERS[name]
    values: dict[str, str] = dict(parameter.split("=", 1) for parameter in parameters)
    version = values.pop("version", None)
    if ":" not in name or version is None:
        known = ", ".join([*SEGMENTERS, "python:MODULE:FUNCTION"])
        close = "".join(difflib.get_close_matches(name, SEGMENTERS, n=1))
        hint = f"; did you mean {close}?" * bool(close)
        raise ValueError(f"--segmenter must be one of {known}: got {name!r}{hint}")
    return Segmenter(name, method=name, version=version, parameters={**values}, segment=None)


def takes_masks(name: str) -> bool:
    """Returns whether a segmenter needs a mask with each image."""
    return name in SEGMENTERS and SEGMENTERS[name].segment is None
