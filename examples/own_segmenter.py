"""A custom segmenter beside GrabCut: it finds what differs from the colours around the box.

    python examples/own_segmenter.py OUT [flags of `in9 generate`]

Writes OUT/grabcut and OUT/contrast, and prints how far their masks agree.
"""

import os
import subprocess
import sys

import cv2
import numpy as np

import in9
from transforms.segmentation import SegmentationError


def contrast(image, box):
    """Segments the pixels of the box whose colour is far from the colours around it."""
    xmin, ymin, xmax, ymax = box
    inside = np.zeros(image.shape[:2], bool)
    inside[ymin : ymax + 1, xmin : xmax + 1] = True
    if inside.all():
        raise SegmentationError("there is nothing around the box")
    colours = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32)
    distance = np.linalg.norm(colours - np.median(colours[~inside], axis=0), axis=2)
    levels = cv2.normalize(distance, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)
    threshold, _ = cv2.threshold(levels[inside], 0, 255, cv2.THRESH_OTSU)
    return inside & (levels > threshold)


# Raise the version when the function returns other masks, because code is not compared.
contrast.version = 1


def main(output, *flags):
    """Makes both datasets, and compares the masks of the images in both."""
    # Lets `python:own_segmenter:contrast` find this file.
    paths = [os.path.dirname(os.path.abspath(__file__)), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    masks = []
    for name, segmenter in (("grabcut", "grabcut"), ("contrast", "python:own_segmenter:contrast")):
        folder = os.path.join(output, name)
        command = ["in9", "generate", "--output", folder, "--segmenter", segmenter, *flags]
        subprocess.run(command, check=True, env=environment)
        masks.append(in9.open_dataset(folder, "fg_mask"))

    theirs, ours = masks
    shares = []
    for mask, _, meta in theirs:
        if meta["key"] in ours:
            both = np.stack([mask, ours[meta["key"]][0]]) > 0
            shares.append(both.all(axis=0).sum() / both.any(axis=0).sum())
    print(f"{len(theirs)} images by GrabCut, {len(ours)} by contrast, {len(shares)} in both")
    print(f"masks agree to a mean IoU of {np.mean(shares):.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
