"""Tests that every Python snippet of the documentation runs, and that examples are sound."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub.utils import filter_repo_objects
from runs import run_in9, run_program

import in9
from pipeline.commands.command_line import parse_command_line
from pipeline.models.registry import load_model

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)

_RUN_ALL = """
import contextlib, io, json, pathlib, sys, traceback

results = {}
for name, code in json.loads(pathlib.Path("snippets.json").read_text()).items():
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            exec(compile(code, name, "exec"), {"__name__": name, "__file__": name})
    except Exception:
        results[name] = traceback.format_exc()
    else:
        results[name] = ""
    print(name, said.getvalue(), sep="\\n", file=sys.stderr)
pathlib.Path("results.json").write_text(json.dumps(results))
"""


def snippets() -> dict[str, str]:
    """Returns the code of all snippets, by page and number."""
    return {
        f"{page.relative_to(ROOT)}:{number}": code
        for page in PAGES
        for number, code in enumerate(_BLOCK.findall(page.read_text()), 1)
    }


@pytest.fixture(scope="module")
def snippet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the snippets run."""
    return tmp_path_factory.mktemp("snippets")


@pytest.fixture(scope="module")
def outcomes(sample_run: Path, small_run: Path, snippet_folder: Path) -> dict[str, str]:
    """The traceback of each snippet, empty if it ran.

    `out`, its export, and a small dataset that was imported are in its folder.
    """
    folder = snippet_folder
    (folder / "out").symlink_to(sample_run)
    for dataset, target in ((sample_run, "exported"), (small_run, "few")):
        run_in9("export", "--dataset", dataset, "--to", folder / target)
    run_in9("import", "--from", folder / "few", "--output", folder / "released")
    (folder / "snippets.json").write_text(json.dumps(snippets()))
    offline = {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    words = (sys.executable, "-c", _RUN_ALL)
    done = run_program(*words, cwd=folder, PYTHONPATH=str(ROOT), **offline)
    # If a snippet fails, the test shows what the snippets print.
    print(done.stderr)
    results: dict[str, str] = json.loads((folder / "results.json").read_text())
    return results


@pytest.mark.parametrize("name", snippets())
def test_a_documented_snippet_runs(outcomes: dict[str, str], name: str) -> None:
    assert outcomes[name] == ""


EXAMPLES = ROOT / "docs" / "examples.md"


def test_what_the_loop_of_the_examples_has_trained_is_a_model(
    outcomes: dict[str, str], snippet_folder: Path
) -> None:
    """Checks that the model is evaluated with the mean and deviation of its training."""
    text = EXAMPLES.read_text()
    (entry,) = re.findall(r"--models (resnet10t=\S+)", text)
    model = load_model(entry.replace("mine.pth", str(snippet_folder / "mine.pth")))
    assert model.num_outputs == 9
    (mean, std) = re.findall(r"Normalize\((\[.*?\]), (\[.*?\])\)", text)[0]
    assert list(model.preprocessing.mean) == json.loads(mean)
    assert list(model.preprocessing.std) == json.loads(std)


def test_what_the_examples_upload_is_a_dataset_without_layers(
    sample_run: Path, tmp_path: Path
) -> None:
    text = EXAMPLES.read_text()
    (line,) = re.findall(r"^hf upload .*", text, re.MULTILINE)
    words = shlex.split(line)
    assert {"--private", "--repo-type", "dataset"} <= set(words)
    excluded = [words[at + 1] for at, word in enumerate(words) if word == "--exclude"]
    paths = [path for path in sample_run.rglob("*") if path.is_file()]
    names = [str(path.relative_to(sample_run)) for path in paths]
    for name in filter_repo_objects(names, ignore_patterns=excluded):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sample_run / name, target)
    assert {path.name for path in tmp_path.iterdir()} == (
        {path.name for path in sample_run.iterdir()} - {"layers", ".in9"}
    )
    mixed = datasets.load_dataset(str(tmp_path), "mixed_rand", split="val")
    assert len(mixed) == len(in9.open_dataset(tmp_path, "mixed_rand")) == 70
    missing = run_in9("verify", "--dataset", tmp_path, check=1)
    assert "layers/" in missing.stdout + missing.stderr


def test_files_that_the_examples_load_into_bigquery_are_there(sample_run: Path) -> None:
    """Checks that the files of each table have one schema."""
    patterns = re.findall(r"gs://BUCKET/out/([^\s'`]+)", EXAMPLES.read_text())
    assert len(patterns) == 2
    for pattern in patterns:
        assert pattern.count("*") == 1
        paths = sorted(sample_run.glob(pattern.replace("MODEL", "efficientnet_lite0")))
        assert paths, pattern
        assert len({str(pq.read_schema(path).remove_metadata()) for path in paths}) == 1


def gate_command() -> list[str]:
    """Returns the words of the command that judges, in the job of GitHub Actions."""
    (block,) = re.findall(r"^```yaml\n(.*?)^```", EXAMPLES.read_text(), re.MULTILINE | re.DOTALL)
    steps = yaml.safe_load(block)["jobs"]["background-gate"]["steps"]
    (line,) = [step["run"] for step in steps if step.get("run", "").startswith("in9 ")]
    return shlex.split(line)


def test_the_gate_of_the_examples_is_a_command() -> None:
    """Checks its flags alone; `tests/jobs` has all exit codes of gates."""
    arguments, rest = parse_command_line(gate_command()[1:])
    assert (arguments.baseline, arguments.if_open, rest) == ("resnet50.a1_in1k", "fail", [])


def test_the_page_shows_in_a_page_of_ones_own(
    browser: Any, sample_run: Path, tmp_path: Path
) -> None:
    (frame,) = re.findall(r"`(<iframe .*?)`", EXAMPLES.read_text())
    (tmp_path / "index.html").write_text(f"<!doctype html><h1>Ours</h1>{frame}")
    (tmp_path / "out").symlink_to(sample_run)
    page = browser.new_page()
    page.goto((tmp_path / "index.html").as_uri())
    inside = page.frame_locator("iframe")
    assert "efficientnet_lite0" in inside.locator("main").inner_text(timeout=10_000)
    page.close()


def shown(page: str, command: str) -> list[str]:
    """Returns the lines that a page shows below this command."""
    text = (ROOT / page).read_text()
    (block,) = re.findall(rf"^```console\n\$ {command}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return block.splitlines()


def test_readme_shows_the_tutorials_run() -> None:
    """Compares README with the tutorial, whose lines another test compares with real output."""
    *table, report = shown("README.md", "scripts/demo")
    assert table == shown("docs/tutorial.md", "in9 run --output out")[1:]
    assert report == "report: .../out/report.html"
