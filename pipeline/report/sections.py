"""The sections of the page, and the commands whose results would fill the missing sections."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from pipeline.analyses import ANALYSES
from pipeline.display.evidence import Evidence
from pipeline.display.panel import with_models
from pipeline.report.claims import CheckedClaim

PANELS = sorted(
    (panel for analysis in ANALYSES for panel in analysis.parts.panels),
    key=lambda panel: panel.place,
)
"""The panels, in the order of the page."""

_TITLES = {
    **{panel.id: panel.title for panel in PANELS},
    "claims": "Claims",
    "not_run": "Not run",
    "run": "What was run",
    "files": "Files",
}
"""Title of each section, in the order of the page: results first, then what produced them."""


@dataclasses.dataclass(frozen=True)
class NotRun:
    """A command that would add to the page.

    Attributes:
      answers: what its section would say; "" if the command only decides claims.
      command: the command, to run in the dataset's folder.
      needs: what the user must provide for the command; "" if nothing.
      claims: number of the authors' claims that cannot be judged without it.
    """

    answers: str
    command: str
    needs: str
    claims: int


def shown_sections(
    filled: Collection[str], not_run: Sequence[NotRun]
) -> tuple[tuple[str, str], ...]:
    """Returns (id, title) of each section on the page.

    Args:
      filled: ids of the sections with content.
      not_run: the commands that would add to the page, from `find_not_run`.
    """
    always = ("run", "files", *(["not_run"] if not_run else []))
    return tuple((id, title) for id, title in _TITLES.items() if id in (*filled, *always))


def find_not_run(
    evidence: Evidence, filled: Collection[str], checked: Sequence[CheckedClaim]
) -> tuple[NotRun, ...]:
    """Lists the commands that would add to the page.

    Args:
      evidence: what the page is made from.
      filled: ids of the sections with content.
      checked: the claims with their findings, from `check_claims`.
    """
    if not any(images["selected"] for images in evidence.dataset.manifest.images.values()):
        # No command says anything about a dataset without images.
        return ()
    waiting: dict[str, list[CheckedClaim]] = {}
    for one in checked:
        if not one.findings:
            waiting.setdefault(one.command, []).append(one)
    not_run = []
    evaluated = [model.model for model, _ in evidence.answered]
    for panel in PANELS:
        if panel.answers and panel.id not in filled and panel.applies(evidence):
            command = with_models(panel.command, evaluated)
            claims = len(waiting.pop(command, ()))
            not_run.append(NotRun(panel.answers, command, panel.needs, claims))
    for command, unjudged in waiting.items():
        not_run.append(NotRun("", command, unjudged[0].claim.needs, len(unjudged)))
    return tuple(not_run)
