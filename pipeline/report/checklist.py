"""The checklist: each claim of the source with what was found here."""

from __future__ import annotations

import dataclasses
import shlex
from collections import Counter

from pipeline.report.claims import CLAIMS, Claim
from pipeline.report.evidence import Evidence
from pipeline.report.measured import Results
from pipeline.report.verdicts import Finding, Verdict, overall

_EXAMPLE = "efficientnet_lite0"
"""A model that needs no network, where none was evaluated."""


@dataclasses.dataclass(frozen=True)
class Checked:
    """A claim, what was found, and the command that would find it.

    Attributes:
      claim: the claim.
      verdict: of all findings.
      summary: the verdict in words, with numbers where findings differ.
      findings: one for each model, variant or line.
      command: to run in the dataset's folder.
    """

    claim: Claim
    verdict: Verdict
    summary: str
    findings: tuple[Finding, ...]
    command: str

    @property
    def is_divided(self) -> bool:
        """Whether its findings differ in their verdict."""
        return len({finding.verdict for finding in self.findings}) > 1


def check_claims(evidence: Evidence) -> tuple[Checked, ...]:
    """Judges every claim by the results that are there; none where pictures or classes are others
    than those that the claims are about."""
    if not evidence.dataset.is_comparable:
        return ()
    results = Results(evidence.models, evidence.trend, evidence.matrices)
    return tuple(_check(claim, results, evidence) for claim in CLAIMS)


def with_models(command: str, evidence: Evidence) -> str:
    """A command of `claims` with the models that were evaluated."""
    models = ",".join(model.model for model in evidence.evaluated) or _EXAMPLE
    return command.replace("MODELS", shlex.quote(models))


def _check(claim: Claim, results: Results, evidence: Evidence) -> Checked:
    findings = tuple(claim.judge(results))
    verdict = overall(findings)
    words = str(verdict)
    if verdict is Verdict.MIXED:
        counts = Counter(finding.verdict for finding in findings)
        first, *others = (f"{each} for {counts[each]}" for each in Verdict if counts[each])
        words = ", ".join((f"{first} of {len(findings)} {claim.of}", *others))
    return Checked(claim, verdict, words, findings, with_models(claim.command, evidence))
