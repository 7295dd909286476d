"""Tests what the page says in a real browser, on real results, and when it is rebuilt."""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import shlex
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import yaml
from fault_documents import fields, with_value
from made_results import made, of_model
from report_page import MODELS, column
from runs import dataset_in, keys, manifest_of, run_here, run_in9, run_python, write_all

from pipeline.analyses import ANALYSES
from pipeline.analyses.attack.parts import _BYTES as BACKGROUND_BYTES
from pipeline.analyses.attack.results import AttackResult
from pipeline.analyses.evaluation.differences import Differences
from pipeline.analyses.evaluation.images import _BYTES as CHOOSER_BYTES
from pipeline.analyses.evaluation.images import PER_CLASS
from pipeline.analyses.evaluation.panel import reading
from pipeline.analyses.imagenet.results import Trend
from pipeline.analyses.saliency.parts import _BYTES as SALIENCY_BYTES
from pipeline.analyses.saliency.results import SaliencyResult
from pipeline.commands.command_line import build_parser
from pipeline.dataset.folder import Dataset
from pipeline.display.table import Cell
from pipeline.errors import UsageError
from pipeline.evaluate.evidence import Evidence
from pipeline.evaluate.summary import Evaluated, Summary
from pipeline.report import write
from pipeline.report.page import check_claims, find_not_run
from pipeline.report.write import write_report
from pipeline.runtime.own_code import code_files
from pipeline.storage.state_files import convert
from pipeline.storage.store import Store
from transforms.taxonomy import imagenet9
from transforms.variants import PICTURES

ROOT = Path(__file__).parents[2]


