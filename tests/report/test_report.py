"""The page, in a real browser, made of real results."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import manifest_of, run_in9, stamps

from pipeline.commands.parser import build_parser
from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import read_about, write_table
from pipeline.errors import UsageError
from pipeline.evaluate.failures import FailedModel, note_failures
from pipeline.evaluate.predictions import prediction_file, predictions_of
from pipeline.evaluate.results import result_folder
from pipeline.report import write_report
from pipeline.report.adversarial import _BYTES as BACKGROUND_BYTES
from pipeline.report.chooser import _BYTES as CHOOSER_BYTES
from pipeline.report.claims import CLAIMS
from pipeline.report.saliency import _BYTES as SALIENCY_BYTES
from pipeline.report.selection import PER_CLASS
from pipeline.storage.state_files import read_table
from pipeline.storage.store import Store
from transforms.taxonomy import imagenet9
from transforms.variants import PICTURES

MODELS = ("efficientnet_lite0", "efficientnet_lite1")
HOSTILE = "</script><img src=x onerror=alert(1)>$x_{<script>alert(2)</script>"

WIDE = {"width": 1600, "height": 1000}
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="session")
def report_run(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 small pictures with everything that the page shows. Tests must not write into it."""
    output = tmp_path_factory.mktemp("report") / "out"
    flags = ("--image_size", 96, "--resize", 110, "--models", ",".join(MODELS))
    flags += ("--attack", 9, "--saliency", 3)
    run_in9("run", "--input", small_sample, "--output", output, *flags)
    return output


