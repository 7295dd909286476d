"""Tests which pictures count under `--holdout`, by plain sums over stored predictions."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from answer_files import answer_files, entries
from runs import ONE, QUICK, dataset_in, index_of, made_once, run_in9, table_of

from pipeline.analyses.attack.results import open_grid
from pipeline.analyses.evaluation.images import read_predictions_of, shown_models
from pipeline.analyses.evaluation.parts import compare_accuracies
from pipeline.analyses.saliency.stage import PlannedSaliency
from pipeline.evaluate.comparisons import Sample
from pipeline.evaluate.planned import Evaluation
from pipeline.evaluate.predictions import EvalImages
from pipeline.models.identity import PredictConfig
from pipeline.report.write import gather
from pipeline.runtime.progress import Progress
from transforms.selection import held_out
from transforms.variants import VariantName, with_replicates

pytestmark = pytest.mark.usefixtures("no_figures")

MODELS = ("a", "b")
MIXED = ("mixed_same", "mixed_rand")
NAMES = ("original", "only_bg_t", *MIXED)
Picture = tuple[str, str, str | None, bool]
"""The draw, the keys of foreground and background, and whether the answer is right."""


@pytest.fixture(scope="module", params=[4])
def tested(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample with four draws, or one, two models tested on the half that is held out."""

    def make(output: Path) -> None:
        variants = ("--variants", ",".join((*NAMES, "fg_mask")), "--replicates", request.param)
        run_in9("generate", "--output", output, *variants, *QUICK, *ONE)
        answer_files(output, output / "answers", {"a": 0.8, "b": 0.7}, mixed_rand=0.6)
        models = ("--models", entries(output / "answers", MODELS), "--holdout", 0.5, *ONE)
        shown = run_in9("evaluate", "--dataset", output, *models)
        (output / "answers" / "shown.txt").write_text(shown.stdout)

    return made_once(tmp_path_factory, f"held-{request.param}", make)


def held_keys(output: Path) -> set[str]:
    rows = [row for row in index_of(output) if row["selected"]]
    out = held_out([row.get("group") or row["key"] for row in rows], 0.5)
    return {row["key"] for row, is_out in zip(rows, out, strict=True) if is_out}


def pictures_of(output: Path, model: str, variant: str) -> list[Picture]:
    """Returns a model's pictures of a variant that count, by the rule in words."""
    held, pictures = held_keys(output), []
    for path in sorted(output.glob(f"results/*{model}.csv-*+holdout0.5/predictions/*.parquet")):
        for row in pq.read_table(path).to_pylist():
            name = VariantName.parse(row["variant"])
            if name.base == variant:
                assert row["fg_key"] in held  # All foregrounds are, and all are predicted.
                if not name.is_mixed or row["bg_key"] in held:
                    pictures.append((str(name.draw), row["fg_key"], row["bg_key"], row["correct"]))
    return pictures


def pairs_of(output: Path, model: str) -> list[tuple[Picture, Picture]]:
    """Returns the pairs of pictures that show one foreground in one draw, and both count."""
    same, rand = ({p[:2]: p for p in pictures_of(output, model, name)} for name in MIXED)
    return [(same[pair], rand[pair]) for pair in sorted(same.keys() & rand.keys())]


def by_image(output: Path, variant: str) -> dict[str, float]:
    """Returns the accuracy, or BG-Gap, of model c on each foreground's pictures that count."""
    values: dict[str, list[int]] = {}
    if variant == "bg_gap":
        for (_, fg, _, is_right), other in pairs_of(output, "c"):
            values.setdefault(fg, []).append(is_right - other[3])
    else:
        for _, fg, _, is_right in pictures_of(output, "c", variant):
            values.setdefault(fg, []).append(is_right)
    return {fg: float(np.mean(of_image)) for fg, of_image in values.items()}


@pytest.mark.parametrize("tested", [1, 4], indirect=True)
def test_figures_are_of_pictures_whose_background_is_held_out_too(tested: Path) -> None:
    draws = dataset_in(tested).manifest.config.compose.replicates
    half, counted, gaps = len(held_keys(tested)), {}, {}
    for model in MODELS:
        rows = {r["variant"]: r for r in table_of(tested, "summary", model=model)}
        for variant in NAMES:
            pictures, row = pictures_of(tested, model, variant), rows[variant]
            counted[variant] = len(pictures)
            right = [is_right for *_, is_right in pictures]
            numbers = (len({fg for _, fg, *_ in pictures}), len(right), sum(right))
            assert tuple(int(row[name]) for name in ("n", "pictures", "correct")) == numbers
        pairs = pairs_of(tested, model)
        gaps[model] = np.mean([int(same[3]) - rand[3] for same, rand in pairs])
        (row,) = table_of(tested, "gaps", model=model)
        assert float(row["gap"]) == pytest.approx(gaps[model])
        assert int(row["n"]) == len({same[1] for same, _ in pairs}) < half
    # About half of the backgrounds, and a quarter of the pairs, are held out.
    assert counted["original"] == half
    of_mixed = [counted[name] for name in MIXED]
    assert len(pairs) < min(of_mixed) <= max(of_mixed) < half * draws
    compared = {r["variant"]: r for r in table_of(tested, "comparisons")}
    assert float(compared["bg_gap"]["difference"]) == pytest.approx(gaps["a"] - gaps["b"])
    assert int(compared["mixed_rand"]["n"]) == int(rows["mixed_rand"]["n"])
    both = (np.mean([p[3] for p in pictures_of(tested, one, "mixed_rand")]) for one in MODELS)
    assert float(compared["mixed_rand"]["difference"]) == pytest.approx(-np.diff([*both]).item())
    numbers = ", ".join(f"{counted[name]} of {half * draws} of {name}" for name in MIXED)
    line = (
        f"--holdout 0.5: a mixed picture counts if its background is held out, too: {numbers}, "
        f"{len(pairs)} of {half * draws} pairs of BG-Gap"
        + " (in9 generate --replicates 4 gives more)"
        * (draws == 1)
    )
    assert line in (tested / "answers" / "shown.txt").read_text().splitlines()
    assert line in (tested / "report.html").read_text()


