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
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from runs import ONE, run_in9, table_of
from small_models import checkpoint
from tiny_models import Fixed

from pipeline.errors import ModelError, escaped
from pipeline.evaluate.results import FailedModel, RunSettings, note_failures, read_failures
from pipeline.models.identity import PredictConfig
from pipeline.models.predict import Predictor
from pipeline.models.registry import load_model
from pipeline.storage.store import Store

pytestmark = pytest.mark.usefixtures("no_figures")

GOOD = "python:tiny_models:first"


def test_a_model_that_fails_is_a_row_and_stops_nothing(for_gaps: Path, tmp_path: Path) -> None:
    """Tests a broken checkpoint, whose name is not UTF-8, beside sound models."""
    output, junk = Path(shutil.copytree(for_gaps, tmp_path / "out")), tmp_path / "junk\udcff.pth"
    good, entry = checkpoint(tmp_path / "good.pth"), f"mobilenetv3_small_050={junk}"
    flags = ("evaluate", "--dataset", output, "--pictures", "none", *ONE, "--models")
    bad = escaped(entry)

    def errors(model: str) -> list[str]:
        return [row["error"] for row in table_of(output, "summary", model=model)]

    junk.write_bytes(b"junk")
    # A job in which all models fail has no table and no page to show.
    done = run_in9(*flags, entry, check=1)
    assert "cannot be read" in done.stderr
    assert not re.search("^(accuracy|report)", done.stdout, re.MULTILINE)
    done = run_in9(*flags, f"{entry},{GOOD},{good}")
    assert f"not evaluated: {bad}: " in done.stderr
    assert errors(GOOD) == errors(good) == [""] * 6
    (error,) = errors(bad)
    assert "cannot be read as a checkpoint" in error
    noted = json.loads((output / "results" / "failures.json").read_text())
    assert list(noted) == [bad]
    failure = noted[bad]["evaluate"]
    assert (failure["model"], failure["error"]) == (bad, error)
    assert failure["evaluation"]["precision"] == "fp32"
    page = (output / "report.html").read_text().replace("<wbr>", "")
    assert "mobilenetv3_small_050=junk\\udcff.pth" in page
    assert "cannot be read as a checkpoint" in page
    # Results replace a failure, and no failure replaces results.
    shutil.copy(tmp_path / "good.pth", junk)
    run_in9(*flags, entry)
    assert errors(bad) == [""] * 6
    assert not (output / "results" / "failures.json").exists()
    junk.write_bytes(b"junk")
    assert f"not evaluated: {bad}: " in run_in9(*flags, f"{entry},{GOOD}").stderr
    assert errors(bad) == [""] * 6


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


def test_a_batch_that_does_not_fit_is_halved_until_one_fits() -> None:
    pictures, narrow, wide = torch.rand(7, 3, 16, 16), Narrow(2), Narrow(7)
    few = predictor(narrow)
    torch.testing.assert_close(few.forward(pictures), predictor(wide).forward(pictures))
    assert narrow.seen == [7, 4, 2, 2, 2, 1]
    # The size that fits is tried first from then on.
    few.forward(pictures)
    assert narrow.seen[6:] == [2, 2, 2, 1]
    with pytest.raises(ModelError, match="not enough memory for a single picture"):
        predictor(Narrow(0)).forward(pictures)


def test_results_never_name_a_precision_that_the_device_does_not_have() -> None:
    with pytest.raises(ModelError, match=r"tf32 needs a GPU .* computes fp32"):
        Predictor(small_model(), PredictConfig("cpu", "tf32"))


def test_what_a_module_does_wrong_is_its_models_failure() -> None:
    pictures = torch.rand(2, 3, 16, 16)
    with pytest.raises(ModelError, match="KeyError: 'lost'"):
        predictor(Narrow(2, outputs=0)).forward(pictures)
    with pytest.raises(ModelError, match=r"returns .* of shape \(2, 7\) for 2 pictures, not 1000"):
        predictor(Narrow(2, outputs=7)).forward(pictures)
