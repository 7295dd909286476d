"""The trend: accuracy on the variants against accuracy on ImageNet, over all models.

Writes results/trend.csv and results/trend.json. The trend follows figure 8 of the paper.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.analyses.imagenet.imagenet_results import PUBLISHED_N, Top1, comparable_top1
from pipeline.evaluate.contributions import BG_GAP, ModelsOnSameImages
from pipeline.evaluate.result_files import display_name, write_result
from pipeline.storage.csv_file import write_csv
from pipeline.storage.store import Store
from transforms.scoring import LABEL_RULES, PAPER_RULE
from transforms.taxonomy import Taxonomy
from transforms.trend import MIN_MODELS, fit_line

TREND = "results/trend.json"

TREND_VARIANTS = ("only_bg_t", "mixed_next", "mixed_rand", "mixed_same", "no_fg")
"""Variants of the paper's figure, in the figure's order."""

TREND_COLUMNS = (
    "model",
    "variant",
    "imagenet_top1",
    "imagenet_source",
    "imagenet_n",
    "imagenet_input_size",
    "input_size",
    "accuracy",
    "ci_low",
    "ci_high",
    "n",
    "label_rule",
)
"""Columns of trend.csv. `variant` may be `bg_gap`, whose `accuracy` is the gap; all accuracies
and bounds are fractions; accuracies on ImageNet are empty if unknown."""

_NAMED = 4
"""Largest number of models that a note names."""

_SETTINGS = ("split", "eval_input", "precision", "holdout")


def write_trend(
    store: Store,
    dataset: str,
    summaries: Sequence[Mapping[str, Any]],
    taxonomy: Taxonomy,
    measured: Sequence[ModelsOnSameImages],
) -> dict[str, Any]:
    """Rebuilds the trend from the summaries. The caller holds the lock of the tables.

    Args:
      store: the dataset folder.
      dataset: the dataset's fingerprint.
      summaries: summaries of all models on this dataset.
      taxonomy: classes of ImageNet models.
      measured: contributions of the models, from `read_contributions` with these summaries; lines
        are fitted over those of the models whose accuracy on ImageNet is known.

    Returns:
      Content of trend.json, under the paper's label rule: `points`, fitted `lines`, `left_out`
      (names of models that were run with other settings than most), and `notes`.
    """
    kept, left_out = _alike(summaries)
    top1, choice = comparable_top1(store, kept, len(taxonomy.wnids))
    rows = [row for pair in zip(kept, top1, strict=True) for row in _points(*pair)]
    write_csv(store, "trend", TREND_COLUMNS, rows)
    points = [row for row in rows if row["label_rule"] == PAPER_RULE]
    lines = [
        line
        for variant in (*TREND_VARIANTS, BG_GAP)
        for line in _line(zip(kept, top1, strict=True), measured, variant)
    ]
    trend = {
        "dataset": dataset,
        "label_rule": PAPER_RULE,
        "points": points,
        "lines": lines,
        "left_out": left_out,
        "notes": _notes(points) + ([choice] if choice else []),
    }
    write_result(store, TREND, trend)
    return trend


def remove_trend(store: Store) -> None:
    """Deletes the trend, because other classes than ImageNet-9's have no relation to accuracy on
    ImageNet."""
    for path in (TREND, "results/trend.csv"):
        store.delete(path)


def _alike(
    summaries: Sequence[Mapping[str, Any]],
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Selects the summaries with the most common settings, so that no model counts twice; returns
    these summaries, and the names of the models with other settings."""
    counts = Counter(_settings(s) for s in summaries)
    if not counts:
        return [], []
    # Of equally common settings, `max` keeps the first.
    common = max(counts, key=lambda settings: counts[settings])
    kept = [s for s in summaries if _settings(s) == common]
    return kept, [display_name(s) for s in summaries if s not in kept]


