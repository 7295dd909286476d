"""Remakes tests/golden/sample.json: the results of the authors' procedure on the sample.

    python tests/golden/make_golden.py

This plain rendition of the protocol with PIL and OpenCV at native size shares no code with
transforms/: PIL paints, resizes and crops the masks, as in the authors' script.
"""

from __future__ import annotations

import hashlib
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "pipeline" / "data" / "sample"
GOLDEN = Path(__file__).with_name("sample.json")
SIZE = 256


def resize_crop(image: Image.Image, resize: int, crop: int) -> Image.Image:
    """Applies torchvision's Resize(resize, nearest) and CenterCrop(crop)."""
    width, height = image.size
    if width <= height:
        size = (resize, int(resize * height / width))
    else:
        size = (int(resize * width / height), resize)
    image = image.resize(size, Image.Resampling.NEAREST)
    left, top = round((size[0] - crop) / 2), round((size[1] - crop) / 2)
    return image.crop((left, top, left + crop, top + crop))


def digest(image: Image.Image) -> str:
    """Returns a digest of a picture's pixels, which does not depend on the form of its file."""
    return hashlib.sha256(np.asarray(image).tobytes()).hexdigest()[:16]


def box_of(annotation: Path) -> tuple[int, int, int, int]:
    box = ET.parse(annotation).getroot().find("object/bndbox")
    assert box is not None
    corners = [int(box.findtext(name, "")) for name in ("xmin", "ymin", "xmax", "ymax")]
    return corners[0], corners[1], corners[2], corners[3]


def filter_code(image: Image.Image, box: tuple[int, int, int, int]) -> int:
    """Returns 5 or 6 if that filter of the script rejects the picture, otherwise 0.

    In the sample, every picture has one box.
    """
    painted = Image.new("1", image.size)
    ImageDraw.Draw(painted).rectangle(box, fill=1)
    cropped = np.asarray(resize_crop(painted, 256, 224)).sum()
    width, height = image.size
    resized = painted.resize(
        (256, int(256 * height / width)) if width <= height else (int(256 * width / height), 256),
        Image.Resampling.NEAREST,
    )
    if cropped / 224**2 > 0.9:
        return 5
    return 6 if cropped / np.asarray(resized).sum() < 0.5 else 0


def grabcut(image: Image.Image, box: tuple[int, int, int, int]) -> np.ndarray:
    labels = np.zeros((image.height, image.width), np.uint8)
    rectangle = (box[0], box[1], box[2] - box[0], box[3] - box[1])
    cv2.setRNGSeed(0)
    cv2.grabCut(
        np.asarray(image),
        labels,
        rectangle,
        np.zeros((1, 65)),
        np.zeros((1, 65)),
        5,
        cv2.GC_INIT_WITH_RECT,
    )
    return (labels == 1) | (labels == 3)


def tiled(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """Makes Only-BG-T at native size by pasting the strip all over a canvas."""
    width, height = image.size
    left, right = box[0], width - box[2]
    above, below = box[1], height - box[3]
    if max(left, right) * height > max(above, below) * width:
        strip = image.crop((0, 0, left, height) if left > right else (box[2], 0, width, height))
    else:
        strip = image.crop((0, 0, width, above) if above > below else (0, box[3], width, height))
    canvas = Image.new("RGB", image.size)
    for x in range(0, width, strip.width):
        for y in range(0, height, strip.height):
            canvas.paste(strip, (x, y))
    inside = Image.new("1", image.size)
    ImageDraw.Draw(inside).rectangle(box, fill=1)
    return Image.composite(canvas, image, inside)


def golden(path: Path) -> dict[str, object]:
    """Returns a picture's filter code and, if it is accepted, its mask's share and its digests."""
    image = Image.open(path).convert("RGB")
    box = box_of(SAMPLE / "Annotations" / "val" / f"{path.stem}.xml")
    code = filter_code(image, box)
    if code:
        return {"code": code}
    mask = grabcut(image, box)
    share = mask.sum() / ((box[2] - box[0]) * (box[3] - box[1]))
    if share < 0.1:
        return {"code": 7}
    stencil = Image.fromarray(mask)
    black = Image.new("RGB", image.size)
    without_box = image.copy()
    ImageDraw.Draw(without_box).rectangle(box, fill=(0, 0, 0))
    pictures = {
        "original": image,
        "only_bg_b": without_box,
        "only_bg_t": tiled(image, box),
        "no_fg": Image.composite(black, image, stencil),
        "only_fg": Image.composite(image, black, stencil),
        "fg_mask": stencil.convert("L"),
    }
    return {
        "code": 0,
        "mask_over_box": round(float(share), 6),
        "pixels": {name: digest(resize_crop(p, SIZE, SIZE)) for name, p in pictures.items()},
    }


def main() -> None:
    pictures = sorted(SAMPLE.glob("val/*/*.JPEG"))
    content = {path.stem: golden(path) for path in pictures}
    GOLDEN.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    print(f"{GOLDEN}: {len(content)} pictures")


if __name__ == "__main__":
    main()
