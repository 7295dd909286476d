"""What results say of each claim: pure functions of the models and the trend.

A judge gives a finding for each model, variant or line that bears on its claim; none where
nothing was run.
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
"""Above chance, which on the authors' balanced images is 11.1 %: theirs are 3.5 and 4.2 points."""
_INSECT = 5
"""Label of the insects."""


def signal(results: Results) -> Iterator[Finding]:
    """Accuracy of models trained on backgrounds alone."""
    for model in all_trained_on(results, "only_bg_t", "only_bg_b", "no_fg"):
        for variant in (model.variant, "original"):
            if found := model.accuracies.get(variant):
                chance = model.chances[variant]
                verdict = above(found[1], found[2], chance)
                yield Finding(f"{model.name} on {variant}", *found, verdict, chance)


def background_alone(results: Results) -> Iterator[Finding]:
    """Accuracy of pretrained models on `only_bg_t`, against chance. One below it leaves the claim
    open: answers outside of the classes count as wrong, whatever the others tell."""
    for model in pretrained_models(results):
        if found := accuracy_of(model, "only_bg_t"):
            chance = chance_of(model, "only_bg_t")
            is_above = above(found[1], found[2], chance) is Verdict.HOLDS
            verdict = Verdict.HOLDS if is_above else Verdict.OPEN
            yield Finding(model.name, *found, verdict, chance)


def gap_above(results: Results) -> Iterator[Finding]:
    """BG-Gap of every model, against none."""
    for model in results.models:
        if not model.overlap and (found := gap_of(model)):
            yield Finding(model.name, *found, above(found[1], found[2], 0))


def gap_pretrained(results: Results) -> Iterator[Finding]:
    """BG-Gap of pretrained models, against the published range."""
    for model in pretrained_models(results):
        if found := gap_of(model):
            yield Finding(model.name, *found, within(found[1], found[2], (0.06, 0.14)))


def gap_in9(results: Results) -> Iterator[Finding]:
    """BG-Gap of models trained on ImageNet-9, against the published range."""
    for model in all_trained_on(results, "original", "in9l"):
        if found := model.gap:
            yield Finding(model.name, *found, within(found[1], found[2], (0.13, 0.22)))


def _on_grid(model: ModelResults) -> str:
    return f"{model.name}, {grid_size(model.attack or {})}"


def _settled(verdict: Verdict, is_full: bool) -> Verdict:
    """More backgrounds only fool more: a claim that holds on a small grid holds on a larger
    one, but one that does not may yet."""
    return verdict if is_full or verdict is Verdict.HOLDS else Verdict.SMALL


def fooled(results: Results) -> Iterator[Finding]:
    """Foregrounds that a background of another class turns into its own."""
    for model, measures, is_full in attacks_of(results):
        if measures["fooled"] is not None:
            low, high = measures["fooled_ci_low"], measures["fooled_ci_high"]
            verdict = _settled(above(low, high, 0.5), is_full)
            yield Finding(_on_grid(model), measures["fooled"], low, high, verdict)


def challenge(results: Results) -> Iterator[Finding]:
    """Foregrounds that no background turns wrong."""
    for model, measures, is_full in attacks_of(results):
        low, high = measures["challenge_ci_low"], measures["challenge_ci_high"]
        verdict = _settled(below(low, high, 0.25), is_full)
        yield Finding(_on_grid(model), measures["challenge_accuracy"], low, high, verdict)


def best_insect(results: Results) -> Iterator[Finding]:
    """The best single insect background, with the interval of one chosen among all of them."""
    for model, measures, is_full in attacks_of(results):
        of_insects = [row["success"] for row in measures["strongest"] if row["label"] == _INSECT]
        for row in _insects(measures):
            best, met = max(of_insects), row["foregrounds"]
            low, high = wilson(round(best * met), met, level_of(row["backgrounds"]))
            verdict = _settled(above(low, high, 0.45), is_full)
            yield Finding(_on_grid(model), best, low, high, verdict)


def any_insect(results: Results) -> Iterator[Finding]:
    """Foregrounds that some insect background turns into insects."""
    for model, measures, is_full in attacks_of(results):
        for row in _insects(measures):
            share, met = row["fooled"], row["foregrounds"]
            low, high = wilson(round(share * met), met)
            verdict = _settled(above(low, high, 0.6), is_full)
            yield Finding(_on_grid(model), share, low, high, verdict)


