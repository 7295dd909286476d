"""Tests that names of classes and models, and errors, are text in every file that a run writes.

They begin no tag, link, formula or comment, and end no cell, line or string.
"""

import csv
import dataclasses
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from fault_lab import small_input
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from report_page import add_model
from runs import ONE, dataset_in, keys, manifest_of, run_here

from pipeline.dataset.card import card_files, markdown
from pipeline.display.table import escape
from pipeline.errors import escaped_line
from pipeline.evaluate.results import FailedModel, ModelRun, note_failures, read_results
from pipeline.jobs.publish import describe_changes, to_markdown
from pipeline.report.write import write_report, write_tables
from pipeline.storage.state_files import read_csv
from pipeline.storage.store import Store

FRAGMENTS = (
    *("<img src=x onerror=alert(1)>", "<b>", "</script>", "<!--", "&lt;", "&", "{{ 7 }}"),
    *("[a](javascript:b)", "![a](b)", "[a]", "`", "``", "*a*", "**", "_a_", "__", "~~a~~", "~"),
    *("|", "\\", "$a$", "$", "%", "{", "}", "^", "[", "]", "\\input{x}", "\\\\", "#", "'", '"'),
    *("=1+1", "-1", "+1", "@a", ">", "- a", "1. a", "---", "no", "null", ":", ": ", " #"),
    *("犬", "\U0001f426", "a", " "),
)
"""Texts that mean something in some format."""
UNPRINTABLE = ("\n", "\r\n", "\t", "\0", "\x1b[31m", "\u202e", "\udcff", "\ud800", "\u2028")
WORDS = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=4).map("".join)


@dataclasses.dataclass(frozen=True)
class Names:
    """Names that are put into a dataset of three superclasses, and into its results.

    Attributes:
      labels: names of the superclasses.
      wnid: id of a class without images.
      model: end of the name of a model.
      failed: end of the name of a model that failed.
      error: why it failed.
    """

    labels: tuple[str, ...]
    wnid: str
    model: str
    failed: str
    error: str


BENIGN = Names(("one", "two", "three"), "four", "five", "six", "seven")
HOSTILE = Names(
    ("<img src=x onerror=alert(1)>", "[dog](javascript:a) `x` **b**", "=a $frac{$ *b* ~ | 5 % & #"),
    "fly| </td> <script> \\input{x}",
    "[x]*\n\\end{tabular} % \udcff <b>&lt;",
    "\n\\input{/etc/passwd}\r</script><b>\u2028",
    "=cmd()\n\ud800 | <img src=x> `a",
)
OF_YAML = Names(
    ("no", "- a: b #", "'1. x' \"y\" {{ 7 }}"), "null", "--- #", "1e999: [&", "+1 !!set ~~a~~"
)


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of six pictures with its own taxonomy, and the results of a model."""
    folder = tmp_path_factory.mktemp("names")
    source, output = small_input(folder / "input"), folder / "out"
    wnids = sorted(path.name for path in source.glob("val/*"))
    rows = [
        {"class": wnid, "superclass": name, "index": index}
        for index, (wnid, name) in enumerate(
            zip((*wnids, BENIGN.wnid), (*BENIGN.labels, BENIGN.labels[0]), strict=True)
        )
    ]
    (folder / "kinds.json").write_text(json.dumps(rows))
    command = ("run", "--input", source, "--output", output, "--taxonomy", folder / "kinds.json")
    flags = ("--segmenter", "box", "--image_size", 64, *keys(resize=64), "--pictures", "none")
    words = (*command, *flags, "--models", "python:fault_hooks:tiny", *ONE)
    run_here(*words)
    return output


def rename_manifest(output: Path, names: Names) -> None:
    """Gives a dataset's manifest other names of classes and another maker."""
    manifest = manifest_of(output)
    new = dict(zip(BENIGN.labels, names.labels, strict=True))
    taxonomy = manifest["taxonomy"]
    taxonomy["names"] = [new[name] for name in taxonomy["names"]]
    taxonomy["wnids"][-1] = taxonomy["class_names"][-1] = names.wnid
    for by_variant in manifest["samples"].values():
        for variant, counts in by_variant.items():
            by_variant[variant] = {new[name]: count for name, count in counts.items()}
    stated = (names.error, names.failed, names.model)
    manifest["about"] = dict(zip(("creator", "contact", "terms"), stated, strict=True))
    (output / "manifest.json").write_text(json.dumps(manifest))


