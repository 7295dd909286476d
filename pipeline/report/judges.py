"""Judges of the claims: pure functions of the results.

A judge yields a finding for each model, variant or line that bears on its claim. It yields nothing
if the results for its claim are missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipeline.report.evidence import ModelResults
from pipeline.report.measured import (
    Results,
    accuracy_of,
    all_trained_on,
    attacks_of,
    chance_of,
    estimate_of,
    gap_of,
    grid_size,
    mass_of,
    models_trained_on,
    pretrained_models,
    slopes_of,
    trained_in,
)
from pipeline.report.verdicts import (
    Finding,
    Verdict,
    above,
    below,
    difference,
    widened,
    within,
)
from transforms.intervals import level_of, wilson

_SLIGHTLY = 0.09
"""Up to this much above chance, an accuracy counts as slightly better than guessing. The authors'
models are 3.5 and 4.2 points above 11.1 %, the chance on their balanced images."""
_INSECT = 5
"""Label of the class insect."""


def signal(results: Results) -> Iterator[Finding]:
    """Compares the accuracy of models trained on backgrounds alone with chance."""
    for model in all_trained_on(results, "only_bg_t", "only_bg_b", "no_fg"):
        for variant in (model.variant, "original"):
            if estimate := model.accuracies.get(variant):
                chance = model.chances[variant]
                verdict = above(estimate[1], estimate[2], chance)
                yield Finding(f"{model.name} on {variant}", *estimate, verdict, chance)


def background_alone(results: Results) -> Iterator[Finding]:
    """Compares the accuracy of pretrained models on `only_bg_t` with chance.

    An accuracy below chance leaves the claim open, because answers outside the classes count as
    wrong even if the other answers carry signal.
    """
    for model in pretrained_models(results):
        if estimate := accuracy_of(model, "only_bg_t"):
            chance = chance_of(model, "only_bg_t")
            is_above = above(estimate[1], estimate[2], chance) is Verdict.HOLDS
            verdict = Verdict.HOLDS if is_above else Verdict.OPEN
            yield Finding(model.name, *estimate, verdict, chance)


def gap_above(results: Results) -> Iterator[Finding]:
    """Compares the BG-Gap of every model that was tested on no training image with 0."""
    for model in results.models:
        if not model.overlap and (estimate := gap_of(model)):
            yield Finding(model.name, *estimate, above(estimate[1], estimate[2], 0))


def gap_pretrained(results: Results) -> Iterator[Finding]:
    """Compares the BG-Gap of pretrained models with the published range."""
    for model in pretrained_models(results):
        if estimate := gap_of(model):
            yield Finding(model.name, *estimate, within(estimate[1], estimate[2], (0.06, 0.14)))


def gap_in9(results: Results) -> Iterator[Finding]:
    """Compares the BG-Gap of models trained on ImageNet-9 with the published range."""
    for model in all_trained_on(results, "original", "in9l"):
        if estimate := model.gap:
            yield Finding(model.name, *estimate, within(estimate[1], estimate[2], (0.13, 0.22)))


def _on_grid(model: ModelResults) -> str:
    return f"{model.name}, {grid_size(model.attack or {})}"


def _settled(verdict: Verdict, is_full: bool) -> Verdict:
    """Returns the verdict if a larger grid could not change it, otherwise `SMALL`.

    More backgrounds can only fool more foregrounds, so a claim that holds on a small grid holds on
    a larger one, too. A claim that does not hold on a small grid may still hold on a larger one.
    """
    return verdict if is_full or verdict is Verdict.HOLDS else Verdict.SMALL


def fooled(results: Results) -> Iterator[Finding]:
    """Judges the share of foregrounds that some background of another class fools."""
    for model, measures, is_full in attacks_of(results):
        share, low, high = (measures[n] for n in ("fooled", "fooled_ci_low", "fooled_ci_high"))
        if None not in (share, low, high):
            verdict = _settled(above(low, high, 0.5), is_full)
            yield Finding(_on_grid(model), share, low, high, verdict)


def challenge(results: Results) -> Iterator[Finding]:
    """Judges the share of foregrounds that are recognised on every background."""
    for model, measures, is_full in attacks_of(results):
        if measures["challenge_accuracy"] is not None:
            low, high = measures["challenge_ci_low"], measures["challenge_ci_high"]
            verdict = _settled(below(low, high, 0.25), is_full)
            yield Finding(_on_grid(model), measures["challenge_accuracy"], low, high, verdict)


def best_insect(results: Results) -> Iterator[Finding]:
    """Judges the best single insect background. Its interval is widened, because it is the best of
    as many backgrounds as were tried."""
    for model, measures, is_full in attacks_of(results):
        successes = [row["success"] for row in measures["strongest"] if row["label"] == _INSECT]
        for row in _insects(measures):
            best, tried = max(successes), row["foregrounds"]
            low, high = wilson(round(best * tried), tried, level_of(row["backgrounds"]))
            verdict = _settled(above(low, high, 0.45), is_full)
            yield Finding(_on_grid(model), best, low, high, verdict)


def any_insect(results: Results) -> Iterator[Finding]:
    """Judges the share of foregrounds that some insect background turns into insects."""
    for model, measures, is_full in attacks_of(results):
        for row in _insects(measures):
            share, tried = row["fooled"], row["foregrounds"]
            low, high = wilson(round(share * tried), tried)
            verdict = _settled(above(low, high, 0.6), is_full)
            yield Finding(_on_grid(model), share, low, high, verdict)


def _insects(measures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the row of `by_class` for the insects, in a list that is empty without such a row."""
    return [row for row in measures["by_class"] if row["label"] == _INSECT]


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
        for content in results.matrices:
            rows = {trained.variant for trained in trained_in(content)}
            for row in content["gains"]:
                gain = estimate_of(row, "difference")
                if (
                    row["test_variant"] == variant
                    and gain
                    and {row["first"], row["second"]} <= rows
                ):
                    subject = f"{content['name']}, {row['first']} minus {row['second']}"
                    yield Finding(subject, *gain, above(gain[1], gain[2], 0))

    return judge


