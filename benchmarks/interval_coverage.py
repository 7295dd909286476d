"""Simulates how often 95 % intervals cover the truth, how wide they are, and how gates decide.

    python benchmarks/interval_coverage.py [--runs 10000] [--images 151,4050] [--draws 1,3,10]
    python benchmarks/interval_coverage.py --tables gate --images 151 --draws 1
    python benchmarks/interval_coverage.py --tables accurate,groups,extremes,power --draws 1,3
    python benchmarks/interval_coverage.py --tables families --images 151 --draws 1,3 --runs 1000

Foregrounds are paired with backgrounds by the project's own code. For each simulated model, each
foreground and each background has its own effect on the probability of a right answer, which only
the simulation knows; the true accuracy is that over all images. A few pairings serve all runs of a
cell, because drawing pairs takes longer than drawing models. The yardstick of the width is an
oracle that knows the variance of the estimate. The wanted coverage is 0.93 to 0.97 (0.98 for
slopes), at 0.95 to 1.10 of the oracle's width; other cells are marked with a star. The last column
is the coverage of the same interval over foregrounds alone, or over models alone.

The second table is of `--fail_if 'bg_gap > baseline'`. Each cell is the share of runs in which the
condition holds: for one model or any of ten models whose gaps equal the baseline's, and for one
model whose gap is larger by the mean of the smallest differences that the runs have stated.

The other tables, of accurate models, groups of images, extremes of many models, and power, are made
by `threshold_models`, those of families by `family_models`, of features by `feature_models`.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import family_models
import feature_models
import numpy as np
import threshold_models
from measure import row
from numpy.typing import NDArray

from transforms.analysis import relative_foreground_sensitivity
from transforms.flips import PicturePairs, flip_rate
from transforms.intervals import level_of, score_interval, t_quantile
from transforms.pairing import Pool, pair
from transforms.trend import line_interval
from transforms.two_way import (
    EstimateSpread,
    Roles,
    difference_interval,
    p_value,
    smallest_difference,
    wilson_of_pictures,
)
from transforms.variants import draws_of, with_replicates

Floats = NDArray[np.float64]
Correct = NDArray[np.bool_]
Estimates = dict[str, Any]
"""Estimates of a run by name: (value, low, high, and 1 if the estimate is a share, else 0), or for
a difference (value, its spread)."""

STRENGTHS = {"none": 0.0, "small": 0.25, "medium": 0.5, "large": 0.8}
"""Sizes of background effects, as multiples of `EFFECT`."""
FOREGROUND = 0.3
"""Size of foreground effects, as a multiple of `EFFECT`."""
EFFECT = (-0.5, 3 / 14)
"""Effects of an image on the probability of a right answer: three in ten images harm, the others
help a little. The mean effect is 0."""
HARMING = 0.3
"""Share of images that harm."""
RIGHT = {"mixed_same": 0.75, "mixed_rand": 0.65}
"""True accuracies over all images."""
ON_SAME = -0.4
"""Factor of background effects on `mixed_same`, where a background that misleads on `mixed_rand`
helps a little."""
PAIRINGS = 5
"""Number of pairings that the runs of a cell use in turn."""
SLOPE = 0.6
Z = 1.959964
ALONE = " alone"
"""Suffix of an estimate whose interval is over foregrounds, or models, alone."""


@dataclasses.dataclass(frozen=True, eq=False)
class Design:
    """A pairing of foregrounds with backgrounds.

    Attributes:
      images: number of images.
      backgrounds: (draws, images) positions of the backgrounds, by variant.
      one_draw, pooled, gap: roles of the pictures of each estimate.
      pairs: pairs of a picture of `mixed_same` and one of `mixed_rand`.
      alone: same as `gap`, but with foregrounds alone.
    """

    images: int
    backgrounds: dict[str, NDArray[np.int64]]
    one_draw: Roles
    pooled: Roles
    gap: Roles
    pairs: PicturePairs
    alone: Roles

    @classmethod
    def draw(cls, images: int, draws: int, seed: int) -> Design:
        """Draws pairs for images of nine classes of equal size, or of fewer classes."""
        keys = [f"image {i}" for i in range(images)]
        labels = np.arange(images) % min(9, max(1, images // 4))
        pool, everyone = Pool.from_images(keys, labels, seed=seed), np.arange(images)
        backgrounds = {
            variant: np.stack([pair(pool, everyone, keys, name, seed=seed) for name in names])
            for variant, names in draws_of(with_replicates(RIGHT, draws)).items()
        }
        rand = backgrounds["mixed_rand"]
        both = np.concatenate([backgrounds["mixed_same"], rand]).ravel()
        return cls(
            images,
            backgrounds,
            one_draw=Roles.from_units(everyone, rand[0]),
            pooled=Roles.from_units(np.tile(everyone, draws), rand.ravel()),
            gap=Roles.from_units(
                np.tile(everyone, 2 * draws), both, np.tile(np.arange(draws * images), 2)
            ),
            pairs=PicturePairs.from_units(
                everyone,
                both.reshape(2 * draws, images),
                np.ones((2 * draws, images), bool),
                list(itertools.product(range(draws), range(draws, 2 * draws))),
            ),
            alone=Roles.from_units(
                np.tile(everyone, 2 * draws), None, np.tile(np.arange(draws * images), 2)
            ),
        )


def uniform(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return rng.random(shape, np.float32)


def effects(rng: np.random.Generator, *shape: int) -> Floats:
    return np.where(uniform(rng, *shape) < HARMING, *EFFECT)


def half_shared(rng: np.random.Generator, shared: Floats, *shape: int) -> Floats:
    """Draws effects, half of which are the shared ones, so that their correlation is 0.5."""
    return np.where(uniform(rng, *shape) < 0.5, shared, effects(rng, *shape))


def answers(
    rng: np.random.Generator,
    design: Design,
    foreground: Floats,
    background: Floats,
    gap: float = 0.0,
) -> dict[str, Correct]:
    """Draws whether a model is right on each picture: (draws, images) bool by variant.

    `gap` is added to the true gap, half of it in each variant.
    """
    correct = {}
    for variant, pairs in design.backgrounds.items():
        scale = 1.0 if variant == "mixed_rand" else ON_SAME
        level = RIGHT[variant] + (gap / 2 if variant == "mixed_same" else -gap / 2)
        chance = level + abs(scale) * foreground + (scale * background)[pairs]
        correct[variant] = uniform(rng, *pairs.shape) < chance
    return correct


def gap_of(correct: dict[str, Correct]) -> tuple[float, Floats]:
    """Computes the gap, and the contribution of each picture to it."""
    same, rand = correct["mixed_same"], correct["mixed_rand"]
    r = np.concatenate([same - same.mean(), rand.mean() - rand]).ravel() / same.size
    return float(same.mean() - rand.mean()), r


def interval_of(value: float, r: Floats, roles: Roles) -> tuple[float, EstimateSpread]:
    """Returns a difference and its spread; `measure` makes the intervals of all runs at once."""
    return value, roles.spread(r)


def bounds_of(runs: Sequence[tuple[float, EstimateSpread]]) -> Floats:
    """Computes the intervals of differences: value, low, high and 0, each for all runs."""
    value = np.asarray([one for one, _ in runs])
    units = np.asarray([spread.units for _, spread in runs])
    result = np.stack([value, value, value, np.zeros_like(value)])
    for number in np.unique(units):
        chosen = np.flatnonzero(units == number)
        spreads = [runs[int(i)][1] for i in chosen]
        together = dataclasses.replace(
            spreads[0],
            variance=np.asarray([spread.variance for spread in spreads]),
            scatter=np.asarray([spread.scatter for spread in spreads]),
        )
        result[1:3, chosen] = difference_interval(value[chosen], together)
    return result


def one_run(rng: np.random.Generator, design: Design, strength: float) -> Estimates:
    """Estimates gap, difference of two models' gaps, flip rate, and accuracies on `mixed_rand`."""
    shared = [effects(rng, design.images) for _ in range(2)]
    models = []
    for _ in range(2):
        fg, bg = (half_shared(rng, each, design.images) for each in shared)
        models.append(answers(rng, design, FOREGROUND * fg, strength * bg))
    (gap, r), (other_gap, other_r) = (gap_of(model) for model in models)
    return {
        "gap": interval_of(gap, r, design.gap),
        "gap" + ALONE: interval_of(gap, r, design.alone),
        "difference of gaps": interval_of(gap - other_gap, r - other_r, design.gap),
        "difference of gaps" + ALONE: interval_of(gap - other_gap, r - other_r, design.alone),
        "flip rate": flips(models[0], design),
        **accuracies(models[0]["mixed_rand"], design),
    }


