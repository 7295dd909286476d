"""What a page is made of: panels that show results, their pictures, and claims with verdicts.

Pictures are made small, encoded again, and kept within a budget of bytes.
"""

import base64
import dataclasses
import io
import os
import re
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from PIL import Image

from pipeline.dataset.folder import Dataset
from pipeline.dataset.sinks import Sample
from pipeline.errors import JobError
from pipeline.evaluate.evidence import Evidence, Results
from pipeline.evaluate.summary import Summary
from pipeline.models.answers import has_network
from pipeline.storage.store import Store
from transforms.codec import TooManyPixelsError, UndecodableError, decode_image
from transforms.intervals import Estimate, Verdict, difference
from transforms.variants import VariantName

COMPARED = 8
"""Largest number of models that a figure or a table of pairs compares: the models with the highest
accuracy on `original`. Figures have as many colours (`pipeline.display.style.MODELS`)."""
QUALITY = 68
"""Quality of pictures as WebP, up to 100."""
SHOWN = 224
"""Side of large pictures, in pixels."""
SMALL = 128
"""Side of pictures in galleries, in pixels."""


def data_uri(image: bytes, side: int = SHOWN) -> str:
    """Encodes a picture's file as a WebP data URI; its longest side is at most `side` pixels."""
    try:
        small = Image.fromarray(decode_image(image))
    except (UndecodableError, TooManyPixelsError) as error:
        raise JobError(f"a picture of the page is damaged ({error}); see: in9 verify") from error
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "WEBP", quality=QUALITY, method=2)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def find_samples(
    dataset: Dataset, split: str, variant: VariantName, keys: Iterable[str]
) -> dict[str, Sample]:
    """Reads samples of a variant, by key. Keys that the dataset does not hold are left out."""
    by_shard: dict[int, list[str]] = defaultdict(list)
    for key in keys:
        by_shard[dataset.shard_of(split, key)].append(key)
    return {
        sample.key: sample
        for shard, wanted in sorted(by_shard.items())
        for sample in dataset.chosen_samples(split, shard, variant, wanted)
    }


@dataclasses.dataclass
class Budget:
    """The number of bytes for which a part of the page still has room."""

    left: int

    def takes(self, *uris: str) -> bool:
        """Returns whether these pictures still fit; if so, counts them."""
        size = sum(map(len, uris))
        if size > self.left:
            return False
        self.left -= size
        return True


_EXAMPLE = "efficientnet_lite0"
_OF_FILE = re.compile(r"([^=:]*=|onnx:|hf:|open_clip:(?:[^:]*:)?)([^/].*)")
"""An entry of `--models` that may name a file by a relative path, which is the second group."""


@dataclasses.dataclass(frozen=True)
class Panel:
    """A section of the page that shows results.

    Attributes:
      place: place of the section among those of all panels.
      template: path of its template, in `pipeline/analyses/`.
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
      needs_layers: whether the command composes from layers, which imports have not.
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
    needs_layers: bool = False
    needs_variants: tuple[VariantName, ...] = ()

    def applies(self, evidence: Evidence) -> bool:
        """Returns whether the command gives the panel content on these images and classes."""
        dataset, config = evidence.dataset, evidence.dataset.manifest.config
        lacks = (
            self.needs_backgrounds and config.segment.keeps_image_whole,
            self.needs_imagenet9 and not dataset.is_imagenet9,
            self.needs_layers and (config.is_imported or config.layers == "drop"),
            not set(self.needs_variants).issubset(dataset.variants),
        )
        return not any(lacks)


def with_models(command: str, evidence: Evidence) -> str:
    """Returns a command for the models of the page, to run in the dataset's folder.

    In place of MODELS are their names, and the split and the part of it on which all of them were
    tested. Those that only have answers are left out. If there are no others, a model that needs no
    download stands in.
    """
    store = evidence.dataset.store
    runs = [run for model, run in evidence.models_with(Summary) if has_network(model.model)]
    names = ",".join(dict.fromkeys(_seen_from(store, run.model) for run in runs))
    splits = {run.evaluation.split for run in runs}
    shares, flags = {run.evaluation.holdout for run in runs}, ""
    if len(splits) == 1 and evidence.dataset.manifest.config.eval_split not in splits:
        flags += f" --eval_split {shlex.quote(*splits)}"
    if len(shares) == 1 and max(shares):
        flags += f" --holdout {max(shares):g}"
    return command.replace("MODELS", shlex.quote(names or _EXAMPLE) + flags)


def _seen_from(store: Store, entry: str) -> str:
    """Returns an entry of `--models` whose file, if found from here, is found from a folder."""
    match = _OF_FILE.match(entry)
    if match is None or store.is_remote or not os.path.exists(match[2]):
        return entry
    return match[1] + os.path.relpath(match[2], store.root)


@dataclasses.dataclass(frozen=True)
class Finding:
    """A measurement of one model, test, pair of models or line of a trend.

    Attributes:
      low, high: bounds of its 95 % interval.
      chance: accuracy of a constant answer to the same pictures, if the criterion compares with it;
        else None.
    """

    subject: str
    value: float
    low: float
    high: float
    verdict: Verdict
    chance: float | None = None


def overall(findings: Sequence[Finding]) -> Verdict:
    """Combines findings into one verdict: their common one if they agree.

    It is open if none of them is decisive, not run if there are none, and otherwise mixed.
    """
    verdicts = {finding.verdict for finding in findings}
    if not verdicts:
        return Verdict.NOT_RUN
    if len(verdicts) == 1:
        return verdicts.pop()
    return Verdict.MIXED if verdicts & {Verdict.HOLDS, Verdict.FAILS} else Verdict.OPEN


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What a claim is judged by.

    Attributes:
      subject: the model, test, pair of models or line of a trend that was measured.
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
    """Returns each of the first measurements minus each of the second, treated as independent."""
    return (
        Measurement(
            f"{first.subject} minus {second.subject}", difference(first.estimate, second.estimate)
        )
        for first in firsts
        for second in seconds
    )


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the authors.

    A claim's source is "blog" for the authors' post (sections 1 to 5), "paper" for tables and
    figures of their paper, and "README" for the one in their evaluation repository.

    Attributes:
      place: section of the blog post, and the claim's position in it.
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

    def judge(self, results: Results) -> Iterator[Finding]:
        for one in self.measure(results):
            verdict = self.criterion(*one.estimate[1:], one.chance or 0.0)
            shown = verdict if not one.may_rise or verdict is Verdict.HOLDS else Verdict.SMALL
            yield Finding(one.subject, *one.estimate, shown, one.chance)


def trained_command(command: str, *variants: str) -> str:
    """Returns a command with checkpoints trained on these variants in place of MODELS."""
    files = ",".join(f"resnet50=resnet50-{variant}.pth" for variant in variants)
    return command.replace("MODELS", files)


def checkpoints(first: str, second: str) -> str:
    """Says that a command needs checkpoints trained on these variants."""
    return (
        f"checkpoints with nine outputs, trained on {first} and {second} and named after the "
        "training set"
    )
