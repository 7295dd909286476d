"""Simulates shares of the variance of features: how often their intervals contain the truth.

`interval_coverage.py` prints the table. Effects of foregrounds, of backgrounds, of classes of
backgrounds and of single composites are independent in each feature; of what is not the
background's variance, 60 % is the foreground's.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import itertools
import math
import os

import numpy as np
from numpy.typing import NDArray

from transforms.feature_shares import SHARES, feature_shares

BACKGROUND = (0.01, 0.05, 0.17, 0.5, 0.8)
OF_CLASS = (0.0, 0.3, 0.7)
WIDTHS = (1, 4, 16)
"""Numbers of features, which are independent. Those of encoders are more, but depend on each
other."""
TAILS = {"normal": math.inf, "t, 5 df": 5.0}
"""Degrees of freedom of the effects' distribution."""
LABELS = np.repeat(np.arange(9), 3)
LOWEST = 0.93
"""Least wanted coverage, but for twice its standard error."""

Cell = tuple[float, float, int, str]
"""Share of the background, of its class, number of features, and a name of `TAILS`."""


def drawn(rng: np.random.Generator, cell: Cell) -> NDArray[np.float64]:
    """Draws features of all composites: (27, 27, width)."""
    background, of_class, width, tails = cell
    df = TAILS[tails]

    def effects(share: float, *shape: int) -> NDArray[np.float64]:
        size = (*shape, width)
        draws = rng.standard_normal(size) if math.isinf(df) else rng.standard_t(df, size)
        return math.sqrt(share * (1 - 2 / df)) * draws

    rest, n = 1 - background, len(LABELS)
    of_backgrounds = effects(background * of_class, 9)[LABELS]
    of_backgrounds = of_backgrounds + effects(background * (1 - of_class), n)
    return effects(0.6 * rest, n, 1) + of_backgrounds + effects(0.4 * rest, n, n)


def coverage(cell: Cell, runs: int) -> NDArray[np.float64]:
    """Measures the coverage of each of `SHARES`; one that is not told counts as covered."""
    background, of_class, width, tails = cell
    truth = 0.6 * (1 - background), background, 0.4 * (1 - background), of_class
    rng = np.random.default_rng([round(100 * background), round(10 * of_class), width, len(tails)])
    found = [feature_shares(drawn(rng, cell), LABELS).values() for _ in range(runs)]
    ends = np.array([[one or (0, 0, 1) for one in run] for run in found])
    return np.asarray(((ends[..., 1] <= truth) & (truth <= ends[..., 2])).mean(axis=0))


def print_features(arguments: argparse.Namespace) -> list[bool]:
    """Prints the table of features; returns whether each cell is as wanted."""
    print(f"| effects | features | background | its class | {' | '.join(SHARES)} |")
    print(f"|---|--:|--:|--:|{'---|' * len(SHARES)}", flush=True)
    lines = list(itertools.product(TAILS, WIDTHS, BACKGROUND))
    cells = [(share, k, width, tails) for tails, width, share in lines for k in OF_CLASS]
    least = LOWEST - 2 * math.sqrt(LOWEST * (1 - LOWEST) / arguments.runs)
    with concurrent.futures.ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = pool.map(coverage, cells, itertools.repeat(arguments.runs))
        wanted = list[bool]()
        for tails, width, share in lines:
            columns = np.transpose(list(itertools.islice(found, len(OF_CLASS)))).tolist()
            wanted += [one >= least for column in columns for one in column]
            texts = (
                " ".join(f"{one:.3f}{'' if one >= least else '*'}" for one in column)
                for column in columns
            )
            classes = " ".join(map(str, OF_CLASS))
            print(f"| {tails} | {width} | {share} | {classes} | {' | '.join(texts)} |", flush=True)
    return wanted


TABLES = {"features": print_features}
