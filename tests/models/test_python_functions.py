"""Tests models that functions of the user return."""

import pytest
import torch
from small_models import logits, pictures

from pipeline.errors import JobError, UsageError
from pipeline.models.identity import IN9_MEAN
from pipeline.models.registry import check_model, load_model


def test_functions_of_the_user_give_models(my_models: str) -> None:
    plain = load_model(f"python:{my_models}:plain")
    assert plain.preprocessing.mean == IN9_MEAN
    assert not plain.preprocessing.fixed_size
    assert {value.dtype for value in plain.module.state_dict().values()} == {torch.float32}
    batch = pictures(2, 64)
    torch.testing.assert_close(logits(plain, batch), logits(plain, batch))
    described = load_model(f"python:{my_models}:described")
    assert described.weights_sha256 == plain.weights_sha256
    assert (described.preprocessing.input_size, described.preprocessing.mean) == (64, (0, 0, 0))
    with torch.inference_mode():
        torch.testing.assert_close(logits(described, batch), described.module(batch))


def test_wrong_functions_are_named(my_models: str) -> None:
    for spec, message in (
        ("python:my_models", "must look like python:my_models:trained"),
        ("python:none_models:f", "none_models is not found; put its folder on PYTHONPATH"),
        ("python:none_models.nets:f", "python:none_models.nets:f: none_models is not found"),
        ("python:broken_models:f", "cannot be imported .ZeroDivisionError"),
        ("python:my_models:plane", "my_models has no function 'plane'"),
    ):
        with pytest.raises(UsageError, match=message):
            check_model(spec)
    for name, message in (
        ("number", "must return a torch.nn.Module, .* not int"),
        ("failing", "raised FileNotFoundError: no weights there"),
        ("misdescribed", "unknown 'size'"),
        ("of_no_size", "preprocessing: input_size must be a side in pixels, got -1"),
        ("of_any_size", "preprocessing: cannot convert float infinity"),
        ("features", "must return real logits of shape .pictures, outputs., not .*9, 222, 222"),
    ):
        with pytest.raises(JobError, match=message):
            load_model(f"python:{my_models}:{name}")
