"""Tests that each refusal is one line with the right words, and that it changes nothing."""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from messages import analyses, datasets, flags, inputs, models, places, runners
from runs import everything, run_here

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def cases() -> Iterator[object]:
    """Yields the rows of all tables."""
    for table in (analyses, datasets, flags, inputs, models, places, runners):
        for command, rows in table.ROWS.items():
            for words, says, *files in rows:
                marks = [WITHOUT_GPU] if "--device cuda" in words and table is not runners else []
                yield pytest.param(f"{command} {words}", says, *(files or [{}]), marks=marks)


@pytest.fixture(scope="module")
def folders(
    small_sample: Path, three_draws: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Folders that are named in all tables."""
    dataset = shutil.copytree(three_draws, tmp_path_factory.mktemp("messages") / "dataset")
    return {"input": small_sample, "dataset": Path(dataset)}


@pytest.mark.parametrize(("words", "says", "files"), cases())
def test_a_refusal_is_one_line_and_changes_nothing(
    words: str, says: str, files: dict[str, str | bytes], folders: dict[str, Path], tmp_path: Path
) -> None:
    known = {**folders, "tmp": tmp_path, "new": tmp_path / "new"}

    def filled(text: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda found: str(known[found[1]]), text)

    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(content if isinstance(content, bytes) else filled(content).encode())
    before = everything(tmp_path), everything(folders["dataset"])
    (line,) = run_here(*map(filled, shlex.split(words)), code=2).err.splitlines()
    assert filled(says) in line
    assert (everything(tmp_path), everything(folders["dataset"])) == before
