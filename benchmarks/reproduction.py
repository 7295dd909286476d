"""Compares published figures with a dataset's results: the tables of `REPRODUCTION.md`.

    python benchmarks/reproduction.py DATASET [--to benchmarks/REPRODUCTION.md]

It reads the results of `in9 run`, `attack`, `saliency` and `matrix` without running anything, and
writes the tables between the two marks of the page, or prints them. Claims are judged by the same
code as in the report.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from measure import commit

from pipeline.analyses.attack.results import AttackResult
from pipeline.analyses.evaluation.panel import make_headline
from pipeline.analyses.imagenet.results import Trend
from pipeline.analyses.matrix.results import Matrix
from pipeline.analyses.saliency.results import SaliencyResult
from pipeline.dataset.folder import Dataset
from pipeline.display.table import TIMES
from pipeline.evaluate import evidence as published
from pipeline.evaluate.comparisons import GAP
from pipeline.evaluate.evidence import Evidence
from pipeline.evaluate.summary import Summary
from pipeline.report.page import SECTIONS, CheckedClaim, check_claims, percent, rounded
from pipeline.report.write import gather
from pipeline.storage.store import Store
from transforms.scoring import PAPER_RULE

BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
_UNITS = {"percent": " %", "points": " points", "slope": ""}


def interval(value: float | None, low: float | None, high: float | None, unit: str = "") -> str:
    """Formats a fraction in percent, or a slope, with its interval if it has one."""
    if value is None or low is None or high is None:
        return "-"
    shown = rounded if unit == "slope" else percent
    span = f" [{shown(low)}, {shown(high)}]" if low != high else ""
    return f"{shown(value)}{_UNITS.get(unit, '')}{span}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yields the lines of a Markdown table."""
    for cells in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(cells)} |"
    yield ""


def measured_on(evidence: Evidence) -> Iterator[str]:
    """Yields lines on the data behind the figures."""
    dataset = evidence.dataset
    manifest = dataset.manifest
    yield f"Made at commit {commit()}, of dataset {manifest.fingerprint[:12]}:"
    yield ""
    for split, counts in manifest.images.items():
        total = counts["accepted"] + counts["rejected"]
        yield f"* {split}: {counts['accepted']:,} of {total:,} images pass the filters;"
    gaps = [(model.name, summary.gap()) for model, summary in evidence.models_with(Summary)]
    for images, draws in sorted({(gap.n, gap.replicates) for _, gap in gaps if gap}):
        names = [name for name, gap in gaps if gap and gap.n == images]
        words = f"{images:,} images, {draws} draws of backgrounds"
        yield f"* accuracies and BG-Gap of {words}: {', '.join(names)};"
    for matrix in evidence.get(Matrix):
        tested = ", ".join(f"{n:,}" for n in sorted({row.n for row in matrix.rows}))
        yield f"* matrix {matrix.name}: each cell of {tested} images;"
    explained = evidence.models_with(SaliencyResult)
    for images in sorted({result.images for _, result in explained}):
        names = [model.name for model, result in explained if result.images == images]
        yield f"* saliency of {images:,} images: {', '.join(names)};"
    for trend in evidence.get(Trend):
        # Only the kind of source is listed, without the table that follows the colon.
        kinds = {str(point.imagenet_source).partition(":")[0] for point in trend.points}
        yield f"* accuracy on ImageNet, for the trend: {', '.join(sorted(kinds))}."
    yield ""


def claims(checked: Sequence[CheckedClaim], matrices: Sequence[Matrix]) -> Iterator[str]:
    """Yields a table for each question of the post; names the matrix only if there are several."""
    matrix_prefix = f"{matrices[0].name}, " if len(matrices) == 1 else ""
    for section, question in SECTIONS.items():
        yield f"## {section}. {question}"
        yield ""
        rows = []
        for one in (each for each in checked if each.claim.place[0] == section):
            findings = [
                f"{interval(each.value, each.low, each.high, one.claim.unit)} "
                f"({each.subject.removeprefix(matrix_prefix)})"
                + (f": {each.verdict}" if each.verdict != one.verdict else "")
                for each in one.findings
            ]
            rows.append(
                (
                    f"{one.claim.text} ({one.claim.source})",
                    one.claim.published,
                    "<br>".join(findings) or "-",
                    f"{one.summary}<br>({one.claim.judged})",
                    f"`{' '.join(one.claim.command.split()[:2])}`",
                )
            )
        yield from table(("claim", "published", "ours", "verdict (judged by)", "made by"), rows)


