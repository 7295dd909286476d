"""Tests the images of the page in a real browser: choice, filters, links, and the first image."""

import itertools
import re
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_results import made, of_model
from report_page import MODELS
from runs import ONE, index_of, pixels_of, run_here

from pipeline.analyses.evaluation import images as chooser
from pipeline.analyses.evaluation.images import (
    Candidate,
    ImageCard,
    Prediction,
    Version,
    _failures,
    _wanted,
    best_example,
    read_predictions_of,
)
from pipeline.analyses.evaluation.patterns import PATTERNS, VersionAnswer, patterns_of
from pipeline.dataset.folder import Dataset
from pipeline.dataset.sinks import Sample
from pipeline.evaluate.evidence import Evidence
from pipeline.evaluate.results import PREDICTION_SCHEMA, result_shard
from pipeline.evaluate.summary import Summary
from pipeline.report.write import gather
from pipeline.storage.store import Store
from transforms.taxonomy import Taxonomy, imagenet9
from transforms.variants import MIXED, ORIGINAL, PICTURES


def test_choosing_an_image(opened: Any) -> None:
    page = opened.page
    cards = page.locator(".card")
    count = cards.count()
    visible = "all => all.flatMap((e, number) => e.checkVisibility() ? [number] : [])"

    def chosen() -> int:
        (number,) = cards.evaluate_all(visible)
        card = cards.nth(number)
        marked = page.locator(".thumbs button[aria-current]").get_attribute("aria-label")
        assert marked == card.get_attribute("data-name")
        assert page.locator("[data-images]").input_value() == card.get_attribute("id")
        said = page.locator(".picker [aria-live]").inner_text()
        assert said == f"{number + 1} of {count} on this page"
        return int(number)

    assert chosen() == 0
    page.get_by_role("button", name="Next image").click()
    assert chosen() == 1
    page.get_by_role("button", name="Previous image").click()
    page.get_by_role("button", name="Previous image").click()
    assert chosen() == count - 1
    page.locator("[data-images]").select_option(index=2)
    assert chosen() == 2
    page.locator(".thumbs button").nth(4).click()
    assert chosen() == 4
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert chosen() == 6
    page.keyboard.press("Home")
    assert chosen() == 0
    figures = cards.nth(0).locator("figure")
    sizes = figures.locator("img").evaluate_all("all => all.map((e) => e.naturalWidth)")
    assert sizes == [96] * len(PICTURES)
    assert opened.complaints == []


_CARDS = """all => all.map((card) => {
  const text = (e, part) => e.querySelector(part)?.textContent;
  const figures = Array.from(card.querySelectorAll("figure"), (figure) => ({
    name: text(figure, "h4"), background: text(figure, "p"),
    answers: Array.from(figure.querySelectorAll(".answers li"), (line) => [
      Array.from(line.querySelectorAll("small")).at(-1).textContent,
      text(line, ".mark"), text(line, ".hidden"), text(line, "b"),
    ]),
  }));
  return {key: text(card, "summary code"), turned: +(card.dataset.turned ?? 0), figures};
})"""


@pytest.fixture(scope="module")
def said(report_run: Path) -> dict[tuple[str, str], dict[str, VersionAnswer]]:
    """Answers by model and image, from the stored predictions."""
    labels = {row["key"]: row["label"] for row in index_of(report_run)}
    answers: dict[tuple[str, str], dict[str, VersionAnswer]] = {}
    for model in MODELS:
        for path in (report_run / "results" / model / "predictions").glob("*.parquet"):
            for row in pq.read_table(path).to_pylist():
                if row["label_rule"] == "argmax_then_map":
                    is_background = row["prediction"] == labels.get(row["bg_key"])
                    answer = VersionAnswer(row["prediction"], row["correct"], is_background)
                    answers.setdefault((model, row["key"]), {})[row["variant"]] = answer
    return answers


