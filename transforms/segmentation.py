"""Segmenters: which pixels of a picture are its foreground.

A segmenter is a function (image, box, seed) -> Segmentation. To add one, write the function
and list it in `SEGMENTERS`; everything else goes by its name. Functions of the user's are
called by `pipeline.segmenters`.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from transforms import grabcut
from transforms.annotations import Box
from transforms.geometry import Mask, Pixels

GRABCUT_ITERATIONS = 5


class SegmentationError(ValueError):
    """A segmenter could not separate this picture."""


class Segmentation(NamedTuple):
    """What a segmenter found.

    Attributes:
      mask: (H, W) bool, True on the foreground.
      fallback: why another implementation of the same method had to serve; empty if none.
    """

    mask: Mask
    fallback: str = ""


class SegmentFunction(Protocol):
    """Separates foreground from background."""

    def __call__(self, image: Pixels, box: Box, seed: int) -> Segmentation:
        """Segments one picture.

        Args:
          image: (H, W, 3) uint8, RGB.
          box: the object's box, clipped to the image, area > 0.
          seed: decides every random choice inside.

        Returns:
          The foreground.

        Raises:
          SegmentationError: this picture cannot be segmented.
        """
        ...


def _nothing(announce: Callable[[], None]) -> None:
    """Prepares nothing."""


@dataclasses.dataclass(frozen=True)
class Segmenter:
    """A segmenter with what a manifest records about it.

    Attributes:
      name: what `--segmenter` calls it.
      method: what decides its masks. Implementations of one method give equal masks, so
        nothing is made again where only the implementation is another one.
      version: of the method, raised by hand whenever its masks change.
      parameters: what else decides its masks, as JSON has it.
      segment: the function; None if the foreground is given with each image.
      prepare: gets it ready, before the first picture; calls its argument before a work of
        some seconds.
    """

    name: str
    method: str
    version: int | str
    parameters: dict[str, object]
    segment: SegmentFunction | None
    prepare: Callable[[Callable[[], None]], None] = _nothing

    @property
    def label(self) -> str:
        """Method, version and parameters in a line.

        >>> SEGMENTERS["cv2"].label
        'grabcut 1 iterations=5'
        """
        parameters = (f"{name}={value}" for name, value in sorted(self.parameters.items()))
        return " ".join([self.method, str(self.version), *parameters])


def segment_cv2(image: Pixels, box: Box, seed: int) -> Segmentation:
    """`cv2.grabCut` from a rectangle, as in the authors' script, but seeded.

    Rectangle (xmin, ymin, width, height), 5 iterations, GC_INIT_WITH_RECT; foreground is
    GC_FGD and GC_PR_FGD. OpenCV's generator belongs to the thread and carries over from
    call to call, so it is seeded before every picture: `cv2.setRNGSeed(seed)`.

    Raises:
      SegmentationError: OpenCV refuses the picture.
      MemoryError: it does not fit, which says nothing of the picture.
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
        # Running out of memory says nothing of the picture.
        if error.code == cv2.Error.StsNoMem or "bad_alloc" in str(error):
            raise MemoryError(f"cv2.grabCut on {width} x {height} pixels") from error
        raise SegmentationError(f"cv2.grabCut: {error.err or error}") from error
    return Segmentation(_foreground(labels))


def segment_grabcut(image: Pixels, box: Box, seed: int) -> Segmentation:
    """The same masks as `segment_cv2`, an order of magnitude sooner: `transforms.grabcut`.

    OpenCV serves where those kernels cannot. Raises as `segment_cv2`.
    """
    try:
        labels = grabcut.grabcut(image, _rectangle(box), iterations=GRABCUT_ITERATIONS, seed=seed)
    except (grabcut.Unserved, grabcut.Unavailable) as error:
        return segment_cv2(image, box, seed)._replace(fallback=str(error))
    return Segmentation(_foreground(labels))


def segment_box(image: Pixels, box: Box, seed: int) -> Segmentation:
    """The box itself: the pixels that `only_bg_b` blackens, column xmax and row ymax included."""
    mask = np.zeros(image.shape[:2], np.bool_)
    mask[box.ymin : box.ymax + 1, box.xmin : box.xmax + 1] = True
    return Segmentation(mask)


def _rectangle(box: Box) -> tuple[int, int, int, int]:
    return box.xmin, box.ymin, box.width, box.height


def _foreground(labels: NDArray[np.uint8]) -> Mask:
    """True where GrabCut's label is GC_FGD (1) or GC_PR_FGD (3)."""
    return (labels & 1).astype(np.bool_)


def _prepare_grabcut(announce: Callable[[], None]) -> None:
    try:
        grabcut.prepare(announce)
    except grabcut.Unavailable as error:
        _warn_of_cv2(str(error))


_warned = threading.Lock()


def _warn_of_cv2(why: str) -> None:
    """Says once in a process, whose threads may all come here, that OpenCV has to do."""
    # Taken once and never given back.
    if not _warned.acquire(blocking=False):
        return
    logging.getLogger(__name__).warning(
        "GrabCut runs in OpenCV, which takes some 15 times as long, with the same masks: %s", why
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
            )
            for name, segment, prepare in (
                ("grabcut", segment_grabcut, _prepare_grabcut),
                ("cv2", segment_cv2, _nothing),
            )
        ),
        Segmenter(name="masks", method="masks", version=1, parameters={}, segment=None),
        Segmenter(name="box", method="box", version=1, parameters={}, segment=segment_box),
    )
}
"""By name. The first two are GrabCut: `grabcut` by our own kernels, `cv2` by OpenCV."""


def describe_segmenter(name: str, parameters: Sequence[str] = ()) -> Segmenter:
    """What a manifest records of the segmenter of a configuration.

    Args:
      name: such as `grabcut`, or `python:my_segmenters:salient`.
      parameters: of a function of the user's, `name=value` each, `version` among them.

    Returns:
      The segmenter; one of the user's without its function.

    Raises:
      ValueError: an unknown name, or one of ours with parameters, or another without a version.
    """
    if name in SEGMENTERS and not parameters:
        return SEGMENTERS[name]
    values: dict[str, str] = dict(parameter.split("=", 1) for parameter in parameters)
    version = values.pop("version", None)
    if ":" not in name or version is None:
        known = ", ".join([*SEGMENTERS, "python:MODULE:FUNCTION"])
        raise ValueError(f"--segmenter must be one of {known}: got {name!r}")
    return Segmenter(name, method=name, version=version, parameters={**values}, segment=None)


def takes_masks(name: str) -> bool:
    """Whether a segmenter needs a mask with each image."""
    return name in SEGMENTERS and SEGMENTERS[name].segment is None
