"""Tests `in9 method`: the same pairs in all renderings, and renderings that are not stored."""

import collections
import dataclasses
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import (
    ONE,
    QUICK,
    TINY_MODEL,
    darken,
    dataset_in,
    index_of,
    keys,
    made_once,
    manifest_of,
    pictures_of,
    pixels_of,
    refusal,
    run_here,
    run_in9,
    table_of,
    write_all,
)

from pipeline.analyses.renderings.figures import make_plots
from pipeline.analyses.renderings.results import HOLES, mean_of_models, read_renderings
from pipeline.evaluate.predictions import EvalImages, read_predictions
from pipeline.evaluate.results import ModelRun, read_results
from pipeline.generate.composed import ComposedDataset
from pipeline.report.write import gather
from transforms.analysis import compare_gaps
from transforms.codec import decode_image
from transforms.renderings import RENDERINGS
from transforms.taxonomy import imagenet9
from transforms.two_way import Roles
from transforms.variants import VariantName

pytestmark = pytest.mark.usefixtures("no_figures")

METHOD = ("method", *TINY_MODEL, "--pictures", "none", "--dataset")
FIRST, SECOND = (f"python:tiny_models:{name}" for name in ("first", "second"))


def method_of(models: str, output: Path, *flags: object) -> str:
    """Runs `in9 method` with other models in this process; returns what it prints."""
    return run_here(METHOD[0], "--models", models, *METHOD[3:], output, *flags).out


