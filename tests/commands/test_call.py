"""Tests `in9.evaluate_model` and what stands beside it."""

import contextlib
import gc
import random
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import tiny_models
import torch
from numpy.typing import NDArray
from runs import ONE, TINY_MODEL, everything, refusal, run_here, run_python, table_of
from small_models import network

import in9
from pipeline.errors import UsageError
from pipeline.models.identity import IMAGENET_MEAN, IN9_MEAN
from transforms.scoring import CLOSED_CHOICE, PAPER_RULE
from transforms.taxonomy import imagenet9

pytestmark = pytest.mark.usefixtures("no_figures")

Pictures = NDArray[np.uint8]


class Foreign:
    """An array of another library, which NumPy knows by the array protocol."""

    def __init__(self, values: NDArray[Any]) -> None:
        self._values = values
        values.flags.writeable = False  # As that of JAX is.

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self._values


class Negated(torch.nn.Module):
    """Names a superclass by mean colours, times a sign that its tensors do not tell."""

    def __init__(self, sign: int) -> None:
        super().__init__()
        self.sign, self.network = sign, network(9)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.sign * self.network(pictures)
        return outputs


def brightness(pictures: Pictures) -> Foreign:
    """Names a superclass by the mean of the pixels."""
    assert pictures.dtype == np.uint8
    assert pictures.shape[1:] == (64, 64, 3)
    return Foreign(pictures.mean(axis=(1, 2, 3)).astype(np.int64) % 9)


def test_labels_scores_and_classes_of_one_function_agree(three_draws: Path) -> None:
    dataset, before = in9.open_dataset(three_draws), everything(three_draws)
    labels = in9.evaluate_model(dataset, brightness, name="labels")
    first = [imagenet9().labels.index(label) for label in range(9)]

    sizes = set()

    def classes(pictures: Pictures) -> NDArray[Any]:
        sizes.add(len(pictures))
        return np.asarray(first)[np.asarray(brightness(pictures))]

    named = in9.evaluate_model(dataset, classes, name="classes", outputs="imagenet")
    assert sizes == {18}
    in_bfloat16 = torch.eye(1000, dtype=torch.bfloat16)
    scores = in9.evaluate_model(
        three_draws, lambda pictures: in_bfloat16[classes(pictures)], name="scores", batch_size=5
    )
    assert sizes == {18, 5, 3}
    assert labels.summary.label_rules == (CLOSED_CHOICE,)
    assert named.summary.label_rules == (PAPER_RULE,)
    assert scores.summary.label_rules == (PAPER_RULE, "mapped_only")
    assert 0 < labels.accuracy["original"][0] < 1
    assert labels.accuracy == named.accuracy == scores.accuracy
    assert labels.bg_gap == named.bg_gap == scores.bg_gap
    flips = [[row.flip_rate for row in one.summary.flips] for one in (labels, named, scores)]
    assert flips == [flips[0], flips[0], flips[0] * 2]
    assert [row["variant"] for row in scores.tables["power"]] == ["only_bg_t"]
    assert set(labels.to_pandas("gaps")["model"]) == {"call:labels"}
    assert "BG-Gap" in labels._repr_html_()
    assert len(repr(labels)) < 1000
    assert repr(labels).startswith("EvaluatedModel(call:labels, by closed_choice; in %: original ")
    of_picture = labels.to_pandas("predictions")
    original = of_picture[of_picture["variant"] == "original"]
    assert original["correct"].mean() == labels.accuracy["original"][0]
    with pytest.raises(ValueError, match="'gap' is none of the tables: predictions, summary, "):
        labels.to_pandas("gap")
    with pytest.raises(UsageError, match="a function gets pictures as stored"):
        in9.evaluate_model(dataset, brightness, name="labels", preprocessing={})
    assert everything(three_draws) == before


@pytest.mark.parametrize("own", [{}, {"std": (0.25, 0.25, 0.25)}])
def test_a_module_of_timm_is_fed_as_it_says_itself(
    three_draws: Path, own: dict[str, tuple[float, ...]]
) -> None:
    """So that the call agrees with the same weights by their name in timm."""
    module = timm.create_model("test_vit", num_classes=1000)
    known = module.pretrained_cfg
    called = in9.evaluate_model(three_draws, module, name="timm's", preprocessing=own)
    used = called.summary.preprocessing
    assert (used.mean, used.std) == (known["mean"], own.get("std", known["std"]))
    assert (used.mean, used.input_size) != (IMAGENET_MEAN, 224)
    assert f"with mean {used.mean}, std {used.std}" in called._repr_html_()
    nine = timm.create_model("test_vit", num_classes=9)
    assert in9.evaluate_model(three_draws, nine, name="nine").summary.preprocessing.mean == IN9_MEAN


