"""Makes transforms/data/hypernyms.csv: the ancestors of ImageNet's 1000 classes in WordNet 3.0.

    apt-get download wordnet-base && dpkg -x wordnet-base_*.deb wordnet
    python scripts/make_hypernyms.py wordnet/usr/share/wordnet/data.noun

A WordNet id is `n` and the offset of a noun synset in `data.noun` (format: man 5 wndb).
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from transforms.taxonomy import imagenet9

_TABLE = Path(__file__).resolve().parents[1] / "transforms" / "data" / "hypernyms.csv"
_HYPERNYMS = ("@", "@i")
"""Pointers to the synsets that a synset is a kind or an instance of."""


def parse_synset(line: str) -> tuple[str, list[str], str]:
    """Parses a line of `data.noun`: (id, ids of its hypernyms, first word)."""
    fields = line.split(" | ")[0].split()
    words = int(fields[3], 16)
    count = int(fields[4 + 2 * words])
    pointers = fields[5 + 2 * words :][: 4 * count]
    parents = [
        f"n{offset}"
        for symbol, offset, part in zip(pointers[::4], pointers[1::4], pointers[2::4], strict=True)
        if symbol in _HYPERNYMS and part == "n"
    ]
    return f"n{fields[0]}", parents, fields[4].replace("_", " ")


def main(path: str) -> None:
    """Writes the table of all classes and their ancestors, in order of the id."""
    synsets = {}
    for line in Path(path).read_text(encoding="latin-1").splitlines():
        if not line.startswith(" "):
            wnid, parents, name = parse_synset(line)
            synsets[wnid] = (parents, name)
    included: set[str] = set()
    waiting = list(imagenet9().wnids)
    while waiting:
        wnid = waiting.pop()
        if wnid not in included:
            included.add(wnid)
            waiting += synsets[wnid][0]
    with _TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["wnid", "parents", "name"])
        for wnid in sorted(included):
            parents, name = synsets[wnid]
            writer.writerow([wnid, " ".join(parents), name])
    print(f"{len(included)} synsets: {_TABLE}")


if __name__ == "__main__":
    main(sys.argv[1])
