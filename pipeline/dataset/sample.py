"""The embedded sample: its folder, the digests of its pictures, and its licence."""

from __future__ import annotations

import functools
import hashlib
from importlib import resources
from pathlib import Path

LICENCE = "GPL-2.0-only"
"""SPDX identifier of the licence of the sample's pictures, and of datasets made from them
(`data/sample/README.md`)."""


def sample_folder() -> str:
    """Returns the folder of the embedded sample, which has 72 pictures in ImageNet's layout."""
    return str(resources.files("pipeline") / "data" / "sample")


@functools.cache
def sample_digests() -> frozenset[str]:
    """Returns the hexadecimal MD5 of each picture. An index holds the MD5 of each image in
    `source_md5`, so the sample's pictures are recognised in any input."""
    return frozenset(
        hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        for path in Path(sample_folder()).glob("val/*/*.JPEG")
    )


def sample_sources() -> str:
    """Returns the paragraph on sources and licence of the sample's own README."""
    text = Path(sample_folder(), "README.md").read_text(encoding="utf-8")
    paragraphs = text.split("\n\n")
    (sources,) = (each for each in paragraphs if each.startswith("Sources and licence: "))
    return sources
