"""report.html: one self-contained page of what a dataset holds and what models make of it.

    results -> evidence -> panels, one module each -> page

Re-making it from the same results gives the same bytes, also from a copy of them.
"""

from pipeline.report.write import REPORT as REPORT
from pipeline.report.write import render_report as render_report
from pipeline.report.write import write_report as write_report
