"""The embedded sample: where it lies, how its pictures are known again, and what it is made of."""

from __future__ import annotations

import functools
import hashlib
from importlib import resources
from pathlib import Path

LICENCE = "GPL-2.0-only"
"""Of its pictures and what is made of them (`data/sample/README.md`), as SPDX calls it."""


def sample_folder() -> str:
    """The embedded sample: 72 pictures in ImageNet's layout."""
    return str(resources.files("pipeline") / "data" / "sample")


@functools.cache
def sample_digests() -> frozenset[str]:
    """MD5 of each of its pictures, as `source_md5` of an index has it, whatever file or table a
    picture came from."""
    return frozenset(
        hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        for path in Path(sample_folder()).glob("val/*/*.JPEG")
    )


def sample_sources() -> str:
    """What its own README says of sources and licence."""
    text = Path(sample_folder(), "README.md").read_text(encoding="utf-8")
    (said,) = (part for part in text.split("\n\n") if part.startswith("Sources and licence: "))
    return said
