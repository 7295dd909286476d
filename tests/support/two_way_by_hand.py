"""Computes two-way intervals with plain dictionaries, as a reference for the tables."""

import math
from collections import Counter
from collections.abc import Iterable

from transforms.intervals import t_quantile


def interval_of(
    estimate: float,
    pictures: Iterable[tuple[str, str | None, float]],
    pairs: Iterable[object] | None = None,
    known: tuple[float, float] | None = None,
) -> tuple[float, float]:
    """Returns the interval (low, high) of a difference, by the formulas of Tango 1998.

    Args:
      estimate: the difference.
      pictures: (foreground, background or None for its own, contribution) of each picture.
      pairs: the paired difference that each picture belongs to; None if each is one by itself.
      known: variance and degrees of freedom; None for those of the pictures.
    """
    rows = list(pictures)
    variance, df = known or variance_of(rows)
    if df < 1:
        return -1.0, 1.0
    by_pair: Counter[object] = Counter()
    for pair, (*_, r) in zip(range(len(rows)) if pairs is None else pairs, rows, strict=True):
        by_pair[pair] += r
    n = len(by_pair)
    square = max(sum((estimate + n * r) ** 2 for r in by_pair.values()) / n, abs(estimate))
    spread = square - estimate**2
    trials = min(max(spread / variance, (df + 1) / 4), n) if variance > 1e-24 else df + 1
    rest = max(0.0, variance - spread / trials)
    t = t_quantile(df, 0.95)

    def is_inside(value: float) -> bool:
        plus, minus = (trials * (square + sign * estimate) / 2 for sign in (1, -1))
        b = (2 * trials - plus + minus) * value - plus - minus
        if value < 0:  # The same formula, the other way round.
            plus, minus, b = minus, plus, (minus - plus - 2 * trials) * value - plus - minus
        c = -minus * abs(value) * (1 - abs(value))
        rarer = (math.sqrt(max(b**2 - 8 * trials * c, 0)) - b) / (4 * trials)
        at_value = (2 * rarer + abs(value) * (1 - abs(value))) / trials + rest
        return (value - estimate) ** 2 <= t**2 * max(at_value, 0)

    def end(inside: float, outside: float) -> float:
        while abs(outside - inside) > 1e-10:
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if is_inside(middle) else (inside, middle)
        return outside

    return end(estimate, min(estimate, -1)), end(estimate, max(estimate, 1))


def share_interval(pictures: Iterable[tuple[str, str | None, bool]]) -> tuple[float, float]:
    """Returns the interval of the share of right ones of (foreground, background, right)."""
    rows = list(pictures)
    n, share = len(rows), sum(right for *_, right in rows) / len(rows)
    variance, df = variance_of([(fg, bg, (right - share) / n) for fg, bg, right in rows])
    fewest, z = df + 1, 1.959964
    if fewest < 2 <= n:
        return 0.0, 1.0
    effective = fewest
    if fewest < n:
        z = t_quantile(df, 0.95)
        if 0 < share < 1:
            effective = share * (1 - share) / variance if variance else n
        effective = min(max(effective, fewest), n)
    centre = (share + z**2 / (2 * effective)) / (1 + z**2 / effective)
    spread = share * (1 - share) / effective + z**2 / (4 * effective**2)
    reach = z * math.sqrt(spread) / (1 + z**2 / effective)
    return min(centre - reach, share), max(centre + reach, share)


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


def variance_of_methods(
    roles: list[tuple[str, str | None]], *methods: list[tuple[float, list[float]]]
) -> tuple[float, float]:
    """Returns the variance of a method's mean, or of the difference of two, and its df.

    Args:
      roles: (foreground, background or None) of each picture.
      methods: the estimate of each seed, and the contribution of each picture to it.
    """

    def variance(r: list[float]) -> float:
        return variance_of([(*role, one) for role, one in zip(roles, r, strict=True)])[0]

    means = [
        [sum(r) / len(seeds) for r in zip(*(r for _, r in seeds), strict=True)] for seeds in methods
    ]
    both = means[0] if len(means) == 1 else [one - other for one, other in zip(*means, strict=True)]
    of_images, df = variance_of([(*role, one) for role, one in zip(roles, both, strict=True)])
    common, of_seeds = of_images, []
    for seeds, mean in zip(methods, means, strict=True):
        number, average = len(seeds), sum(value for value, _ in seeds) / len(seeds)
        square = sum((value - average) ** 2 for value, _ in seeds) / (number - 1)
        noise = sum(variance([one - m for one, m in zip(r, mean, strict=True)]) for _, r in seeds)
        common -= noise / (number - 1) / number
        of_seeds.append((square / number, number - 1))
    common = max(0.0, common)
    total = max(of_images, common + sum(part for part, _ in of_seeds))
    terms = common**2 / df + sum(part**2 / of for part, of in of_seeds)
    return total, min(df, total**2 / terms) if terms else df


def effective(units: Iterable[object]) -> float:
    """Returns the effective number of the units of pictures."""
    counts = Counter(units).values()
    return sum(counts) ** 2 / sum(count**2 for count in counts)


def flip_interval(
    pairs: Iterable[tuple[object, str, tuple[str, str], bool]],
    pictures: Iterable[tuple[str, str]],
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
