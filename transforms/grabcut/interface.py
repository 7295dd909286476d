"""The public functions, which check the arguments, and compile the kernels if necessary."""

import fcntl
import functools
import logging
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from transforms.grabcut import cache
from transforms.grabcut.cache import Unavailable, Unsupported

_LOG = logging.getLogger(__name__)

_Bytes = NDArray[np.uint8]
_Rect = tuple[int, int, int, int]

_C_INT = 2**31
_MOST_PIXELS = 2**27
"""Largest number of pixels of a picture. With more pixels, the numbers that OpenCV gives to arcs (8
per pixel) would approach the limit of int32."""


_Segment = Callable[[_Bytes, _Rect, int, int], _Bytes]

_lock = threading.Lock()
_loaded: list[tuple[_Segment, bool] | Unavailable] = []
"""The loaded kernels and whether their code is kept, or the error that loading them raised; empty
before the first attempt."""


def _kernels(before_compiling: Callable[[], None] = lambda: None) -> tuple[_Segment, bool]:
    """Loads the kernels on the first call. Later calls return or raise the same as the first."""
    with _lock:
        if not _loaded:
            try:
                _loaded.append(_load(before_compiling))
            except Unavailable as error:
                _loaded.append(error)
    (result,) = _loaded
    if isinstance(result, Unavailable):
        raise Unavailable(str(result))
    return result


def _load(before_compiling: Callable[[], None]) -> tuple[_Segment, bool]:
    """Imports the kernels, and compiles them if necessary; returns whether their code is kept."""
    folder = cache.code_folder()
    try:
        return _load_from(folder, before_compiling), True
    except OSError as error:
        reason = (
            f"{folder} cannot hold compiled code ({_explain(error)}). Correct that, or set "
            "IN9_CACHE_DIR to an absolute path where only you may write"
        )
    announce = functools.partial(
        _LOG.warning,
        "GrabCut is compiled for this process alone (about half a minute): %s",
        reason,
    )
    try:
        with tempfile.TemporaryDirectory(prefix="in9-grabcut-") as temporary:
            return _load_from(Path(temporary), announce), False
    except OSError as error:
        raise Unavailable(f"{_explain(error)}, and {reason}") from error


def _explain(error: OSError) -> str:
    return ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)


def _load_from(folder: Path, before_compiling: Callable[[], None]) -> _Segment:
    """Imports the kernels from a folder, and compiles them if it does not hold all of them.

    A process that compiles holds a file lock, which the system releases even if the process is
    killed. The file `complete` is written last. Raises OSError if the folder must not be used, or
    cannot be read or written.
    """
    cache.claim(folder)
    if not cache.is_complete(folder):
        with (folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not cache.is_complete(folder):
                if (folder / "complete").exists():
                    _LOG.warning("the compiled code in %s is damaged, and made again", folder)
                cache.discard(folder)
                before_compiling()
                segment = _import_kernels(folder)
                cache.complete(folder)
                return segment
    return _import_kernels(folder)


def _import_kernels(folder: Path) -> _Segment:
    """Imports the kernels' modules, which compiles the functions or loads them from a folder."""
    try:
        from numba import config

        if config.DISABLE_JIT:
            raise Unavailable("numba compiles nothing, because NUMBA_DISABLE_JIT is set")
        cache.Locator.folder = folder
        locators = config.CACHE_LOCATOR_CLASSES
        config.CACHE_LOCATOR_CLASSES = f"{cache.__name__}.{cache.Locator.__name__}"
        try:
            from transforms.grabcut.iteration import segment
        finally:
            config.CACHE_LOCATOR_CLASSES = locators
    except (Unavailable, OSError):
        raise
    except Exception as error:
        # Compilers fail in many ways, and no failure may stop a job that can use OpenCV instead.
        raise Unavailable(f"numba: {type(error).__name__}: {error}") from error
    return segment


def prepare(before_compiling: Callable[[], None] = lambda: None) -> bool:
    """Loads the kernels, and compiles them if the cache on this machine does not have them.

    If several processes call this at once, one process compiles and the others wait. The first call
    of `grabcut` does the same.

    If others may write to the cache, or this user may not, each process compiles for itself, in a
    private temporary folder. A warning is logged then, which says why.

    Args:
      before_compiling: called before this process compiles for all, which takes a while.

    Returns:
      Whether later processes find the compiled code.

    Raises:
      Unavailable: numba is missing or fails, or the temporary folder must not be used, either.
        Every later call raises the error again without another attempt.
    """
    return _kernels(before_compiling)[1]


def _clip(rect: _Rect, height: int, width: int) -> _Rect:
    """Clips a rectangle as OpenCV does.

    A negative x or y becomes 0 while width and height stay, so the rectangle is moved. What lies
    beyond the right or lower edge is cut off. Raises Unsupported if no pixel of the image is inside
    the rectangle, or none is outside.
    """
    left, top = max(rect[0], 0), max(rect[1], 0)
    clipped = (left, top, min(rect[2], width - left), min(rect[3], height - top))
    if clipped[2] <= 0 or clipped[3] <= 0:
        raise Unsupported(f"no pixel of {width} x {height} is inside rect {rect}")
    if clipped[2:] == (width, height):
        raise Unsupported(f"no pixel of {width} x {height} is outside rect {rect}")
    return clipped


def grabcut(image: _Bytes, rect: _Rect, *, iterations: int = 5, seed: int = 0) -> _Bytes:
    """Separates an object from its background, given a rectangle around it.

    The mask equals the mask of `cv2.grabCut` with `GC_INIT_WITH_RECT` after `cv2.setRNGSeed(seed)`,
    but OpenCV's random generator is neither used nor changed. Many threads may call the function at
    once, because it releases the GIL.

    Args:
      image: (H, W, 3) uint8. The order of the channels does not affect the quality, but each order
        gives another mask.
      rect: (x, y, width, height) in pixels. The rectangle is clipped to the image as OpenCV does:
        a negative x or y becomes 0 while width and height stay, so the rectangle is moved.
      iterations: number of times that the mixtures are learned and the cut is made, >= 0.
      seed: seed of the clustering that initialises the mixtures, from -2^31 to 2^31 - 1.

    Returns:
      (H, W) uint8: 0 (`GC_BGD`) outside the rectangle, 2 (`GC_PR_BGD`) or 3 (`GC_PR_FGD`)
      inside.

    Raises:
      ValueError: an argument has the wrong type, shape or range.
      Unsupported: the kernels cannot compute this mask. This error is a ValueError, too.
      Unavailable: the kernels cannot be loaded, see `prepare`.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"image must be (H, W, 3) uint8: got {image.shape} {image.dtype}")
    height, width = image.shape[:2]
    if height * width > _MOST_PIXELS:
        raise Unsupported(f"{width} x {height} are more than {_MOST_PIXELS} pixels")
    if len(rect) != 4 or not all(-_C_INT <= value < _C_INT for value in rect):
        raise ValueError(f"rect must be (x, y, width, height): got {rect}")
    if iterations < 0:
        raise ValueError(f"iterations must be at least 0: got {iterations}")
    if not -_C_INT <= seed < _C_INT:
        raise ValueError(f"seed must be in [-2^31, 2^31): got {seed}")
    x, y, rect_width, rect_height = (int(value) for value in rect)
    clipped = _clip((x, y, rect_width, rect_height), height, width)
    segment, _ = _kernels()
    return segment(np.require(image, requirements=["C", "W"]), clipped, iterations, seed)
