"""What the page says of the accuracy of models.

It has the headline table (models x variants with intervals, BG-Gap, and published figures), how
models differ on the same images, flip rates and relative foreground sensitivity, the worst
pairing of each mixed version, and the authors' claims that accuracies decide.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np

from pipeline.analyses.evaluation.baseline import chosen_baseline
from pipeline.analyses.evaluation.differences import (
    Differences,
    kinds_of,
    read_baseline,
    read_differences,
)
from pipeline.analyses.evaluation.tables import (
    cells_of,
    describe_holdouts,
    describe_power,
    headline_columns,
)
from pipeline.display.panel import Claim, Measurement, Panel
from pipeline.display.table import Cell, describe_chance
from pipeline.evaluate.comparisons import (
    COMPARISONS,
    GAP,
    ComparisonRow,
    read_contributions,
    read_rows,
)
from pipeline.evaluate.evidence import (
    FOOLED_BY_CLASS,
    PRETRAINED,
    TRAINED,
    Evidence,
    ModelResults,
    Results,
    training_of,
)
from pipeline.evaluate.families import (
    FAMILIES,
    Family,
    FamilyRow,
    Subject,
    describe_families,
    subjects_of,
    titled,
)
from pipeline.evaluate.subjects import IN_BOLD, column_of, mark_best
from pipeline.evaluate.summaries import read_summaries
from pipeline.evaluate.summary import Summary, rules_of, without_rule
from transforms.intervals import CONFIDENCE, Floats, Verdict, above, holm, within
from transforms.scoring import CLOSED_CHOICE, PAPER_RULE
from transforms.two_way import p_value
from transforms.variants import BG_GAP

COMMAND = "in9 evaluate --dataset . --models MODELS"

Published = tuple[str, str, Mapping[str, float], float | None]
"""(name, source, accuracy by variant, BG-Gap or None) of a model of the authors."""


def pretrained_models(results: Results) -> Iterator[tuple[ModelResults, Summary]]:
    """Returns models with more outputs than ImageNet-9, which are taken for trained on ImageNet."""
    return (
        (model, summary)
        for model, summary in results.models_with(Summary)
        if summary.num_outputs > len(FOOLED_BY_CLASS)
    )


def reading(gaps: Sequence[Cell], p_values: Floats, images: str, of: str = "models") -> str:
    """Says in words what the intervals of BG-Gap show, of all models and families that have one.

    Of many p values, chance makes some small. `images` is the number of images, in words, `of`
    names what has the gaps.
    """
    above, below = sum(gap.low > 0 for gap in gaps), sum(gap.high < 0 for gap in gaps)
    is_one, one = len(gaps) == 1, "the method" if of.startswith("families") else "the model"
    if not is_one and above < len(gaps):
        clear = np.asarray([gap.value for gap in gaps])[holm(p_values) < 1 - CONFIDENCE]
        above, below = int((clear > 0).sum()), int((clear < 0).sum())
    if not above and not below:
        none = "No BG-Gap differs significantly from 0 (Holm, 5 %)"
        rely = f"{one} relies" if is_one else f"these {of} rely"
        intervals = "The interval includes 0" if is_one else none
        return f"{intervals}: {images} do not show that {rely} on the background."
    if is_one:
        behaviour = "relies on the background" if above else "does better on other backgrounds"
        return f"The whole interval is {'above' if above else 'below'} 0: {one} {behaviour}."
    if above == len(gaps):
        both = "Both" if " and " in of else f"Both {of}"
        many, all_of = (f"All {above} {of}", "all") if above > 2 else (both, "both")
        return f"{many} rely on the background: {all_of} intervals lie above 0."
    sides = [f"{side} 0 for at least {n}" for side, n in (("above", above), ("below", below)) if n]
    return f"BG-Gap is {' and '.join(sides)} of {len(gaps)} {of} (Holm, 5 %)."


@dataclasses.dataclass(frozen=True)
class HeadlineRow:
    """One model, or a family of models.

    Attributes:
      title: its name, and how many trainings of a method it stands for, if it is of one.
      seeds: the rows of a family's models.
      error: why the model has no numbers; "" if it has some.
      smallest: the smallest BG-Gap that as many images would show; None if there is none.
      is_power_shown: whether backgrounds tell the class, as far as that was measured.
      warning: why the numbers should not be trusted; "" if nothing speaks against them.
    """

    name: str
    title: str
    cells: Mapping[str, Cell]
    error: str = ""
    smallest: float | None = None
    is_power_shown: bool = True
    warning: str = ""
    seeds: tuple["HeadlineRow", ...] = ()


@dataclasses.dataclass(frozen=True)
class Headline:
    """A table for each label rule.

    Attributes:
      variants: the columns after BG-Gap: variants, and their gaps.
      published: the authors' models that were pretrained on ImageNet, and those trained on a
        variant that a model here was trained on.
      left_out: by label rule, the models that its table leaves out, and why, in words.
    """

    variants: tuple[str, ...]
    tables: dict[str, tuple[HeadlineRow, ...]]
    published: Sequence[Published]
    left_out: dict[str, str]


def make_headline(evidence: Evidence) -> Headline:
    """Makes the tables of families and of models in none, by BG-Gap, with published figures.

    A model that failed gets a row with its error.
    """
    summaries, figures = mark_best(
        [summary for _, summary in evidence.models_with(Summary)],
        read_rows(evidence.dataset, COMPARISONS, ComparisonRow),
        read_rows(evidence.dataset, FAMILIES, FamilyRow),
    )
    names = {model.folder: model.name for model in evidence.models}
    failed = [
        HeadlineRow(model.name, model.name, {}, model.errors["evaluate"])
        for model in evidence.models
        if "evaluate" in model.errors
    ]
    rules = rules_of(summaries)
    return Headline(
        variants=tuple(
            column for column in map(column_of, headline_columns(evidence.dataset)) if column != GAP
        ),
        tables={
            rule: _by_gap(
                [
                    *(
                        _row(subject, rule, figures, names)
                        for subject in subjects_of(summaries)
                        if rule in subject.label_rules
                    ),
                    *failed,
                ]
            )
            for rule in rules
        },
        left_out={rule: without_rule(summaries, rule) for rule in rules},
        published=_published(evidence) if evidence.dataset.is_comparable else (),
    )


def _by_gap(rows: Iterable[HeadlineRow]) -> tuple[HeadlineRow, ...]:
    """Sorts models by BG-Gap, largest first; those without one keep their order, at the end."""
    return tuple(sorted(rows, key=lambda row: -row.cells[GAP].value if GAP in row.cells else 2.0))


def _row(
    subject: Subject, rule: str, figures: Sequence[FamilyRow], names: Mapping[str, str]
) -> HeadlineRow:
    """Makes the row of a family or a model; `names` are those of models, by their folder."""
    cells = cells_of(subject, rule, figures)
    gap = cells.get(GAP)
    is_near_zero = gap is not None and (gap.is_range or gap.low <= 0 <= gap.high)
    has_power = all(power.has_power for one in subject.members for power in one.power)
    overlap = max(one.overlap or 0 for one in subject.members)
    name = subject.name if isinstance(subject, Family) else names[subject.folder]
    return HeadlineRow(
        name,
        titled(name, subject),
        cells,
        smallest=gap.smallest if gap else None,
        is_power_shown=has_power or not is_near_zero,
        warning=f"trained on {overlap:,} of these images" if overlap else "",
        seeds=_by_gap(_row(one, rule, (), names) for one in subject.members if subject.is_family),
    )


def _published(evidence: Evidence) -> list[Published]:
    """Returns the authors' figures for the same kind of images.

    For whole images (IN-9L), only table 5 of the paper has figures.
    """
    # The authors trained whole networks, not the last layer alone.
    variants = {
        training_of(model)
        for model, _ in evidence.models_with(Summary)
        if not (model.trained and model.trained.method != "train")
    }
    trained = {
        f"ResNet-50 trained on {name}": row for name, row in TRAINED.items() if name in variants
    }
    if evidence.dataset.manifest.config.segment.keeps_image_whole:
        return [(name, "paper", {"original": row["in9l"]}, None) for name, row in trained.items()]
    return [
        *(
            (name, "paper", row, row["mixed_same"] - row["mixed_rand"])
            for name, row in trained.items()
        ),
        *((entry.name, entry.source, entry.accuracy, entry.gap) for entry in PRETRAINED),
    ]


@dataclasses.dataclass(frozen=True)
class AccuracyPanel:
    """Content of the panel, and of the head of the page.

    Attributes:
      tested: the parts of the dataset that models were tested on, in words; empty if all of them
        were tested on the whole dataset.
      images: the images tested on, in words.
      column: what the head of the page compares models by: BG-Gap, or accuracy on a variant.
      of: what the table has a row of: models, families, or both, in words.
      shown: (title of a row, its figure in this column), for the head; of BG-Gap, the rows that
        have it in as many draws as any of them.
      parts: (pictures in words, accuracy) of the only row in `shown`; empty if there are several.
      reading: what the intervals of BG-Gap show, in words; "" if there are none.
      not_formed: why families have no interval, or could not be formed, in words.
      missing: (name of the model, variants that it must be evaluated on again).
      chance: accuracies by chance, in words; "" if nothing was measured.
      spread: largest standard deviation of one draw of backgrounds, a fraction; 0 without draws.
      notes: whether backgrounds tell the class, and what counts under `--holdout`, in words.
      lost_baseline: why the baseline cannot be read; "" if it can, or none was chosen.
    """

    headline: Headline
    tested: Sequence[str]
    images: str
    column: str
    of: str
    shown: Sequence[tuple[str, Cell]]
    parts: Sequence[tuple[str, Cell]]
    reading: str
    not_formed: Sequence[str]
    missing: Sequence[tuple[str, Sequence[str]]]
    chance: str
    spread: float
    notes: Sequence[str]
    differences: Differences
    baseline: Differences
    lost_baseline: str

    gap_column: ClassVar[str] = GAP
    paper_rule: ClassVar[str] = PAPER_RULE
    closed_choice: ClassVar[str] = CLOSED_CHOICE
    in_bold: ClassVar[str] = IN_BOLD
    few: ClassVar[int] = 4
    """Up to this number of models, the page shows their table unfolded."""


_PARTS = {
    "original": "as they are",
    "mixed_same": "own kind of background",
    "mixed_rand": "another background",
}
"""The variants whose accuracies the head shows of a single model, in words."""


def _make_accuracy(evidence: Evidence, with_pictures: bool) -> AccuracyPanel | None:
    """Makes the panel's content; None if no model was tried."""
    headline, evaluated = make_headline(evidence), evidence.models_with(Summary)
    if not any(headline.tables.values()):
        return None
    p_values = {
        name: p_value(np.asarray(one.value), one.spread)
        for models in read_contributions(evidence.dataset, read_summaries(evidence.dataset)[0])
        for name, subject in evidence.subjects
        if subject.members[0] in models.summaries
        and (one := models.measure(BG_GAP, subject, evidence.rule))
    }
    rows = headline.tables.get(evidence.rule, ())
    with_gap = [row for row in rows if row.name in p_values or (row.seeds and GAP in row.cells)]
    column = GAP if with_gap else next(iter(headline.variants), GAP)
    shown = with_gap or [row for row in rows if column in row.cells]
    judged = [row for row in shown if row.name in p_values]
    baseline = chosen_baseline(evidence.dataset)
    counts = {one.tested_on: max(r.n for r in one.accuracy) for _, one in evaluated if one.accuracy}
    manifest = evidence.dataset.manifest
    tested = [
        f"{n:,} {manifest.counted_noun} of split {split}"
        + (f" (--holdout {holdout:g})" if holdout else "")
        for (split, holdout), n in sorted(counts.items())
    ]
    images = f"these {max(counts.values(), default=0):,} images"
    return AccuracyPanel(
        headline=headline,
        tested=tested if counts.keys() != {(split, 0) for split in manifest.images} else (),
        images=images,
        column=column,
        of=kinds_of(bool(row.seeds) for row in rows),
        shown=[(row.title, row.cells[column]) for row in shown],
        parts=[
            (words, cell)
            for variant, words in _PARTS.items()
            if len(shown) == 1 and (cell := shown[0].cells.get(variant))
        ],
        reading=reading(
            [row.cells[GAP] for row in judged],
            np.asarray([p_values[row.name] for row in judged]),
            images,
            kinds_of(bool(row.seeds) for row in judged)
            + " with an interval" * (len(judged) < len(shown)),
        )
        if judged
        else "",
        not_formed=describe_families(one for _, one in evaluated),
        missing=[(model.name, one.missing) for model, one in evaluated if one.missing],
        chance=describe_chance(row.chance for _, one in evaluated for row in one.accuracy if row.n),
        spread=max(
            [
                0.0,
                *(row.seed_sd or 0.0 for _, one in evaluated for row in one.accuracy),
                *(row.seed_sd or 0.0 for _, one in evaluated for row in one.gaps),
            ]
        ),
        notes=[
            *describe_power((one for _, one in evaluated), is_page=True),
            *describe_holdouts(evidence.dataset, read_summaries(evidence.dataset)[0]),
        ],
        differences=read_differences(evidence, headline.variants),
        baseline=read_baseline(evidence, headline.variants),
        lost_baseline=baseline if isinstance(baseline, str) else "",
    )