@pytest.fixture(scope="module")
def stored(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with two draws of all renderings, and the results of two models in them."""

    def make(out: Path) -> None:
        shutil.copytree(rendered, out)
        method_of(f"{FIRST},{SECOND}", out)

    return made_once(tmp_path_factory, "method-stored", make)


@pytest.fixture(scope="module")
def composed(for_gaps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with one draw of the paper's method alone, and a model's results in two draws."""

    def make(out: Path) -> None:
        shutil.copytree(for_gaps, out)
        run_here(*METHOD, out, "--replicates", 2)

    return made_once(tmp_path_factory, "method-composed", make)


def predictions_of(output: Path, model: str = "*first*") -> dict[tuple[str, ...], list[Any]]:
    columns = ("prediction", "bg_key", "output", "top1_score", "true_score")
    return {
        (row["label_rule"], row["variant"], row["key"]): [row[name] for name in columns]
        for path in sorted(output.glob(f"results/{model}/method/*.parquet"))
        for row in pq.read_table(path).to_pylist()
    }


def test_what_is_composed_is_predicted_as_what_is_stored(stored: Path, composed: Path) -> None:
    predicted = predictions_of(stored)
    assert {variant for _, variant, _ in predicted} == {
        f"{base}{rendering and '_'}{rendering}{draw}"
        for base in ("mixed_same", "mixed_rand")
        for rendering in ("", *RENDERINGS)
        for draw in ("", "_r1")
    }
    assert predicted == predictions_of(composed)
    rows, others = (table_of(output, "method", model=FIRST) for output in (stored, composed))
    assert [row | {"dataset": ""} for row in rows] == [row | {"dataset": ""} for row in others]


def test_predictions_of_the_evaluation_are_taken_over(stored: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(stored, tmp_path / "out"))
    before = predictions_of(output)
    shutil.rmtree(output / "results")
    run_here("evaluate", *METHOD[1:], output)
    assert "renderings predicted" not in run_here(*METHOD, output).out
    assert predictions_of(output) == before
    # The units of a rendering's intervals are its base's.
    dataset, (run,) = dataset_in(output), read_results(dataset_in(output).store, "model", ModelRun)
    predictions = read_predictions(dataset, EvalImages.read(dataset, "val"), run)
    for of_rule in predictions.by_rule.values():
        for name, units in of_rule.bg_units.items():
            np.testing.assert_array_equal(units, of_rule.bg_units[name.pairs])
    write_all(output, "none")
    assert 'id="method-title"' in (output / "report.html").read_text()
    assert "feather" in (output / "results/latex/method.tex").read_text()
    # The table of accuracies has no column for a rendering, but summary.csv has its rows.
    assert "mixed_same_telea" in {row["variant"] for row in table_of(output, "summary")}
    assert "telea" not in (output / "results/latex/headline.tex").read_text()


def check_rows(output: Path) -> dict[tuple[str, ...], dict[str, str]]:
    """Computes accuracies, gaps and differences of all rows from predictions; returns the rows."""
    index = {row["key"]: row for row in index_of(output)}
    rows = {
        (row["label_rule"], row["rendering"], row["hole"]): row
        for row in table_of(output, "method", model=FIRST)
    }
    # Each picture: its rule, rendering and base, the share of its background's box, and the answer.
    pictures = []
    for (rule, name, key), (prediction, bg_key, *_) in predictions_of(output).items():
        x0, y0, x1, y1 = index[bg_key]["box"]
        parsed, share = VariantName.parse(name), (x1 - x0) * (y1 - y0) / 64**2
        of_rendering = rule, parsed.rendering or "paper", parsed.base
        pictures.append((of_rendering, share, prediction == index[key]["label"]))
    for (rule, rendering, hole), row in rows.items():
        low, high = float(row["hole_low"] or 0), float(row["hole_high"] or 1)
        means = {}
        for base in ("mixed_same", "mixed_rand"):
            wanted = rule, rendering, base
            answers = [right for of, at, right in pictures if of == wanted and low <= at <= high]
            means[base] = float(np.mean(answers))
            assert float(row[base]) == pytest.approx(means[base])
        gap = means["mixed_same"] - means["mixed_rand"]
        assert float(row["gap"]) == pytest.approx(gap)
        if rendering in ("paper", "common"):
            assert row["difference"] == row["p_adjusted"] == ""
            continue
        beside = float(rows[rule, "common" if rendering == "against" else "paper", hole]["gap"])
        assert float(row["difference"]) == pytest.approx(gap - beside)
    return rows


def test_a_row_is_the_difference_at_the_same_draws(stored: Path) -> None:
    rows = check_rows(stored)
    assert {hole for *_, hole in rows} == set(HOLES)
    for (_, rendering, hole), row in rows.items():
        assert (row["seed_sd"] != "") == (hole == "all") or rendering == "paper"


Picture = tuple[str, int, str]
"""(base, draw, key) of a picture."""


def shares_right(
    output: Path, folders: list[str], rule: str
) -> tuple[dict[str, dict[Picture, float]], dict[Picture, str]]:
    """Returns the share of models that are right, by rendering and picture, and its background."""
    of_models = [predictions_of(output, folder) for folder in folders]
    label_of = {row["key"]: row["label"] for row in index_of(output)}
    right: dict[str, dict[Picture, float]] = {}
    backgrounds = {}
    for (of_rule, name, key), (_, bg_key, *_) in sorted(of_models[0].items()):
        if of_rule == rule:
            base, rendering, draw = dataclasses.astuple(VariantName.parse(name))
            answers = [predicted[of_rule, name, key][0] for predicted in of_models]
            share = answers.count(label_of[key]) / len(answers)
            right.setdefault(rendering, {})[base, draw, key] = share
            backgrounds[base, draw, key] = bg_key
    return right, backgrounds


@pytest.mark.parametrize(
    ("model", "folders"),
    [(FIRST, ["*first*"]), ("mean of 2 models", ["*first*", "*second*"])],
)
def test_intervals_and_p_values_are_of_the_pictures_units(
    stored: Path, model: str, folders: list[str]
) -> None:
    index = {row["key"]: row for row in index_of(stored)}
    numbers, rule = {key: number for number, key in enumerate(index)}, "mapped_only"
    right, backgrounds = shares_right(stored, folders, rule)
    pictures = sorted(backgrounds)
    roles = Roles.from_units(
        np.array([numbers[key] for *_, key in pictures]),
        np.array([numbers[backgrounds[picture]] for picture in pictures]),
        np.unique([f"{draw} {key}" for _, draw, key in pictures], return_inverse=True)[1],
    )
    is_same = np.array([base == "mixed_same" for base, *_ in pictures])
    correct = np.array([[right[name][p] for p in pictures] for name in ("", *RENDERINGS)])
    compared = compare_gaps(correct, is_same, roles)
    rows = {
        row["rendering"]: row
        for row in table_of(stored, "method", model=model, label_rule=rule, hole="all")
    }
    for column in ("difference", "difference_low", "difference_high", "p_adjusted"):
        actual = [float(rows[name][column]) for name in RENDERINGS]
        assert actual == pytest.approx(getattr(compared, column))
    assert float(rows["paper"]["ci_low"]) == pytest.approx(compared.ci_low[0])
    assert float(rows["paper"]["ci_high"]) == pytest.approx(compared.ci_high[0])
    # Not all of it is trivial.
    assert compared.gap.any()
    assert (compared.ci_low < compared.gap).all()


def test_the_mean_of_models_stands_below_them(stored: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(stored, tmp_path / "out"))
    names = [FIRST, SECOND, "mean of 2 models"]
    lines = method_of(SECOND, output).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("method: "))
    assert [line.split("  ")[0] for line in lines[start + 1 : start + 4]] == names
    write_all(output, "none")
    assert names[2] in (output / "report.html").read_text()
    latex = (output / "results" / "latex" / "method.tex").read_text()
    assert latex.rindex("first") < latex.rindex("second") < latex.index(names[2])
    # The same model from another folder counts once, with its first settings.
    dataset = dataset_in(output)
    first, second = read_renderings(dataset)[0]
    faster = msgspec.structs.replace(first.evaluation, precision="bf16")
    again = msgspec.structs.replace(first, lab="Lab", evaluation=faster)
    mean = mean_of_models(dataset, (first, second))
    assert mean is not None
    assert mean.rows != first.rows
    assert mean_of_models(dataset, (first, again, second)) == mean
    assert mean_of_models(dataset, (first, again)) is None
    assert mean_of_models(dataset, (again, second)) is None
    # Models whose draws differ have no mean.
    method_of(SECOND, output, "--replicates", 1)
    assert {row["model"] for row in table_of(output, "method")} == set(names[:2])


