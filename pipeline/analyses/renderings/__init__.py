"""The analysis of renderings: how BG-Gap changes with how the pictures are rendered."""

from pipeline.analyses import Analysis, Command
from pipeline.runtime.flag_types import RENDERINGS as RENDERINGS_FLAG
from pipeline.runtime.flag_types import Flag, count, section

RENDERINGS = Analysis(
    name="method",
    implementation="pipeline.analyses.renderings.parts:PARTS",
    command=Command(
        "measure how BG-Gap depends on the fill of the hole and on the foreground's edge",
        "in9 method --dataset out --models resnet50",
        "run:run_main",
        has_graph=True,
    ),
    sections=(
        section(
            "method",
            ("method",),
            Flag("--replicates", "K", "number of draws (default: the dataset's)", type=count),
            RENDERINGS_FLAG,
            Flag("--against", "DIR", "dataset to compare with, on the images that both have"),
        ),
    ),
    picture_noun="rendering",
    participle="predicted",
    items="pictures",
    not_done="no method",
    refuses_overlap=True,
)