def test_no_library_is_loaded_that_a_model_does_without(three_draws: Path) -> None:
    code = (
        "import sys, in9, numpy\n"
        "called = in9.evaluate_model(\n"
        "    sys.argv[1], lambda p: numpy.full(len(p), -1), name='none')\n"
        "print('torch' in sys.modules, 'apache_beam' in sys.modules)\n"
        "sys.modules['pandas'] = None\n"
        "try:\n"
        "    called.to_pandas()\n"
        "except ImportError as error:\n"
        "    print('pandas' in str(error))\n"
        "from torch import nn\n"
        "module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 9))\n"
        "in9.evaluate_model(sys.argv[1], module, name='own')\n"
        "import pipeline.models.registry\n"  # Loads what `--models` names.
        "print({'timm', 'torchvision', 'apache_beam'} & {*sys.modules})\n"
    )
    done = run_python(code, str(three_draws))
    assert (done.stdout, done.stderr) == ("False False\nTrue\nset()\n", "")


def test_wrong_answers_and_errors_reach_the_caller(three_draws: Path) -> None:
    uncopied = torch.nn.Flatten()
    uncopied.lock = threading.Lock()

    def broken(pictures: Pictures) -> None:
        raise ConnectionResetError("the API")

    for predict, error, message in (
        (broken, ConnectionResetError, "the API"),
        (
            lambda p: np.full(len(p), 9),
            UsageError,
            'returned 9, and labels are from -1 to 8; .*outputs="imagenet"',
        ),
        (lambda p: np.resize([3, -2], len(p)), UsageError, "-2, and labels are from -1 to 8$"),
        (lambda p: np.full((len(p), 9), np.nan), UsageError, "NaN or infinity"),
        (lambda p: torch.full((len(p), 9), 1e300, dtype=torch.float64), UsageError, "or infinity"),
        (lambda p: np.zeros((len(p), 7)), ValueError, "a head of 7 outputs fits neither"),
        ("resnet50", TypeError, "neither a function nor a torch.nn.Module; models by name are for"),
        (uncopied, UsageError, "call:wrong: the module cannot be copied: cannot pickle"),
        (torch.nn.Flatten(), Exception, "call:wrong: a head of 12288|150528 outputs fits neither"),
    ):
        with pytest.raises(error, match=message):
            in9.evaluate_model(three_draws, predict, name="wrong")
    for outputs in ("superclasses", "ImageNet"):
        with pytest.raises(UsageError, match=f"outputs='{outputs}': "):
            in9.evaluate_model(three_draws, brightness, name="wrong", outputs=outputs)


def test_torch_computes_as_by_default_and_is_left_as_it_was(three_draws: Path) -> None:
    def settings() -> list[Any]:
        backends: Any = torch.backends
        parts = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul)
        found = [*(part.fp32_precision for part in parts), torch.get_default_dtype()]
        for read in (torch.get_float32_matmul_precision, lambda: backends.cudnn.allow_tf32):
            with contextlib.suppress(RuntimeError):
                found.append(read())
        return [*found, torch.is_autocast_enabled("cpu"), backends.fp32_precision]

    module = network(9)
    expected, before = in9.evaluate_model(three_draws, module, name="m").tables, settings()
    for change in (
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: setattr(torch.backends, "fp32_precision", "tf32"),
        lambda: torch.set_default_dtype(torch.float64),
    ):
        try:
            change()
            changed = settings()
            assert changed != before
            with torch.autocast("cpu", torch.bfloat16):
                assert in9.evaluate_model(three_draws, module, name="m").tables == expected
            assert settings() == changed
        finally:
            torch.set_default_dtype(torch.float32)
            torch.backends.fp32_precision = "none"
            torch.set_float32_matmul_precision("highest")


def test_a_copy_is_released_when_the_call_ends(three_draws: Path) -> None:
    in9.evaluate_model(three_draws, Negated(1), name="m")
    gc.collect()
    gc.disable()
    try:
        in9.evaluate_model(three_draws, Negated(1), name="m")
        assert not [one for one in gc.get_objects() if isinstance(one, Negated)]
    finally:
        gc.enable()