_RIGHT_FOREGROUND = ("original", "mixed_same", "mixed_rand", "mixed_next", "only_fg")


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


def looks_at_foreground(results: Results) -> Iterator[Finding]:
    """Compares the share of saliency inside the mask between models trained on `mixed_rand` and
    models trained on `original`."""
    for model in models_trained_on(results, "mixed_rand"):
        for other in models_trained_on(results, "original"):
            mine, theirs = mass_of(model), mass_of(other)
            if mine and theirs:
                estimate = difference(mine, theirs)
                subject = f"{model.name} minus {other.name}"
                yield Finding(subject, *estimate, above(estimate[1], estimate[2], 0))


def rises(*variants: str) -> Callable[[Results], Iterator[Finding]]:
    """Returns a judge of the slopes of accuracy on these variants against accuracy on ImageNet."""

    def judge(results: Results) -> Iterator[Finding]:
        slopes = slopes_of(results)
        for variant in variants:
            if variant in slopes:
                estimate = slopes[variant]
                yield Finding(variant, *estimate, above(estimate[1], estimate[2], 0))

    return judge


def slower(results: Results) -> Iterator[Finding]:
    """Compares the slopes where the background misleads with the slope on backgrounds alone."""
    slopes = slopes_of(results)
    for variant in ("mixed_rand", "mixed_next"):
        if "only_bg_t" in slopes and variant in slopes:
            estimate = difference(slopes[variant], slopes["only_bg_t"])
            yield Finding(
                f"{variant} minus only_bg_t", *estimate, above(estimate[1], estimate[2], 0)
            )


def closing(results: Results) -> Iterator[Finding]:
    """Judges the slope of BG-Gap."""
    if "bg_gap" in slopes_of(results):
        estimate = slopes_of(results)["bg_gap"]
        yield Finding("bg_gap", *estimate, below(estimate[1], estimate[2], 0))
