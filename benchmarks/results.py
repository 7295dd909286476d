"""Runs all benchmarks, and writes the table of their results: `benchmarks/RESULTS.md`.

    python benchmarks/results.py [--quick]
    python benchmarks/results.py --only 'gpu --device cuda'
    python benchmarks/results.py --only reading 'scale --images 1000,4000 --rows ""'

This takes over an hour on two cores. A failing benchmark becomes a row, and the exit code is 1.
Rows of commands that are not run stay, with the commit of their last run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import TABLE, commit, machine

HERE = Path(__file__).parent
GPU = "gpu --device cuda"

BENCHMARKS: dict[str, tuple[list[str], list[str]]] = {
    "grabcut": ([], ["--softened", "10", "--native", "4"]),
    "segmentation_iou": ([], []),
    "generate_cost": ([], ["--images", "24", "--rounds", "1"]),
    "gpu --device cpu": ([], ["--quick"]),
    GPU: ([], ["--quick"]),
    "loader": ([], ["--quick"]),
    "after_kill": ([], ["--pairs", "1"]),
    "reading": ([], ["--images", "72", "--rounds", "1"]),
    "start_up": ([], ["--rounds", "1"]),
    "dealing": ([], []),
    "trace": ([], []),
    "interval_coverage": ([], ["--runs", "20", "--images", "20", "--draws", "1"]),
    "scale": (
        ["--images", "1000,10000", "--rows", "100000,300000,1300000"],
        ["--images", "64,128", "--rows", "20000"],
    ),
}
"""Arguments of each benchmark: for the table, and for a quick trial."""

_HEADER = re.compile(r"\| \*\*`(benchmarks/.*?)`\*\*")

_HEAD = [
    "# How fast",
    "",
    "Made by `python benchmarks/results.py`; each group names the commit, the day and the machine.",
    "Ratios compare programs that ran in turns on the same machine, so they carry over to other",
    "machines; seconds do not.",
    "",
    "| what | measured | against | wanted |",
    "|---|--:|---|---|",
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, to see that all benchmarks run"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="names of benchmarks, with the arguments of the table; or with other arguments, whose "
        "rows are a group of their own",
    )
    parser.add_argument("--to", type=Path, default=HERE / "RESULTS.md", help="file to write")
    arguments = parser.parse_args()
    wanted = arguments.only or list(BENCHMARKS)
    if not arguments.only:
        import torch  # Slow to import.

        if not torch.cuda.is_available():
            wanted.remove(GPU)
    failed = []
    sections = read_sections(arguments.to)
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(wanted):
            program, *flags = shlex.split(name)
            flags += BENCHMARKS[name][arguments.quick] if name in BENCHMARKS else []
            rows = Path(folder) / str(number)
            command = shlex.join([f"benchmarks/{program}.py", *flags])
            print(command, flush=True)
            done = subprocess.run(
                [sys.executable, HERE / f"{program}.py", *flags],
                env={**os.environ, TABLE: str(rows)},
                check=False,
            )
            figures = (
                [json.loads(line) for line in rows.read_text().splitlines()]
                if rows.exists()
                else []
            )
            if done.returncode:
                failed.append(name)
                figures.append(
                    {"what": f"{name} failed", "value": "-", "yardstick": "", "bound": ""}
                )
            sections[command] = [
                f"| **`{command}`** | {commit()} | {datetime.date.today()}, {machine()} | |",
                *(
                    f"| {r['what']} | {r['value']} | {r['yardstick']} | {r['bound']} |"
                    for r in figures
                ),
            ]
    ranks = {f"benchmarks/{name.split()[0]}.py": rank for rank, name in enumerate(BENCHMARKS)}
    order = sorted(sections, key=lambda command: ranks.get(command.split()[0], len(ranks)))
    lines = [line for command in order for line in sections[command]]
    arguments.to.write_text("\n".join([*_HEAD, *lines, ""]), encoding="utf-8")
    print(f"written: {arguments.to}")
    return 1 if failed else 0


def read_sections(page: Path) -> dict[str, list[str]]:
    """Reads the rows of a page by command, beginning with the row that names it."""
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in page.read_text(encoding="utf-8").splitlines() if page.exists() else ():
        if header := _HEADER.match(line):
            lines = sections.setdefault(header[1], [])
        lines.append(line)
    return sections


if __name__ == "__main__":
    sys.exit(main())
