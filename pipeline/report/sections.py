"""Which sections the page has, and what gives those that it does not have."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from pipeline.report.claims import (
    ATTACK,
    EVALUATE,
    MATRIX,
    SALIENCY,
    THREE,
    TREND,
    CheckedClaim,
    with_models,
)
from pipeline.report.evidence import Evidence

_TITLES = {
    "images": "Images",
    "accuracy": "Accuracy",
    "sensitivity": "Sensitivity",
    "mistakes": "Mistakes",
    "backgrounds": "Worst backgrounds",
    "saliency": "Saliency",
    "trend": "Trend",
    "matrix": "Training",
    "claims": "Claims",
    "not_run": "Not run",
    "run": "What was run",
    "files": "Files",
}
"""In the order of the page: what was found, what was not looked for, what it was made from."""

_COMMANDS = {
    "accuracy": ("Accuracy on each version, and BG-Gap", EVALUATE, ""),
    "backgrounds": ("Which foregrounds some background turns wrong", ATTACK, ""),
    "saliency": ("How much of what decides an answer lies on the foreground", SALIENCY, ""),
    "trend": ("Whether better models are less fooled", TREND, THREE),
    "matrix": ("Trained on one version, tested on all", MATRIX, ""),
}
"""By section: what it would say, the command that gives it, and what that needs."""


@dataclasses.dataclass(frozen=True)
class NotRun:
    """What one command would add to the page.

    Attributes:
      what: it would say, "" if nothing but claims.
      command: to run in the dataset's folder.
      needs: what the command cannot make by itself, "" if nothing.
      claims: how many of the source's claims wait for it.
    """

    what: str
    command: str
    needs: str
    claims: int


def shown_sections(
    filled: Collection[str], not_run: Sequence[NotRun]
) -> tuple[tuple[str, str], ...]:
    """(id, title) of the sections that the page has.

    Args:
      filled: those that have something to say.
      not_run: of `find_not_run`.
    """
    always = ("images", "run", "files", *(["not_run"] if not_run else []))
    return tuple((id, title) for id, title in _TITLES.items() if id in (*filled, *always))


def find_not_run(
    evidence: Evidence, filled: Collection[str], checked: Sequence[CheckedClaim]
) -> tuple[NotRun, ...]:
    """What the page cannot say yet, by the command that gives it.

    Args:
      evidence: what the page is made from.
      filled: sections that have something to say.
      checked: of `check_claims`.
    """
    waiting: dict[str, list[CheckedClaim]] = {}
    for one in checked:
        if not one.findings:
            waiting.setdefault(one.command, []).append(one)
    found = []
    for section, (what, command, needs) in _COMMANDS.items():
        if section not in filled and _applies(section, evidence):
            command = with_models(command, evidence)
            found.append(NotRun(what, command, needs, len(waiting.pop(command, ()))))
    for command, claims in waiting.items():
        found.append(NotRun("", command, claims[0].claim.needs, len(claims)))
    return tuple(found)


def _applies(section: str, evidence: Evidence) -> bool:
    """Whether a section could say anything of these images and classes."""
    if evidence.dataset.manifest.config.segment.is_whole:
        # Their backgrounds were not cut off.
        return section == "accuracy"
    # What was published on the trend is about ImageNet-9.
    return section != "trend" or evidence.dataset.is_imagenet9