def trained(dataset: Path | None) -> tuple[Any, ...]:
    """Trains a network, evaluated on a dataset after each step; returns all that could differ."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.set_num_threads(1)
    layers = torch.nn.Conv2d(3, 4, 5, stride=4), torch.nn.BatchNorm2d(4), torch.nn.Dropout(0.3)
    module = torch.nn.Sequential(
        *layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 9)
    )
    layers[1].eval()
    module[5].bias.requires_grad_(False)
    optimizer = torch.optim.Adam(module.parameters())
    torch.backends.cuda.matmul.allow_tf32 = True
    for _ in range(2):
        module(torch.rand(8, 3, 64, 64)).square().mean().backward()
        optimizer.step()
        if dataset:
            in9.evaluate_model(dataset, module, name="in training")
    found = (
        [value.tolist() for value in module.state_dict().values()],
        [None if p.grad is None else p.grad.tolist() for p in module.parameters()],
        [
            (part.training, [p.requires_grad for p in part.parameters()])
            for part in module.modules()
        ],
        [p.stride() for p in module.parameters()],
        torch.get_rng_state().tolist(),
        (random.random(), np.random.rand(), torch.get_num_threads()),  # noqa: NPY002
        [torch.backends.cuda.matmul.fp32_precision]
        + [one.fp32_precision for one in (torch.backends.cudnn.conv, torch.backends.cudnn.rnn)],
    )
    torch.backends.cuda.matmul.allow_tf32 = False
    return found


def test_a_training_goes_on_bit_for_bit(three_draws: Path) -> None:
    threads = torch.get_num_threads()
    try:
        assert trained(three_draws) == trained(None)
    finally:
        torch.set_num_threads(threads)


def test_stored_predictions_replace_those_of_an_earlier_call(
    three_draws: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(three_draws, tmp_path / "out"))
    in9.evaluate_model(output, tiny_models.first(), name="mine", store=True)
    (folder,) = output.glob("results/call_mine-*")
    run_here("evaluate", "--dataset", output, *TINY_MODEL, *ONE)
    (by_command,) = output.glob("results/python*")
    stored, expected = (
        pq.read_table(of / "predictions", partitioning=None).drop_columns(["model", "of"])
        for of in (folder, by_command)
    )
    assert stored.equals(expected)
    shutil.rmtree(by_command)
    # The same tensors do not make the same model.
    first = in9.evaluate_model(output, Negated(1), name="mine", store=True)
    other = in9.evaluate_model(output, Negated(-1), name="mine")
    assert other.tables["confusion"] != first.tables["confusion"]
    again = in9.evaluate_model(output, brightness, name="mine", store=True)
    assert [*output.glob("results/*/model.json")] == [folder / "model.json"]
    (row,) = table_of(output, "gaps")
    assert (row["model"], row["label_rule"]) == ("call:mine", CLOSED_CHOICE)
    assert (float(row["gap"]), float(row["ci_low"]), float(row["ci_high"])) == again.bg_gap
    assert "call:mine" in (output / "report.html").read_text()
    shutil.rmtree(folder)
    folder.write_text("in the way")
    with pytest.warns(UserWarning, match="^call:mine could not be stored: "):
        kept = in9.evaluate_model(output, brightness, name="mine", store=True)
    assert kept.bg_gap == again.bg_gap
    refused = refusal("evaluate", "--dataset", output, "--models", "call:mine")
    assert "--models call:mine was evaluated by in9.evaluate_model" in refused


def test_a_published_dataset_is_evaluated_and_stays_as_it_is(
    three_draws: Path, tmp_path: Path
) -> None:
    output, published = shutil.copytree(three_draws, tmp_path / "out"), tmp_path / "published"
    run_here("report", "--dataset", output, "--publish", published, "--pictures=none")
    before = everything(published)
    called = in9.evaluate_model(published, brightness, name="m")
    assert called.tables == in9.evaluate_model(three_draws, brightness, name="m").tables
    for folder in (published, *published.glob("v-*")):
        with pytest.raises(UsageError, match="is a published version, which stays as it is"):
            in9.evaluate_model(folder, brightness, name="m", store=True)
    assert everything(published) == before


def test_datasets_are_made_and_imported_by_the_words_of_the_command_line(
    small_sample: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    how = {"segmenter": "box", "image_size": 32, "resize": 32, "variants": ["original", "fg_mask"]}
    output, words = tmp_path / "made", {"input": small_sample, "formats": "parquet"}
    with pytest.MonkeyPatch.context() as patch:  # A process would run the caller's script again.
        patch.setattr("pipeline.runtime.workers.LocalWorkers._start", None)
        made = in9.generate_dataset(output, **words, **how)
    assert (len(made), made.variants) == (18, ("original", "fg_mask"))
    assert "direct_num_workers" not in caplog.text
    run_here("export", "--dataset", tmp_path / "made", "--to", tmp_path / "released")
    read = in9.import_released(tmp_path / "read", source=tmp_path / "released", formats=["parquet"])
    pixels = [sorted(image.tobytes() for image, _, _ in one) for one in (made, read)]
    assert pixels[0] == pixels[1]
    rows = zip(imagenet9().wnids, imagenet9().labels, strict=True)
    classes = [f"{wnid},{imagenet9().names[label]}" for wnid, label in rows if label >= 0]
    (tmp_path / "own.csv").write_text("\n".join(["class,superclass", *classes, "own,dog"]))
    own = in9.generate_dataset(
        tmp_path / "own", input=small_sample, taxonomy=str(tmp_path / "own.csv"), **how
    )
    with pytest.raises(UsageError, match="all have WordNet ids of ImageNet"):
        in9.evaluate_model(own, brightness, name="wrong", outputs="imagenet")
    with pytest.raises(UsageError, match="--sede is no flag of a stage"):
        in9.generate_dataset(tmp_path / "made", sede=1)
