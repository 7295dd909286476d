"""Tests what functions of the user may return, and that what they raise ends no process."""

from __future__ import annotations

import dataclasses
import functools
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_models import network, pictures

import in9
from pipeline.errors import JobError, ModelError, UsageError
from pipeline.generate.custom_variants import find_variants, versioned
from pipeline.models.identity import PredictConfig
from pipeline.models.predict import Predictor
from pipeline.models.registry import load_model
from pipeline.models.source import count_outputs
from pipeline.segmenters import find_segmenter, parameters_of
from transforms.annotations import Box
from transforms.geometry import OutputBox
from transforms.layers import Layer

Returned = Callable[[], Any]

INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
FLOATS = ["float16", "float32", "float64", "longdouble"]
NO_NUMBERS = ["complex64", "complex128", "datetime64[s]", "timedelta64[s]", "object", "U8", "S8"]
TENSORS = [f"torch.{name}" for name in ("bool", *INTEGERS, *FLOATS[:3], "bfloat16")]
ALSO_REAL = ["bfloat16", "not contiguous", "another byte order"]
OF_TORCH = ["tensor with gradient", "tensor not contiguous"]
"""Names of dtypes and shapes; `converted` makes the array."""
SHAPES: dict[str, Callable[[NDArray[Any]], Any]] = {
    "structured": lambda array: array.astype([("x", "f4")]),
    "bfloat16": lambda array: array.astype(ml_dtypes.bfloat16),
    "not contiguous": lambda array: np.repeat(array, 2, axis=-1)[..., ::2],
    "another byte order": lambda array: array.astype(array.dtype.newbyteorder()),
    "list": lambda array: array.tolist(),
    "scalar": lambda array: array.flat[0],
    "one axis more": lambda array: array[np.newaxis],
    "one fewer": lambda array: array[1:],
    "nothing": lambda array: array[:0],
    "None": lambda array: None,
    "pair": lambda array: (array, array),
    "uneven list": lambda array: [[1, 2], [3]],
    "torch.complex64": lambda array: torch.from_numpy(array).to(torch.complex64),
    "tensor with gradient": lambda array: torch.from_numpy(array).float().requires_grad_(),
    "tensor not contiguous": lambda array: torch.from_numpy(array).repeat_interleave(2, 0)[::2],
    "sparse tensor": lambda array: torch.from_numpy(array).to_sparse(),
}
FORMS = ["bool", *INTEGERS, *FLOATS, *NO_NUMBERS, *TENSORS, *SHAPES]


def converted(array: NDArray[Any], form: str) -> Any:
    """Returns the same zeros and ones in another form, or something else."""
    if form in SHAPES:
        return SHAPES[form](array)
    if form.startswith("torch."):
        return torch.from_numpy(array).to(getattr(torch, form[6:]))
    return array.astype(np.int64).astype(form)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A module of the user's, whose functions return what its `answer` does."""
    module: Any = types.ModuleType("own_functions")
    module.answer = lambda: None
    for name in ("cut", "paint", "fill", "model"):
        setattr(module, name, lambda *_: module.answer())
    monkeypatch.setitem(sys.modules, "own_functions", module)
    return module


MASK, PICTURE = np.eye(32, dtype=np.bool_), np.eye(96, dtype=np.uint8).reshape(96, 32, 3)[:32]


def cut(own: Any) -> NDArray[Any]:
    name = "python:own_functions:cut"
    segmenter = find_segmenter(name, parameters_of(name))
    return segmenter.segment(PICTURE, Box(0, 0, 9, 9), 0).mask


def paint(own: Any) -> NDArray[Any]:
    layer = Layer(PICTURE, PICTURE, MASK, OutputBox(0, 0, 9, 9))
    (variant,) = find_variants(versioned(["python:own_functions:paint"])).values()
    return variant.compose(layer)


def fill(own: Any) -> NDArray[Any]:
    layer = Layer(PICTURE, PICTURE, MASK, OutputBox(0, 0, 9, 9))
    variant, *_ = find_variants(versioned([], ["python:own_functions:fill"])).values()
    return variant.rendering.fill(layer)