def _insects(measures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is known of all insect backgrounds together: one row, or none."""
    return [row for row in measures["by_class"] if row["label"] == _INSECT]


def without_foreground(results: Results) -> Iterator[Finding]:
    """Accuracy without a foreground of models trained on `mixed_rand`."""
    for model in all_trained_on(results, "mixed_rand"):
        for variant in ("only_bg_t", "only_bg_b"):
            if found := model.accuracies.get(variant):
                chance = model.chances[variant]
                verdict = below(found[1], found[2], chance + _SLIGHTLY)
                yield Finding(f"{model.name} on {variant}", *found, verdict, chance)


def improves(variant: str) -> Callable[[Results], Iterator[Finding]]:
    """Accuracy on a variant: trained on `mixed_rand` less on `original`."""

    def judge(results: Results) -> Iterator[Finding]:
        for model in all_trained_on(results, "mixed_rand"):
            for other in all_trained_on(results, "original"):
                mine, theirs = model.accuracies.get(variant), other.accuracies.get(variant)
                # Rows of one matrix were tested on the same images: see below.
                if mine and theirs and not model.matrix and not other.matrix:
                    found = difference(mine, theirs)
                    subject = f"{model.name} less {other.name}"
                    yield Finding(subject, *found, above(found[1], found[2], 0))
        for content in results.matrices:
            rows = {trained.variant for trained in trained_in(content)}
            for row in content["gains"]:
                gain = estimate_of(row, "difference")
                if (
                    row["test_variant"] == variant
                    and gain
                    and {row["first"], row["second"]} <= rows
                ):
                    subject = f"{content['name']}, {row['first']} less {row['second']}"
                    yield Finding(subject, *gain, above(gain[1], gain[2], 0))

    return judge


_RIGHT_FOREGROUND = ("original", "mixed_same", "mixed_rand", "mixed_next", "only_fg")


def varies_little(results: Results) -> Iterator[Finding]:
    """Spread of the accuracies on versions with the right foreground."""
    for model in all_trained_on(results, "mixed_rand"):
        found = [one for v in _RIGHT_FOREGROUND if (one := model.accuracies.get(v))]
        if len(found) == len(_RIGHT_FOREGROUND):
            # The best and the worst of five: one of ten differences, and chosen as the largest.
            pairs = math.comb(len(found), 2)
            spread = difference(*(widened(one, pairs) for one in (max(found), min(found))))
            yield Finding(model.name, *spread, below(spread[1], spread[2], 0.1))


def looks_at_foreground(results: Results) -> Iterator[Finding]:
    """Saliency inside the mask: trained on `mixed_rand` less on `original`."""
    for model in models_trained_on(results, "mixed_rand"):
        for other in models_trained_on(results, "original"):
            mine, theirs = mass_of(model), mass_of(other)
            if mine and theirs:
                found = difference(mine, theirs)
                subject = f"{model.name} less {other.name}"
                yield Finding(subject, *found, above(found[1], found[2], 0))


def rises(*variants: str) -> Callable[[Results], Iterator[Finding]]:
    """Slopes of variants against accuracy on ImageNet."""

    def judge(results: Results) -> Iterator[Finding]:
        slopes = slopes_of(results)
        for variant in variants:
            if variant in slopes:
                found = slopes[variant]
                yield Finding(variant, *found, above(found[1], found[2], 0))

    return judge


def slower(results: Results) -> Iterator[Finding]:
    """Slopes where the background misleads, less that on backgrounds alone."""
    slopes = slopes_of(results)
    for variant in ("mixed_rand", "mixed_next"):
        if "only_bg_t" in slopes and variant in slopes:
            found = difference(slopes[variant], slopes["only_bg_t"])
            yield Finding(f"{variant} less only_bg_t", *found, above(found[1], found[2], 0))


def closing(results: Results) -> Iterator[Finding]:
    """Slope of BG-Gap."""
    if "bg_gap" in slopes_of(results):
        found = slopes_of(results)["bg_gap"]
        yield Finding("bg_gap", *found, below(found[1], found[2], 0))
