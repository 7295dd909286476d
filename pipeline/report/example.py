"""The first picture of the page: one foreground on two backgrounds, of which one turns a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from pipeline.report.chooser import ImageCard, Prediction, Version


@dataclasses.dataclass(frozen=True)
class Example:
    """One foreground on two backgrounds, of which the second turns models.

    Attributes:
      card: the image.
      same: the version that they recognise.
      other: the version in which they do not.
      turned: what they make of it, those first that see the background's class.
      believers: how many of them do.
    """

    card: ImageCard
    same: Version
    other: Version
    turned: tuple[Prediction, ...]
    believers: int


def best_example(cards: Sequence[ImageCard]) -> Example | None:
    """The image whose background turns most models into believing it; if it turns none so, the one
    that turns most of them wrong. None if none is turned."""
    found = [example for card in cards for example in _examples(card)]
    # Of equals the first: `max` keeps it.
    return max(found, key=_strength, default=None)


def _examples(card: ImageCard) -> Iterator[Example]:
    same = card.version("mixed_same")
    for variant in ("mixed_rand", "mixed_next"):
        other = card.version(variant)
        if same and other:
            right = {p.model for p in same.predictions if p.is_right}
            wrong = [p for p in other.predictions if p.model in right and not p.is_right]
            wrong.sort(key=lambda p: p.label != other.bg_label)
            if wrong:
                believers = sum(p.label == other.bg_label for p in wrong)
                yield Example(card, same, other, tuple(wrong), believers)


def _strength(example: Example) -> tuple[int, int, int, bool]:
    """How many models believe the background, are turned wrong, and know the original; and whether
    the foreground is neither too small to see nor all there is to see."""
    original = example.card.version("original")
    known = sum(p.is_right for p in original.predictions) if original else 0
    share = example.card.fg_fraction
    is_clear = share is not None and 0.15 <= share <= 0.55
    return example.believers, len(example.turned), known, is_clear
