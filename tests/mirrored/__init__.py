"""Mirrored pictures: accuracy if left and right are exchanged.

`tests/analyses/test_new_analysis.py` adds this folder to a copy of `pipeline/analyses/`.
"""

from __future__ import annotations

from pipeline.analyses import Analysis
from pipeline.runtime.flag_types import switch

MIRRORED = Analysis(
    name="mirrored",
    implementation="pipeline.analyses.mirrored.parts:PARTS",
    job_flags=(
        (
            ("run", "evaluate"),
            switch("--mirrored", "measure accuracy on mirrored pictures, too"),
        ),
    ),
    picture_noun="mirrored picture",
    participle="predicted",
    items="pictures",
    done="mirrored",
    not_done="not mirrored",
)
