"""The authors' claims about training sets, and their judges."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping

from pipeline.analyses.evaluation.headline import COMMAND as EVALUATE_COMMAND
from pipeline.analyses.evaluation.results import Summary
from pipeline.analyses.evaluation.trained import models_trained_on
from pipeline.analyses.matrix.panel import COMMAND
from pipeline.analyses.matrix.results import CellRow, Matrix
from pipeline.display.claims import Claim, checkpoints, trained_command
from pipeline.display.evidence import Results
from pipeline.display.verdicts import (
    Estimate,
    Finding,
    above,
    below,
    difference,
    widened,
    within,
)

_SLIGHTLY = 0.09
"""Up to this much above chance, an accuracy counts as slightly better than guessing. The authors'
models are 3.5 and 4.2 points above 11.1 %, the chance on their balanced images."""
_RIGHT_FOREGROUND = ("original", "mixed_same", "mixed_rand", "mixed_next", "only_fg")


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A model trained on a variant: either evaluated by itself, or a row of a matrix.

    Attributes:
      name: name of the model.
      variant: the variant that it was trained on.
      accuracies: its accuracies, by the variant that it was tested on.
      chances: accuracy of a constant answer, by the variant that it was tested on.
      gap: its BG-Gap, None if unknown.
      matrix: name of the matrix in which it is a row; "" if it was evaluated by itself.
    """

    name: str
    variant: str
    accuracies: Mapping[str, Estimate]
    chances: Mapping[str, float]
    gap: Estimate | None
    matrix: str = ""


def all_trained_on(results: Results, *variants: str) -> Iterator[TrainedModel]:
    """Yields models trained on these variants. A model that is also a row of a matrix is yielded
    only once, as the row."""
    matrices = results.get(Matrix)
    rows = [trained for matrix in matrices for trained in trained_in(matrix)]
    known = {row.weights_sha256 for matrix in matrices for row in matrix.rows}
    for variant in variants:
        for model in models_trained_on(results, variant):
            summary = model.get(Summary)
            if summary is None or summary.weights_sha256 not in known:
                tests = (
                    [row.variant for row in summary.by_rule(summary.accuracy)] if summary else []
                )
                accuracies = {
                    name: one for name in tests if summary and (one := summary.estimate(name))
                }
                chances = {name: summary.chance(name) for name in accuracies if summary}
                gap = summary.gap() if summary else None
                yield TrainedModel(
                    model.name, variant, accuracies, chances, gap.estimate if gap else None
                )
        yield from (trained for trained in rows if trained.variant == variant)


def trained_in(matrix: Matrix) -> Iterator[TrainedModel]:
    """Yields the rows of a matrix that were tested on no training image."""
    gaps = {row.train_variant: row.estimate for row in matrix.gaps}
    by_row: dict[str, list[CellRow]] = {}
    for row in matrix.rows:
        by_row.setdefault(row.train_variant, []).append(row)
    for variant, cells in by_row.items():
        if not any(cell.overlap for cell in cells):
            yield TrainedModel(
                f"{matrix.name}, {variant}",
                variant,
                {cell.test_variant: one for cell in cells if (one := cell.estimate)},
                {cell.test_variant: cell.chance or 0.0 for cell in cells},
                gaps.get(variant),
                matrix.name,
            )


def signal(results: Results) -> Iterator[Finding]:
    """Compares the accuracy of models trained on backgrounds alone with chance."""
    for model in all_trained_on(results, "only_bg_t", "only_bg_b", "no_fg"):
        for variant in (model.variant, "original"):
            if estimate := model.accuracies.get(variant):
                chance = model.chances[variant]
                verdict = above(estimate[1], estimate[2], chance)
                yield Finding(f"{model.name} on {variant}", *estimate, verdict, chance)


def gap_in9(results: Results) -> Iterator[Finding]:
    """Compares the BG-Gap of models trained on ImageNet-9 with the published range."""
    for model in all_trained_on(results, "original", "in9l"):
        if estimate := model.gap:
            yield Finding(model.name, *estimate, within(estimate[1], estimate[2], (0.13, 0.22)))


def without_foreground(results: Results) -> Iterator[Finding]:
    """Compares with chance the accuracy that models trained on `mixed_rand` have on backgrounds
    alone."""
    for model in all_trained_on(results, "mixed_rand"):
        for variant in ("only_bg_t", "only_bg_b"):
            if estimate := model.accuracies.get(variant):
                chance = model.chances[variant]
                verdict = below(estimate[1], estimate[2], chance + _SLIGHTLY)
                yield Finding(f"{model.name} on {variant}", *estimate, verdict, chance)


