"""Adversarial backgrounds: which foregrounds some background turns wrong."""

from pipeline.analyses import Analysis, Command
from pipeline.runtime.flag_types import Flag, grid, section, switch

_GRID = "all|N|FxB"

ATTACK = Analysis(
    name="attack",
    implementation="pipeline.analyses.attack.parts:PARTS",
    command=Command(
        "adversarial backgrounds: count foregrounds that some background makes a model get wrong",
        "in9 attack --dataset out --models resnet50 --grid 100",
        "run:run_main",
        has_graph=True,
    ),
    sections=(
        section(
            "attack",
            ("attack",),
            Flag(
                "--grid",
                _GRID,
                "number of foregrounds and backgrounds, spread evenly over the classes: N x N or "
                "F x B",
                "all",
                grid,
            ),
            switch(
                "--early_stop",
                "skip the other backgrounds of a foreground once one has fooled the model: faster, "
                "but measures challenge accuracy only",
            ),
        ),
    ),
    job_flags=(
        (
            ("run",),
            Flag(
                "--attack",
                _GRID,
                "run the adversarial attack, on a grid of N x N or F x B (default: none)",
                type=grid,
            ),
        ),
    ),
    picture_noun="composite",
    participle="predicted",
    items="composites",
    done="attacked",
    not_done="not attacked",
    refuses_overlap=True,
)
