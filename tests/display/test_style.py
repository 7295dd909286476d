"""Tests the files of figures."""

import re
import zlib

from pipeline.display.plot import Series, rows_figure


def test_a_pdf_embeds_true_type_fonts_and_is_the_same_each_time() -> None:
    drawn = rows_figure("by class", ["dog"], [Series("a model", ((0.5, 0.4, 0.6),))])
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", drawn.pdf(), re.DOTALL)
    contents = [zlib.decompress(each) for each in streams if each.startswith(b"x")]
    fonts = [each for each in contents if each.startswith(b"\x00\x01\x00\x00")]
    assert len(fonts) == 2  # Regular and bold.
    assert drawn.pdf() == drawn.pdf()