def _settings(summary: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns the settings that a model was run with; a `holdout` of None means all images."""
    return tuple(summary["evaluation"].get(name) for name in _SETTINGS)


def _points(summary: Mapping[str, Any], top1: Top1 | None) -> Iterator[dict[str, Any]]:
    """Yields a model's rows of trend.csv: for each label rule, a row for each variant and for
    BG-Gap."""
    shared = {
        "model": summary["model"],
        "imagenet_top1": top1.value if top1 else None,
        "imagenet_source": top1.source if top1 else None,
        "imagenet_n": top1.n if top1 else None,
        "imagenet_input_size": top1.input_size if top1 else None,
        "input_size": summary["evaluation"]["input_size"],
    }
    accuracy = {(row["label_rule"], row["variant"]): row for row in summary["accuracy"]}
    gaps = {row["label_rule"]: row for row in summary["gaps"]}
    for rule in LABEL_RULES:
        for variant in TREND_VARIANTS:
            row = accuracy.get((rule, variant))
            if row and row["n"]:
                values = {name: row[name] for name in ("accuracy", "ci_low", "ci_high", "n")}
                yield {**shared, "variant": variant, **values, "label_rule": rule}
        if rule in gaps:
            gap = gaps[rule]
            values = {"accuracy": gap["gap"]}
            values |= {name: gap[name] for name in ("ci_low", "ci_high", "n")}
            yield {**shared, "variant": BG_GAP, **values, "label_rule": rule}


def _line(
    models: Iterable[tuple[Mapping[str, Any], Top1 | None]],
    measured: Sequence[ModelsOnSameImages],
    variant: str,
) -> Iterator[dict[str, Any]]:
    """Yields the best-fit line of a variant, unless too few models have known accuracies."""
    known = [(summary, top1.value) for summary, top1 in models if top1]
    for part in measured:
        if (PAPER_RULE, variant) not in part.quantities:
            continue
        indices, values, r = part.contributions(PAPER_RULE, variant)
        # Summaries cannot be keys of a dictionary, so their identities are.
        row_of = {id(part.summaries[index]): row for row, index in enumerate(indices)}
        points = [(row_of[id(summary)], value) for summary, value in known if id(summary) in row_of]
        if len(points) < MIN_MODELS:
            continue
        chosen = [row for row, _ in points]
        line = fit_line(
            [top1 for _, top1 in points], values[chosen], part.roles(variant).sums(r[chosen])
        )
        if line:
            yield {"variant": variant, **dataclasses.asdict(line)}


def _notes(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Writes the notes that a reader needs to understand the points and lines."""
    sources = {p["model"]: (p["imagenet_source"], p["imagenet_n"]) for p in points}
    known = {model: source for model, source in sources.items() if source[0]}
    notes = []
    if len(known) < len(sources):
        unknown = [model for model in sources if model not in known]
        notes.append(f"no accuracy on ImageNet is known for {', '.join(unknown)}")
    if points and len(known) < MIN_MODELS:
        notes.append(
            f"lines need at least {MIN_MODELS} models whose accuracy on ImageNet is known; "
            f"there {'is' if len(known) == 1 else 'are'} {len(known)}"
        )
    elif known:
        notes.append(
            "intervals of slopes allow for other models and other images; they treat models as "
            "independent, which models of one family are not"
        )
    others = {
        p["model"]: f"{p['model']} ({p['imagenet_input_size']} px, here {p['input_size']})"
        for p in points
        if p["imagenet_input_size"] not in (None, p["input_size"])
    }
    if others:
        shown = ", ".join(list(others.values())[:_NAMED])
        more = f" and {len(others) - _NAMED} more (trend.csv)" if len(others) > _NAMED else ""
        notes.append(
            "accuracy on ImageNet was measured at another input size than these pictures have for "
            f"{shown}{more}; it might be higher or lower at the size of these pictures"
        )
    by_source = Counter(source.partition(",")[0] for source, _ in known.values())
    if by_source:
        shown = "; ".join(f"{source} ({n})" for source, n in sorted(by_source.items()))
        notes.append(f"sources of accuracies on ImageNet, with numbers of models: {shown}")
    if any(n < PUBLISHED_N for _, n in known.values()):
        notes.append(
            f"some accuracies on ImageNet were measured on fewer than the {PUBLISHED_N:,} "
            "validation images; their errors make lines flatter"
        )
    return notes
