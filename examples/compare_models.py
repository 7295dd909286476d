"""Compares two models: which leans more on backgrounds, and on which images they part.

python examples/compare_models.py OUT MODEL MODEL [flags of `in9 run`]
"""

import glob
import subprocess
import sys

import pandas

RULE = "argmax_then_map"


def main(output, first, second, *flags):
    """Evaluates both, and says what differs."""
    models = ("--models", f"{first},{second}")
    subprocess.run(["in9", "run", "--output", output, *models, *flags], check=True)

    # The interval is of the difference on the same images: narrower than each model's own.
    table = pandas.read_csv(f"{output}/results/comparisons.csv")
    gap = table[(table["variant"] == "bg_gap") & (table["label_rule"] == RULE)].iloc[0]
    difference, low, high = 100 * gap[["difference", "ci_low", "ci_high"]]
    names = f"BG-Gap of {gap['first']} less that of {gap['second']}"
    print(f"{names}: {difference:.1f} points [{low:.1f}, {high:.1f}]")

    # Every single answer.
    answers = pandas.read_parquet(glob.glob(f"{output}/results/*/predictions/*.parquet"))
    answers = answers[(answers["variant"] == "mixed_rand") & (answers["label_rule"] == RULE)]
    right = answers.pivot(index="key", columns="model", values="correct")
    for one, other in (("first", "second"), ("second", "first")):
        keys = right.index[right[gap[one]] & ~right[gap[other]]]
        print(f"{len(keys)} images only {gap[one]} has right on mixed_rand: {', '.join(keys)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
