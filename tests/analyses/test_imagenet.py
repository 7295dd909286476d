"""Tests accuracy on ImageNet, as it is published and as it is measured."""

import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import timm
import torch
from made_results import stored
from PIL import Image
from runs import ONE, ROOT, csv_rows, run_in9, table_of
from small_models import checkpoint

from pipeline.analyses.imagenet.results import (
    ImageNetResult,
    published_top1,
)
from pipeline.analyses.imagenet.stage import (
    IMAGES_PER_SHARD,
    ImageNetImage,
    ImageNetListing,
    PlannedImageNet,
    list_imagenet,
    listing_digest,
)
from pipeline.dataset.folder import Dataset
from pipeline.errors import JobError, UsageError
from pipeline.evaluate.model_stage import Block, RunModels
from pipeline.evaluate.planned import Evaluation
from pipeline.models.identity import PredictConfig
from pipeline.models.registry import load_model
from pipeline.runtime.progress import Progress
from pipeline.storage.state_files import convert
from pipeline.storage.store import Store
from transforms.taxonomy import imagenet9

TABLE = ROOT / "pipeline" / "data" / "imagenet_top1.csv"


def test_published_figures_are_of_weights_that_exist() -> None:
    rows = csv_rows(TABLE)
    known = set(timm.list_pretrained())
    assert len({row["name"] for row in rows}) > 300
    assert len({(row["name"], row["size"]) for row in rows}) == len(rows)
    for row in rows:
        assert 40 < float(row["top1"]) < 92
        assert row["source"]
        if ":" not in row["name"] and "." in row["name"]:
            assert row["name"] in known, row["name"]
            config = timm.get_pretrained_cfg(row["name"])
            sizes = [config.input_size, config.test_input_size]
            assert int(row["size"]) in [size[-1] for size in sizes if size], row["name"]


def test_torchvision_figures_are_torchvisions() -> None:
    models = pytest.importorskip("torchvision").models
    rows = [row for row in csv_rows(TABLE) if row["name"].startswith("torchvision:")]
    assert len(rows) > 80
    for row in rows:
        _, name, weights = row["name"].split(":")
        meta = models.get_model_weights(name)[weights].meta
        assert meta["_metrics"]["ImageNet-1K"]["acc@1"] == pytest.approx(float(row["top1"]))


def test_a_figure_is_looked_up_by_tag_and_size() -> None:
    small, large = published_top1("resnet50.a1_in1k", 224), published_top1("resnet50.a1_in1k", 288)
    assert small is not None
    assert large is not None
    assert (small.imagenet_top1, large.imagenet_top1) == (0.80382, 0.8124)
    assert small.imagenet_n == 50_000
    source = r"published: timm results-imagenet\.csv .*, 224 px"
    assert re.fullmatch(source, small.imagenet_source)
    assert published_top1("resnet50.a1_in1k", 300) == large
    assert published_top1("hf:timm/resnet50.a1_in1k", 224) == small
    # Neither an architecture without a tag nor a checkpoint file has a published figure.
    assert published_top1("resnet50", 224) is None
    assert published_top1("resnet50=resnet50.a1_in1k", 224) is None


