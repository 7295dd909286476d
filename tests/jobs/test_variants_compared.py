"""Tests gaps of the user's own variants, and conditions that compare two variants of a model."""

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from answer_files import answer_files, entries
from runs import ONE, QUICK, dataset_in, run_here, table_of
from two_way_by_hand import Method, contributions_to, interval_of, singles_of, spread_of

from pipeline.analyses.evaluation.parts import compare_accuracies, describe_models
from transforms.variants import VariantName, select_variants

pytestmark = pytest.mark.usefixtures("no_figures")

SEEDS, SINGLES = ("a#0", "a#1", "a#2"), ("b", "c")
OWN = ("haze_same", "haze_rand")
CONDITIONS = {
    "haze_same < original - 0.1": ("haze_same", "original"),
    "mixed_same<original": ("mixed_same", "original"),
    "haze_rand >= mixed_rand + 0.05": ("haze_rand", "mixed_rand"),
    "bg_gap_haze>0.1": OWN,
}
HOLDOUTS = ("", "0.6")


@pytest.fixture(scope="module")
def output(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 pictures in two draws, two variants of the user's, and results of a family, b and c."""
    root = tmp_path_factory.mktemp("hazy")
    (root / "hazy_here.py").write_text(
        "def haze_same(layer): return layer.image\ndef haze_rand(layer): return 255 - layer.image"
    )
    names = ["original", "mixed_same", "mixed_rand", *(f"python:hazy_here:{one}" for one in OWN)]
    flags = ("--variants", ",".join(names), "--replicates", 2, *QUICK, *ONE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        run_here("generate", "--input", small_sample, "--output", root / "out", *flags)
    shares = {"mixed_same": 0.7, "mixed_rand": 0.3, "haze_rand": 0.4}
    answer_files(root / "out", root, dict.fromkeys(SEEDS + SINGLES, 0.8), **shares)
    evaluate = ("evaluate", "--dataset", root / "out", "--models", entries(root, SEEDS + SINGLES))
    for holdout in HOLDOUTS:
        flags = ("--fail_if", ",".join(CONDITIONS), *(("--holdout", holdout) if holdout else ()))
        shown = run_here(*evaluate, "--pictures", "none", *flags, *ONE)
        (root / f"shown{holdout}").write_text("".join(shown))
        shutil.copy(root / "out/.in9/last_run.json", root / f"judged{holdout}")
    return root / "out"


def files_of(output: Path, labels: tuple[str, ...], holdout: str = "") -> list[list[Path]]:
    """Returns the files of predictions of each model."""
    end = f"+holdout{holdout}" if holdout else ""
    names = (f"results/*_{one.replace('#', '_')}.csv-{'?' * 8}{end}" for one in labels)
    return [sorted(output.glob(f"{name}/predictions/*")) for name in names]


def by_hand(
    output: Path, labels: tuple[str, ...], names: tuple[str, str], holdout: str, level: float
) -> tuple[float, float, float, int]:
    """Returns what the accuracy on a variant exceeds that on another by, its interval and n."""
    methods: list[tuple[float, list[float]]] = []
    every: list[dict[str, Any]] = []
    for files in files_of(output, labels, holdout):
        of = {(r["variant"], r["fg_key"]): r for f in files for r in pq.read_table(f).to_pylist()}
        tested = {key for _, key in of}
        pairs = []
        for draw, key in itertools.product(range(2), sorted(tested)):
            drawn = [(str(VariantName(name, draw=draw)), key) for name in names]
            both = zip(drawn, names, strict=True)
            if of.keys() & set(drawn):
                pairs.append([of.get(one) or of[name, key] for one, name in both])
        pairs = [p for p in pairs if not holdout or all(r["bg_key"] in {None, *tested} for r in p)]
        right = np.asarray([[row["correct"] for row in pair] for pair in pairs]).T
        means = right.mean(axis=1)
        r = (right - means[:, np.newaxis]) / len(pairs) * [[1], [-1]]
        methods.append((float(means[0] - means[1]), r.ravel().tolist()))
        every = [pair[side] for side in range(2) for pair in pairs]
    # A picture without another background has its own.
    is_drawn = any(row["bg_key"] for row in every)
    units = [(r["fg_key"], r["bg_key"] or (r["fg_key"] if is_drawn else None)) for r in every]
    method = Method(*map(list, zip(*methods, strict=True)))
    value, total = float(np.mean(method.values)), contributions_to([method])
    rows = [(*of_picture, x) for of_picture, x in zip(units, total, strict=True)]
    pairs, singles = [*range(len(every) // 2)] * 2, singles_of([method])
    spread = spread_of(units, [method]) if len(labels) > 1 else None
    ends = interval_of(value, rows, pairs, spread, singles, level)
    return value, *ends, len({row["fg_key"] for row in every})


@pytest.mark.parametrize("holdout", HOLDOUTS)
def test_a_condition_on_two_variants_is_their_paired_difference(output: Path, holdout: str) -> None:
    shown = (output.parent / f"shown{holdout}").read_text()
    judged = json.loads((output.parent / f"judged{holdout}").read_text())["summary"]["fail_if"]
    assert len(judged) == 3 * len(CONDITIONS)
    for one in judged:
        labels = SEEDS if one["trainings"] == 3 else (one["model"][:1],)
        names, level = CONDITIONS[one["condition"]], 1 - 0.05 / len(judged)
        value, low, high, n = by_hand(output, labels, names, holdout, level)
        assert (one["value"], one["confidence"], one["n"]) == pytest.approx((value, level, n))
        assert (one["ci_low"], one["ci_high"]) == pytest.approx((low, high), abs=1e-8)
        words = f" {'below' if value < 0 else 'above'} {names[1]}, 99.58 % interval ["
        words = f"{abs(100 * value):.1f} points{words}"
        assert (words in shown) == ("haze>" not in one["condition"])
    assert (len({one["n"] for one in judged}) > 1) == bool(holdout)


def test_a_gap_of_the_users_stands_where_bg_gap_does(output: Path, tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("*holdout*")
    here = Path(shutil.copytree(output, tmp_path / "out", ignore=ignored))
    # Backgrounds that have names are units.
    for path in (path for of in files_of(here, SEEDS + SINGLES) for path in of):
        table = pq.read_table(path)
        rows = table.to_pylist()
        for position, row in enumerate(row for row in rows if row["variant"] in OWN):
            row["bg_key"] = f"room {position % 7}"
        pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    flags = ("--columns", "original,bg_gap_haze", "--pictures", "none", "--baseline", "b")
    shown = run_here("report", "--dataset", here, *flags, "--fail_if", "bg_gap_haze<baseline-0.9")
    assert re.search(r"accuracy, % .* BG-Gap +BG-Gap haze\n", shown.out)
    assert re.search(r"minus b, points .* BG-Gap +BG-Gap haze +detectable\n", shown.out)
    # Too few units decide nothing.
    assert "bg_gap_haze<baseline-0.9 is open for c: " in shown.out
    b, c = (by_hand(here, (name,), OWN, "", 0.95)[:3] for name in SINGLES)
    for table, name, figure, expected in (
        ("gaps", "b", "gap", b),
        ("families", "a", "mean", by_hand(here, SEEDS, OWN, "", 0.95)[:3]),
        ("comparisons", "b", "difference", (b[0] - c[0],)),
        ("baseline", "c", "difference", (c[0] - b[0],)),
    ):
        rows = [row for row in table_of(here, table) if row["variant"] == "bg_gap_haze"]
        (row,) = (row for row in rows if next(iter(row.values())) == name)
        found = [float(row[one]) for one in (figure, "ci_low", "ci_high")][: len(expected)]
        assert found == pytest.approx(expected, abs=1e-8)
    assert r"\shortstack[r]{BG-Gap\\haze}" in (here / "results/latex/headline.tex").read_text()
    assert (here / "report.html").read_text().count('data-label="BG-Gap haze"') >= 5 + 2
    changed = describe_models(*compare_accuracies(dataset_in(here), dataset_in(here), []))
    assert "BG-Gap haze of b: 0.0 [0.0, 0.0] (cause unknown)" in changed.short
    assert changed.lines[5].endswith(" | haze_same | BG-Gap haze | BG-Gap |")


def test_names_of_gaps_and_of_the_baseline_are_reserved() -> None:
    for name in ("baseline", "bg_gap", "bg_gap_haze"):
        with pytest.raises(ValueError, match=f"the name '{name}' is taken"):
            select_variants(["original", f"python:mine:{name}@1"])
