"""A custom variant: the object as a black silhouette on its own tiled background.

    python examples/own_variant.py OUT [flags of `in9 run`]

`only_bg_t` is the background alone. What a model gets right beyond that, it knows from the shape.
"""

import os
import subprocess
import sys

import numpy as np
import pandas


def silhouette(layer):
    """Paints the variant, which must depend on the layer alone, so that it can be made again."""
    return np.where(layer.mask[..., np.newaxis], np.uint8(0), layer.only_bg_t)


# Raise the version when the function paints something else, because code is not compared.
silhouette.version = 1


def main(output, *flags):
    """Composes and evaluates the variant beside the paper's variants."""
    # Lets `python:own_variant:silhouette` find this file.
    paths = [os.path.dirname(os.path.abspath(__file__)), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    variants = ("--variants", "all,python:own_variant:silhouette")
    command = ["in9", "run", "--output", output, *variants, *flags]
    subprocess.run(command, check=True, env=environment)

    summary = pandas.read_csv(f"{output}/results/summary.csv")
    summary = summary[summary["label_rule"] == "argmax_then_map"]
    accuracy = summary.pivot(index="model", columns="variant", values="accuracy")
    print((100 * accuracy[["original", "only_bg_t", "silhouette"]]).round(1).to_string())


if __name__ == "__main__":
    main(*sys.argv[1:])
