"""Tests the command line: wrong usage gets one helpful line and the right exit code."""

import argparse
import os
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Literal, NoReturn, get_args, get_origin, get_type_hints

import msgspec
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from PIL import Image
from runs import ONE, ROOT, pictures_of, refusal, run_here, run_program, run_python

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
from pipeline.errors import UsageError
from pipeline.storage.files import absolute


@pytest.fixture
def dataset(three_draws: Path, tmp_path: Path) -> Path:
    """A dataset that a test may change."""
    return Path(shutil.copytree(three_draws, tmp_path / "dataset"))


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


def test_what_links_and_tables_lead_to_may_not_be_replaced(tmp_path: Path, dataset: Path) -> None:
    inside = dataset / ".in9" / "staging" / "mine"
    inside.mkdir(parents=True)
    (tmp_path / "link").symlink_to(inside)
    command = ("generate", "--output", dataset, "--annotations", tmp_path / "link" / "Annotations")
    assert "where files are replaced and removed" in refusal(*command)
    with pytest.raises(UsageError, match="where files are replaced and removed"):
        in9.Generate(dataset, input=str(inside))
    row = f"image,class,boxes\n{inside / 'a.png'},n02085620,[1 1 9 9]\n"
    (tmp_path / "table.csv").write_text(row)
    (inside / "a.png").touch()
    command = ("generate", "--output", tmp_path / "dataset", "--overwrite", "config,rebuild")
    printed = run_here(
        *command, "--input", tmp_path / "table.csv", "--segmenter", "box", code=2
    ).err
    assert "where files are replaced and removed; move it" in printed
    (tmp_path / "lost").symlink_to(tmp_path / "gone")
    assert "which does not exist" in refusal("generate", "--output", tmp_path / "lost")


def test_a_home_folder_that_the_shell_left_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of/mine")
    assert absolute("~/out/") == "/home/of/mine/out"


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
    named = "Keys of the file of --config (docs/reference.md#keys-of-the-file): "
    assert (named in words) == bool(keys)
    assert not keys or named + ", ".join(key.dest for key in keys) in words
    for key in keys:
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
        assert main(["verify", "--dataset", str(tmp_path)]) == 0
    assert seen == ["a line\n"]


def test_the_exit_code_counts_even_if_nobody_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> int:
        print("a line\n" * 3)
        return 3

    monkeypatch.setattr("pipeline.commands.cli.run_command", run)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as file:
        monkeypatch.setattr("sys.stdout", file)
        run_here("verify", "--dataset", tmp_path, code=3)


@pytest.mark.parametrize(("closed", "full", "code"), [((0, 1, 2), 0, 0), ((), 1, 1), ((), 2, 0)])
def test_a_command_works_whatever_its_streams_are(
    closed: tuple[int, ...], full: int, code: int, three_draws: Path, tmp_path: Path
) -> None:
    """A new process, whose streams are closed, or lead to a full disk."""
    words = [sys.executable, "-m", "pipeline", "verify", "--dataset", str(three_draws)]
    files = ["/dev/full" if number == full else str(tmp_path / str(number)) for number in range(3)]
    actions = [
        (os.POSIX_SPAWN_CLOSE, number)
        if number in closed
        else (os.POSIX_SPAWN_OPEN, number, file, os.O_RDWR | os.O_CREAT, 0o600)
        for number, file in enumerate(files)
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = os.posix_spawn(sys.executable, words, environment, file_actions=actions)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
    assert not (tmp_path / "2").exists() or (tmp_path / "2").read_text().count("\n") == code


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert help_of(capsys, "--version") == f"in9 {metadata.version('imagenet9-pipeline')}\n"


_LIGHT = """
import contextlib, sys
from pipeline.commands.cli import main

with contextlib.suppress(SystemExit):
    main(["run", "--help"])
assert not {"numpy", "pyarrow", "apache_beam", "torch"} & set(sys.modules)
assert main(["run", "--runner", "DirectRunner", "--ouput=x"]) == 2
from pipeline.analyses.parts import Parts
Parts.plots = lambda *_: iter(())  # Drawing takes longer than all else.
for command in (["report"], ["verify"], ["export", "--to", sys.argv[2]]):
    assert main([*command, "--dataset", sys.argv[1]]) == 0
assert not {"apache_beam", "torch"} & set(sys.modules)
"""


def test_help_refusals_and_readers_wait_for_neither_beam_nor_torch(
    small_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_run, tmp_path / "out")
    # `in9 report` must write the page, so the existing one goes.
    (tmp_path / "out" / "report.html").unlink()
    done = run_python(_LIGHT, str(tmp_path / "out"), str(tmp_path / "exported"))
    assert done.stdout.startswith("in9 run: ")
    misspelt = "in9 run: unknown flag --ouput; did you mean --output?"
    assert done.stderr.splitlines()[0] == misspelt


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


def test_an_export_to_the_root_of_a_disk_is_refused_without_walking_it(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def walk(*arguments: object, **options: object) -> NoReturn:
        raise AssertionError(f"walks {arguments}")

    monkeypatch.setattr(os, "walk", walk)
    assert "--to / is not empty" in refusal("export", "--dataset", dataset, "--to", "/")
    release = dataset.parent / "release"
    (release / "original" / "val").mkdir(parents=True)
    refused = refusal("import", "--from", release, "--output", dataset.parent)
    assert "is not empty and holds no dataset" in refused


LOUD = """
import atexit, logging, warnings
import numpy as np
atexit.register(print, "a library cleans up")

def segment(image, box):
    warnings.warn("a library warns")
    logging.getLogger("library").warning("a library warns")
    mask = np.zeros(image.shape[:2], bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask
"""


@pytest.mark.parametrize("action", ["default", "error"])
def test_libraries_clean_up_and_their_warnings_neither_reject_nor_reach_the_terminal(
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
    done = run_program(*command, PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}")
    assert f"val: {len(pictures)} images, {len(pictures)} accepted, 0 rejected" in done.stdout
    assert done.stdout.endswith("a library cleans up\n")
    assert "warn" not in done.stderr.lower()