GATES = {"one equal": (0.015, 0.035), "any of ten equal": (0.0, 0.035), "one larger": (0.75, 0.9)}
"""Lowest and highest share of runs in which a gate should hold."""


def gate_run(
    rng: np.random.Generator, design: Design, strength: float, models: int, larger: float = 0.0
) -> tuple[bool, float]:
    """Judges models whose gaps exceed the baseline's by `larger`.

    Returns:
      (whether the condition holds for any of them, the smallest difference stated for the first).
    """
    shared = [effects(rng, design.images) for _ in range(2)]
    estimates = []
    for number in range(models + 1):
        fg, bg = (half_shared(rng, each, design.images) for each in shared)
        # Half of the difference is the baseline's, which is the first, so that all chances fit.
        extra = larger / 2 if number else -larger / 2
        estimates.append(gap_of(answers(rng, design, FOREGROUND * fg, strength * bg, extra)))
    (gap, r), *others = estimates
    difference = np.asarray([value - gap for value, _ in others])
    spread, level = design.gap.spread(np.stack([each - r for _, each in others])), level_of(models)
    # An interval lies above 0 if, and only if, the p value says so.
    holds = bool(((difference > 0) & (p_value(difference, spread) < 1 - level)).any())
    return holds, float(smallest_difference(difference, spread, level)[0])


