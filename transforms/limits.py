"""Size limits of input files, besides the limit on pixels (`codec.MAX_PIXELS`)."""

from __future__ import annotations

from transforms.hashing import text_bytes

MAX_PICTURE_BYTES = 160_000_000
"""Largest picture file in bytes: 50 million uncompressed pixels take 150 MB."""

MAX_ANNOTATION_BYTES = 10_000_000
"""Largest annotation file in bytes, XML or JSON. ImageNet's annotation files have about a kilobyte.
Parsing a file takes ten to thirty times its size in memory."""


class Unread(bytes):
    """A stand-in for content that is too large to be read. Its bytes are the reason, as text.

    Decoders report this reason in the same way as broken content.
    """

    @classmethod
    def from_size(cls, size: int, limit: int) -> Unread:
        """Creates the stand-in for content of `size` bytes, which exceeds the limit."""
        return cls(text_bytes(f"{size} bytes, more than the limit of {limit}"))
