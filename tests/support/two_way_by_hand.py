"""Computes two-way intervals with plain dictionaries, as a reference for the tables."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import NamedTuple

from scipy.stats import t

from transforms.intervals import t_quantile

Pictures = Iterable[tuple[str, str | None, float]]
"""(foreground, background or None for its own, contribution) of each picture."""


def interval_of(
    estimate: float,
    pictures: Pictures,
    pairs: Iterable[object] | None = None,
    spread: tuple[float, float] | None = None,
    singles: Sequence[Sequence[float]] = (),
    level: float = 0.95,
) -> tuple[float, float]:
    """Returns the interval (low, high) of a difference, by the formulas of Tango 1998.

    Args:
      estimate: the difference.
      pictures: what each picture contributes.
      pairs: the paired difference that each picture belongs to; None if each is one by itself.
      spread: the variance and its degrees of freedom; None for those of the pictures.
      singles: what each picture contributes to each of the differences whose mean this is.
      level: confidence of the interval.
    """
    rows = list(pictures)
    variance, df = spread or variance_of(rows)
    if df < 1:
        return -1.0, 1.0
    square, trials, rest = trials_of(estimate, rows, pairs, (variance, df), singles)
    quantile = t_quantile(df, level)

    def is_inside(value: float) -> bool:
        plus, minus = (trials * (square + sign * estimate) / 2 for sign in (1, -1))
        b = (2 * trials - plus + minus) * value - plus - minus
        if value < 0:  # The same formula, the other way round.
            plus, minus, b = minus, plus, (minus - plus - 2 * trials) * value - plus - minus
        c = -minus * abs(value) * (1 - abs(value))
        rarer = (math.sqrt(max(b**2 - 8 * trials * c, 0)) - b) / (4 * trials)
        at_value = (2 * rarer + abs(value) * (1 - abs(value))) / trials + rest
        return (value - estimate) ** 2 <= quantile**2 * max(at_value, 0)

    def end(inside: float, outside: float) -> float:
        while abs(outside - inside) > 1e-10:
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if is_inside(middle) else (inside, middle)
        return outside

    return end(estimate, min(estimate, -1)), end(estimate, max(estimate, 1))


def trials_of(
    estimate: float,
    rows: list[tuple[str, str | None, float]],
    pairs: Iterable[object] | None,
    spread: tuple[float, float],
    singles: Sequence[Sequence[float]] = (),
) -> tuple[float, float, float]:
    """Returns the mean square of paired differences, how many would have the variance, the rest."""
    variance, df = spread
    of = list(range(len(rows)) if pairs is None else pairs)
    n, own = len(set(of)), [r for *_, r in rows]

    def scatter(r: Sequence[float]) -> float:
        by_pair: Counter[object] = Counter()
        for pair, x in zip(of, r, strict=True):
            by_pair[pair] += x
        return sum((n * x) ** 2 for x in by_pair.values()) / n

    of_singles = [scatter(r) for r in singles or [own]]
    seen = sum(of_singles) / len(of_singles)
    most = n * seen / scatter(own) if scatter(own) > 1e-24 else n
    square = max(seen + estimate**2, abs(estimate))
    width = square - estimate**2
    trials = min(max(width / variance, (df + 1) / 4), most) if variance > 1e-24 else df + 1
    return square, trials, max(0.0, variance - width / trials)


def share_interval(
    pictures: Iterable[tuple[str, str | None, bool]], confidence: float = 0.95
) -> tuple[float, float]:
    """Returns the interval of the share of right ones of (foreground, background, right)."""
    rows = list(pictures)
    n, share = len(rows), sum(right for *_, right in rows) / len(rows)
    variance, df = variance_of([(fg, bg, (right - share) / n) for fg, bg, right in rows])
    fewest, z = df + 1, NormalDist().inv_cdf(0.5 + confidence / 2)
    if fewest < 2 <= n:
        return 0.0, 1.0
    effective = fewest
    if fewest < n:
        z = t_quantile(df, confidence)
        if 0 < share < 1:
            effective = share * (1 - share) / variance if variance else n
        effective = min(max(effective, fewest), n)
    return wilson(share, effective, z)


def wilson(share: float, trials: float, z: float) -> tuple[float, float]:
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    spread = share * (1 - share) / trials + z**2 / (4 * trials**2)
    reach = z * math.sqrt(spread) / (1 + z**2 / trials)
    return min(centre - reach, share), max(centre + reach, share)


class Method(NamedTuple):
    """The estimate of each seed of a method, and what each picture contributes to it."""

    values: Sequence[float]
    rows: Sequence[Sequence[float]]

    @property
    def mean(self) -> list[float]:
        """What each picture contributes to the mean of the seeds."""
        return [sum(column) / len(column) for column in zip(*self.rows, strict=True)]


def contributions_to(methods: Sequence[Method]) -> list[float]:
    """Returns what pictures contribute to a method's mean, less that of a second if there is."""
    first, *others = [one.mean for one in methods]
    return [mine - sum(theirs) for mine, *theirs in zip(first, *others, strict=True)]


def singles_of(methods: Sequence[Method]) -> list[list[float]]:
    """Returns what pictures contribute to each seed, less each seed of a second method if given."""
    return [
        [mine - sum(theirs) for mine, *theirs in zip(*seeds, strict=True)]
        for seeds in itertools.product(*(one.rows for one in methods))
    ]


