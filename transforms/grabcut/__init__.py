"""GrabCut: computes the masks of `cv2.grabCut` an order of magnitude faster.

    interface      checks arguments, and has the kernels compiled
    cache          locates the compiled code
    iteration      the method: the order of the kernels
    clustering     k-means, which initialises the mixtures      (generator: its random numbers)
    mixtures       Gaussians from moments
    likelihoods    components and pulls of pixels               (vector_math: exp and log)
    smoothness     links between pixels
    max_flow       the minimum cut
    forest         the search forest of the minimum cut         (lanes: eight neighbours at once)
    repair         repairs of the forest between sweeps

numba, and with it the modules from `iteration` on, are imported when they are first needed.
"""

from transforms.grabcut.errors import Unavailable, Unserved
from transforms.grabcut.interface import grabcut, prepare

__all__ = ["Unavailable", "Unserved", "grabcut", "prepare"]
