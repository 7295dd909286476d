"""The example at the head of the page: one foreground on two backgrounds, one of which misleads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from pipeline.report.chooser import ImageCard, Prediction, Version


@dataclasses.dataclass(frozen=True)
class Example:
    """One foreground on two backgrounds; the second background misleads models.

    Attributes:
      card: the image.
      same: the version that the models recognise.
      other: the version that they do not recognise.
      misled: wrong answers to `other` by models that recognise `same`; answers that name the
        background's class come first.
      believers: number of models whose wrong answer is the background's class.
    """

    card: ImageCard
    same: Version
    other: Version
    misled: tuple[Prediction, ...]
    believers: int


def best_example(cards: Sequence[ImageCard]) -> Example | None:
    """Picks the image on which most models name the class of the background instead of the
    foreground's. If no model does so anywhere, picks the image that misleads most models; None if
    no image misleads any. Images with an unknown background are passed over."""
    examples = [example for card in cards for example in _examples(card)]
    # Of equally strong examples, `max` keeps the first.
    return max(examples, key=_strength, default=None)


def _examples(card: ImageCard) -> Iterator[Example]:
    same = card.version("mixed_same")
    for variant in ("mixed_rand", "mixed_next"):
        other = card.version(variant)
        # The page says where both backgrounds come from, which an import may not know.
        if same and other and None not in (same.bg_label, other.bg_label):
            right = {p.model for p in same.predictions if p.is_right}
            wrong = [p for p in other.predictions if p.model in right and not p.is_right]
            wrong.sort(key=lambda p: p.label != other.bg_label)
            if wrong:
                believers = sum(p.label == other.bg_label for p in wrong)
                yield Example(card, same, other, tuple(wrong), believers)


def _strength(example: Example) -> tuple[int, int, int, bool]:
    """Returns a key to compare examples by: how many models name the background's class, how many
    are misled, how many are right on the original, and whether the foreground is neither too small
    nor too large."""
    original = example.card.version("original")
    known = sum(p.is_right for p in original.predictions) if original else 0
    share = example.card.fg_fraction
    is_clear = share is not None and 0.15 <= share <= 0.55
    return example.believers, len(example.misled), known, is_clear
