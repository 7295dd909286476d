"""A panel of the page: what it shows, and the command whose results fill it."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable

from pipeline.report.evidence import Evidence

EVALUATE_COMMAND = "in9 evaluate --dataset . --models MODELS"
ATTACK_COMMAND = "in9 attack --dataset . --models MODELS"
TREND_COMMAND = "in9 evaluate --dataset . --models MODELS --imagenet IMAGENET"
SALIENCY_COMMAND = "in9 saliency --dataset . --models MODELS"
MATRIX_COMMAND = "in9 matrix --dataset . --probe --holdout 0.5"
"""Commands to run in the dataset's folder; MODELS stands for model names, and IMAGENET for the
folder of ImageNet."""

AT_LEAST_THREE = (
    "at least three models, better ten, whose accuracy on ImageNet is known or measured"
)

_EXAMPLE = "efficientnet_lite0"
"""Replaces MODELS if no model was evaluated. Its weights come in a package, so it needs no
network."""


@dataclasses.dataclass(frozen=True)
class Panel:
    """A section of the page that shows results.

    Attributes:
      id: id of the section, whose template is `report/ID.html`.
      title: title of the section in the page's navigation.
      make: (evidence, whether to show pictures) -> content, which the template reads as `panel`. If
        the content is empty, the page leaves the section out.
      answers: what the section would say, listed under "Not run" while it is empty; "" to list
        nothing.
      command: the command whose results fill the section.
      needs: what the user must provide for the command; "" if nothing.
      needs_backgrounds: whether the section needs images that were cut into foreground and
        background.
      needs_imagenet9: whether the section makes sense only for the classes of ImageNet-9.
    """

    id: str
    title: str
    make: Callable[[Evidence, bool], object]
    answers: str = ""
    command: str = ""
    needs: str = ""
    needs_backgrounds: bool = True
    needs_imagenet9: bool = False

    def applies(self, evidence: Evidence) -> bool:
        """Returns whether the panel can say anything about these images and classes."""
        if self.needs_backgrounds and evidence.dataset.manifest.config.segment.is_whole:
            return False
        return evidence.dataset.is_imagenet9 or not self.needs_imagenet9


def with_models(command: str, evidence: Evidence) -> str:
    """Returns a command with the models that were evaluated in place of MODELS."""
    models = ",".join(model.model for model in evidence.evaluated) or _EXAMPLE
    return command.replace("MODELS", shlex.quote(models))
