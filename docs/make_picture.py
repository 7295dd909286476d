"""Remakes docs/eight_versions.jpg, the README's picture, from a dataset of the sample.

in9 generate --output out && python docs/make_picture.py out
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.dataset.folder import Dataset
from pipeline.storage.store import Store
from transforms.codec import decode_image
from transforms.variants import PICTURES

KEYS = ("sample_val_00000016", "sample_val_00000036", "sample_val_00000067")
SIDE, GAP, HEADING = 150, 6, 24


def main(folder: str) -> None:
    dataset = Dataset.open(Store(str(Path(folder).resolve())))
    found = {
        (sample.key, variant): decode_image(sample.image)
        for shard in dataset.shards("val")
        for variant in PICTURES
        for sample in dataset.samples("val", shard, variant)
    }
    width = len(PICTURES) * (SIDE + GAP) - GAP
    sheet = Image.new("RGB", (width, HEADING + len(KEYS) * (SIDE + GAP) - GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for column, variant in enumerate(PICTURES):
        left = column * (SIDE + GAP)
        draw.text((left + SIDE / 2, HEADING / 2), variant, "black", font, anchor="mm")
        for row, key in enumerate(KEYS):
            picture = Image.fromarray(np.ascontiguousarray(found[key, variant]))
            picture = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(picture, (left, HEADING + row * (SIDE + GAP)))
    target = Path(__file__).with_name("eight_versions.jpg")
    sheet.save(target, quality=88)
    print(target)


if __name__ == "__main__":
    main(sys.argv[1])
