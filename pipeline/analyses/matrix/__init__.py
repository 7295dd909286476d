"""The train x test matrix: models trained on each variant, tested on all."""

from pipeline.analyses import Analysis, Command
from pipeline.runtime.flag_types import (
    ALLOW_OVERLAP,
    LEARNING,
    TRAIN_JOB,
    Flag,
    comma_separated,
    section,
    share,
    switch,
)

MATRIX = Analysis(
    name="matrix",
    implementation="pipeline.analyses.matrix.parts:PARTS",
    command=Command(
        "train on each variant and test on all of them: the train x test matrix",
        "in9 matrix --dataset out --probe --holdout 0.5",
        "train:run_matrix",
    ),
    sections=(
        section(
            "matrix",
            ("matrix",),
            Flag("--in9l", "DIR", "IN-9L dataset to add as a row and a column (default: none)"),
            Flag(
                "--variants",
                "A,B",
                "variants to train and to test on (default: all but renderings and mixed_pNN); "
                "dial trains on strengths of the background, and tests on four variants",
                type=comma_separated,
            ),
            switch("--probe", "fit only a last layer on frozen encoders; takes minutes on a CPU"),
            Flag(
                "--arch",
                "A,B",
                "timm architectures (default: resnet50); with --probe any encoders of --models "
                "(default: efficientnet_lite0)",
                type=comma_separated,
            ),
            Flag("--train_split", "NAME", "split to train on (default: train)"),
            Flag(
                "--eval_split", "NAME", "split to test on (default: val, else the first not train)"
            ),
            Flag(
                "--holdout",
                "X",
                "divide a single split: test on this share, train on the rest",
                0.0,
                share,
            ),
            ALLOW_OVERLAP,
        ),
        section(
            "training",
            ("matrix",),
            switch(
                "--pretrained", "start from weights trained on ImageNet, as a probe always does"
            ),
            *LEARNING,
            switch("--overwrite", "replace trainings that were made with other flags"),
        ),
        section("job", ("matrix",), *TRAIN_JOB),
    ),
)
