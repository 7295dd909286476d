"""Accuracy of models on every variant, BG-Gap, and all statistics of their predictions."""

from pipeline.analyses import Analysis, Command

EVALUATION = Analysis(
    name="evaluate",
    implementation="pipeline.analyses.evaluation.parts:PARTS",
    command=Command(
        "measure the accuracy of models on every variant, and BG-Gap, with intervals",
        "in9 evaluate --dataset out --models resnet50.a1_in1k,resnet18=trained.pth",
        "run:run_main",
        has_graph=True,
    ),
    picture_noun="picture",
    participle="predicted",
    items="pictures",
    done="evaluated",
    not_done="not evaluated",
    refuses_overlap=True,
)
