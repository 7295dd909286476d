"""A claim of the authors, the measurements that it is about, and how these are judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

from pipeline.display.evidence import Results
from pipeline.display.verdicts import Estimate, Finding, Verdict, difference


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What a claim is judged by.

    Attributes:
      subject: the model, test, pair of models or line of a trend that was measured.
      estimate: its value, with the 95 % interval.
      chance: accuracy of a constant answer to the same pictures, if the criterion compares with it.
      may_rise: whether a larger grid of the attack might measure more, so that only a claim that
        holds is settled. More backgrounds can only fool more foregrounds, so a claim that holds on
        a small grid holds on a larger one, too.
    """

    subject: str
    estimate: Estimate
    chance: float | None = None
    may_rise: bool = False


def differences(
    firsts: Iterable[Measurement], seconds: Sequence[Measurement]
) -> Iterator[Measurement]:
    """Yields each of the first measurements minus each of the second, treated as independent."""
    for first in firsts:
        for second in seconds:
            subject = f"{first.subject} minus {second.subject}"
            yield Measurement(subject, difference(first.estimate, second.estimate))


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
      measure: the function that yields the measurements to judge from the results.
      criterion: (lower end of the interval, upper end, chance, or 0 if the criterion does not
        compare with it) -> verdict by a measurement.
      command: the command whose results are measured; MODELS stands for model names.
      of: what each finding is about, in the plural.
      unit: unit of the findings' values: `percent`, `points`, or `slope`.
      needs: what the user must provide for the command, such as checkpoints; "" if nothing.
    """

    text: str
    place: tuple[int, int]
    source: str
    published: str
    judged: str
    measure: Callable[[Results], Iterable[Measurement]]
    criterion: Callable[[float, float, float], Verdict]
    command: str
    of: str = "models"
    unit: str = "percent"
    needs: str = ""

    @property
    def section(self) -> int:
        """Section of the blog post that makes the claim."""
        return self.place[0]

    def judge(self, results: Results) -> Iterator[Finding]:
        """Yields a finding for each measurement."""
        for one in self.measure(results):
            verdict = self.criterion(*one.estimate[1:], one.chance or 0.0)
            is_settled = not one.may_rise or verdict is Verdict.HOLDS
            shown = verdict if is_settled else Verdict.SMALL
            yield Finding(one.subject, *one.estimate, shown, one.chance)


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
