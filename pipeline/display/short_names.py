"""Short names of models, for places with little room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.evaluate.results import Named


class ShortName(NamedTuple):
    """A model's short name in two parts: its architecture, and what distinguishes it from other
    models of the same architecture (its weights, its source, and settings that are not the
    default)."""

    first: str
    rest: str


def names_of(models: Sequence[Named]) -> list[ShortName]:
    """Returns the short names of models. Folders of their files are left out, unless two names
    would then be the same."""
    short = [_name(one, with_folders=False) for one in models]
    return [
        name if short.count(name) == 1 else _name(one, with_folders=True)
        for one, name in zip(models, short, strict=True)
    ]


def _name(named: Named, *, with_folders: bool) -> ShortName:
    model = named.model
    settings = named.name.removeprefix(model).strip()
    kind, colon, name = model.partition(":")
    if "=" in (kind if colon else model):
        first, _, rest = model.partition("=")
        rest = rest if with_folders else rest.rpartition("/")[2]
    elif colon:
        first, rest = name, kind
        if kind == "onnx" and not with_folders:
            first = name.rpartition("/")[2]
    else:
        first, _, rest = model.partition(".")
    return ShortName(first, " ".join(filter(None, (rest, settings))))


def shorten(name: str, length: int = 30) -> str:
    """Cuts the middle out of a name that is too long, because tags at the end tell models apart.

    >>> shorten("vit_base_patch16_clip_224.openai", 12)
    'vit_ba…penai'
    """
    if len(name) <= length:
        return name
    tail = (length - 1) // 2
    return f"{name[: length - 1 - tail]}…{name[-tail:]}"
