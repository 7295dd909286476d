"""Tests saliency: gradients, their mass inside a mask, and the command that measures them."""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from made_results import made
from PIL import Image
from runs import ONE, dataset_in, index_of, run_here, run_in9, stamps, table_of

from pipeline.analyses.saliency.gradients import Explained, winning_logit_gradients
from pipeline.analyses.saliency.results import (
    SALIENCY_SCHEMA,
    SaliencyResult,
    measure_mass,
    saliency_table,
)
from pipeline.analyses.saliency.stage import PlannedSaliency, check_variants
from pipeline.dataset.records import write_table
from pipeline.errors import ModelError, UsageError
from pipeline.evaluate.planned import Evaluation
from pipeline.models.identity import PredictConfig, Preprocessing
from pipeline.models.predict import Predictor, to_floats
from pipeline.models.registry import load_model
from pipeline.models.source import loaded_model
from pipeline.runtime.progress import Progress
from pipeline.storage.store import Store
from transforms.codec import decode_image, decode_mask
from transforms.saliency import mass_in_mask, overlay
from transforms.taxonomy import imagenet9
from transforms.variants import MASK, ORIGINAL

pytestmark = pytest.mark.usefixtures("no_figures")

SHAPE = (6, 7)
MAPS = arrays.arrays(np.float32, SHAPE, elements=st.floats(0, 100, width=32))
MASKS = arrays.arrays(np.bool_, SHAPE)


@given(MAPS, MASKS)
def test_mass_is_a_share(saliency: np.ndarray, mask: np.ndarray) -> None:
    assert mass_in_mask(np.full(SHAPE, 0.3), mask) == pytest.approx(mask.mean())
    mass = mass_in_mask(saliency, mask)
    if not saliency.any():
        assert mass is None
        return
    assert 0 <= mass <= 1
    assert mass_in_mask(saliency, np.ones(SHAPE, np.bool_)) == 1
    assert mass_in_mask(saliency, np.zeros(SHAPE, np.bool_)) == 0
    assert mass + mass_in_mask(saliency, ~mask) == pytest.approx(1)
    assert mass_in_mask(saliency * np.float32(4), mask) == pytest.approx(mass)


def test_an_overlay_shows_map_picture_and_outline() -> None:
    picture = np.full((40, 40, 3), 200, np.uint8)
    mask = np.zeros((40, 40), np.bool_)
    mask[10:30, 10:30] = True
    saliency = np.zeros((40, 40), np.float32)
    saliency[18:23, 18:23] = 7
    shown = overlay(picture, saliency, mask)
    assert (shown.shape, shown.dtype) == ((40, 40, 3), np.uint8)
    assert shown[10, 15].tolist() == [255, 255, 255]
    # Far from the map the picture is only darkened; the map's peak is a bright warm colour.
    assert shown[2, 2].tolist() == [80, 80, 80]
    assert shown[20, 20, 0] > 240 > 180 > shown[20, 20, 2]
    np.testing.assert_array_equal(overlay(picture, 100 * saliency, mask), shown)
    assert overlay(picture, 0 * saliency, mask)[20, 20].tolist() == [80, 80, 80]


class Smooth(torch.nn.Module):
    """A small smooth network, so finite differences are exact to second order."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = torch.nn.Conv2d(3, 4, 3)
        self.last = torch.nn.Linear(4, 9)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(pictures)).square()
        logits: torch.Tensor = self.last(hidden.mean(dim=(2, 3)))
        return 100 * logits


def predictor_of(module: torch.nn.Module, *, size: int | None = None) -> Predictor:
    settings = {"input_size": size or 224, "fixed_size": size is not None}
    model = loaded_model(
        name="tiny",
        architecture="tiny",
        weights="made here",
        module=module,
        preprocessing=Preprocessing.from_settings(settings, num_outputs=9, where="test"),
        num_outputs=9,
    )
    return Predictor(model, PredictConfig())


def random_pictures(count: int, side: int) -> torch.Tensor:
    return torch.rand((count, 3, side, side), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [None, 16])
def test_gradients_agree_with_finite_differences(size: int | None) -> None:
    """Checks gradients with respect to the stored pixels, with and without a resize."""
    predictor = predictor_of(Smooth(), size=size)
    pictures = random_pictures(2, 8)
    logits, gradients = winning_logit_gradients(predictor, pictures)
    assert (logits.shape, gradients.shape) == ((2, 9), (2, 3, 8, 8))
    step = 1e-2
    for i, winner in enumerate(logits.argmax(axis=1)):
        for channel, y, x in ((0, 3, 4), (1, 0, 7), (2, 6, 1)):
            ends = []
            for sign in (1, -1):
                moved = pictures[i : i + 1].clone()
                moved[0, channel, y, x] += sign * step
                with torch.inference_mode():
                    ends.append(float(predictor.forward(moved)[0, winner]))
            expected = (ends[0] - ends[1]) / (2 * step)
            assert gradients[i, channel, y, x] == pytest.approx(expected, rel=0.02, abs=0.02)


class Steep(Smooth):
    """A network whose outputs are numbers, but not their gradients."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return super().forward(pictures) + (pictures - pictures).sqrt().mean((1, 2, 3))[:, None]


