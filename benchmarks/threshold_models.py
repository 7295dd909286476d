"""Simulates intervals of accurate models, of groups of images, of extremes, and the power of gaps.

`interval_coverage.py` prints these tables. A model is right on a picture if the sum of the
foreground's effect, the background's and noise, all normal, is below a threshold, so that any
accuracy is possible and known. Models share parts of the effects. All runs of a pairing are drawn
at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from pipeline.jobs.conditions import MIN_IMAGES
from transforms.analysis import gaps_of_pictures
from transforms.intervals import holm, level_of, t_quantile
from transforms.pairing import Pool, pair
from transforms.two_way import (
    EstimateSpread,
    Roles,
    difference_interval,
    p_value,
    smallest_difference,
)
from transforms.variants import draws_of, with_replicates

Floats = NDArray[np.float64]

PAIRINGS = 5
"""Number of pairings that the runs of a cell are divided between."""
SHARED_BY_VARIANTS = 0.5
"""Share of the variance of an answer's threshold that is due to the foreground."""
OF_BACKGROUND = 0.15
"""Share that is due to the background."""
ACCURACIES = ((0.88, 0.8), (0.97, 0.92), (0.985, 0.965), (0.99, 0.97), (0.995, 0.985))
"""Accuracies on `mixed_same` and `mixed_rand`."""
MARGIN = 0.02
MODELS = 10
"""Number of models that are compared with a baseline."""
NOMINAL = 0.025
"""Share of runs in which a true condition may be said to be false, or a false one true."""


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """Images, perhaps in groups, on which runs of models are tested.

    Attributes:
      groups: (n,) group of each image.
      backgrounds: (2, draws, n) image of each background, for `mixed_same` and `mixed_rand`.
      roles: roles of all these pictures.
    """

    groups: NDArray[np.int64]
    backgrounds: NDArray[np.int64]
    roles: Roles

    @classmethod
    def draw(cls, sizes: Sequence[int], draws: int, seed: int) -> Study:
        """Draws pairs for groups of these sizes, whose images are of nine classes."""
        groups = np.repeat(np.arange(len(sizes)), sizes)
        n, keys = len(groups), [f"image {i}" for i in range(len(groups))]
        labels = np.random.default_rng(seed).permutation(np.arange(n) % 9)
        pool = Pool.from_images(keys, labels, seed=seed, groups=groups)
        backgrounds = np.stack([
            [pair(pool, np.arange(n), keys, name, seed=seed) for name in names]
            for names in draws_of(with_replicates(("mixed_same", "mixed_rand"), draws)).values()
        ])  # fmt: skip
        roles = Roles.from_units(
            np.tile(groups, 2 * draws),
            groups[backgrounds.ravel()],
            np.tile(np.arange(draws * n), 2),
        )
        return cls(groups, backgrounds, roles)

    def effects(self, rng: np.random.Generator, runs: int) -> Floats:
        """Draws normal effects of images, half of whose variance is their group's; (runs, n)."""
        shape = runs, int(self.groups.max()) + 1
        own = rng.standard_normal((runs, len(self.groups)))
        if shape[1] == len(self.groups):
            return own
        return np.asarray(np.sqrt(0.5) * (rng.standard_normal(shape)[:, self.groups] + own))

    def answers(
        self,
        rng: np.random.Generator,
        accuracies: tuple[float, float],
        runs: int,
        shared: tuple[Floats, Floats] | None = None,
        share: float = 0.0,
    ) -> NDArray[np.int8]:
        """Draws which pictures a model is right on: (runs, pictures), 0 or 1.

        Args:
          rng: the source of random numbers.
          accuracies: true accuracies on the two variants.
          runs: number of models.
          shared: effects of foregrounds and backgrounds that models share.
          share: share of the effects' variance that they share.
        """
        foreground, background = (
            np.sqrt(1 - share) * self.effects(rng, runs)
            + (np.sqrt(share) * shared[role] if shared else 0.0)
            for role in range(2)
        )
        noise = 1 - SHARED_BY_VARIANTS - OF_BACKGROUND
        parts = [
            np.sqrt(SHARED_BY_VARIANTS) * foreground[:, np.newaxis]
            + np.sqrt(OF_BACKGROUND) * background[:, drawn]
            + np.sqrt(noise) * rng.standard_normal((runs, *drawn.shape))
            < NormalDist().inv_cdf(accuracy)
            for drawn, accuracy in zip(self.backgrounds, accuracies, strict=True)
        ]
        return np.concatenate(parts, axis=1).reshape(runs, -1).astype(np.int8)

    def gaps(self, answers: NDArray[np.integer]) -> tuple[Floats, EstimateSpread]:
        """Computes gaps, or differences of gaps, from (runs, pictures) answers or differences."""
        pictures = answers.shape[1]
        gap, r = gaps_of_pictures(answers.astype(np.float64), np.arange(pictures) < pictures // 2)
        return gap, self.roles.spread(r)


def studies(sizes: Sequence[int], draws: int) -> list[Study]:
    return [Study.draw(sizes, draws, seed) for seed in range(PAIRINGS)]


def errors_of(low: Floats, high: Floats, truth: float) -> tuple[float, float, float]:
    """Returns the coverage, and the shares of intervals above and below the truth."""
    above, below = float((low > truth).mean()), float((high < truth).mean())
    return 1 - above - below, above, below


def compared(
    rng: np.random.Generator,
    study: Study,
    runs: int,
    accuracies: tuple[float, float],
    margin: float,
) -> tuple[float, float]:
    """Compares ten models with a baseline from which each differs by the margin.

    Returns:
      (share of runs in which any is said to be worse, share in which any is said not to be worse).
    """
    same, rand = accuracies
    shared = study.effects(rng, runs), study.effects(rng, runs)
    baseline = study.answers(rng, (same, min(rand + margin, 0.9999)), runs, shared, 0.6)
    true = min(rand + margin, 0.9999) - rand
    worse, not_worse = np.zeros((2, runs), bool)
    for _ in range(MODELS):
        answers = study.answers(rng, accuracies, runs, shared, 0.6)
        low, high = difference_interval(*study.gaps(answers - baseline), level_of(MODELS))
        worse |= low > true
        not_worse |= high < true
    return float(worse.mean()), float(not_worse.mean())


def allowed(share: float, runs: int) -> float:
    """Returns a share, plus twice the standard error of its estimate."""
    return share + 2 * float(np.sqrt(share * (1 - share) / runs))


def print_row(cells: Sequence[str], values: Sequence[tuple[float, bool]]) -> list[bool]:
    """Prints a row of a table, with a star behind values that are not as wanted."""
    shown = [f"{value:.3f}{'' if good else '*'}" for value, good in values]
    print(f"| {' | '.join([*cells, *shown])} |", flush=True)
    return [good for _, good in values]


def print_head(names: Sequence[str], values: Sequence[str]) -> None:
    print(f"| {' | '.join([*names, *values])} |")
    print(f"|{'---|' * len(names)}{'--:|' * len(values)}", flush=True)


def measured(
    rng: np.random.Generator,
    of_pairings: Sequence[Study],
    runs: int,
    accuracies: tuple[float, float],
    margin: float,
) -> Floats:
    """Returns coverage, errors to both sides, and those of verdicts on ten models."""
    each = runs // len(of_pairings)
    results = []
    for study in of_pairings:
        gap, spread = study.gaps(study.answers(rng, accuracies, each))
        errors = errors_of(*difference_interval(gap, spread), accuracies[0] - accuracies[1])
        results.append((*errors, *compared(rng, study, each, accuracies, margin)))
    return np.asarray(np.mean(results, axis=0))


def print_accurate(arguments: argparse.Namespace) -> list[bool]:
    """Prints the table of accurate models; returns whether each cell is as wanted."""
    print_head(("accuracies", "images"), ("coverage", "above", "below", "worse", "not worse"))
    wanted: list[bool] = []
    for images, draws in itertools.product(arguments.images, arguments.draws):
        of_pairings = studies([1] * images, draws)
        for accuracies in ACCURACIES:
            rng = np.random.default_rng(images)
            values = measured(rng, of_pairings, arguments.runs, accuracies, MARGIN)
            wanted += print_row(
                ("{:g} / {:g}".format(*accuracies), f"{images:,}, K = {draws}"),
                [
                    (values[0], 0.93 <= values[0] <= 0.97),
                    *((value, value <= allowed(NOMINAL, arguments.runs)) for value in values[1:]),
                ],
            )
    return wanted


def sizes_of(kind: str, groups: int, images: int) -> list[int]:
    """Returns sizes of groups that add up to so many images."""
    if kind == "half in one":
        return [images - images // 2, *sizes_of("equal", groups - 1, images // 2)]
    ratio = 0.7 if kind == "geometric" else 1.0
    shares = ratio ** np.arange(groups)
    sizes = np.maximum(1, np.floor(images * shares / shares.sum())).astype(int)
    sizes[: images - sizes.sum()] += 1 if kind == "equal" else 0
    sizes[0] += images - sizes.sum()
    return [int(size) for size in sizes]


def print_groups(arguments: argparse.Namespace) -> list[bool]:
    """Prints the table of groups; returns whether each cell is as wanted."""
    print_head(("groups", "effective number"), ("coverage", "above", "below", "worse", "not worse"))
    wanted: list[bool] = []
    kinds = {"equal": (5, 10, 20, 40), "geometric": (10, 20, 40), "half in one": (10, 20, 40)}
    for kind, number in [(kind, number) for kind, each in kinds.items() for number in each]:
        of_pairings = studies(sizes_of(kind, number, 151), arguments.draws[-1])
        units = float(np.mean([study.roles.units for study in of_pairings]))
        rng = np.random.default_rng(number)
        values = measured(rng, of_pairings, arguments.runs, ACCURACIES[0], 0.0)
        is_few = round(units) < MIN_IMAGES
        wanted += print_row(
            (f"{number} {kind}", f"{units:.1f}" + ", verdicts are open" * is_few),
            [
                (values[0], 0.93 <= values[0] <= (0.99 if is_few else 0.97)),
                *((value, value <= allowed(NOMINAL, arguments.runs)) for value in values[1:]),
            ],
        )
    return wanted


def print_extremes(arguments: argparse.Namespace) -> list[bool]:
    """Prints the table of the extremes of 20 models; returns whether each cell is as wanted."""
    print_head(("effects shared", "images"), ("largest at 95 %", "largest", "both", "Holm errs"))
    wanted: list[bool] = []
    for draws, share in itertools.product(arguments.draws, (0.0, 0.6, 0.9)):
        rng, results = np.random.default_rng(draws), []
        for study in studies([1] * 151, draws):
            runs = arguments.runs // PAIRINGS
            shared = study.effects(rng, runs), study.effects(rng, runs)
            models = [
                study.gaps(study.answers(rng, ACCURACIES[0], runs, shared, share))
                for _ in range(20)
            ]
            gaps, truth = np.stack([gap for gap, _ in models]), ACCURACIES[0][0] - ACCURACIES[0][1]
            covered = []
            for level in (0.95, level_of(20)):
                bounds = np.stack([difference_interval(*one, level) for one in models])
                covered.append((bounds[:, 0] <= truth) & (truth <= bounds[:, 1]))
            largest, smallest, every = gaps.argmax(axis=0), gaps.argmin(axis=0), np.arange(runs)
            p_values = np.stack([p_value(*one, truth) for one in models])
            results.append((
                covered[0][largest, every].mean(),
                covered[1][largest, every].mean(),
                (covered[1][largest, every] & covered[1][smallest, every]).mean(),
                (holm(p_values).min(axis=0) < 0.05).mean(),
            ))  # fmt: skip
        values = np.mean(results, axis=0)
        wanted += print_row(
            (f"{share:g}", f"151, K = {draws}"),
            [
                (values[0], True),
                *((value, value >= 1 - allowed(0.05, arguments.runs)) for value in values[1:3]),
                (values[3], values[3] <= allowed(0.05, arguments.runs)),
            ],
        )
    return wanted


def print_power(arguments: argparse.Namespace) -> list[bool]:
    """Prints the table of power at the gap named; returns whether each cell is as wanted."""
    print_head(("accuracy", "images"), ("gap named", "power", "by the error seen"))
    wanted: list[bool] = []
    for images, draws in itertools.product(arguments.images, arguments.draws):
        of_pairings = studies([1] * images, draws)
        for accuracy in (0.98, 0.95, 0.9, 0.85, 0.75):
            rng, runs = np.random.default_rng(images), arguments.runs // PAIRINGS
            stated = []
            for study in of_pairings:
                gap, spread = study.gaps(study.answers(rng, (accuracy, accuracy), runs))
                df = spread.units - 1
                errors = t_quantile(df, 0.95) + t_quantile(df, 0.6)
                by_seen = errors * np.sqrt(spread.variance)
                stated.append((smallest_difference(gap, spread).mean(), by_seen.mean()))
            smallest = np.mean(stated, axis=0)
            power = [
                float(np.mean([
                    difference_interval(
                        *study.gaps(study.answers(rng, (accuracy, accuracy - gap), runs))
                    )[0]
                    > 0
                    for study in of_pairings
                ]))
                for gap in smallest
            ]  # fmt: skip
            wanted += print_row(
                (f"{accuracy:g}", f"{images:,}, K = {draws}"),
                [(smallest[0], True), (power[0], 0.75 <= power[0] <= 0.9), (power[1], True)],
            )
    return wanted


TABLES: Mapping[str, Callable[[argparse.Namespace], list[bool]]] = {
    "accurate": print_accurate,
    "groups": print_groups,
    "extremes": print_extremes,
    "power": print_power,
}
"""Name of a table -> the function that prints it, and returns whether each cell is as wanted."""
