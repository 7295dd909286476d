"""Tests segmenters other than GrabCut: given masks, boxes, and the user's own functions."""

import hashlib
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from gcs import BUCKET, object_store
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image
from pycocotools import mask as coco
from runs import ONE, ROOT, index_of, manifest_of, pixels_of, refusal, run_here, run_in9, table_of
from soundness import assert_sound

from pipeline.commands.cli import main
from pipeline.dataset.config import SegmentConfig
from pipeline.errors import JobError
from pipeline.generate.cut_source import Cutter, SourceBytes
from pipeline.generate.segmenters import find_segmenter, index_masks, parameters_of
from pipeline.inputs.layout import find_layout, list_images
from pipeline.inputs.location import Location, read_location
from pipeline.storage.store import Store
from transforms.annotations import Box, parse_annotation
from transforms.codec import encode_png
from transforms.cutting import Cut, cut_objects
from transforms.filters import Reason
from transforms.geometry import ResizeCrop
from transforms.hashing import keyed_hash
from transforms.limits import MAX_ANNOTATION_BYTES
from transforms.masks import MaskError, bounding_box, read_mask
from transforms.scoring import PAPER_RULE
from transforms.segmentation import SEGMENTERS
from transforms.taxonomy import imagenet9
from transforms.variants import gaussian_noise

DOCS = ROOT / "docs"

Mask = NDArray[np.bool_]

REASONS = {
    "no box": "accepted",
    "no mask": "missing_annotation",
    "broken": "unreadable_annotation",
    "large": "size_mismatch",
    "empty": "not_one_box",
    "classes": "accepted",
}
"""What can be done to a mask, and the status it leads to."""


