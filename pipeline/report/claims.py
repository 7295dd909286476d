"""The authors' claims, each checked against the results here."""

from __future__ import annotations

import dataclasses
from collections import Counter

from pipeline.analyses import ANALYSES
from pipeline.display.claims import Claim
from pipeline.display.evidence import Evidence
from pipeline.display.panel import with_models
from pipeline.display.verdicts import Finding, Verdict, overall

SECTIONS = {
    1: "Is background signal enough for classification?",
    2: "Do models actually use background signals?",
    3: "How bad can it get?",
    4: "What is the effect of the training dataset?",
    5: "Are we really making progress?",
}
"""Questions of the blog post, by section number."""


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
    claims = [claim for analysis in ANALYSES for claim in analysis.parts.claims]
    return tuple(_check(claim, evidence) for claim in sorted(claims, key=lambda claim: claim.place))


def _check(claim: Claim, evidence: Evidence) -> CheckedClaim:
    findings = tuple(claim.judge(evidence))
    verdict = overall(findings)
    words = str(verdict)
    if verdict is Verdict.MIXED:
        counts = Counter(finding.verdict for finding in findings)
        first, *others = (f"{each} for {counts[each]}" for each in Verdict if counts[each])
        words = ", ".join((f"{first} of {len(findings)} {claim.of}", *others))
    evaluated = [model.model for model, _ in evidence.answered]
    command = with_models(claim.command, evaluated)
    return CheckedClaim(claim, verdict, words, findings, command)
