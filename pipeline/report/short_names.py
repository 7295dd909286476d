"""Names of models where there is little room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.evaluate.result_files import display_name


class ShortName(NamedTuple):
    """A model's architecture, and what tells it from others of that: its weights, its kind, and
    what is not the default in how it was run."""

    first: str
    rest: str


def names_of(summaries: Sequence[Mapping[str, Any]]) -> list[ShortName]:
    """The names of models. Folders of their files say nothing to a reader, and are left out unless
    they alone tell two models apart."""
    short = [_name(one, with_folders=False) for one in summaries]
    return [
        name if short.count(name) == 1 else _name(one, with_folders=True)
        for one, name in zip(summaries, short, strict=True)
    ]


def _name(summary: Mapping[str, Any], *, with_folders: bool) -> ShortName:
    model = str(summary["model"])
    how = display_name(summary).removeprefix(model).strip()
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
    return ShortName(first, " ".join(filter(None, (rest, how))))


def shorten(name: str, length: int = 30) -> str:
    """A name that fits: its middle makes way, since tags tell models apart.

    >>> shorten("vit_base_patch16_clip_224.openai", 12)
    'vit_ba…penai'
    """
    if len(name) <= length:
        return name
    tail = (length - 1) // 2
    return f"{name[: length - 1 - tail]}…{name[-tail:]}"