def png(array: NDArray[Any], mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(buffer, "PNG")
    return buffer.getvalue()


def resized(mask: Mask) -> Mask:
    """Applies Resize(256, nearest) + CenterCrop(224) with Pillow alone."""
    image = Image.fromarray(mask)
    width, height = image.size
    side = min(width, height)
    width, height = int(256 * width / side), int(256 * height / side)
    image = image.resize((width, height), Image.Resampling.NEAREST)
    left, top = round((width - 224) / 2), round((height - 224) / 2)
    return np.asarray(image.crop((left, top, left + 224, top + 224)))


@pytest.fixture(scope="module")
def truths(sample: Path) -> dict[str, Mask]:
    """True masks of the sample, by key."""
    return {
        path.stem: np.asarray(Image.open(path)) for path in (sample / "masks" / "val").iterdir()
    }


def change_mask(source: Path, key: str, change: str, truth: Mask) -> None:
    """Does something to the mask of an image, or to its annotation; `REASONS` says what."""
    mask = source / "masks" / "val" / f"{key}.png"
    if change in ("no box", "empty"):
        (source / "Annotations" / "val" / f"{key}.xml").unlink()
    if change == "no mask":
        mask.unlink()
    elif change == "broken":
        mask.write_bytes(mask.read_bytes()[:60])
    elif change == "large":
        mask.write_bytes(png(np.pad(truth, 1)))
    elif change == "empty":
        mask.write_bytes(png(np.zeros_like(truth)))
    elif change == "classes":
        # As in ImageNet-S, a folder of the class holds class 258 and ignored pixels.
        numbers = np.where(truth, 258, 0)
        numbers[:5][~truth[:5]] = 1000
        (image,) = source.glob(f"val/*/{key}.JPEG")
        (folder := mask.parent / image.parent.name).mkdir(exist_ok=True)
        mask.unlink()
        rgb = np.stack([numbers % 256, numbers // 256, numbers * 0], axis=2)
        (folder / f"{key}.png").write_bytes(png(rgb.astype(np.uint8)))


@pytest.fixture(scope="module")
def masked(
    sample: Path, truths: dict[str, Mask], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, str]]:
    """Output of the main job on three images a class of the sample, with given masks.

    One variant is from the documentation. Some images have no box, no mask, or a broken mask.

    Returns:
      (the dataset, what was done to each image, by key).
    """
    root = tmp_path_factory.mktemp("masks")
    source, output = Path(shutil.copytree(sample, root / "input")), root / "out"
    images, *_ = list_images(find_layout(str(source), None, "val"), imagenet9(), limit=3)
    done = dict(zip((image.key for image in images), REASONS, strict=False))
    for key, change in done.items():
        change_mask(source, key, change, truths[key])
    text = (DOCS / "variants.md").read_text()
    module = re.search(r"```python\n(# my_variants.py\n.+?)```", text, re.DOTALL)
    assert module is not None
    (root / "my_variants.py").write_text(module[1])
    variants = "original,fg_mask,mixed_rand,bg_blurred,noise_fg,noise_bg"
    command = ("run", "--output", output, "--input", source, "--limit", 3)
    command += ("--segmenter", "masks", "--masks", source / "masks")
    command += ("--variants", f"{variants},python:my_variants:fg_on_grey")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(root))
        run_in9(*command, "--fail_if", "fg_on_grey<0.0,noise_bg<0.0")
    return output, done


def test_given_masks_are_the_truth_after_the_resize(
    masked: tuple[Path, dict[str, str]], truths: dict[str, Mask]
) -> None:
    output, done = masked
    masks = pixels_of(output, "fg_mask")
    assert len(masks) == 27 - 4
    for key, mask in masks.items():
        expected = resized(truths[key])
        if done.get(key) == "classes":
            assert mask.any()
        np.testing.assert_array_equal(mask == 255, expected)


def test_what_is_wrong_with_a_mask_is_the_reason(masked: tuple[Path, dict[str, str]]) -> None:
    output, done = masked
    index = {row["key"]: row for row in index_of(output)}
    for key, change in done.items():
        assert index[key]["status"] == REASONS[change], change
    assert {row["segmenter"] for row in index.values()} == {"masks 1"}
    assert manifest_of(output)["segmenter"] == {"method": "masks", "version": 1, "parameters": {}}


def test_without_a_box_the_masks_bounding_box_serves(
    masked: tuple[Path, dict[str, str]], sample: Path
) -> None:
    # The sample's boxes were made from its masks.
    (key,) = (key for key, change in masked[1].items() if change == "no box")
    annotated = parse_annotation((sample / "Annotations" / "val" / f"{key}.xml").read_bytes())
    transform = ResizeCrop.for_size(
        native_width=annotated.width, native_height=annotated.height, resize=256, crop=224
    )
    (row,) = (row for row in index_of(masked[0]) if row["key"] == key)
    assert row["box"] == list(transform.box(annotated.boxes[0]))


def test_further_variants_are_composed_evaluated_and_read_without_their_module(
    masked: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    output, _ = masked
    originals, masks = pixels_of(output, "original"), pixels_of(output, "fg_mask")
    for key, grey in pixels_of(output, "fg_on_grey").items():
        background = grey[masks[key] == 0].astype(int)
        assert (abs(background - 128) < 3).mean() > 0.85  # JPEG rings beside the foreground.
        assert abs(grey[masks[key] > 0] - originals[key][masks[key] > 0].astype(int)).mean() < 20
    summary = [row for row in table_of(output, "summary") if row["label_rule"] == PAPER_RULE]
    rows = {row["variant"]: row for row in summary}
    assert {"bg_blurred", "fg_on_grey"} <= set(rows)
    noisy = [float(rows[name]["accuracy"]) for name in ("noise_fg", "noise_bg")]
    (measured,) = (row for row in table_of(output, "rfs") if row["label_rule"] == PAPER_RULE)
    assert [float(measured[name]) for name in ("noise_fg", "noise_bg")] == noisy
    mean = sum(noisy) / 2
    rfs = (noisy[1] - noisy[0]) / (2 * min(mean, 1 - mean))
    assert float(measured["rfs"]) == pytest.approx(rfs)
    config = manifest_of(output)["config"]
    assert config["variants"][-2:] == ["noise_bg", "python:my_variants:fg_on_grey@1"]
    page = (output / "report.html").read_text()
    assert "fg_on_grey" in page
    assert f"{rfs:.2f} <small" in page
    # One draw of one mixed variant leaves nothing to compare.
    assert "No flip rate" in page
    assert_sound(output)
    run_here("export", "--dataset", output, "--to", tmp_path)
    for variant in ("bg_blurred", "noise_fg", "fg_on_grey"):
        assert len(list(tmp_path.glob(f"{variant}/val/*/*.JPEG"))) == len(originals)


def test_noise_is_drawn_by_the_key_and_stored_without_loss(
    masked: tuple[Path, dict[str, str]],
) -> None:
    output, _ = masked
    masks, originals = pixels_of(output, "fg_mask"), pixels_of(output, "original")
    on_fg, on_bg = (pixels_of(output, name) for name in ("noise_fg", "noise_bg"))
    for key, mask in masks.items():
        is_fg = mask[..., np.newaxis] > 0
        image = np.where(is_fg, on_bg[key], on_fg[key]).astype(int)
        assert abs(image - originals[key]).mean() < 5  # JPEG loses a little.
        noise = gaussian_noise(keyed_hash(0, "noise", key), image.shape)
        noisy = np.where(is_fg, on_fg[key], on_bg[key])
        np.testing.assert_array_equal(noisy, np.clip(image + noise, 0, 255))


def cut(image: bytes, xml: bytes | None, mask: bytes | None, segmenter: str = "masks") -> Cut:
    segment = SEGMENTERS[segmenter].segment
    (result,) = cut_objects(
        image, xml, mask, segment=segment, seed=0, resize=256, crop=224, interpolation="nearest"
    )
    return result


def test_the_box_is_what_only_bg_b_blackens(sample: Path) -> None:
    for path in sorted(sample.glob("val/*/*.JPEG"))[::9]:
        xml = (sample / "Annotations" / "val" / f"{path.stem}.xml").read_bytes()
        layer = cut(path.read_bytes(), xml, None, "box").layer
        assert layer is not None
        expected = np.zeros((224, 224), np.bool_)
        expected[layer.box.y0 : layer.box.y1, layer.box.x0 : layer.box.x1] = True
        np.testing.assert_array_equal(layer.mask, expected)


def test_a_box_from_a_mask_leaves_nothing_of_the_object_in_the_background() -> None:
    mask = np.zeros((256, 256), np.bool_)
    mask[60:180, 40:200] = True
    image = np.where(mask[..., None], np.uint8([255, 0, 0]), np.uint8([0, 0, 255]))
    layer = cut(encode_png(image), None, png(mask)).layer
    assert layer is not None
    assert (layer.only_bg_t == [0, 0, 255]).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16"])
def test_masks_of_one_channel(mode: str) -> None:
    mask = np.random.default_rng(0).random((20, 30)) < 0.5
    data = png(mask.astype(np.uint16) * 7) if mode == "I;16" else png(mask, mode)
    result = read_mask(data)
    np.testing.assert_array_equal(result.mask, mask)
    assert result.boxes == (bounding_box(mask),)


def coco_text(*segmentations: object, height: int = 20, width: int = 30) -> bytes:
    content = {"height": height, "width": width, "segmentations": segmentations}
    return json.dumps(content).encode()


def test_coco_masks() -> None:
    mask = np.random.default_rng(0).random((20, 30)) < 0.5
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    compressed = {"size": [20, 30], "counts": encoded["counts"].decode()}
    np.testing.assert_array_equal(read_mask(coco_text(compressed)).mask, mask)
    runs = np.flatnonzero(np.diff(np.r_[0, mask.T.ravel(), 0]))
    counts = np.diff(np.r_[0, runs, 600 if runs[-1] != 600 else []]).astype(int).tolist()
    plain = {"size": [20, 30], "counts": counts}
    np.testing.assert_array_equal(read_mask(coco_text(plain)).mask, mask)
    two = read_mask(coco_text([[2, 3, 10, 3, 10, 9, 2, 9]], [[15, 3, 20, 3, 20, 9, 15, 9]]))
    assert two.boxes == (Box(2, 3, 10, 9), Box(15, 3, 20, 9))
    assert two.mask.sum() == 8 * 6 + 5 * 6


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"{}",
        coco_text({"size": [20, 30], "counts": [5, 5]}),
        coco_text({"size": [20, 30], "counts": [-600, 1200]}),
        coco_text({"size": [20, 30], "counts": "zzzz"}),
        coco_text({"size": [2, 3], "counts": [6]}),
        coco_text([[0, 0, 1e9, 0, 1e9, 1e9]]),
        coco_text([[0, 0, float("nan"), 0, 1, 1]]),
        coco_text([[0, 0, 1, 1]]),
        coco_text(height=60_000, width=60_000),
        png(np.zeros((4, 4, 4), np.uint8)),
    ],
)
def test_what_is_no_mask_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(MaskError):
        read_mask(data)
    picture = encode_png(np.zeros((20, 30, 3), np.uint8))
    assert cut(picture, None, data).reason == Reason.UNREADABLE_ANNOTATION


