"""Compares a segmenter with the sample's true masks: IoU by class.

    python benchmarks/segmentation_iou.py [--segmenter grabcut]

True masks are known because the pictures are composites; see the sample's README.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from itertools import chain
from pathlib import Path

import numpy as np
from measure import row

from pipeline.dataset.folder import sample_folder
from pipeline.inputs.layout import find_layout, list_images
from pipeline.inputs.location import NOWHERE, read_location
from transforms.annotations import parse_annotation
from transforms.codec import decode_image, decode_mask
from transforms.filters import MIN_FOREGROUND, mask_over_box
from transforms.geometry import Mask
from transforms.segmentation import SEGMENTERS
from transforms.taxonomy import imagenet9


def intersection_over_union(first: Mask, second: Mask) -> float:
    """Computes the IoU of two (H, W) bool masks, in [0, 1]; 1 if both are empty."""
    union = (first | second).sum()
    return float((first & second).sum() / union) if union else 1.0


def _print_row(name: str, values: list[float], accepted: list[float]) -> None:
    print(
        f"{name:20} {len(values):6}  {np.mean(values):8.3f}  "
        f"{len(accepted):8}  {np.mean(accepted):8.3f}  {min(accepted):6.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--segmenter", choices=SEGMENTERS, default="grabcut")
    arguments = parser.parse_args()
    taxonomy = imagenet9()
    root = sample_folder()
    segment = SEGMENTERS[arguments.segmenter].segment
    assert segment is not None  # True for all segmenters that need no given masks.
    by_class = defaultdict(list)
    accepted_by_class = defaultdict(list)
    for image in list_images(find_layout(root, None, "val"), taxonomy)[0]:
        pixels = decode_image(read_location(image.location))
        annotation = parse_annotation(read_location(image.annotation or NOWHERE))
        truth = decode_mask((Path(root) / "masks" / "val" / f"{image.key}.png").read_bytes())
        box = annotation.boxes[0].clip(pixels.shape[1], pixels.shape[0])
        mask = segment(pixels, box, 0).mask
        iou = intersection_over_union(mask, truth)
        by_class[image.label].append(iou)
        if mask_over_box(mask, box) >= MIN_FOREGROUND:
            accepted_by_class[image.label].append(iou)
    print(f"{'class':20} images  mean IoU  accepted  mean IoU  lowest")
    for label, values in sorted(by_class.items()):
        _print_row(taxonomy.names[label], values, accepted_by_class[label])
    row(
        "segmentation: mean IoU with true masks, sample",
        f"{np.mean(list(chain(*accepted_by_class.values()))):.2f}",
    )
    _print_row("all", list(chain(*by_class.values())), list(chain(*accepted_by_class.values())))


if __name__ == "__main__":
    main()
