"""Wrong usage: one line that helps, and the right exit code."""

from __future__ import annotations

import argparse
import inspect
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from apache_beam.options.pipeline_options import PipelineOptions
from conftest import ROOT

from pipeline.commands.cli import main
from pipeline.commands.command_line import parse_command_line
from pipeline.commands.dispatch import find_command
from pipeline.commands.flags import flags_of
from pipeline.commands.parser import COMMANDS, refuse_near_misses, underscored
from pipeline.dataset.config import ComposeConfig, DatasetConfig, SegmentConfig
from pipeline.dataset.folder import Dataset
from pipeline.dataset.manifest import MANIFEST, Manifest
from pipeline.dataset.shards import ShardCounts
from pipeline.errors import JobError
from pipeline.evaluate.results import read_results
from pipeline.storage.files import absolute
from pipeline.storage.store import Store
from transforms.variants import PAPER

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on standard error of a command that exits with 2."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    return lines[0]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A folder with the manifest of a dataset, and nothing of what it names."""
    counted = ("listed", "outside_taxonomy", "other_files", "accepted", "rejected", "selected")
    manifest = Manifest(
        config=DatasetConfig(),
        fingerprint="0" * 32,
        libraries={},
        shards={"val": ShardCounts(1, 1)},
        images={"val": dict.fromkeys(counted, 0)},
        rejections={"val": {}},
        samples={"val": {variant: {} for variant in PAPER}},
        files=(),
    )
    Store(str(tmp_path / "dataset")).write(MANIFEST, manifest.to_json())
    return tmp_path / "dataset"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--limit", "1.5"), "argument --limit: invalid int value: '1.5'"),
        (("--own_background=maybe",), "expected true or false, got 'maybe'"),
        (
            ("--overwrite", "config,all"),
            "expected some of config, input, rebuild, shards, weights: got 'config,all'",
        ),
        (("--overwrite",), "expected some of config, input, rebuild, shards, weights: got ''"),
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
            "one of grabcut, cv2, masks, box, python:MODULE:FUNCTION: got 'magic'",
        ),
        (
            ("--mixed_rand", "own"),
            "argument --mixed_rand: invalid choice: 'own' (choose from 'any', 'other')",
        ),
        (("--split", "val,val"), "--split must name different splits"),
        (("--formats", "zip"), "--formats must name some of"),
        (("--direct_running_mode=multi_threading",), "silently loses elements"),
        (("--direct_num_workers", -1), "--direct_num_workers must be at least 0"),
        (("--direct_num_workers", "two"), "--direct_num_workers: invalid int value: 'two'"),
        (("--runner", "NoSuchRunner"), "--runner=NoSuchRunner cannot be used"),
        (("--input", "s3://bucket/images"), "s3:// is not supported; give a local path, or gs://"),
        (("--input", "/nowhere"), "--input /nowhere is not a folder"),
        (("--models", "resnet5O"), "timm has no model 'resnet5O'; close to it: resnet50"),
        (("--models", "resnet18=/nowhere.pth"), "there is no file /nowhere.pth"),
        (("--models", "resnet50.a9_in1k"), "no such weights; timm has a1_in1k"),
        (("--models", "efficientnet_lite0,efficientnet_lite0"), "names a model twice"),
        (
            ("--device", "tpu"),
            "argument --device: invalid choice: 'tpu' (choose from 'auto', 'cpu', 'cuda')",
        ),
        pytest.param(("--device", "cuda"), "there is no CUDA device", marks=WITHOUT_GPU),
        (
            ("--precision", "fp8"),
            "--precision: invalid choice: 'fp8' (choose from 'fp32', 'tf32', 'bf16')",
        ),
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
    assert "--to DIR is required" in refusal(capsys, "export", "--dataset", "out")
    assert "--from DIR|TAR is required" in refusal(capsys, "import", "--output", "out")
    assert "unknown flag --outptu; did you mean --output?" in refusal(
        capsys, "run", "--outptu", "x"
    )
    assert "no command 'rum'; did you mean run?" in refusal(capsys, "rum")
    assert "invalid choice: 'rotate'" in refusal(capsys, "rotate")
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
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert "which is not there" in refusal(capsys, "generate", "--output", tmp_path / "link")


