"""A panel of the page: what it shows, and the command whose results fill it."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Iterable

from pipeline.display.evidence import Evidence

_EXAMPLE = "efficientnet_lite0"


@dataclasses.dataclass(frozen=True)
class Panel:
    """A section of the page that shows results.

    Attributes:
      id: id of the section.
      place: place of the section among those of all panels.
      template: path of its template, in `pipeline/analyses/`.
      title: title of the section in the page's navigation.
      make: (evidence, whether to show pictures) -> content, which the template reads as `panel`. If
        the content is empty, the page leaves the section out.
      head, aside: templates of what it says, and shows, at the head of the page; "" for nothing.
      answers: what the section would say, listed under "Not run" while it is empty; "" to list
        nothing.
      command: the command whose results fill the section, to run in the dataset's folder; MODELS
        stands for model names.
      needs: what the user must provide for the command; "" if nothing.
      needs_backgrounds: whether the section needs images that were cut into foreground and
        background.
      needs_imagenet9: whether the section makes sense only for the classes of ImageNet-9.
    """

    id: str
    place: int
    template: str
    title: str
    make: Callable[[Evidence, bool], object]
    head: str = ""
    aside: str = ""
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


def with_models(command: str, models: Iterable[str]) -> str:
    """Returns a command with the names of models in place of MODELS; a model that needs no network
    stands in if there are none."""
    return command.replace("MODELS", shlex.quote(",".join(models) or _EXAMPLE))
