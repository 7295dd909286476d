"""GrabCut: the masks of `cv2.grabCut`, an order of magnitude sooner.

    interface      arguments, and when the kernels are compiled
    cache          where their code is kept
    segment        the method: what is computed from what
    clustering     k-means, from which the mixtures begin      (generator: its random numbers)
    mixtures       Gaussians from moments
    likelihoods    pixels' components and pulls                (vector_math: exp and log)
    smoothness     links between pixels
    max_flow       the minimum cut
    forest         what it is found with                       (lanes: eight neighbours at once)
    repair         of the forest, between sweeps

numba is imported, and the modules from `segment` on with it, when they are first needed.
"""

from transforms.grabcut.errors import Unavailable, Unserved
from transforms.grabcut.interface import grabcut, prepare

__all__ = ["Unavailable", "Unserved", "grabcut", "prepare"]