ACCURACY = Panel(
    id="accuracy",
    place=1,
    template="evaluation/accuracy.html",
    title="Accuracy",
    make=_make_accuracy,
    head="evaluation/head.html",
    answers="Accuracy on each variant, and BG-Gap",
    command=COMMAND,
    needs_backgrounds=False,
)


def make_sensitivity(evidence: Evidence) -> dict[str, object]:
    """Collects the panel's content by the page's label rule; empty if no model has any of it.

    Returns:
      `flips`: (model, row of flips.csv by the variants of its two pictures) of each model that has
      flip rates; `compared`: the keys of all these rows; `noise`: (model, row of rfs.csv) of each
      model that was evaluated on both variants with noise; `left_out`: the models without this
      rule, in words.
    """
    evaluated = evidence.comparable
    flips = [
        (model.name, {(row.variant, row.other_variant): row for row in rows})
        for model, summary in evaluated
        if (rows := list(summary.by_rule(summary.flips)))
    ]
    noise = [
        (model.name, row) for model, summary in evaluated for row in summary.by_rule(summary.rfs)
    ]
    content = {
        "flips": flips,
        "compared": list(dict.fromkeys(pair for _, of_model in flips for pair in of_model)),
        "noise": noise,
        "left_out": _left_out(evidence),
    }
    return content if flips or noise else {}


