"""Tests that links in the pages lead somewhere, and that pages named in code exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.analyses import ANALYSES

ROOT = Path(__file__).parents[1]
PAGES = [
    path
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "deploy/*.md", "examples/*.md")
    for path in sorted(ROOT.glob(pattern))
]
_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
_TITLE = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Returns the anchors by which links reach a page's titles."""
    titles = _TITLE.findall(_BLOCK.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for path, anchor in _LINK.findall(_BLOCK.sub("", page.read_text())):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def test_every_claim_stands_in_the_page_of_reproduction() -> None:
    """Checks the current wording of claims; `benchmarks/reproduction.py` rewrites the page."""
    page = (ROOT / "benchmarks" / "REPRODUCTION.md").read_text()
    for claim in (claim for analysis in ANALYSES for claim in analysis.parts.claims):
        assert f"| {claim.text} ({claim.source}) | {claim.published} | " in page


def test_pages_that_code_names_are_there() -> None:
    files = [
        path
        for folder in ("pipeline", "transforms", "deploy", "benchmarks")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    ]
    named = [re.findall(rb"docs/\w+\.md", path.read_bytes()) for path in files]
    pages = {page.decode() for matches in named for page in matches}
    assert len(pages) > 5
    assert not {page for page in pages if not (ROOT / page).is_file()}


def test_commands_of_pages_are_sound_and_files_of_the_deployment_exist(tmp_path: Path) -> None:
    for page in PAGES:
        text = page.read_text()
        blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        (tmp_path / f"{page.stem}.sh").write_text("\n".join(blocks))
        for path in re.findall(r"`(deploy/(?:\w[\w.-]*/?)+)`", text):
            assert (ROOT / path).exists(), path
    # Another block or the reader may use the variables of a block.
    words = ("--shell=bash", "--exclude=SC2034", *tmp_path.iterdir())
    subprocess.run([Path(sys.executable).with_name("shellcheck"), *words], check=True)


def test_tasks_of_a_job_array_share_the_list(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "models.md").read_text()
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", text, re.DOTALL)
    (tmp_path / "models.txt").write_text("a\nb\nc\n")
    for task in ("0", "1"):
        variables = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_COUNT": "2"}
        words = ("bash", "-c", f"in9() {{ :; }}\n{script}")
        subprocess.run(words, cwd=tmp_path, env={**os.environ, **variables}, check=True)
    shares = [(tmp_path / f"models-{task}.txt").read_text() for task in (0, 1)]
    assert shares == ["b\n", "a\nc\n"]
