"""Compares two models: which one relies more on backgrounds, and on which images they differ.

python examples/compare_models.py OUT MODEL MODEL [flags]

Evaluates the dataset OUT, with flags of `in9 evaluate`. Without one, makes it first, with flags of
`in9 run`.
"""

import argparse
import glob
import os
import subprocess
import sys

RULE = "argmax_then_map"


def main(output, first, second, flags):
    """Evaluates both models, and prints how they differ."""
    exists = os.path.exists(f"{output}/manifest.json")
    command = ("evaluate", "--dataset") if exists else ("run", "--output")
    done = subprocess.run(["in9", *command, output, "--models", f"{first},{second}", *flags])
    if done.returncode:
        sys.exit(done.returncode)

    # Imported late, because --help needs none.
    import pandas

    # The interval of the difference, on the same images, is narrower than each model's own.
    table = pandas.read_csv(f"{output}/results/comparisons.csv")
    # The dataset may have results of other models.
    is_pair = table["first"].isin([first, second]) & table["second"].isin([first, second])
    is_gap = (table["variant"] == "bg_gap") & (table["label_rule"] == RULE)
    gap = table[is_pair & is_gap].iloc[0]
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("output", "first", "second"):
        parser.add_argument(name)
    parser.add_argument("flags", nargs=argparse.REMAINDER)
    main(**vars(parser.parse_args()))
