"""Tests how command lines and files of flags are parsed, and which are refused."""

import os
from contextlib import nullcontext
from pathlib import Path

import pytest
from gcs import BUCKET
from runs import refusal

from pipeline.commands.command_line import COMMANDS, flags_as, parse_command_line, refuse_cleared
from pipeline.commands.flags import flags_of
from pipeline.errors import UsageError, did_you_mean
from pipeline.inputs.layout import InputFlags
from pipeline.runtime.flag_types import KEYS, comma_separated, statement
from pipeline.storage.files import absolute
from pipeline.storage.store import Store


def test_dashes_in_flags_are_underscores() -> None:
    words = ["run", "--output=my-out", "--dry-run", "--per-class", "min", "--direct-num-workers=2"]
    arguments, rest = parse_command_line(words)
    assert (arguments.output, arguments.dry_run, arguments.per_class) == ("my-out", True, "min")
    assert rest == ["--direct_num_workers=2"]


def config_of(tmp_path: Path, text: str) -> str:
    path = tmp_path / "flags.toml"
    path.write_text(text)
    return str(path)


def test_what_it_says_to_write_is_taken(tmp_path: Path) -> None:
    for name, value in (("jpeg_quality", "90"), ("terms", 'C:\\new "x" ä'), ("min_visible", "0.5")):
        with pytest.raises(UsageError) as refused:
            parse_command_line(["generate", "--output=out", f"--{name}", value])
        text = str(refused.value).partition(": write ")[2].removesuffix(" there")
        arguments, _ = parse_command_line(["generate", "--config", config_of(tmp_path, text)])
        assert str(getattr(arguments, name)) == value
        taken, _ = parse_command_line(["generate", f"--{name}={value}"], takes_keys=True)
        assert getattr(taken, name) == getattr(arguments, name)


def test_run_has_few_flags() -> None:
    assert sum(not flag.in_file for flag in flags_of("run")) <= 50
    assert {flag.dest for name in COMMANDS for flag in flags_of(name) if flag.in_file} == KEYS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_a_file_of_its_own_flags(tmp_path: Path, command: str) -> None:
    flags = [flag for flag in flags_of(command) if flag.metavar in ("DIR", "DIR|TAR")]
    path = config_of(tmp_path, "".join(f'{flag.dest} = "{flag.dest}"\n' for flag in flags))
    words = ["list"] if command == "models" else []
    arguments, _ = parse_command_line([command, *words, "--config", path])
    assert all(getattr(arguments, flag.dest) == str(tmp_path / flag.dest) for flag in flags)
    line = refusal(command, *words, "--config", config_of(tmp_path, "configs = 1"))
    assert line.startswith(f"in9 {command}: --config {path}: unknown flag --configs; did you mean")


SHARED = """
split = ["train", "val"]
models = "resnet50"
max-box = 0.5
own-background = true
limit = 3
grid = "100"
fail_if = ["bg_gap>0.1", "original<0.5"]
direct_num_workers = 8
streaming = true
no_wait_until_finish = false
experiments = ["a", "b"]

[generate]
max_box = 0.7
experiments = "c"

[evaluate]
precision = "bf16"

[verify]
dataset = "data/out"
"""


def test_a_file_is_shared_by_commands_and_the_command_line_replaces_it(tmp_path: Path) -> None:
    path = config_of(tmp_path, SHARED)
    words = ["--fail-if", "bg_gap>0", "--own_background=false", "--direct_num_workers", "1"]
    arguments, rest = parse_command_line(["run", "--limit=4", f"--config={path}", *words])
    assert (arguments.split, arguments.models) == (("train", "val"), ("resnet50",))
    assert (arguments.max_box, arguments.limit, arguments.precision) == (0.5, 4, "fp32")
    assert (arguments.own_background, arguments.fail_if) == (False, ["bg_gap>0"])
    assert rest == ["--streaming", "--experiments=a", "--experiments=b", *words[-2:]]
    arguments, rest = parse_command_line(["generate", "--config", path])
    assert (arguments.split, arguments.max_box, arguments.limit) == (("train", "val"), 0.7, 3)
    assert arguments.own_background
    assert rest == ["--direct_num_workers=8", "--streaming", "--experiments=c"]
    arguments, _ = parse_command_line(["evaluate", "--config", path])
    assert (arguments.models, arguments.precision) == (("resnet50",), "bf16")
    assert arguments.fail_if == ["bg_gap>0.1", "original<0.5"]
    arguments, _ = parse_command_line(["attack", "--config", path])
    assert arguments.grid == (100, 100)
    arguments, rest = parse_command_line(["verify", "--config", path])
    assert (arguments.dataset, rest) == (str(tmp_path / "data/out"), [])
    for command in set(COMMANDS) - {"models"}:
        parse_command_line([command, "--config", path])
    # What is wrong in the table of a command is told by that command alone.
    parse_command_line(["generate", "--config", config_of(tmp_path, "[verify.dataset]\na = 1")])


