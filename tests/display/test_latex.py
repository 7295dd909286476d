"""Tests LaTeX tables of made-up results: their width, and which models they show."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import timm
from made_results import made
from matplotlib import get_data_path
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from runs import cells_of_latex

from pipeline.analyses.evaluation.tables import latex_tables
from pipeline.evaluate.comparisons import ComparisonRow
from pipeline.evaluate.subjects import IN_BOLD, mark_best
from pipeline.evaluate.summary import Summary
from transforms.analysis import KINDS
from transforms.scoring import PAPER_RULE
from transforms.taxonomy import imagenet9
from transforms.variants import PICTURES

HOW = {"split": "val", "eval_input": "native", "precision": "bf16"}


def summary(model: str, **parts: Any) -> Summary:
    return made(Summary, model=model, evaluation=HOW, label_rules=(PAPER_RULE,), **parts)


def row(**of: object) -> dict[str, Any]:
    return {"label_rule": PAPER_RULE, "ci_low": -0.876, "ci_high": -0.234, **of}


def test_models_without_results_are_in_no_table() -> None:
    good = summary("resnet18.a1", accuracy=[row(variant="original", accuracy=0.5)])
    bad = summary("resnet50.a1\n\\input{x}")
    text = latex_tables([bad, good], ["dog"])["headline"]
    names = [line[0] for line in cells_of_latex(text)[1:]]
    assert names == ["resnet18", r"\scriptsize a1 native bf16"]
    # The comment ends with its line.
    assert "so left out: resnet50 a1\\textbackslash{}n\\textbackslash{}input" in text
    assert not re.search(r"^\\input", text, re.MULTILINE)


def test_bold_is_the_best_and_a_star_is_significant_in_all_tables() -> None:
    """Two models that cannot be told apart, one of which names single classes better or worse."""
    summaries = [
        summary(
            f"resnet{layers}",
            accuracy=[row(variant=name, accuracy=0.5, n=400) for name in PICTURES],
            per_class=[
                row(variant="original", class_name="dog", accuracy=0.5, p_adjusted=p_adjusted)
            ],
        )
        for layers, p_adjusted in ((18, 0.01), (50, 0.5))
    ]
    pairs = [
        made(
            ComparisonRow,
            first="resnet18 native bf16",
            second="resnet50 native bf16",
            label_rule=PAPER_RULE,
            variant=name,
            p_adjusted=1.0,
        )
        for name in PICTURES
    ]
    tables = latex_tables(mark_best(summaries, pairs)[0], ["dog"], PICTURES)
    heads, numbers = cells_of_latex(tables["headline"])[0], cells_of_latex(tables["headline"])[1]
    assert numbers[1] == r"$\mathbf{50.0}$"
    of_variant = dict(zip(heads, numbers, strict=True))
    assert {r"\mathbf" in number for head, number in of_variant.items() if "BG" in head} == {False}
    assert tables["headline"].count(r"\mathbf") == 2 * (len(PICTURES) - 3)
    assert IN_BOLD in tables["headline"]
    assert [line[1] for line in cells_of_latex(tables["per_class_original"])[1::2]] == [
        r"$50.0$\rlap{$^*$}",
        r"$50.0$",
    ]


def test_a_model_is_left_out_of_the_tables_that_have_no_figures_of_it_alone() -> None:
    """The comment is about the table, because the model has results in others."""
    good = summary("resnet18.a1", accuracy=[row(variant="original", accuracy=0.5)])
    other = summary("resnet50.a1", accuracy=[row(variant="no_fg", accuracy=0.5)])
    for columns, is_told in ((["original"], True), (["original", "no_fg"], False)):
        text = latex_tables([good, other], ["dog"], columns)["headline"]
        told = "% No figures in this table, so left out: resnet50 a1 native bf16\n"
        assert (told in text) == is_told
        assert "without" not in text.lower()


def test_folders_are_left_out_of_names_unless_they_tell_models_apart() -> None:
    models = ("onnx:a/b.onnx", "hf:org/net", "resnet18=x/net.pth", "resnet50=x/n.pth")
    accuracy = [row(variant="original", accuracy=0.5)]
    summaries = [summary(model, accuracy=accuracy) for model in (*models, "resnet50=y/n.pth")]
    names = [line[0] for line in cells_of_latex(latex_tables(summaries, ["dog"])["headline"])[1:]]
    assert names[::2] == ["b.onnx", "org/net", "resnet18", "resnet50", "resnet50"]
    sources = [name.split()[1] for name in names[1::2]]
    assert sources == ["onnx", "hf", "net.pth", "x/n.pth", "y/n.pth"]


@functools.cache
def width_of(cell: str) -> float:
    """Measures the widest line of a cell in Computer Modern, in points."""
    stacked = re.search(r"\\shortstack\[r\]\{(.*)\}", cell)
    # The small sizes of the font are wider than its large size scaled down.
    size = 8 if "scriptsize" in cell else 8.5 if "footnotesize" in cell else 10
    lines = stacked[1].split("\\\\") if stacked else [cell]
    # A star is set over the margin, without width.
    small = r"\\rlap\{\$\^\*\$\}|\\(scriptsize|footnotesize|mathbf)|[\\{}$]"
    plain = [re.sub(small, "", line) for line in lines]
    font = FontProperties(fname=Path(get_data_path(), "fonts", "ttf", "cmr10.ttf"))
    paths = [TextPath((0, 0), line.strip(), size, prop=font) for line in plain if line.strip()]
    return max((path.get_extents().width for path in paths), default=0.0)


def test_tables_fit_into_the_text_of_a_paper() -> None:
    classes = [*imagenet9().names, "Great spotted woodpecker", "transportation"]
    names = [name for name in timm.list_models() if name.startswith(("vit", "mobilenet"))]
    names = sorted(names, key=len)[-12:]
    names += [f"{name}={'long/' * 9}{name}.safetensors" for name in names[:3]]
    summaries = [
        summary(
            name,
            accuracy=[row(variant=variant, accuracy=1.0) for variant in PICTURES],
            gaps=[row(gap=-0.567)],
            decomposition=[row(kind=kind, share=1.0, images=9) for kind in KINDS],
            per_class=[
                row(variant="original", class_name=each, accuracy=1.0, p_adjusted=0.01)
                for each in classes
            ],
        )
        for name in names
    ]
    tables = latex_tables(summaries, classes, [*PICTURES, "bg_gap"])
    for name in ("headline", "decomposition", "per_class_original"):
        columns = zip(*cells_of_latex(tables[name]), strict=True)
        width = sum(max(map(width_of, column)) for column in columns) + 5 * 8
        # TeX sets it up to 6 % wider, because of bold digits and spaces after commas.
        assert 300 < 1.06 * width < 5.5 * 72.27, name
