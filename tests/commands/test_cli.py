"""Tests the command line: wrong usage gets one helpful line and the right exit code."""

import argparse
import inspect
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Literal, NoReturn, get_args, get_origin, get_type_hints

import msgspec
import pytest
import torch
from apache_beam.options.pipeline_options import PipelineOptions
from PIL import Image
from runs import ONE, ROOT, dataset_in, keys, pictures_of, refusal, run_here, run_python

import in9
from pipeline.analyses import ANALYSES
from pipeline.commands.cli import main
from pipeline.commands.command_line import (
    COMMANDS,
    check_rest,
    find_command,
    refuse_near_misses,
    underscored,
)
from pipeline.commands.flags import flags_of
from pipeline.dataset.config import ComposeConfig, DatasetConfig, SegmentConfig
from pipeline.dataset.manifest import MANIFEST, Manifest
from pipeline.dataset.records import ShardCounts
from pipeline.errors import JobError, UsageError
from pipeline.evaluate.results import read_results
from pipeline.evaluate.summary import Evaluated
from pipeline.storage.files import absolute
from pipeline.storage.store import Store
from transforms.variants import ORIGINAL, PAPER

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A folder with the manifest of a dataset but without its files."""
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
        stages={},
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
        (("more",), "unexpected argument 'more'; example: in9 run --output out --input"),
        (("--input", "in", "more"), "unexpected argument 'more'; example: in9 run --output"),
        (("--runner", "DirectRunner", "more"), "unexpected argument 'more'; example: in9 run"),
        (("--variants", "original,mixed_best"), "unknown variant 'mixed_best'"),
        (("--variants", "only_gb_t"), "python:MODULE:FUNCTION; did you mean only_bg_t?"),
        (("--image_size", 300), "resize must be between --image_size 300"),
        (keys(jpeg_quality=0), "jpeg_quality must be between 1 and 100: got 0"),
        (("--limit", 0), "--limit must be at least 1: got 0"),
        (("--per_class", "most"), "--per_class must be all, min or at least 1: got 'most'"),
        (
            ("--segmenter", "magic"),
            "one of grabcut, cv2, masks, box, python:MODULE:FUNCTION: got 'magic'",
        ),
        (
            ("--mixed_rand", "own"),
            "argument --mixed_rand: invalid choice: 'own' (choose from 'any', 'other')",
        ),
        (("--split", "val,val"), "--split must name different splits"),
        (keys(creator="a\nb"), "a line of printable text, at most 1000 characters: got 'a\\nb'"),
        (keys(terms="x" * 1001), "argument terms: expected a line of printable text, at most 1000"),
        (("--formats", "zip"), "--formats must name some of"),
        (("--direct_running_mode=multi_threading",), "silently loses elements"),
        (("--direct_num_workers", -1), "--direct_num_workers must be at least 0"),
        (("--direct_num_workers", "two"), "--direct_num_workers: invalid int value: 'two'"),
        (("--runner", "NoSuchRunner"), "--runner=NoSuchRunner cannot be used"),
        (("--input", "s3://bucket/images"), "s3:// is not supported; give a local path, or gs://"),
        (("--input", "/nowhere"), "--input /nowhere does not exist, or is not a folder"),
        (("--models", "resnet5O"), "timm has no model 'resnet5O'; close to it: resnet50"),
        (("--models", "resnet18=/nowhere.pth"), "there is no file /nowhere.pth"),
        (("--models", "resnet50.a9_in1k"), "no such weights; timm has a1_in1k"),
        (("--models", "efficientnet_lite0,efficientnet_lite0"), "names a model twice"),
        (
            ("--device", "tpu"),
            "argument --device: invalid choice: 'tpu' (choose from 'auto', 'cpu', 'cuda')",
        ),
        pytest.param(("--device", "cuda"), "leave --device out to run on", marks=WITHOUT_GPU),
        pytest.param(
            ("--dry_run", "--device", "cuda"), "leave --device out to run on", marks=WITHOUT_GPU
        ),
        (("--dry_run", *keys(gpu="nvidia-l4")), "gpu is for --runner=DataflowRunner"),
        (("--dry_run", "--dask", "tcp://192.0.2.1:8786"), "whoever reaches tcp://192.0.2.1:8786"),
        (("--models", "mynet.py"), "python:mynet:FUNCTION, with its folder on PYTHONPATH"),
        (("--models", "lib/mynet.py:net"), "for a function of your own: python:mynet:net"),
        (("--models", "python:mynet.py:net"), "say python:mynet:net, with its folder on"),
        (("--models", "net.onnx"), "use onnx:net.onnx"),
        (("--models", "resnet50.pth"), "add its architecture, such as resnet50=resnet50.pth"),
        (("--models", "resnet50", "resnet18"), "'resnet18'; example: in9 run --output out"),
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


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("export", "--output", "x"), "; example: in9 export --dataset out --to bg_challenge"),
        (
            ("matrix", "--models", "x"),
            "flag of in9 run, evaluate, method, attack, saliency, models;",
        ),
        # Beam has a flag of the same name, but it would have no effect here.
        (("evaluate", "--dry-run"), "no --dry_run, which is a flag of in9 run, generate"),
        (("verify", "--colour"), "(see: in9 verify --help all)"),
    ],
)
def test_a_flag_by_another_commands_name_is_told(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], line: str
) -> None:
    assert line in refusal(capsys, *words)


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_of_other_commands_are_refused(command: str) -> None:
    own = {flag.name for flag in flags_of(command)}
    others = {flag.name for other in COMMANDS for flag in flags_of(other)} - own
    for name in sorted(name for name in others if name.startswith("--")):
        with pytest.raises(UsageError) as refused:
            check_rest(command, [f"{name}=x"])
        message = str(refused.value)
        known = rf"did you mean ({'|'.join(own)})\b"
        assert re.search(known, message) or re.search("is a (flag|key) of in9", message)
        assert name in message


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "models"])
def test_a_path_without_a_flag_is_given_an_example(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    line = refusal(capsys, command, "some/path")
    assert line.startswith(
        f"in9 {command}: unexpected argument 'some/path'; example: in9 {command} "
    )


@WITHOUT_GPU
@pytest.mark.parametrize(
    "words",
    [("evaluate",), ("attack",), ("saliency",), ("train", "--train_split", "val"), ("matrix",)],
)
def test_a_card_that_is_not_there_is_told(
    capsys: pytest.CaptureFixture[str], dataset: Path, words: tuple[str, ...]
) -> None:
    words = (*words, "--probe", "--holdout", "0.5") if words == ("matrix",) else words
    line = refusal(capsys, *words, "--dataset", dataset, "--device", "cuda")
    assert "--device cuda: " in line
    assert "or leave --device out to" in line


@pytest.mark.parametrize("command", ["train", "matrix"])
def test_a_probe_takes_no_flags_of_whole_networks(
    capsys: pytest.CaptureFixture[str], dataset: Path, command: str
) -> None:
    line = refusal(capsys, command, "--dataset", dataset, "--probe", "--lr", "0.2")
    assert "leave out --lr or --probe" in line


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
    assert "which does not exist" in refusal(capsys, "generate", "--output", tmp_path / "link")


def test_inputs_where_files_are_removed_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, dataset: Path, small_input: Path
) -> None:
    inside = dataset / ".in9" / "staging" / "mine"
    shutil.move(small_input, inside)
    (tmp_path / "link").symlink_to(inside)
    version = tmp_path / "published" / "v-0123456789ab"
    for folder in (version, tmp_path / ".in9"):
        folder.mkdir(parents=True)
    for words in (
        ("generate", "--output", dataset, "--input", inside),
        ("generate", "--output", dataset, "--annotations", tmp_path / "link" / "Annotations"),
        ("run", "--output", dataset, "--models", f"a,resnet18={inside / 'val'}"),
        ("evaluate", "--dataset", dataset, "--imagenet", dataset / "parquet"),
        ("evaluate", "--dataset", dataset, "--publish", version.parent, "--weights", version),
        ("train", "--dataset", dataset, "--output", dataset / "results" / "new"),
        ("import", "--output", dataset, "--from", inside / "val"),
        ("models", "fetch", "--to", tmp_path, "--models", f"onnx:{tmp_path / '.in9'}"),
    ):
        line = refusal(capsys, *words)
        assert "where files are replaced and removed; name a place outside of it" in line
    with pytest.raises(UsageError, match="where files are replaced and removed"):
        in9.Generate(dataset, input=str(inside))


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
    flag = "--output" if command == "import" else "--dataset"
    line = refusal(capsys, command, flag, dataset, "--direct_num_workers=2")
    assert f"unknown flag --direct_num_workers; example: in9 {command} " in line


def test_refusals_write_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, dataset: Path, small_input: Path
) -> None:
    output = tmp_path / "new" / "out"
    line = refusal(capsys, "import", "--from", dataset, "--output", output)
    assert "is not the released layout" in line
    line = refusal(capsys, "import", "--from", tmp_path / "nowhere", "--output", output)
    assert "neither a folder nor a file" in line
    flags = ("--dataset", dataset, "--variant", "mixed_best", "--train_split", "val")
    line = refusal(capsys, "train", *flags, "--output", output)
    assert "--variant mixed_best: the dataset has" in line
    # Only the graph looks at the images.
    other = tmp_path / "other"
    shutil.copytree(small_input, other)
    shutil.rmtree(other / "val")
    (other / "val" / "holiday").mkdir(parents=True)
    line = refusal(capsys, "generate", "--input", other, "--output", output)
    assert "no image of an ImageNet-9 class" in line
    assert not output.parent.exists()
    output.mkdir(parents=True)
    refusal(capsys, "generate", "--input", other, "--output", output)
    assert [*output.parent.rglob("*")] == [output]


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
    assert "is not text" in refusal(capsys, *flags, "--exclude", junk)
    model = ("evaluate", "--dataset", dataset, "--models", junk)
    assert f"add its architecture, such as resnet50={junk}" in refusal(capsys, *model)


@pytest.mark.parametrize("command", ["evaluate", "report", "verify"])
def test_commands_on_no_dataset_say_how_to_make_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    assert "in9 generate --output" in refusal(capsys, command, "--dataset", tmp_path)
    assert "does not exist" in refusal(capsys, command, "--dataset", tmp_path / "nowhere")
    (tmp_path / "notes").write_text("mine")
    assert "is a file" in refusal(capsys, command, "--dataset", tmp_path / "notes")
    # The authors' archive, packed and unpacked, is what most people have first.
    for archive in ("bg.tar", "bg.tar.gz", "bg.tgz"):
        (tmp_path / archive).touch()
    (tmp_path / "bg.data/original/val").mkdir(parents=True)
    for released in ("bg.tar", "bg.tar.gz", "bg.tgz", "bg.data"):
        path = tmp_path / released
        refused = refusal(capsys, command, "--dataset", path)
        assert refused.endswith(f"in9 import --from {path} --output released"), refused


def test_a_manifest_of_another_kind_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for kind, version in (("other", 1), ("imagenet9-dataset", 7)):
        (tmp_path / "manifest.json").write_text(
            f'{{"format": "{kind}", "format_version": {version}}}'
        )
        assert f"'{kind}' version {version}" in refusal(capsys, "verify", "--dataset", tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    assert "If it is damaged, remove it" in refusal(capsys, "verify", "--dataset", tmp_path)
    for damaged in (b"", b"[", b"\xff\xfe\x00"):
        (tmp_path / "manifest.json").write_bytes(damaged)
        assert "holds no finished dataset" in refusal(capsys, "verify", "--dataset", tmp_path)
    with pytest.raises(ValueError, match="made by a newer release: flags later are not known"):
        DatasetConfig.from_flags({**DatasetConfig().flags(), "later": 1})


def flag_values() -> list[type[msgspec.Struct]]:
    """Lists the types of frozen values that commands make from flags."""
    for name in COMMANDS:
        find_command(name)
    for analysis in ANALYSES:
        assert analysis.parts.flags
    waiting, found = [msgspec.Struct], []
    while waiting:
        found += (subclasses := waiting.pop().__subclasses__())
        waiting += subclasses
    return [kind for kind in found if kind.__name__.endswith("Flags")]


def test_fields_of_values_are_flags() -> None:
    """Checks that no value has a field that no flag fills, and which would keep its default."""
    parsed = {"command", "given"}
    known = {flag.dest for command in COMMANDS for flag in flags_of(command)} | parsed
    kinds = flag_values()
    assert len(kinds) > 12
    for kind in kinds:
        fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
        assert set(fields) <= known, kind
        # A field without a default is a flag of each command whose flags have the others.
        needed = {name for name, field in fields.items() if field.required} - parsed
        assert any(needed <= {one.dest for one in flags_of(command)} for command in COMMANDS), kind


def test_flags_and_manifests_know_the_same_words() -> None:
    names = set()
    known = {flag.dest: flag for flag in flags_of("generate")}
    for kind in (SegmentConfig, ComposeConfig, DatasetConfig):
        for name, hint in get_type_hints(kind).items():
            if get_origin(hint) is Literal:
                with pytest.raises(ValueError, match=f"Invalid enum value 'other words'.*{name}"):
                    DatasetConfig.from_flags({**DatasetConfig().flags(), name: "other words"})
                if name != "origin":
                    assert known[name].choices == get_args(hint)
                names.add(name)
    assert names >= {"objects", "mixed_rand", "layers", "origin"}


def test_a_damaged_shard_is_named(dataset: Path) -> None:
    opened = dataset_in(dataset)
    path = dataset / "parquet" / "original" / "val-00000-of-00001.parquet"
    for _ in range(2):
        with pytest.raises(JobError, match=rf"{path} cannot be read .*; see: in9 verify"):
            next(opened.samples("val", 0, ORIGINAL))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"junk")


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b'{"model": 1}'])
def test_damaged_results_are_named(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(str(tmp_path))
    store.write("results/model/model.json", content)
    assert read_results(store, "model", Evaluated) == []
    (message,) = caplog.messages
    assert str(tmp_path / "results/model/model.json") in message


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as exited:
        main([*words])
    assert exited.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_the_core_and_all(capsys: pytest.CaptureFixture[str], command: str) -> None:
    core = help_of(capsys, command, "--help")
    every = help_of(capsys, command, "--help", "all")
    flags = [f for f in flags_of(command) if f.name.startswith("--") and not f.in_file]
    shown = [flag for flag in flags if f"\n  {flag.name} " in core]
    assert f"Example: in9 {command}" in core
    for name in ("--output", "--dataset"):
        assert (name in {flag.name for flag in shown}) == (name in {flag.name for flag in flags})
    if len(flags) > 30:
        assert 9 < len(shown) < 23
        wanted = {"--output", "--input", "--dry_run", "--config", "--taxonomy", "--publish"}
        wanted |= {"--fail_if"} if command == "run" else set()
        assert wanted <= {flag.name for flag in shown}
        assert f"More flags, {len(flags)} in all: in9 {command} --help all" in core
    else:
        assert shown == flags
    words = " ".join(every.split())
    for flag in flags:
        assert f"\n  {flag.name} " in every
        assert flag.full_help in words
        if flag.default_text and flag.default is not False:
            assert flag.full_help.endswith(f"(default: {flag.default_text})")
    keys = [flag for flag in flags_of(command) if flag.in_file]
    assert f"in9 {command} --help all" in core or not keys
    for key in keys:
        assert f"\n  {key.dest} " in every
        assert key.full_help in words
        assert f"{key.dest} {key.metavar}" not in core
        assert f"{key.name} " not in core + every


def test_a_bare_command_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert help_of(capsys) == help_of(capsys, "--help")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_as_wide_as_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    words = [command, "--help", "all"] if command else ["--help"]
    wide = help_of(capsys, *words)
    for columns, widest in (("60", 58), ("300", 100)):
        monkeypatch.setenv("COLUMNS", columns)
        shown = help_of(capsys, *words)
        lines = [line for line in shown.splitlines() if not line.startswith("Example: ")]
        # Lists of choices hold no space to break at.
        prose = [line for line in lines if not re.match(r" +--\w+ \[", line)]
        assert widest - 20 < max(map(len, prose)) <= widest
        assert (shown == wide) == (columns == "300")


def test_lines_are_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def run(*_: object) -> int:
        print("a line")
        seen.append((tmp_path / "file").read_text())
        return 0

    monkeypatch.setattr("pipeline.commands.cli.run_command", run)
    with (tmp_path / "file").open("w") as file:
        monkeypatch.setattr("sys.stdout", file)
        run_here("verify", "--dataset", tmp_path)
    assert seen == ["a line\n"]


def test_the_exit_code_counts_even_if_nobody_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> int:
        for line in range(3):
            print(line)
        return 3

    monkeypatch.setattr("pipeline.commands.cli.run_command", run)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as file:
        monkeypatch.setattr("sys.stdout", file)
        run_here("verify", "--dataset", tmp_path, code=3)


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert help_of(capsys, "--version") == f"in9 {metadata.version('imagenet9-pipeline')}\n"


def test_every_command_has_its_function() -> None:
    for name, command in COMMANDS.items():
        takes = inspect.signature(find_command(name)).parameters
        assert list(takes) == ["arguments", "rest"][: 1 + command.has_graph]


@pytest.mark.parametrize("command", [("report",), ("verify",), ("export", "--to", "exported")])
def test_readers_wait_for_neither_beam_nor_torch(
    small_run: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    shutil.copytree(small_run, tmp_path / "out")
    # `in9 report` must write the page, so the existing one goes.
    (tmp_path / "out" / "report.html").unlink()
    words = [word.replace("exported", str(tmp_path / "exported")) for word in command]
    code = (
        "import sys\n"
        "from pipeline.commands.cli import main\n"
        f"assert main([*{words!r}, '--dataset', {str(tmp_path / 'out')!r}]) == 0\n"
        "sys.exit(sorted({'apache_beam', 'torch'} & set(sys.modules)) or None)"
    )
    run_python(code)


def test_a_misspelt_flag_of_ours_is_answered_before_beam_is_imported() -> None:
    code = (
        "import sys\n"
        "from pipeline.commands.cli import main\n"
        "assert main(['run', '--runner', 'DirectRunner', '--ouput=x']) == 2\n"
        "sys.exit(sorted({'apache_beam', 'torch'} & set(sys.modules)) or None)"
    )
    done = run_python(code)
    assert done.stderr.splitlines() == ["in9 run: unknown flag --ouput; did you mean --output?"]


def test_a_failed_job_with_flags_of_beam_prints_one_line(
    small_sample: Path, tmp_path: Path
) -> None:
    flags = ("--segmenter", "python:builtins:print", "--direct_num_workers", "2")
    words = ["generate", "--input", str(small_sample), "--output", str(tmp_path / "out"), *flags]
    code = (
        "import os, sys\n"
        # Without this package, Beam logs a message when it is imported.
        "sys.modules['apitools'] = None\n"
        "from pipeline.commands.cli import main\n"
        f"assert main({words!r}) == 1\n"
        "os._exit(0)"
    )
    (line,) = run_python(code).stderr.splitlines()
    assert line.startswith("in9 generate: the job failed: ")


def test_help_waits_for_no_library() -> None:
    code = (
        "import sys\n"
        "from pipeline.commands.cli import main\n"
        "try:\n"
        "    main(['run', '--help'])\n"
        "except SystemExit:\n"
        "    pass\n"
        "sys.exit(sorted({'numpy', 'pyarrow', 'apache_beam', 'torch'} & set(sys.modules)) or None)"
    )
    done = run_python(code)
    assert done.stdout.startswith("in9 run: ")


@pytest.mark.parametrize("command", COMMANDS)
def test_no_flag_of_beam_is_a_misspelt_one_of_ours(command: str) -> None:
    parser = argparse.ArgumentParser(conflict_handler="resolve", add_help=False)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    of_beam = [name for action in parser._actions for name in action.option_strings]
    own = flags_of(command)
    assert "--num_workers" in of_beam
    # No flag of Beam has dashes, so dashes can be read as underscores in all flags.
    assert {underscored(name) for name in of_beam} <= set(of_beam)
    for name in set(of_beam) - {flag.name for flag in own}:
        refuse_near_misses(name, own)


@pytest.mark.parametrize(
    "flags",
    [
        ("train", "--variant", "mixed_ramd"),
        ("matrix", "--holdout", "0.5", "--variants", "original,mixed_ramd"),
        ("saliency", "--variant", "mixed_ramd"),
        ("report", "--columns", "original,mixed_ramd"),
    ],
)
def test_a_misspelt_variant_is_told_from_the_one_that_was_meant(
    flags: tuple[str, ...], dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *rest = flags
    assert "; did you mean mixed_rand?" in refusal(capsys, command, "--dataset", dataset, *rest)


def test_an_export_to_the_root_of_a_disk_is_refused_without_walking_it(
    dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def walk(*arguments: object, **options: object) -> NoReturn:
        raise AssertionError(f"walks {arguments}")

    monkeypatch.setattr(os, "walk", walk)
    assert "--to / is not empty" in refusal(capsys, "export", "--dataset", dataset, "--to", "/")
    release = dataset.parent / "release"
    (release / "original" / "val").mkdir(parents=True)
    refused = refusal(capsys, "import", "--from", release, "--output", dataset.parent)
    assert "is not empty and holds no dataset" in refused


LOUD = """
import logging, warnings
import numpy as np