@pytest.fixture(scope="session")
def hostile_run(report_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, with a model whose name and one whose error try to be more than text."""
    output = tmp_path_factory.mktemp("hostile") / "out"
    shutil.copytree(report_run, output)
    results = output / "results"
    summary = json.loads((results / MODELS[0] / "model.json").read_text())
    folder = results / result_folder(HOSTILE, summary["evaluation"])
    shutil.copytree(results / MODELS[0], folder)
    for name in ("model", "attack", "saliency"):
        content = json.loads((folder / f"{name}.json").read_text())
        (folder / f"{name}.json").write_text(json.dumps({**content, "model": HOSTILE}))
    dataset = Dataset.open(Store(str(output)))
    for shard in dataset.shards("val"):
        path = prediction_file({**summary, "model": HOSTILE}, shard)
        table, about = read_table(dataset.store, path), read_about(dataset.store, path)
        assert about is not None
        theirs = predictions_of(dataset, {**summary, "model": HOSTILE}, shard)
        of = [theirs[variant] for variant in table["variant"].cast(pa.string()).to_pylist()]
        place, kind = table.column_names.index("of"), table.schema.field("of").type
        table = table.set_column(place, "of", pa.array(of).cast(kind))
        write_table(dataset.store, path, table, about.fingerprint)
    failed = FailedModel(0, "none/such", "none/such", f"it said {HOSTILE}")
    store = Store(str(output))
    for stage in ("evaluate", "attack", "saliency"):
        note_failures(
            store, dataset.manifest.fingerprint, stage, summary["evaluation"], [failed], []
        )
    write_report(store, imagenet9())
    return output


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium. Without one these tests are skipped, but not where CI runs."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
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
    """A page in the browser, and what it complained of or asked the network for."""

    def __init__(self, browser: Any, output: Path, **context: Any) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.context = browser.new_context(**{"viewport": WIDE, **context})
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto((output / "report.html").as_uri())


@pytest.fixture
def opened(browser: Any, report_run: Path) -> Iterator[Any]:
    """The page on a wide screen."""
    page = Opened(browser, report_run)
    yield page
    page.context.close()


def column(page: Any, number: int) -> list[str]:
    """Texts of a column of the first table's models, without intervals."""
    cells = page.locator("#accuracy [data-tab]").first.locator("tbody").first
    return [
        text.split("\n")[0]
        for text in cells.locator(f"tr > :nth-child({number})").all_inner_texts()
    ]


def test_it_loads_in_silence_and_asks_the_network_for_nothing(
    opened: Any, report_run: Path
) -> None:
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith("data:")] == [
        (report_run / "report.html").as_uri()
    ]
    page = opened.page
    assert page.title() == "ImageNet-9 report"
    pictures = page.locator("img").evaluate_all("all => all.map((e) => [e.alt, e.naturalWidth])")
    assert len(pictures) > 9 * len(PICTURES)
    assert all(page.locator("img").evaluate_all("all => all.map((e) => e.hasAttribute('alt'))"))
    in_cards = page.locator(".card img").evaluate_all("all => all.map((e) => e.alt)")
    assert all(" version " in alt for alt in in_cards)
    backgrounds = [alt for alt in in_cards if "version mixed" in alt]
    assert all(", background from " in alt for alt in backgrounds)
    assert all(page.locator("svg").evaluate_all("all => all.map((e) => e.ariaLabel?.length > 20)"))
    ids = page.locator("[id]").evaluate_all("all => all.map((e) => e.id)")
    assert len(set(ids)) == len(ids)
    levels = page.locator("h1, h2, h3, h4").evaluate_all("all => all.map((e) => +e.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_every_part_has_real_results_or_says_what_gives_them(opened: Any) -> None:
    page = opened.page
    empty = page.locator("main > section:has(.empty)").evaluate_all("all => all.map((e) => e.id)")
    # Two models have no best-fit line.
    assert empty == ["trend", "matrix"]
    for section, images in (("images", 14 * 8), ("backgrounds", 1), ("saliency", 3 * 3)):
        assert page.locator(f"#{section} img").count() >= images
    assert page.locator("#mistakes svg").count() >= 9
    # Flip rates of mixed_same and mixed_rand, of one draw each; no variants with noise.
    assert page.locator("#sensitivity tbody tr").count() == len(MODELS)
    assert "--variants all,noise_fg,noise_bg" in page.locator("#sensitivity").inner_text()
    assert page.locator(".claims > li").count() == len(CLAIMS)
    known = build_parser()
    commands = page.locator(".command code").all_inner_texts()
    assert len(commands) > 5
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "in9"
        assert known.parse_known_args(arguments)[1] == [], command


def test_links_lead_to_what_is_there(opened: Any, report_run: Path) -> None:
    links = opened.page.locator("a").evaluate_all("all => all.map((e) => e.getAttribute('href'))")
    beside = [link for link in links if not link.startswith("#")]
    assert {"results/summary.csv", "results/figures/decomposition.svg"} <= set(beside)
    assert all((report_run / link).exists() for link in beside)
    targets = [link for link in links if link.startswith("#")]
    assert len(targets) > 8
    assert all(opened.page.locator(target).count() == 1 for target in targets)


def test_the_headline_table_sorts_by_mouse_and_keyboard(opened: Any) -> None:
    page = opened.page
    heads = page.locator("#accuracy [data-tab]").first.locator("thead th")
    published = page.locator("tbody.published").inner_text()
    assert heads.nth(1).get_attribute("aria-sort") == "descending"
    gaps = [float(text) for text in column(page, 10)]
    heads.nth(9).locator("button").click()
    assert heads.nth(9).get_attribute("aria-sort") == "descending"
    assert heads.nth(1).get_attribute("aria-sort") is None
    assert [float(text) for text in column(page, 10)] == sorted(gaps, reverse=True)
    # From the keyboard: the same heading again turns the order round.
    page.keyboard.press("Enter")
    assert heads.nth(9).get_attribute("aria-sort") == "ascending"
    assert [float(text) for text in column(page, 10)] == sorted(gaps)
    heads.nth(0).locator("button").focus()
    page.keyboard.press("Space")
    assert heads.nth(0).get_attribute("aria-sort") == "ascending"
    assert column(page, 1) == sorted(MODELS)
    page.keyboard.press("Space")
    assert column(page, 1) == sorted(MODELS, reverse=True)
    assert page.locator("tbody.published").inner_text() == published


def test_label_rules_are_tabs(opened: Any) -> None:
    page = opened.page
    panels = page.locator("#accuracy [role=tabpanel]")
    assert [panel.is_visible() for panel in panels.all()] == [True, False]
    page.get_by_role("tab", name="argmax_then_map").focus()
    page.keyboard.press("ArrowRight")
    assert [panel.is_visible() for panel in panels.all()] == [False, True]
    assert page.get_by_role("tab", name="mapped_only").get_attribute("aria-selected") == "true"
    page.get_by_role("tab", name="argmax_then_map").click()
    assert [panel.is_visible() for panel in panels.all()] == [True, False]


def test_choosing_an_image(opened: Any) -> None:
    page = opened.page
    cards = page.locator(".card")
    count = cards.count()

    def chosen() -> int:
        shown = [number for number in range(count) if cards.nth(number).is_visible()]
        assert len(shown) == 1
        marked = page.locator(".thumbs button[aria-current]").get_attribute("aria-label")
        assert marked == cards.nth(shown[0]).get_attribute("data-name")
        assert page.locator(".picker select").input_value() == str(shown[0])
        assert page.locator(".picker [aria-live]").inner_text() == f"{shown[0] + 1} of {count}"
        return shown[0]

    assert chosen() == 0
    page.get_by_role("button", name="Next →").click()
    assert chosen() == 1
    page.get_by_role("button", name="← Previous").click()
    page.get_by_role("button", name="← Previous").click()
    assert chosen() == count - 1
    page.locator(".picker select").select_option("2")
    assert chosen() == 2
    page.locator(".thumbs button").nth(4).click()
    assert chosen() == 4
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert chosen() == 6
    page.keyboard.press("Home")
    assert chosen() == 0
    figures = cards.nth(0).locator("figure")
    assert figures.count() == len(PICTURES)
    sizes = figures.locator("img").evaluate_all("all => all.map((e) => e.naturalWidth)")
    assert sizes == [96] * len(PICTURES)
    assert opened.complaints == []


def test_the_chooser_tells_what_the_files_hold(opened: Any, report_run: Path) -> None:
    (path,) = (report_run / "parquet" / "mixed_rand").glob("*.parquet")
    columns = ["key", "bg_key", "bg_label"]
    truth = {row["key"]: row for row in pq.read_table(path, columns=columns).to_pylist()}
    said: dict[tuple[str, str], dict[str, Any]] = {}
    for model in MODELS:
        (file,) = (report_run / "results" / model / "predictions").glob("*.parquet")
        for row in pq.read_table(file).to_pylist():
            if row["label_rule"] == "argmax_then_map" and row["variant"] == "mixed_rand":
                said[model, row["key"]] = row
    names = (*imagenet9().names, "outside")
    cards = opened.page.locator(".card").all()
    assert len(cards) == len(truth)
    turned = [int(card.get_attribute("data-turned") or 0) for card in cards]
    assert turned == sorted(turned, reverse=True)
    for card in cards:
        key = card.locator("summary code").text_content()
        figure = card.locator("figure", has=opened.page.locator("h4", has_text="mixed_rand"))
        assert figure.locator("p").text_content() == (
            f"background: {names[truth[key]['bg_label']]}, {truth[key]['bg_key']}"
        )
        for line in figure.locator(".answers li").all():
            row = said[line.locator("small").last.text_content(), key]
            assert line.locator("b").text_content() == names[row["prediction"]]
            mark = line.locator(".mark").text_content()
            word = line.locator(".hidden").text_content()
            assert (mark, word) == (("✓", "right: ") if row["correct"] else ("✕", "wrong: "))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, WIDE], ids=["phone", "wide"])
