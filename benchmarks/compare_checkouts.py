"""Compares what two checkouts of this project write: files, words, help, byte for byte.

    python benchmarks/compare_checkouts.py --before ../main [--after .] [--quick]
    python benchmarks/compare_checkouts.py --before ../main --keep sides
    python benchmarks/compare_checkouts.py --before sides/before

Each checkout runs the same commands with this Python, into a folder of its own, a side: the sample
and `../shared/imagenet-mini` with three models and one that fails, attack, saliency, ImageNet, a
matrix of probes, export, import; dry runs; all help; the reference. Then every file is compared,
and so are exit codes and all that is printed. Each difference is a line, and the exit code is 1 if
there is any. The work folder `.in9` is left out, and what `MASKS` lists is masked.

`--before` and `--after` are checkouts, or sides that `--keep` has kept. `--quick` takes the sample
and one model.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
MINI = HERE.parent / "shared" / "imagenet-mini"

MASKS = (
    ("lines of progress", rb"(?m)^\w+: \d+ of \d+ \w+(?:, .*)?\n", rb"(?s).+", b""),
    ("times of rows of a matrix", rb".* columns, .*", rb"(?<=columns, )[\d.]+ (?:s|min|h)", b"*"),
    ("times of stages", rb"(?m)^time: .*", rb"(?<=: ).+", b"*"),
    (
        "numbers in other lines of measured times and estimates",
        rb"(?m)^(?:rows tested: |estimate: |measured on |\S+: about ).*",
        rb"\d[\d.,]*(?: (?:s|min|h|kB|MB|GB)\b)?",
        b"*",
    ),
)
"""What is masked in printed words: its name, a pattern of the whole, a pattern of what is replaced
within it, and by what. In all files, the paths of the side, of its checkout and of imagenet-mini,
and the checkout's commit, are replaced by a star."""

SIDE = "side.json"
"""File that says which checkout a side was made from, and is written last."""

PACKAGED = "efficientnet_lite0,efficientnet_lite1,efficientnet_lite2"
ANALYSES = ("--attack", "4", "--saliency", "2", "--replicates", "2")


def commands(quick: bool) -> Iterator[tuple[str, ...]]:
    """Yields the words after `in9` of each command; a side is the current folder."""
    inputs: dict[str, tuple[str, ...]] = {"sample": ()}
    models = "efficientnet_lite0"
    if not quick:
        inputs["mini"] = ("--input", str(MINI), "--imagenet", str(MINI))
        models = f"{PACKAGED},resnet18=broken.pth"
    for name, flags in inputs.items():
        run = ("run", "--output", name, "--models", models, *ANALYSES, *flags)
        yield (*run, "--dry_run")
        yield run
        if not quick:
            yield ("matrix", "--dataset", name, "--probe", "--holdout", "0.5")
        yield ("report", "--dataset", name)
        yield ("verify", "--dataset", name)
        yield (*run, "--dry_run")
    if not quick:
        yield ("export", "--dataset", "sample", "--to", "exported")
        yield ("import", "--from", "exported", "--output", "imported")
    yield ("models", "list")