def pretrained(evidence: Evidence) -> Iterator[str]:
    """Yields accuracies and gaps of the authors' pretrained models and of the evaluated ones."""
    head = make_headline(evidence)
    variants = ("original", "only_bg_t", "mixed_same", "mixed_rand")
    yield "## Models trained on ImageNet (paper table 2, README), %"
    yield ""
    rows = [
        [f"{model} ({source})"]
        + [percent(by_variant[name]) if name in by_variant else "-" for name in variants]
        + [percent(gap)]
        for model, source, by_variant, gap in head.published
    ]
    for row in head.tables[PAPER_RULE]:
        cells = [row.cells[variant] for variant in (*variants, GAP) if variant in row.cells]
        rows.append([f"**{row.name}**", *(interval(c.value, c.low, c.high) for c in cells)])
    yield from table(("model", *variants, GAP), rows)


def trained(matrix: Matrix) -> Iterator[str]:
    """Yields a matrix beside the paper's table 5."""
    cells = {(row.train_variant, row.test_variant): row for row in matrix.rows}
    estimates = filter(None, (cell.estimate for cell in cells.values()))
    widest = max(((high - low) / 2 for _, low, high in estimates), default=0.0)
    yield f"## Train on the row, test on the column (paper table 5): {matrix.name}"
    yield ""
    yield (
        f"Ours is a {matrix.method} of {matrix.arch}, up to {100 * widest:.1f} points to "
        "either side (95 %); the paper's ResNet-50 in brackets. %"
    )
    yield ""
    rows = []
    for name in published.TRAINED:
        row = [f"`{name}`"]
        for tested in published.TABLE_5_NAMES:
            cell = cells.get((name, tested))
            ours = percent(cell.accuracy) if cell else "-"
            row.append(f"{ours} ({percent(published.TRAINED[name][tested], 2)})")
        rows.append(row)
    yield from table(("", *published.TABLE_5_NAMES.values()), rows)


def adversarial(evidence: Evidence) -> Iterator[str]:
    """Yields attacks beside the authors'."""
    yield "## Adversarial backgrounds (paper, README), %"
    yield ""
    full = f"{published.FULL_GRID:,} {TIMES} {published.FULL_GRID:,}"
    classes = evidence.taxonomy.names
    rows = [
        ["ResNet-50", full, percent(published.FOOLED), percent(published.CHALLENGE["ResNet-50"])]
        + ["-"] * len(classes),
        ["ResNet-50, IN-9L", full, "-", percent(published.CHALLENGE["ResNet-50 (IN-9L)"])]
        + [percent(share, 2) for share in published.FOOLED_BY_CLASS],
    ]
    for model, attack in evidence.models_with(AttackResult):
        one = attack.measures
        by_class = {row.label: row.fooled for row in one.by_class}
        bounds = (
            (one.fooled, one.fooled_ci_low, one.fooled_ci_high),
            (one.challenge_accuracy, one.challenge_ci_low, one.challenge_ci_high),
        )
        rows.append(
            [f"**{model.name}**", attack.size, *(interval(*b) for b in bounds)]
            + [percent(by_class.get(label)) for label in range(len(classes))]
        )
    yield from table(("model", "grid", "fooled", "challenge accuracy", *classes), rows)


def tables(evidence: Evidence) -> Iterator[str]:
    """Yields all lines between the marks."""
    yield from measured_on(evidence)
    yield from claims(check_claims(evidence), evidence.get(Matrix))
    yield from pretrained(evidence)
    for matrix in evidence.get(Matrix):
        yield from trained(matrix)
    yield from adversarial(evidence)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="folder with results")
    parser.add_argument("--to", type=Path, help="page to write into (prints the tables)")
    arguments = parser.parse_args()
    dataset = Dataset.open(Store(arguments.dataset))
    lines = "\n".join(tables(gather(dataset, dataset.taxonomy)))
    if arguments.to is None:
        sys.stdout.write(lines)
        return
    before, _, rest = arguments.to.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    text = f"{before}{BEGIN}\n\n{lines}\n{END}{after}"
    arguments.to.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