@pytest.mark.parametrize("how", ["fewer draws", "other answers", "damaged", "missing"])
def test_predictions_that_are_not_those_of_the_rows_have_no_mean(
    stored: Path, tmp_path: Path, how: str
) -> None:
    output = Path(shutil.copytree(stored, tmp_path / "out"))
    (folder,) = output.glob("results/*second*")
    path = next(folder.glob("method/*.parquet"))
    if how == "fewer draws":
        # As if the run was killed before it stored its rows.
        rows = (folder / "method.json").read_bytes()
        method_of(SECOND, output, "--replicates", 1)
        (folder / "method.json").write_bytes(rows)
    elif how == "other answers":
        table = pq.read_table(path)
        answers = pa.array([0] * len(table), table.schema.field("prediction").type)
        position = table.column_names.index("prediction")
        pq.write_table(table.set_column(position, "prediction", answers), path)
    elif how == "damaged":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        shutil.rmtree(path.parent)
    mean_of_models.cache_clear()
    results = tuple(read_renderings(dataset_in(output))[0])
    assert len(results) == 2
    assert mean_of_models(dataset_in(output), results) is None


def test_what_cannot_be_compared_is_refused_in_one_line(
    composed: Path, small_input: Path, tmp_path: Path
) -> None:
    dropped, bare, imported = (tmp_path / name for name in ("dropped", "bare", "imported"))
    small, flags = tmp_path / "small", ("--input", small_input, *QUICK, *ONE, "--output")
    run_here("generate", *flags, small, "--image_size", 32, "--variants", "original")
    whole = ("--selection", "in9l", "--variants", "original", *QUICK[2:], *ONE, "--output")
    run_here("generate", "--input", small_input, *whole, tmp_path / "whole")
    mixed = ("--variants", "original,mixed_same,mixed_rand,fg_mask", "--layers", "drop")
    run_here("generate", *flags, dropped, *mixed)
    for picture in pictures_of(small_input):
        darken(picture)
    run_here("generate", *flags, bare, "--variants", "original,mixed_same")
    run_here("export", "--dataset", dropped, "--to", tmp_path / "release")
    run_here("import", "--from", tmp_path / "release", "--output", imported)
    for output, said in (
        (dropped, "is not stored, and cannot be composed without layers: make it with"),
        (imported, "the method needs boxes and layers: imports have none"),
        (bare, "the method compares mixed_same and mixed_rand: no mixed_rand here"),
    ):
        assert said in refusal(*METHOD, output)
    for other, said in (
        (dropped, "it has no layers (--layers drop)"),
        (imported, "it is an import, without layers"),
        (tmp_path / "whole", "it keeps images whole (--selection in9l)"),
        (small, "its pictures have 32 pixels"),
        (bare, "it has no image of this dataset"),
        (composed, "it is the dataset itself"),
        (tmp_path / "no", f"--against: {tmp_path}/no does not exist"),
    ):
        assert said in refusal(*METHOD, composed, "--against", other)
    too_many = refusal(*METHOD, composed, "--replicates", 101)
    assert "--replicates must be between 1 and 100" in too_many