@pytest.mark.parametrize("more", [(1, 0), (0, 1)])
def test_a_mask_is_as_high_and_as_wide_as_its_picture(more: tuple[int, int]) -> None:
    mask = np.zeros((240 + more[0], 320 + more[1]), np.bool_)
    mask[60:180, 60:260] = True
    picture = encode_png(np.zeros((240, 320, 3), np.uint8))
    # The annotation has the picture's size; a mask alone tells both.
    corners = "<xmin>60</xmin><ymin>60</ymin><xmax>259</xmax><ymax>179</ymax>"
    size = "<size><width>320</width><height>240</height></size>"
    xml = f"<annotation>{size}<object><bndbox>{corners}</bndbox></object></annotation>".encode()
    for annotation in (xml, None):
        assert cut(picture, annotation, png(mask)).reason == Reason.SIZE_MISMATCH
        assert cut(picture, annotation, png(mask[:240, :320])).reason is None


def test_numbers_in_run_lengths_have_few_digits() -> None:
    # Runs of 200, 150, 100, 50 and 100 pixels. The fourth is stored as -100, in 6 or 7 digits. From
    # these seven digits, pycocotools reads -4.
    six, seven = (f"XV0fT0TS0{digits}PP0" for digits in ("lloooO", "llooooO"))
    assert read_mask(coco_text({"size": [20, 30], "counts": six})).mask.sum() == 200
    for counts in (seven, "o" * 1_000_000 + "0"):
        with pytest.raises(MaskError, match="more than 6 digits"):
            read_mask(coco_text({"size": [20, 30], "counts": counts}))