def test_it_fits_and_is_readable(
    browser: Any, report_run: Path, viewport: dict[str, int], scheme: str
) -> None:
    opened = Opened(browser, report_run, viewport=viewport, color_scheme=scheme)
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    for details in page.locator("details").all():
        details.evaluate("(e) => { e.hidden = false; e.open = true; }")
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    # The table is wider than a phone: it scrolls, the page does not.
    table = page.locator("#accuracy .scroll").first
    scrolls = table.evaluate("(e) => e.scrollWidth > e.clientWidth")
    assert scrolls == (viewport is PHONE)
    colours = page.evaluate(
        """() => {
          const of = (selector, name) => getComputedStyle(document.querySelector(selector))[name];
          return [of("body", "backgroundColor"), of("body", "color"),
            of("#mistakes svg text", "fill"), of(".soft", "color"), of(".wrong b", "color")];
        }"""
    )
    fonts = page.locator("body, svg text").evaluate_all(
        "all => all.map((e) => getComputedStyle(e).fontFamily)"
    )
    assert len(fonts) > 100
    assert len(set(fonts)) == 1
    page_colour, *texts = (luminance(colour) for colour in colours)
    assert (page_colour < 0.1) == (scheme == "dark")
    for text in texts:
        light, dark = max(text, page_colour), min(text, page_colour)
        assert (light + 0.05) / (dark + 0.05) >= 4.5
    assert opened.complaints == []
    opened.context.close()


