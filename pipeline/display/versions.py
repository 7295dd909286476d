"""A figure of images in every version, side by side, one row for each image."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.display.style import styled
from transforms.hashing import text_bytes

KINDS = ("pdf", "png", "jpg")
"""File formats. A PDF keeps the pixels of the pictures; in the other formats, the figure has 300
pixels per inch."""

FIGURE_MARK = "in9 figure"
"""Text in the metadata of every figure, which tells it from foreign files."""
_WIDTH, _GAP, _HEADING = 396.0, 2.5, 12.0
"""Sizes in points (1/72 inch). The width is 5.5 inches, the width of the text in a paper."""


def versions_figure(
    names: Sequence[str], rows: Sequence[Sequence[NDArray[np.uint8]]], kind: str
) -> bytes:
    """Draws the figure.

    Args:
      names: names of the versions, written above their columns.
      rows: for each image, its pictures in all versions; all pictures have the same size.
      kind: format of the file, one of `KINDS`.

    Returns:
      The file without a date, so that the same pictures give the same bytes.
    """
    side = (_WIDTH + _GAP) / len(names) - _GAP
    height = _HEADING + len(rows) * (side + _GAP) - _GAP
    with styled():
        figure = Figure(figsize=(_WIDTH / 72, height / 72), dpi=300, facecolor="white")
        for column, name in enumerate(names):
            left = column * (side + _GAP)
            figure.text(
                (left + side / 2) / _WIDTH,
                1 - 0.45 * _HEADING / height,
                name,
                ha="center",
                va="center",
                fontsize=min(7.5, side / 6.5),
            )
            for row, versions in enumerate(rows):
                bottom = height - _HEADING - row * (side + _GAP) - side
                position = (left / _WIDTH, bottom / height, side / _WIDTH, side / height)
                axes = figure.add_axes(position)
                axes.set_axis_off()
                axes.imshow(versions[column], interpolation="none" if kind == "pdf" else "lanczos")
        metadata = {
            "pdf": {"CreationDate": None, "Creator": FIGURE_MARK, "Producer": None},
            "png": {"Software": FIGURE_MARK},
        }
        file = io.BytesIO()
        if kind == "jpg":
            jpeg = {"quality": 85, "comment": text_bytes(FIGURE_MARK)}
            figure.savefig(file, format=kind, pil_kwargs=jpeg)
        else:
            figure.savefig(file, format=kind, metadata=metadata[kind])
        return file.getvalue()
