"""The page in a browser, and what is peculiar to the runs that it shows."""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from runs import QUICK, keys

from pipeline.dataset.folder import Dataset
from pipeline.evaluate.predictions import prediction_fingerprints
from pipeline.evaluate.results import ModelRun, read_results
from pipeline.storage.store import Store
from transforms.variants import VariantName

MODELS = ("efficientnet_lite0", "efficientnet_lite1")
REPORT = ("--image_size", 96, *keys(resize=110), "--models", ",".join(MODELS))
REPORT += ("--attack", 9, "--saliency", 3)
"""Words of the job whose page most tests open."""
TINY = ("python:tiny_models:first", "python:tiny_models:second")
WHOLE = (*QUICK, "--models", ",".join(TINY), "--attack", 9, "--saliency", 3)
"""Words of the job that begins `whole_run`."""

WIDE = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}
PAPER = {"width": 703, "height": 1032}
"""Size of an A4 sheet within margins of 12 mm."""

TOO_WIDE = """() => {
  // Sections and small pictures go on sideways, and look like it.
  const goesOn = "nav, .thumbs, .hidden, .tip, .skip, svg *";
  const wide = [];
  for (const e of document.querySelectorAll("body *")) {
    if (!e.checkVisibility() || e.closest(goesOn)) continue;
    const box = e.getBoundingClientRect();
    if (!box.width) continue;
    const frame = e.parentElement.getBoundingClientRect();
    const name = `${e.tagName}.${e.className} ${e.textContent.trim().slice(0, 40)}`;
    if (box.left < -0.5 || box.right > innerWidth + 0.5) wide.push(`off the page: ${name}`);
    if (box.right > frame.right + 1 && getComputedStyle(e).display !== "inline") {
      wide.push(`wider than its frame: ${name}`);
    }
    if (e.scrollWidth > e.clientWidth + 1 && e.clientWidth && e.tagName !== "SELECT") {
      wide.push(`holds more than it shows: ${name}`);
    }
  }
  return wide;
}"""
"""Names what a page in the browser has no room for."""


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


def open_all(page: Any) -> None:
    """Opens all folded parts of the page."""
    page.locator("details").evaluate_all(
        "all => all.forEach((e) => { e.hidden = false; e.open = true; })"
    )


def column(page: Any, number: int) -> list[str]:
    """Returns the texts of a column of the first table's models, without intervals."""
    cells = page.locator("#accuracy [data-tab]").first.locator("tbody").first
    texts: list[str] = cells.locator(f"tr > :nth-child({number})").evaluate_all(
        """all => all.map((e) => {
          const cell = e.cloneNode(true);
          const beside = cell.querySelectorAll("small, [aria-hidden], .hidden");
          beside.forEach((e) => e.remove());
          return cell.textContent.trim();
        })"""
    )
    return texts


def add_model(output: Path, original: str, name: str) -> Path:
    """Adds a model with the results of another one; returns the folder of the other's results."""
    dataset = Dataset.open(Store(str(output)))
    (run,) = read_results(dataset.store, "model", ModelRun, original)
    new = msgspec.structs.replace(run, model=name)
    theirs, ours = (output / "results" / each.folder for each in (run, new))
    shutil.copytree(theirs, ours)
    for path in ours.glob("*.json"):
        content = json.loads(path.read_text()) | {"model": name, "entry": name}
        path.write_text(json.dumps(content))
    for shard, path in enumerate(sorted(ours.glob("predictions/*.parquet"))):
        fingerprints = prediction_fingerprints(dataset, new, shard)
        table = pq.read_table(path)
        of = [fingerprints[VariantName.parse(name)] for name in table["variant"].to_pylist()]
        column, place = pa.array(of).dictionary_encode(), table.column_names.index("of")
        pq.write_table(table.set_column(place, "of", column), path)
    return theirs
