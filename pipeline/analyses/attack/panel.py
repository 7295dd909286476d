"""Adversarial backgrounds: how often they fool models, and pictures of the worst backgrounds."""

from __future__ import annotations

import dataclasses

from pipeline.analyses.attack.results import AttackMeasures, AttackResult
from pipeline.analyses.evaluation.results import Summary
from pipeline.display.evidence import Evidence, ModelResults
from pipeline.display.panel import Panel
from pipeline.display.pictures import SMALL, Budget, data_uri, find_samples
from pipeline.evaluate.published import CHALLENGE, FOOLED, published_for
from transforms.scoring import PAPER_RULE

COMMAND = "in9 attack --dataset . --models MODELS"

_BYTES = 1_400_000


@dataclasses.dataclass(frozen=True)
class Background:
    """One background, and its effect on foregrounds of other classes.

    Attributes:
      key: key of the image that it comes from.
      uri: the picture as a data URI; "" if it is left out.
      success: fraction of the foregrounds that the model takes for the background's class.
      foregrounds: number of foregrounds of other classes that it was tried with.
    """

    key: str
    uri: str
    success: float
    foregrounds: int


@dataclasses.dataclass(frozen=True)
class Gallery:
    """The backgrounds that fool a model most.

    Attributes:
      model: name of the model.
      grid: numbers of foregrounds and backgrounds, as text.
      classes: (class name, the backgrounds of this class that fool the most foregrounds, worst
        first); backgrounds that fool no foreground are left out.
      has_pictures: whether the backgrounds have pictures, which may be left out or have no room.
    """

    model: str
    grid: str
    classes: tuple[tuple[str, tuple[Background, ...]], ...]
    has_pictures: bool


@dataclasses.dataclass(frozen=True)
class ShownAttack:
    """A model's measures under one label rule.

    Attributes:
      model: name of the model.
      rule: the label rule.
      grid: numbers of foregrounds and backgrounds, as text.
      kind: whether the grid was full or sampled, and whether the attack stopped early, in words.
      measures: the measures under this rule.
      published: published (fooled, challenge accuracy) of the same model if the grid has the
        authors' size; None for a measure without a published figure.
    """

    model: str
    rule: str
    grid: str
    kind: str
    measures: AttackMeasures
    published: tuple[float | None, float | None]


@dataclasses.dataclass(frozen=True)
class AdversarialPanel:
    """Content of the panel.

    Attributes:
      rows: one for each attacked model and label rule.
      galleries: the worst backgrounds of each model, under its headline's label rule.
      errors: (model, why its attack failed).
    """

    rows: tuple[ShownAttack, ...]
    galleries: tuple[Gallery, ...]
    errors: tuple[tuple[str, str], ...]


def make_adversarial(evidence: Evidence, with_pictures: bool = True) -> AdversarialPanel | None:
    """Collects the panel's content; None if no attack has ended or failed.

    The pictures are tiled backgrounds, `only_bg_t`, because an attack puts these behind
    foregrounds.
    """
    rows: list[ShownAttack] = []
    galleries = []
    budget = Budget(_BYTES if with_pictures else 0)
    for model, attack in evidence.models_with(AttackResult):
        is_paper = evidence.dataset.is_comparable
        rows.extend(
            _row(model, attack, rule, attack.rules[rule], is_paper) for rule in attack.label_rules
        )
        if attack.measures.strongest:
            galleries.append(_gallery(evidence, model, attack, budget))
    errors = [(m.name, m.errors["attack"]) for m in evidence.models if "attack" in m.errors]
    if not rows and not errors:
        return None
    return AdversarialPanel(tuple(rows), tuple(galleries), tuple(errors))


def _row(
    model: ModelResults, attack: AttackResult, rule: str, measures: AttackMeasures, is_paper: bool
) -> ShownAttack:
    is_authors = attack.is_authors_grid and rule == PAPER_RULE
    summary = model.get(Summary)
    known = published_for(summary.architecture if summary else model.model)
    is_resnet = is_authors and "=" not in model.model and any(p.name == "ResNet-50" for p in known)
    kind = "stopped early" if attack.early_stop else ""
    return ShownAttack(
        model=model.name,
        rule=rule,
        grid=attack.size,
        kind=", ".join(filter(None, ("full" if attack.full_grid else "sampled", kind))),
        measures=measures,
        published=(FOOLED, CHALLENGE["ResNet-50"]) if is_resnet and is_paper else (None, None),
    )


def _gallery(
    evidence: Evidence, model: ModelResults, attack: AttackResult, budget: Budget
) -> Gallery:
    strongest = attack.measures.strongest
    uris: dict[str, str] = {}
    if budget.left:
        keys = [row.bg_key for row in strongest if row.success > 0]
        samples = find_samples(evidence.dataset, attack.split, "only_bg_t", keys)
        for key, sample in samples.items():
            uris[key] = data_uri(sample.image, SMALL)
            if sum(map(len, uris.values())) > budget.left:
                uris = {}
                break
    has_pictures = bool(uris) and budget.takes(*uris.values())
    classes = []
    for label, name in enumerate(evidence.taxonomy.names):
        backgrounds = tuple(
            Background(
                key=row.bg_key,
                uri=uris.get(row.bg_key, "") if has_pictures else "",
                success=row.success,
                foregrounds=row.foregrounds,
            )
            for row in sorted(strongest, key=lambda row: -row.success)
            if row.label == label and row.success > 0
        )
        if backgrounds:
            classes.append((name, backgrounds))
    # The worst class first, as the paper shows insects.
    classes.sort(key=lambda of_class: -of_class[1][0].success)
    return Gallery(model.name, attack.size, tuple(classes), has_pictures)


BACKGROUNDS = Panel(
    id="backgrounds",
    place=4,
    template="attack/panel.html",
    title="Worst backgrounds",
    make=make_adversarial,
    answers="Which foregrounds some background turns wrong",
    command=COMMAND,
)
