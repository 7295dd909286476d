"""SVG files in the page: readable in light and dark, with no ids in common, and harmless.

A dataset folder may come from anyone, and so may the names in its figures: only known
elements and attributes of drawings go into the page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree

from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeTree
from markupsafe import Markup, escape

from pipeline.figures.style import THEME

_ELEMENTS = frozenset(
    ("svg", "g", "defs", "clipPath", "path", "rect", "circle", "line", "polyline", "polygon")
    + ("use", "text", "tspan")
)
_ATTRIBUTES = frozenset(
    ("id", "style", "transform", "d", "x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "points")
    + ("width", "height", "clip-path", "href", "viewBox")
)
# What a style may hold: names, numbers, colours, and references to the same drawing.
_STYLE = re.compile(r"[\w\s.,:;#%'\"()+-]*")
_URL = re.compile(r"url\((?!#)", re.IGNORECASE)
_FONT = re.compile(r"font:\s*(?:(bold|\d00)\s+)?([\d.]+px)[^;]*")


def inline_svg(data: bytes, prefix: str, label: str) -> Markup:
    """A drawing as an element of the page.

    Args:
      data: an SVG file.
      prefix: of its ids, its own within the page.
      label: what the drawing shows, for those who cannot see it.

    Returns:
      An `svg` element. It is as wide as its container, and not wider than drawn by much;
      colours of `THEME` follow the page, the white behind the drawing is gone.

    Raises:
      ValueError: not an SVG file.
    """
    try:
        root = SafeTree.fromstring(data)
    except (ElementTree.ParseError, DefusedXmlException) as error:
        raise ValueError(f"not an SVG file: {error}") from error
    if _local(root.tag) != "svg":
        raise ValueError(f"not an SVG file: its root is {_local(root.tag)}")
    used = {
        name
        for element in root.iter()
        for value in element.attrib.values()
        for name in re.findall(r"(?:url\(#|^#)([\w.-]+)", value)
    }
    width = re.match(r"[\d.]+", root.get("viewBox", "0 0 440 300").split()[2])
    body = "".join(_markup(child, prefix, used) for child in root)
    return Markup(
        '<svg role="img" aria-label="{}" viewBox="{}" style="max-width: {}px">{}</svg>'
    ).format(
        label,
        root.get("viewBox", ""),
        round(1.25 * float(width[0] if width else 440)),
        Markup(body),
    )


def _local(tag: object) -> str:
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def _markup(element: ElementTree.Element, prefix: str, used: set[str]) -> str:
    name = _local(element.tag)
    if name not in _ELEMENTS or element.get("id") == "patch_1":
        # Matplotlib calls the figure's own background patch_1.
        return ""
    attributes = _attributes(element.attrib, prefix, used)
    inside = escape(element.text or "") if name in ("text", "tspan") else ""
    inside += "".join(_markup(child, prefix, used) for child in element)
    if name == "g" and not attributes:
        return str(inside)
    return f"<{name}{attributes}>{inside}</{name}>" if inside else f"<{name}{attributes}/>"


def _attributes(attributes: Mapping[str, str], prefix: str, used: set[str]) -> str:
    text = ""
    for full, value in attributes.items():
        name = _local(full)
        if name not in _ATTRIBUTES:
            continue
        if name == "id":
            if value not in used:
                continue
            value = prefix + value
        elif name == "href":
            if not value.startswith("#"):
                continue
            value = f"#{prefix}{value[1:]}"
        elif name == "style":
            if not _STYLE.fullmatch(value) or _URL.search(value):
                continue
            value = _themed(value)
        elif name == "clip-path":
            value = re.sub(r"url\(#", f"url(#{prefix}", value)
        text += f' {name}="{escape(value)}"'
    return text


def _themed(style: str) -> str:
    """A style in the page's font and colours."""
    style = _FONT.sub(lambda found: _font(found[1], found[2]), style)
    return re.sub(
        r"#[0-9a-fA-F]{6}\b",
        lambda found: (
            f"var(--{THEME[found[0].lower()]})" if found[0].lower() in THEME else found[0]
        ),
        style,
    )


def _font(weight: str | None, size: str) -> str:
    return f"font-size: {size}" + (f"; font-weight: {weight}" if weight else "")