def measure_gates(designs: Sequence[Design], runs: int, strength: float) -> dict[str, float]:
    """Returns the share of runs in which each of `GATES` holds."""
    rng = np.random.default_rng(designs[0].images)

    def measured(models: int, larger: float = 0.0) -> tuple[float, float]:
        results = [
            gate_run(rng, designs[i % len(designs)], strength, models, larger) for i in range(runs)
        ]
        holds, smallest = np.asarray(results).mean(axis=0).tolist()
        return holds, smallest

    one, smallest = measured(1)
    shares = one, measured(10)[0], measured(1, smallest)[0]
    return dict(zip(GATES, shares, strict=True))


def print_gates(arguments: argparse.Namespace) -> list[bool]:
    """Prints the table of gates; returns whether each cell is as wanted."""
    print(f"| gate | images | {' | '.join(STRENGTHS)} |")
    print(f"|---|---|{'--:|' * len(STRENGTHS)}", flush=True)
    wanted: list[bool] = []
    for images, draws in itertools.product(arguments.images, arguments.draws):
        designs = [Design.draw(images, draws, seed) for seed in range(PAIRINGS)]
        by_strength = [measure_gates(designs, arguments.runs, s) for s in STRENGTHS.values()]
        for name, (lowest, highest) in GATES.items():
            shares = [shares[name] for shares in by_strength]
            good = [lowest <= share <= highest for share in shares]
            wanted += good
            columns = " | ".join(
                f"{share:.4f}{'' if is_good else '*'}"
                for share, is_good in zip(shares, good, strict=True)
            )
            print(f"| {name} | {images:,}, K = {draws} | {columns} |", flush=True)
    return wanted


def flips(correct: dict[str, Correct], design: Design) -> tuple[float, float, float, float]:
    """Estimates the flip rate of a model that predicts one of two classes.

    Such a model flips if it is right on exactly one picture of a pair.
    """
    right = np.concatenate([correct["mixed_same"], correct["mixed_rand"]])
    rate = flip_rate(right.astype(np.int64), design.pairs)
    assert rate is not None
    return rate.rate, rate.low, rate.high, 1.0


def correlated_run(rng: np.random.Generator, design: Design, strength: float) -> Estimates:
    """Estimates accuracies if half of an image's effects as foreground and background agree."""
    bg = effects(rng, design.images)
    fg = half_shared(rng, bg, design.images)
    # Effects are as large as possible while the hardest pictures are still sometimes right.
    right = answers(rng, design, 0.65 * strength * fg, 0.65 * strength * bg)["mixed_rand"]
    estimates = accuracies(right, design)
    return {f"{name}, correlated": estimate for name, estimate in estimates.items()}


