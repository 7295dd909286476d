"""Tests text files of the user's: their lines, and lists of images to leave out."""

from pathlib import Path

import pyarrow.dataset
import pytest
from runs import QUICK, index_of, refusal, run_here

from pipeline.errors import UsageError
from pipeline.inputs import tables
from pipeline.inputs.lists import KeyList, read_key_list


def test_lines_come_whole_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeffa\nb\u2028c\n\nd".encode())
    assert list(tables.TextLines(str(path), "--include")) == ["a\n", "b\u2028c\n", "\n", "d"]
    path.write_bytes(b"")
    assert list(tables.TextLines(str(path), "--include")) == []


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b"a\n\xff\n")
    with pytest.raises(UsageError, match=f"^--include {path} is not text in UTF-8$"):
        list(tables.TextLines(str(path), "--include"))


def test_lists_of_images_are_names_of_any_form(tmp_path: Path) -> None:
    names = ["n02085620_00000123", "ILSVRC2012_val_00000007", "n02085620_45"]
    text, files = tmp_path / "list.txt", tmp_path / "files.txt"
    text.write_text("# test overlap\n" + "\n".join(f" {name} " for name in names) + "\n # end\n\n")
    mixed = "\n".join(f"mixed_rand/val/00_dog/fg_{name}_bg_n1_2.JPEG" for name in names)
    files.write_text(f"mixed_rand/val/00_dog/\n{mixed}\nfg_mask\\val\\{names[0]}.npy\n")
    lists = [read_key_list(str(path), "--exclude") for path in (text, files)]
    assert lists == [KeyList(tuple(sorted(names)))] * 2
    held, others = lists[0], read_key_list(str(text), "--include")
    assert held.excludes("ILSVRC2012_val_00000123", "n02085620")
    assert held.excludes("n02085620_45", "n02085620")
    assert held.excludes("ILSVRC2012_val_00000007", "n01440764")
    for key, wnid in (("ILSVRC2012_val_00000123", "n01440764"),
                      ("ILSVRC2012_val_00000045", "n02085620"), ("n02085620_4", "n02085620"),
                      ("other", "")):  # fmt: skip
        assert not held.excludes(key, wnid)
        assert others.excludes(key, wnid)
    assert not others.excludes("n02085620_45", "n02085620")
    text.write_text("# nothing\n")
    for wrong, why in ((text, "names no image"), (tmp_path, "not a file")):
        with pytest.raises(UsageError, match=why):
            read_key_list(str(wrong), "--exclude")


def test_a_long_key_is_looked_up_at_once() -> None:
    """Matching in quadratic time would take minutes."""
    assert not KeyList(("n02085620_7",)).excludes("7" * 500_000 + "x", "n02085620")
    assert KeyList(("n02085620_7",)).excludes("a7", "n02085620")


def test_excluded_images_are_rows_and_nothing_else(tiny_input: Path, tmp_path: Path) -> None:
    keys = sorted(image.stem for image in tiny_input.glob("val/*/*.JPEG"))
    output = tmp_path / "out"
    exclude, include = tmp_path / "exclude.txt", tmp_path / "include.txt"
    exclude.write_text(f"{keys[0]}.JPEG\n")
    include.write_text("\n".join(keys[:-1]))
    command = ("generate", "--input", tiny_input, "--output", output, *QUICK)
    lists = ("--exclude", exclude, "--include", include)
    run_here(*command)
    refused = refusal(*command, *lists)
    assert "--exclude=1 names, sha256" in refused
    assert "(the dataset has not set)" in refused
    printed = run_here(*command, *lists, "--overwrite", "config").out
    assert "2 excluded" in printed
    assert "0 images segmented" in printed
    index = index_of(output)
    assert {row["key"] for row in index if row["status"] == "excluded"} == {keys[0], keys[-1]}
    table = pyarrow.dataset.dataset(str(output / "parquet" / "original")).to_table()
    assert not {keys[0], keys[-1]} & set(table["key"].to_pylist())
    assert "nothing to do" in run_here(*command, *lists).out