def rename_model(output: Path, names: Names) -> None:
    """Gives the results of a model another name, and adds a model that failed."""
    store, name = Store(str(output)), escaped_line(f"onnx:{names.model}")  # As the job does.
    shutil.rmtree(add_model(output, "python:fault_hooks:tiny", name))
    (run,) = read_results(store, "model", ModelRun)
    failed = FailedModel(1, f"hf:{names.failed}", f"hf:{names.failed}", names.error)
    fingerprint = manifest_of(output)["fingerprint"]
    note_failures(store, fingerprint, "evaluate", run.evaluation, [failed], [])


def renamed(run: Path, folder: Path, names: Names) -> Path:
    """Copies a run with other names; writes all that is made from names anew."""
    output = Path(shutil.copytree(run, folder))
    rename_manifest(output, names)
    rename_model(output, names)
    dataset = dataset_in(output)
    write_tables(dataset)
    write_report(dataset.store, dataset.taxonomy)
    for path, data in card_files(dataset.manifest, dataset.taxonomy):
        (output / path).write_bytes(data)
    before = output.with_name("before")
    shutil.copytree(output, before, ignore=shutil.ignore_patterns("results"))
    text = to_markdown(describe_changes(dataset_in(before), dataset))
    (output / "changes.md").write_bytes(text.encode())
    return output


