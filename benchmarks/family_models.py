"""Simulates families: intervals of a method's mean over its seeds, and of differences of methods.

`interval_coverage.py` prints the table. A seed is right on a picture if the sum of the effects of
foreground, background and picture, all normal, is below a threshold. All seeds of a method have
parts of these effects in common, and two methods have parts of those in common. A seed's thresholds
differ from its method's by a normal deviation for each variant, so that the seeds' true accuracies
differ; the accuracies of the method are the means over all seeds that there might be.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from threshold_models import MARGIN, OF_BACKGROUND, PAIRINGS, SHARED_BY_VARIANTS, Study, studies

from pipeline.evaluate.comparisons import Measured, measure
from pipeline.evaluate.subjects import interval_of_further
from transforms.analysis import gaps_of_pictures
from transforms.intervals import Floats
from transforms.two_way import Roles, Seeds

SEEDS = (3, 5, 10)
"""Numbers of seeds of a method."""
SIZES = {"none": 0.0, "moderate": 1.0, "large": 4.0}
"""Variance of the seeds' true accuracies, as multiples of the noise of a seed: of the variance, on
given pictures, of the accuracies of seeds whose true ones are equal."""
ACCURACIES = ((0.88, 0.8), (0.97, 0.92), (0.99, 0.97))
"""True accuracies of a method on `mixed_same` and `mixed_rand`."""
SHARED_BY_SEEDS = 0.7
"""Share of the variance of effects that the seeds of a method have in common."""
SHARED_BY_METHODS = 0.6
"""Share of the latter that two methods have in common."""
NAMES = (
    "gap",
    "accuracy",
    "further gap",
    "further accuracy",
    "difference of gaps",
    "difference of accuracies",
)
"""What has an interval; accuracies are those on `mixed_rand`."""
LOWEST, HIGHEST = 0.93, 0.99
"""Wanted coverage, but for twice its standard error."""
_NODES = np.linspace(-8, 8, 2001)
_WEIGHTS = np.exp(-(_NODES**2) / 2) / np.exp(-(_NODES**2) / 2).sum()
"""Nodes and weights of integrals over normal deviations."""

Effects = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
"""Effects of foregrounds, (..., n), backgrounds, (..., n), and pictures, (..., 2, draws, n)."""


class Method(NamedTuple):
    """A method's true accuracies on the two variants, and the size of its seeds' deviations.

    Attributes:
      deviations: standard deviation of the seeds' thresholds on each variant; effects have 1.
    """

    accuracies: tuple[float, float]
    deviations: tuple[float, float]

    def thresholds(self, rng: np.random.Generator, seeds: int) -> Floats:
        """Draws the thresholds of seeds on the two variants, (seeds, 2)."""
        sizes = np.asarray(self.deviations)
        middle = [NormalDist().inv_cdf(accuracy) for accuracy in self.accuracies]
        deviations = sizes * rng.standard_normal((seeds, 2))
        return np.asarray(np.sqrt(1 + sizes**2) * middle + deviations)


def mixed(rng: np.random.Generator, shared: Effects, share: float, *more: int) -> Effects:
    """Draws effects, a share of whose variance is due to the shared ones, with more axes before."""
    foreground, background, picture = (
        math.sqrt(share) * one
        + math.sqrt(1 - share) * rng.standard_normal((*more, *one.shape), np.float32)
        for one in shared
    )
    return foreground, background, picture


def world(rng: np.random.Generator, study: Study) -> Effects:
    """Draws effects that all methods share."""
    n = len(study.groups)
    shapes: tuple[tuple[int, ...], ...] = ((n,), (n,), study.backgrounds.shape)
    foreground, background, picture = (rng.standard_normal(one, np.float32) for one in shapes)
    return foreground, background, picture


def answers(
    rng: np.random.Generator, study: Study, shared: Effects, thresholds: Floats
) -> NDArray[np.bool_]:
    """Draws which pictures each seed of a method is right on: (seeds, 2, draws, n) bool."""
    method = mixed(rng, shared, SHARED_BY_METHODS)
    foreground, background, picture = mixed(rng, method, SHARED_BY_SEEDS, len(thresholds))
    effects = math.sqrt(SHARED_BY_VARIANTS) * foreground[:, np.newaxis, np.newaxis]
    effects = effects + math.sqrt(OF_BACKGROUND) * background[:, study.backgrounds]
    effects += math.sqrt(1 - SHARED_BY_VARIANTS - OF_BACKGROUND) * picture
    return np.asarray(effects < thresholds[..., np.newaxis, np.newaxis])


@functools.cache
def pairings(images: int, draws: int) -> list[tuple[Study, Roles]]:
    """Returns studies, and the roles of the pictures of `mixed_rand` in each."""
    return [
        (
            study,
            Roles.from_units(np.tile(study.groups, draws), study.backgrounds[1].ravel()),
        )
        for study in studies([1] * images, draws)
    ]


@functools.cache
def noises(images: int, draws: int, accuracies: tuple[float, float]) -> tuple[float, float]:
    """Measures the variance of the accuracies of seeds with the same true ones, by variant."""
    rng, alike = np.random.default_rng(images), Method(accuracies, (0, 0))
    squares = []
    for study, _ in pairings(images, draws):
        for _ in range(max(40_000 // images, 10)):
            right = answers(rng, study, world(rng, study), alike.thresholds(rng, 10))
            squares.append(right.mean(axis=(2, 3)).var(axis=0, ddof=1))
    same, rand = np.mean(squares, axis=0).tolist()
    return same, rand


def deviation_for(accuracy: float, variance: float) -> float:
    """Finds the standard deviation of thresholds that gives true accuracies a variance."""
    low, high = 0.0, 3.0
    for _ in range(40):
        size = (low + high) / 2
        middle = math.sqrt(1 + size**2) * NormalDist().inv_cdf(accuracy)
        true = np.asarray([NormalDist().cdf(middle + size * node) for node in _NODES])
        seen = float(_WEIGHTS @ true**2 - (_WEIGHTS @ true) ** 2)
        low, high = (size, high) if seen < variance else (low, size)
    return low


@functools.cache
def method(images: int, draws: int, accuracies: tuple[float, float], size: str) -> Method:
    """Returns a method whose seeds differ as much as `SIZES` says."""
    same, rand = (
        deviation_for(accuracy, SIZES[size] * noise) if SIZES[size] else 0.0
        for accuracy, noise in zip(accuracies, noises(images, draws, accuracies), strict=True)
    )
    return Method(accuracies, (same, rand))


def seeds_of(right: NDArray[np.bool_]) -> tuple[Seeds, Seeds]:
    """Returns the gaps of seeds, and their accuracies on `mixed_rand`, as tables compute them."""
    pictures = right.reshape(len(right), -1)
    rand = pictures[:, pictures.shape[1] // 2 :]
    share = rand.mean(axis=1)
    return (
        Seeds(*gaps_of_pictures(pictures, np.arange(pictures.shape[1]) < pictures.shape[1] // 2)),
        Seeds(share, (rand - share[:, np.newaxis]) / rand.shape[1]),
    )


def measured(roles: Roles, n: int, methods: Sequence[Seeds], *, is_share: bool = False) -> Measured:
    """Measures a method, or the difference of two, all of which have enough seeds."""
    found = measure(roles, n, *methods, is_share=is_share)
    assert found is not None
    return found


def one_run(
    rng: np.random.Generator, study: Study, of_rand: Roles, methods: tuple[Method, Method], k: int
) -> list[tuple[float, float, float]]:
    """Returns, for each of `NAMES`, the true value and the ends of the interval."""
    shared, n = world(rng, study), len(study.groups)
    thresholds = [one.thresholds(rng, k + 1) for one in methods]
    families = [seeds_of(answers(rng, study, shared, one[:k])) for one in thresholds]
    gaps, shares = zip(*families, strict=True)
    further = [NormalDist().cdf(one) for one in thresholds[0][k].tolist()]
    (same, rand), (other_same, other_rand) = (one.accuracies for one in methods)
    one = measured(study.roles, n, gaps[:1])
    share = measured(of_rand, n, shares[:1], is_share=True)
    return [
        (same - rand, *one.interval()),
        (rand, *share.interval()),
        (further[0] - further[1], *interval_of_further(one, gaps[0])),
        (further[1], *interval_of_further(share, shares[0])),
        (
            same - rand - other_same + other_rand,
            *measured(study.roles, n, gaps).interval(),
        ),
        (rand - other_rand, *measured(of_rand, n, shares).interval()),
    ]


class Line(NamedTuple):
    """The images, accuracies and number of seeds of a line of the table."""

    images: int
    draws: int
    accuracies: tuple[float, float]
    seeds: int

    def measure(self, runs: int) -> dict[str, Floats]:
        """Returns the coverage of each of `NAMES`, by the size of the seeds' variance."""
        same, rand = self.accuracies
        cells = {}
        for number, size in enumerate(SIZES):
            rng = np.random.default_rng([number, self.images, self.draws, self.seeds])
            methods = (
                method(self.images, self.draws, (same, rand), size),
                method(self.images, self.draws, (same, rand - MARGIN), size),
            )
            of = pairings(self.images, self.draws)
            results = [one_run(rng, *of[i % PAIRINGS], methods, self.seeds) for i in range(runs)]
            truth, low, high = np.moveaxis(np.asarray(results), 2, 0)
            cells[size] = ((low <= truth) & (truth <= high)).mean(axis=0)
        return cells


