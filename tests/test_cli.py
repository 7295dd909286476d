"""Wrong usage: one line that helps, and the right exit code."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.command_line.commands import WITH_BEAM, WITHOUT_BEAM
from pipeline.command_line.parser import COMMANDS


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on standard error of a command that exits with 2."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    return lines[0]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--limit", "1.5"), "argument --limit: invalid int value: '1.5'"),
        (("--overwrite=maybe",), "expected true or false, got 'maybe'"),
        (("--limt", 3), "unknown flag --limt; did you mean --limit?"),
        (("--num_worker=3",), "did you mean --num_workers?"),
        (("more",), "unexpected argument 'more'"),
        (("--variants", "original,mixed_best"), "unknown variant 'mixed_best'"),
        (("--image_size", 300), "--resize must be between --image_size 300"),
        (("--jpeg_quality", 0), "--jpeg_quality must be between 1 and 100: got 0"),
        (("--limit", 0), "--limit must be at least 1: got 0"),
        (("--per_class", "most"), "--per_class must be all, min or a number: got 'most'"),
        (
            ("--segmenter", "magic"),
            "--segmenter must be one of grabcut, cv2, masks, box, onnx:FILE: got 'magic'",
        ),
        (("--mixed_rand", "own"), "--mixed_rand must be one of any, other"),
        (("--split", "val,val"), "--split must name different splits"),
        (("--formats", "zip"), "--formats must name some of"),
        (("--direct_running_mode=multi_threading",), "silently loses elements"),
        (("--input", "/nowhere"), "--input /nowhere is not a folder"),
        (("--models", "resnet5O"), "timm has no model 'resnet5O'; close to it: resnet50"),
        (("--models", "resnet18=/nowhere.pth"), "there is no file /nowhere.pth"),
        (("--models", "resnet50.a9_in1k"), "no such weights; timm has a1_in1k"),
        (("--models", "efficientnet_lite0,efficientnet_lite0"), "names a model twice"),
        (("--device", "tpu"), "--device must be auto, cpu or cuda"),
        (("--precision", "fp8"), "--precision must be one of fp32, tf32, bf16"),
        (("--eval_split", "test"), "--eval_split test: the dataset has val"),
    ],
)
def test_wrong_flags_get_one_helpful_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, flags: tuple[object, ...], line: str
) -> None:
    assert line in refusal(capsys, "run", "--output", tmp_path / "out", *flags)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_commands_and_outputs_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--output DIR is required" in refusal(capsys, "run")
    assert "--dataset DIR is required" in refusal(capsys, "verify")
    assert "unknown flag --outptu; did you mean --output?" in refusal(
        capsys, "run", "--outptu", "x"
    )
    assert "invalid choice: 'rum'" in refusal(capsys, "rum")
    assert "COMMAND" in refusal(capsys)


def test_outputs_that_would_be_harmed_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, small_input: Path
) -> None:
    inside = small_input / "out"
    line = refusal(capsys, "generate", "--input", small_input, "--output", inside)
    assert "lies inside --input" in line
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("mine")
    assert "not empty" in refusal(capsys, "generate", "--output", other)
    assert "is not a folder" in refusal(capsys, "generate", "--output", other / "chapter.txt")


def test_inputs_without_images_say_what_was_expected(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, small_input: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    line = refusal(capsys, "generate", "--input", empty, "--output", tmp_path / "out")
    assert "no folder 'val'" in line
    (empty / "val" / "holiday").mkdir(parents=True)
    line = refusal(capsys, "generate", "--input", empty, "--output", tmp_path / "out")
    assert "no annotations of 'val'" in line
    xml = next(small_input.glob("Annotations/val/*.xml"))
    (empty / "Annotations" / "val").mkdir(parents=True)
    (empty / "Annotations" / "val" / xml.name).write_bytes(xml.read_bytes())
    line = refusal(capsys, "generate", "--input", empty, "--output", tmp_path / "out")
    assert "no image of an ImageNet-9 class" in line


@pytest.mark.parametrize("command", ["evaluate", "report", "verify"])
def test_commands_on_no_dataset_say_how_to_make_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    assert "in9 generate --output" in refusal(capsys, command, "--dataset", tmp_path)


def test_a_manifest_of_another_kind_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "manifest.json").write_text('{"format": "other", "format_version": 7}')
    assert "version 7" in refusal(capsys, "verify", "--dataset", tmp_path)
    (tmp_path / "manifest.json").write_text("[")
    assert "not a manifest" in refusal(capsys, "verify", "--dataset", tmp_path)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_two_screens_and_gives_an_example(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert text.count("\n") <= 62
    assert f"Example: in9 {command}" in text


def test_every_command_is_with_beam_or_without() -> None:
    assert sorted((*WITH_BEAM, *WITHOUT_BEAM)) == sorted(COMMANDS)


@pytest.mark.parametrize("command", ["report", "verify"])
def test_readers_wait_for_neither_beam_nor_torch(
    sample_run: Path, tmp_path: Path, command: str
) -> None:
    shutil.copytree(sample_run, tmp_path / "out")
    # So that the page is made.
    (tmp_path / "out" / "report.html").unlink()
    code = (
        "import sys\n"
        "from pipeline.cli import main\n"
        f"assert main([{command!r}, '--dataset', {str(tmp_path / 'out')!r}]) == 0\n"
        "sys.exit(sorted({'apache_beam', 'torch'} & set(sys.modules)) or None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