def _left_out(evidence: Evidence) -> str:
    """Names the models without figures by the page's label rule, and says why."""
    return without_rule((summary for _, summary in evidence.models_with(Summary)), evidence.rule)


SENSITIVITY = Panel(
    id="sensitivity",
    place=2,
    template="evaluation/sensitivity.html",
    title="Sensitivity",
    make=lambda evidence, _: make_sensitivity(evidence),
)


def make_mistakes(evidence: Evidence) -> dict[str, object]:
    """Collects the panel's content; empty if no model was evaluated.

    Returns:
      `worst`: (model, names of the classes of foreground and background, row of groups.csv) of the
      pairing of each mixed version on which a model is worst; `means`: the models with their
      summaries; `left_out`: the models without the page's label rule, in words.
    """
    evaluated, names = evidence.comparable, evidence.taxonomy.names
    worst = [
        (model.name, names[row.label], names[row.bg_label], row)
        for model, summary in evaluated
        for row in summary.by_rule(summary.groups)
        if row.is_worst
    ]
    content: dict[str, object] = {
        "worst": worst,
        "means": evaluated,
        "left_out": _left_out(evidence),
    }
    return content if evaluated else {}


MISTAKES = Panel(
    id="mistakes",
    place=3,
    template="evaluation/mistakes.html",
    title="Mistakes",
    make=lambda evidence, _: make_mistakes(evidence),
)