def test_changes_are_of_the_draws_that_count(tested: Path, tmp_path: Path) -> None:
    before, after = tmp_path / "before", shutil.copytree(tested, tmp_path / "out")
    for seed in range(2):
        answer_files(after, tmp_path, {"c": 0.6}, seed)
        models = ("--models", entries(tmp_path, ["c"]), "--holdout", 0.5, *ONE)
        run_in9("evaluate", "--dataset", after, *models, "--overwrite", "weights")
        if not seed:
            shutil.copytree(after, before)
    *_, change = compare_accuracies(dataset_in(before), dataset_in(after), [])[0]
    assert [row.variant for row in change.rows] == [*NAMES, "bg_gap"]
    for row in change.rows:
        old, new = (by_image(folder, row.variant) for folder in (before, after))
        assert row.difference == pytest.approx(np.mean([new[fg] - old[fg] for fg in new]))
        assert row.ci_low < row.difference < row.ci_high


def test_nothing_is_said_of_a_gap_without_pairs(tested: Path, tmp_path: Path) -> None:
    output = shutil.copytree(tested, tmp_path / "out")
    model = ("--models", entries(tested / "answers", ["a"]), *ONE)
    gate = ("--holdout", 0.05, "--fail_if", "bg_gap<0.5")
    done = run_in9("evaluate", "--dataset", output, *model, *gate, check=1)
    assert "a holdout0.05 has no bg_gap" in done.stdout + done.stderr
    assert ", 0 of " in done.stdout
    assert len(table_of(output, "gaps")) == len(MODELS)  # Those with --holdout 0.5.


def test_other_analyses_leave_out_backgrounds_that_are_not_held_out(tested: Path) -> None:
    dataset, held = dataset_in(tested), held_keys(tested)
    store, variant = dataset.store, VariantName("mixed_rand")
    evaluation = Evaluation(
        store, (), "val", PredictConfig(), Progress.for_store(store), holdout=0.5
    )
    grid = open_grid(dataset, evaluation, None, None)
    assert set(grid.foregrounds.keys) == set(grid.backgrounds.keys) == held
    shown = PlannedSaliency(evaluation, dataset.taxonomy, variant=variant).rows(dataset)
    expected = [r for r in index_of(tested) if {r["key"], r["mixed_rand_bg_key"]} <= held]
    assert [row["key"] for row in shown] == [row["key"] for row in expected]


def test_the_page_shows_no_answers_to_pictures_that_do_not_count(tested: Path) -> None:
    dataset = dataset_in(tested)
    split, models = shown_models(gather(dataset, dataset.taxonomy))
    keys = [row["key"] for row in index_of(tested)]
    assert [one.name for one, _ in models] == [f"{name} holdout0.5" for name in MODELS]
    for name, model in zip(MODELS, models, strict=True):
        shown = [(r["variant"], r["key"]) for r in read_predictions_of(dataset, split, model, keys)]
        expected = [
            (variant, fg)
            for variant in NAMES
            for draw, fg, *_ in pictures_of(tested, name, variant)
            if draw == "0"  # The page shows the first draw.
        ]
        assert sorted(shown) == sorted(expected)


def test_the_unit_of_a_background_decides_and_an_unnamed_one_does_not_count(tested: Path) -> None:
    dataset = dataset_in(tested)
    whole, half = (EvalImages.read(dataset, "val", holdout) for holdout in (0.0, 0.5))
    rand, scenes = VariantName("mixed_rand"), VariantName("mixed_external")
    numbers = np.resize(np.append(whole.background_units, -7), len(half.keys))
    expected = np.isin(numbers, half.unit_numbers)
    assert 0 < expected.sum() < len(expected)
    assert half.counts(rand, {rand: numbers}).tolist() == expected.tolist()
    for images, name in ((half, scenes), (half, VariantName("original")), (whole, rand)):
        assert images.counts(name, {name: np.full(len(images.keys), -7)}).all()
    # A choice of the tested images changes no unit that is held out.
    one = half.select(np.arange(len(half.keys)) == 0)
    assert one.counts(rand, {rand: half.unit_numbers[-1:]}).all()


@pytest.mark.parametrize(
    ("holdout", "draws", "share"), [(0.0, 4, 1.0), (0.5, 1, 0.25), (0.5, 2, 7 / 16)]
)
def test_a_dry_run_expects_the_images_with_a_pair_that_counts(
    holdout: float, draws: int, share: float
) -> None:
    sample = Sample.of([f"g{number % 16}" for number in range(64)], 64)
    left = sample.with_pairs(holdout, with_replicates(MIXED, draws))
    assert left == (64 * share, round(16 * share), 16 * share)