FILL = "def grey(image, hole):\n    image[hole] = 128\n    return image\n"


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two datasets, and what `in9 method` said of the images that both have.

    Attributes:
      common: keys of these images there, by those here; each has another of its class.
    """

    here: Path
    there: Path
    said: str
    common: dict[str, str]


@pytest.fixture(scope="module")
def pair(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A dataset that is compared with another one, with a fill of the user's, too."""
    root = tmp_path_factory.mktemp("pair")
    (root / "method_fills.py").write_text(FILL)
    source = Path(shutil.copytree(small_sample, root / "input"))
    here, there = root / "here", root / "there"
    command = ("generate", "--input", source, *QUICK, *ONE, *keys(max_box=1), "--output")
    run_here(*command, here, "--variants", "original,mixed_same,mixed_rand")
    rows = {row["source_md5"]: row for row in index_of(here) if row["selected"]}
    # The other dataset has other keys, and lacks an image, so that one has no background.
    counts = collections.Counter(row["label"] for row in rows.values())
    lacking = next(row for row in rows.values() if counts[row["label"]] == 2)
    (source / lacking["path"]).unlink()
    for path in sorted(source.rglob("*2.*")):
        path.rename(path.with_stem(f"{path.stem}0"))
    png = (*keys(encoding="png"), "--segmenter", "grabcut")
    png += ("--variants", "original,only_bg_t,fg_mask")
    run_here(*command, there, *png)
    others = {row["source_md5"]: row for row in index_of(there) if row["selected"]}
    labels = collections.Counter(rows[md5]["label"] for md5 in rows.keys() & others.keys())
    common = {
        row["key"]: others[md5]["key"]
        for md5, row in rows.items()
        if md5 in others and labels[row["label"]] > 1
    }
    assert 4 < len(common) < len(rows.keys() & others.keys())
    assert any(key != name for key, name in common.items())
    own = ("--renderings", "python:method_fills:grey", "--against", there)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(root))
        patch.syspath_prepend(root)
        yield Pair(here, there, run_in9(*METHOD, here, *ONE, *own).stdout, common)


def composed_of(pair: Pair) -> ComposedDataset:
    dataset, other = dataset_in(pair.here), dataset_in(pair.there)
    compose = dataset.manifest.config.compose
    return ComposedDataset(dataset.store, dataset.manifest, "val", compose, other)


def test_another_dataset_is_compared_on_the_images_that_both_have(pair: Pair) -> None:
    both, again = composed_of(pair), composed_of(pair)
    assert both.images["against"].keys == pair.common
    assert pair.common.keys() < both.images[""].keys.keys()
    # What is planned serves the next models, too; other pairs have another plan.
    assert again.images is both.images
    reseeded = dataclasses.replace(again, compose=dataclasses.replace(again.compose, seed=1))
    assert reseeded.images is not both.images


def test_pairs_are_drawn_among_common_images_and_are_the_same_in_both(pair: Pair) -> None:
    pairs = {
        (name, key): bg_key
        for (rule, name, key), (_, bg_key, *_) in predictions_of(pair.here).items()
        if rule == "argmax_then_map" and VariantName.parse(name).rendering in ("common", "against")
    }
    common, both = pair.common, composed_of(pair)
    assert {key for _, key in pairs} == set(pairs.values()) | common.keys() == common.keys()
    pixels = {name: pixels_of(pair.there, name) for name in ("original", "only_bg_t", "fg_mask")}
    columns = ("key", "fg_key", "bg_key", "image")
    for base in ("mixed_same", "mixed_rand"):
        assert all(pairs[f"{base}_common", key] == pairs[f"{base}_against", key] for key in common)
        (table,) = both.tables("val", 0, VariantName(base, "against"), columns)
        for row in table.to_pylist():
            assert row["key"] == row["fg_key"] != row["bg_key"]
            assert row["bg_key"] == pairs[f"{base}_against", row["key"]]
            name, background = common[row["key"]], common[row["bg_key"]]
            mask = pixels["fg_mask"][name][..., None] > 0
            on = pixels["only_bg_t"][background]
            expected = np.where(mask, pixels["original"][name], on)
            np.testing.assert_array_equal(decode_image(row["image"]), expected)