def test_masks_in_json_are_as_large_as_annotations_at_most() -> None:
    text = coco_text([[1, 1, 4, 1, 4, 4]])
    largest = text.ljust(MAX_ANNOTATION_BYTES)
    assert read_mask(largest).mask.any()
    with pytest.raises(MaskError, match="10000001 bytes"):
        read_mask(largest + b" ")


def test_polygons_of_an_object_are_merged_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # pycocotools needs time in proportion to the square of the number that it merges at once.
    numbers: list[int] = []
    merge = coco.merge
    monkeypatch.setattr(coco, "merge", lambda parts: [numbers.append(len(parts)), merge(parts)][1])
    corners = [(i * 37 % 300, i * 91 % 70) for i in range(1000)]
    squares = [[x, y, x + 1, y, x + 1, y + 1, x, y + 1] for x, y in corners]
    expected = np.zeros((76, 300), np.bool_)
    expected[[y for _, y in corners], [x for x, _ in corners]] = True
    mask = read_mask(coco_text(squares, height=76, width=300)).mask
    np.testing.assert_array_equal(mask, expected)
    assert max(numbers) <= 16


def test_objects_without_a_pixel_have_no_box() -> None:
    runs = [[i, 1, 600 - i - 1] for i in range(1, 10)]
    objects = [{"size": [20, 30], "counts": counts} for counts in ([600], *runs)]
    given = read_mask(coco_text(*objects))
    masks = [given.mask_of_box(position, given.boxes) for position in range(9)]
    assert [int(np.flatnonzero(mask.T)[0]) for mask in masks] == list(range(1, 10))