@pytest.fixture(scope="module")
def tiny_imagenet(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 pictures of ImageNet-9's classes, two of another class, one of none, and a text file.

    Tests must not change it.
    """
    root = tmp_path_factory.mktemp("imagenet") / "imagenet"
    shutil.copytree(small_sample, root)
    shutil.rmtree(root / "Annotations")
    pictures = sorted(root.glob("val/*/*.JPEG"))
    for folder, chosen in (("n02123045", pictures[:2]), ("n99999999", pictures[:1])):
        (root / "val" / folder).mkdir()
        for picture in chosen:
            shutil.copy(picture, root / "val" / folder / f"{folder}_{picture.name}")
    (root / "val" / "n02123045" / "notes.txt").write_text("no picture")
    return root


def test_listings_find_pictures_with_and_without_folders(
    tiny_imagenet: Path, small_sample: Path, tmp_path: Path
) -> None:
    listing = list_imagenet(str(tiny_imagenet), imagenet9())
    assert (len(listing.images), listing.num_unknown) == (20, 1)
    classes = {image.output_index for image in listing.images}
    assert len(classes) == 1 + len(list(small_sample.glob("val/*")))
    again = list_imagenet(str(tiny_imagenet / "val"), imagenet9())
    assert listing_digest(again.images) == listing_digest(listing.images)
    for image in listing.images:
        assert imagenet9().wnids[image.output_index] == image.name.split("/")[0]

    flat = tmp_path / "flat"
    shutil.copytree(small_sample / "Annotations", flat / "Annotations")
    (flat / "val").mkdir()
    for picture in small_sample.glob("val/*/*.JPEG"):
        shutil.copy(picture, flat / "val")
    indices = {
        image.name: image.output_index for image in list_imagenet(str(flat), imagenet9()).images
    }
    assert indices == {
        image.name.split("/")[1]: image.output_index
        for image in listing.images
        if not image.name.startswith("n02123045")
    }
    shutil.rmtree(flat / "Annotations")
    with pytest.raises(UsageError, match="none of the 18 images"):
        list_imagenet(str(flat), imagenet9())


def test_shards_of_a_listing_hold_every_image_once() -> None:
    count = 3 * IMAGES_PER_SHARD
    images = tuple(ImageNetImage(f"/x/{i}", f"n01440764/{i}.JPEG", i, 0) for i in range(count))
    shards = ImageNetListing(images, 0).shards
    assert len(shards) == 3
    assert sorted(image.bytes for shard in shards for image in shard) == [*range(count)]
    assert all(len(shard) < 1.2 * IMAGES_PER_SHARD for shard in shards)


@pytest.fixture(scope="module")
def measured(
    quick_shards: Path, tiny_imagenet: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A dataset with top-1 of one of three models, and what the command said.

    A head of nine outputs cannot name ImageNet's classes, and a checkpoint is broken. Tests must
    not change the dataset.
    """
    root = tmp_path_factory.mktemp("measured")
    output, broken = Path(shutil.copytree(quick_shards, root / "out")), root / "broken.pth"
    broken.write_bytes(b"junk")
    models = f"efficientnet_lite0,{checkpoint(root / 'nine.pth')},resnet18={broken}"
    flags = ("--models", models, "--imagenet", tiny_imagenet, "--pictures", "none", *ONE)
    said = run_in9("evaluate", "--dataset", output, *flags).stdout
    assert f"ImageNet top-1, resnet18={broken}: not measured: " in " ".join(said.split())
    return output, said


def test_top1_is_the_models_own_on_the_whole_picture(
    measured: tuple[Path, str], tiny_imagenet: Path
) -> None:
    """Compares each image with timm's own transform and an argmax over 1000 outputs."""
    output, printed = measured
    assert "20 ImageNet images classified" in printed
    module = load_model("efficientnet_lite0").module
    transform = timm.data.create_transform(
        **timm.data.resolve_model_data_config(module), is_training=False
    )
    expected = {}
    for path in tiny_imagenet.glob("val/*/*.JPEG"):
        if path.parent.name != "n99999999":
            with Image.open(path) as picture, torch.inference_mode():
                logits = module(transform(picture.convert("RGB"))[None])
            expected[f"{path.parent.name}/{path.name}"] = int(logits.argmax())
    folder = output / "results" / "efficientnet_lite0"
    rows = pq.read_table(folder / "imagenet" / "val-00000.parquet").to_pylist()
    assert {row["name"]: row["prediction"] for row in rows} == expected
    result = json.loads((folder / "imagenet.json").read_text())
    assert stored(convert(result, ImageNetResult)) == result
    correct = sum(imagenet9().wnids[best] == name[:9] for name, best in expected.items())
    assert (result["n"], result["correct"], result["unknown"]) == (20, correct, 1)
    assert result["top1"] == correct / 20
    assert result["ci_low"] < result["top1"] < result["ci_high"]
    assert f"ImageNet top-1, efficientnet_lite0: {5 * correct:.1f} %" in printed
    assert len(list(output.glob("results/*/imagenet.json"))) == 1
    columns, rows = ("imagenet_n", "imagenet_top1", "imagenet_source"), table_of(output, "trend")
    by_model = {row["model"]: tuple(row[column] for column in columns) for row in rows}
    source = f"measured: 20 images of {result['classes']} classes"
    assert by_model.pop("efficientnet_lite0") == ("20", str(result["top1"]), source)
    assert {top1 for _, top1, _ in by_model.values()} == {""}


def test_a_broken_picture_of_imagenet_ends_the_job(
    quick_shards: Path, tiny_imagenet: Path, tmp_path: Path
) -> None:
    imagenet = Path(shutil.copytree(tiny_imagenet, tmp_path / "imagenet"))
    store = Store(str(shutil.copytree(quick_shards, tmp_path / "out")))
    models, progress = ("python:tiny_models:first",), Progress.for_store(store)
    evaluation = Evaluation(store, models, "val", PredictConfig(), progress)
    broken = imagenet / "val" / "n02123045" / "n02123045_broken.JPEG"
    broken.write_bytes(b"junk")
    with pytest.raises(JobError, match=r"n02123045/n02123045_broken\.JPEG of --imagenet"):
        RunModels(PlannedImageNet(evaluation, str(imagenet), imagenet9())).process(Block(0, 0))
    work = PlannedImageNet(evaluation, str(imagenet), imagenet9())
    assert work.chunks(Dataset.open(store))  # Lists the images with their sizes.
    broken.write_bytes(b"more junk")
    with pytest.raises(OSError, match=r"_broken\.JPEG has changed while it was read"):
        RunModels(work).process(Block(0, 0))
    with pytest.raises(UsageError, match=r"--imagenet .*nowhere does not exist"):
        list_imagenet(str(tmp_path / "nowhere"), imagenet9())
