"""Tests the layout of the page in a real browser: what is in sight, and that nothing is lost."""

import re
from pathlib import Path
from typing import Any

import pytest
from report_page import MODELS, PAPER, PHONE, TOO_WIDE, WIDE, column, open_all

from pipeline.display.style import TEXT

SIZES = [WIDE, {"width": 1280, "height": 800}, {"width": 1024, "height": 768},
         {"width": 768, "height": 1024}, PHONE, {"width": 320, "height": 640}]  # fmt: skip

_BROKEN = """([names, pattern]) => {
  const broken = [];
  for (const e of document.querySelectorAll(names)) {
    const walker = document.createTreeWalker(e, NodeFilter.SHOW_TEXT);
    for (let text = walker.nextNode(); text; text = walker.nextNode()) {
      for (const word of text.data.matchAll(new RegExp(pattern, "g"))) {
        const range = document.createRange();
        range.setStart(text, word.index);
        range.setEnd(text, word.index + word[0].length);
        const lines = new Set(Array.from(range.getClientRects(), (box) => Math.round(box.top)));
        if (lines.size > 1) broken.push(word[0]);
      }
    }
  }
  return broken;
}"""
_FONTS = """all => all.map((e) => {
  const style = getComputedStyle(e), svg = e.ownerSVGElement;
  const grown = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  return [style.fontFamily, parseFloat(style.fontSize) * grown];
})"""
_COLOURS = """() => {
  const of = (selector, name) => getComputedStyle(document.querySelector(selector))[name];
  return [of("body", "backgroundColor"), of("body", "color"),
    of("#mistakes svg text", "fill"), of(".soft", "color"), of(".wrong b", "color")];
}"""
_ENDS = """all => all.map((e) => ["low", "value", "high"]
  .map((name) => e.style.getPropertyValue(`--${name}`)).filter(Boolean).map(Number))"""
NAMES = ["th, td.text, h4, .model, figcaption code, .files a", "[A-Za-z0-9]+"]
HEADS = ["table:not(.marks) thead th", "\\S+"]


@pytest.mark.parametrize("size", [*SIZES, PAPER], ids=lambda size: str(size["width"]))
def test_nothing_is_wider_than_its_frame_and_no_name_breaks_inside_a_word(
    open_page: Any, report_run: Path, size: dict[str, int]
) -> None:
    page = open_page(report_run, viewport=size).page
    if size is PAPER:
        page.emulate_media(media="print")
    assert page.evaluate(TOO_WIDE) == []
    open_all(page)
    assert page.evaluate(TOO_WIDE) == []
    assert page.evaluate(_BROKEN, NAMES) == []
    assert page.evaluate(_BROKEN, HEADS) == []
    # Each cell is visible, under its heading or beside it.
    cells = page.locator("#accuracy [data-tab]").first.locator("tbody").first.locator("td")
    visible = cells.evaluate_all("all => all.map((e) => e.checkVisibility())")
    assert visible == [True] * len(MODELS) * 10
    # Charts are in the font of the page, and large enough.
    fonts = page.locator("svg:visible text").evaluate_all(_FONTS)
    assert len(fonts) > 100
    body = page.evaluate("getComputedStyle(document.body).fontFamily")
    assert {family for family, _ in fonts} == {body}
    columns = {390: 1, 1024: 2, 1440: 3}
    if size["width"] in columns:
        assert min(pixels for _, pixels in fonts) >= TEXT
        places = page.locator("#mistakes .plots svg").evaluate_all(
            "all => all.map((e) => Math.round(e.getBoundingClientRect().left))"
        )
        assert len(set(places)) == columns[size["width"]]


