"""Pictures in the page: small, encoded again, and never more bytes than the page can hold."""

from __future__ import annotations

import base64
import contextlib
import io
from collections import defaultdict
from collections.abc import Iterable

from PIL import Image

from pipeline.dataset.folder import Dataset
from pipeline.dataset.sinks import Sample
from pipeline.errors import JobError
from transforms.codec import TooManyPixelsError, UndecodableError, decode_image

QUALITY = 68
SHOWN = 224
"""Side in pixels of the pictures to look at."""
SMALL = 128
"""Side in pixels of those in rows of many."""


def data_uri(image: bytes, side: int = SHOWN) -> str:
    """A picture as a WebP data URI.

    Args:
      image: an encoded picture of the dataset or its results.
      side: of the result, in pixels; smaller pictures are not enlarged.

    Raises:
      JobError: it cannot be decoded.
    """
    try:
        small = Image.fromarray(decode_image(image))
    except (UndecodableError, TooManyPixelsError) as error:
        raise JobError(f"a picture of the page is damaged ({error}); see: in9 verify") from error
    if max(small.size) > side:
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "WEBP", quality=QUALITY, method=4)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def find_samples(
    dataset: Dataset, split: str, variant: str, keys: Iterable[str]
) -> dict[str, Sample]:
    """Samples of a variant by key, reading no more of each shard than that takes. Keys that
    the dataset does not hold are left out."""
    by_shard: dict[int, set[str]] = defaultdict(set)
    for key in keys:
        by_shard[dataset.shard_of(split, key)].add(key)
    found: dict[str, Sample] = {}
    for shard, wanted in sorted(by_shard.items()):
        missing = set(wanted)
        with contextlib.closing(dataset.samples(split, shard, variant)) as samples:
            for sample in samples:
                if sample.key in missing:
                    found[sample.key] = sample
                    missing.remove(sample.key)
                    if not missing:
                        break
    return found


class Budget:
    """Bytes of pictures that a part of the page may still hold."""

    def __init__(self, size: int) -> None:
        self.left = size

    def takes(self, *uris: str) -> bool:
        """Whether these fit as well; if so they are counted."""
        size = sum(map(len, uris))
        if size > self.left:
            return False
        self.left -= size
        return True
