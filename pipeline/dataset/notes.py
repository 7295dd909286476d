"""What is to be known of a dataset before any figure: said first on page, card and terminal."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.dataset.manifest import Manifest
from transforms.filters import Reason

_NAMED = 10
"""Classes that are named of those without images."""


def notes_of(manifest: Manifest) -> list[str]:
    """Clauses that begin small and have no full stop, each a line on a terminal."""
    return list(_notes(manifest))


def sentence(note: str) -> str:
    """A note as a sentence."""
    return f"{note[0].upper()}{note[1:]}."


def _notes(manifest: Manifest) -> Iterator[str]:
    if manifest.is_sample:
        yield (
            "these pictures are the embedded sample: composites, so accuracies on them say nothing "
            "about ImageNet"
        )
    for split, by_variant in manifest.samples.items():
        classes = by_variant[manifest.config.compose.composed[0]]
        missing = sorted(name for name, images in classes.items() if not images)
        if not missing or len(missing) == len(classes):
            continue
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        line = f"split {split} has no image of {', '.join(missing[:_NAMED])}{more}"
        if manifest.rejections[split].get(Reason.NO_BACKGROUND):
            line += f"; an image whose class has no other is left out ({Reason.NO_BACKGROUND})"
        yield line
