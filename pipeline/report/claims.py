"""The source's claims, each with what would show it here: data and small pure functions.

Sources: blog = the authors' post (its sections 1 to 5), paper = its tables. All are judged
under the paper's label rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipeline.report import published
from pipeline.report.evidence import ModelResults
from pipeline.report.verdicts import Finding, Verdict, above, below, difference, meets

RULE = "argmax_then_map"
CHANCE = 1 / 9
TIMES = "\N{MULTIPLICATION SIGN}"

_AUTHORS_GRID = f"{published.FULL_GRID:,} {TIMES} {published.FULL_GRID:,}"

Estimate = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Results:
    """What claims are judged by: models, and the trend over them."""

    models: Sequence[ModelResults]
    trend: dict[str, Any] | None


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the source.

    Attributes:
      text: what it says.
      section: of the blog post that asks its question, a key of `SECTIONS`.
      source: where.
      published: its figures.
      judged: the criterion, in words.
      judge: the findings of the results that are there.
      command: what would give it findings; MODELS stands for model names.
      unit: of values: `percent`, `points`, or `slope`.
      needs: what the command cannot make by itself, "" if nothing.
    """

    text: str
    section: int
    source: str
    published: str
    judged: str
    judge: Callable[[Results], Iterator[Finding]]
    command: str
    unit: str = "percent"
    needs: str = ""


def _training(model: ModelResults) -> str | None:
    return published.trained_on(model.model, (model.summary or {}).get("num_outputs", 0))


def _pretrained(results: Results) -> Iterator[ModelResults]:
    """Models with ImageNet's outputs."""
    for model in results.models:
        if (model.summary or {}).get("num_outputs", 0) > len(published.FOOLED_BY_CLASS):
            yield model


def _trained(results: Results, *variants: str) -> Iterator[tuple[ModelResults, str]]:
    """Models trained on variants, with the variant."""
    for model in results.models:
        variant = _training(model)
        if variant in variants and variant:
            yield model, variant


def _accuracy(model: ModelResults, variant: str) -> Estimate | None:
    row = model.row("accuracy", label_rule=RULE, variant=variant)
    return (row["accuracy"], row["ci_low"], row["ci_high"]) if row and row["n"] else None


def _gap(model: ModelResults) -> Estimate | None:
    row = model.row("gaps", label_rule=RULE)
    return (row["gap"], row["ci_low"], row["ci_high"]) if row else None


def _signal(results: Results) -> Iterator[Finding]:
    for model, trained in _trained(results, "only_bg_t", "only_bg_b", "no_fg"):
        for variant in (trained, "original"):
            if found := _accuracy(model, variant):
                verdict = above(found[1], found[2], CHANCE)
                yield Finding(f"{model.name} on {variant}", *found, verdict)


def _background_alone(results: Results) -> Iterator[Finding]:
    for model in _pretrained(results):
        if found := _accuracy(model, "only_bg_t"):
            yield Finding(model.name, *found, meets(found[1], found[2], (0.119, 0.178)))


def _gap_above(results: Results) -> Iterator[Finding]:
    for model in results.models:
        if found := _gap(model):
            yield Finding(model.name, *found, above(found[1], found[2], 0))


def _gap_pretrained(results: Results) -> Iterator[Finding]:
    for model in _pretrained(results):
        if found := _gap(model):
            yield Finding(model.name, *found, meets(found[1], found[2], (0.06, 0.14)))


def _gap_in9(results: Results) -> Iterator[Finding]:
    for model, _ in _trained(results, "original", "in9l"):
        if found := _gap(model):
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


def _fooled(results: Results) -> Iterator[Finding]:
    for model, measures, is_full in _attacks(results):
        if measures["fooled"] is not None:
            low, high = measures["fooled_ci_low"], measures["fooled_ci_high"]
            verdict = _settled(above(low, high, 0.5), is_full)
            yield Finding(_on_grid(model), measures["fooled"], low, high, verdict)


def _challenge(results: Results) -> Iterator[Finding]:
    for model, measures, is_full in _attacks(results):
        low, high = measures["challenge_ci_low"], measures["challenge_ci_high"]
        verdict = _settled(below(low, high, 0.25), is_full)
        yield Finding(_on_grid(model), measures["challenge_accuracy"], low, high, verdict)


def _best_insect(results: Results) -> Iterator[Finding]:
    for model, measures, is_full in _attacks(results):
        of_insects = [row["success"] for row in measures["strongest"] if row["label"] == 5]
        if of_insects:
            best = max(of_insects)
            verdict = _settled(above(best, best, 0.45), is_full)
            yield Finding(_on_grid(model), best, best, best, verdict)


def _any_insect(results: Results) -> Iterator[Finding]:
    for model, measures, is_full in _attacks(results):
        for row in measures["by_class"] or ():
            if row["label"] == 5 and row["foregrounds"]:
                share = row["fooled"]
                verdict = _settled(above(share, share, 0.6), is_full)
                yield Finding(_on_grid(model), share, share, share, verdict)


