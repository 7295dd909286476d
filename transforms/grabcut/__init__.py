"""GrabCut: computes the masks of `cv2.grabCut` an order of magnitude faster.

    interface      the public functions: checks arguments, compiles and calls the kernels
    cache          locates the compiled code; errors after which OpenCV should compute the mask
    iteration      the method: calls the kernels in order
    clustering     k-means, which initialises the mixtures, and its random numbers
    mixtures       two mixtures of Gaussians, and the pull of each colour
    smoothness     links between pixels
    max_flow       the minimum cut
    forest         the search forest of the minimum cut
    lanes          the eight neighbours of a pixel at once
    compilation    the decorators of all kernels; exp and log for many colours at once

numba, and the modules listed from `iteration` on, are imported only by the first call of `grabcut`
or `prepare`.
"""

from transforms.grabcut.cache import Unavailable, Unsupported
from transforms.grabcut.interface import grabcut, prepare

__all__ = ["Unavailable", "Unsupported", "grabcut", "prepare"]
