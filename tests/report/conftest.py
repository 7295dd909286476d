"""Runs whose page tests open in a browser, and the browser."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from answer_files import answer_files, entries
from report_page import REPORT, TINY, WHOLE, Opened, add_model
from runs import made_once, run_in9, write_all


@pytest.fixture(scope="session")
def report_run(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 18 small pictures with all that the page shows. Tests must not write into it."""
    run = ("run", "--input", small_sample, *REPORT, "--output")
    return made_once(tmp_path_factory, "report", lambda out: run_in9(*run, out, figures=True))


MATRIX = ("matrix", "--probe", "--holdout", 0.5, "--variants", "original,mixed_same,mixed_rand")


@pytest.fixture(scope="session")
def whole_run(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two models with all analyses. Tests must not write into it."""

    def make(output: Path) -> None:
        run_in9("run", "--input", small_sample, "--output", output, *WHOLE)
        run_in9("method", "--dataset", output, "--models", ",".join(TINY), "--pictures", "none")
        run_in9(*MATRIX, "--dataset", output)

    return made_once(tmp_path_factory, "whole", make)


@pytest.fixture(scope="session")
def twenty_run(whole_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `whole_run` with the results of 18 more models. Tests must not write into it."""

    def make(output: Path) -> None:
        shutil.copytree(whole_run, output)
        for number in range(18):
            add_model(output, TINY[number % 2], f"vit_base_patch16_{number}.in21k_ft")
        write_all(output)

    return made_once(tmp_path_factory, "twenty", make)


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Opened]]:
    """A function that opens the page of a dataset, which is closed when the test ends."""
    pages: list[Opened] = []

    def open_page(output: Path, hash: str = "", **context: Any) -> Opened:
        pages.append(Opened(browser, output, hash, **context))
        return pages[-1]

    yield open_page
    for page in pages:
        page.context.close()


@pytest.fixture
def opened(open_page: Callable[..., Opened], report_run: Path) -> Opened:
    """The page on a wide screen."""
    return open_page(report_run, reduced_motion="reduce")


@pytest.fixture(scope="session")
def seen(browser: Any, report_run: Path) -> Iterator[Opened]:
    """The page on a wide screen, as it was opened. Tests must only read it."""
    opened = Opened(browser, report_run, reduced_motion="reduce")
    yield opened
    opened.context.close()


SEEDS = {"erm": 4, "dfr": 3, "jtt": 2, "lone": 1}
"""Number of trainings of each method in `families_run`."""


@pytest.fixture(scope="session")
def families_run(for_gaps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Families of four, three and two models, and models in none. Tests must not write into it."""
    names = [f"{method}#{seed}" for method, number in SEEDS.items() for seed in range(number)]
    names += ("single", "other")

    def make(output: Path) -> None:
        shutil.copytree(for_gaps, output)
        files = tmp_path_factory.mktemp("answers")
        answer_files(output, files, dict.fromkeys(names[:4], 0.8), mixed_rand=0.3)
        answer_files(output, files, dict.fromkeys(names[4:], 0.8), mixed_rand=0.7)
        run_in9("evaluate", "--dataset", output, "--models", entries(files, names))

    return made_once(tmp_path_factory, "families", make)
