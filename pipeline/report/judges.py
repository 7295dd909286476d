"""What results say of each claim: pure functions of the models and the trend.

A judge gives a finding for each model, variant or line that bears on its claim; none where
nothing was run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.report import published
from pipeline.report.evidence import ModelResults
from pipeline.report.verdicts import Finding, Verdict, above, below, difference, meets

RULE = "argmax_then_map"
CHANCE = 1 / 9
TIMES = "\N{MULTIPLICATION SIGN}"


Estimate = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Results:
    """What claims are judged by: models, the trend over them, and matrices."""

    models: Sequence[ModelResults]
    trend: dict[str, Any] | None
    matrices: Sequence[dict[str, Any]] = ()


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model trained on a variant: evaluated by itself, or a row of a matrix.

    Attributes:
      name: of the model.
      variant: that it was trained on.
      accuracies: by variant that it was tested on.
      gap: its BG-Gap, if it is known.
      matrix: that it is a row of, "" if it was evaluated by itself.
    """

    name: str
    variant: str
    accuracies: Mapping[str, Estimate]
    gap: Estimate | None
    matrix: str = ""


def training_of(model: ModelResults) -> str | None:
    """The variant that a model was trained on, if it or its name says so."""
    said = model.trained.get("variant")
    summary = model.summary or model.saliency or {}
    return said or published.trained_on(model.model, summary.get("num_outputs", 0))


def _pretrained(results: Results) -> Iterator[ModelResults]:
    """Models with ImageNet's outputs."""
    for model in results.models:
        if (model.summary or {}).get("num_outputs", 0) > len(published.FOOLED_BY_CLASS):
            yield model


def _trained_models(results: Results, variant: str) -> Iterator[ModelResults]:
    """Models trained on a variant, and not tested on what they have seen."""
    for model in results.models:
        if training_of(model) == variant and not model.overlap:
            yield model


def _trained(results: Results, *variants: str) -> Iterator[Trained]:
    """Models trained on variants; one that is a row of a matrix counts once."""
    rows = [trained for content in results.matrices for trained in _rows_of(content)]
    known = {row["weights_sha256"] for content in results.matrices for row in content["rows"]}
    for variant in variants:
        for model in _trained_models(results, variant):
            if (model.summary or {}).get("weights_sha256") not in known:
                tests = [row["variant"] for row in model.rows("accuracy", label_rule=RULE)]
                found = {name: one for name in tests if (one := _accuracy(model, name))}
                yield Trained(model.name, variant, found, _gap(model))
        yield from (trained for trained in rows if trained.variant == variant)


def _rows_of(content: Mapping[str, Any]) -> Iterator[Trained]:
    """Rows of a matrix that were not tested on what they have seen."""
    gaps = {row["train_variant"]: _estimate(row, "difference") for row in content["gaps"]}
    by_row: dict[str, list[dict[str, Any]]] = {}
    for row in content["rows"]:
        by_row.setdefault(row["train_variant"], []).append(row)
    for variant, cells in by_row.items():
        if not any(cell["overlap"] for cell in cells):
            found = {
                cell["test_variant"]: one for cell in cells if (one := _estimate(cell, "accuracy"))
            }
            name = f"{content['name']}, {variant}"
            yield Trained(name, variant, found, gaps.get(variant), content["name"])


def _estimate(row: Mapping[str, Any], name: str) -> Estimate | None:
    return (row[name], row["ci_low"], row["ci_high"]) if row[name] is not None else None


def _accuracy(model: ModelResults, variant: str) -> Estimate | None:
    row = model.row("accuracy", label_rule=RULE, variant=variant)
    return (row["accuracy"], row["ci_low"], row["ci_high"]) if row and row["n"] else None


def _gap(model: ModelResults) -> Estimate | None:
    row = model.row("gaps", label_rule=RULE)
    return (row["gap"], row["ci_low"], row["ci_high"]) if row else None


