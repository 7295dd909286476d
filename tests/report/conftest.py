"""Runs whose page tests open in a browser, and the browser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from report_page import HOSTILE, MODELS, Opened
from runs import made_once, run_in9

from pipeline.analyses.evaluation.results import Evaluated
from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import read_metadata, write_table
from pipeline.evaluate.predictions import prediction_file, prediction_fingerprints
from pipeline.evaluate.results import FailedModel, RunSettings, note_failures, pick, read_result
from pipeline.report.write import write_report
from pipeline.storage.state_files import read_table
from pipeline.storage.store import Store
from transforms.taxonomy import imagenet9


@pytest.fixture(scope="session")
def report_run(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 18 small pictures with all that the page shows. Tests must not write into it."""
    flags = ("--image_size", 96, "--resize", 110, "--models", ",".join(MODELS))
    flags += ("--attack", 9, "--saliency", 3)
    return made_once(
        tmp_path_factory,
        "report",
        lambda out: run_in9("run", "--input", small_sample, "--output", out, *flags),
    )


@pytest.fixture(scope="session")
def hostile_run(report_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `report_run` with markup in the name of one model and in the error of another."""
    output = tmp_path_factory.mktemp("hostile") / "out"
    shutil.copytree(report_run, output)
    results = output / "results"
    original = read_result(Store(str(output)), f"results/{MODELS[0]}/model.json", Evaluated)
    assert original is not None
    run = msgspec.structs.replace(original, model=HOSTILE)
    folder = results / run.folder
    shutil.copytree(results / MODELS[0], folder)
    for name in ("model", "attack", "saliency"):
        content = json.loads((folder / f"{name}.json").read_text())
        (folder / f"{name}.json").write_text(json.dumps({**content, "model": HOSTILE}))
    dataset = Dataset.open(Store(str(output)))
    for shard in dataset.shards("val"):
        path = prediction_file(run, shard)
        table, record = read_table(dataset.store, path), read_metadata(dataset.store, path)
        assert record is not None
        theirs = prediction_fingerprints(dataset, run, shard)
        fingerprints = [
            theirs[variant] for variant in table["variant"].cast(pa.string()).to_pylist()
        ]
        position, kind = table.column_names.index("of"), table.schema.field("of").type
        table = table.set_column(position, "of", pa.array(fingerprints).cast(kind))
        write_table(dataset.store, path, table, record.fingerprint)
    failed = FailedModel(0, "none/such", "none/such", f"it said {HOSTILE}")
    store = Store(str(output))
    for stage in ("evaluate", "attack", "saliency"):
        settings = pick(RunSettings, run.evaluation)
        note_failures(store, dataset.manifest.fingerprint, stage, settings, [failed], [])
    write_report(store, imagenet9())
    return output


@pytest.fixture
def opened(browser: Any, report_run: Path) -> Iterator[Any]:
    """The page on a wide screen."""
    page = Opened(browser, report_run, reduced_motion="reduce")
    yield page
    page.context.close()
