"""Tests trainings with several seeds, and what refuses `--seed`."""

import os
import re
import shlex
import shutil
import signal
from pathlib import Path

import pytest
from runs import (
    ONE,
    dataset_in,
    refusal,
    run_here,
    run_in9,
    stamps,
    start_in9,
    table_of,
    wait_until,
)
from soundness import assert_sound

from pipeline.commands.command_line import parse_command_line
from pipeline.models.checkpoint import read_metadata
from transforms.selection import held_out

TRAIN = ("--arch", "test_resnet", "--variant", "mixed_rand", "--holdout", 0.5, "--lr", 0.05)
TRAIN = (*TRAIN, "--epochs", 2, "--batch_size", 4, "--workers", 0, "--precision", "bf16")
FAMILY = "test_resnet-mixed_rand-2ep-holdout0.5"


@pytest.fixture
def copied(for_gaps: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(for_gaps, tmp_path / "out of trainings"))


def test_what_it_prints_is_what_evaluate_takes_and_a_family(copied: Path) -> None:
    *_, last = run_here("train", "--dataset", copied, *TRAIN, "--seeds", "0,3,11").out.splitlines()
    head, command = last.split(": in9 ")
    assert head == "to evaluate"
    words = shlex.split(command)
    entries = words[words.index("--models") + 1].split(",")
    files = [copied / "models" / f"{FAMILY}-seed{seed}" for seed in (0, 3, 11)]
    assert entries == [
        f"{FAMILY}#{seed}:=test_resnet={folder}/model.safetensors"
        for seed, folder in zip((0, 3, 11), files, strict=True)
    ]
    trained = [read_metadata(str(folder / "model.safetensors")) for folder in files]
    assert [one and one.seed for one in trained] == [0, 3, 11]
    keys = [row["key"] for row in dataset_in(copied).index("val")]
    outside = {key for key, out in zip(keys, held_out(keys, 0.5), strict=True) if out}
    for one in trained:
        assert one is not None
        assert (one.holdout, one.settings["precision"]) == (0.5, "bf16")
        assert set(one.keys)
        assert not outside & set(one.keys)
    # Trainings in its folder leave a dataset sound.
    assert_sound(copied)
    run_here(*words, "--pictures", "none", *ONE)
    (row,) = table_of(copied, "families", variant="original", label_rule="argmax_then_map")
    assert row["family"].split() == [FAMILY, "holdout0.5"]
    assert row["seeds"] == "3"
    assert row["ci_low"]
    # A single training has no label, as there is no family.
    before = stamps(copied)
    printed = run_here("train", "--dataset", copied, *TRAIN, "--seeds", "3").out
    assert "nothing to do: all 2 epochs have been trained" in printed
    assert "#" not in printed
    assert stamps(copied) == before


def test_with_an_output_each_seed_has_a_folder_and_goes_on_where_it_was_stopped(
    copied: Path, tmp_path: Path
) -> None:
    output = tmp_path / "runs"
    flags = ("--dataset", copied, "--output", output, *TRAIN, "--epochs", 12)
    running = start_in9("train", *flags, "--seeds", "5,6")
    wait_until((output / "seed6" / "state.pth").exists, running)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate(timeout=60)
    first = (output / "seed5" / "model.safetensors").read_bytes()
    printed = run_in9("train", *flags, "--seeds", "5,6").stdout
    assert printed.count("nothing to do: all 12 epochs have been trained") == 1
    assert re.search(r"seed 6; resuming after epoch \d+ of 12", printed)
    assert sorted(path.name for path in output.iterdir()) == ["seed5", "seed6"]
    assert (output / "seed5" / "model.safetensors").read_bytes() == first
    alone = tmp_path / "alone"
    run_here("train", *flags, "--output", alone, "--seeds", 6)
    one, other = (path / "model.safetensors" for path in (alone, output / "seed6"))
    assert one.read_bytes() == other.read_bytes() != first


def test_folders_of_later_seeds_are_checked_before_the_first_is_trained(
    copied: Path, tmp_path: Path
) -> None:
    run_here("train", "--dataset", copied, *TRAIN, "--seeds", 1, "--lr", 0.01)
    captured = run_here("train", "--dataset", copied, *TRAIN, "--seeds", "0,1", code=2)
    assert f"{FAMILY}-seed1 holds another training (--lr 0.01)" in captured.err
    assert not captured.out
    assert [path.name for path in (copied / "models").iterdir()] == [f"{FAMILY}-seed1"]
    output = tmp_path / "runs"
    (output / "seed1").mkdir(parents=True)
    (output / "seed1" / "model.safetensors").write_bytes(b"mine")
    flags = ("--dataset", copied, "--output", output)
    message = refusal("train", *flags, *TRAIN, "--seeds", "0,1")
    assert f"--output {output}/seed1 holds model.safetensors, which was not trained here" in message


def test_a_common_seed_is_that_of_pairing(tmp_path: Path) -> None:
    file = tmp_path / "flags.toml"
    for table, seeds in (("[matrix]\nseeds = [4]", (0,)), ("[train]\nseeds = [1, 2]", (1, 2))):
        file.write_text(f"seed = 7\n{table}\n")
        arguments, _ = parse_command_line(["train", "--config", str(file)])
        assert arguments.seeds == seeds
