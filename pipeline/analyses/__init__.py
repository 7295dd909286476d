"""An analysis: what a command and its flags run, what is stored of it, and what people see of it.

`ANALYSES` is the list of them. `--help` reads the names and flags of all, so this module and the
`__init__` of each analysis import nothing slow. What an analysis does is loaded when it is used
(`Analysis.parts`).
"""

from __future__ import annotations

import dataclasses
import pkgutil
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.runtime.flag_types import Flag, Section

if TYPE_CHECKING:
    from pipeline.analyses.parts import Parts


class Command(NamedTuple):
    """A command of the command line.

    Attributes:
      function: function that runs it, as `module:function` of `pipeline.commands`. It takes the
        parsed arguments, and Beam's flags if the command runs a graph, and returns the exit code.
    """

    text: str
    example: str
    function: str
    has_graph: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Analysis:
    """Names, words and flags of an analysis.

    Attributes:
      name: its name, which is also that of its command, if it has one, and of its stage in
        counters, progress and failures.
      implementation: its `Parts`, as `module:object`.
      command: its own command; None if it only has flags of other commands.
      sections: flags of its own command; the first has the values of the first of `job_flags`.
      job_flags: (the commands, the flag) by which other commands run it.
      picture_noun, participle: what the closing lines of a job call a picture that models are
        shown, and what was done to it; both are "" if it does not run on the stage of models.
      items: what progress counts, in the plural.
      done: what `--dry_run` says of a model that has nothing left to do; "" to say nothing.
      not_done: beginning of the line about a model that failed; "" if `Parts.lines` say so, and the
        page does not.
    """

    name: str
    implementation: str
    command: Command | None = None
    sections: tuple[Section, ...] = ()
    job_flags: tuple[tuple[tuple[str, ...], Flag], ...] = ()
    picture_noun: str = ""
    participle: str = ""
    items: str = "images"
    done: str = ""
    not_done: str = ""
    refuses_overlap: bool = False

    @property
    def runs_models(self) -> bool:
        """Whether it runs on the stage of models."""
        return bool(self.picture_noun)

    @property
    def counter(self) -> str:
        """Name of the counter of the pictures that its stage shows to models."""
        return f"{self.name}_pictures"

    @property
    def parts(self) -> Parts[Any]:
        """What the analysis does; imported when it is first used."""
        parts: Parts[Any] = pkgutil.resolve_name(self.implementation)
        return parts


ANALYSES: tuple[Analysis, ...] = tuple(
    pkgutil.resolve_name(f"{__name__}.{name}")
    for name in (
        "features:FEATURES",
        "evaluation:EVALUATION",
        "renderings:RENDERINGS",
        "imagenet:IMAGENET",
        "attack:ATTACK",
        "imagenet:TREND",
        "saliency:SALIENCY",
        "matrix:MATRIX",
    )
)
"""All analyses, each named by its folder and object, in the order in which a job runs them. An
analysis may read the results of those before it."""
