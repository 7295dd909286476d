"""Errors after which the caller should call `cv2.grabCut` instead."""

from __future__ import annotations


class Unserved(ValueError):
    """The kernels cannot compute this mask, for the reason in the message.

    `cv2.grabCut` raises `cv2.error`, too, if no pixel is inside the rectangle or none is outside,
    or if a Gaussian has no inverse covariance. It computes the mask if the search is too deep.
    """


class Unavailable(RuntimeError):
    """This machine cannot compile the kernels, or cannot store their code."""
