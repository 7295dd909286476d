"""Figures in the page: in its font and colours, and with no ids in common.

Only figures that were drawn for this page come here. A file that lies in the folder may be
anybody's.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from markupsafe import Markup

from pipeline.report.figures.style import THEME

_REFERENCE = re.compile(r"(?<=url\(#)|(?<=^#)")
_NAMED = re.compile(r"(?<=#)[\w.-]+")
_THOUSANDTHS = re.compile(r"(?<=\.\d\d)\d+")
_FAMILY = re.compile(r"font-family:[^;]*;?\s*")
_SHORTHAND = re.compile(r"\bfont:\s*(?:(bold|\d+)\s+)?([\d.]+px)[^;]*;?\s*")
"""Which of the two spellings Matplotlib writes depends on its version."""
_GROWS = 1.34
"""How much larger than drawn a figure may be shown: two of them fill a row."""
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b")


def inline_svg(data: bytes, prefix: str, label: str) -> Markup:
    """Makes an element of the page of a figure.

    Args:
      data: of `pipeline.report.figures.style.Drawn`.
      prefix: of its ids, its own within the page.
      label: what the figure shows, for those who cannot see it.

    Returns:
      An `svg` element, as wide as its container, up to `_GROWS` times its own width.
    """
    root = ElementTree.fromstring(data)
    named = set(_NAMED.findall(data.decode()))
    for element in root.iter():
        # A page of many figures has no room for indentation, names that nothing refers to, and
        # thousandths of a pixel.
        element.text, element.tail = (
            text if text and text.strip() else "" for text in (element.text, element.tail)
        )
        element.tag = _local(element.tag)
        element.attrib = {
            _local(name): _of_page(_local(name), value, prefix)
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


def _of_page(name: str, value: str, prefix: str) -> str:
    """The value of an attribute, in a page that holds other figures, too."""
    if name == "id":
        return prefix + value
    value = _REFERENCE.sub(prefix, value)
    if name not in ("href", "clip-path", "class"):
        value = _THOUSANDTHS.sub("", value)
    if name == "style":
        value = _SHORTHAND.sub(_size_and_weight, _FAMILY.sub("", value))
        value = _COLOUR.sub(lambda found: _themed(found[0]), value)
    return value


def _size_and_weight(found: re.Match[str]) -> str:
    """What a `font` shorthand says beside the family.

    >>> _SHORTHAND.sub(_size_and_weight, "font: bold 12px 'DejaVu Sans', sans-serif; fill: red")
    'font-weight: bold; font-size: 12px; fill: red'
    """
    weight, size = found.groups()
    return f"{f'font-weight: {weight}; ' if weight else ''}font-size: {size}; "


def _themed(colour: str) -> str:
    variable = THEME.get(colour.lower())
    return f"var(--{variable})" if variable else colour
