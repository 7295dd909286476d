"""Computes two-way intervals with plain dictionaries, as a reference for the tables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from transforms.intervals import t_quantile


def interval_of(
    estimate: float, pictures: Iterable[tuple[str, str | None, float]]
) -> tuple[float, float]:
    """Returns the interval (low, high) of a difference.

    Args:
      estimate: the difference.
      pictures: (foreground, background or None for its own, contribution) of each picture.
    """
    rows = list(pictures)
    variance, df = variance_of(rows)
    reach = t_quantile(df, 0.95) * math.sqrt(variance)
    return max(estimate - reach, -1), min(estimate + reach, 1)


def share_interval(pictures: Iterable[tuple[str, str | None, bool]]) -> tuple[float, float]:
    """Returns the interval (low, high) of the share of right predictions.

    Args:
      pictures: (foreground, background, right) of each picture.
    """
    rows = list(pictures)
    n, share = len(rows), sum(right for *_, right in rows) / len(rows)
    by_role = [Counter(fg for fg, *_ in rows)]
    if rows[0][1] is not None:
        by_role.append(Counter(bg for _, bg, _ in rows))
    if min(len(of_role) for of_role in by_role) == 1 < n:
        return 0.0, 1.0
    fewest = min(n**2 / sum(c**2 for c in of_role.values()) for of_role in by_role)
    if all(len(of_role) == n for of_role in by_role):
        effective, z = float(n), 1.959964
    else:
        variance, df = variance_of([(fg, bg, (right - share) / n) for fg, bg, right in rows])
        z = t_quantile(df, 0.95)
        effective = fewest
        if 0 < share < 1:
            effective = share * (1 - share) / variance if variance else n
        effective = min(max(effective, fewest), n)
    centre = (share + z**2 / (2 * effective)) / (1 + z**2 / effective)
    spread = share * (1 - share) / effective + z**2 / (4 * effective**2)
    reach = z * math.sqrt(spread) / (1 + z**2 / effective)
    return min(centre - reach, share), max(centre + reach, share)


def variance_of(rows: list[tuple[str, str | None, float]]) -> tuple[float, int]:
    """Returns the variance and its degrees of freedom."""
    by_fg: Counter[str] = Counter()
    by_bg: Counter[str | None] = Counter()
    by_pair: Counter[tuple[str, str | None]] = Counter()
    for fg, bg, r in rows:
        by_fg[fg] += r
        by_bg[bg] += r
        by_pair[fg, bg] += r

    def squares(sums: Counter[str] | Counter[str | None]) -> float:
        return sum(s**2 for s in sums.values()) * len(sums) / (len(sums) - 1)

    if rows[0][1] is None:
        return squares(by_fg), len(by_fg) - 1
    both = sum(s**2 for s in by_pair.values())
    variance = squares(by_fg) + max(0.0, squares(by_bg) - both)
    return variance, min(len(by_fg), len(by_bg)) - 1


def flip_interval(
    pairs: Iterable[tuple[object, str, tuple[str, str], bool]],
) -> tuple[float, float, float]:
    """Returns the share of pairs of pictures whose predictions differ, and its interval.

    The share is a mean over images. Its variance is summed over every two pairs, one by one. The
    result is (share, low, high).

    Args:
      pairs: (image, unit of the foreground, units of the two backgrounds, whether the predictions
        differ) of each pair.
    """
    rows = list(pairs)
    counts = Counter(image for image, *_ in rows)
    weights = [1 / counts[image] / len(counts) for image, *_ in rows]
    share = sum(w * flips for w, (*_, flips) in zip(weights, rows, strict=True))
    fg_units = len({fg for _, fg, *_ in rows})
    bg_units = len({bg for _, _, grounds, _ in rows for bg in grounds})
    if min(fg_units, bg_units) == 1:
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
