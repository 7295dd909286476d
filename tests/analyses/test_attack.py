"""Tests the attack with adversarial backgrounds against loops that share no code with it."""

import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_results import made, of_model
from runs import (
    index_of,
    pixels_of,
    run_here,
    run_in9,
    table_of,
    write_all,
)
from small_models import lite0

from pipeline.analyses.attack.arrays import Cutouts, put_on
from pipeline.analyses.attack.figures import make_plots
from pipeline.analyses.attack.results import AttackResult
from pipeline.commands.command_line import build_parser
from pipeline.evaluate.evidence import FULL_GRID, Results
from transforms.adversarial import (
    UNTRIED,
    Strengths,
    challenge_accuracy,
    expected_accuracy,
    fooled,
    fooled_by_class,
    foregrounds_of_others,
    merge,
    strongest,
    tally,
    try_until_turned,
)
from transforms.intervals import wilson
from transforms.renderings import composite
from transforms.selection import sample_evenly
from transforms.taxonomy import imagenet9

pytestmark = pytest.mark.usefixtures("no_figures")

RULES = ("argmax_then_map", "mapped_only")
MODEL = "efficientnet_lite0"
FEW = ("--grid", "12")
ATTACK = ("attack", "--pictures", "none", "--dataset")


def attack_json(output: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((output / "results" / MODEL / "attack.json").read_text())
    return content


@pytest.fixture(scope="module")
def attacked(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 pictures, attacked with a broken and a sound model. Tests must not change them."""
    output = Path(shutil.copytree(small_run, tmp_path_factory.mktemp("attacked") / "out"))
    broken = output.parent / "broken.pth"
    broken.write_bytes(b"junk")
    done = run_in9(*ATTACK, output, "--models", f"resnet18={broken},{MODEL}", *FEW)
    assert "144 composites predicted" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(MODEL)]
    assert line.endswith("12 x 12       144")
    assert done.stderr.splitlines()[-1].startswith(f"not attacked: resnet18={broken}: ")
    return output


def brute_force(output: Path, fg_keys: list[str], bg_keys: list[str]) -> dict[str, list[list[int]]]:
    """Predicts all pairs, one foreground at a time; returns a grid of labels for each rule."""
    network = lite0()
    label_of = [imagenet9().label_of(wnid) for wnid in imagenet9().wnids]
    inside = [output for output, label in enumerate(label_of) if label != -1]
    originals, masks = pixels_of(output, "original"), pixels_of(output, "fg_mask")
    backgrounds = pixels_of(output, "only_bg_t")
    grids: dict[str, list[list[int]]] = {rule: [] for rule in RULES}
    for fg in fg_keys:
        mask = (masks[fg] > 127)[..., None].astype(np.float32)
        batch = []
        for bg in bg_keys:
            picture = originals[fg] * mask + backgrounds[bg] * (1 - mask)
            batch.append(torch.from_numpy(picture / 255).float().permute(2, 0, 1))
        with torch.inference_mode():
            outputs = network((torch.stack(batch) - 0.5) / 0.5).tolist()
        best = [max(range(1000), key=logits.__getitem__) for logits in outputs]
        best_inside = [max(inside, key=logits.__getitem__) for logits in outputs]
        for rule, winners in zip(RULES, (best, best_inside), strict=True):
            grids[rule].append([label_of[winner] for winner in winners])
    return grids


def test_both_measures_are_of_the_predictions_of_all_pairs(attacked: Path) -> None:
    """Compares them with a loop over all pairs; laws below say what the measures are."""
    folder = attacked / "results" / MODEL / "attack" / "12x12"
    chunk = pq.read_table(folder / "val-00000.parquet").to_pylist()
    grid = pq.read_table(folder / "val-backgrounds.parquet").to_pylist()
    fg_keys, bg_keys = [row["fg_key"] for row in chunk], [row["bg_key"] for row in grid]
    label = {row["key"]: row["label"] for row in index_of(attacked)}
    labels, bg_labels = (np.array([label[key] for key in keys]) for keys in (fg_keys, bg_keys))
    for rule, expected in brute_force(attacked, fg_keys, bg_keys).items():
        assert [row[rule] for row in chunk] == expected
        counts = tally(np.array(expected, np.int16), labels, bg_labels, 9)
        measured = attack_json(attacked)["rules"][rule]
        for name, share in (("challenge", challenge_accuracy(counts)), ("fooled", fooled(counts))):
            value = measured["fooled" if name == "fooled" else "challenge_accuracy"]
            assert value == share.value
            bounds = measured[f"{name}_ci_low"], measured[f"{name}_ci_high"]
            assert bounds == wilson(share.count, 12)
        for row in measured["by_class"]:
            assert row["fooled"] == fooled_by_class(counts, row["label"]).value
            best = [s["bg_key"] for s in measured["strongest"] if s["label"] == row["label"]]
            assert best == [bg_keys[b] for b in strongest(counts, bg_keys, bg_labels, row["label"])]
        rows = table_of(attacked, "backgrounds", label_rule=rule)
        others = foregrounds_of_others(labels, bg_labels)
        rates = dict(zip(bg_keys, counts.successes / others, strict=True))
        assert {row["bg_key"]: float(row["success"]) for row in rows} == rates
        curve = {row["backgrounds"]: row["accuracy"] for row in measured["accuracy_by_backgrounds"]}
        assert curve == dict(expected_accuracy(counts.turning, 12, [*curve]))
    result = attack_json(attacked)
    assert (result["foregrounds"], result["backgrounds"], result["forwards"]) == (12, 12, 144)
    assert result["full_grid"] is result["early_stop"] is False
    summary = json.loads((attacked / "results" / MODEL / "model.json").read_text())
    assert result["weights_sha256"] == summary["weights_sha256"]
    assert result["evaluation"] == {**summary["evaluation"], "device": "cpu"}
    # The comparison would prove little if all foregrounds were turned, or none.
    assert 0 < result["rules"][RULES[1]]["challenge_accuracy"] < 1


def test_a_model_that_fails_is_a_row_and_stops_no_other(attacked: Path) -> None:
    rows = table_of(attacked, "attack")
    assert [row["label_rule"] for row in rows] == [*RULES, ""]
    assert float(rows[0]["challenge_accuracy"]) < 1
    assert "cannot be read as a checkpoint" in rows[2]["error"]
    assert rows[2]["challenge_accuracy"] == ""
    paths = [attacked / "results" / f"{name}.csv" for name in ("attack", "backgrounds")]
    tables = {path: path.read_bytes() for path in paths}
    for path in paths:
        path.unlink()
    write_all(attacked, pictures="none")
    assert {path: path.read_bytes() for path in tables} == tables
    printed = run_here(*ATTACK, attacked, "--models", rows[2]["model"], *FEW, code=1).err
    assert "cannot be read as a checkpoint" in printed


def test_stopped_early_it_says_the_same(attacked: Path, tmp_path: Path) -> None:
    output, whole = Path(shutil.copytree(attacked, tmp_path / "out")), attack_json(attacked)
    folder = output / "results" / MODEL / "attack"
    lines = run_here(*ATTACK, output, *FEW, "--early_stop").out.splitlines()
    early = attack_json(output)
    assert any(line.endswith(f"-  12 x 12{early['forwards']:>10}") for line in lines)
    assert early["early_stop"]
    assert early["forwards"] < whole["forwards"] == 144
    for rule in RULES:
        stopped, full = early["rules"][rule], whole["rules"][rule]
        assert stopped["challenge_accuracy"] == full["challenge_accuracy"]
        assert stopped["fooled"] is stopped["fooled_ci_low"] is None
        assert stopped["by_class"] == stopped["accuracy_by_backgrounds"] == []
    name, tried = "val-00000.parquet", 0
    rows, full_rows = (
        pq.read_table(path / name).to_pylist()
        for path in (folder / "12x12-early_stop", folder / "12x12")
    )
    for row, full_row in zip(rows, full_rows, strict=True):
        for rule in RULES:
            pairs = [p for p in zip(row[rule], full_row[rule], strict=True) if p[0] is not None]
            assert all(prediction == its for prediction, its in pairs)
        tried += len(pairs)
    assert tried == early["forwards"]
    assert table_of(output, "backgrounds") == []
    # Predictions of all pairs are still there, and are reported without a forward pass.
    assert "nothing to do" in run_here(*ATTACK, output, *FEW).out
    assert attack_json(output) == whole


def test_a_grid_is_one_size_or_two_in_both_commands() -> None:
    parser = build_parser()
    for text, sides in (("all", (None, None)), ("12", (12, 12)), ("20xall", (20, None))):
        alone, _ = parser.parse_known_args(["attack", "--dataset", "x", "--grid", text])
        of_run, _ = parser.parse_known_args(["run", "--output", "x", "--attack", text])
        assert alone.grid == of_run.attack == sides


# Properties of the measures.

labels_of = st.lists(st.integers(0, 3), min_size=1, max_size=6).map(np.asarray)


@st.composite
def grids(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws predictions, foreground labels and background labels of four classes."""
    labels, bg_labels = draw(labels_of), draw(labels_of)
    cells = st.integers(-1, 3)
    size = len(labels) * len(bg_labels)
    grid = draw(st.lists(cells, min_size=size, max_size=size))
    return np.asarray(grid, np.int16).reshape(len(labels), -1), labels, bg_labels


@given(grids(), st.integers(0, 6))
def test_measures_are_what_their_words_say(
    drawn: tuple[np.ndarray, np.ndarray, np.ndarray], cut: int
) -> None:
    grid, labels, bg_labels = drawn
    counts = tally(grid, labels, bg_labels, 4)
    parts = [tally(grid[rows], labels[rows], bg_labels, 4) for rows in (slice(cut), slice(cut, 9))]
    merged = merge(parts)
    for name in ("labels", "turning", "fooled_by", "successes", "tried"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(counts, name))

    rows, columns = range(len(labels)), range(len(bg_labels))
    fools = {
        (f, b): labels[f] != bg_labels[b] and grid[f, b] == bg_labels[b]
        for f in rows
        for b in columns
    }
    standing = sum(all(grid[f, b] == labels[f] for b in columns) for f in rows)
    assert (challenge_accuracy(counts).count, challenge_accuracy(counts).n) == (standing, len(rows))
    assert fooled(counts).count == sum(any(fools[f, b] for b in columns) for f in rows)
    # A foreground that is fooled is also turned.
    assert fooled(counts).count + standing <= len(rows)
    for label in range(4):
        members = [b for b in columns if bg_labels[b] == label]
        share = fooled_by_class(counts, label)
        assert share.count == sum(any(fools[f, b] for b in members) for f in rows)
        assert share.n == sum(labels[f] != label for f in rows)
        assert (share.value is None) == (share.n == 0)
        keys = [f"k{b}" for b in columns]
        best = strongest(counts, keys, bg_labels, label, count=2)
        assert set(best) <= set(members)
        assert len(best) == min(2, len(members))
        left_out = [counts.successes[b] for b in members if b not in best]
        assert not left_out or min(counts.successes[b] for b in best) >= max(left_out)
    assert np.all(counts.successes <= foregrounds_of_others(labels, bg_labels))
    assert counts.tried == grid.size


@given(grids())
def test_expected_accuracy_is_the_mean_over_all_choices(
    drawn: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    grid, labels, bg_labels = drawn
    counts = tally(grid, labels, bg_labels, 4)
    total = len(bg_labels)
    curve = dict(expected_accuracy(counts.turning, total, range(total + 1)))
    for number in range(total + 1):
        stands = [
            (grid[:, list(chosen)] == labels[:, None]).all(axis=1).mean()
            for chosen in itertools.combinations(range(total), number)
        ]
        assert curve[number] == pytest.approx(np.mean(stands))
    assert curve[total] == pytest.approx(challenge_accuracy(counts).value)
    assert sorted(curve.values(), reverse=True) == list(curve.values())


def answered(
    labels: np.ndarray, order: np.ndarray, grid: np.ndarray, batch_size: int
) -> tuple[np.ndarray, list[int]]:
    """Stops early on a grid of known predictions; also returns the sizes of the batches."""
    sizes = []

    def predict(foreground: np.ndarray, background: np.ndarray) -> np.ndarray:
        sizes.append(len(foreground))
        return np.asarray(grid[:, foreground, background])

    result = try_until_turned(labels, order, predict, rules=len(grid), batch_size=batch_size)
    return result, sizes


@given(grids(), grids(), st.integers(1, 9), st.randoms(use_true_random=False))
def test_an_early_stop_turns_the_same_foregrounds(
    drawn: tuple[np.ndarray, np.ndarray, np.ndarray],
    other: tuple[np.ndarray, np.ndarray, np.ndarray],
    batch_size: int,
    random: Any,
) -> None:
    grid, labels, bg_labels = drawn
    # Arbitrary other predictions stand in for a second label rule.
    both = np.stack([grid, np.resize(other[0], grid.shape)])
    order = np.asarray(random.sample(range(len(bg_labels)), len(bg_labels)))
    predictions, batches = answered(labels, order, both, batch_size)
    tried = predictions[0] != UNTRIED
    assert np.array_equal(predictions[:, tried], both[:, tried])
    assert tried.sum() == sum(batches)
    assert set(batches[:-1]) <= {batch_size}
    for rule in range(2):
        turned = (both[rule] != labels[:, None]).any(axis=1)
        assert np.array_equal((tried & (predictions[rule] != labels[:, None])).any(axis=1), turned)
        count = challenge_accuracy(tally(predictions[rule], labels, bg_labels, 4))
        assert count == challenge_accuracy(tally(both[rule], labels, bg_labels, 4))
    # Each foreground meets the backgrounds in order, and none after the batch that turned it.
    wrong = (both[:, :, order] != labels[:, None]).all(axis=0)
    turned_by = np.logical_or.accumulate(wrong, axis=1)
    for row, is_turned in zip(tried[:, order], turned_by, strict=True):
        assert row[: row.sum()].all()
        assert batch_size > 1 or row.sum() == min((~is_turned).sum() + 1, len(row))
    strengths = Strengths(len(bg_labels))
    strengths.add(predictions, labels)
    rates = []
    for b in strengths.strongest_first():
        wrong = [(both[:, f, b] != labels[f]).all() for f in range(len(labels)) if tried[f, b]]
        rates.append((sum(wrong) + 1) / (len(wrong) + 2))
    assert rates == sorted(rates, reverse=True)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(1, 45))
def test_samples_are_even_stable_and_nested(labels: list[int], count: int) -> None:
    keys = [f"key{i}" for i in range(len(labels))]
    array = np.asarray(labels)
    chosen = sample_evenly(keys, array, count, seed=0, purpose="test")
    assert chosen.sum() == min(count, len(keys))
    sampled = np.bincount(array[chosen], minlength=5)
    available = np.bincount(array, minlength=5)
    for label in range(5):
        # Classes differ by one image at most, unless a class has no more images.
        assert sampled[label] == available[label] or sampled[label] >= sampled.max() - 1
    more = sample_evenly(keys, array, count + 1, seed=0, purpose="test")
    assert np.all(more[chosen])
    backwards = sample_evenly(keys[::-1], array[::-1], count, seed=0, purpose="test")
    assert np.array_equal(backwards[::-1], chosen)


def test_a_family_has_a_line_with_mean_and_range(small_run: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(small_run, tmp_path / "out"))
    names = ("first", "second", "third")
    labels = [f"tiny#{name}:=python:tiny_models:{name}" for name in names]
    printed = run_here(*ATTACK, output, "--models", ",".join(labels), "--grid", "6").out
    rows = table_of(output, "attack", label_rule=RULES[0])
    parts = []
    for what, column in (("challenge accuracy", "challenge_accuracy"), ("fooled", "fooled")):
        shares = [100 * float(row[column]) for row in rows if row["model"].startswith("tiny#")]
        low, high, mean = min(shares), max(shares), sum(shares) / 3
        parts.append(f"{what} {mean:.1f} % ({low:.1f} to {high:.1f})")
    line = f"tiny, mean of 3 trainings (range): {', '.join(parts)}"
    assert line in printed.splitlines()
    assert f'<p class="soft">{line}.</p>' in (output / "report.html").read_text()
    # Measures on grids of other sizes have no common mean.
    assert "mean of" not in run_here(*ATTACK, output, "--models", labels[0], "--grid", "5").out


def test_stopped_early_on_the_authors_grid_it_has_no_figure_by_class() -> None:
    """Checks that the paper's figures are not drawn beside none of ours."""
    grid = {"foregrounds": FULL_GRID, "backgrounds": FULL_GRID, "full_grid": True}
    rules = {"argmax_then_map": {}}
    attack = made(AttackResult, model="m", **grid, early_stop=True, rules=rules)
    evidence = SimpleNamespace(
        models_with=Results((of_model("m", attack),)).models_with,
        taxonomy=imagenet9(),
        dataset=SimpleNamespace(is_comparable=True),
    )
    assert list(make_plots(evidence)) == []  # type: ignore[arg-type]


def test_composites_on_the_device_are_the_papers() -> None:
    random = np.random.default_rng(0)
    originals = random.integers(0, 256, (3, 8, 8, 3), np.uint8)
    backgrounds = random.integers(0, 256, (4, 8, 8, 3), np.uint8)
    masks = random.random((3, 8, 8)) < 0.5
    f, b = np.asarray([0, 2, 2, 1]), np.asarray([3, 3, 0, 1])
    expected = [
        composite(originals[i], masks[i], backgrounds[j]) for i, j in zip(f, b, strict=True)
    ]
    blend = masks[f][..., None]
    assert np.array_equal(expected, originals[f] * blend + backgrounds[b] * (1 - blend))
    cutouts = Cutouts.from_arrays(originals, masks, torch.device("cpu"))
    untouched = torch.from_numpy(backgrounds.copy())
    pairs = (torch.from_numpy(axis) for axis in (f, b))
    actual = put_on(untouched, cutouts.holes, cutouts.pixels, *pairs)
    assert np.array_equal(actual.numpy(), expected)
    assert np.array_equal(untouched.numpy(), backgrounds)
