"""The page's table of families and models by variant, with published figures."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pipeline.analyses.evaluation.differences import GAP
from pipeline.display.table import mean_interval
from pipeline.evaluate.best import mark_best
from pipeline.evaluate.comparisons import BG_GAP, COMPARISONS, ComparisonRow, read_rows
from pipeline.evaluate.evidence import Evidence, ModelResults, training_of
from pipeline.evaluate.families import FAMILIES, Family, FamilyRow, figures_of, titled
from pipeline.evaluate.published import PRETRAINED, TRAINED
from pipeline.evaluate.summary import Summary, rules_of, without_rule


@dataclasses.dataclass(frozen=True)
class HeadlineCell:
    """One number of the table, with its bounds, as fractions; None where nothing was measured.

    `seeds` are the numbers that it is the mean of; with too few of them, it has no bounds.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    is_among_best: bool = False
    seeds: tuple[float, ...] = ()

    @property
    def drawn(self) -> list[float]:
        """All that a figure draws of it."""
        return [one for one in (self.value, self.low, self.high, *self.seeds) if one is not None]

    def __str__(self) -> str:
        return mean_interval(self.value or 0.0, self.low, self.high, self.seeds)


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
    error: str
    cells: dict[str, HeadlineCell]
    smallest: float | None = None
    is_power_shown: bool = True
    warning: str = ""
    title: str = ""
    seeds: tuple["HeadlineRow", ...] = ()


@dataclasses.dataclass(frozen=True)
class Headline:
    """A table for each label rule.

    Attributes:
      variants: the columns after BG-Gap.
      published: (name, source, accuracy by variant, BG-Gap or None) of the authors' models: those
        pretrained on ImageNet, and those trained on a variant that a model here was trained on.
      left_out: by label rule, the models that its table leaves out, and why, in words.
    """

    variants: tuple[str, ...]
    tables: dict[str, tuple[HeadlineRow, ...]]
    published: tuple[tuple[str, str, Mapping[str, float], float | None], ...]
    left_out: dict[str, str]


def make_headline(evidence: Evidence) -> Headline:
    """Makes the tables of families and of models in none, by BG-Gap.

    A model that failed gets a row with its error.
    """
    # Renderings stand in the table of the method.
    variants = tuple(str(n) for n in evidence.dataset.picture_variants if not n.rendering)
    models = tried(evidence)
    summaries = [summary for _, summary in evidence.models_with(Summary)]
    rules = rules_of(summaries)
    compared = read_rows(evidence.dataset, COMPARISONS, ComparisonRow)
    marked = {summary.folder: summary for summary in mark_best(summaries, compared)}
    figures = read_rows(evidence.dataset, FAMILIES, FamilyRow)
    families = [one for _, one in evidence.subjects if isinstance(one, Family)]
    tables = {}
    for rule in rules:
        rows = {
            model.folder: _row(model, marked.get(model.folder), rule, variants)
            for model in models
            if not (summary := model.get(Summary)) or rule in summary.label_rules
        }
        of_families = [
            _row_of_family(
                family,
                _by_gap([rows.pop(one.folder) for one in family.members]),
                figures_of(family, rule, figures),
            )
            for family in families
            if rule in family.label_rules
        ]
        tables[rule] = _by_gap([*of_families, *rows.values()])
    manifest = evidence.dataset.manifest
    return Headline(
        variants=variants,
        tables=tables,
        left_out={rule: without_rule(summaries, rule) for rule in rules},
        published=tuple(_published(models, manifest.config.segment.keeps_image_whole))
        if evidence.dataset.is_comparable
        else (),
    )


def _by_gap(rows: Iterable[HeadlineRow]) -> tuple[HeadlineRow, ...]:
    """Sorts models by BG-Gap, largest first; those without one keep their order, at the end."""
    gaps = [(row, row.cells[GAP].value) for row in rows]
    return tuple(row for row, _ in sorted(gaps, key=lambda one: (one[1] is None, -(one[1] or 0))))


def _row(
    model: ModelResults, summary: Summary | None, rule: str, variants: Sequence[str]
) -> HeadlineRow:
    cells = {GAP: HeadlineCell()}
    for variant in variants:
        row = summary.accuracy_on(variant, rule) if summary else None
        value, low, high = (row and row.estimate) or (None, None, None)
        cells[variant] = HeadlineCell(value, low, high, bool(row and row.among_best))
    gap = summary.gap(rule) if summary else None
    if gap:
        cells[GAP] = HeadlineCell(*gap.estimate)
    overlap = summary.overlap if summary else 0
    return HeadlineRow(
        model.name,
        model.errors.get("evaluate", ""),
        cells,
        smallest=gap.smallest_gap if gap and gap.smallest_gap <= 1 else None,
        is_power_shown=not (
            summary and summary.is_gap_near_zero and any(not one.has_power for one in summary.power)
        ),
        warning=f"trained on {overlap:,} of these images" if overlap else "",
        title=titled(model.name, summary) if summary else model.name,
    )


def _row_of_family(
    family: Family, seeds: tuple[HeadlineRow, ...], figures: Mapping[str, FamilyRow]
) -> HeadlineRow:
    cells = {
        column: HeadlineCell(
            row.mean,
            row.ci_low,
            row.ci_high,
            bool(row.among_best),
            tuple(value for seed in seeds if (value := seed.cells[column].value) is not None),
        )
        if (row := figures.get(BG_GAP if column == GAP else column))
        else HeadlineCell()
        for column in seeds[0].cells
    }
    # The whole interval is on one side of 0.
    is_clear = (cells[GAP].low or 0) * (cells[GAP].high or 0) > 0
    return HeadlineRow(
        family.name,
        "",
        cells,
        is_power_shown=is_clear or all(one.is_power_shown for one in seeds),
        warning=next((one.warning for one in seeds if one.warning), ""),
        title=titled(family.name, family),
        seeds=seeds,
    )


def _published(
    models: Iterable[ModelResults], keeps_image_whole: bool
) -> Iterator[tuple[str, str, Mapping[str, float], float | None]]:
    """Yields the authors' figures for the same kind of images.

    For whole images (IN-9L), only table 5 of the paper has figures.
    """
    # The authors trained whole networks, not the last layer alone.
    networks = (one for one in models if not (one.trained and one.trained.method == "probe"))
    variants = {training_of(model) for model in networks}
    for trained, row in TRAINED.items():
        if trained not in variants:
            continue
        name = f"ResNet-50 trained on {trained}"
        if keeps_image_whole:
            yield name, "paper", {"original": row["in9l"]}, None
        else:
            yield name, "paper", row, row["mixed_same"] - row["mixed_rand"]
    for entry in () if keeps_image_whole else PRETRAINED:
        yield entry.name, entry.source, entry.accuracy, entry.gap


def tried(evidence: Evidence) -> list[ModelResults]:
    """Returns the models that were evaluated, or failed."""
    return [m for m in evidence.models if m.get(Summary) or "evaluate" in m.errors]
