"""report.html: one self-contained page about a dataset and how models do on it.

    results -> evidence -> panels, one module each -> page

The same results, or a copy of them, always give the same bytes.
"""