def test_the_answer_is_in_sight_first(seen: Any) -> None:
    page = seen.page
    gap = page.locator(".headline")
    text = gap.inner_text()
    first = page.locator("#accuracy tbody tr").first.locator("td").first
    value, low, high = re.findall(r"-?[\d.]+", first.inner_text())[:3]
    assert f"{value} {low} to {high}" in " ".join(text.split())
    assert "do not show that these models rely on the background" in text
    pictures = page.locator("header .example img")
    assert pictures.count() == 2
    for seen in (gap, *pictures.all(), page.locator("#images-title")):
        box = seen.bounding_box()
        assert box["y"] + box["height"] < WIDE["height"]
    heads = page.locator("#accuracy thead").first.locator("th").all_inner_texts()
    assert [head.strip() for head in heads[:4]] == ["model", "BG-Gap", "min. gap", "original"]


def test_a_page_of_one_model_has_a_first_picture_and_nothing_empty(
    open_page: Any, small_run: Path
) -> None:
    opened = open_page(small_run)
    page = opened.page
    pictures = page.locator("header .example img")
    assert [picture.is_visible() for picture in pictures.all()] == [True, True]
    head = page.locator(".headline").inner_text().replace("\xa0", " ")
    assert "95 % interval" in head
    # The sentence has the accuracies of the table, and the bar joins their dots.
    cells = page.locator("#accuracy tbody").first.locator("td")
    heads = page.locator("#accuracy thead").first.locator("th").all_inner_texts()
    shown = dict(zip((text.strip() for text in heads[1:]), cells.all_inner_texts(), strict=True))
    same, rand = (float(shown[name].split()[0]) for name in ("mixed_same", "mixed_rand"))
    assert f"Of 100 objects it recognises {same:.0f} on their own kind of background" in head
    assert f", {rand:.0f} on another, on these 14 images in one draw" in head
    *_, first, second, bar = page.locator(".dots .track").evaluate_all(_ENDS)
    assert bar == sorted((first[1], second[1]))
    assert [100 * end for end in bar] == pytest.approx(sorted((same, rand)), abs=0.06)
    link = page.locator("header .example a")
    card = page.locator(f'.card[id="{link.get_attribute("href").removeprefix("#")}"]')
    link.click()
    # The script shows the card after the click.
    card.wait_for(state="visible")
    name = page.locator(".card:visible h3").inner_text()
    assert f"One {name}, two backgrounds" in page.locator("header .example").inner_text()
    sections = page.locator("main > section").evaluate_all("all => all.map((e) => e.id)")
    judged = ["images", "accuracy", "sensitivity", "mistakes", "claims"]
    assert sections == [*judged, "not_run", "run", "files"]
    assert page.locator(".empty:visible").count() == 0
    assert "Differences between models" not in page.locator("main").inner_text()


def test_it_is_readable_in_both_colour_schemes(open_page: Any, report_run: Path) -> None:
    opened = open_page(report_run)
    for scheme in ("light", "dark"):
        opened.page.emulate_media(color_scheme=scheme)
        colours = opened.page.evaluate(_COLOURS)
        page_colour, *texts = (luminance(colour) for colour in colours)
        assert (page_colour < 0.1) == (scheme == "dark")
        for text in texts:
            light, dark = max(text, page_colour), min(text, page_colour)
            assert (light + 0.05) / (dark + 0.05) >= 4.5
    assert opened.complaints == []


