"""Tests segmenters of the user's own: the documented network, versions, files and errors."""

import hashlib
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from gcs import BUCKET, object_store
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image
from runs import ONE, ROOT, index_of, manifest_of, pixels_of, refusal, run_in9

from pipeline.dataset.config import SegmentConfig
from pipeline.errors import JobError
from pipeline.generate.cut_source import Cutter, SourceBytes
from pipeline.generate.segmenters import find_segmenter, index_masks, parameters_of
from pipeline.inputs.location import Location, read_location
from pipeline.storage.store import Store
from transforms.annotations import Box
from transforms.codec import encode_png
from transforms.cutting import Cut
from transforms.filters import Reason
from transforms.masks import read_mask


def save_network(path: Path, least: float = 0.0) -> None:
    """Saves a salient-object network that marks pixels redder than `least` in its input.

    The input is normalised, (1, 3, 320, 320).
    """
    make, floats = helper.make_node, TensorProto.FLOAT
    nodes = [
        make("Split", ["input.1", "ones"], ["red", "green", "blue"], axis=1),
        make("Greater", ["red", "least"], ["found"]),
        make("Cast", ["found"], ["map"], to=floats),
    ]
    pictures = helper.make_tensor_value_info("input.1", floats, [1, 3, 320, 320])
    found = helper.make_tensor_value_info("map", floats, None)
    constants = {"ones": np.ones(3, np.int64), "least": np.array(least, np.float32)}
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "salient", [pictures], [found], tensors)
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

def whole(image, box):
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
    text = (ROOT / "docs" / "segmenters.md").read_text()
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
    module.write_text(text.replace("version = 1", "version = 22"))
    save_network(modules / "u2net.onnx", 0.5)
    refused = run_in9(*flags, check=2).stderr
    assert "--segmenter_parameters adds files=" in refused
    assert "version=22 and lacks files=" in refused
    run_in9(*flags, "--overwrite", "config,rebuild")
    second = pixels_of(output, "fg_mask")
    assert any((second[key] < first[key]).any() for key in second)
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
        ("whole", "whole returned bool of shape (333, 500, 3), not bool of shape (333, 500)"),
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
    mask, path = np.eye(9, dtype=np.bool_), tmp_path / "n01" / "a.png"
    Image.fromarray(mask).save(path)
    with object_store():
        here, remote = Store(str(tmp_path)), Store.at(f"gs://{BUCKET}/masks")
        here.copy_into(remote, [(path, path) for path in here.walk("")])
        file = index_masks(remote.root, "val").find("n01", "a")
        assert file is not None
        assert file.location.path == f"gs://{BUCKET}/masks/n01/a.png"
        assert file.md5
        np.testing.assert_array_equal(read_mask(read_location(file.location)).mask, mask)
        files = hashlib.sha256(path.read_bytes()).hexdigest()
        assert parameters_of(f"{OTHER}:of_remote") == (f"files={files}", "version=1")


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
    name: str, message: str, tmp_path: Path, modules: Path
) -> None:
    command = ("generate", "--output", tmp_path / "out", "--segmenter")
    assert message in refusal(*command, f"{OTHER}:{name}")
