"""The parts of the attack by adversarial backgrounds.

They are how often backgrounds fool models, pictures of the worst backgrounds, and the authors'
claims about them.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

from typing_extensions import override

from pipeline.analyses.attack.results import (
    ATTACK_TABLE,
    ATTACK_VARIANTS,
    BACKGROUNDS_TABLE,
    AttackMeasures,
    AttackResult,
    FooledClass,
    StrongestBackground,
    attack_table,
    check_variants,
    describe_families,
    open_grid,
    read_attacks,
    write_attack_tables,
)
from pipeline.analyses.attack.stage import PlannedAttack
from pipeline.analyses.parts import Flags, Found, Parts
from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.folder import Dataset
from pipeline.display.panel import SMALL, Budget, Claim, Measurement, Panel, data_uri, find_samples
from pipeline.display.table import TIMES
from pipeline.evaluate.evidence import (
    CHALLENGE,
    FOOLED,
    FULL_GRID,
    Evidence,
    ModelResults,
    Results,
    published_for,
)
from pipeline.evaluate.planned import Evaluation, PlannedAnalysis
from pipeline.evaluate.results import read_failures
from pipeline.evaluate.summary import Summary
from pipeline.models.checkpoint import encoder_of
from transforms.intervals import Estimate, above, below, estimate_of, level_of, wilson
from transforms.scoring import PAPER_RULE
from transforms.taxonomy import Taxonomy
from transforms.variants import ONLY_BG_T, VariantName

COMMAND = "in9 attack --dataset . --models MODELS"

_BYTES = 1_400_000

Grid = tuple[int | None, int | None]
"""Numbers of foregrounds and of backgrounds; None for all."""


@dataclasses.dataclass(frozen=True)
class Gallery:
    """The backgrounds that fool a model most.

    Attributes:
      classes: (class name, (background, its picture as a data URI or "") of the backgrounds of this
        class that fool the most foregrounds, worst first); backgrounds that fool no foreground are
        left out.
      has_pictures: whether the backgrounds have pictures, which may be left out or have no room.
    """

    model: str
    grid: str
    classes: Sequence[tuple[str, Sequence[tuple[StrongestBackground, str]]]]
    has_pictures: bool


@dataclasses.dataclass(frozen=True)
class AdversarialPanel:
    """Content of the panel.

    Attributes:
      rows: (name of the model, label rule, attack, published (fooled, challenge accuracy)) of each
        attacked model and label rule; published figures are None unless they are of the same model
        on a grid of the same size, by the same rule.
      families: a line on each family of attacked models.
      galleries: the worst backgrounds of each model, under its headline's label rule.
      errors: (model, why its attack failed).
    """

    rows: Sequence[tuple[str, str, AttackResult, tuple[float | None, float | None]]]
    families: Sequence[str]
    galleries: Sequence[Gallery]
    errors: Sequence[tuple[str, str]]


def make_adversarial(evidence: Evidence, with_pictures: bool = True) -> AdversarialPanel | None:
    """Collects the panel's content; None if no attack has ended or failed.

    Pictures are of `only_bg_t`, because an attack puts tiled backgrounds behind foregrounds.
    """
    attacked = evidence.models_with(AttackResult)
    budget = Budget(_BYTES if with_pictures else 0)
    is_paper = evidence.dataset.is_comparable
    rows = [
        (model.name, rule, attack, _published(model, attack, rule) if is_paper else (None, None))
        for model, attack in attacked
        for rule in attack.label_rules
    ]
    galleries = [
        _gallery(evidence, model, attack, budget)
        for model, attack in attacked
        if attack.measures.strongest
    ]
    errors = [(m.name, m.errors["attack"]) for m in evidence.models if "attack" in m.errors]
    families = list(describe_families([attack for _, attack in attacked]))
    return AdversarialPanel(rows, families, galleries, errors) if rows or errors else None


def _published(
    model: ModelResults, attack: AttackResult, rule: str
) -> tuple[float | None, float | None]:
    summary = model.get(Summary)
    known = published_for(summary.architecture if summary else model.model)
    is_own = "=" in model.model or encoder_of(model.model)
    is_resnet = not is_own and any(entry.name == "ResNet-50" for entry in known)
    is_comparable = attack.is_authors_grid and rule == PAPER_RULE and is_resnet
    return (FOOLED, CHALLENGE["ResNet-50"]) if is_comparable else (None, None)


def _gallery(
    evidence: Evidence, model: ModelResults, attack: AttackResult, budget: Budget
) -> Gallery:
    fooling = [row for row in attack.measures.strongest if row.success > 0]
    fooling.sort(key=lambda row: -row.success)
    keys = [row.bg_key for row in fooling]
    samples = find_samples(evidence.dataset, attack.split, ONLY_BG_T, keys) if budget.left else {}
    uris = {key: data_uri(sample.image, SMALL) for key, sample in samples.items()}
    has_pictures = bool(uris) and budget.takes(*uris.values())
    classes = [
        (
            name,
            [
                (row, uris.get(row.bg_key, "") if has_pictures else "")
                for row in fooling
                if row.label == label
            ],
        )
        for label, name in enumerate(evidence.taxonomy.names)
        if any(row.label == label for row in fooling)
    ]
    # The worst class first, as the paper shows insects.
    classes.sort(key=lambda of_class: -of_class[1][0][0].success)
    return Gallery(model.name, attack.size, classes, has_pictures)


_INSECT = 5
"""Label of the class insect."""
_AUTHORS_GRID = f"{FULL_GRID:,} {TIMES} {FULL_GRID:,}"


def on_grids(
    measure: Callable[[AttackMeasures], Estimate | None],
) -> Callable[[Results], Iterator[Measurement]]:
    """Returns a function that yields a measure of each attack that has it."""
    return lambda results: (
        Measurement(f"{model.name}, {attack.size}", estimate, may_rise=not attack.is_authors_grid)
        for model, attack in results.models_with(AttackResult)
        if (estimate := measure(attack.measures))
    )


def of_insects(
    measure: Callable[[AttackMeasures, FooledClass], Estimate],
) -> Callable[[AttackMeasures], Estimate | None]:
    """Returns a function that takes a measure of the insect backgrounds; None without any."""
    return lambda measures: next(
        (measure(measures, row) for row in measures.by_class if row.label == _INSECT), None
    )


def best_insect(measures: AttackMeasures, row: FooledClass) -> Estimate:
    """Returns the success of the best single insect background.

    Its interval is widened, because it is the best of as many backgrounds as were tried.
    """
    best = max(one.success for one in measures.strongest if one.label == _INSECT)
    return best, *wilson(round(best * row.foregrounds), row.foregrounds, level_of(row.backgrounds))


def any_insect(_: AttackMeasures, row: FooledClass) -> Estimate:
    """Returns the share of foregrounds that some insect background turns into insects."""
    return row.fooled, *wilson(round(row.fooled * row.foregrounds), row.foregrounds)


class AttackFlags(Flags, frozen=True, kw_only=True):
    """The grid, which `run` names `--attack`; None for no attack."""

    grid: Grid | None = None
    early_stop: bool = False
    attack: Grid | None = None


class AttackParts(Parts[AttackFlags]):
    flags = AttackFlags
    tables = (ATTACK_TABLE, BACKGROUNDS_TABLE)
    figures = ("fooled_by_class", "accuracy_by_backgrounds")
    panels = (
        Panel(
            id="backgrounds",
            place=5,
            template="attack/panel.html",
            title="Worst backgrounds",
            make=make_adversarial,
            answers="Which foregrounds some background turns wrong",
            command=COMMAND,
            needs_variants=ATTACK_VARIANTS,
        ),
    )
    claims = (
        Claim(
            "Nearly every foreground can be fooled by some background of another class.",
            (3, 1),
            f"blog 3, at {_AUTHORS_GRID}",
            "87.5 %",
            "more than half; a smaller grid can only show that it holds",
            on_grids(lambda one: estimate_of(one.fooled, one.fooled_ci_low, one.fooled_ci_high)),
            lambda low, high, _: above(low, high, 0.5),
            COMMAND,
        ),
        Claim(
            "Few foregrounds survive every background (challenge accuracy).",
            (3, 2),
            f"README, at {_AUTHORS_GRID}",
            "22.3 %",
            "under a quarter; a smaller grid can only show that it holds",
            on_grids(
                lambda one: estimate_of(
                    one.challenge_accuracy, one.challenge_ci_low, one.challenge_ci_high
                )
            ),
            lambda low, high, _: below(low, high, 0.25),
            COMMAND,
        ),
        Claim(
            "Single backgrounds fool a model whatever the foreground: the best insect background "
            "about half of those that are no insects.",
            (3, 3),
            f"blog 3, at {_AUTHORS_GRID}",
            "52 %",
            "more than 45 %, by the interval of the best of so many; a smaller grid can only show "
            "that it holds",
            on_grids(of_insects(best_insect)),
            lambda low, high, _: above(low, high, 0.45),
            COMMAND,
        ),
        Claim(
            "Some insect background or other turns over 2/3 of the foregrounds into insects.",
            (3, 4),
            f"blog 3, at {_AUTHORS_GRID}",
            "66.6 %",
            "more than 60 %; a smaller grid can only show that it holds",
            on_grids(of_insects(any_insect)),
            lambda low, high, _: above(low, high, 0.6),
            COMMAND,
        ),
    )

    @override
    def plan(
        self,
        flags: AttackFlags,
        evaluation: Evaluation,
        config: DatasetConfig,
        taxonomy: Taxonomy,
    ) -> PlannedAnalysis | None:
        is_own = flags.command == "attack"
        size = flags.grid if is_own else flags.attack
        if size is None:
            return None
        evaluation.check_stored("an attack composes stored pixels and feeds them as they are")
        check_variants(config.compose.composed)
        if is_own:
            # Opening the grid also checks that the dataset has images for it.
            open_grid(Dataset.open(evaluation.store), evaluation, *size, flags.early_stop)
        return PlannedAttack(evaluation, taxonomy, *size, flags.early_stop)

    @override
    def expected_pictures(
        self, work: PlannedAnalysis, images: float, variants: Sequence[VariantName]
    ) -> int | None:
        assert isinstance(work, PlannedAttack)
        most, sides = round(images), (work.foregrounds, work.backgrounds)
        return math.prod(most if count is None else min(count, most) for count in sides)

    @override
    def find(self, dataset: Dataset) -> Found:
        return Found(read_attacks(dataset)[0])

    @override
    def write(self, dataset: Dataset, columns: Sequence[str]) -> None:
        write_attack_tables(dataset)

    @override
    def lines(self, dataset: Dataset, work: PlannedAnalysis | None) -> Iterator[str]:
        if work:
            attacks, stale = read_attacks(dataset)
            stale += read_failures(dataset.store, dataset.manifest.fingerprint, "attack")[1]
            yield attack_table(attacks)
            yield from describe_families(attacks)
            if names := ", ".join(stale):
                yield f"not in the tables, because attacked on an earlier dataset: {names}"


PARTS = AttackParts()
