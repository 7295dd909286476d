"""A claim of the authors, and what judges need in order to check it against the results here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from pipeline.display.evidence import Results
from pipeline.display.verdicts import Finding


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the authors.

    A claim's source is "blog" for the authors' post (sections 1 to 5), "paper" for tables and
    figures of their paper, and "README" for the one in their evaluation repository.

    Attributes:
      text: the claim in words.
      place: section of the blog post, and the claim's position in it.
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
    place: tuple[int, int]
    source: str
    published: str
    judged: str
    judge: Callable[[Results], Iterator[Finding]]
    command: str
    of: str = "models"
    unit: str = "percent"
    needs: str = ""

    @property
    def section(self) -> int:
        """Section of the blog post that makes the claim."""
        return self.place[0]


def trained_command(command: str, *variants: str) -> str:
    """Returns a command with checkpoints trained on these variants in place of MODELS."""
    files = ",".join(f"resnet50=resnet50-{variant}.pth" for variant in variants)
    return command.replace("MODELS", files)


def checkpoints(*variants: str) -> str:
    """Says that a command needs checkpoints trained on these variants."""
    *most, last = variants
    each = f"{', '.join(most)} and {last}" if most else last
    noun = "a checkpoint" if len(variants) == 1 else "checkpoints"
    return f"{noun} with nine outputs, trained on {each} and named after the training set"