def test_paths_in_a_file_are_relative_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jobs" / "v1").mkdir(parents=True)
    (tmp_path / "jobs" / "kinds.csv").touch()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    text = """
    output = "../out"
    input = "/data"
    masks = "~/masks"
    exclude = "gs://bucket/list.txt"
    taxonomy = "kinds.csv"
    results = ["v1", "/v2", "Ann=v1"]
    from = "archive.tar"
    """
    path = config_of(tmp_path / "jobs", text)
    arguments, _ = parse_command_line(["run", "--config", "../jobs/flags.toml"])
    assert arguments.output == str(tmp_path / "jobs" / ".." / "out")
    assert arguments.taxonomy == str(tmp_path / "jobs" / "kinds.csv")
    assert (arguments.input, arguments.exclude) == ("/data", "gs://bucket/list.txt")
    assert arguments.masks == os.path.expanduser("~/masks")
    arguments, _ = parse_command_line(["report", "--config", path])
    v1 = str(tmp_path / "jobs" / "v1")
    assert arguments.results == (v1, "/v2", f"Ann={v1}")
    arguments, _ = parse_command_line(["import", "--config", path])
    assert vars(arguments)["from"] == str(tmp_path / "jobs" / "archive.tar")
    path = config_of(tmp_path / "jobs", 'from = "paper:"')
    arguments, _ = parse_command_line(["import", "--config", path])
    assert vars(arguments)["from"] == "paper:"
    for value, expected in (("v1", tmp_path / "jobs" / "v1"), ("resnet50", "resnet50")):
        path = config_of(tmp_path / "jobs", f'baseline = "{value}"')
        arguments, _ = parse_command_line(["run", "--config", path])
        assert arguments.baseline == str(expected)


@pytest.mark.usefixtures("server")
def test_paths_in_a_remote_file_are_relative_to_it() -> None:
    jobs = f"gs://{BUCKET}/jobs"
    Store.at(jobs).write("monthly.toml", b'input = "images"\nmasks = "/local"\noutput = "../out"')
    arguments, _ = parse_command_line(["generate", "--config", f"{jobs}/monthly.toml"])
    assert flags_as(InputFlags, arguments).input == f"{jobs}/images"
    assert arguments.masks == "/local"
    assert absolute(arguments.output) == f"gs://{BUCKET}/out"


@pytest.mark.parametrize("command", COMMANDS)
def test_no_flag_takes_nothing_for_its_default(command: str) -> None:
    words = [command, "list"] if command == "models" else [command]
    for flag in flags_of(command):
        if flag.type is comma_separated:
            line = refusal(*words, f"{flag.name}= ,")
            assert f"argument {flag.name}: expected words separated by commas, got ' ,'" in line
        if flag.type is not statement and flag.name.startswith("--"):
            line = refusal(*words, f"{flag.name}=")
            assert (f"{flag.name} is a key" if flag.in_file else f"argument {flag.name}: ") in line


@pytest.mark.parametrize("place", ["out/results/a_model", "published/v-0123456789ab"])
def test_a_baseline_may_be_what_the_command_may_replace(place: str, tmp_path: Path) -> None:
    (tmp_path / place).mkdir(parents=True)
    folders = ("--output", str(tmp_path / "out"), "--publish", str(tmp_path / "published"))
    for flag in ("--baseline", "--masks"):
        arguments, _ = parse_command_line(["run", *folders, flag, str(tmp_path / place)])
        with nullcontext() if flag == "--baseline" else pytest.raises(UsageError, match="lies in"):
            refuse_cleared(arguments)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        *(("--modles", "--models"), ("--ouput", "--output"), ("--imput", "--input")),
        *(("--deivce", "--device"), ("--splti", "--split"), ("--sede", "--seed")),
        *(("--sed", "--seed"), ("--kep", "--keep"), ("--limits", "--limit")),
        *(("--batch", "--batch_size"), ("--taxonmy", "--taxonomy"), ("-output", "--output")),
        *(("--model", "--models"), ("--image_sise", "--image_size")),
    ],
)
def test_a_misspelt_flag_is_told_from_all_others(word: str, meant: str) -> None:
    assert did_you_mean(word, [flag.name for flag in flags_of("run")]) == f"; did you mean {meant}?"


@pytest.mark.parametrize("word", ["--nope", "--cpu", "--no", "--foo", "--dir", "--verbose", "--"])
def test_a_word_that_is_like_no_flag_suggests_none(word: str) -> None:
    names = [*(flag.name for flag in flags_of("run")), "--zone", "--gpu", "--to"]
    assert did_you_mean(word, names) == ""


def test_no_letter_that_is_left_out_hides_a_flag() -> None:
    names = [flag.name for flag in flags_of("run") if len(flag.name) > len("--abc")]
    for name in names:
        for at in range(2, len(name)):
            assert did_you_mean(name[:at] + name[at + 1 :], names)
