"""How often 95 % intervals hold the truth, and how wide they are, on the project's own pairing.

    python benchmarks/interval_coverage.py [--runs 10000] [--images 151,4050] [--draws 1,3,10]

Models are drawn for whom each foreground and each background has an effect of its own on the chance
to be right, known to the simulation alone; the share that is right over all images is the truth.
A few pairings serve all runs of a cell, since drawing pairs takes longer than drawing models. The
yardstick of the width is an oracle that knows the variance of the estimate. Wanted is a coverage of
0.93 to 0.97 (slopes 0.98) at 0.95 to 1.10 of the oracle's width; other cells have a star. The last
column is what the same interval over foregrounds, or over models, alone covers.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from measure import row
from numpy.typing import NDArray

from transforms.analysis import relative_foreground_sensitivity
from transforms.flips import PicturePairs, flip_rate
from transforms.intervals import score_interval, t_quantile
from transforms.pairing import Pool, pair
from transforms.trend import slope_interval
from transforms.two_way import Roles, difference_interval, wilson_of_pictures

Floats = NDArray[np.float64]
Correct = NDArray[np.bool_]
Found = dict[str, tuple[float, float, float, float]]
"""What a run says, by estimate: value, low, high, and what the oracle should hold."""

STRENGTHS = {"none": 0.0, "small": 0.25, "medium": 0.5, "large": 0.8}
"""Of background effects, as multiples of `EFFECT`."""
FOREGROUND = 0.3
"""Of foreground effects, likewise."""
EFFECT = (-0.5, 3 / 14)
"""What an image adds to the chance to be right: three in ten harm, the others help a little; no
effect on average."""
HARMING = 0.3
RIGHT = {"mixed_same": 0.75, "mixed_rand": 0.65}
"""Accuracy over all images: the truth."""
ON_SAME = -0.4
"""A background that misleads on `mixed_rand` helps a little on `mixed_same`."""
PAIRINGS = 5
SLOPE = 0.6
Z = 1.959964
ALONE = " alone"
"""End of the name of the same estimate with an interval over foregrounds, or models, alone."""


@dataclasses.dataclass(frozen=True, eq=False)
class Design:
    """Which background each foreground gets.

    Attributes:
      images: number of images.
      backgrounds: (draws, images) positions, by variant.
      one_draw, pooled, gap: roles of the pictures of an estimate.
      pairs: of pictures on `mixed_same` and on `mixed_rand`.
      alone: the same as `gap`, foregrounds alone.
    """

    images: int
    backgrounds: dict[str, NDArray[np.int64]]
    one_draw: Roles
    pooled: Roles
    gap: Roles
    pairs: PicturePairs
    alone: Roles

    @classmethod
    def of(cls, images: int, draws: int, seed: int) -> Design:
        """Draws pairs for images of nine classes of equal size, or fewer classes of few images."""
        keys = [f"image {i}" for i in range(images)]
        labels = np.arange(images) % min(9, max(1, images // 4))
        pool, everyone = Pool.from_images(keys, labels, seed=seed), np.arange(images)
        found = {
            variant: np.stack(
                [pair(pool, everyone, keys, variant, seed=seed, replicate=k) for k in range(draws)]
            )
            for variant in RIGHT
        }
        rand = found["mixed_rand"]
        both = np.concatenate([found["mixed_same"], rand]).ravel()
        return cls(
            images,
            found,
            one_draw=Roles.from_units(everyone, rand[0]),
            pooled=Roles.from_units(np.tile(everyone, draws), rand.ravel()),
            gap=Roles.from_units(np.tile(everyone, 2 * draws), both),
            pairs=PicturePairs.from_units(
                everyone,
                both.reshape(2 * draws, images),
                list(itertools.product(range(draws), range(draws, 2 * draws))),
            ),
            alone=Roles.from_units(np.tile(everyone, 2 * draws)),
        )


def uniform(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return rng.random(shape, np.float32)


def effects(rng: np.random.Generator, *shape: int) -> Floats:
    return np.where(uniform(rng, *shape) < HARMING, *EFFECT)


def half_of(rng: np.random.Generator, shared: Floats, *shape: int) -> Floats:
    """Effects of which half are the shared ones: correlation 0.5."""
    return np.where(uniform(rng, *shape) < 0.5, shared, effects(rng, *shape))


def answers(
    rng: np.random.Generator, design: Design, foreground: Floats, background: Floats
) -> dict[str, Correct]:
    """(draws, images) of each variant, whether a model is right."""
    found = {}
    for variant, pairs in design.backgrounds.items():
        scale = 1.0 if variant == "mixed_rand" else ON_SAME
        chance = RIGHT[variant] + abs(scale) * foreground + (scale * background)[pairs]
        found[variant] = uniform(rng, *pairs.shape) < chance
    return found


def contributions(found: dict[str, Correct]) -> tuple[float, Floats]:
    """The gap, and that of each picture to it."""
    same, rand = found["mixed_same"], found["mixed_rand"]
    r = np.concatenate([same - same.mean(), rand.mean() - rand]).ravel() / same.size
    return float(same.mean() - rand.mean()), r


def interval_of(value: float, r: Floats, roles: Roles) -> tuple[float, float, float, float]:
    low, high = difference_interval(np.asarray(value), roles.variance(r), roles.units)
    return value, float(low), float(high), 0.0


def one_run(rng: np.random.Generator, design: Design, strength: float) -> Found:
    """Gap, difference of the gaps of two models, flip rate, accuracies on `mixed_rand`."""
    shared = [effects(rng, design.images) for _ in range(2)]
    models = []
    for _ in range(2):
        fg, bg = (half_of(rng, each, design.images) for each in shared)
        models.append(answers(rng, design, FOREGROUND * fg, strength * bg))
    (gap, r), (other, of_other) = (contributions(model) for model in models)
    return {
        "gap": interval_of(gap, r, design.gap),
        "gap" + ALONE: interval_of(gap, r, design.alone),
        "difference of gaps": interval_of(gap - other, r - of_other, design.gap),
        "difference of gaps" + ALONE: interval_of(gap - other, r - of_other, design.alone),
        "flip rate": flips(models[0], design),
        **accuracies(models[0]["mixed_rand"], design),
    }


def flips(found: dict[str, Correct], design: Design) -> tuple[float, float, float, float]:
    """Of a model that knows two classes: it flips where it is right on one picture alone."""
    right = np.concatenate([found["mixed_same"], found["mixed_rand"]])
    said = flip_rate(right.astype(np.int64), design.pairs)
    assert said is not None
    return said.rate, said.low, said.high, 1.0


def correlated_run(rng: np.random.Generator, design: Design, strength: float) -> Found:
    """Accuracies where an image that harms as a background does as a foreground, by half."""
    bg = effects(rng, design.images)
    fg = half_of(rng, bg, design.images)
    # As large as they can both be: then the hardest pictures are still right at times.
    right = answers(rng, design, 0.65 * strength * fg, 0.65 * strength * bg)["mixed_rand"]
    return {f"{name}, correlated": said for name, said in accuracies(right, design).items()}


def accuracies(right: Correct, design: Design) -> Found:
    one, pooled = right[0], right.ravel()
    found = {"accuracy, one draw": (one, design.one_draw)}
    if len(right) > 1:
        found["accuracy, all draws"] = (pooled, design.pooled)
    return {
        name: (float(correct.mean()), *wilson_of_pictures(correct, roles), 1.0)
        for name, (correct, roles) in found.items()
    }


BOTH_RIGHT = RIGHT["mixed_same"] * RIGHT["mixed_rand"] + abs(ON_SAME) * FOREGROUND**2 * (
    HARMING * EFFECT[0] ** 2 + (1 - HARMING) * EFFECT[1] ** 2
)
"""Chance to be right on both pictures of a pair, which share the effect of the foreground."""
TRUTH = {
    "gap": RIGHT["mixed_same"] - RIGHT["mixed_rand"],
    "difference": 0.0,
    "accuracy": RIGHT["mixed_rand"],
    "slope": SLOPE,
    "sensitivity": 0.0,
    "flip": sum(RIGHT.values()) - 2 * BOTH_RIGHT,
}


def slope_run(rng: np.random.Generator, design: Design, strength: float, models: int) -> Found:
    """Slope of the accuracy on `mixed_rand`, one draw, of models of which the better ones are less
    sensitive to images, and whose errors are shared by half."""
    x = np.linspace(0.6, 0.85, models)
    sensitivity = np.linspace(1.4, 0.6, models)[:, np.newaxis]
    shape = models, design.images
    pairs = design.backgrounds["mixed_rand"][0]
    fg, bg = (half_of(rng, effects(rng, design.images), *shape) for _ in range(2))
    # Of background effects as large as elsewhere, the worst models would have none right.
    effect = sensitivity * (0.1 * fg + 0.6 * strength * bg[:, pairs])
    level = 0.15 + SLOPE * x + rng.normal(0, 0.02, models)
    noise = np.where(uniform(rng, *shape) < 0.5, uniform(rng, design.images), uniform(rng, *shape))
    right = noise < level[:, np.newaxis] + effect
    accuracy = right.mean(axis=1)
    sums = design.one_draw.sums((right - accuracy[:, np.newaxis]) / design.images)
    none = [np.zeros((models, 2))]
    return {
        "slope": (*slope_interval(x, accuracy, sums), 0.0),
        "slope" + ALONE: (*slope_interval(x, accuracy, none), 0.0),
    }


def sensitivity_run(rng: np.random.Generator, design: Design, strength: float) -> Found:
    """Relative foreground sensitivity, less the true one, of a model that noise on the foreground
    harms the more, the larger the strength. Half of its answers to the two variants go together."""
    accuracy = np.asarray([[0.8 - 0.5 * strength], [0.8]])
    shared = uniform(rng, design.images)
    own = uniform(rng, 2, design.images)
    right = np.where(uniform(rng, 2, design.images) < 0.5**0.5, shared, own) < accuracy
    roles = Roles.from_units(np.arange(design.images))
    said = relative_foreground_sensitivity(right[0], right[1], roles)
    assert said is not None
    mean = accuracy.mean()
    value, low, high = np.asarray(said) - 0.5 * strength / (2 * min(mean, 1 - mean))
    return {"sensitivity": (value, low, high, 0.0)}


@dataclasses.dataclass(frozen=True)
class Cell:
    """Coverage, and mean width over that of the oracle."""

    coverage: float
    width: float

    def is_wanted(self, highest: float) -> bool:
        return 0.93 <= self.coverage <= highest and 0.95 <= self.width <= 1.1

    def __str__(self) -> str:
        return f"{self.coverage:.3f} ({self.width:.2f})"


def measure(
    run: Callable[[np.random.Generator, Design], Found],
    designs: Sequence[Design],
    runs: int,
    z: float = Z,
) -> dict[str, Cell]:
    """Cells of each estimate.

    Args:
      run: makes one run.
      designs: pairings, which take turns.
      runs: of all pairings together.
      z: standard errors that the oracle's interval reaches.
    """
    rng = np.random.default_rng(len(designs[0].backgrounds["mixed_rand"]))
    found = [run(rng, designs[i % len(designs)]) for i in range(runs)]
    cells = {}
    for name in found[0]:
        value, low, high, is_share = np.asarray([one[name] for one in found]).T
        truth = TRUTH[name.partition(",")[0].split()[0]]
        held = float(((low <= truth) & (truth <= high)).mean())
        if is_share[0]:
            n = truth * (1 - truth) / value.var()
            oracle = np.mean([np.diff(score_interval(share, n, z)) for share in value])
        else:
            oracle = 2 * z * value.std()
        cells[name] = Cell(held, float((high - low).mean() / oracle))
    return cells


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def lines(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, dict[str, Cell]]]]:
    """What cells are of, and those of each estimate by strength."""
    for images in arguments.images:
        of_draws = {
            draws: [Design.of(images, draws, seed) for seed in range(PAIRINGS)]
            for draws in arguments.draws
        }
        runs: list[tuple[str, Callable[..., Found], list[Design], float]] = [
            (f"K = {draws}", run, designs, Z)
            for run in (one_run, correlated_run)
            for draws, designs in of_draws.items()
        ]
        runs.append(("noise", sensitivity_run, of_draws[arguments.draws[0]], Z))
        for models in arguments.models:
            z = t_quantile(models - 2, 0.95)
            slopes = partial(slope_run, models=models)
            runs.append((f"{models} models", slopes, of_draws[arguments.draws[0]], z))
        for where, run, designs, z in runs:
            found = {
                name: measure(partial(run, strength=strength), designs, arguments.runs, z)
                for name, strength in STRENGTHS.items()
            }
            names = list(found["none"])
            yield (
                f"{images:,}, {where}",
                {name: {s: of[name] for s, of in found.items()} for name in names},
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000, help="of each cell (10000)")
    parser.add_argument("--images", type=numbers, default=[151, 4050], help="(151,4050)")
    parser.add_argument("--draws", type=numbers, default=[1, 3, 10], help="(1,3,10)")
    parser.add_argument("--models", type=numbers, default=[10, 30], help="of slopes (10,30)")
    arguments = parser.parse_args()
    print(f"| interval of | images | {' | '.join(STRENGTHS)} | alone, large |")
    print(f"|---|---|{'--:|' * (len(STRENGTHS) + 1)}", flush=True)
    wanted: list[bool] = []
    for where, found in lines(arguments):
        for name, cells in found.items():
            if name.endswith(ALONE):
                continue
            alone = found.get(name + ALONE)
            contrast = f"{alone['large'].coverage:.3f}" if alone else ""
            highest = 0.98 if name == "slope" else 0.97
            good = [cell.is_wanted(highest) for cell in cells.values()]
            wanted += good
            said = " | ".join(
                f"{cell}{'' if is_good else '*'}"
                for cell, is_good in zip(cells.values(), good, strict=True)
            )
            print(f"| {name} | {where} | {said} | {contrast} |", flush=True)
    of = "an oracle; each cell: [docs/results.md](../docs/results.md)"
    row("intervals: cells as wanted", f"{sum(wanted)} of {len(wanted)}", of)


if __name__ == "__main__":
    main()
