"""A pytest plugin for the tests of the report: the page in a real browser."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from conftest import made_once, run_in9

from pipeline.analyses.evaluation.results import Evaluated
from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import read_metadata, write_table
from pipeline.evaluate.failures import FailedModel, note_failures
from pipeline.evaluate.prediction_files import prediction_file, prediction_fingerprints
from pipeline.evaluate.result_files import read_result
from pipeline.evaluate.results import RunSettings, pick
from pipeline.report import write_report
from pipeline.storage.state_files import read_table
from pipeline.storage.store import Store
from transforms.taxonomy import imagenet9

MODELS = ("efficientnet_lite0", "efficientnet_lite1")
HOSTILE = "</script><img src=x onerror=alert(1)>$x_{<script>alert(2)</script>"

WIDE = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}
PAPER = {"width": 703, "height": 1032}
"""Size of an A4 sheet within margins of 12 mm."""


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


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium. Without one, tests are skipped, or fail in continuous integration."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((executable for name in names if (executable := shutil.which(name))), None)
    missing = "" if path else "no chromium: apt-get install chromium"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing = "no playwright: pip install '.[test]'"
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    quiet = ("quic", "background-networking", "component-update", "sync", "gpu")
    arguments = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=arguments)
        yield chromium
        chromium.close()


class Opened:
    """A page in the browser, with its complaints and its requests to the network."""

    def __init__(self, browser: Any, output: Path, hash: str = "", **context: Any) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.address = (output / "report.html").as_uri()
        self.context = browser.new_context(**{"viewport": WIDE, **context})
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(self.address + hash)


@pytest.fixture
def opened(browser: Any, report_run: Path) -> Iterator[Any]:
    """The page on a wide screen."""
    page = Opened(browser, report_run, reduced_motion="reduce")
    yield page
    page.context.close()


def column(page: Any, number: int) -> list[str]:
    """Returns the texts of a column of the first table's models, without intervals."""
    cells = page.locator("#accuracy [data-tab]").first.locator("tbody").first
    return [
        text.split("\n")[0]
        for text in cells.locator(f"tr > :nth-child({number})").all_inner_texts()
    ]