def spread_of(
    units: Sequence[tuple[str, str | None]], methods: Sequence[Method], *, further: bool = False
) -> tuple[float, float]:
    """Returns the variance of a method's mean, or of what it exceeds another's by, and its df.

    Args:
      units: (foreground, background) of each picture.
      methods: the method, and perhaps the other.
      further: whether the estimate is that of one more seed.
    """

    def two_way(r: Sequence[float]) -> float:
        return variance_of([(fg, bg, x) for (fg, bg), x in zip(units, r, strict=True)])[0]

    total = contributions_to(methods)
    _, df_of_images = variance_of([(fg, bg, x) for (fg, bg), x in zip(units, total, strict=True)])
    of_images = two_way(total)
    common, of_seeds, terms, more = of_images, 0.0, 0.0, 0.0
    for one in methods:
        k, middle = len(one.values), one.mean
        square = sum((value - sum(one.values) / k) ** 2 for value in one.values) / (k - 1)
        noise = 0.0
        for row in one.rows:
            noise += two_way([x - m for x, m in zip(row, middle, strict=True)]) / (k - 1)
        common -= noise / k
        of_seeds += square / k
        terms += (square / k + further * square) ** 2 / (k - 1)
        more += further * max(0.0, square - noise)
    common = max(0.0, common)
    variance = max(of_images, common + of_seeds) + more
    terms += common**2 / df_of_images
    df = variance**2 / terms if terms > 1e-48 else df_of_images
    if further:
        df = max(df, len(methods[0].values) - 1)
    return variance, min(df, df_of_images)


def interval_of_mean(
    units: Sequence[tuple[str, str | None]], method: Method, *, further: bool = False
) -> tuple[float, float]:
    """Returns the interval of the mean of a method's accuracies; arguments as of `spread_of`."""
    value = sum(method.values) / len(method.values)
    variance, df = spread_of(units, [method], further=further)
    most = len(units) * len(method.values)
    trials = min(value * (1 - value) / variance, most) if variance else df + 1
    return wilson(value, trials, float(t.ppf(0.975, df)))


def variance_of(rows: list[tuple[str, str | None, float]]) -> tuple[float, float]:
    """Returns the variance and its degrees of freedom."""
    by_fg: Counter[str] = Counter()
    by_bg: Counter[str | None] = Counter()
    by_pair: Counter[tuple[str, str | None]] = Counter()
    for fg, bg, r in rows:
        by_fg[fg] += r
        by_bg[bg] += r
        by_pair[fg, bg] += r
    fg_units, bg_units = (effective(row[role] for row in rows) for role in (0, 1))

    def squares(sums: Counter[str] | Counter[str | None], units: float) -> float:
        correction = units / (units - 1) if units > 1 else 1.0
        return sum(s**2 for s in sums.values()) * correction

    if rows[0][1] is None:
        return squares(by_fg, fg_units), fg_units - 1
    both = sum(s**2 for s in by_pair.values())
    variance = squares(by_fg, fg_units) + max(0.0, squares(by_bg, bg_units) - both)
    return variance, min(fg_units, bg_units) - 1


def effective(units: Iterable[object]) -> float:
    """Returns the effective number of the units of pictures."""
    counts = Counter(units).values()
    return sum(counts) ** 2 / sum(count**2 for count in counts)


def flip_interval(
    pairs: Iterable[tuple[object, str, tuple[str, str], bool]], pictures: Iterable[tuple[str, str]]
) -> tuple[float, float, float]:
    """Returns the share of pairs of pictures whose predictions differ, and its interval.

    The share is a mean over images. Its variance is summed over every two pairs, one by one. The
    result is (share, low, high).

    Args:
      pairs: (image, unit of the foreground, units of the two backgrounds, whether the predictions
        differ) of each pair.
      pictures: (unit of the foreground, unit of the background) of each picture in any pair.
    """
    rows = list(pairs)
    counts = Counter(image for image, *_ in rows)
    weights = [1 / counts[image] / len(counts) for image, *_ in rows]
    share = sum(w * flips for w, (*_, flips) in zip(weights, rows, strict=True))
    fg_units, bg_units = (effective(role) for role in zip(*pictures, strict=True))
    if min(fg_units, bg_units) < 2:
        return share, 0.0, 1.0

    def shared(r: list[float]) -> tuple[float, float, float]:
        of_fg = of_bg = of_both = 0.0
        for (_, fg, grounds, _), x in zip(rows, r, strict=True):
            for (_, other_fg, other_grounds, _), y in zip(rows, r, strict=True):
                is_bg = bool(set(grounds) & set(other_grounds))
                of_fg += x * y * (fg == other_fg)
                of_bg += x * y * is_bg
                of_both += x * y * (is_bg and fg == other_fg)
        return of_fg, of_bg, of_both

    of_fg, of_bg, of_both = shared(
        [w * (flips - share) for w, (*_, flips) in zip(weights, rows, strict=True)]
    )
    variance = of_fg * fg_units / (fg_units - 1)
    variance += max(0.0, of_bg * bg_units / (bg_units - 1) - of_both)
    most, fewest = 1 / sum(w**2 for w in weights), 1 / max(shared(weights)[:2])
    n = fewest
    if 1e-9 < share < 1 - 1e-9:
        n = share * (1 - share) / variance if variance > 1e-15 else most
    n = min(max(n, fewest), most)
    z = t_quantile(min(fg_units, bg_units) - 1, 0.95)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return share, min(centre - reach, share), max(centre + reach, share)