def accuracies(right: Correct, design: Design) -> Estimates:
    pictures = {"accuracy, one draw": (right[0], design.one_draw)}
    if len(right) > 1:
        pictures["accuracy, all draws"] = (right.ravel(), design.pooled)
    return {
        name: (float(correct.mean()), *wilson_of_pictures(correct, roles), 1.0)
        for name, (correct, roles) in pictures.items()
    }


BOTH_RIGHT = RIGHT["mixed_same"] * RIGHT["mixed_rand"] + abs(ON_SAME) * FOREGROUND**2 * (
    HARMING * EFFECT[0] ** 2 + (1 - HARMING) * EFFECT[1] ** 2
)
"""Probability of right answers to both pictures of a pair, which share the foreground's effect."""
TRUTH = {
    "gap": RIGHT["mixed_same"] - RIGHT["mixed_rand"],
    "difference": 0.0,
    "accuracy": RIGHT["mixed_rand"],
    "slope": SLOPE,
    "sensitivity": 0.0,
    "flip": sum(RIGHT.values()) - 2 * BOTH_RIGHT,
}


def slope_run(rng: np.random.Generator, design: Design, strength: float, models: int) -> Estimates:
    """Estimates the slope of the accuracy on `mixed_rand`, in one draw.

    Better models are less sensitive to images, and half of the errors are shared.
    """
    x = np.linspace(0.6, 0.85, models)
    sensitivity = np.linspace(1.4, 0.6, models)[:, np.newaxis]
    shape = models, design.images
    pairs = design.backgrounds["mixed_rand"][0]
    fg, bg = (half_shared(rng, effects(rng, design.images), *shape) for _ in range(2))
    # With effects as large as in other runs, the worst models would have nothing right.
    effect = sensitivity * (0.1 * fg + 0.6 * strength * bg[:, pairs])
    level = 0.15 + SLOPE * x + rng.normal(0, 0.02, models)
    noise = np.where(uniform(rng, *shape) < 0.5, uniform(rng, design.images), uniform(rng, *shape))
    right = noise < level[:, np.newaxis] + effect
    accuracy = right.mean(axis=1)
    sums = design.one_draw.corrected((right - accuracy[:, np.newaxis]) / design.images)
    none = [np.zeros((models, 2))]
    return {
        "slope": (*line_interval(x, accuracy, sums), 0.0),
        "slope" + ALONE: (*line_interval(x, accuracy, none), 0.0),
    }


def sensitivity_run(rng: np.random.Generator, design: Design, strength: float) -> Estimates:
    """Estimates relative foreground sensitivity, less its true value.

    Noise on the foreground harms the model more with larger strengths, and half of its answers to
    the two variants are correlated.
    """
    accuracy = np.asarray([[0.8 - 0.5 * strength], [0.8]])
    shared = uniform(rng, design.images)
    separate = uniform(rng, 2, design.images)
    right = np.where(uniform(rng, 2, design.images) < 0.5**0.5, shared, separate) < accuracy
    roles = Roles.from_units(np.arange(design.images))
    sensitivity = relative_foreground_sensitivity(right[0], right[1], roles)
    assert sensitivity is not None
    mean = accuracy.mean()
    value, low, high = np.asarray(sensitivity) - 0.5 * strength / (2 * min(mean, 1 - mean))
    return {"sensitivity": (value, low, high, 0.0)}


@dataclasses.dataclass(frozen=True)
class Cell:
    """Coverage, and mean width relative to that of the oracle."""

    coverage: float
    width: float

    def is_wanted(self, highest: float) -> bool:
        return 0.93 <= self.coverage <= highest and 0.95 <= self.width <= 1.1

    def __str__(self) -> str:
        return f"{self.coverage:.3f} ({self.width:.2f})"


