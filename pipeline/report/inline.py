"""Puts figures into the page, with the page's font and colours, and with ids that are unique in it.

Only figures that were drawn for this page are inlined, because a file in the dataset's folder may
come from anybody.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from markupsafe import Markup

from pipeline.display.style import THEME

_REFERENCE = re.compile(r"(?<=url\(#)|(?<=^#)")
_NAMED = re.compile(r"(?<=#)[\w.-]+")
_THOUSANDTHS = re.compile(r"(?<=\.\d\d)\d+")
_FAMILY = re.compile(r"font-family:[^;]*;?\s*")
_SHORTHAND = re.compile(r"\bfont:\s*(?:(bold|\d+)\s+)?([\d.]+px)[^;]*;?\s*")
"""Matplotlib spells fonts as `font-family` or as the shorthand `font`, depending on its version."""
_GROWS = 1.34
"""Largest factor by which the page enlarges a figure, chosen so that two figures fill a row."""
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b")


def inline_svg(data: bytes, prefix: str, label: str) -> Markup:
    """Turns a figure into an element of the page.

    Args:
      data: content of the SVG file, from `pipeline.display.style.Drawn`.
      prefix: start of all of its ids, unique within the page.
      label: what the figure shows, for readers who cannot see it.

    Returns:
      An `svg` element, as wide as its container, up to `_GROWS` times its own width.
    """
    root = ElementTree.fromstring(data)
    named = set(_NAMED.findall(data.decode()))
    for element in root.iter():
        # To keep a page of many figures small, drop indentation, ids that nothing refers to, and
        # thousandths of a pixel.
        element.text, element.tail = (
            text if text and text.strip() else "" for text in (element.text, element.tail)
        )
        element.tag = _local(element.tag)
        element.attrib = {
            _local(name): _adapted(_local(name), value, prefix)
            for name, value in element.attrib.items()
            if name != "id" or value in named
        }
    box = root.attrib["viewBox"]
    return Markup(
        '<svg role="img" aria-label="{}" viewBox="{}" style="max-width: {}px">{}</svg>'
    ).format(
        label,
        box,
        round(_GROWS * float(box.split()[2])),
        Markup("".join(ElementTree.tostring(child, encoding="unicode") for child in root)),
    )


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _adapted(name: str, value: str, prefix: str) -> str:
    """Adapts the value of an attribute to a page that holds other figures, too."""
    if name == "id":
        return prefix + value
    value = _REFERENCE.sub(prefix, value)
    if name not in ("href", "clip-path", "class"):
        value = _THOUSANDTHS.sub("", value)
    if name == "style":
        value = _SHORTHAND.sub(_size_and_weight, _FAMILY.sub("", value))
        value = _COLOUR.sub(lambda match: _themed(match[0]), value)
    return value


def _size_and_weight(match: re.Match[str]) -> str:
    """Keeps the size and weight of a `font` shorthand.

    >>> _SHORTHAND.sub(_size_and_weight, "font: bold 12px 'DejaVu Sans', sans-serif; fill: red")
    'font-weight: bold; font-size: 12px; fill: red'
    """
    weight, size = match.groups()
    return f"{f'font-weight: {weight}; ' if weight else ''}font-size: {size}; "


def _themed(colour: str) -> str:
    variable = THEME.get(colour.lower())
    return f"var(--{variable})" if variable else colour