def coco_file(tiny_input: Path, truths: dict[str, Mask]) -> Path:
    """Writes the true masks of an input, at 2/5 of the sample's size, to a COCO file."""
    content: dict[str, list[Any]] = {"images": [], "annotations": []}
    for path in sorted(tiny_input.glob("val/*/*.JPEG")):
        width, height = Image.open(path).size
        mask = Image.fromarray(truths[path.stem]).resize((width, height))
        encoded = coco.encode(np.asfortranarray(np.asarray(mask, np.uint8)))
        number = len(content["images"])
        content["images"].append(
            {"id": number, "file_name": path.name, "height": height, "width": width}
        )
        segmentation = {"size": [height, width], "counts": encoded["counts"].decode()}
        content["annotations"].append({"image_id": number, "segmentation": segmentation})
    file = tiny_input / "coco.json"
    file.write_text(json.dumps(content))
    return file


def test_a_coco_file_alone_makes_a_dataset_and_remakes_what_changed(
    tiny_input: Path, truths: dict[str, Mask], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = coco_file(tiny_input, truths)
    shutil.rmtree(tiny_input / "Annotations")
    output = tmp_path / "out"
    flags = ["generate", "--output", str(output), "--input", str(tiny_input)]
    flags += ["--segmenter", "masks", "--masks", str(masks), "--variants", "fg_mask,mixed_rand"]
    assert main(flags) == 0
    before = pixels_of(output, "fg_mask")
    assert len(before) == 6
    kept = masks.read_text()
    content = json.loads(kept)
    height, width = content["annotations"][0]["segmentation"]["size"]
    box = [40, 20, width - 40, 20, width - 40, height - 20, 40, height - 20]
    content["annotations"][0]["segmentation"] = [box]
    masks.write_text(json.dumps(content))
    run_here(*flags, "--dry_run")
    assert "5 segmented already, 1 to segment" in capsys.readouterr().out
    masks.write_text(kept)
    # Without layers, foregrounds and backgrounds are cut again from the masks.
    flags += ["--layers", "drop", "--overwrite", "config"]
    assert main(flags) == 0
    capsys.readouterr()
    run_here(*flags, "--seed", "1")
    assert "0 images segmented" in capsys.readouterr().out
    for key, mask in pixels_of(output, "fg_mask").items():
        np.testing.assert_array_equal(mask, before[key])


def test_the_mask_of_its_class_is_an_images(tmp_path: Path) -> None:
    for name in ("n01/a.png", "n02/a.png", "n02/b.png", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")

    masks = index_masks(str(tmp_path), "v")
    asked = [("n01", "a"), ("n03", "a"), ("n03", "b"), ("n01", "c"), ("n01", "d")]
    chosen = [masks.find(*each) for each in asked]
    paths = [mask and mask.location.path.removeprefix(str(tmp_path)) for mask in chosen]
    assert paths == ["/n01/a.png", None, "/n02/b.png", "/c.png", None]
    assert len(masks) == 4


def save_network(path: Path, least: float = 0.0) -> None:
    """Saves a salient-object network that marks pixels redder than `least` in its input.

    The input is normalised, (1, 3, 320, 320).
    """
    make = helper.make_node
    nodes = [
        make("Split", ["input.1", "ones"], ["red", "green", "blue"], axis=1),
        make("Greater", ["red", "least"], ["found"]),
        make("Cast", ["found"], ["map"], to=TensorProto.FLOAT),
    ]
    constants = {"ones": np.ones(3, np.int64), "least": np.array(least, np.float32)}
    graph = helper.make_graph(
        nodes,
        "salient",
        [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [1, 3, 320, 320])],
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


DOCUMENTED = "python:my_segmenters:salient"
OTHER = "python:other_segmenters"
_OTHERS = """
import numpy as np
from transforms.segmentation import SegmentationError

def of_light(image, box):
    if image.mean() < 128:
        raise SegmentationError("too dark")
    return np.ones(image.shape[:2], bool)

def painted(image, box):
    image[:] = 0
    return np.ones(image.shape[:2], bool)

def listed(image, box):
    return painted(image, box).tolist()

def grey(image, box):
    return image[..., 0]

def of_channels(image, box):
    return image > 0

def failing(image, box):
    return box[4]

def of_other_version(image, box): ...
def of_remote(image, box): ...
def of_half(image, box): ...
def of_text(image, box): ...
def of_number(image, box): ...
def of_nothing(image, box): ...

of_light.version = "a=b"
of_other_version.version = 2
of_remote.files = ("gs://BUCKET/masks/n01/a.png",)
of_half.version = 0.5
of_text.files = "weights.bin"
of_number.files = [7]
of_nothing.files = ["/none/weights.bin"]
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder on PYTHONPATH with the module of the documentation, its network, and other modules."""
    folder = tmp_path / "modules"
    folder.mkdir()
    text = (DOCS / "segmenters.md").read_text()
    module = re.search(r"```python\n(# my_segmenters.py\n.+?)```", text, re.DOTALL)
    assert module is not None
    (folder / "my_segmenters.py").write_text(module[1])
    save_network(folder / "u2net.onnx")
    (folder / "other_segmenters.py").write_text(_OTHERS.replace("BUCKET", BUCKET))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    for name in ("my_segmenters", "other_segmenters"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder


def test_the_documented_network_finds_its_object_in_the_box(modules: Path) -> None:
    segment = find_segmenter(DOCUMENTED, parameters_of(DOCUMENTED)).segment
    assert segment is not None
    image = np.zeros((128, 256, 3), np.uint8)
    image[32:96, 64:128, 0] = image[32:96, 200:240, 0] = 255
    actual = segment(image, Box(40, 20, 160, 120), 0).mask
    expected = np.zeros((128, 256), np.bool_)
    expected[32:96, 64:128] = True
    assert (actual != expected).sum() <= 4  # The resize rounds the corners.


def test_the_documented_network_makes_a_dataset(
    tiny_input: Path, tmp_path: Path, modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    flags = ["generate", "--output", output, "--input", tiny_input, *ONE]
    flags += ["--variants", "fg_mask,original", "--segmenter", DOCUMENTED]
    run_in9(*flags)
    manifest = manifest_of(output)
    files = hashlib.sha256((modules / "u2net.onnx").read_bytes()).hexdigest()
    assert manifest["config"]["segmenter"] == DOCUMENTED
    assert manifest["config"]["segmenter_parameters"] == [f"files={files}", "version=1"]
    expected = {"method": DOCUMENTED, "version": "1", "parameters": {"files": files}}
    assert manifest["segmenter"] == expected
    labels = {row["segmenter"] for row in index_of(output)}
    assert labels == {f"{DOCUMENTED} 1 files={files}"}
    assert f"the user's own function, `{DOCUMENTED} 1" in (output / "README.md").read_text()
    first = pixels_of(output, "fg_mask")
    assert first
    # The same network in another file changes nothing; other weights change the configuration.
    module = modules / "my_segmenters.py"
    text = module.read_text()
    (modules / "u2net.onnx").rename(modules / "renamed.onnx")
    module.write_text(text.replace('"u2net.onnx"', '"renamed.onnx"'))
    assert "nothing to do" in run_in9(*flags).stdout
    module.write_text(text)
    save_network(modules / "u2net.onnx", 0.5)
    assert "--segmenter_parameters adds files=" in run_in9(*flags, check=2).stderr
    run_in9(*flags, "--overwrite", "config,rebuild")
    second = pixels_of(output, "fg_mask")
    assert any((second[key] < first[key]).any() for key in second)
    module.write_text(text.replace("version = 1", "version = 22"))
    assert "adds version=22 and lacks version=1" in run_in9(*flags, check=2).stderr
    # Reading the dataset needs no module.
    monkeypatch.delenv("PYTHONPATH")
    run_in9("verify", "--dataset", output)


def cut_by(name: str, picture: NDArray[np.uint8], sample: Path) -> Cut:
    """Cuts a picture with a function of `other_segmenters`, in a box from the sample."""
    source = SourceBytes(
        encode_png(picture),
        (sample / "Annotations" / "val" / "sample_val_00000014.xml").read_bytes(),
        location=Location("/here/pictures.tar", (0, 9)),
    )
    version = "version=a=b" if name == "of_light" else "version=1"
    name = f"{OTHER}:{name}"
    config = SegmentConfig(segmenter=name, segmenter_parameters=(version,))
    (result,) = Cutter(config).cut(source)
    return result


def test_a_function_may_reject_an_image_and_cannot_change_it(modules: Path, sample: Path) -> None:
    (path,) = sample.glob("val/*/sample_val_00000014.JPEG")
    picture = np.asarray(Image.open(path))
    assert cut_by("of_light", picture, sample).layer is not None
    dark = cut_by("of_light", picture // 4, sample)
    assert (dark.reason, dark.detail) == (Reason.SEGMENTATION_FAILED, "too dark")
    layer = cut_by("painted", picture, sample).layer
    assert layer is not None
    assert layer.image.any()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("listed", "listed returned list, not bool of shape (333, 500)"),
        ("grey", "grey returned uint8 of shape (333, 500), not bool of shape (333, 500)"),
        ("of_channels", "returned bool of shape (333, 500, 3), not bool of shape (333, 500)"),
        ("failing", "failing raised IndexError: tuple index out of range"),
        ("none_such", "other_segmenters has no function 'none_such', on every worker"),
        ("of_other_version", "version=2 here, not version=1. Run the same command again"),
    ],
)
def test_what_is_wrong_with_a_function_fails_the_job_with_the_image(
    name: str, message: str, modules: Path, sample: Path
) -> None:
    with pytest.raises(JobError) as caught:
        cut_by(name, np.zeros((333, 500, 3), np.uint8), sample)
    prefix = "/here/pictures.tar, 9 bytes at 0: --segmenter python:other_segmenters:"
    assert str(caught.value).startswith(prefix)
    assert message in str(caught.value)


def test_masks_and_weights_are_read_from_object_storage(tmp_path: Path, modules: Path) -> None:
    (tmp_path / "n01").mkdir()
    mask = np.eye(9, dtype=np.bool_)
    (tmp_path / "n01" / "a.png").write_bytes(png(mask))
    with object_store():
        here, remote = Store(str(tmp_path)), Store.at(f"gs://{BUCKET}/masks")
        here.copy_into(remote, [(path, path) for path in here.walk("")])
        file = index_masks(remote.root, "val").find("n01", "a")
        assert file is not None
        assert file.location.path == f"gs://{BUCKET}/masks/n01/a.png"
        assert file.md5
        np.testing.assert_array_equal(read_mask(read_location(file.location)).mask, mask)
        files = hashlib.sha256(png(mask)).hexdigest()
        parameters = parameters_of(f"{OTHER}:of_remote")
        assert parameters == (f"files={files}", "version=1")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("of_half", "its version must be a whole number or a text"),
        ("of_text", "its files must be a list of paths"),
        ("of_number", "its files must be a list of paths"),
        ("of_nothing", "/none/weights.bin cannot be read: No such file"),
    ],
)
def test_what_a_function_says_of_itself_is_checked(
    name: str, message: str, tmp_path: Path, modules: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("generate", "--output", tmp_path / "out", "--segmenter")
    assert message in refusal(capsys, *command, f"{OTHER}:{name}")