def signal(results: Results) -> Iterator[Finding]:
    """Accuracy of models trained on backgrounds alone."""
    for model in _trained(results, "only_bg_t", "only_bg_b", "no_fg"):
        for variant in (model.variant, "original"):
            if found := model.accuracies.get(variant):
                verdict = above(found[1], found[2], CHANCE)
                yield Finding(f"{model.name} on {variant}", *found, verdict)


def background_alone(results: Results) -> Iterator[Finding]:
    """Accuracy of pretrained models on `only_bg_t`."""
    for model in _pretrained(results):
        if found := _accuracy(model, "only_bg_t"):
            yield Finding(model.name, *found, meets(found[1], found[2], (0.119, 0.178)))


def gap_above(results: Results) -> Iterator[Finding]:
    """BG-Gap of every model, against none."""
    for model in results.models:
        if not model.overlap and (found := _gap(model)):
            yield Finding(model.name, *found, above(found[1], found[2], 0))


def gap_pretrained(results: Results) -> Iterator[Finding]:
    """BG-Gap of pretrained models, against the published range."""
    for model in _pretrained(results):
        if found := _gap(model):
            yield Finding(model.name, *found, meets(found[1], found[2], (0.06, 0.14)))


def gap_in9(results: Results) -> Iterator[Finding]:
    """BG-Gap of models trained on ImageNet-9, against the published range."""
    for model in _trained(results, "original", "in9l"):
        if found := model.gap:
            yield Finding(model.name, *found, meets(found[1], found[2], (0.13, 0.22)))


def _attacks(results: Results) -> Iterator[tuple[ModelResults, dict[str, Any], bool]]:
    """Models attacked, their measures, and whether on the authors' number of images."""
    for model in results.models:
        attack = model.attack or {}
        measures = attack.get("rules", {}).get(RULE)
        if measures:
            size = attack["foregrounds"]
            yield model, measures, attack["full_grid"] and size == published.FULL_GRID


def grid_size(attack: dict[str, Any]) -> str:
    """How many foregrounds met how many backgrounds."""
    return f"{attack['foregrounds']:,} {TIMES} {attack['backgrounds']:,}"


def _on_grid(model: ModelResults) -> str:
    return f"{model.name}, {grid_size(model.attack or {})}"


def _settled(verdict: Verdict, is_full: bool) -> Verdict:
    """More backgrounds only fool more: a claim that holds on a small grid holds on a larger
    one, but one that does not may yet."""
    return verdict if is_full or verdict is Verdict.HOLDS else Verdict.SMALL


def fooled(results: Results) -> Iterator[Finding]:
    """Foregrounds that a background of another class turns into its own."""
    for model, measures, is_full in _attacks(results):
        if measures["fooled"] is not None:
            low, high = measures["fooled_ci_low"], measures["fooled_ci_high"]
            verdict = _settled(above(low, high, 0.5), is_full)
            yield Finding(_on_grid(model), measures["fooled"], low, high, verdict)


def challenge(results: Results) -> Iterator[Finding]:
    """Foregrounds that no background turns wrong."""
    for model, measures, is_full in _attacks(results):
        low, high = measures["challenge_ci_low"], measures["challenge_ci_high"]
        verdict = _settled(below(low, high, 0.25), is_full)
        yield Finding(_on_grid(model), measures["challenge_accuracy"], low, high, verdict)


def best_insect(results: Results) -> Iterator[Finding]:
    """The best single insect background."""
    for model, measures, is_full in _attacks(results):
        of_insects = [row["success"] for row in measures["strongest"] if row["label"] == 5]
        if of_insects:
            best = max(of_insects)
            verdict = _settled(above(best, best, 0.45), is_full)
            yield Finding(_on_grid(model), best, best, best, verdict)


def any_insect(results: Results) -> Iterator[Finding]:
    """Foregrounds that some insect background turns into insects."""
    for model, measures, is_full in _attacks(results):
        for row in measures["by_class"] or ():
            if row["label"] == 5 and row["foregrounds"]:
                share = row["fooled"]
                verdict = _settled(above(share, share, 0.6), is_full)
                yield Finding(_on_grid(model), share, share, share, verdict)