def segment(image, box):
    warnings.warn("a library warns")
    logging.getLogger("library").warning("a library warns")
    mask = np.zeros(image.shape[:2], bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask
"""


@pytest.mark.parametrize("action", ["default", "error"])
def test_warnings_of_libraries_neither_reject_nor_reach_the_terminal(
    action: str, tiny_input: Path, tmp_path: Path
) -> None:
    pictures = pictures_of(tiny_input)
    for path in pictures:
        with Image.open(path) as picture:
            palette = picture.convert("P", palette=Image.Palette.ADAPTIVE)
        # Pillow warns of transparency in palettes.
        palette.save(path, "PNG", transparency=bytes(range(256)))
    (tmp_path / "loud.py").write_text(LOUD)
    folders = ("--input", tiny_input, "--output", tmp_path / "out")
    flags = ("--segmenter", "python:loud:segment", "--variants", "original", *ONE)
    # A new interpreter, because filters of warnings are set when it starts.
    command = (sys.executable, "-W", action, "-m", "pipeline", "generate", *folders, *flags)
    path = f"{ROOT}{os.pathsep}{tmp_path}"
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert f"val: {len(pictures)} images, {len(pictures)} accepted, 0 rejected" in done.stdout
    assert "warn" not in done.stderr.lower()


def test_a_new_command_takes_flags_from_a_file() -> None:
    assert "--config" in [flag.name for flag in flags_of("new")]
    assert all("--config" in [flag.name for flag in flags_of(name)] for name in COMMANDS)
