"""GrabCut: computes the masks of `cv2.grabCut` an order of magnitude faster.

    interface      the public functions: checks arguments, compiles and calls the kernels
    errors         after which OpenCV should compute the mask
    cache          locates the compiled code
    iteration      the method: calls the kernels in order
    clustering     k-means, which initialises the mixtures      (generator: its random numbers)
    mixtures       Gaussians from moments
    likelihoods    each pixel's component and pull              (vector_math: exp and log)
    smoothness     links between pixels
    max_flow       the minimum cut
    forest         the search forest of the minimum cut         (lanes: eight neighbours at once)
    repair         repairs of the forest between sweeps
    compilation    the decorators of all kernels

numba, and the modules listed from `iteration` on, are imported only by the first call of `grabcut`
or `prepare`.
"""

from transforms.grabcut.errors import Unavailable, Unserved
from transforms.grabcut.interface import grabcut, prepare

__all__ = ["Unavailable", "Unserved", "grabcut", "prepare"]
