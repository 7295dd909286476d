"""All benchmarks in one go, and the table of what they found: `benchmarks/RESULTS.md`.

    python benchmarks/results.py [--quick]

The better part of an hour on two cores. A benchmark that fails is a row, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import TABLE, card

HERE = Path(__file__).parent

BENCHMARKS: dict[str, tuple[list[str], list[str]]] = {
    "grabcut": ([], ["--softened", "10", "--native", "4"]),
    "segmentation_iou": ([], []),
    "generate_cost": ([], ["--images", "24", "--rounds", "1"]),
    "generate_profile": ([], ["--images", "24"]),
    "evaluate_cost": ([], ["--images", "16", "--rounds", "1", "--only", "speed"]),
    "attack_cost": ([], ["--images", "40"]),
    "train_cost": ([], []),
    "reading": ([], ["--images", "72", "--rounds", "1"]),
    "start_up": ([], ["--rounds", "1"]),
    "scale": (
        ["--images", "1000,10000,30000", "--rows", "1300000,20000000"],
        ["--images", "64,128", "--rows", "20000"],
    ),
}
"""Arguments of each benchmark: for the table, and for a quick trial of the whole."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that all run")
    parser.add_argument("--only", help="comma-separated names")
    parser.add_argument("--to", type=Path, default=HERE / "RESULTS.md", help="file to write")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",") if arguments.only else list(BENCHMARKS)
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        sections = []
        for name in wanted:
            flags = BENCHMARKS[name][arguments.quick]
            rows = Path(folder) / name
            print(f"{name} {' '.join(flags)}", flush=True)
            done = subprocess.run(
                [sys.executable, HERE / f"{name}.py", *flags],
                env={**os.environ, TABLE: str(rows)},
                check=False,
            )
            found = (
                [json.loads(line) for line in rows.read_text().splitlines()]
                if (rows.exists())
                else []
            )
            if done.returncode:
                failed.append(name)
                found.append({"what": f"{name} failed", "value": "-", "yardstick": "", "bound": ""})
            sections.append((f"benchmarks/{name}.py {' '.join(flags)}".strip(), found))
    arguments.to.write_text(render(sections, arguments.quick), encoding="utf-8")
    print(f"written: {arguments.to}")
    return 1 if failed else 0


def _commit() -> str:
    """What was measured; `unknown` outside of a checkout."""
    command = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def render(sections: list[tuple[str, list[dict[str, str]]]], quick: bool) -> str:
    """The page: a table, a group of rows for each benchmark."""
    command = "python benchmarks/results.py" + (" --quick" if quick else "")
    lines = [
        "# How fast",
        "",
        f"Made by `{command}` on {datetime.date.today()}, commit {_commit()}, {card()}:",
        "all in one go. Ratios compare what ran in turns on the same machine; they carry over to",
        "others, seconds do not.",
        "",
        "| what | measured | against | wanted |",
        "|---|--:|---|---|",
    ]
    for command, rows in sections:
        lines.append(f"| **`{command}`** | | | |")
        lines += [f"| {r['what']} | {r['value']} | {r['yardstick']} | {r['bound']} |" for r in rows]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
