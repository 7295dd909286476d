"""The page in a browser, and what is peculiar to the runs that it shows."""

from pathlib import Path
from typing import Any

MODELS = ("efficientnet_lite0", "efficientnet_lite1")
TINY = ("python:tiny_models:first", "python:tiny_models:second")

WIDE = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}
PAPER = {"width": 703, "height": 1032}
"""Size of an A4 sheet within margins of 12 mm."""


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