def run_side(checkout: Path, side: Path, quick: bool) -> None:
    """Runs all commands of a checkout in an empty folder, which becomes a side."""
    side.mkdir(parents=True)
    (side / "said").mkdir()
    (side / "broken.pth").write_bytes(b"no weights")

    fixed = {"PYTHONPATH": str(checkout), "COLUMNS": "90", "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **fixed, "OMP_WAIT_POLICY": "PASSIVE"}

    def start(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *words]
        return subprocess.run(command, cwd=side, env=environment, capture_output=True, text=True)

    def run(name: str, *words: str) -> str:
        print(f"{side.name}: {name}", flush=True)
        done = start(*words)
        said = f"{done.stdout}\n{done.stderr}\nexit code {done.returncode}\n"
        (side / "said" / f"{name}.txt").write_text(said)
        return done.stdout

    origin = run("origin", "-c", "import pipeline; print(pipeline.__file__)").strip()
    if origin != f"{checkout}/pipeline/__init__.py":
        sys.exit(f"{checkout} is not what runs, but {origin}")
    start("-m", "transforms.grabcut")  # Compiles the kernels, which a run would tell.
    listed = run(
        "commands", "-c", "from pipeline.commands.command_line import COMMANDS as c; print(*c)"
    )
    run("help", "-m", "pipeline", "--help")
    for command in listed.split():
        run(f"help {command}", "-m", "pipeline", command, "--help")
        run(f"help {command} all", "-m", "pipeline", command, "--help", "all")
    (side / "reference.md").write_text(run("reference", "-m", "pipeline.commands.reference"))
    for number, words in enumerate(commands(quick)):
        run(f"{number} {' '.join(words[:3])}", "-m", "pipeline", *words)
    git = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    known = {"side": str(side), "checkout": str(checkout), "commit": commit, "quick": quick}
    (side / SIDE).write_text(json.dumps({**known, "mini": str(MINI)}))


def contents(side: Path, quick: bool) -> dict[str, bytes]:
    """Returns the masked content of each file of a side, by its path."""
    known = json.loads((side / SIDE).read_text())
    if known["quick"] != quick:
        sys.exit(f"{side} was {'' if known['quick'] else 'not '}made with --quick")
    secrets = [known[name] for name in ("side", "checkout", "mini", "commit")]
    secrets.append(known["commit"][:7])
    return {
        name: masked(name, path.read_bytes(), secrets)
        for path in sorted(side.rglob("*"))
        if path.is_file() and ".in9" not in path.parts
        for name in [str(path.relative_to(side))]
        if name != SIDE
    }


def masked(name: str, data: bytes, secrets: list[str]) -> bytes:
    """Masks paths, commits and `MASKS` in a file."""
    for secret in secrets:
        data = data.replace(secret.encode(), b"*")
    if name.startswith("said/"):
        for _, whole, part, by in MASKS:
            for found in set(re.findall(whole, data)):
                data = data.replace(found, re.sub(part, by, found))
    return data


def differences(before: dict[str, bytes], after: dict[str, bytes]) -> Iterator[str]:
    """Yields a line for each file that differs, with the first difference.

    A command that fails in both gets a line, too, because nothing is compared then.
    """
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old == new and name.startswith("said/") and not before[name].endswith(b"code 0\n"):
            yield f"{name}: failed before and after"
        if old is None or new is None:
            yield f"{name}: only {'after' if old is None else 'before'}"
        elif old != new:
            pairs = enumerate(zip(old, new, strict=False))
            at = next((n for n, (a, b) in pairs if a != b), min(len(old), len(new)))
            line = old[:at].count(b"\n") + 1
            first, second = (each[max(0, at - 40) : at + 40] for each in (old, new))
            yield f"{name}: byte {at}, line {line}: {first!r} became {second!r}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="a checkout, or a kept side")
    parser.add_argument("--after", type=Path, default=HERE, help="a checkout, or a kept side")
    parser.add_argument("--keep", type=Path, help="new folder for the sides `before` and `after`")
    parser.add_argument("--quick", action="store_true", help="the sample and one model only")
    arguments = parser.parse_args()
    if arguments.keep and arguments.keep.exists():
        parser.error(f"--keep {arguments.keep} exists already")
    with tempfile.TemporaryDirectory() as folder:
        sides = {"before": arguments.before.resolve(), "after": arguments.after.resolve()}
        for name, source in sides.items():
            if not (source / SIDE).exists():
                sides[name] = (arguments.keep or Path(folder)).resolve() / name
                run_side(source, sides[name], arguments.quick)
        before, after = (contents(side, arguments.quick) for side in sides.values())
    lines = list(differences(before, after))
    for line in lines:
        print(line)
    print(f"masked: {', '.join(name for name, *_ in MASKS)}, paths, commits")
    print(f"{len(before.keys() | after.keys())} files, {len(lines)} differ")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
