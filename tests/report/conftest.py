"""Runs whose page tests open in a browser, and the browser."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from report_page import MODELS, TINY, Opened
from runs import QUICK, keys, made_once, run_in9, write_all

from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import read_metadata, write_table
from pipeline.evaluate.predictions import prediction_file, prediction_fingerprints
from pipeline.evaluate.results import read_results
from pipeline.evaluate.summary import Evaluated
from pipeline.storage.state_files import read_table
from pipeline.storage.store import Store
from transforms.variants import VariantName


@pytest.fixture(scope="session")
def report_run(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 18 small pictures with all that the page shows. Tests must not write into it."""
    flags = ("--image_size", 96, *keys(resize=110), "--models", ",".join(MODELS))
    flags += ("--attack", 9, "--saliency", 3)
    return made_once(
        tmp_path_factory,
        "report",
        lambda out: run_in9("run", "--input", small_sample, "--output", out, *flags, figures=True),
    )


@pytest.fixture(scope="session")
def whole_run(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two models with all analyses. Tests must not write into it."""
    models = ("--models", ",".join(TINY))
    flags = ("--attack", 9, "--saliency", 3)

    def make(output: Path) -> None:
        run_in9("run", "--input", small_sample, "--output", output, *QUICK, *models, *flags)
        run_in9("method", "--dataset", output, *models, "--pictures", "none")
        run_in9("matrix", "--dataset", output, "--probe", "--holdout", 0.5)

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


def add_model(output: Path, original: str, name: str) -> None:
    """Adds a model with the results of another one."""
    dataset, stored = _model(output, original)
    run = msgspec.structs.replace(stored, model=name)
    folder = output / "results" / run.folder
    shutil.copytree(output / "results" / stored.folder, folder)
    for path in folder.glob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "model": name}))
    for shard in dataset.shards("val"):
        path = prediction_file(run, shard)
        table, record = read_table(dataset.store, path), read_metadata(dataset.store, path)
        assert record is not None
        theirs = prediction_fingerprints(dataset, run, shard)
        fingerprints = [
            theirs[VariantName.parse(name)]
            for name in table["variant"].cast(pa.string()).to_pylist()
        ]
        position, kind = table.column_names.index("of"), table.schema.field("of").type
        table = table.set_column(position, "of", pa.array(fingerprints).cast(kind))
        write_table(dataset.store, path, table, record.fingerprint)


def _model(output: Path, name: str) -> tuple[Dataset, Evaluated]:
    dataset = Dataset.open(Store(str(output)))
    (run,) = (run for run in read_results(dataset.store, "model", Evaluated) if run.model == name)
    return dataset, run


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