def luminance(colour: str) -> float:
    """Computes the relative luminance of an `rgb(...)` colour (WCAG 2)."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_page_of_many_models_is_short_and_begins_with_all_gaps_in_order(
    open_page: Any, twenty_run: Path
) -> None:
    opened = open_page(twenty_run)
    page = opened.page
    sections = page.locator("main > section").evaluate_all("all => all.map((e) => e.id)")
    expected = ("images", "accuracy", "sensitivity", "mistakes", "method", "backgrounds")
    assert {*expected, "saliency", "matrix", "claims"} < {*sections}
    assert page.evaluate("document.documentElement.scrollHeight") <= 9000
    gaps = [float(text.split()[0]) for text in column(page, 2)]
    assert len(gaps) == 20
    assert gaps == sorted(gaps, reverse=True)
    assert [float(text) for text in page.locator(".dots b").all_inner_texts()] == gaps
    # Each dot lies within its interval, to the right of those of smaller gaps.
    ends = page.locator(".dots .track").evaluate_all(_ENDS)
    assert all(low <= value <= high for low, value, high in ends)
    assert [value for _, value, _ in ends] == sorted((end[1] for end in ends), reverse=True)
    # The plot comes first, and the table is folded below it.
    table = page.locator("#accuracy table").first
    assert not table.is_visible()
    assert page.locator("#accuracy svg").first.is_visible()
    assert page.evaluate(TOO_WIDE) == []
    # Folded or not, a row of a table of models is a line.
    open_all(page)
    assert page.evaluate(TOO_WIDE) == []
    assert page.evaluate(_BROKEN, HEADS) == []
    heights = page.locator("#accuracy [data-tab]:visible tbody tr").evaluate_all(
        "all => all.map((e) => e.getBoundingClientRect().height)"
    )
    assert heights
    assert max(heights) < 52
    # All intervals stand beneath their figures.
    below = table.locator("td:has(.bounds)").evaluate_all(
        """all => all.map((e) => {
          const box = e.getBoundingClientRect();
          return e.querySelector(".bounds").getBoundingClientRect().top > box.top + box.height / 3;
        })"""
    )
    assert len(below) == 20 * 9
    assert all(below)
    assert opened.complaints == []


def test_on_a_phone_twenty_models_are_short_and_the_rest_is_one_tap_away(
    open_page: Any, twenty_run: Path
) -> None:
    opened = open_page(twenty_run, viewport=PHONE, has_touch=True)
    page = opened.page
    # The sections of other commands come on top of those of `in9 evaluate`.
    page.locator("#method, #backgrounds, #saliency, #matrix, #claims").evaluate_all(
        "all => all.forEach((e) => e.remove())"
    )
    assert page.evaluate("document.documentElement.scrollHeight") <= 8000
    page.locator("#accuracy summary", has_text="Every variant of 20 models").tap()
    row = page.locator("#accuracy tbody tr:visible").first
    shown = row.locator("td:visible")
    labels = "all => all.map((e) => e.dataset.label)"
    assert shown.evaluate_all(labels) == ["BG-Gap", "mixed_same", "mixed_rand"]
    assert len({round(cell.bounding_box()["y"]) for cell in shown.all()}) == 1
    row.get_by_label("every variant").tap()
    assert shown.count() == row.locator("td").count() == 10
    assert page.evaluate(TOO_WIDE) == []
    assert opened.complaints == []


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
    # Every element that gets the focus shows it.
    for _ in range(25):
        style = "getComputedStyle(document.activeElement)"
        assert page.evaluate(f"{style}.outlineStyle === 'solid'")
        page.keyboard.press("Tab")


def test_without_javascript(open_page: Any, report_run: Path) -> None:
    opened = open_page(report_run, java_script_enabled=False)
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
    assert page.locator("#claims .claims > li").first.is_visible()
    page.locator("#not_run summary").first.click()
    assert page.locator("#not_run .command").first.is_visible()
    assert page.locator("th button").count() == 0


def test_no_text_covers_another_wherever_the_page_is_scrolled_to(
    open_page: Any, report_run: Path
) -> None:
    page = open_page(report_run, viewport=WIDE).page
    overlaps = """() => {
      const boxes = Array.from(document.querySelectorAll("main .side"), (e) =>
        [e.getBoundingClientRect(), e.textContent.trim().slice(0, 30)]);
      boxes.sort((one, other) => one[0].top - other[0].top);
      return boxes.slice(1).flatMap(([box, text], i) =>
        boxes[i][0].bottom > box.top + 1 ? [`${boxes[i][1]} / ${text}`] : []);
    }"""
    height = page.evaluate("document.documentElement.scrollHeight")
    assert height > 3 * WIDE["height"]
    for top in range(0, height, WIDE["height"] // 2):
        page.evaluate("(top) => scrollTo({top, behavior: 'instant'})", top)
        assert page.evaluate(overlaps) == []
