"""Saliency: the share of the gradient that lies on the foreground."""

from pipeline.analyses import Analysis, Command
from pipeline.runtime.flag_types import Flag, count, section

SALIENCY = Analysis(
    name="saliency",
    implementation="pipeline.analyses.saliency.parts:PARTS",
    command=Command(
        "measure how much of a model's saliency lies on the foreground, and draw maps",
        "in9 saliency --dataset out --models resnet50,resnet50=mixed_rand.pth --maps 9",
        "run:run_main",
        has_graph=True,
    ),
    sections=(
        section(
            "saliency",
            ("saliency",),
            Flag("--maps", "N", "number of images to show saliency maps of", 9, count),
            Flag("--variant", "NAME", "variant to measure saliency on", "original"),
        ),
    ),
    job_flags=(
        (
            ("run",),
            Flag(
                "--saliency",
                "N",
                "measure saliency, and show maps of N images (default: none)",
                type=count,
            ),
        ),
    ),
    picture_noun="image",
    participle="explained",
    not_done="no saliency",
)