def test_the_chooser_tells_what_the_files_hold(
    seen: Any, report_run: Path, said: dict[tuple[str, str], dict[str, VersionAnswer]]
) -> None:
    (path,) = (report_run / "parquet" / "mixed_rand").glob("*.parquet")
    truth = {row["key"]: row for row in pq.read_table(path).to_pylist()}
    names = (*imagenet9().names, "none of the nine")
    cards = seen.page.locator(".card").evaluate_all(_CARDS)
    assert len(cards) == len(truth)
    ranks = []
    for card in cards:
        key, by_name = card["key"], {figure["name"]: figure for figure in card["figures"]}
        assert list(by_name) == list(PICTURES)
        background = f"background: {names[truth[key]['bg_label']]}, {truth[key]['bg_key']}"
        assert by_name["mixed_rand"]["background"] == background
        for name, figure in by_name.items():
            for model, *shown in figure["answers"]:
                answer = said[model, key][name]
                mark = ["✓", "right: "] if answer.is_right else ["✕", "wrong: "]
                assert shown == [*mark, names[answer.label]]
        # Images that both models recognise as they are come first.
        is_known = all(said[model, key]["original"].is_right for model in MODELS)
        ranks.append((not is_known, -card["turned"]))
    assert ranks == sorted(ranks)
    assert len({is_unknown for is_unknown, _ in ranks}) == 2


def test_models_stand_in_the_order_of_their_accuracy(report_run: Path) -> None:
    evidence = gather(Dataset.open(Store(str(report_run))), imagenet9())
    estimates = [summary.estimate("original") for _, summary in evidence.models_with(Summary)]
    accuracies = [estimate[0] if estimate else 0.0 for estimate in estimates]
    assert len(set(accuracies)) > 1
    assert accuracies == sorted(accuracies, reverse=True)


def test_the_page_goes_by_the_rule_of_the_headline(seen: Any) -> None:
    said = seen.page.locator("#images").inner_text().replace("\n", " ")
    assert "answer by argmax_then_map (also by mapped_only, where it differs)" in said


def cards_with(
    said: dict[tuple[str, str], dict[str, VersionAnswer]], pattern: str, *of: str
) -> set[str]:
    """Finds the keys of images where the answers of one of the models show a pattern."""
    return {key for (model, key), answers in said.items()
            if model in of and pattern in patterns_of(answers)}  # fmt: skip


def shown_keys(page: Any) -> set[str]:
    """Lists the keys of the images that pass the filters."""
    options = page.locator("[data-images] option").evaluate_all("all => all.map((e) => e.value)")
    assert page.locator(".thumbs button:visible").count() == len(options)
    return {unquote(option.removeprefix("image=")) for option in options}


def test_filters_leave_the_images_that_the_predictions_say(
    opened: Any, said: dict[tuple[str, str], dict[str, VersionAnswer]]
) -> None:
    page = opened.page
    model, pattern = page.locator("[data-filter=model]"), page.locator("[data-filter=pattern]")
    offered = pattern.locator("option").evaluate_all("all => all.map((e) => e.value)")
    assert offered == ["", *(p.name for p in PATTERNS if cards_with(said, p.name, *MODELS))]
    assert {"flips", "original"} <= set(offered)
    for name in offered[1:]:
        for chosen in ("", *MODELS):
            pattern.select_option(name)
            model.select_option(chosen)
            expected = cards_with(said, name, *([chosen] if chosen else MODELS))
            assert shown_keys(page) == expected
            assert page.locator(".card:visible").count() == bool(expected)
            assert page.locator(".nothing").is_visible() != bool(expected)
            answers = page.locator(".card:visible .answers li:visible .model")
            assert set(answers.all_inner_texts()) <= {chosen or name for name in MODELS}
    assert page.locator(".meaning").inner_text() == PATTERNS[-1].means
    model.select_option("")
    pattern.select_option("")
    page.locator("[data-filter=class]").select_option(index=1)
    kind = page.locator("[data-filter=class]").input_value()
    assert len(shown_keys(page)) == page.locator(f".card[data-class='{kind}']").count() > 0
    assert opened.complaints == []


def test_variants_that_were_not_evaluated_fit_no_pattern() -> None:
    right, wrong = VersionAnswer(0, True, False), VersionAnswer(1, False, False)
    assert patterns_of({"original": right}) == ()
    assert patterns_of({"only_bg_t": wrong}) == ()
    assert patterns_of({"mixed_rand": wrong}) == ()
    assert patterns_of({"mixed_rand": wrong, "original": right}) == ("only_rand",)
    assert patterns_of({"mixed_rand": right, "original": right}) == ("every",)