@pytest.mark.parametrize(
    ("call", "array", "message"),
    [
        (cut, MASK, r"^--segmenter python:own_functions:cut returned .*, not bool of shape \(32"),
        (
            paint,
            PICTURE,
            r"^python:own_functions:paint@1 returned .*, not uint8 of shape \(32, 32",
        ),
        (
            fill,
            PICTURE,
            r"^python:own_functions:fill@1 returned .*, not uint8 of shape \(32, 32, 3",
        ),
    ],
)
def test_masks_and_pictures_are_arrays_of_one_dtype_and_shape(
    own: Any, call: Callable[[Any], NDArray[Any]], array: NDArray[Any], message: str
) -> None:
    for form in FORMS:
        own.answer = functools.partial(converted, array, form)
        if form in (str(array.dtype), "not contiguous", "another byte order"):
            np.testing.assert_array_equal(call(own), array, form)
        else:
            with pytest.raises(JobError, match=message):
                pytest.fail(f"{form}: {call(own)}")


REAL_TENSORS = {*TENSORS, *OF_TORCH}


class Converting(torch.nn.Module):
    """A network that gives its logits another form."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, pictures: torch.Tensor) -> Any:
        return converted(np.eye(9)[np.arange(len(pictures)) % 9], self.form)


def test_networks_return_tensors_of_real_numbers() -> None:
    model = load_model("python:tiny_models:first")
    expected = torch.eye(9)[:3]
    for form in FORMS:
        module = Converting(form)
        loaded = dataclasses.replace(model, module=module, num_outputs=9)
        predictor = Predictor(loaded, PredictConfig("cpu"))
        if form in REAL_TENSORS:
            assert count_outputs(form, module, 8) == 9
            assert torch.equal(predictor.forward(pictures(3, 8)), expected), form
            continue
        with pytest.raises(ModelError, match=r"^it returns .* for 3 pictures, not 9 real outputs"):
            pytest.fail(f"{form}: {predictor.forward(pictures(3, 8))}")
        with pytest.raises(JobError, match=r"^m must return real logits of shape .* not "):
            pytest.fail(f"{form}: {count_outputs('m', module, 8)}")


def brightness(pictures: NDArray[np.uint8]) -> NDArray[np.int64]:
    return pictures.mean(axis=(1, 2, 3)).astype(np.int64) % 9


@pytest.mark.parametrize(
    ("base", "accepted"),
    [
        (
            lambda pictures: np.eye(9)[brightness(pictures)],
            {"bool", *INTEGERS, *FLOATS, *ALSO_REAL, "list", *REAL_TENSORS},
        ),
        (
            brightness,
            {
                *(*INTEGERS, "not contiguous", "another byte order", "list"),
                *(f"torch.{name}" for name in INTEGERS),
                "tensor not contiguous",
            },
        ),
    ],
)
def test_a_called_function_returns_real_scores_or_integers(
    three_draws: Path, base: Callable[[Any], NDArray[Any]], accepted: set[str]
) -> None:
    dataset, left = in9.open_dataset(three_draws), sorted(accepted)

    def in_all_forms(pictures: NDArray[np.uint8]) -> Any:
        """Returns each batch in another form."""
        left.append(form := left.pop(0))
        return converted(base(pictures), form)

    told = in9.evaluate_model(dataset, in_all_forms, name="m", batch_size=6)
    assert told.tables == in9.evaluate_model(dataset, base, name="m", batch_size=6).tables
    for form in set(FORMS) - accepted:
        with pytest.raises(UsageError, match=r"^predict returned .* for 18 pictures; expected "):
            in9.evaluate_model(dataset, lambda p, f=form: converted(base(p), f), name=form)


def test_no_argument_of_a_call_means_the_default_but_none(three_draws: Path) -> None:
    for name, value in (
        *(("batch_size", value) for value in (0, -1, 2.5, "5")),
        *(("outputs", value) for value in ("", 0, False)),
        *(("preprocessing", value) for value in ("", 0, False, [])),
    ):
        with pytest.raises(UsageError, match=f"^{name}=.* "):
            in9.evaluate_model(three_draws, network(9), name="m", **{name: value})
    for name in ("variant", "split"):
        with pytest.raises(ValueError, match=name):
            in9.open_dataset(three_draws, **{name: ""})
