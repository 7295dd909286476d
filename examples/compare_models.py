"""Compares two models: which one relies more on backgrounds, and on which images they differ.

python examples/compare_models.py OUT MODEL MODEL [flags of `in9 run`]
"""

import glob
import subprocess
import sys

import pandas

RULE = "argmax_then_map"


def main(output, first, second, *flags):
    """Evaluates both models, and prints how they differ."""
    models = ("--models", f"{first},{second}")
    subprocess.run(["in9", "run", "--output", output, *models, *flags], check=True)

    # The interval of the difference, on the same images, is narrower than each model's own.
    table = pandas.read_csv(f"{output}/results/comparisons.csv")
    gap = table[(table["variant"] == "bg_gap") & (table["label_rule"] == RULE)].iloc[0]
    difference, low, high = 100 * gap[["difference", "ci_low", "ci_high"]]
    names = f"BG-Gap of {gap['first']} minus that of {gap['second']}"
    print(f"{names}: {difference:.1f} points [{low:.1f}, {high:.1f}]")

    # The predictions of single images.
    rows = pandas.read_parquet(glob.glob(f"{output}/results/*/predictions/*.parquet"))
    rows = rows[(rows["variant"] == "mixed_rand") & (rows["label_rule"] == RULE)]
    correct = rows.pivot(index="key", columns="model", values="correct")
    for one, other in (("first", "second"), ("second", "first")):
        keys = correct.index[correct[gap[one]] & ~correct[gap[other]]]
        print(
            f"{len(keys)} images that only {gap[one]} gets right on mixed_rand: {', '.join(keys)}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
