"""Limits of input files: size and nesting, besides the limit on pixels (`codec.MAX_PIXELS`)."""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any, Self, TypeVar

MAX_PICTURE_BYTES = 160_000_000
"""Largest picture file in bytes: 50 million uncompressed pixels take 150 MB."""

MAX_ANNOTATION_BYTES = 10_000_000
"""Largest annotation file in bytes, XML or JSON. ImageNet's annotation files have about a kilobyte.
Parsing a file takes ten to thirty times its size in memory."""

MAX_NESTING = 64
"""Largest number of lists and objects inside each other in JSON or TOML. Functions that call
themselves for each level need a few frames of Python's stack, which has a thousand."""

MAX_IMAGE_SIZE = 4096
"""The longest side of a dataset's pictures, and of a network's input, in pixels."""

MAX_STATED = 1000
"""Largest number of characters of what a dataset's maker states."""

_Data = TypeVar("_Data")


def load_json(data: bytes | str) -> Any:
    """Parses JSON from outside.

    Raises ValueError for the reasons of `load_nested`, or if two fields of an object have one name.
    """
    # `json.loads` decodes bytes in the same way, as names of files need not be UTF-8.
    return load_nested(
        _DECODER.decode,
        data if isinstance(data, str) else data.decode(json.detect_encoding(data), "surrogatepass"),
    )


def _object(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes an object of its fields, of which the standard library would keep the last."""
    content = dict(fields)
    if len(content) < len(fields):
        ((name, _),) = Counter(name for name, _ in fields).most_common(1)
        raise ValueError(f"an object has two fields {name!r}")
    return content


_DECODER = json.JSONDecoder(object_pairs_hook=_object)  # noqa: TID251
"""Made once, because to make it takes longer than to parse a line."""


def load_nested(parse: Callable[[_Data], Any], data: _Data) -> Any:
    """Calls a parser; raises ValueError if it fails, or data nest deeper than `MAX_NESTING`."""
    try:
        content = parse(data)
    except RecursionError:
        raise ValueError(f"it has more than {MAX_NESTING} levels") from None
    level: list[Any] = [[content]]
    for _ in range(MAX_NESTING + 1):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return content
    raise ValueError(f"it has more than {MAX_NESTING} levels")


class Unread(bytes):
    """A stand-in for content that is too large, or cannot be read. Its bytes say why, as text.

    Decoders report this reason in the same way as broken content.
    """

    @classmethod
    def from_size(cls, size: int, limit: int) -> Self:
        """Creates the stand-in for content of `size` bytes, which exceeds the limit."""
        return cls(b"%d bytes, more than the limit of %d" % (size, limit))