def measure(
    run: Callable[[np.random.Generator, Design], Estimates],
    designs: Sequence[Design],
    runs: int,
    z: float = Z,
) -> dict[str, Cell]:
    """Measures the cell of each estimate.

    Args:
      run: makes one run.
      designs: pairings, which are used in turn.
      runs: number of runs over all pairings.
      z: standard errors that the oracle's interval reaches to either side.
    """
    rng = np.random.default_rng(len(designs[0].backgrounds["mixed_rand"]))
    results = [run(rng, designs[i % len(designs)]) for i in range(runs)]
    cells = {}
    for name in results[0]:
        of_runs = [result[name] for result in results]
        is_difference = isinstance(of_runs[0][1], EstimateSpread)
        value, low, high, is_share = bounds_of(of_runs) if is_difference else np.asarray(of_runs).T
        truth = TRUTH[name.partition(",")[0].split()[0]]
        coverage = float(((low <= truth) & (truth <= high)).mean())
        if is_share[0]:
            n = truth * (1 - truth) / value.var()
            oracle = np.mean([np.diff(score_interval(share, n, z)) for share in value])
        else:
            oracle = 2 * z * value.std()
        cells[name] = Cell(coverage, float((high - low).mean() / oracle))
    return cells


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def lines(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, dict[str, Cell]]]]:
    """Yields the description of each line's images, and the cells of each estimate by strength."""
    for images in arguments.images:
        designs_by_draws = {
            draws: [Design.draw(images, draws, seed) for seed in range(PAIRINGS)]
            for draws in arguments.draws
        }
        runs: list[tuple[str, Callable[..., Estimates], list[Design], float]] = [
            (f"K = {draws}", run, designs, Z)
            for run in (one_run, correlated_run)
            for draws, designs in designs_by_draws.items()
        ]
        first_designs = designs_by_draws[arguments.draws[0]]
        runs.append(("noise", sensitivity_run, first_designs, Z))
        for models in arguments.models:
            z = t_quantile(models - 2, 0.95)
            slopes = partial(slope_run, models=models)
            runs.append((f"{models} models", slopes, first_designs, z))
        for label, run, designs, z in runs:
            by_strength = {
                name: measure(partial(run, strength=strength), designs, arguments.runs, z)
                for name, strength in STRENGTHS.items()
            }
            names = list(by_strength["none"])
            yield (
                f"{images:,}, {label}",
                {name: {s: cells[name] for s, cells in by_strength.items()} for name in names},
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000, help="runs of each cell (10000)")
    parser.add_argument(
        "--images", type=numbers, default=[151, 4050], help="numbers of images (151,4050)"
    )
    parser.add_argument(
        "--draws", type=numbers, default=[1, 3, 10], help="numbers of draws (1,3,10)"
    )
    parser.add_argument(
        "--models", type=numbers, default=[10, 30], help="numbers of models of a slope (10,30)"
    )
    parser.add_argument(
        "--tables", default="intervals", help=f"tables to print: {', '.join(TABLES)} (intervals)"
    )
    arguments = parser.parse_args()
    for name in arguments.tables.split(","):
        wanted = TABLES[name](arguments)
        of = "an oracle" if name == "intervals" else "the wanted shares"
        yardstick = f"{of}; each cell: [COVERAGE.md](COVERAGE.md)"
        row(f"{name}: cells as wanted", f"{sum(wanted)} of {len(wanted)}", yardstick)


def print_intervals(arguments: argparse.Namespace) -> list[bool]:
    """Prints the table of intervals; returns whether each cell is as wanted."""
    print(f"| interval of | images | {' | '.join(STRENGTHS)} | alone, large |")
    print(f"|---|---|{'--:|' * (len(STRENGTHS) + 1)}", flush=True)
    wanted: list[bool] = []
    for label, by_name in lines(arguments):
        for name, cells in by_name.items():
            if name.endswith(ALONE):
                continue
            alone = by_name.get(name + ALONE)
            contrast = f"{alone['large'].coverage:.3f}" if alone else ""
            highest = 0.98 if name == "slope" else 0.97
            good = [cell.is_wanted(highest) for cell in cells.values()]
            wanted += good
            columns = " | ".join(
                f"{cell}{'' if is_good else '*'}"
                for cell, is_good in zip(cells.values(), good, strict=True)
            )
            print(f"| {name} | {label} | {columns} | {contrast} |", flush=True)
    return wanted


TABLES = {
    "intervals": print_intervals,
    "gate": print_gates,
    **threshold_models.TABLES,
    **family_models.TABLES,
    **feature_models.TABLES,
}


if __name__ == "__main__":
    main()
