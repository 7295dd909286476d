"""Tests the files of figures."""

import re
import zlib

from fontTools import subset

from pipeline.display.plot import Series, rows_figure


def test_a_pdf_embeds_true_type_fonts_that_hold_no_more_than_its_text_needs() -> None:
    options = subset.Options
    drawn = rows_figure("by class", ["dog"], [Series("a model", ((0.5, 0.4, 0.6),))])
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", drawn.pdf(), re.DOTALL)
    contents = [zlib.decompress(each) for each in streams if each.startswith(b"x")]
    fonts = [each for each in contents if each.startswith(b"\x00\x01\x00\x00")]
    assert len(fonts) == 2  # Regular and bold.
    assert not any(rules in font for font in fonts for rules in (b"GSUB", b"GPOS", b"GDEF"))
    assert drawn.pdf() == drawn.pdf()
    assert subset.Options is options  # Others in the process may draw, too.
