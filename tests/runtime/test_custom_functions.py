"""Tests what functions of the user may return, and that what they raise ends no process."""

from __future__ import annotations

import asyncio
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
from pipeline.analyses.saliency.gradients import winning_logit_gradients
from pipeline.errors import JobError, ModelError, UsageError
from pipeline.generate.pictures import find_variants, versioned
from pipeline.generate.segmenters import find_segmenter, parameters_of
from pipeline.models.identity import PredictConfig
from pipeline.models.predict import Predictor
from pipeline.models.registry import check_model, load_model
from pipeline.models.source import count_outputs, takes_other_sizes
from transforms.annotations import Box
from transforms.geometry import OutputBox
from transforms.layers import Layer

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


OWN: Any = types.ModuleType("own_functions")
"""A module of the user's. There is one, because each process keeps the functions it imported."""
for _name in ("cut", "paint", "fill", "model"):
    setattr(OWN, _name, lambda *_: OWN.answer())


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the user's, whose functions return what its `answer` does."""
    monkeypatch.setitem(sys.modules, "own_functions", OWN)
    return OWN


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
    ("call", "array", "name"),
    [
        (cut, MASK, "--segmenter python:own_functions:cut"),
        (paint, PICTURE, "python:own_functions:paint@1"),
        (fill, PICTURE, "python:own_functions:fill@1"),
    ],
)
def test_masks_and_pictures_are_arrays_of_one_dtype_and_shape(
    own: Any, call: Callable[[Any], NDArray[Any]], array: NDArray[Any], name: str
) -> None:
    message = rf"^{name} returned .*, not {array.dtype} of shape \(32, 32"
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


class Stopped(BaseException):
    """An error that is no Exception."""


class Raising(torch.nn.Module):
    """A network that raises an error in one of its methods, and in its forward pass by default."""

    def __init__(self, error: BaseException, where: str = "") -> None:
        super().__init__()
        self.network, self.error, self.where = network(9), error, where

    def __deepcopy__(self, _: Any) -> Raising:
        if self.where == "copy":
            raise self.error
        return self

    def get_extra_state(self) -> Any:
        if self.where == "state":
            raise self.error
        return torch.zeros(1)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        outputs = self.network(pictures)
        if self.where == "backward":
            outputs.register_hook(self.fail)
        if not self.where:
            raise self.error
        return outputs

    def fail(self, _: torch.Tensor) -> torch.Tensor:
        raise self.error


def gradients(module: torch.nn.Module) -> object:
    loaded = dataclasses.replace(
        load_model("python:tiny_models:first"), module=module, num_outputs=9
    )
    predictor = Predictor(loaded, PredictConfig("cpu"))
    return winning_logit_gradients(predictor, pictures(2, 64))


ERRORS = (SystemExit(3), asyncio.CancelledError(), Stopped("a"))


def attempts(own: Any, three_draws: Path, folder: Path, error: BaseException) -> list[Any]:
    """Returns all ways to call code that raises: (call, error that is told, how it begins)."""

    def fails(*_: Any) -> Any:
        raise error

    def evaluate(predict: Any) -> None:
        in9.evaluate_model(three_draws, predict, name="m")

    own.answer = fails
    name = f"ends_{abs(hash(repr(error)))}"
    (folder / f"{name}.py").write_text("import own_functions\nown_functions.answer()\n")
    module = "python:own_functions"
    return [
        (lambda: cut(own), JobError, f"--segmenter {module}:cut raised"),
        (lambda: paint(own), JobError, f"{module}:paint@1 raised"),
        (lambda: fill(own), JobError, f"{module}:fill@1 raised"),
        (lambda: check_model(f"python:{name}:f"), UsageError, f"{name} cannot be imported"),
        (lambda: parameters_of(f"python:{name}:f"), UsageError, f"{name} cannot be imported"),
        (lambda: versioned([f"python:{name}:f"]), UsageError, f"{name} cannot be imported"),
        (lambda: load_model(f"{module}:model"), JobError, f"{module}:model raised"),
        (lambda: count_outputs("m", Raising(error), 64), JobError, "m fails on a picture"),
        (lambda: gradients(Raising(error)), ModelError, "its forward pass failed"),
        (lambda: gradients(Raising(error, "backward")), ModelError, "it gives no gradient"),
        (lambda: evaluate(fails), RuntimeError, ""),
        (lambda: evaluate(Raising(error)), JobError, "call:m fails on a picture"),
        (lambda: evaluate(Raising(error, "copy")), UsageError, "call:m: the module cannot be"),
    ]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_what_code_of_the_user_raises_ends_no_process(
    own: Any,
    three_draws: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for attempt, kind, named in attempts(own, three_draws, tmp_path, error):
        with pytest.raises(kind, match=f"{named}.*{type(error).__name__}.* would end the pro"):
            attempt()
    own.answer = lambda: Raising(error, "state")
    assert not takes_other_sizes(Raising(error), 64)
    with pytest.raises(JobError, match=r"own_functions:model could not be loaded .*would end the"):
        load_model("python:own_functions:model")


def test_an_interruption_passes_through_code_of_the_user(
    own: Any, three_draws: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for attempt, *_ in attempts(own, three_draws, tmp_path, KeyboardInterrupt()):
        with pytest.raises(KeyboardInterrupt):
            attempt()
