"""How large what somebody else made may be, beside the pixels (`codec.MAX_PIXELS`)."""

from __future__ import annotations

MAX_PICTURE_BYTES = 160_000_000
"""Of a picture's file: 50 million pixels take 150 MB where nothing compresses them."""

MAX_ANNOTATION_BYTES = 10_000_000
"""Of an annotation, XML or JSON: ImageNet's have one kilobyte. Parsed, it takes ten times that."""


class Unread(bytes):
    """Stands for content that is too large to be read: what is wrong with it, as text. Who
    decodes it says so, as of content that is broken."""

    @classmethod
    def from_size(cls, size: int, limit: int) -> Unread:
        """For content of so many bytes, which are more than a limit."""
        return cls(f"{size} bytes, more than the limit of {limit}".encode())