def flat(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from flat(token.children or [])


def parsed_markdown(text: str) -> list[Token]:
    body = text.partition("---\n\n")[2] or text
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(body)


def cells_of(tokens: list[Token]) -> list[str]:
    """Returns the text of each block: of a cell, a heading or a paragraph."""
    return [
        "".join(child.content for child in token.children or [])
        for token in tokens
        if token.type == "inline"
    ]


class Page(HTMLParser):
    """Tags with their attributes' names, and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[tuple[str, ...]] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add((tag, *sorted(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def special(line: str) -> Counter[str]:
    """Counts the commands and characters of a line of LaTeX that are not text."""
    return Counter(re.findall(r"\\\\(?:\s*[*\[])?|\\[A-Za-z]+|\\.|[&%$#_{}~^]", line))


WRONG = {*"%#_~^", r"\\*", r"\\[", r"\\ *", r"\\ ["}


def check_latex(text: str, benign: str) -> None:
    """Checks that LaTeX has the structure of that with benign names."""
    ours, theirs = text.splitlines(), benign.splitlines()
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        if other.startswith("%"):
            assert one.startswith("% "), one
            continue
        found = special(one)
        assert found["&"] == special(other)["&"], one
        assert found["{"] == found["}"], one
        assert found["$"] % 2 == 0, one
        assert not WRONG & {*found}, one
    assert not re.search(r"\\(midrule|addlinespace)\s*\[", text)


def check_formats(output: Path, benign: Path) -> None:
    """Checks that no name changes the structure of a file."""
    figures = benign.glob("results/figures/*.svg")
    drawn = {each.tag for path in figures for each in ElementTree.parse(path).iter()}
    kinds = set()
    for path in (path for path in output.rglob("*") if path.is_file()):
        name = str(path.relative_to(output))
        if name.startswith(".in9") or path.suffix in (".parquet", ".tar", ".pdf", ".webp"):
            continue
        kinds.add(path.suffix)
        text = path.read_bytes().decode()
        assert not set(text) & {*UNPRINTABLE} - {"\n", "\t"}, name
        if path.suffix == ".csv":
            columns = set(text.partition("\n")[0].split(","))
            assert all(set(row) == columns for row in read_csv(text.encode())), name
            for cells in csv.reader(io.StringIO(text)):
                assert not any(re.match(r"[=@\t\r]|[+-](?![\d.]+$)", cell) for cell in cells), cells
        elif path.suffix == ".svg":
            assert {each.tag for each in ElementTree.fromstring(text).iter()} <= drawn, name
        elif path.suffix == ".tex":
            check_latex(text, (benign / name).read_text())
        elif path.suffix == ".json":
            json.loads(text)
    assert kinds >= {".csv", ".svg", ".tex", ".json", ".md", ".html", ".txt"}


def check_markdown(output: Path, names: Names, benign: Path) -> None:
    """Checks that names are text in the card and in the page of changes."""
    card = (output / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert {config["config_name"] for config in front["configs"]} >= {"original", "mixed_rand"}
    for name in ("README.md", "changes.md"):
        ours, theirs = (parsed_markdown((folder / name).read_text()) for folder in (output, benign))
        types = [[token.type for token in flat(tokens)] for tokens in (ours, theirs)]
        assert types[0] == types[1], name
    cells = cells_of(parsed_markdown(card))
    for label in names.labels:
        assert spaced(label) in map(spaced, cells)
    assert any(cell.endswith(f", {names.wnid}") for cell in cells)
    changes = cells_of(parsed_markdown((output / "changes.md").read_text()))
    (cell,) = (cell for cell in changes if "onnx" in cell)
    assert spaced(escaped_line(f"onnx:{names.model}")) in spaced(cell)


def spaced(text: str) -> str:
    """Returns a text with single spaces."""
    return " ".join(text.split())


def check_content(output: Path, names: Names, benign: Path) -> None:
    """Checks that lists, tables and the page hold the names."""
    assert (output / "classes.txt").read_text().split("\n") == [*names.labels, ""]
    croissant = json.loads((output / "croissant.json").read_text())
    (classes,) = (each for each in croissant["recordSet"] if each["name"] == "classes")
    assert [row["classes/name"] for row in classes["data"]] == list(names.labels)
    tables = (output / "results" / f"{name}.csv" for name in ("per_class", "summary"))
    per_class, summary = (list(read_csv(path.read_bytes())) for path in tables)
    assert {row["class_name"] for row in per_class} == set(names.labels)
    model, failed = escaped_line(f"onnx:{names.model}"), escaped_line(f"hf:{names.failed}")
    errors = {row["model"]: row["error"] for row in summary}
    assert errors == {model: "", failed: escaped_line(names.error)}
    page, other = (Page((folder / "report.html").read_text()) for folder in (output, benign))
    assert page.tags <= other.tags
    for text in (*names.labels, escaped_line(names.error)):
        assert spaced(text) in spaced(page.text)


@pytest.fixture(scope="module")
def benign(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with names that mean nothing in any format. Tests must not change it."""
    return renamed(tiny_run, tmp_path_factory.mktemp("benign") / "out", BENIGN)


@pytest.mark.parametrize("names", [HOSTILE, OF_YAML], ids=["hostile", "YAML"])
def test_names_are_text_in_every_file(
    names: Names, tiny_run: Path, benign: Path, tmp_path: Path
) -> None:
    output = renamed(tiny_run, tmp_path / "out", names)
    check_formats(output, benign)
    check_markdown(output, names, benign)
    check_content(output, names, benign)


@given(WORDS | st.text())
def test_markdown_shows_a_name_as_it_is(name: str) -> None:
    tokens = parsed_markdown(f"| a |\n| - |\n| x{markdown(name)}x |\n")
    assert Counter(token.type for token in flat(tokens))["text"] == 2
    assert {token.type for token in flat(tokens) if token.type.startswith("html")} == set()
    assert cells_of(tokens) == ["a", f"x{escaped_line(name)}x"]


SIGNS = {"backslash": "\\", "asciitilde": "~", "asciicircum": "^"}
SIGNS |= {"less": "<", "greater": ">", "bar": "|"}


@given(WORDS | st.text())
def test_latex_has_no_command_from_a_name(name: str) -> None:
    text = escape(name)
    found = special(text)
    assert not {*found} & {*"&%$#_~^"}
    assert found["{"] == found["}"]
    signs = re.compile(r"\\text(\w+)\{\}|\\([&%$#_{}])|\{([\[\]*])\}")
    back = signs.sub(lambda sign: SIGNS.get(sign[1], sign[2] or sign[3]), text)
    assert back == escaped_line(name)
