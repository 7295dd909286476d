"""Beam's inspection of steps, whose results tests remember."""

from __future__ import annotations

import functools
from typing import Any

from apache_beam.transforms import core


def remember_signatures() -> None:
    """Lets Beam inspect each method once in this process and its forks.

    For each graph, Beam asks for the signatures of all methods of its steps a dozen times, which
    takes 0.1 s of CPU. The tests make hundreds of graphs.
    """
    inspect = core.get_function_args_defaults

    @functools.cache
    def of_method(function: Any) -> tuple[list[str], list[Any]]:
        return inspect(function.__get__(object()))

    def of_any(function: Any) -> tuple[list[str], list[Any]]:
        if not hasattr(function, "__func__"):
            return inspect(function)
        names, defaults = of_method(function.__func__)
        return [*names], [*defaults]

    core.get_function_args_defaults = of_any
