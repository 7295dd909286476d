"""Tests models that fail in various ways beside models that succeed."""

import dataclasses
import functools
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from runs import ONE, run_in9, table_of
from tiny_models import Fixed

from pipeline.errors import ModelError, escaped
from pipeline.evaluate.results import FailedModel, RunSettings, note_failures, read_failures
from pipeline.models.identity import PredictConfig
from pipeline.models.predict import Predictor
from pipeline.models.registry import load_model
from pipeline.storage.store import Store

pytestmark = pytest.mark.usefixtures("no_figures")

GOOD = "efficientnet_lite0"


@dataclasses.dataclass(frozen=True)
class Mended:
    """A dataset with a broken checkpoint and a sound one, which the evaluation takes by `flags`."""

    output: Path
    junk: Path
    flags: tuple[object, ...]

    @property
    def entry(self) -> str:
        return f"mobilenetv3_small_050={self.junk}"

    @property
    def good(self) -> str:
        return f"mobilenetv3_small_050={self.junk.with_name('good.pth')}"

    def rows(self, entry: str) -> list[dict[str, str]]:
        rows = table_of(self.output, "summary")
        return [row for row in rows if row["model"] == escaped(entry)]


@pytest.fixture
def mended(small_run: Path, tmp_path: Path) -> Mended:
    """A dataset with a broken checkpoint, whose name is not UTF-8."""
    output, junk = Path(shutil.copytree(small_run, tmp_path / "out")), tmp_path / "junk\udcff.pth"
    junk.write_bytes(b"junk")
    network = timm.create_model("mobilenetv3_small_050", num_classes=9)
    torch.save(network.state_dict(), tmp_path / "good.pth")
    flags = ("evaluate", "--dataset", output, "--pictures", "none", *ONE)
    return Mended(output, junk, flags)


def test_a_model_that_fails_is_a_row_and_stops_nothing(mended: Mended) -> None:
    bad = escaped(mended.entry)
    done = run_in9(*mended.flags, "--models", f"{mended.entry},{GOOD},{mended.good}")
    assert f"not evaluated: {bad}: " in done.stderr
    assert "cannot be read as a checkpoint" in done.stderr
    for entry in (GOOD, mended.good):
        assert [row["error"] for row in mended.rows(entry)] == [""] * 16
    (failed,) = mended.rows(mended.entry)
    assert "cannot be read as a checkpoint" in failed["error"]
    assert failed["accuracy"] == ""
    noted = json.loads((mended.output / "results" / "failures.json").read_text())
    assert list(noted) == [bad]
    failure = noted[bad]["evaluate"]
    assert (failure["model"], failure["error"]) == (bad, failed["error"])
    assert failure["dataset"] == failed["dataset"]
    assert failure["evaluation"]["precision"] == "fp32"
    page = (mended.output / "report.html").read_text().replace("<wbr>", "")
    assert "mobilenetv3_small_050=junk\\udcff.pth" in page
    assert "cannot be read as a checkpoint" in page


def test_results_replace_a_failure_and_no_failure_replaces_results(mended: Mended) -> None:
    # A job in which all models fail has no table and no page to show.
    done = run_in9(*mended.flags, "--models", mended.entry, check=1)
    assert "cannot be read" in done.stderr
    assert not re.search("^(accuracy|report)", done.stdout, re.MULTILINE)
    shutil.copy(mended.junk.with_name("good.pth"), mended.junk)
    run_in9(*mended.flags, "--models", mended.entry)
    assert [row["error"] for row in mended.rows(mended.entry)] == [""] * 16
    assert not (mended.output / "results" / "failures.json").exists()
    mended.junk.write_bytes(b"junk")
    done = run_in9(*mended.flags, "--models", f"{mended.entry},{GOOD}")
    assert f"not evaluated: {escaped(mended.entry)}: " in done.stderr
    assert len(mended.rows(mended.entry)) == 16


