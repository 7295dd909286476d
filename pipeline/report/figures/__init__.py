"""Figures of the report, each a pure function of rows of results that gives an SVG file."""
