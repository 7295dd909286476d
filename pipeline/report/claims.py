"""The authors' claims as data, and a check of each claim against the results here.

A claim's source is "blog" for the authors' post (sections 1 to 5), "paper" for tables and figures
of their paper, and "README" for the one in their evaluation repository.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from pipeline.evaluate.published import FULL_GRID
from pipeline.report import judges
from pipeline.report.evidence import Evidence
from pipeline.report.measured import TIMES, Results
from pipeline.report.panel import (
    AT_LEAST_THREE,
    ATTACK_COMMAND,
    EVALUATE_COMMAND,
    MATRIX_COMMAND,
    SALIENCY_COMMAND,
    TREND_COMMAND,
    with_models,
)
from pipeline.report.verdicts import Finding, Verdict, overall

_AUTHORS_GRID = f"{FULL_GRID:,} {TIMES} {FULL_GRID:,}"


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the authors.

    Attributes:
      text: the claim in words.
      section: section of the blog post, a key of `SECTIONS`.
      source: where the authors make the claim.
      published: the authors' figures.
      judged: the criterion by which results are judged, in words.
      judge: the function that yields findings from the results.
      command: the command whose results the judge needs; MODELS stands for model names.
      of: what each finding is about, in the plural.
      unit: unit of the findings' values: `percent`, `points`, or `slope`.
      needs: what the user must provide for the command, such as checkpoints; "" if nothing.
    """

    text: str
    section: int
    source: str
    published: str
    judged: str
    judge: Callable[[Results], Iterator[Finding]]
    command: str
    of: str = "models"
    unit: str = "percent"
    needs: str = ""


_OR_TRAINED = (
    "nothing: it fits a linear probe; with a split train, --arch resnet50 in place of --probe "
    "--holdout 0.5 trains as the paper does"
)


def _trained_command(command: str, *variants: str) -> str:
    files = ",".join(f"resnet50=resnet50-{variant}.pth" for variant in variants)
    return command.replace("MODELS", files)