def test_gaps_and_differences_are_of_the_common_images(pair: Pair) -> None:
    rows = check_rows(pair.here)
    common, against = (rows["argmax_then_map", name, "all"] for name in ("common", "against"))
    assert int(common["pictures"]) == int(against["pictures"]) == 2 * len(pair.common)
    # The boxes of the other dataset may be others, so the row does not say what they cover.
    assert against["hole_low"] == against["hole_high"] == ""
    assert common["hole_low"] != ""
    # A fill of the user's is a rendering among others.
    assert ("argmax_then_map", "grey", "large") in rows


def test_what_is_compared_is_said(pair: Pair) -> None:
    (plot,) = make_plots(gather(dataset_in(pair.here), imagenet9()))
    assert f"against {manifest_of(pair.there)['fingerprint'][:12]}" in plot.alt
    assert "grey" in plot.alt
    assert "grey@1" in (pair.here / "results/latex/method.tex").read_text()
    assert f"in the same pairs of the {len(pair.common)} images that both have" in pair.said


def test_results_of_another_version_and_dataset_have_names_of_their_own(
    pair: Pair, composed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Path(shutil.copytree(pair.here, tmp_path / "here"))
    (pair.here.parent / "method_fills.py").write_text(f"{FILL}\n\ngrey.version = 2\n")
    own = ("--renderings", "python:method_fills:grey", "--against", composed)
    run_in9(*METHOD[:2], SECOND, *METHOD[3:], here, *own)
    # What is finished is not composed again, although fewer renderings are asked for.
    monkeypatch.setattr(ComposedDataset, "tables", None)
    said = run_here(*METHOD, here, *ONE, "--against", pair.there).out
    monkeypatch.undo()
    write_all(here, "none")
    page = re.sub(r"\s+", " ", (here / "report.html").read_text())
    latex = (here / "results/latex/method.tex").read_text()
    entry = "python:method_fills:grey@2"
    by_model = {"first": {}, "second": {"grey": entry}}
    for (model, fill), of in zip(by_model.items(), (pair.there, composed), strict=True):
        digest = manifest_of(of)["fingerprint"]
        of_rows = {
            row["rendering"]: row["of"]
            for row in table_of(here, "method", model=f"python:tiny_models:{model}")
        }
        built_in = dict.fromkeys(("paper", *RENDERINGS), "")
        assert of_rows == built_in | fill | dict.fromkeys(("common", "against"), digest)
        line = f"{model}: common, against: BG-Gap of this dataset and of {digest[:12]}"
        assert line in said
        assert line in page
        assert page.count(f'<th scope="col">against {digest[:12]}</th>') == 1
        assert f"{digest[:5]}\N{HORIZONTAL ELLIPSIS}{digest[8:12]}" in latex
    # The first model has no such rendering.
    assert page.count('<th scope="col">method_fills grey@2</th>') == 1


def test_objects_are_compared_with_themselves(small_input: Path, tmp_path: Path) -> None:
    """Checks that of an image's two boxes, the second of which is larger, each meets its like."""
    several = min(small_input.glob("Annotations/val/*.xml"))
    text = several.read_text()
    (box,) = re.findall(r"<object>.*?</object>", text, re.DOTALL)
    small = re.sub(r"<(.)max>\d+", lambda end: f"<{end[1]}max>{_low(box, end[1]) + 9}", box)
    several.write_text(text.replace(box, f"{small}\n{box}"))
    sizes = (*keys(max_box=1, min_visible=0, min_foreground=0), "--variants")
    flags = ("--input", small_input, *QUICK, *ONE, *sizes, "mixed_same,mixed_rand", "--output")
    kinds = ("each", "largest")
    for objects in kinds:
        run_here("generate", *flags, tmp_path / objects, "--objects", objects)
    each, largest = (dataset_in(tmp_path / objects) for objects in kinds)
    selected = [row["key"] for row in index_of(tmp_path / "largest") if row["selected"]]
    objects = {f"{key}_{2 if key == several.stem else 1}": key for key in selected}
    assert f"{several.stem}_2" in objects
    for here, there, common in (
        (each, largest, objects),
        (largest, each, {key: name for name, key in objects.items()}),
        (each, each, {key: key for key in (*objects, f"{several.stem}_1")}),
    ):
        compose = here.manifest.config.compose
        both = ComposedDataset(here.store, here.manifest, "val", compose, there)
        assert both.images["against"].keys == common


def _low(box: str, axis: str) -> int:
    return int(re.findall(rf"<{axis}min>(\d+)<", box)[0])