def test_outputs_of_others_are_left_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, dataset: Path
) -> None:
    model = tmp_path / "model.safetensors"
    model.write_bytes(b"mine")
    train = ("train", "--dataset", dataset, "--train_split", "val", "--output")
    assert "was not trained here" in refusal(capsys, *train, tmp_path)
    assert "is not a folder" in refusal(capsys, *train, model)
    fetch = ("models", "fetch", "--models", "efficientnet_lite0", "--to", model)
    assert "is not a folder" in refusal(capsys, *fetch)
    assert model.read_bytes() == b"mine"
    line = refusal(capsys, "export", "--dataset", dataset, "--to", dataset / "export")
    assert "lies inside --dataset" in line


@pytest.mark.parametrize("command", ["train", "export", "import"])
def test_flags_of_beam_are_for_commands_that_run_a_graph(
    capsys: pytest.CaptureFixture[str], dataset: Path, command: str
) -> None:
    place = "--output" if command == "import" else "--dataset"
    line = refusal(capsys, command, place, dataset, "--direct_num_workers=2")
    assert "--direct_num_workers=2 is for commands that run a Beam pipeline" in line


def test_refusals_write_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, dataset: Path
) -> None:
    output = tmp_path / "out"
    line = refusal(capsys, "import", "--from", dataset, "--output", output)
    assert "is not the released layout" in line
    line = refusal(capsys, "import", "--from", tmp_path / "nowhere", "--output", output)
    assert "neither a folder nor a file" in line
    flags = ("--dataset", dataset, "--variant", "mixed_best", "--train_split", "val")
    line = refusal(capsys, "train", *flags, "--output", output)
    assert "--variant mixed_best: the dataset has" in line
    assert not output.exists()


def test_a_home_folder_that_the_shell_left_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of/mine")
    assert absolute("~/out/") == "/home/of/mine/out"


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


def test_inputs_of_another_kind_are_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, dataset: Path
) -> None:
    flags = ("generate", "--output", tmp_path / "out")
    assert "is a dataset that in9 made" in refusal(capsys, *flags, "--input", dataset)
    junk = tmp_path / "junk.parquet"
    junk.write_bytes(b"junk\0")
    assert "not a whole Parquet file" in refusal(capsys, *flags, "--input", junk)
    assert "is no text" in refusal(capsys, *flags, "--exclude", junk)
    model = ("evaluate", "--dataset", dataset, "--models", junk)
    assert f"name its architecture, such as resnet50={junk}" in refusal(capsys, *model)


@pytest.mark.parametrize("command", ["evaluate", "report", "verify"])
def test_commands_on_no_dataset_say_how_to_make_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    assert "in9 generate --output" in refusal(capsys, command, "--dataset", tmp_path)
    assert "is not there" in refusal(capsys, command, "--dataset", tmp_path / "nowhere")
    (tmp_path / "notes").write_text("mine")
    assert "is a file" in refusal(capsys, command, "--dataset", tmp_path / "notes")