def improves(variant: str) -> Callable[[Results], Iterator[Finding]]:
    """Returns a judge of how much accuracy on a variant is gained by training on `mixed_rand`
    instead of `original`."""

    def judge(results: Results) -> Iterator[Finding]:
        for model in all_trained_on(results, "mixed_rand"):
            for other in all_trained_on(results, "original"):
                mine, theirs = model.accuracies.get(variant), other.accuracies.get(variant)
                # Rows of a matrix share their test images, so they are compared by their paired
                # gains below, and with no other model.
                if mine and theirs and not model.matrix and not other.matrix:
                    estimate = difference(mine, theirs)
                    subject = f"{model.name} minus {other.name}"
                    yield Finding(subject, *estimate, above(estimate[1], estimate[2], 0))
        for matrix in results.get(Matrix):
            rows = {trained.variant for trained in trained_in(matrix)}
            for gain in matrix.gains:
                if gain.test_variant == variant and {gain.first, gain.second} <= rows:
                    subject = f"{matrix.name}, {gain.first} minus {gain.second}"
                    yield Finding(subject, *gain.estimate, above(gain.ci_low, gain.ci_high, 0))

    return judge


def varies_little(results: Results) -> Iterator[Finding]:
    """Judges the spread of the accuracies on versions with the right foreground."""
    for model in all_trained_on(results, "mixed_rand"):
        estimates = [one for v in _RIGHT_FOREGROUND if (one := model.accuracies.get(v))]
        if len(estimates) == len(_RIGHT_FOREGROUND):
            # The best minus the worst of five accuracies is the largest of ten pairwise
            # differences.
            pairs = math.comb(len(estimates), 2)
            spread = difference(*(widened(one, pairs) for one in (max(estimates), min(estimates))))
            yield Finding(model.name, *spread, below(spread[1], spread[2], 0.1))


_OR_TRAINED = (
    "nothing: it fits a linear probe; with a split train, --arch resnet50 in place of --probe "
    "--holdout 0.5 trains as the paper does"
)

CLAIMS = (
    Claim(
        "Backgrounds hold enough signal to learn from: trained on them alone, a model does better "
        "than guessing on them and on Original.",
        (1, 1),
        "blog 1, paper table 5",
        "42.1 to 54.3 %",
        "accuracy above chance",
        signal,
        COMMAND,
        of="tests",
        needs=_OR_TRAINED,
    ),
    Claim(
        "BG-Gap is 13 to 22 points for models trained on ImageNet-9.",
        (2, 4),
        "blog 2",
        "13 to 22 points",
        "the whole interval inside 13 to 22 points",
        # Rows of a matrix are models trained on ImageNet-9, too.
        gap_in9,
        trained_command(EVALUATE_COMMAND, "original", "in9l"),
        unit="points",
        needs=checkpoints("original", "in9l"),
    ),
    Claim(
        "Trained on Mixed-Rand, a model is only slightly better than guessing where there is no "
        "foreground.",
        (4, 1),
        "blog 4, paper table 5",
        "14.6 and 15.3 %",
        "accuracy less than 9 points above chance",
        without_foreground,
        COMMAND,
        of="tests",
        needs=_OR_TRAINED,
    ),
    Claim(
        "Training on Mixed-Rand instead of Original improves accuracy on Mixed-Rand.",
        (4, 2),
        "blog 4, paper table 5",
        "17 points",
        "difference above 0",
        improves("mixed_rand"),
        COMMAND,
        of="pairs",
        unit="points",
        needs=_OR_TRAINED,
    ),
    Claim(
        "Training on Mixed-Rand instead of Original improves accuracy on Mixed-Next.",
        (4, 3),
        "blog 4, paper table 5",
        "22 points",
        "difference above 0",
        improves("mixed_next"),
        COMMAND,
        of="pairs",
        unit="points",
        needs=_OR_TRAINED,
    ),
    Claim(
        "Trained on Mixed-Rand, accuracy varies little over the five test sets with the right "
        "foreground.",
        (4, 4),
        "blog 4, paper table 5",
        "3.8 points (Original: 37.2)",
        "best minus worst under 10 points, by the interval of the largest of ten differences",
        varies_little,
        COMMAND,
        unit="points",
        needs=_OR_TRAINED,
    ),
)
