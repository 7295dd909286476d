"""What the caller answers by calling `cv2.grabCut` instead."""

from __future__ import annotations


class Unserved(ValueError):
    """The kernels cannot compute this mask, for the reason in the message.

    Where there is no pixel inside the rectangle or none outside, or a Gaussian has no
    inverse covariance, `cv2.grabCut` raises `cv2.error`; where the search is too deep, it
    has a mask.
    """


class Unavailable(RuntimeError):
    """The kernels cannot be compiled, or their code cannot be kept, on this machine."""