def is_wanted(share: float, runs: int) -> bool:
    low, high = (2 * math.sqrt(one * (1 - one) / runs) for one in (LOWEST, HIGHEST))
    return LOWEST - low <= share <= HIGHEST + high


def print_families(arguments: argparse.Namespace) -> list[bool]:
    """Prints the table of families; returns whether each cell is as wanted."""
    print(f"| accuracies | images | seeds | {' | '.join(NAMES)} |")
    print(f"|---|---|--:|{'---|' * len(NAMES)}", flush=True)
    each = itertools.product(arguments.images, arguments.draws, ACCURACIES, SEEDS)
    table, wanted = [Line(*one) for one in each], list[bool]()
    for line, cells in zip(table, _measured(table, arguments.runs), strict=True):
        columns = []
        for number in range(len(NAMES)):
            shares = [float(cells[size][number]) for size in SIZES]
            good = [is_wanted(share, arguments.runs) for share in shares]
            wanted += good
            columns.append(
                " ".join(
                    f"{share:.3f}{'' if is_good else '*'}"
                    for share, is_good in zip(shares, good, strict=True)
                )
            )
        names = "{:g} / {:g}".format(*line.accuracies), f"{line.images:,}, K = {line.draws}"
        print(f"| {' | '.join([*names, str(line.seeds), *columns])} |", flush=True)
    return wanted


def _measured(table: Sequence[Line], runs: int) -> Iterator[dict[str, Floats]]:
    """Measures the lines in order, each core one at a time."""
    with concurrent.futures.ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(Line.measure, table, itertools.repeat(runs))


TABLES = {"families": print_families}