def test_filters_that_leave_nothing_say_so_and_can_be_taken_back(opened: Any) -> None:
    page = opened.page
    kinds, pattern = page.locator("[data-filter=class]"), page.locator("[data-filter=pattern]")
    names, offered = (
        menu.locator("option").evaluate_all("all => all.slice(1).map((e) => e.value)")
        for menu in (kinds, pattern)
    )
    shown = page.locator(".card").evaluate_all(
        "all => all.map((e) => [e.dataset.class, e.dataset.patterns])"
    )
    name, other = next(
        (name, each)
        for name, each in itertools.product(names, offered)
        if not any(of == name and each in patterns for of, patterns in shown)
    )
    kinds.select_option(name)
    pattern.select_option(other)
    assert page.locator(".nothing").is_visible()
    assert page.locator(".card:visible").count() == 0
    page.get_by_role("button", name="Show all images").click()
    assert len(shown_keys(page)) == page.locator(".card").count()
    assert page.locator(".card:visible").count() == 1


def test_an_address_leads_to_an_image_and_keeps_the_filters(
    open_page: Any, report_run: Path, opened: Any
) -> None:
    page = opened.page
    assert "#" not in page.url
    page.locator("[data-filter=pattern]").select_option("flips")
    page.locator("[data-filter=model]").select_option(MODELS[1])
    page.get_by_role("button", name="Previous image").click()
    kept = shown_keys(page)
    card = page.locator(".card:visible")
    link = card.locator(".permalink").get_attribute("href")
    assert page.url == opened.address + link
    assert link.startswith(f"#{card.get_attribute('id')}&")
    other = open_page(report_run, link)
    assert other.page.locator(".card:visible").get_attribute("id") == card.get_attribute("id")
    assert shown_keys(other.page) == kept
    assert other.page.locator("[data-filter=model]").input_value() == MODELS[1]
    # A link to an image that its filters would hide shows the image and drops the filters.
    hidden = page.locator(".card").evaluate_all("all => all.map((e) => e.id)")
    hidden = next(id for id in hidden if unquote(id.removeprefix("image=")) not in kept)
    other.page.evaluate("(hash) => { location.hash = hash; }", f"{hidden}&pattern=flips")
    other.page.wait_for_function("(id) => !document.getElementById(id).hidden", arg=hidden)
    assert len(shown_keys(other.page)) == page.locator(".card").count()
    assert other.complaints == []
    plain = open_page(report_run, f"#{hidden}", java_script_enabled=False)
    top = plain.page.locator(f"[id='{hidden}']").bounding_box()["y"]
    assert 0 <= top < plain.page.viewport_size["height"]


def test_an_address_may_have_only_filters_or_an_image_that_is_not_here(
    open_page: Any, report_run: Path, said: dict[tuple[str, str], dict[str, VersionAnswer]]
) -> None:
    opened = open_page(report_run, "#pattern=flips")
    page = opened.page
    assert shown_keys(page) == cards_with(said, "flips", *MODELS)
    assert not page.locator(".unknown").is_visible()
    page.evaluate("location.hash = 'image=no%20such&pattern=original'")
    page.locator(".unknown").wait_for(state="visible")
    assert page.locator(".unknown").inner_text() == "No image no such is on this page."
    assert shown_keys(page) == cards_with(said, "original", *MODELS)
    assert page.locator(".card:visible").count() == 1
    page.get_by_role("button", name="Next image").click()
    assert not page.locator(".unknown").is_visible()
    page.evaluate("location.hash = 'pattern=none_such'")
    page.wait_for_function("document.querySelector('[data-filter=pattern]').value === ''")
    assert len(shown_keys(page)) == page.locator(".card").count()
    assert opened.complaints == []


_COUNTS = """all => all.map((card) => Array.from(card.querySelectorAll(".versions h4"),
  (_, n) => card.querySelectorAll(`.marks td:nth-child(${n + 2}).right`).length))"""