def background_alone(results: Results) -> Iterator[Measurement]:
    """Returns the accuracy of pretrained models on `only_bg_t`."""
    return (
        Measurement(model.name, row.estimate, row.chance or 0.0)
        for model, summary in pretrained_models(results)
        if (row := summary.accuracy_on("only_bg_t")) and row.estimate
    )


def gaps(models: Iterable[tuple[ModelResults, Summary]]) -> Iterator[Measurement]:
    return (
        Measurement(model.name, gap.estimate) for model, summary in models if (gap := summary.gap())
    )


BY_METHOD = "with this dataset's fill of the hole and edge of the foreground (docs/method.md)"
"""What the judgement of a claim about BG-Gap rests on."""

CLAIMS = (
    Claim(
        "Models trained on ImageNet tell some classes from the background alone (only_bg_t).",
        (2, 1),
        "paper table 2",
        "11.9 to 17.8 %",
        "accuracy above chance; an accuracy below chance leaves the claim open, because answers "
        "outside the nine classes count as wrong",
        background_alone,
        # An accuracy below chance leaves the claim open, because answers outside the classes count
        # as wrong even if the other answers carry signal.
        lambda low, _, chance: Verdict.HOLDS if low > chance else Verdict.OPEN,
        COMMAND,
    ),
    Claim(
        "Backgrounds mislead models even when the right foreground is there.",
        (2, 2),
        "blog 2",
        "BG-Gap above 0 for every model",
        f"BG-Gap above 0, {BY_METHOD}",
        lambda results: gaps(one for one in results.comparable if not one[1].overlap),
        above,
        COMMAND,
        unit="points",
    ),
    Claim(
        "BG-Gap is 6 to 14 points for models trained on ImageNet.",
        (2, 3),
        "blog 2, paper table 2",
        "6 to 14 points",
        f"the whole interval inside 6 to 14 points, {BY_METHOD}",
        lambda results: gaps(pretrained_models(results)),
        lambda low, high, _: within(low, high, (0.06, 0.14)),
        COMMAND,
        unit="points",
    ),
)
