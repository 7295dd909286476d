"""Errors after which the caller should call `cv2.grabCut` instead."""


class Unsupported(ValueError):
    """The kernels cannot compute this mask, for the reason in the message.

    Where the kernels give up because no pixel is inside the rectangle, because no pixel is outside,
    or because a Gaussian has no inverse covariance, `cv2.grabCut` raises `cv2.error`, too. Where
    they give up because the search is too deep or the picture too large, it computes the mask.
    """


class Unavailable(RuntimeError):
    """This machine cannot compile the kernels, or cannot store their code."""
