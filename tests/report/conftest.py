"""Runs whose page tests open in a browser, and the browser."""

import csv
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from report_page import REPORT, TINY, Opened, add_model
from runs import QUICK, csv_rows, made_once, run_in9, write_all


@pytest.fixture(scope="session")
def report_run(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 18 small pictures with all that the page shows. Tests must not write into it."""
    run = ("run", "--input", small_sample, *REPORT, "--output")
    return made_once(tmp_path_factory, "report", lambda out: run_in9(*run, out, figures=True))


MATRIX = ("matrix", "--probe", "--holdout", 0.5, "--variants", "original,mixed_same,mixed_rand")


@pytest.fixture(scope="session")
def whole_run(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two models with all analyses. Tests must not write into it."""
    models = ("--models", ",".join(TINY))
    flags = ("--attack", 9, "--saliency", 3)

    def make(output: Path) -> None:
        run_in9("run", "--input", small_sample, "--output", output, *QUICK, *models, *flags)
        run_in9("method", "--dataset", output, *models, "--pictures", "none")
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
IN_NO_FAMILY = ("single", "other")


@pytest.fixture(scope="session")
def families_run(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Families of four, three and two models, and models in none. Tests must not write into it."""
    names = [f"{method}#{seed}" for method, number in SEEDS.items() for seed in range(number)]

    def make(output: Path) -> None:
        files = tmp_path_factory.mktemp("answers")
        run_in9("generate", "--input", small_sample, "--output", output, *QUICK)
        run_in9("export", "--dataset", output, "--layout", "answers", "--to", files / "a.csv")
        pictures = csv_rows(files / "a.csv")
        for name in (*names, *IN_NO_FAMILY):
            of_rand = 0.3 if name.startswith("erm") else 0.7
            with (files / f"{name}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, [*pictures[0], "label"])
                writer.writeheader()
                for row in pictures:
                    luck = random.Random(f"{name} {row['key']} {row['variant']}").random()
                    is_wrong = luck > (of_rand if row["variant"] == "mixed_rand" else 0.8)
                    label = int(Path(row["path"]).parent.name[:2])
                    writer.writerow({**row, "label": (label + is_wrong) % 9})
        models = ",".join(f"{one}:=answers:{files}/{one}.csv" for one in (*names, *IN_NO_FAMILY))
        run_in9("evaluate", "--dataset", output, "--models", models)

    return made_once(tmp_path_factory, "families", make)