def _without_foreground(results: Results) -> Iterator[Finding]:
    for model, _ in _trained(results, "mixed_rand"):
        for variant in ("only_bg_t", "only_bg_b"):
            if found := _accuracy(model, variant):
                verdict = below(found[1], found[2], 0.2)
                yield Finding(f"{model.name} on {variant}", *found, verdict)


def _improves(variant: str) -> Callable[[Results], Iterator[Finding]]:
    def judge(results: Results) -> Iterator[Finding]:
        for model, _ in _trained(results, "mixed_rand"):
            for other, _ in _trained(results, "original"):
                mine, theirs = _accuracy(model, variant), _accuracy(other, variant)
                if mine and theirs:
                    found = difference(mine, theirs)
                    subject = f"{model.name} less {other.name}"
                    yield Finding(subject, *found, above(found[1], found[2], 0))

    return judge


_RIGHT_FOREGROUND = ("original", "mixed_same", "mixed_rand", "mixed_next", "only_fg")


def _varies_little(results: Results) -> Iterator[Finding]:
    for model, _ in _trained(results, "mixed_rand"):
        found = [one[0] for v in _RIGHT_FOREGROUND if (one := _accuracy(model, v))]
        if len(found) == len(_RIGHT_FOREGROUND):
            spread = max(found) - min(found)
            yield Finding(model.name, spread, spread, spread, below(spread, spread, 0.1))


def _mass(model: ModelResults) -> Estimate | None:
    found = model.saliency
    return (found["mass_in_mask"], found["ci_low"], found["ci_high"]) if found else None


def _looks_at_foreground(results: Results) -> Iterator[Finding]:
    for model, _ in _trained(results, "mixed_rand"):
        for other, _ in _trained(results, "original"):
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


def _rises(*variants: str) -> Callable[[Results], Iterator[Finding]]:
    def judge(results: Results) -> Iterator[Finding]:
        slopes = _slopes(results)
        for variant in variants:
            if variant in slopes:
                found, has_few = slopes[variant]
                verdict = _of_lines(above(found[1], found[2], 0), has_few)
                yield Finding(variant, *found, verdict)

    return judge


def _slower(results: Results) -> Iterator[Finding]:
    slopes = _slopes(results)
    for variant in ("mixed_rand", "mixed_next"):
        if "only_bg_t" in slopes and variant in slopes:
            found = difference(slopes[variant][0], slopes["only_bg_t"][0])
            verdict = _of_lines(above(found[1], found[2], 0), slopes[variant][1])
            yield Finding(f"{variant} less only_bg_t", *found, verdict)


def _closing(results: Results) -> Iterator[Finding]:
    if "bg_gap" in _slopes(results):
        found, has_few = _slopes(results)["bg_gap"]
        yield Finding("bg_gap", *found, _of_lines(below(found[1], found[2], 0), has_few))


_EVALUATE = "in9 evaluate --dataset . --models MODELS"
_ATTACK = "in9 attack --dataset . --models MODELS"
_TREND = "in9 evaluate --dataset . --models MODELS --imagenet IMAGENET"
_SALIENCY = "in9 saliency --dataset . --models MODELS"


def _trained_command(command: str, *variants: str) -> str:
    files = ",".join(f"resnet50=resnet50-{variant}.pth" for variant in variants)
    return command.replace("MODELS", files)


