"""A model's answers to an image's versions, and patterns by which the page filters images."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from transforms.taxonomy import OUTSIDE, Taxonomy


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A model's answer to a picture.

    Attributes:
      is_right: whether the answer is right, by the label rule of the model's headline.
      answer: name of the superclass that it predicts; "outside" if it predicts none.
      label: label of this superclass, or `OUTSIDE`.
      output: class name of the winning output; "" if the outputs are superclasses.
      score: softmax probability of this output, a fraction; None without scores.
      otherwise: another label rule, and the answer by it; "" if it gives the same answer.
    """

    model: str
    is_right: bool
    answer: str
    label: int
    output: str
    score: float | None
    otherwise: str = ""

    @classmethod
    def of(
        cls,
        model: str,
        taxonomy: Taxonomy,
        outputs: Sequence[str] | None,
        label: int,
        output: int,
        score: float | None,
        is_right: bool,
    ) -> "Prediction":
        """Describes an answer; `outputs` are the classes of the model's outputs, if it has some."""
        return cls(
            model=model,
            is_right=is_right,
            answer="outside" if label == OUTSIDE else taxonomy.names[label],
            label=label,
            output=outputs[output].partition(",")[0] if outputs and output >= 0 else "",
            score=score,
        )

    @property
    def lines(self) -> tuple[str, str]:
        """The answer in two lines: the superclass, and the class that has won."""
        percent = "" if self.score is None else f" {100 * self.score:.0f} %"
        answer = "none of these" if self.is_outside else self.answer
        return f"{'✓' if self.is_right else '✕'} {answer}", f"{self.output}{percent}".strip()

    @property
    def is_outside(self) -> bool:
        return self.label == OUTSIDE


@dataclasses.dataclass(frozen=True)
class VersionAnswer:
    """A model's answer to one version.

    Attributes:
      is_right: whether the answer is right, by the paper's label rule.
      is_background: whether the answer is the class of the image that the background comes from, if
        that is another image.
    """

    label: int
    is_right: bool
    is_background: bool


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A pattern.

    Attributes:
      name: name of the pattern in the page's address.
      title: what the model does, in short.
      means: the exact definition, in words.
      fits: tells whether a model's answers by version match; any version may be missing.
    """

    name: str
    title: str
    means: str
    fits: Callable[[Mapping[str, VersionAnswer]], bool]


_WITH_FOREGROUND = ("original", "only_fg", "mixed_same", "mixed_next")
_WITHOUT_FOREGROUND = ("only_bg_b", "only_bg_t", "no_fg")


def _flips(answers: Mapping[str, VersionAnswer]) -> bool:
    same, rand = answers.get("mixed_same"), answers.get("mixed_rand")
    return same is not None and rand is not None and same.label != rand.label


def _is_wrong_on_rand_alone(answers: Mapping[str, VersionAnswer]) -> bool:
    rand = answers.get("mixed_rand")
    others = [answers[name] for name in _WITH_FOREGROUND if name in answers]
    is_wrong = rand is not None and not rand.is_right
    return is_wrong and bool(others) and all(other.is_right for other in others)


def _is_right_on_every_background(answers: Mapping[str, VersionAnswer]) -> bool:
    names = [name for name in (*_WITH_FOREGROUND, "mixed_rand") if name in answers]
    is_mixed = any(name.startswith("mixed") for name in names)
    return is_mixed and all(answers[name].is_right for name in names)


PATTERNS = (
    Pattern(
        "flips",
        "flips with the background",
        "The answer on mixed_rand differs from the one on mixed_same.",
        _flips,
    ),
    Pattern(
        "only_rand",
        "wrong only on mixed_rand",
        "Right on all other variants with the whole foreground: original, only_fg, mixed_same and "
        "mixed_next.",
        _is_wrong_on_rand_alone,
    ),
    Pattern(
        "background",
        "names the background's class",
        "On some variant, the answer is the class that the background comes from, and not the "
        "foreground's.",
        lambda answers: any(one.is_background and not one.is_right for one in answers.values()),
    ),
    Pattern(
        "without_foreground",
        "right without the foreground",
        "Right on only_bg_b, only_bg_t or no_fg.",
        lambda answers: any(
            answers[name].is_right for name in _WITHOUT_FOREGROUND if name in answers
        ),
    ),
    Pattern(
        "original",
        "wrong on original",
        "Wrong on the image as it is.",
        lambda answers: "original" in answers and not answers["original"].is_right,
    ),
    Pattern(
        "every",
        "right on every background",
        "Right on original, only_fg, mixed_same, mixed_rand and mixed_next.",
        _is_right_on_every_background,
    ),
)


def patterns_of(answers: Mapping[str, VersionAnswer]) -> tuple[str, ...]:
    """Returns the names of the patterns that a model's answers by version match."""
    return tuple(pattern.name for pattern in PATTERNS if answers and pattern.fits(answers))