def test_many_models_are_a_grid_of_marks(open_page: Any, twenty_run: Path) -> None:
    opened = open_page(twenty_run, has_touch=True)
    page = opened.page
    card = page.locator(".card:visible")
    rows = card.locator(".marks tbody tr")
    assert rows.count() == 20
    names = card.locator(".versions h4").all_inner_texts()
    cells = rows.first.locator("td")
    assert cells.count() == len(names)
    # Pictures are as large as those of few models, and tell how many models are right.
    assert min(box.bounding_box()["width"] for box in card.locator("img").all()) > 180
    counts = page.locator(".card").evaluate_all(_COUNTS)
    said = page.locator(".card .count").all_text_contents()
    assert said == [f"{count} of 20 right" for of_card in counts for count in of_card]
    assert len({*said}) > 1
    assert not rows.first.is_visible()
    grid = page.locator(".card:visible summary", has_text="Each model's answers")
    grid.click()
    page.get_by_role("button", name="Next image").click()
    assert page.locator(".card:visible .marks").is_visible()
    page.get_by_role("button", name="Previous image").click()
    (file,) = (twenty_run / "results").glob("vit_base_patch16_0.in21k_ft/predictions/*.parquet")
    key = card.locator("summary code").text_content()
    row = rows.filter(has=page.locator("th", has_text="vit_base_patch16_0.in21k_ft"))
    answers = {answer["variant"]: answer for answer in pq.read_table(file).to_pylist()
               if (answer["label_rule"], answer["key"]) == ("argmax_then_map", key)}  # fmt: skip
    names_of_classes = (*imagenet9().names, "none of the nine")
    for name, cell in zip(names, row.locator("td").all(), strict=True):
        tip = cell.locator(".tip")
        word = "right: " if answers[name]["correct"] else "wrong: "
        expected = word + names_of_classes[answers[name]["prediction"]]
        assert tip.text_content().startswith(expected)
    for show in (cell.hover, cell.focus, cell.tap):
        page.mouse.move(0, 0)
        cell.blur()
        assert tip.bounding_box()["width"] < 2
        show()
        assert tip.bounding_box()["width"] > 40
        assert tip.inner_text().startswith(expected)
    # One cell is reached with Tab, and the others from it.
    assert card.locator("td[tabindex='0']").count() == 1
    card.locator("td[tabindex='0']").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert rows.nth(1).locator("td").nth(1).evaluate("(e) => e === document.activeElement")
    # To choose a model opens the grid.
    grid.click()
    assert not rows.first.is_visible()
    page.locator("[data-filter=model]").select_option("vit_base_patch16_3.in21k_ft")
    assert rows.locator("visible=true").count() == 1
    assert opened.complaints == []


def test_all_eight_versions_are_in_sight_at_once(open_page: Any, report_run: Path) -> None:
    opened = open_page(report_run, "#images", reduced_motion="reduce")
    page = opened.page
    height = page.viewport_size["height"]
    places = """all => all.map((e) => ["img", "h4"].map((part) => {
      const {y, width, bottom} = e.querySelector(part).getBoundingClientRect();
      return {y, width, bottom};
    }))"""
    for number in range(page.locator(".card").count()):
        page.locator("[data-images]").select_option(index=number)
        found = page.locator(".card:visible .versions > figure").evaluate_all(places)
        assert len(found) == len(PICTURES)
        navigation = page.locator("nav").bounding_box()["height"]
        for picture, heading in found:
            assert picture["width"] > 180
            assert picture["y"] >= navigation
            assert picture["bottom"] < height - 90
            assert heading["y"] + 20 < height


def test_outdated_predictions_are_not_shown(tmp_path: Path) -> None:
    # The model was run on an earlier state of the dataset, which had other mixed pictures.
    store = Store(str(tmp_path))
    shared = {"label_rule": "argmax_then_map", "key": "a", "prediction": 0, "output": 0}
    rows = [
        {**shared, "variant": name, "correct": name != "mixed_rand", "top1_score": 0.5}
        for name in ("original", "mixed_same", "mixed_rand")
    ]
    path = tmp_path / result_shard("m", "predictions", "val", 0)
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, PREDICTION_SCHEMA), path)
    dataset: Any = SimpleNamespace(
        store=store, shard_of=lambda split, key: 0, picture_variants=PICTURES
    )
    for missing, shown, turned in (
        ((), {"original", "mixed_same", "mixed_rand"}, {"a": 1}),
        (("mixed_rand",), {"original", "mixed_same"}, {}),
        (MIXED, {"original"}, {}),
    ):
        summary = made(Summary, missing=missing, label_rules=("argmax_then_map",))
        model = of_model("m", summary), summary
        predictions = read_predictions_of(dataset, "val", model, ["a"])
        assert {row["variant"] for row in predictions} == shown
        wanted = _wanted(dataset, "val", model, ("original", *MIXED))
        assert _failures(store, "val", 0, [(model[0], wanted)]) == ({}, turned, turned)