def test_a_map_takes_the_largest_channel_of_the_winners_gradient() -> None:
    predictor = predictor_of(Smooth())
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    masks = pixels[..., 0] > 99
    explained = Explained(predictor, pixels, masks, 2)
    logits, gradients = winning_logit_gradients(predictor, to_floats(torch.from_numpy(pixels)))
    assert explained.outputs() == logits.argmax(dim=1).tolist()
    for i, gradient in enumerate(gradients.numpy()):
        saliency = np.abs(gradient).max(axis=0)
        np.testing.assert_array_equal(explained.map_of(i), saliency)
        share = saliency[masks[i]].sum() / saliency.sum()
        assert explained.masses()[i] == pytest.approx(share, rel=1e-5)


class Short(Smooth):
    """A network that runs out of memory on more than one picture."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        if len(pictures) > 1:
            raise MemoryError
        return super().forward(pictures)


def test_models_without_gradients_say_so() -> None:
    """Tests gradients that are no numbers; the command below has a model without any."""
    pixels, masks = np.zeros((2, 8, 8, 3), np.uint8), np.ones((2, 8, 8), np.bool_)
    with pytest.raises(ModelError, match=r"are not numbers .* for 2 of 2 pictures"):
        Explained(predictor_of(Steep()), pixels, masks, 2).outputs()


def test_a_batch_that_does_not_fit_is_halved_and_gradients_stay_the_same() -> None:
    pictures = random_pictures(3, 8)
    actual = winning_logit_gradients(predictor_of(Short()), pictures)
    expected = winning_logit_gradients(predictor_of(Smooth()), pictures)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def plan_of(output: Path, num_maps: int) -> PlannedSaliency:
    store = Store(str(output))
    evaluation = Evaluation(store, ("x",), "val", PredictConfig(), Progress.for_store(store))
    return PlannedSaliency(evaluation, imagenet9(), num_maps=num_maps)


def test_images_to_show_are_spread_over_the_classes(one_worker: Path) -> None:
    dataset = dataset_in(one_worker)
    label_of = {row["key"]: row["label"] for row in dataset.index("val") if row["selected"]}

    def labels(maps: int) -> list[int]:
        return [label_of[key] for key in plan_of(one_worker, maps).shown_images(dataset)]

    assert labels(9)[:1] == [min(label_of.values())]
    assert set(labels(9)) == set(label_of.values())
    assert len(set(labels(4))) == 4
    assert labels(1000) == sorted(label_of.values())
    with pytest.raises(UsageError, match="the variant fg_mask"):
        check_variants((ORIGINAL,), "original")


def recompute(output: Path, key: str) -> tuple[float, float, int]:
    """Returns (mass inside the mask, mask's area, winning output) of EfficientNet-Lite0."""
    module, dataset = load_model("efficientnet_lite0").module, dataset_in(output)
    shard = dataset.shard_of("val", key)
    picture, masked = (
        next(sample.image for sample in dataset.samples("val", shard, variant) if sample.key == key)
        for variant in (ORIGINAL, MASK)
    )
    pixels = torch.from_numpy(decode_image(picture)).permute(2, 0, 1)[None] / 255
    pixels.requires_grad_(True)
    logits = module((pixels - 0.5) / 0.5)[0]
    logits.max().backward()
    assert pixels.grad is not None
    saliency = pixels.grad[0].abs().amax(dim=0).double().numpy()
    mask = decode_mask(masked)
    return saliency[mask].sum() / saliency.sum(), float(mask.mean()), int(logits.argmax())


FLAGS = ("saliency", *ONE, "--models", "efficientnet_lite0", "--dataset")


@pytest.fixture(scope="module")
def explained(one_worker: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A dataset with saliency of a model beside one without gradients, and what was printed."""
    root = tmp_path_factory.mktemp("explained")
    output = Path(shutil.copytree(one_worker, root / "out"))
    (root / "blind.py").write_text(
        "import torch\n"
        "class Blind(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x.detach().mean(dim=(2, 3)).repeat(1, 3)\n"
        "def model():\n"
        "    return Blind()\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(root))
        done = run_in9(*FLAGS, output, "--models", "efficientnet_lite0,python:blind:model")
    assert "no saliency: python:blind:model: it gives no gradient" in done.stderr
    return output, done.stdout


def rows_of(output: Path) -> list[dict[str, Any]]:
    paths = output.glob("results/efficientnet_lite0/saliency/*.parquet")
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def summary_of(output: Path) -> dict[str, Any]:
    path = output / "results" / "efficientnet_lite0" / "saliency.json"
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_the_command_measures_each_image_and_their_mean(explained: tuple[Path, str]) -> None:
    output, printed = explained
    labels = [row["label"] for row in index_of(output) if row["selected"]]
    assert f" {len(labels)} images explained" in printed
    rows, summary = rows_of(output), summary_of(output)
    for row in rows[:5]:
        mass, area, best = recompute(output, row["key"])
        assert row["mass_in_mask"] == pytest.approx(mass, abs=2e-3)
        assert (row["mask_area"], row["output"]) == (pytest.approx(area), best)
    mean, area = (np.mean([row[name] for row in rows]) for name in ("mass_in_mask", "mask_area"))
    assert (summary["images"], summary["variant"]) == (len(labels), "original")
    assert summary["mass_in_mask"] == pytest.approx(mean)
    assert summary["ci_low"] < mean < summary["ci_high"]
    assert summary["mask_area"] == pytest.approx(area)
    assert summary["concentration"] == pytest.approx(mean / area)
    assert f"{100 * mean:.1f} [" in printed
    by_key = {row["key"]: row for row in rows}
    assert len(summary["maps"]) == 9
    for one in summary["maps"]:
        row = by_key[one["key"]]
        assert all(one[name] == row[name] for name in ("label", "prediction", "mass_in_mask"))
        with Image.open(output / one["file"]) as picture:
            assert picture.size == (224, 224)
    lines = {row["model"]: row for row in table_of(output, "saliency")}
    assert float(lines["efficientnet_lite0"]["mass_in_mask"]) == pytest.approx(mean)
    assert lines["efficientnet_lite0"]["error"] == ""
    assert "no gradient" in lines["python:blind:model"]["error"]
    assert lines["python:blind:model"]["mass_in_mask"] == ""


def test_a_rerun_with_fewer_maps_makes_what_is_missing_and_removes_the_others(
    explained: tuple[Path, str], tmp_path: Path
) -> None:
    output = Path(shutil.copytree(explained[0], tmp_path / "out"))
    folder = output / "results" / "efficientnet_lite0" / "saliency"
    missing = sorted(folder.glob("*.parquet"))[0]
    gone = pq.read_table(missing)
    missing.unlink()
    fewer = plan_of(output, 4).shown_images(dataset_in(output))
    redrawn = next(key for key in fewer if key not in gone["key"].to_pylist())
    (folder / f"{redrawn}.png").unlink()
    others = {name: at for name, at in stamps(output).items() if name.endswith(".parquet")}
    run_here(*FLAGS, output, "--maps", 4)
    assert pq.read_table(missing).equals(gone)
    after = stamps(output)
    assert all(after[name] == at for name, at in others.items())
    assert {path.stem for path in folder.glob("*.png")} == set(fewer)
    assert [one["key"] for one in summary_of(output)["maps"]] == list(fewer)
    assert "nothing to do" in run_here(*FLAGS, output, "--maps", 4).out
    assert stamps(output) == after


@pytest.mark.parametrize("mass", [0.0, None])
def test_a_table_has_dashes_where_masks_or_saliency_are_empty(
    mass: float | None, tmp_path: Path
) -> None:
    store = Store(str(tmp_path))
    row = {"key": "a", "label": 0, "prediction": 0, "output": 0, "mask_area": 0.0}
    rows = pa.Table.from_pylist([{**row, "mass_in_mask": mass}], SALIENCY_SCHEMA)
    write_table(store, "measures.parquet", rows, "f")
    measures = measure_mass(store, ["measures.parquet"], {"a": "a"})
    found = msgspec.structs.asdict(measures)
    printed = saliency_table([made(SaliencyResult, model="m", **found)])
    cells = "0.0 [0.0, 0.0] 0.0 - 1" if mass == 0 else "- - - 0"
    assert printed.splitlines()[1].split() == ["m", *cells.split()]