def _listed(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _checkpoint(*variants: str) -> str:
    each = _listed(variants)
    noun = "a checkpoint" if len(variants) == 1 else "checkpoints"
    return f"{noun} with nine outputs, trained on {each} and named after the training set"


SECTIONS = {
    1: "Is background signal enough for classification?",
    2: "Do models actually use background signals?",
    3: "How bad can it get?",
    4: "What is the effect of the training dataset?",
    5: "Are we really making progress?",
}
"""Questions of the blog post, by section number."""

CLAIMS = (
    Claim(
        "Backgrounds hold enough signal to learn from: trained on them alone, a model does better "
        "than guessing on them and on Original.",
        1,
        "blog 1, paper table 5",
        "42.1 to 54.3 %",
        "accuracy above chance",
        judges.signal,
        MATRIX_COMMAND,
        of="tests",
        needs=_OR_TRAINED,
    ),
    Claim(
        "Models trained on ImageNet tell some classes from the background alone (only_bg_t).",
        2,
        "paper table 2",
        "11.9 to 17.8 %",
        "accuracy above chance; an accuracy below chance leaves the claim open, because answers "
        "outside the nine classes count as wrong",
        judges.background_alone,
        EVALUATE_COMMAND,
    ),
    Claim(
        "Backgrounds mislead models even when the right foreground is there.",
        2,
        "blog 2",
        "BG-Gap above 0 for every model",
        "BG-Gap above 0",
        judges.gap_above,
        EVALUATE_COMMAND,
        unit="points",
    ),
    Claim(
        "BG-Gap is 6 to 14 points for models trained on ImageNet.",
        2,
        "blog 2, paper table 2",
        "6 to 14 points",
        "the whole interval inside 6 to 14 points",
        judges.gap_pretrained,
        EVALUATE_COMMAND,
        unit="points",
    ),
    Claim(
        "BG-Gap is 13 to 22 points for models trained on ImageNet-9.",
        2,
        "blog 2",
        "13 to 22 points",
        "the whole interval inside 13 to 22 points",
        judges.gap_in9,
        _trained_command(EVALUATE_COMMAND, "original", "in9l"),
        unit="points",
        needs=_checkpoint("original", "in9l"),
    ),
    Claim(
        "Nearly every foreground can be fooled by some background of another class.",
        3,
        f"blog 3, at {_AUTHORS_GRID}",
        "87.5 %",
        "more than half; a smaller grid can only show that it holds",
        judges.fooled,
        ATTACK_COMMAND,
    ),
    Claim(
        "Few foregrounds survive every background (challenge accuracy).",
        3,
        f"README, at {_AUTHORS_GRID}",
        "22.3 %",
        "under a quarter; a smaller grid can only show that it holds",
        judges.challenge,
        ATTACK_COMMAND,
    ),
    Claim(
        "Single backgrounds fool a model whatever the foreground: the best insect background "
        "about half of those that are no insects.",
        3,
        f"blog 3, at {_AUTHORS_GRID}",
        "52 %",
        "more than 45 %, by the interval of the best of so many; a smaller grid can only show that "
        "it holds",
        judges.best_insect,
        ATTACK_COMMAND,
    ),
    Claim(
        "Some insect background or other turns over 2/3 of the foregrounds into insects.",
        3,
        f"blog 3, at {_AUTHORS_GRID}",
        "66.6 %",
        "more than 60 %; a smaller grid can only show that it holds",
        judges.any_insect,
        ATTACK_COMMAND,
    ),
    Claim(
        "Trained on Mixed-Rand, a model is only slightly better than guessing where there is no "
        "foreground.",
        4,
        "blog 4, paper table 5",
        "14.6 and 15.3 %",
        "accuracy less than 9 points above chance",
        judges.without_foreground,
        MATRIX_COMMAND,
        of="tests",
        needs=_OR_TRAINED,
    ),
    Claim(
        "Training on Mixed-Rand instead of Original improves accuracy on Mixed-Rand.",
        4,
        "blog 4, paper table 5",
        "17 points",
        "difference above 0",
        judges.improves("mixed_rand"),
        MATRIX_COMMAND,
        of="pairs",
        unit="points",
        needs=_OR_TRAINED,
    ),
    Claim(
        "Training on Mixed-Rand instead of Original improves accuracy on Mixed-Next.",
        4,
        "blog 4, paper table 5",
        "22 points",
        "difference above 0",
        judges.improves("mixed_next"),
        MATRIX_COMMAND,
        of="pairs",
        unit="points",
        needs=_OR_TRAINED,
    ),
    Claim(
        "Trained on Mixed-Rand, accuracy varies little over the five test sets with the right "
        "foreground.",
        4,
        "blog 4, paper table 5",
        "3.8 points (Original: 37.2)",
        "best minus worst under 10 points, by the interval of the largest of ten differences",
        judges.varies_little,
        MATRIX_COMMAND,
        unit="points",
        needs=_OR_TRAINED,
    ),
    Claim(
        "The model trained on Mixed-Rand looks more at the foreground than the one trained on "
        "Original.",
        4,
        "blog 4, saliency maps",
        "pictures only",
        "share of saliency inside the mask: difference above 0",
        judges.looks_at_foreground,
        _trained_command(SALIENCY_COMMAND, "original", "mixed_rand"),
        of="pairs",
        unit="points",
        needs=_checkpoint("original", "mixed_rand"),
    ),
    Claim(
        "Better models on ImageNet are better on all of the synthetic datasets.",
        5,
        "blog 5, paper figure 8",
        "all lines rise",
        "slopes above 0",
        judges.rises("mixed_same", "mixed_rand", "mixed_next", "no_fg"),
        TREND_COMMAND,
        of="lines",
        unit="slope",
        needs=AT_LEAST_THREE,
    ),
    Claim(
        "Models do improve at using backgrounds: accuracy on only_bg_t rises, too.",
        5,
        "blog 5, paper figure 8",
        "the line rises",
        "slope above 0",
        judges.rises("only_bg_t"),
        TREND_COMMAND,
        of="lines",
        unit="slope",
        needs=AT_LEAST_THREE,
    ),
    Claim(
        "Accuracy on backgrounds alone improves slower than where the background misleads.",
        5,
        "blog 5",
        "a flatter line",
        "difference of the slopes above 0",
        judges.slower,
        TREND_COMMAND,
        of="lines",
        unit="slope",
        needs=AT_LEAST_THREE,
    ),
    Claim(
        "BG-Gap trends towards closing.",
        5,
        "blog 5",
        "the line falls",
        "slope below 0",
        judges.closing,
        TREND_COMMAND,
        of="lines",
        unit="slope",
        needs=AT_LEAST_THREE,
    ),
)
"""All claims, in the order of the blog post."""


@dataclasses.dataclass(frozen=True)
class CheckedClaim:
    """A claim, its findings here, and the command that produces them.

    Attributes:
      claim: the claim.
      verdict: the verdict on all findings together.
      summary: the verdict in words, with counts if it is mixed.
      findings: one for each model, test, pair or line.
      command: the claim's command with model names, to run in the dataset's folder.
    """

    claim: Claim
    verdict: Verdict
    summary: str
    findings: tuple[Finding, ...]
    command: str

    @property
    def is_divided(self) -> bool:
        """Whether the verdicts on its findings differ."""
        return len({finding.verdict for finding in self.findings}) > 1


def check_claims(evidence: Evidence) -> tuple[CheckedClaim, ...]:
    """Judges every claim by the results; returns none if the pictures or classes are not those that
    the claims are about."""
    if not evidence.dataset.is_comparable:
        return ()
    results = Results(evidence.models, evidence.trend, evidence.matrices)
    return tuple(_check(claim, results, evidence) for claim in CLAIMS)


def _check(claim: Claim, results: Results, evidence: Evidence) -> CheckedClaim:
    findings = tuple(claim.judge(results))
    verdict = overall(findings)
    words = str(verdict)
    if verdict is Verdict.MIXED:
        counts = Counter(finding.verdict for finding in findings)
        first, *others = (f"{each} for {counts[each]}" for each in Verdict if counts[each])
        words = ", ".join((f"{first} of {len(findings)} {claim.of}", *others))
    return CheckedClaim(claim, verdict, words, findings, with_models(claim.command, evidence))