@pytest.mark.usefixtures("no_figures")
def test_an_image_misleads_models_out_of_those_that_were_tested_on_it(
    three_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Path(shutil.copytree(three_models, tmp_path / "out"))
    none, every = Counter[str](), Counter(pixels_of(output, "original").keys())
    monkeypatch.setattr(chooser, "_failures", lambda *_: (none, every, none))
    half = ("--models", "python:tiny_models:first", "--holdout", 0.5)
    run_here("evaluate", "--dataset", output, *half, "--pictures", "sample", *ONE)
    cards = (output / "report.html").read_text().split('<details class="card"')[1:]
    found = set()
    for card in cards:
        same = card.partition(", variant mixed_same")[2].partition("</figure>")[0]
        (seen,) = set(re.findall(r"misleads 1 of (\d+)", card))
        assert f"</b> of {seen} right" in same
        found.add(seen)
    assert found == {"3", "4"}


def test_pictures_that_have_no_room_are_not_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = [Candidate((False, 0, 0, n), str(n), n) for n in range(500)]
    encoded: list[bytes] = []
    fields = {"bg_label": None, "bg_key": None, "wnid": "a", "fg_fraction": 0.3}
    monkeypatch.setattr(chooser, "shown_models", lambda _: ("val", ()))
    monkeypatch.setattr(chooser, "choose_images", lambda *_: list(candidates))
    monkeypatch.setattr(chooser, "data_uri", lambda image: encoded.append(image) or "x" * 100_000)
    monkeypatch.setattr(
        chooser,
        "find_samples",
        lambda _, split, variant, keys: {key: Sample(key, b"", "jpg", fields) for key in keys},
    )
    taxonomy = Taxonomy(("a",) * 500, ("a",), (0,), ("a",))
    manifest = SimpleNamespace(images={"val": {"selected": 500}})
    dataset = SimpleNamespace(picture_variants=(ORIGINAL,), manifest=manifest)
    evidence = Evidence(models=(), dataset=cast("Any", dataset), taxonomy=taxonomy)
    shown = chooser.make_chooser(evidence, with_pictures=True)
    assert len(encoded) == 72
    assert [card.key for card in shown.cards] == [str(number) for number in range(48)]
    assert len(chooser.make_chooser(evidence, with_pictures=False).cards) == 500


def example_card(
    key: str, same: bool, rand: int, original: bool = True, rand_bg: int | None = 1
) -> ImageCard:
    """Builds the card of an image of class 0; `rand_bg` is the class of mixed_rand's background."""

    def version(variant: str, label: int, bg_label: int | None) -> Version:
        prediction = Prediction("m", label == 0, str(label), label, "", 0.5, "")
        return Version(variant, "", "", bg_label, "", (prediction,))

    versions = (
        version("original", 0 if original else 3, None),
        version("mixed_same", 0 if same else 2, 0),
        version("mixed_rand", rand, rand_bg),
    )
    return ImageCard(key, "a", "a", 0.3, 0, versions, ())


def test_the_first_picture_is_of_the_background_believed_or_else_of_an_answer_turned() -> None:
    never = example_card("never", same=True, rand=0)
    lost = example_card("lost", same=False, rand=1)
    unknown = example_card("unknown", same=True, rand=2, original=False)
    turned = example_card("turned", same=True, rand=2)
    believed = example_card("believed", same=True, rand=1, original=False)
    nowhere = example_card("nowhere", same=True, rand=1, rand_bg=None)
    assert best_example([never, lost, nowhere]) is None
    examples = [
        best_example(cards)
        for cards in ([never, turned], [unknown, turned, lost], [turned, believed])
    ]
    assert [(e.card.key, e.believers) for e in examples if e] == [
        ("turned", 0), ("turned", 0), ("believed", 1)
    ]  # fmt: skip
    assert all(e and e.other.variant == "mixed_rand" for e in examples)