def test_a_manifest_of_another_kind_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "manifest.json").write_text('{"format": "other", "format_version": 7}')
    assert "version 7" in refusal(capsys, "verify", "--dataset", tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    assert "If it is damaged, remove it" in refusal(capsys, "verify", "--dataset", tmp_path)
    for damaged in (b"", b"[", b"\xff\xfe\x00"):
        (tmp_path / "manifest.json").write_bytes(damaged)
        assert "holds no finished dataset" in refusal(capsys, "verify", "--dataset", tmp_path)
    with pytest.raises(ValueError, match="made by a newer release: flags later are not known"):
        DatasetConfig.from_flags({**DatasetConfig().flags(), "later": 1})


def test_flags_and_manifests_know_the_same_words() -> None:
    found = set()
    known = {flag.dest: flag for flag in flags_of("generate")}
    for kind in (SegmentConfig, ComposeConfig, DatasetConfig):
        for name, hint in get_type_hints(kind).items():
            if get_origin(hint) is Literal:
                with pytest.raises(ValueError, match=f"Invalid enum value 'other words'.*{name}"):
                    DatasetConfig.from_flags({**DatasetConfig().flags(), name: "other words"})
                if name != "origin":
                    assert known[name].choices == get_args(hint)
                found.add(name)
    assert found >= {"objects", "mixed_rand", "layers", "origin"}


def test_a_damaged_shard_is_named(dataset: Path) -> None:
    opened = Dataset.open(Store(str(dataset)))
    path = dataset / "parquet" / "original" / "val-00000-of-00001.parquet"
    for _ in range(2):
        with pytest.raises(JobError, match=rf"{path} cannot be read .*; see: in9 verify"):
            next(opened.samples("val", 0, "original"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"junk")


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b'{"model": 1}'])
def test_damaged_results_are_named(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(str(tmp_path))
    store.write("results/model/model.json", content)
    assert read_results(store, "model") == []
    (message,) = caplog.messages
    assert str(tmp_path / "results/model/model.json") in message


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as left:
        main([*words])
    assert left.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_the_core_and_all(capsys: pytest.CaptureFixture[str], command: str) -> None:
    core = help_of(capsys, command, "--help")
    every = help_of(capsys, command, "--help", "all")
    flags = [flag for flag in flags_of(command) if flag.name.startswith("--")]
    shown = [flag for flag in flags if f"\n  {flag.name} " in core]
    assert f"Example: in9 {command}" in core
    if command in ("run", "generate"):
        assert 9 < len(shown) < 18
        assert {"--output", "--input", "--dry_run", "--config"} <= {flag.name for flag in shown}
        assert f"More flags, {len(flags)} in all: in9 {command} --help all" in core
    else:
        assert shown == flags
    words = " ".join(every.split())
    for flag in flags:
        assert f"\n  {flag.name} " in every
        assert flag.told in words
        if flag.default_text and flag.default is not False:
            assert flag.told.endswith(f"(default: {flag.default_text})")


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert help_of(capsys, "--version") == f"in9 {metadata.version('imagenet9-pipeline')}\n"


def test_dashes_in_flags_are_underscores() -> None:
    words = ["run", "--output=my-out", "--dry-run", "--per-class", "min", "--direct-num-workers=2"]
    arguments, rest = parse_command_line(words)
    assert (arguments.output, arguments.dry_run, arguments.per_class) == ("my-out", True, "min")
    assert rest == ["--direct_num_workers=2"]


def config_of(tmp_path: Path, text: str) -> str:
    path = tmp_path / "flags.toml"
    path.write_text(text)
    return str(path)


def test_a_file_gives_flags_and_the_command_line_replaces_them(tmp_path: Path) -> None:
    path = config_of(
        tmp_path,
        """
        output = "out"
        models = ["resnet50", "resnet18=a.pth"]
        max_box = 0.5
        own-background = true
        limit = 3
        fail_if = ["bg_gap>0.1", "original<0.5"]
        direct_num_workers = 2
        experiments = ["a", "b"]
        streaming = false
        no_wait_until_finish = true
        """,
    )
    arguments, rest = parse_command_line(["run", "--config", path])
    assert (arguments.output, arguments.models) == ("out", ("resnet50", "resnet18=a.pth"))
    assert (arguments.max_box, arguments.own_background, arguments.limit) == (0.5, True, 3)
    assert arguments.fail_if == ["bg_gap>0.1", "original<0.5"]
    assert rest == [
        *("--direct_num_workers=2", "--experiments=a", "--experiments=b"),
        "--no_wait_until_finish",
    ]
    words = ["--fail-if", "bg_gap>0", "--own_background=false", "--direct_num_workers", "1"]
    arguments, rest = parse_command_line(["run", "--limit=4", f"--config={path}", *words])
    assert (arguments.limit, arguments.own_background) == (4, False)
    assert arguments.fail_if == ["bg_gap>0"]
    assert rest[-2:] == ["--direct_num_workers", "1"]
    assert not any(word.startswith("--direct_num_workers=") for word in rest)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_a_file_of_its_own_flags(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    flags = [flag for flag in flags_of(command) if flag.metavar in ("DIR", "DIR|TAR")]
    path = config_of(tmp_path, "".join(f'{flag.dest} = "{flag.dest}"\n' for flag in flags))
    words = ["list"] if command == "models" else []
    arguments, _ = parse_command_line([command, *words, "--config", path])
    assert all(getattr(arguments, flag.dest) == flag.dest for flag in flags)
    line = refusal(capsys, command, *words, "--config", config_of(tmp_path, "configs = 1"))
    assert line.startswith(f"in9: --config {path}: unknown flag --configs; did you mean")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("limt = 3", "unknown flag --limt; did you mean --limit?"),
        ("direct_num_worker = 3", "did you mean --direct_num_workers?"),
        ('image_size = "large"', "argument --image_size: invalid int value: 'large'"),
        ("[run]\nlimit = 3", "[run] is a table; keys are flags of in9 run"),
        ('config = "other.toml"', "--config is for the command line"),
        ("limit", "it is no TOML"),
        ("\udcff", "it is no TOML"),
    ],
)
def test_files_that_hold_something_else_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, line: str
) -> None:
    path = tmp_path / "flags.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    found = refusal(capsys, "run", "--output", tmp_path / "out", "--config", path)
    assert line in found
    assert str(path) in found
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for path in (tmp_path, tmp_path / "nowhere.toml"):
        assert "there is no such file" in refusal(capsys, "verify", "--config", path)


