"""Tables of results as text, aligned for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.evaluate.result_files import display_name, interval
from transforms.scoring import PAPER_RULE


def accuracy_table(summaries: list[dict[str, Any]]) -> str:
    """Formats a table of models x variants and BG-Gap, in percent under the paper's label rule.
    Figures are means over draws."""
    variants: list[str] = []
    for summary in summaries:
        for row in summary["accuracy"]:
            if row["variant"] not in variants:
                variants.append(row["variant"])
    table = [["accuracy, %", *variants, "BG-Gap"]]
    for summary in summaries:
        accuracy = {
            row["variant"]: f"{100 * row['accuracy']:.1f}"
            for row in summary["accuracy"]
            if row["label_rule"] == PAPER_RULE and row["n"]
        }
        gaps = [
            interval(row["gap"], row["ci_low"], row["ci_high"])
            for row in summary["gaps"]
            if row["label_rule"] == PAPER_RULE
        ]
        cells = [accuracy.get(variant, "-") for variant in variants]
        table.append([display_name(summary), *cells, gaps[0] if gaps else "-"])
    return aligned(table)


def saliency_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Formats a table of each model's share of saliency inside the mask, the mask's share of the
    pixels, and the ratio of the two."""
    table = [["saliency", "inside the mask, %", "mask, % of pixels", "ratio", "images"]]
    for content in results:
        mass = interval(content["mass_in_mask"], content["ci_low"], content["ci_high"])
        # Without saliency there is no area, and without any mask the ratio is undefined.
        area, ratio = (
            "-" if content[name] is None else f"{factor * content[name]:.{digits}f}"
            for name, factor, digits in (("mask_area", 100, 1), ("concentration", 1, 2))
        )
        table.append([display_name(content), mass, area, ratio, str(content["images"])])
    return aligned(table)


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Aligns the cells of a table: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    )


def attack_table(attacks: Sequence[Mapping[str, Any]]) -> str:
    """Formats a table of each model's attack measures, in percent under the paper's label rule,
    with the size of the grid."""
    table = [["adversarial backgrounds, %", "challenge accuracy", "fooled", "grid", "forwards"]]
    for attack in attacks:
        rule = attack["rules"][PAPER_RULE]
        grid = f"{attack['foregrounds']} x {attack['backgrounds']}"
        challenge, fooled = (
            interval(rule[name], rule[f"{part}_ci_low"], rule[f"{part}_ci_high"])
            for name, part in (("challenge_accuracy", "challenge"), ("fooled", "fooled"))
        )
        table.append([display_name(attack), challenge, fooled, grid, str(attack["forwards"])])
    return aligned(table)