def without_foreground(results: Results) -> Iterator[Finding]:
    """Accuracy without a foreground of models trained on `mixed_rand`."""
    for model in _trained(results, "mixed_rand"):
        for variant in ("only_bg_t", "only_bg_b"):
            if found := model.accuracies.get(variant):
                verdict = below(found[1], found[2], 0.2)
                yield Finding(f"{model.name} on {variant}", *found, verdict)


def improves(variant: str) -> Callable[[Results], Iterator[Finding]]:
    """Accuracy on a variant: trained on `mixed_rand` less on `original`."""

    def judge(results: Results) -> Iterator[Finding]:
        for model in _trained(results, "mixed_rand"):
            for other in _trained(results, "original"):
                mine, theirs = model.accuracies.get(variant), other.accuracies.get(variant)
                # Rows of one matrix were tested on the same images: see below.
                if mine and theirs and not model.matrix and not other.matrix:
                    found = difference(mine, theirs)
                    subject = f"{model.name} less {other.name}"
                    yield Finding(subject, *found, above(found[1], found[2], 0))
        for content in results.matrices:
            rows = {trained.variant for trained in _rows_of(content)}
            for row in content["gains"]:
                gain = _estimate(row, "difference")
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
    for model in _trained(results, "mixed_rand"):
        found = [one for v in _RIGHT_FOREGROUND if (one := model.accuracies.get(v))]
        if len(found) == len(_RIGHT_FOREGROUND):
            spread = difference(max(found), min(found))
            yield Finding(model.name, *spread, below(spread[1], spread[2], 0.1))


def _mass(model: ModelResults) -> Estimate | None:
    found = model.saliency
    return (found["mass_in_mask"], found["ci_low"], found["ci_high"]) if found else None


def looks_at_foreground(results: Results) -> Iterator[Finding]:
    """Saliency inside the mask: trained on `mixed_rand` less on `original`."""
    for model in _trained_models(results, "mixed_rand"):
        for other in _trained_models(results, "original"):
            mine, theirs = _mass(model), _mass(other)
            if mine and theirs:
                found = difference(mine, theirs)
                subject = f"{model.name} less {other.name}"
                yield Finding(subject, *found, above(found[1], found[2], 0))


def _slopes(results: Results) -> dict[str, tuple[Estimate, bool]]:
    """By variant: the slope, and whether it rests on too few models to be trusted."""
    lines = (results.trend or {}).get("lines", [])
    return {
        line["variant"]: (
            (line["slope"], line["slope_low"], line["slope_high"]),
            bool(line.get("few_models")),
        )
        for line in lines
    }


def _of_lines(verdict: Verdict, has_few: bool) -> Verdict:
    """The bootstrap over few models gives intervals that are too narrow."""
    return Verdict.SMALL if has_few and verdict is not Verdict.OPEN else verdict


def rises(*variants: str) -> Callable[[Results], Iterator[Finding]]:
    """Slopes of variants against accuracy on ImageNet."""

    def judge(results: Results) -> Iterator[Finding]:
        slopes = _slopes(results)
        for variant in variants:
            if variant in slopes:
                found, has_few = slopes[variant]
                verdict = _of_lines(above(found[1], found[2], 0), has_few)
                yield Finding(variant, *found, verdict)

    return judge


def slower(results: Results) -> Iterator[Finding]:
    """Slopes where the background misleads, less that on backgrounds alone."""
    slopes = _slopes(results)
    for variant in ("mixed_rand", "mixed_next"):
        if "only_bg_t" in slopes and variant in slopes:
            found = difference(slopes[variant][0], slopes["only_bg_t"][0])
            verdict = _of_lines(above(found[1], found[2], 0), slopes[variant][1])
            yield Finding(f"{variant} less only_bg_t", *found, verdict)


def closing(results: Results) -> Iterator[Finding]:
    """Slope of BG-Gap."""
    if "bg_gap" in _slopes(results):
        found, has_few = _slopes(results)["bg_gap"]
        yield Finding("bg_gap", *found, _of_lines(below(found[1], found[2], 0), has_few))