def test_a_failure_is_of_an_entry_a_stage_and_a_dataset(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    settings = RunSettings(split="val", eval_input="stored", precision="fp32", holdout=0)

    def failed() -> dict[str, list[str]]:
        return {
            stage: [failure.error for failure in read_failures(store, "new", stage)[0]]
            for stage in ("evaluate", "attack")
        }

    b = FailedModel(0, "b", "b.tag", "first")
    note_failures(store, "old", "evaluate", settings, [FailedModel(1, "a", "a", "no")], [])
    assert read_failures(store, "old", "evaluate")[0][0].entry == "a"
    assert read_failures(store, "new", "evaluate") == ([], ["a"])
    for stage in ("evaluate", "attack"):
        note_failures(store, "new", stage, settings, [b], ["c"])
    assert read_failures(store, "new", "evaluate")[1] == []
    note_failures(store, "new", "evaluate", settings, [FailedModel(0, "b", "b.tag", "again")], [])
    assert failed() == {"evaluate": ["again"], "attack": ["first"]}
    # `b.tag` is another entry for the same model.
    note_failures(store, "new", "evaluate", settings, [], ["b.tag"])
    assert failed() == {"evaluate": [], "attack": ["first"]}
    note_failures(store, "new", "attack", settings, [], ["b", "b.tag"])
    assert list(tmp_path.glob("results/*")) == []


def test_text_that_is_not_utf8_is_escaped_when_it_is_written_and_when_it_is_read(
    tmp_path: Path,
) -> None:
    store, path = Store(str(tmp_path)), tmp_path / "results" / "failures.json"
    settings = RunSettings(split="val", eval_input="stored", precision="fp32", holdout=0)
    spoilt = FailedModel(0, "a=\udcff", "a=\udcff", "no \ud800\nsense")
    note_failures(store, "new", "evaluate", settings, [spoilt], [])
    written = path.read_text()
    (failure,) = read_failures(store, "new", "evaluate")[0]
    assert (failure.entry, failure.error) == ("a=\\udcff", "no \\ud800\\nsense")
    # Earlier releases wrote such text as it was; the next change of the file mends it.
    path.write_text(written.replace(r"\\ud", r"\ud"))
    assert json.loads(path.read_text()) != json.loads(written)
    assert read_failures(store, "new", "evaluate")[0] == [failure]
    other = FailedModel(1, "b", "b", "no")
    note_failures(store, "new", "evaluate", settings, [other], [])
    assert path.read_text().count(r"\\udcff") == written.count(r"\\udcff")
    note_failures(store, "new", "evaluate", settings, [], ["a=\udcff", "b"])
    assert not path.exists()


class Narrow(torch.nn.Module):
    """A network that runs out of memory, raises an error or returns a wrong shape."""

    def __init__(self, room: int, outputs: int = 1000) -> None:
        super().__init__()
        self.room = room
        self.outputs = outputs
        self.seen: list[int] = []

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(pictures))
        if len(pictures) > self.room:
            raise torch.cuda.OutOfMemoryError("no room")
        if self.outputs == 0:
            raise KeyError("lost")
        return pictures.mean((1, 2, 3))[:, None] * torch.arange(self.outputs)


small_model = functools.cache(functools.partial(load_model, "python:tiny_models:first"))


def predictor(module: Narrow) -> Predictor:
    return Predictor(dataclasses.replace(small_model(), module=module), PredictConfig())


class Pictures:
    """A part with five black pictures."""

    name, count = "black", 5

    def tables(self, columns: tuple[str, ...]) -> Iterator[pa.Table]:
        data = io.BytesIO()
        Image.new("RGB", (8, 8)).save(data, "PNG")
        table = {"key": list("abcde"), "image": [data.getvalue()] * 5}
        yield pa.table(table).select(["key", *columns])


@given(
    arrays.arrays(np.float32, (5, 3), elements=st.sampled_from([0, -1, np.nan, np.inf, -np.inf])),
    st.sampled_from(["fp32", "bf16"]),
)
def test_a_mask_is_a_number_but_nan_and_infinity_and_nothing_but_masks_are_not(
    outputs: np.ndarray, precision: str
) -> None:
    model = dataclasses.replace(small_model(), module=Fixed(outputs), num_outputs=3)
    batches = Predictor(model, PredictConfig("cpu", precision)).logits([Pictures()], 8)
    wrong = [np.isnan(r).any() or (r == np.inf).any() or (r == -np.inf).all() for r in outputs]
    if any(wrong):
        with pytest.raises(ModelError, match=f"not numbers .* for {sum(wrong)} of 5 pictures"):
            list(batches)
    else:
        ((_, logits),) = batches
        np.testing.assert_array_equal(logits, outputs)


def test_a_batch_that_does_not_fit_is_halved() -> None:
    pictures = torch.rand(7, 3, 16, 16)
    narrow, wide = Narrow(2), Narrow(7)
    torch.testing.assert_close(
        predictor(narrow).forward(pictures), predictor(wide).forward(pictures)
    )
    assert narrow.seen == [7, 4, 2, 2, 2, 1]
    with pytest.raises(ModelError, match="not enough memory for a single picture"):
        predictor(Narrow(0)).forward(pictures)


def test_the_size_that_fits_is_tried_once() -> None:
    narrow = Narrow(100)
    tight = predictor(narrow)
    for _ in range(3):
        tight.forward(torch.rand(256, 3, 4, 4))
    assert narrow.seen == [256, 128] + [64] * 12


def test_results_never_name_a_precision_that_the_device_does_not_have() -> None:
    with pytest.raises(ModelError, match=r"tf32 needs a GPU .* computes fp32"):
        Predictor(small_model(), PredictConfig("cpu", "tf32"))


def test_what_a_module_does_wrong_is_its_models_failure() -> None:
    pictures = torch.rand(2, 3, 16, 16)
    with pytest.raises(ModelError, match="KeyError: 'lost'"):
        predictor(Narrow(2, outputs=0)).forward(pictures)
    with pytest.raises(ModelError, match=r"returns .* of shape \(2, 7\) for 2 pictures, not 1000"):
        predictor(Narrow(2, outputs=7)).forward(pictures)
