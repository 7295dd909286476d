"""Figures of the report. Each is a pure function from rows of results to an SVG file."""