def test_every_command_has_its_function() -> None:
    for name, command in COMMANDS.items():
        takes = inspect.signature(find_command(name)).parameters
        assert list(takes) == ["arguments", "rest"][: 1 + command.has_graph]


@pytest.mark.parametrize("command", [("report",), ("verify",), ("export", "--to", "exported")])
def test_readers_wait_for_neither_beam_nor_torch(
    sample_run: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    shutil.copytree(sample_run, tmp_path / "out")
    # So that the page is made.
    (tmp_path / "out" / "report.html").unlink()
    words = [word.replace("exported", str(tmp_path / "exported")) for word in command]
    code = (
        "import sys\n"
        "from pipeline.commands.cli import main\n"
        f"assert main([*{words!r}, '--dataset', {str(tmp_path / 'out')!r}]) == 0\n"
        "sys.exit(sorted({'apache_beam', 'torch'} & set(sys.modules)) or None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr


def test_a_misspelt_flag_of_ours_is_answered_before_beam_is_imported() -> None:
    code = (
        "import sys\n"
        "from pipeline.commands.cli import main\n"
        "assert main(['run', '--runner', 'DirectRunner', '--ouput=x']) == 2\n"
        "sys.exit(sorted({'apache_beam', 'torch'} & set(sys.modules)) or None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["in9 run: unknown flag --ouput; did you mean --output?"]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_flag_of_beam_is_a_misspelt_one_of_ours(command: str) -> None:
    parser = argparse.ArgumentParser(conflict_handler="resolve", add_help=False)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    of_beam = [name for action in parser._actions for name in action.option_strings]
    own = [flag.name for flag in flags_of(command)]
    assert "--num_workers" in of_beam
    # So that dashes can be taken for underscores in any of them.
    assert {underscored(name) for name in of_beam} <= set(of_beam)
    refuse_near_misses([flag for flag in of_beam if flag not in own], own)