def luminance(colour: str) -> float:
    """Relative luminance of an `rgb(...)` colour (WCAG 2)."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_from_the_keyboard(opened: Any) -> None:
    page = opened.page
    page.keyboard.press("Tab")
    skip = page.locator(".skip")
    assert skip.evaluate("(e) => e === document.activeElement")
    assert skip.bounding_box()["y"] >= 0
    assert skip.evaluate("(e) => getComputedStyle(e).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    inside = "document.querySelector('main').contains(document.activeElement)"
    assert page.evaluate(inside)
    # Every stop on the way through the page shows where it is.
    for _ in range(25):
        style = "getComputedStyle(document.activeElement)"
        assert page.evaluate(f"{style}.outlineStyle === 'solid'")
        page.keyboard.press("Tab")


def test_without_javascript(browser: Any, report_run: Path) -> None:
    opened = Opened(browser, report_run, java_script_enabled=False)
    page = opened.page
    assert page.get_by_role("heading", name="mapped_only").is_visible()
    assert page.locator("#accuracy table").nth(1).is_visible()
    assert not page.locator(".picker").is_visible()
    cards = page.locator(".card")
    assert cards.count() == 14
    assert all(card.is_visible() for card in cards.all())
    second = cards.nth(1)
    assert not second.locator("img").first.is_visible()
    second.locator("summary").click()
    assert second.locator("img").first.is_visible()
    assert page.locator("#claims .command").first.is_visible()
    assert page.locator("th button").count() == 0
    opened.context.close()


def test_hostile_names_are_text(browser: Any, hostile_run: Path) -> None:
    opened = Opened(browser, hostile_run)
    page = opened.page
    # An escaped name alone: a script that got through would be stopped, and say so.
    assert opened.complaints == []
    assert page.locator("script").count() == 1
    assert page.locator("[onerror], img[src='x']").count() == 0
    rows = page.locator("#accuracy [data-tab]").first.locator("tbody").first
    assert HOSTILE in rows.locator("th").all_inner_texts()
    assert f"failed: it said {HOSTILE}" in rows.inner_text()
    for section in ("backgrounds", "saliency"):
        said = page.locator(f"#{section} .empty").inner_text()
        assert said == f"none/such failed: it said {HOSTILE}"
    assert HOSTILE in page.locator(".card .answers").first.inner_text()
    assert "</script><img src=x on" in page.locator("#mistakes svg").first.text_content()
    # Sorting leaves a model without numbers at the end.
    for _ in range(2):
        page.locator("#accuracy thead button").nth(1).click()
        assert column(page, 1)[-1] == "none/such"
    opened.context.close()


def test_a_page_without_pictures(browser: Any, report_run: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(report_run, tmp_path / "out"))
    run_in9("report", "--dataset", output, "--pictures", "none")
    text = (output / "report.html").read_text()
    assert "data:image" not in text
    assert "<img" not in text
    opened = Opened(browser, output)
    page = opened.page
    assert opened.complaints == []
    assert "--pictures none" in page.locator("#images").inner_text()
    page.get_by_role("button", name="Next →").click()
    assert page.locator(".card:visible").count() == 1
    assert page.locator(".card:visible .answers").count() == len(PICTURES)
    assert page.locator("svg").count() > 5
    opened.context.close()
    with pytest.raises(UsageError, match="--pictures"):
        build_parser().parse_args(["report", "--pictures", "few"])


def test_the_same_results_give_the_same_files(report_run: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(report_run, tmp_path / "out"))
    before = stamps(output)
    (output / ".in9" / "report.json").unlink()
    assert not write_report(Store(str(output)), imagenet9())
    assert stamps(output) == before
    figures = {path.name: path.read_bytes() for path in (output / "results/figures").iterdir()}
    shutil.rmtree(output / "results" / "figures")
    left_over = output / "results" / "figures" / "confusion-original-gone.svg"
    theirs = output / "results" / "figures" / "mine.svg"
    ours = output / "results" / "figures" / "trend.svg"
    for path in (left_over, theirs, ours):
        path.parent.mkdir(exist_ok=True)
        path.write_text("<svg><script>alert(1)</script></svg>")
    assert write_report(Store(str(output)), imagenet9())
    assert "alert(1)" not in (output / "report.html").read_text()
    assert not left_over.exists()
    theirs.unlink()
    made = {path.name: path.read_bytes() for path in (output / "results/figures").iterdir()}
    assert len(made) > 10
    assert made == figures
    trend = json.loads((output / "results" / "trend.json").read_text())
    for known in trend["points"]:
        known["imagenet_top1"] = None
    (output / "results" / "trend.json").write_text(json.dumps(trend))
    assert write_report(Store(str(output)), imagenet9())
    assert not ours.exists()
    assert all(data.startswith(b"<?xml") and b"2026-" not in data for data in made.values())


def test_a_model_is_removed_with_its_folder(report_run: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(report_run, tmp_path / "out"))
    results = output / "results"
    # One that failed, too.
    failure = {"entry": "gone", "stage": "evaluate", "model": "gone", "error": "no such file"}
    about = json.loads((results / MODELS[0] / "model.json").read_text())
    failure |= {"dataset": manifest_of(output)["fingerprint"], "evaluation": about["evaluation"]}
    (results / "failures.json").write_text(json.dumps({"gone": {"evaluate": failure}}))
    run_in9("report", "--dataset", output)
    assert "gone," in (results / "summary.csv").read_text()
    (results / "failures.json").unlink()

    def naming(name: str) -> set[str]:
        page = output / "report.html"
        found = {page.name} if f'href="results/{name}/' in page.read_text() else set()
        tables = (*results.glob("*.csv"), *results.glob("figures/*"))
        return found | {path.name for path in tables if f"{name}," in path.read_text("latin1")}

    for model in MODELS:
        assert {"summary.csv", "attack.csv", "saliency.csv", "report.html"} <= naming(model)
        shutil.rmtree(results / model)
        run_in9("report", "--dataset", output)
        assert not naming(model)
        assert not list(results.glob(f"figures/*{model}*"))
    assert not naming("gone")
    assert (results / "summary.csv").read_text().count("\n") == 1


def test_figures_become_pdf_files_when_asked_and_stay_up_to_date(
    report_run: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(report_run, tmp_path / "out"))
    store, figures = Store(str(output)), output / "results" / "figures"
    assert not list(figures.glob("*.pdf"))
    assert write_report(store, imagenet9(), pdf=True)
    made = {path.stem: path.read_bytes() for path in figures.glob("*.pdf")}
    assert set(made) == {path.stem for path in figures.glob("*.svg")}
    for data in made.values():
        assert data.startswith(b"%PDF")
        assert b"/FontFile2" in data
        assert b"/Type3" not in data
        assert b"/CreationDate" not in data
    # Who does not ask finds them there.
    assert not write_report(store, imagenet9())
    (figures / "decomposition.pdf").write_bytes(b"%PDF of earlier results")
    (figures / "confusion-original-gone.pdf").write_bytes(b"%PDF")
    assert write_report(store, imagenet9())
    assert {path.stem: path.read_bytes() for path in figures.glob("*.pdf")} == made


def test_the_page_is_made_again_only_if_something_has_changed(
    report_run: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(report_run, tmp_path / "out"))
    store, page = Store(str(output)), output / "report.html"
    made, status = page.read_bytes(), page.stat()
    # A change that nobody can see from outside: it stays exactly if the page is not made.
    page.write_bytes(made[:-1] + b" ")
    os.utime(page, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not write_report(store, imagenet9())
    assert page.read_bytes() != made
    os.utime(output / "results" / MODELS[0] / "attack.json")
    write_report(store, imagenet9())
    assert page.read_bytes() == made
    for change in (page.unlink, lambda: page.write_bytes(b"")):
        change()
        assert write_report(store, imagenet9())
    assert write_report(store, imagenet9(), pictures="none")
    assert not write_report(store, imagenet9(), pictures="none")


def test_ten_megabytes_hold_4050_images_and_eight_models(report_run: Path) -> None:
    page = (report_run / "report.html").read_text()
    pictures = sum(map(len, re.findall(r"data:image/webp;base64,[\w+/=]+", page)))
    # The hero example is shown again in the chooser.
    most = CHOOSER_BYTES + BACKGROUND_BYTES + SALIENCY_BYTES + 60_000
    assert pictures < most
    cards = page.count('<details class="card"')
    text_of_cards = len("".join(re.findall(r'<ul class="answers">.*?</ul>', page, re.S)))
    per_answer = text_of_cards / (cards * len(PICTURES) * len(MODELS))
    most_answers = 9 * PER_CLASS * len(PICTURES) * 8 * per_answer
    # All else grows with the models, at most as their number.
    others = (len(page) - pictures - text_of_cards) * 8 / len(MODELS)
    assert most + most_answers + others < 10_000_000


def test_a_dataset_without_models_has_a_page(one_worker: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(one_worker, tmp_path / "out"))
    write_report(Store(str(output)), imagenet9())
    text = (output / "report.html").read_text()
    per_class = manifest_of(output)["samples"]["val"]["original"]
    gone = ", ".join(sorted(name for name, images in per_class.items() if not images))
    assert gone
    assert f'<p class="warning">Split val has no image of {gone}; an image whose class has' in text
    assert "No model has been evaluated" in text
    assert text.count("data:image/webp") == 14 * len(PICTURES)
    assert not list(output.glob("results/figures/*"))
