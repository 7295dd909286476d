"""Flags of training, which two commands share."""

from pipeline.runtime.flag_types import Flag, choice, count

LEARNING = (
    Flag("--weights", "DIR", "folder of initial weights; see: in9 models fetch"),
    Flag("--epochs", "N", "passes over the training images", 200, count),
    Flag("--batch_size", "N", "images in a training step", 256, count),
    Flag(
        "--lr",
        "X",
        "initial learning rate; divided by 10 after each quarter of the epochs",
        0.1,
        float,
    ),
)
TRAIN_JOB = (
    choice(
        "--device", ("auto", "cpu", "cuda"), "device to train on; cuda fails if there is no GPU"
    ),
    choice(
        "--precision",
        ("auto", "fp32", "tf32", "bf16", "fp16"),
        "numeric precision of training: fp32, tf32, bf16, fp16; auto is fp32 on a CPU, bf16 on a "
        "GPU, and fp16 on a GPU without bf16",
        "NAME",
    ),
    Flag(
        "--workers",
        "N",
        "processes that load pictures (default: 1 on a CPU; on a GPU one per core, up to 16)",
        type=int,
    ),
)
