"""Tests tables and lines on the terminal, of which nothing is too wide or lost, and PDF files."""

from __future__ import annotations

import itertools
import re

from hypothesis import given
from hypothesis import strategies as st

from pipeline.display.table import aligned, names_of
from pipeline.errors import LINE, wrapped
from pipeline.evaluate.results import Named, RunSettings


@given(st.integers(1, 60), st.integers(1, 21), st.integers(1, 90))
def test_columns_without_room_follow_below(columns: int, models: int, length: int) -> None:
    heads = ["accuracy, %", *(f"variant_{n}" for n in range(columns))]
    rows = [
        [f"{model}-{'x' * length}", *(f"{model}.{n}" for n in range(columns))]
        for model in range(models)
    ]
    lines = aligned([heads, *rows]).splitlines()
    assert max(map(len, lines)) <= LINE
    blocks = [lines[start : start + models + 1] for start in range(0, len(lines), models + 1)]
    for number, row in enumerate([heads, *rows]):
        cells = [re.split(" {2,}", block[number])[1:] for block in blocks]
        assert [*itertools.chain.from_iterable(cells)] == row[1:]


@given(st.lists(st.text("ab-", min_size=1, max_size=300), min_size=1, max_size=60))
def test_long_lines_are_wrapped_and_short_ones_kept(words: list[str]) -> None:
    text = " ".join(words)
    lines = wrapped(text).splitlines()
    assert max(map(len, lines)) <= LINE
    assert "".join(lines).replace(" ", "") == "".join(words)
    assert len(text) > LINE or wrapped(text) == text
    assert wrapped(f"{text}\n") == f"{wrapped(text)}\n"
    assert wrapped(f"{text} {{}}") == f"{text} {{}}"


def test_a_short_name_is_the_encoders_with_its_head() -> None:
    settings = RunSettings(split="val", eval_input="stored", precision="bf16", holdout=0)
    entries = ("resnet18=/runs/a.pth", "onnx:/runs/b.onnx", "resnet18.a1_in1k", "hf:org/name")
    named = [Named(model=f"knn:{one}", evaluation=settings) for one in entries]
    assert names_of(named) == [
        ("resnet18", "a.pth knn bf16"),
        ("b.onnx", "onnx knn bf16"),
        ("resnet18", "a1_in1k knn bf16"),
        ("org/name", "hf knn bf16"),
    ]
