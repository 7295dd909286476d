"""Tests that benchmarks measure what they say, and run where few packages are installed."""

import importlib
import json
import re
import runpy
import sys
from importlib import metadata
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from runs import ROOT, run_program

TRACED = """
import functools, threading

@functools.lru_cache
def cached(number):
    return number // 2

class Part:
    @property
    def size(self):
        return [self.number(n) for n in range(3)]

    def number(self, n):
        return sum(each for each in (n, n))

def steps():
    for n in range(4):
        yield n

def delegating():
    yield from steps()
    return (lambda n: n)(1)

def main():
    for n in range(6):
        cached(n // 2)
    list(delegating()), next(steps()), Part().size
    thread = threading.Thread(target=lambda: list(steps()))
    thread.start()
    thread.join()
"""
"""A module whose calls are counted by hand in a test."""

WITHOUT = """
import json, os, sys
from importlib.machinery import PathFinder

REFUSED = json.loads(os.environ["REFUSED"])

class Without:
    @staticmethod
    def find_spec(name, path=None, target=None):
        is_refused = name.partition(".")[0] in REFUSED
        return None if is_refused else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""
"""A module that every new Python process imports, and which hides packages."""


def with_what_they_need(names: list[str]) -> set[str]:
    """Returns distributions together with all that they require."""
    needed: set[str] = set()
    while names:
        name = canonicalize_name(names.pop())
        if name not in needed:
            needed.add(name)
            wanted = map(Requirement, metadata.requires(name) or ())
            names += [r.name for r in wanted if r.marker is None or r.marker.evaluate()]
    return needed


def test_stages_that_run_models_need_nothing_but_what_the_page_says(tmp_path: Path) -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith("pip install ")]
    allowed = with_what_they_need(line.split()[2:]) | {"imagenet9-pipeline"}
    # Of these, setuptools has copies of its own, and torch compiles with setuptools.
    vendored = {path.name for path in (Path(setuptools.__file__).parent / "_vendor").iterdir()}
    refused = [
        package
        for package, distributions in metadata.packages_distributions().items()
        if allowed.isdisjoint(map(canonicalize_name, distributions)) and package not in vendored
    ]
    assert {"apache_beam", "google", "scipy", "defusedxml", "requests"} <= set(refused)
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    rows = tmp_path / "rows.jsonl"
    flags = "--quick --device cpu --models no_such_net,test_resnet --images 2 --grid 2x2 --to"
    # Rows of a network that timm does not know fail, each by itself.
    done = run_program(
        *(sys.executable, ROOT / "benchmarks" / "gpu.py", *flags.split(), rows),
        code=1,
        HF_HUB_OFFLINE="1",
        # The compiler of C++ would take most of the time. tests/models/test_predict.py runs it.
        TORCH_COMPILE_OVERRIDE_BACKENDS=">=0:aot_eager",
        PYTHONPATH=str(tmp_path),
        REFUSED=json.dumps(refused),
    )
    written = [json.loads(line) for line in rows.read_text().splitlines()]
    failed = [line for line in written if line["value"] == "failed"]
    assert len(failed) == 12
    assert all("Unknown model (no_such_net)" in line["yardstick"] for line in failed)
    assert all(f"{line['what']}: {line['value']}" in done.stdout for line in written)
    for stage in ("evaluate", "attack", "saliency", "train"):
        assert f"{stage}, test_resnet fp32: too few to tell (bare loop, " in done.stdout
    for figure in (
        "evaluate, test_resnet fp32-compiled: too few to tell (bare loop, ",
        *("load from a file, test_resnet, first: ", "tenth of ten models, test_resnet fp32: "),
        "slow storage, test_resnet fp32: not measured (apache-beam is not installed)",
        "fp32 compiled: answers equal to fp32's, test_resnet: ",
        "tf32: answers equal to fp32's, test_resnet: not measured (this device computes fp32)",
        "bf16: answers equal to fp32's, test_resnet: ",
        "several GPUs, test_resnet fp32: not measured (apache-beam is not installed)",
        "two processes on one device, test_resnet fp32: too few to tell",
        "weights of test_resnet: random",
    ):
        assert f"\n{figure}" in done.stdout


def test_slow_storage_is_measured_beside_fast_storage(
    benchmarks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn, loader = importlib.import_module("drawn"), importlib.import_module("loader")
    drawn.draw_dataset(8, 64, 2, tmp_path / "out")
    loader.measure_slow_storage(tmp_path / "out", 1)
    # One pair of runs shows how the row reads, and no more: the machine may be busy meanwhile.
    row = r"slow storage, a forward of 2 ms: \d+\.\d+ x \(without 50 ms for each opening, "
    assert re.match(row, capsys.readouterr().out)


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the benchmarks, in which modules are found."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return ROOT / "benchmarks"


def test_another_checkout_is_not_measured(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    copy = tmp_path / "benchmarks" / "measure.py"
    copy.write_text((ROOT / "benchmarks" / "measure.py").read_text())
    done = run_program(sys.executable, copy, code=1, PYTHONPATH=str(ROOT))
    assert f"this would measure {ROOT}/pipeline/__init__.py; set PYTHONPATH" in done.stderr


def test_commands_come_from_this_checkout(
    benchmarks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__main__.py").write_text("print('another')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    measure = importlib.import_module("measure")
    assert measure.run_in9("--version").output.startswith("in9 ")


def test_rows_are_positive_and_finite(
    benchmarks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = importlib.import_module("measure")
    monkeypatch.setenv(measure.TABLE, str(tmp_path / "rows"))
    good = ("1.02 x", "135 of 135", "1,000 MB", "3e-05 s", "17, 30, 4", "too few to tell")
    for value in good:
        measure.row("speed", value)
    for value in ("0", "0.00 x", "-0.1 s", "nan x", "inf MB", "18, 0, 37", "0 of 135"):
        with pytest.raises(SystemExit, match=f"speed: {value} is not positive and finite"):
            measure.row("speed", value)
    rows = [json.loads(line)["value"] for line in (tmp_path / "rows").read_text().splitlines()]
    assert rows == list(good)


def test_peak_memory_is_that_of_the_program_and_of_its_children(benchmarks: Path) -> None:
    measure = importlib.import_module("measure")
    ballast = b"x" * (200 << 20)
    # Long enough to be seen on a busy machine.
    wait = "import time; time.sleep(1)"
    assert 1 < measure.run_process(sys.executable, "-c", wait).peak < 100
    del ballast
    child = f"x = b'x' * (60 << 20); {wait}"
    code = f"import subprocess, sys; {child}; subprocess.run([sys.executable, '-c', {child!r}])"
    assert 120 < measure.run_process(sys.executable, "-c", code).peak < 200


def test_groups_of_one_benchmark_stay(
    benchmarks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = importlib.import_module("results")
    (tmp_path / "sizes.py").write_text(
        "import json, os, sys\n"
        "row = {'what': 'size', 'value': sys.argv[1], 'yardstick': '', 'bound': ''}\n"
        "print(json.dumps(row), file=open(os.environ['IN9_BENCHMARK_ROWS'], 'a'))\n"
        "sys.exit(sys.argv[1] == '0')\n"
    )
    monkeypatch.setattr(results, "HERE", tmp_path)
    monkeypatch.setattr(results, "BENCHMARKS", {"sizes": (["1"], ["2"])})
    page = tmp_path / "RESULTS.md"

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["results.py", "--to", str(page), "--only", *words])
        code: int = results.main()
        return code

    assert run("sizes", "sizes 3 ''") == 0
    assert run("sizes") == 0
    assert run("sizes 0") == 1
    rows = [line.split(" | ")[:2] for line in page.read_text().splitlines()[8:]]
    assert [row for row in rows if "`" not in row[0]] == [
        *(["| size", "1"], ["| size", "3"], ["| size", "0"], ["| sizes 0 failed", "-"])
    ]
    assert [row[0] for row in rows if "`" in row[0]] == [
        f"| **`benchmarks/sizes.py {words}`**" for words in ("1", "3 ''", "0")
    ]


def test_calls_are_counted_as_the_rule_says(benchmarks: Path, tmp_path: Path) -> None:
    # Python has a module `trace`, too.
    counter_of = runpy.run_path(str(benchmarks / "trace.py"))["CallCounter"]
    (tmp_path / "traced.py").write_text(TRACED)
    main = runpy.run_path(str(tmp_path / "traced.py"))["main"]
    with counter_of(tmp_path) as counter:
        main()
    main()
    calls = {function.name: count for function, count in counter.calls.items()}
    assert calls == {
        "main": 1,
        "cached": 6,
        "Part.size": 1,
        "Part.number": 3,
        "steps": 3,
        "delegating": 1,
        "delegating.<locals>.<lambda>": 1,
        "main.<locals>.<lambda>": 1,
    }


def test_sides_differ_in_what_is_not_masked(
    benchmarks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compare = importlib.import_module("compare_checkouts")
    times = {"before": ("40.7 s", "90 s"), "after": ("1.2 h", "2 min")}
    for name, (spent, left) in times.items():
        side = tmp_path / name
        for folder in ("said", "out/.in9"):
            (side / folder).mkdir(parents=True)
        (side / "out" / ".in9" / "notes").write_text(name)
        (side / "out" / "page.html").write_text(f"<p>a page in {side}, by commit-{name}</p>")
        (side / "said" / "run.txt").write_text(
            f"segment: 3 of {len(left)} images, 1.0/s, {left} left\n"
            * len(left)
            + f"done now: 72 images\ntime: {spent}; summed over workers: segment {left}\n"
            "exit code 0\n"
        )
        (side / "said" / "verify.txt").write_text("exit code 0\n")
        known = {"side": str(side), "checkout": f"/{name}", "mini": "/mini", "quick": False}
        (side / "side.json").write_text(json.dumps({**known, "commit": f"commit-{name}"}))

    def run() -> tuple[int, list[str]]:
        sides = (f"--{name}={tmp_path / name}" for name in times)
        monkeypatch.setattr(sys, "argv", ["compare_checkouts.py", *sides])
        code: int = compare.main()
        return code, capsys.readouterr().out.splitlines()[:-2]

    assert run() == (0, [])
    said = tmp_path / "after" / "said" / "run.txt"
    said.write_text(said.read_text().replace("72 images", "73 images"))
    (tmp_path / "after" / "out" / "more.csv").touch()
    for name in times:
        (tmp_path / name / "said" / "verify.txt").write_text("exit code 1\n")
    code, (only, changed, failed) = run()
    assert (code, only) == (1, "out/more.csv: only after")
    assert failed == "said/verify.txt: failed before and after"
    assert changed.startswith("said/run.txt: byte 11, line 1: b'done now: 72 images")
