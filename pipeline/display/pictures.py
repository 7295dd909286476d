"""Pictures in the page: they are made small, encoded again, and kept within a budget of bytes."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Iterable

from PIL import Image

from pipeline.dataset.folder import Dataset
from pipeline.dataset.sinks import Sample
from pipeline.errors import JobError
from transforms.codec import TooManyPixelsError, UndecodableError, decode_image

QUALITY = 68
"""Quality of pictures as WebP, up to 100."""
SHOWN = 224
"""Side of large pictures, in pixels."""
SMALL = 128
"""Side of pictures in galleries, in pixels."""


def data_uri(image: bytes, side: int = SHOWN) -> str:
    """Encodes a picture as a WebP data URI.

    Args:
      image: an encoded picture of the dataset or its results.
      side: longest side of the result, in pixels; smaller pictures are not enlarged.

    Raises:
      JobError: the picture cannot be decoded.
    """
    try:
        small = Image.fromarray(decode_image(image))
    except (UndecodableError, TooManyPixelsError) as error:
        raise JobError(f"a picture of the page is damaged ({error}); see: in9 verify") from error
    if max(small.size) > side:
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "WEBP", quality=QUALITY, method=2)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def find_samples(
    dataset: Dataset, split: str, variant: str, keys: Iterable[str]
) -> dict[str, Sample]:
    """Reads samples of a variant, by key. Keys that the dataset does not hold are left out."""
    by_shard: dict[int, list[str]] = defaultdict(list)
    for key in keys:
        by_shard[dataset.shard_of(split, key)].append(key)
    return {
        sample.key: sample
        for shard, wanted in sorted(by_shard.items())
        for sample in dataset.chosen_samples(split, shard, variant, wanted)
    }


class Budget:
    """The number of bytes for which a part of the page still has room."""

    def __init__(self, size: int) -> None:
        self.left = size

    def takes(self, *uris: str) -> bool:
        """Returns whether these pictures still fit; if so, counts them."""
        size = sum(map(len, uris))
        if size > self.left:
            return False
        self.left -= size
        return True