def test_it_loads_in_silence_and_asks_the_network_for_nothing(seen: Any, report_run: Path) -> None:
    assert seen.complaints == []
    assert [url for url in seen.requests if not url.startswith("data:")] == [
        (report_run / "report.html").as_uri()
    ]
    page = seen.page
    assert page.title() == "ImageNet-9 report"
    pictures = page.locator("img").evaluate_all("all => all.map((e) => [e.alt, e.naturalWidth])")
    assert len(pictures) > 9 * len(PICTURES)
    assert all(page.locator("img").evaluate_all("all => all.map((e) => e.hasAttribute('alt'))"))
    in_cards = page.locator(".card img").evaluate_all("all => all.map((e) => e.alt)")
    assert all(" variant " in alt for alt in in_cards)
    backgrounds = [alt for alt in in_cards if "variant mixed" in alt]
    assert all(", background from " in alt for alt in backgrounds)
    assert all(page.locator("svg").evaluate_all("all => all.map((e) => e.ariaLabel?.length > 20)"))
    ids = page.locator("[id]").evaluate_all("all => all.map((e) => e.id)")
    assert len(set(ids)) == len(ids)
    levels = page.locator("h1, h2, h3, h4").evaluate_all("all => all.map((e) => +e.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_every_part_has_real_results_or_says_what_gives_them(seen: Any) -> None:
    page = seen.page
    sections = page.locator("main > section").evaluate_all("all => all.map((e) => e.id)")
    assert sections == [
        *("images", "accuracy", "sensitivity", "mistakes", "backgrounds", "saliency", "claims"),
        *("not_run", "run", "files"),
    ]
    titles = page.locator("nav a").evaluate_all("all => all.map((e) => e.hash.slice(1))")
    assert titles == sections
    # A best-fit line takes more than two models.
    waiting = page.locator("#not_run .command code").all_text_contents()
    assert [command.split()[1] for command in waiting[:3]] == ["method", "evaluate", "matrix"]
    assert "--imagenet" in waiting[1]
    for section, images in (("images", 14 * 8), ("backgrounds", 1), ("saliency", 3 * 3)):
        assert page.locator(f"#{section} img").count() >= images
    assert page.locator("#mistakes svg").count() == 1 + 4 + 4 * len(MODELS)
    assert page.locator("#accuracy svg").count() == 2
    # Beside each figure are links to its files.
    assert page.locator("figure:has(> svg)").count() == page.locator("figcaption a").count()
    # There are flip rates of mixed_same and mixed_rand, one draw each, but no noise variants.
    assert page.locator("#sensitivity tbody tr").count() == len(MODELS)
    assert "--variants all,noise_fg,noise_bg" in page.locator("#sensitivity").inner_text()
    judged = page.locator(".claims > li").count()
    assert page.locator(".claims .not_run").count() == 0
    not_judged = re.findall(r"(\d+)(?: more)? claims?\b", page.locator("#not_run").text_content())
    assert judged > 5
    claims = [claim for analysis in ANALYSES for claim in analysis.parts.claims]
    assert judged + sum(map(int, not_judged)) == len(claims)
    # Four of 14 images differ at most, by which two models cannot be told apart.
    comparison = page.locator("#accuracy .side").last.inner_text()
    assert "None of these differences is significant." in comparison
    assert "They hold for these weights: the same networks, trained again, may differ" in comparison
    known = build_parser()
    commands = page.locator(".command code").all_text_contents()
    assert len(commands) > 4
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "in9"
        assert known.parse_known_args(arguments)[1] == [], command


def test_it_has_entries_to_cite(seen: Any, report_run: Path) -> None:
    software, paper = seen.page.locator("#run pre").text_content().split("\n\n")
    # Plain styles of BibTeX know neither @software nor its version.
    assert software.startswith("@misc{")
    assert f"{{Software, version {metadata.version('imagenet9-pipeline')}}}" in software
    assert f"{{Dataset {manifest_of(report_run)['fingerprint']}}}" in software
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    (authors,) = citation["authors"]
    for value in (f"{{{authors['name']}}}", citation["title"], citation["date-released"].year):
        assert f"= {{{value}}},\n" in software
    assert "arXiv:2006.09994" in paper
    for entry in (software, paper):
        assert entry.count("{") == entry.count("}") > 4


def test_a_line_says_how_gaps_differ_from_that_of_the_baseline() -> None:
    larger, smaller = (
        Cell(0.031, 0.01, 0.05, is_starred=True),
        Cell(-0.04, -0.06, -0.02, is_starred=True),
    )
    alike = Cell(0.01, -0.01, 0.03)
    for cells, said in (
        ([larger], "+3.1 points, 1.0 to 5.0"),
        ([larger, smaller, larger, alike], "significantly larger for 2, smaller for 1 of 4 models"),
    ):
        rows = tuple((str(n), "base", {"BG-Gap": cell}) for n, cell in enumerate(cells))
        assert Differences(("BG-Gap",), rows, left_out=False).of_gaps == said


def test_a_sentence_says_what_differs_between_models() -> None:
    far, near = Cell(0.086, 0.02, 0.15, is_starred=True), Cell(-0.02, -0.1, 0.06)
    gap = Cell(-0.031, -0.05, -0.01, is_starred=True)
    pair = ("a", "b", {"BG-Gap": gap, "original": far, "no_fg": near})
    columns = ("BG-Gap", "original", "no_fg")

    def said(*rows: Any, **of: str) -> str:
        return Differences(columns, rows, left_out=False, **of).summary

    scope = "Columns are not adjusted for each other: expect 1 in 20 by chance."
    assert said(pair) == (
        "a against b: a BG-Gap 3.1 points smaller, 8.6 points higher on original. No other "
        f"difference is significant. {scope}"
    )
    alike = ("a", "c", {"original": near})
    assert said(alike) == "None of these differences is significant."
    assert said(*[pair] * 4, alike, alike) == (
        f"4 of 6 pairs of models differ significantly, on: BG-Gap (4), original (4). {scope}"
    )
    both = said(*[pair] * 4, of="families or models")
    assert both.startswith("4 of 4 pairs of families or models differ")


def test_the_intervals_of_the_gap_are_read_out() -> None:
    above, below = Cell(0.1, 0.05, 0.2), Cell(-0.1, -0.2, -0.05)
    both = Cell(0.01, -0.1, 0.1)
    # A gap whose interval excludes 0, but whose p value does not survive that there are many.
    doubtful = Cell(0.1, 0.01, 0.2)
    p_values = {id(above): 0.0001, id(below): 0.001, id(doubtful): 0.03, id(both): 0.8}
    none = "No BG-Gap differs significantly from 0 (Holm, 5 %): these 9 images do not show that "
    for gaps, said, *of in (
        ([above], "The whole interval is above 0: the model relies on the background."),
        ([above], "The whole interval is above 0: the method relies on the back", "families"),
        ([below], "The whole interval is below 0: the model does better on other backgrounds."),
        ([both], "The interval includes 0: these 9 images do not show that the model relies on "),
        ([both], "The interval includes 0: these 9 images do not show that the method", "families"),
        ([both] * 2, none),
        ([both] * 2, f"{none}these families rely on the background.", "families"),
        ([doubtful, both], none),
        # That all models rely on it needs no adjustment, because each of them has to.
        ([above, doubtful], "Both models rely on the background: both intervals lie above 0."),
        ([above] * 2, "Both families rely on the background: both intervals", "families"),
        ([above] * 2, "Both rely on the background: both intervals", "families and models"),
        ([doubtful] * 20, "All 20 models rely on the background: all intervals lie above 0."),
        ([above] * 3, "All 3 families and models rely on the backgr", "families and models"),
        ([above, both], "BG-Gap is above 0 for at least 1 of 2 families (Holm, 5 %).", "families"),
        (
            [above] * 17 + [doubtful] * 2 + [both],
            "BG-Gap is above 0 for at least 17 of 20 models (Holm, 5 %).",
        ),
        (
            [above, below, both],
            "BG-Gap is above 0 for at least 1 and below 0 for at least 1 of 3 models (Holm, 5 %).",
        ),
    ):
        p = np.asarray([p_values[id(gap)] for gap in gaps])
        assert reading(gaps, p, "these 9 images", *of).startswith(said)


def test_links_lead_to_what_is_there(seen: Any, report_run: Path) -> None:
    links = seen.page.locator("a").evaluate_all("all => all.map((e) => e.getAttribute('href'))")
    beside = [link for link in links if not link.startswith("#")]
    assert {"results/summary.csv", "results/figures/decomposition.svg"} <= set(beside)
    assert all((report_run / link).exists() for link in beside)
    targets = [link for link in links if link.startswith("#")]
    assert len(targets) > 8
    ids = seen.page.locator("[id]").evaluate_all("all => all.map((e) => e.id)")
    assert {target.removeprefix("#") for target in targets} <= set(ids)


def test_the_headline_table_sorts_by_mouse_and_keyboard(opened: Any) -> None:
    page = opened.page
    heads = page.locator("#accuracy [data-tab]").first.locator("thead th")
    published = page.locator("tbody.published").text_content()
    assert heads.nth(1).get_attribute("aria-sort") == "descending"
    gaps = [float(text) for text in column(page, 2)]
    assert gaps == sorted(gaps, reverse=True)
    heads.nth(3).locator("button").click()
    assert heads.nth(1).get_attribute("aria-sort") is None
    assert heads.nth(3).get_attribute("aria-sort") == "descending"
    heads.nth(1).locator("button").click()
    assert heads.nth(1).get_attribute("aria-sort") == "descending"
    assert [float(text) for text in column(page, 2)] == sorted(gaps, reverse=True)
    # The same heading, pressed again from the keyboard, reverses the order.
    page.keyboard.press("Enter")
    assert heads.nth(1).get_attribute("aria-sort") == "ascending"
    assert [float(text) for text in column(page, 2)] == sorted(gaps)
    heads.nth(0).locator("button").focus()
    page.keyboard.press("Space")
    assert heads.nth(0).get_attribute("aria-sort") == "ascending"
    assert column(page, 1) == sorted(MODELS)
    page.keyboard.press("Space")
    assert column(page, 1) == sorted(MODELS, reverse=True)
    assert page.locator("tbody.published").text_content() == published
    # A model without numbers stays at the end.
    row = page.locator("#accuracy [data-tab]").first.locator("tbody tr").first
    row.locator("td").first.evaluate("(e) => { e.dataset.value = ''; }")
    for _ in range(2):
        heads.nth(1).locator("button").click()
        assert column(page, 1)[-1] == MODELS[1]


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


def test_a_page_without_pictures(open_page: Any, report_run: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(report_run, tmp_path / "out"))
    write_all(output, pictures="none")
    text = (output / "report.html").read_text()
    assert "data:image" not in text
    assert "<img" not in text
    opened = open_page(output)
    page = opened.page
    assert opened.complaints == []
    assert "--pictures none" in page.locator("#images").inner_text()
    page.get_by_role("button", name="Next image").click()
    assert page.locator(".card:visible").count() == 1
    assert page.locator(".card:visible .answers").count() == len(PICTURES)
    assert page.locator("svg").count() > 5
    with pytest.raises(UsageError, match="--pictures"):
        build_parser().parse_args(["report", "--pictures", "few"])


def test_only_commands_that_this_dataset_takes_are_recommended(
    three_draws: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waiting(*models: Any, **changes: Any) -> dict[str, str]:
        dataset = dataset_in(three_draws)
        config = dataclasses.replace(dataset.manifest.config, **changes)
        dataset = Dataset(
            Store(str(tmp_path / "out")), dataclasses.replace(dataset.manifest, config=config)
        )
        evidence = Evidence(models, dataset=dataset, taxonomy=imagenet9())
        commands = [one.command for one in find_not_run(evidence, (), check_claims(evidence))]
        return {command.split()[1]: command for command in commands}

    def tested(model: str, holdout: float, split: str = "val") -> Any:
        evaluation = {"holdout": holdout, "split": split}
        fields = {"label_rules": ("mapped_only",), "evaluation": evaluation}
        return of_model(model, made(Summary, model=model, **fields))

    own = waiting()
    assert own.keys() >= {"method", "attack", "saliency", "matrix", "evaluate"}
    assert own.keys() - waiting(origin="imported").keys() == {"method"}
    assert own.keys() - waiting(layers="drop").keys() == {"method"}
    fewer = dataclasses.replace(
        dataset_in(three_draws).manifest.config.compose, variants=("original", "mixed_same")
    )
    assert own.keys() - waiting(compose=fewer).keys() == {"method", "attack", "saliency"}
    # A command runs in the dataset's folder, on what all models were tested on.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.pth").touch()
    half = waiting(tested("resnet18=mine.pth", 0.5), tested("resnet18=/a.pth", 0.5))
    assert half["attack"].endswith(" --models resnet18=../mine.pth,resnet18=/a.pth --holdout 0.5")
    mixed = waiting(tested("resnet18", 0.5), tested("resnet18", 0), tested("hf:mine", 0))
    assert mixed["attack"].endswith(" --models resnet18,hf:mine")
    other = waiting(tested("resnet18", 0, "train"), tested("hf:mine", 0.5, "train"))
    assert other["attack"].endswith(" --models resnet18,hf:mine --eval_split train")


def test_the_same_results_give_the_same_files(report_run: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(report_run, tmp_path / "out"))
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
    rebuilt = {path.name: path.read_bytes() for path in (output / "results/figures").iterdir()}
    assert len(rebuilt) > 10
    assert rebuilt == figures
    # Two models have no best-fit line, so there is no figure of it.
    assert not ours.exists()
    assert all(data.startswith(b"<?xml") and b"2026-" not in data for data in rebuilt.values())


def test_a_model_is_removed_with_its_folder(report_run: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(report_run, tmp_path / "out"))
    results = output / "results"

    def naming(name: str) -> set[str]:
        page = output / "report.html"
        names = {page.name} if f'href="results/{name}/' in page.read_text() else set()
        tables = (*results.glob("*.csv"), *results.glob("figures/*"))
        return names | {path.name for path in tables if f"{name}," in path.read_text("latin1")}

    for model in MODELS:
        assert {"summary.csv", "attack.csv", "saliency.csv", "report.html"} <= naming(model)
        shutil.rmtree(results / model)
        write_all(output)
        assert not naming(model)
        assert not list(results.glob(f"figures/*{model}*"))
    assert (results / "summary.csv").read_text().count("\n") == 1


@pytest.mark.usefixtures("no_figures")
def test_the_page_is_made_again_only_if_something_has_changed(
    small_run: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(small_run, tmp_path / "out"))
    store, page = Store(str(output)), output / "report.html"
    (output / ".in9" / "report.json").unlink()
    write_report(store, imagenet9())
    content, status = page.read_bytes(), page.stat()
    # This change keeps size and time, so it survives exactly if the page is not rebuilt.
    page.write_bytes(content[:-1] + b" ")
    os.utime(page, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not write_report(store, imagenet9())
    assert page.read_bytes() != content
    os.utime(output / "results" / MODELS[0] / "model.json")
    write_report(store, imagenet9())
    assert page.read_bytes() == content
    for change in (page.unlink, lambda: page.write_bytes(b"")):
        change()
        assert write_report(store, imagenet9())
    assert write_report(store, imagenet9(), pictures="none")
    assert not write_report(store, imagenet9(), pictures="none")


def test_all_code_that_makes_the_page_is_in_its_fingerprint() -> None:
    code = "import sys, pipeline.report.page, pipeline.display.plot; print(*sys.modules)"
    modules = run_python(code).stdout.split()
    loaded = {name for name in modules if name.startswith(("pipeline.", "transforms."))}
    assert {"pipeline.dataset.card", "pipeline.errors"} < loaded
    names = {name.replace("/", ".") for name in code_files(write.CODE)}
    files = {name.removesuffix(".py").removesuffix(".__init__") for name in names}
    assert loaded <= files
    assert "pipeline.templates.report.report.css" in names


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
    # Everything else grows at most in proportion to the number of models.
    others = (len(page) - pictures - text_of_cards) * 8 / len(MODELS)
    assert most + most_answers + others < 10_000_000


def test_a_dataset_without_images_has_a_page_that_says_so(
    small_sample: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    run_in9("generate", "--input", small_sample, "--output", output, *keys(max_box=0))
    write_report(Store(str(output)), imagenet9())
    text = (output / "report.html").read_text()
    assert "The dataset has no images" in text
    assert "No image was selected" in text
    assert "No model has been evaluated" not in text
    assert "in9 evaluate" not in text


def test_a_dataset_without_models_has_a_page(one_worker: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(one_worker, tmp_path / "out"))
    assert not (output / "report.html").exists()
    write_report(Store(str(output)), imagenet9())
    text = (output / "report.html").read_text()
    per_class = manifest_of(output)["samples"]["val"]["original"]
    gone = ", ".join(sorted(name for name, images in per_class.items() if not images))
    assert gone
    assert f'<p class="warning">Split val has no image of {gone}; an image whose class has' in text
    assert "No model has been evaluated" in text
    assert text.count("data:image/webp") == 14 * len(PICTURES)
    assert not list(output.glob("results/figures/*"))


KINDS: dict[str, Any] = {
    "model.json": Evaluated,
    "attack.json": AttackResult,
    "saliency.json": SaliencyResult,
    "trend.json": Trend,
}


@pytest.mark.usefixtures("empty_pdfs")
def test_tables_and_page_do_without_all_figures_that_a_result_need_not_have(
    report_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output, missing = Path(shutil.copytree(report_run, tmp_path / "out")), set()
    for path in output.glob("results/**/*.json"):
        kind, content = KINDS[path.name], json.loads(path.read_text())
        for field in fields(content):
            without = with_value(content, field, None)
            with contextlib.suppress(msgspec.ValidationError):
                convert(without, kind)
                content = without
                missing.add(field[-1])
        path.write_text(json.dumps(content))
    assert {"fooled", "ci_low", "mass_in_mask", "imagenet_top1"} <= missing
    run_here("report", "--dataset", output, "--pictures", "none")
    assert list(output.glob("results/figures/*.pdf"))
    assert "is damaged" not in caplog.text
    page = (output / "report.html").read_text()
    assert all(model in page for model in MODELS)
    (section,) = re.findall(r'(?s)<section id="saliency".*?</section>', page)
    assert re.findall(r'data-label="[^"]*">(.*?)</td>', section)[:3] == ["-", "-", "-"]
