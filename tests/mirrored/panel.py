"""The panel of mirrored pictures."""

from __future__ import annotations

from pipeline.analyses.mirrored.results import MirroredResult

from pipeline.display.panel import Panel
from pipeline.evaluate.evidence import Evidence


def make_mirrored(evidence: Evidence, with_pictures: bool) -> list[tuple[str, MirroredResult]]:
    """Collects (name, result) of each model."""
    return [(model.name, result) for model, result in evidence.models_with(MirroredResult)]


PANEL = Panel(
    id="mirrored",
    place=9,
    template="mirrored/panel.html",
    title="Mirrored",
    make=make_mirrored,
    answers="How well mirrored pictures are classified",
    command="in9 evaluate --dataset . --models MODELS --mirrored",
)
