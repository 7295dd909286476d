"""Tests `in9 show`: the pictures that it composes, their backgrounds, and the answers to them."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image
from released_folders import samples_of
from runs import ONE, QUICK, refusal, run_here

from pipeline.dataset.folder import sample_folder
from transforms.codec import decode_image
from transforms.geometry import Pixels
from transforms.taxonomy import IN9_NAMES
from transforms.variants import PICTURES

KEY = "sample_val_00000016"


def photo() -> Path:
    (path,) = Path(sample_folder()).glob(f"val/*/{KEY}.JPEG")
    return path


@pytest.fixture
def words(sample_run: Path) -> tuple[object, ...]:
    """A command that shows a picture of the sample with the box that it has there."""
    index = pandas.read_parquet(sample_run / "index").set_index("key")
    box = ",".join(map(str, index.loc[KEY, "native_box"]))
    return "show", photo(), "--box", box, "--to"


def pictures_in(page: str) -> list[Pixels]:
    found = re.findall(r'"data:image/png;base64,\s*([^"]+)"', page)
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")) for data in found
    ]


def texts_in(page: str) -> list[str]:
    return re.findall(r"<(?:text|tspan)[^>]*>([^<]+)</", page)


def test_an_image_of_a_dataset_gets_its_variants_and_backgrounds(
    sample_run: Path, words: tuple[object, ...], tmp_path: Path
) -> None:
    page = tmp_path / "a.html"
    run_here(*words, page, "--dataset", sample_run, "--class", "bird")
    shown = pictures_in(page.read_text())
    assert len(shown) == len(PICTURES)
    for name, picture in zip(PICTURES, shown, strict=True):
        (sample,) = [one for one in samples_of(sample_run, name) if one.key == KEY]
        # The dataset's pictures are JPEGs, and so is the background that is read from it.
        stored = np.asarray(decode_image(sample.image), float)
        assert np.abs(stored - picture).mean() < 4, name
        if sample.fields["bg_label"] is not None:
            assert f"on {IN9_NAMES[sample.fields['bg_label']]}" in texts_in(page.read_text())


def test_the_answers_are_those_of_the_run(
    sample_run: Path, words: tuple[object, ...], tmp_path: Path
) -> None:
    run_here("export", "--dataset", sample_run, "--images", KEY, "--to", tmp_path / "run.html")
    printed = run_here(*words, tmp_path / "show.html", "--dataset", sample_run).out
    rows = pandas.read_parquet(sample_run / "results" / "efficientnet_lite0" / "predictions")
    rows = rows[(rows["key"] == KEY) & (rows["label_rule"] == "argmax_then_map")]
    exported = texts_in((tmp_path / "run.html").read_text())
    shown = texts_in((tmp_path / "show.html").read_text())
    wanted = [
        f"{'✓' if row.correct else '✕'} "
        f"{IN9_NAMES[row.prediction] if row.prediction >= 0 else 'none of these'}"
        for row in rows.set_index("variant").loc[list(PICTURES)].itertuples()
    ]
    assert [text for text in exported if text[:2] in ("✓ ", "✕ ")] == wanted
    assert [text for text in shown if text[:2] in ("✓ ", "✕ ")] == wanted
    assert exported[-1] == shown[-1] == "answers of efficientnet_lite0"
    assert "class: bird, as efficientnet_lite0 answers; --class names another" in printed


def test_the_sample_has_backgrounds_and_the_same_call_gives_the_same_bytes(
    words: tuple[object, ...], tmp_path: Path
) -> None:
    labelled = ("--class", "fish", "--models", "mine:=efficientnet_lite0")
    for name in ("one.png", "two.png", "one.html"):
        run_here(*words, tmp_path / name, *labelled)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    texts = texts_in((tmp_path / "one.html").read_text())
    assert {"on fish", "on dog", "answers of mine"} <= set(texts)
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.width == 1650


def test_a_dataset_without_backgrounds_is_refused(tiny_input: Path, tmp_path: Path) -> None:
    variants = ("--variants", "original")
    run_here(
        "generate", "--input", tiny_input, "--output", tmp_path / "out", *variants, *QUICK, *ONE
    )
    flags = ("--box", "10,10,200,200", "--to", tmp_path / "a.png", "--dataset", tmp_path / "out")
    line = refusal("show", photo(), *flags, "--class", "bird")
    assert "has no background for mixed_same: it lacks images of the class" in line
    assert not (tmp_path / "a.png").exists()


def test_outputs_that_are_no_numbers_have_no_answers(
    words: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text(
        "import tiny_models\n"
        "def net():\n"
        "    network = tiny_models.first()\n"
        "    network[2].bias.data[:] = float('nan')\n"
        "    return network\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    printed = run_here(*words, tmp_path / "a.png", "--models", "python:broken:net", code=1).err
    assert "its outputs are not numbers but NaN or infinity" in printed
    assert not (tmp_path / "a.png").exists()