def _listed(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _checkpoint(*variants: str) -> str:
    each = _listed(variants)
    what = "a checkpoint" if len(variants) == 1 else "checkpoints"
    it = "it" if len(variants) == 1 else "them"
    return f"{what} with nine outputs, trained on {each} and called after {it}"


SECTIONS = {
    1: "Is background signal enough for classification?",
    2: "Do models actually use background signals?",
    3: "How bad can it get?",
    4: "What is the effect of the training dataset?",
    5: "Are we really making progress?",
}
"""The questions of the blog post, by its numbers."""

_THREE = "at least three models, better ten, whose accuracy on ImageNet is known or measured"

CLAIMS = (
    Claim(
        "Backgrounds hold enough signal to learn from: trained on them alone, a model gets 40 to "
        "50 % on them and on Original.",
        1,
        "blog 1, paper table 5",
        "42.1 to 54.3 %",
        "accuracy above the 11.1 % of guessing",
        _signal,
        _trained_command(_EVALUATE, "only_bg_t", "only_bg_b", "no_fg"),
        needs=_checkpoint("only_bg_t", "only_bg_b", "no_fg"),
    ),
    Claim(
        "Models trained on ImageNet tell some classes from the background alone (only_bg_t).",
        2,
        "paper table 2",
        "11.9 to 17.8 %",
        "the interval meets 11.9 to 17.8 %",
        _background_alone,
        _EVALUATE,
    ),
    Claim(
        "Backgrounds mislead models even when the right foreground is there.",
        2,
        "blog 2",
        "BG-Gap above 0 for every model",
        "BG-Gap above 0",
        _gap_above,
        _EVALUATE,
        unit="points",
    ),
    Claim(
        "BG-Gap is 6 to 14 points for models trained on ImageNet.",
        2,
        "blog 2, paper table 2",
        "6 to 14 points",
        "the interval meets 6 to 14 points",
        _gap_pretrained,
        _EVALUATE,
        unit="points",
    ),
    Claim(
        "BG-Gap is 13 to 22 points for models trained on ImageNet-9.",
        2,
        "blog 2",
        "13 to 22 points",
        "the interval meets 13 to 22 points",
        _gap_in9,
        _trained_command(_EVALUATE, "original", "in9l"),
        unit="points",
        needs=_checkpoint("original", "in9l"),
    ),
    Claim(
        "Nearly every foreground can be fooled by some background of another class.",
        3,
        f"blog 3, at {_AUTHORS_GRID}",
        "87.5 %",
        "more than half; a smaller grid can only show that it holds",
        _fooled,
        _ATTACK,
    ),
    Claim(
        "Few foregrounds survive every background (challenge accuracy).",
        3,
        f"README, at {_AUTHORS_GRID}",
        "22.3 %",
        "under a quarter; a smaller grid can only show that it holds",
        _challenge,
        _ATTACK,
    ),
    Claim(
        "Single backgrounds fool a model whatever the foreground: the best insect background "
        "up to 52 % of those that are no insects.",
        3,
        f"blog 3, at {_AUTHORS_GRID}",
        "52 %",
        "more than 45 %; a smaller grid can only show that it holds",
        _best_insect,
        _ATTACK,
    ),
    Claim(
        "Some insect background or other turns over 2/3 of the foregrounds into insects.",
        3,
        f"blog 3, at {_AUTHORS_GRID}",
        "66.6 %",
        "more than 60 %; a smaller grid can only show that it holds",
        _any_insect,
        _ATTACK,
    ),
    Claim(
        "Trained on Mixed-Rand, a model is only slightly better than guessing where there is no "
        "foreground.",
        4,
        "blog 4, paper table 5",
        "14.6 and 15.3 %",
        "accuracy under 20 %",
        _without_foreground,
        _trained_command(_EVALUATE, "mixed_rand"),
        needs=_checkpoint("mixed_rand"),
    ),
    Claim(
        "Training on Mixed-Rand instead of Original improves accuracy on Mixed-Rand.",
        4,
        "blog 4, paper table 5",
        "17 points",
        "difference above 0",
        _improves("mixed_rand"),
        _trained_command(_EVALUATE, "original", "mixed_rand"),
        unit="points",
        needs=_checkpoint("original", "mixed_rand"),
    ),
    Claim(
        "Training on Mixed-Rand instead of Original improves accuracy on Mixed-Next.",
        4,
        "blog 4, paper table 5",
        "22 points",
        "difference above 0",
        _improves("mixed_next"),
        _trained_command(_EVALUATE, "original", "mixed_rand"),
        unit="points",
        needs=_checkpoint("original", "mixed_rand"),
    ),
    Claim(
        "Trained on Mixed-Rand, accuracy varies little over the five test sets with the right "
        "foreground.",
        4,
        "blog 4, paper table 5",
        "3.8 points (Original: 37.2)",
        "best less worst under 10 points",
        _varies_little,
        _trained_command(_EVALUATE, "mixed_rand"),
        unit="points",
        needs=_checkpoint("mixed_rand"),
    ),
    Claim(
        "The model trained on Mixed-Rand looks more at the foreground than the one trained on "
        "Original.",
        4,
        "blog 4, saliency maps",
        "pictures only",
        "share of saliency inside the mask: difference above 0",
        _looks_at_foreground,
        _trained_command(_SALIENCY, "original", "mixed_rand"),
        unit="points",
        needs=_checkpoint("original", "mixed_rand"),
    ),
    Claim(
        "Better models on ImageNet are better on all of the synthetic datasets.",
        5,
        "blog 5, paper figure 8",
        "all lines rise",
        "slopes above 0",
        _rises("mixed_same", "mixed_rand", "mixed_next", "no_fg"),
        _TREND,
        unit="slope",
        needs=_THREE,
    ),
    Claim(
        "Models do improve at using backgrounds: accuracy on only_bg_t rises, too.",
        5,
        "blog 5, paper figure 8",
        "the line rises",
        "slope above 0",
        _rises("only_bg_t"),
        _TREND,
        unit="slope",
        needs=_THREE,
    ),
    Claim(
        "Accuracy on backgrounds alone improves slower than where the background misleads.",
        5,
        "blog 5",
        "a flatter line",
        "difference of the slopes above 0",
        _slower,
        _TREND,
        unit="slope",
        needs=_THREE,
    ),
    Claim(
        "BG-Gap trends towards closing.",
        5,
        "blog 5",
        "the line falls",
        "slope below 0",
        _closing,
        _TREND,
        unit="slope",
        needs=_THREE,
    ),
)
"""In the order of the blog post."""
