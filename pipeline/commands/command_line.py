"""The command line: commands, their flags and help, the `--config` file, and running a command.

A command's module is imported only when the command runs, so that `in9 verify`, for example, does
not wait for Beam and torch. Words that a command does not take are refused, and the message
suggests what was meant.
"""

import argparse
import json
import os
import pkgutil
import re
import shutil
import textwrap
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, NoReturn, TypeVar, cast

from pipeline.analyses import ANALYSES, Command
from pipeline.commands.flags import CORE, flags_of, sections_of
from pipeline.errors import UsageError, did_you_mean
from pipeline.runtime.flag_types import KEYS, Flag, as_given, text_of
from pipeline.runtime.machine import missing_to_compile
from pipeline.storage.files import absolute, files_of, is_below, is_remote, join, parent
from transforms.limits import load_nested

T = TypeVar("T")

_MANY = 30
"""If a command has more flags than this, `--help` shows only the flags in `CORE`."""

_WIDTH = 100
"""Width of help in columns, in a file and at most."""

_NEAR_MISS = 0.8
"""Similarity, as difflib's ratio (0 to 1), from which an unknown flag counts as a misspelling of
our flag. All of Beam's flags are less similar to ours than that."""

_KEYS_NOTE = """
Keys of the file of --config (docs/reference.md#keys-of-the-file): """
_RUNNER_NOTE = """
Flags that are not listed go to Apache Beam, such as --runner and --direct_num_workers."""
_EXIT_NOTE = """
Exit codes: 0 done, 1 the job failed, 2 wrong usage or unreadable input, 3 --fail_if holds,
4 it is open."""


def _commands_of(*, has_graph: bool) -> dict[str, Command]:
    return {
        analysis.name: analysis.command
        for analysis in ANALYSES
        if analysis.command and analysis.command.has_graph == has_graph
    }


COMMANDS: dict[str, Command] = {
    "run": Command(
        "make the dataset, evaluate models and write the report; skips what is done already",
        "in9 run --output out --input /data/imagenet --models resnet50,efficientnet_lite0",
        "run:run_main",
        has_graph=True,
    ),
    "generate": Command(
        "make the dataset only",
        "in9 generate --output out --input /data/imagenet --split val,train",
        "run:run_main",
        has_graph=True,
    ),
    **_commands_of(has_graph=True),
    "train": Command(
        "train a network on a variant; resumes where it was stopped",
        "in9 train --dataset out --variant mixed_rand --arch resnet18 --epochs 50",
        "train:run_train",
    ),
    **_commands_of(has_graph=False),
    "models": Command(
        "list the models that can be loaded, or store their weights in a folder",
        "in9 models fetch --models resnet50,hf:microsoft/resnet-50 --to weights",
        "models:run_models",
    ),
    "report": Command(
        "write tables and page from the results so far",
        "in9 report --dataset out",
        "finished:run_report",
    ),
    "export": Command(
        "write a dataset in the released layout (a folder for each class, masks as .npy) or "
        "Waterbirds', a recipe without pixels, a figure, or a table to be filled with answers",
        "in9 export --dataset out --to bg_challenge",
        "finished:run_export",
    ),
    "import": Command(
        "turn data in the released layout into a dataset, and find the true backgrounds; or add "
        "pictures from outside to a dataset",
        "in9 import --from backgrounds_challenge_data.tar.gz --output released",
        "import_released:run_import",
    ),
    "show": Command(
        "draw a photo in the paper's eight variants, with the answers of models to each",
        "in9 show photo.jpg --box 40,60,380,300 --to versions.png",
        "show:run_show",
    ),
    "verify": Command(
        "check a dataset against its manifest.json; prints a line for each fault (exit code 1)",
        "in9 verify --dataset out",
        "finished:run_verify",
    ),
}
"""Commands by name, in the order in which `in9 --help` lists them."""


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Formats help for the width of the terminal; examples stay on one line, to be copied."""

    def __init__(self, prog: str) -> None:
        # As argparse does, leaves two columns free.
        width = min(shutil.get_terminal_size((_WIDTH + 2, 24)).columns - 2, _WIDTH)
        super().__init__(prog, max_help_position=32, width=width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(
            line if line.startswith("Example: ") else textwrap.fill(line, width)
            for line in text.splitlines()
        )


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        chosen = re.match(r"argument (\S+): invalid choice: '(.*?)' \(choose from (.*)\)", message)
        hint = did_you_mean(chosen[2], re.findall(r"[^', ]+", chosen[3])) if chosen else ""
        if chosen and chosen[1] == "COMMAND" and hint:
            message = f"there is no command {chosen[2]!r}"
        for flag in flags_of(self.prog.removeprefix("in9 ")):
            if message == f"argument {flag.name}: expected one argument":
                message = f"argument {flag.name}: expected {flag.metavar}: {flag.help}"
        raise UsageError(f"{message}{hint} (see: {self.prog} --help)")

    def parse_known_args(self, args: Any = (), namespace: Any = None) -> Any:
        """Parses as argparse does, but treats dashes in the names of flags as underscores.

        The namespace also has `given`, the names of the flags that were given, sorted.
        """
        words = [underscored(word) for word in args]
        parsed, rest = super().parse_known_args(words, namespace)
        # A default says nothing, but the same value, if it is given, may contradict a recipe.
        parsed.given = tuple(sorted({w[2:].partition("=")[0] for w in words if w[:2] == "--"}))
        return parsed, rest


def underscored(word: str) -> str:
    """Replaces dashes in the name of a flag by underscores; returns other words unchanged.

    >>> underscored("--dry-run"), underscored("--split=my-split"), underscored("-h")
    ('--dry_run', '--split=my-split', '-h')
    """
    return re.sub(r"^--[^=]+", lambda name: f"--{name[0][2:].replace('-', '_')}", word)


def build_parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Builds the parser of the whole command line.

    If there are words, only the commands that they name get flags, which takes a while. The help of
    a command with many flags has all of them only if the words have `all`, as in `--help all`, and
    the version is looked up only if they ask for it.
    """
    parser = _Parser(
        prog="in9",
        description="Does a model look at the object, or at the background? ImageNet-9 from "
        "your own images: generate the variants, evaluate models.",
        epilog="Example: in9 run --output out    (the embedded sample)",
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"in9 {metadata.version('imagenet9-pipeline')}" if "--version" in words else "",
        help="show the version",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        keys = ", ".join(flag.dest for flag in flags_of(name) if flag.in_file)
        count = sum(not flag.in_file for flag in flags_of(name))
        is_cut = count >= _MANY and "all" not in words
        more = f"More flags, {count} in all: in9 {name} --help all\n" if is_cut else ""
        subparser = commands.add_parser(
            name,
            help=command.text,
            description=f"in9 {name}: {command.text}.",
            epilog=f"{more}Example: {command.example}\n{keys and _KEYS_NOTE + keys}"
            f"{_RUNNER_NOTE * command.has_graph}{_EXIT_NOTE}",
            allow_abbrev=False,
            formatter_class=_HelpFormatter,
            prog=f"in9 {name}",
            # The description names the command already.
            usage=argparse.SUPPRESS,
            add_help=False,
        )
        # Not listed in the help, because whoever reads the help already knows this flag.
        subparser.add_argument(
            *("-h", "--help"),
            action="help",
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )
        groups: dict[str, argparse._ActionsContainer] = {"": subparser}
        for title, _, flags in sections_of(name) if name in words or not words else ():
            if title not in groups:
                groups[title] = subparser.add_argument_group(title)
            for flag in flags:
                # Keys are flags to the parser, which reads a file as words of a command line.
                is_hidden = flag.in_file or (is_cut and flag.dest not in CORE)
                text = argparse.SUPPRESS if is_hidden else flag.full_help
                options = {**flag._asdict(), "help": text}
                groups[title].add_argument(options.pop("name"), **options)
    return parser


def check_rest(command: str, rest: Sequence[str]) -> None:
    """Refuses words that are neither the command's flags nor, if it runs a graph, Beam's."""
    own, (_, example, _, has_graph) = flags_of(command), COMMANDS[command]
    known = [as_given(flag.dest) for flag in own]
    advice = f"; example: {example} (see: in9 {command} --help all)"
    for flag in (flag_of(word) for word in rest if word.startswith("--")):
        if others := [one for one in COMMANDS if flag in {its.name for its in flags_of(one)}]:
            raise UsageError(
                f"this command has no {flag}, which is a {'key' if flag[2:] in KEYS else 'flag'} "
                f"of in9 {', '.join(others)}"
                f"{did_you_mean(flag, known, _NEAR_MISS) or advice}"
            )
        refuse_near_misses(flag, own)
    unknown = list(rest)
    if rest and has_graph:
        from pipeline.runners.beam_options import unknown_to_beam

        unknown, of_beam = unknown_to_beam(rest)
        known += of_beam
    if unknown and unknown[0].startswith("-"):
        flag = flag_of(unknown[0])
        raise UsageError(f"unknown flag {flag}{did_you_mean(flag, known) or advice}")
    if unknown:
        raise UsageError(f"unexpected argument {unknown[0]!r}{advice}")


def flag_of(word: str) -> str:
    """Returns the name of the flag in a word, without the value that may follow `=`."""
    return underscored(word).partition("=")[0]


def refuse_near_misses(flag: str, own: Iterable[Flag]) -> None:
    """Refuses a misspelt flag of this project without importing Beam, which is slow.

    Raises UsageError if the flag is a misspelling; the message names the flag that was meant.
    """
    if hint := did_you_mean(flag, (as_given(one.dest) for one in own), _NEAR_MISS):
        raise UsageError(f"unknown flag {flag}{hint}")


def flags_as(kind: type[T], arguments: argparse.Namespace) -> T:
    """Makes the frozen value of a type whose fields have the names of flags.

    Files and folders become absolute paths. Only commands see parsed arguments; what lies below
    them gets such values, whose types are defined where they are used.
    """
    # Imported late, because it imports NumPy, and help should not wait for that.
    from pipeline.storage.state_files import convert

    paths = {flag.dest for flag in flags_of(arguments.command) if flag.is_path}
    given = vars(arguments).items()
    return convert({n: absolute(v) if v and n in paths else v for n, v in given}, kind)


def check_device(device: str | None, otherwise: str, *, is_compiled: bool = False) -> None:
    """Refuses `--device cuda` on a machine without CUDA, and `--compile` without a compiler.

    Raises UsageError, which says why. `otherwise`, such as `train`, is what a CPU can do instead.
    """
    if device != "cuda" and not is_compiled:
        return
    import torch

    has_gpu = device != "cpu" and torch.cuda.is_available()
    if is_compiled and (missing := missing_to_compile(has_gpu)):
        raise UsageError(f"--compile needs {missing}: install it, or leave --compile out")
    if device == "cuda" and not has_gpu:
        why = (
            "this PyTorch was built without CUDA, so install one with it (https://pytorch.org)"
            if torch.version.cuda is None
            else "PyTorch finds no GPU, so check that nvidia-smi lists one"
        )
        raise UsageError(f"--device cuda: {why}, or leave --device out to {otherwise} on the CPU")


def refuse_keys(words: Sequence[str]) -> None:
    """Refuses flags that are keys of the file only; the message says what to write there."""
    keys = {flag.name for command in words[:1] for flag in flags_of(command) if flag.in_file}
    for word, following in zip(words, (*words[1:], ""), strict=False):
        if (flag := flag_of(word)) in keys:
            value = word.partition("=")[2] if "=" in word else following
            # TOML writes numbers like this, and texts as JSON does.
            is_number = re.fullmatch(r"(0|[1-9]\d*)(\.\d+)?", value)
            shown = value if is_number else json.dumps(value, ensure_ascii=False)
            raise UsageError(
                f"{flag} is a key of the file that --config names: write {flag[2:]} = {shown} there"
            )


def parse_command_line(
    words: Sequence[str], *, takes_keys: bool = False
) -> tuple[argparse.Namespace, list[str]]:
    """Parses a command line; returns the arguments, and the words that are flags of Beam.

    With `takes_keys`, it may have keys of the file, too, as flags. Raises UsageError if a word is
    wrong, or the `--config` file is unreadable or wrong.
    """
    parser = build_parser(words)
    if not takes_keys:
        refuse_keys(words)
    arguments, rest = parser.parse_known_args(words or ["--help"])
    command, *others = words
    if command != arguments.command:
        raise UsageError(f"flags stand behind the command: in9 {arguments.command} {command}")
    check_rest(command, rest)
    if arguments.config is not None:
        given_flags = {flag_of(word) for word in others}
        try:
            file_words = [
                word
                for word in _words_of_file(command, absolute(arguments.config))
                if flag_of(word) not in given_flags
            ]
            arguments, rest = parser.parse_known_args([command, *file_words, *others])
            check_rest(command, [word for word in rest if word in file_words])
        except UsageError as error:
            # A key is typed without dashes.
            message = re.sub(r"(?<=argument )--\w+", lambda name: as_given(name[0][2:]), str(error))
            raise UsageError(f"--config {arguments.config}: {message}") from error
    return arguments, rest


def _read(path: str) -> Mapping[str, object]:
    try:
        return dict(load_nested(tomllib.loads, files_of(path).read(path).decode()))  # noqa: TID251
    except OSError as error:
        raise UsageError(f"it cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"it is not valid TOML: {error}") from error


def _words_of_file(command: str, path: str) -> Iterator[str]:
    """Yields the words of a command line that stand for the keys of a file.

    Keys that stand in no table are for all commands, and each command skips what only others, or
    Beam, know. Those in the table of the command's name go before them.
    """
    content = {key.replace("-", "_"): value for key, value in _read(path).items()}
    tables = {name: value for name, value in content.items() if isinstance(value, dict)}
    for name in tables:
        if name not in COMMANDS:
            raise UsageError(f"[{name}] is no command of in9{did_you_mean(name, COMMANDS)}")
    own = {key.replace("-", "_"): value for key, value in tables.get(command, {}).items()}
    shared = {key: value for key, value in content.items() if key not in tables}
    flags = {flag.name: flag for flag in flags_of(command)}
    for key, value in {**shared, **own}.items():
        flag = f"--{key}"
        if key in ("config", "help"):
            raise UsageError(f"{flag} is only for the command line; leave it out of the file")
        if isinstance(value, dict):
            raise UsageError(f"[{command}.{key}] is a table; keys are flags of in9 {command}")
        # Beam's switches take no value, and a list is given by repeating the flag.
        values = value if isinstance(value, list) else [value]
        words = [flag] * value if isinstance(value, bool) else [f"{flag}={one}" for one in values]
        if flag in flags:
            yield f"{flag}={_beside(path, flags[flag], text_of(value))}"
        elif key in own or not _is_for_others(command, flag, words):
            yield from words


def _is_for_others(command: str, flag: str, words: list[str]) -> bool:
    """Returns whether a command skips a flag of a file, given by these words, as one of others."""
    is_ours = any(flag == known.name for one in COMMANDS for known in flags_of(one))
    if is_ours or COMMANDS[command].has_graph:
        return is_ours
    from pipeline.runners.beam_options import unknown_to_beam

    return not unknown_to_beam(words)[0]


def _beside(file: str, flag: Flag, text: str) -> str:
    """Returns the text of a value, in which paths that are relative are relative to the file.

    What may be something else is only a path if something is there.
    """
    kinds = {word for word in re.split(r"\W", flag.metavar) if word.isupper()} - {"LAB", "NAME"}
    is_word = text in flag.metavar.split("|") and not text.isupper()
    if is_word or not {"DIR", "FILE"} & kinds:
        return text
    paths = []
    for one in text.split(",") if "," in flag.metavar else [text]:
        lab, equals, named = one.rpartition("=") if "=DIR" in flag.metavar else ("", "", one)
        is_local = named and "://" not in named
        path = join(parent(file), os.path.expanduser(named)) if is_local else named
        is_path, files = kinds <= {"DIR", "FILE", "TAR"}, files_of(path)
        is_there = is_path or files.is_folder(path) or files.info(path)
        paths.append(lab + equals + path if is_there else one)
    return ",".join(paths)


def run_command(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Runs a parsed command; `rest` are the words that the parser did not know, flags for Beam."""
    command = arguments.command
    # Checked here because argparse would name a missing flag before a misspelt one.
    for flag in flags_of(command):
        if flag.is_required and not getattr(arguments, flag.dest):
            raise UsageError(f"{flag.name} {flag.metavar} is required (see: in9 {command} --help)")
    run = find_command(command)
    refuse_cleared(arguments)
    return run(arguments, rest) if COMMANDS[command].has_graph else run(arguments)


def refuse_cleared(arguments: argparse.Namespace) -> None:
    """Refuses files and folders to read that lie where the command removes files."""
    for flag in flags_of(arguments.command):
        value = getattr(arguments, flag.dest, None)
        # A baseline is among what jobs leave there: the results of a model, or a version.
        if flag.dest == "baseline" or (
            flag.dest != "models" and not {"DIR", "FILE"} & {*flag.metavar.split("|")}
        ):
            continue
        for word in value if isinstance(value, tuple) else (value,) if value else ():
            for path in _paths_of_entry(word) if flag.dest == "models" else (absolute(word),):
                for cleared in _cleared_folders(arguments, path):
                    if is_below(path, cleared):
                        raise UsageError(
                            f"{flag.name} {word} lies in {cleared}, where files are replaced and "
                            "removed; name a place outside of it"
                        )


def _paths_of_entry(entry: str) -> list[str]:
    """Lists the absolute paths that an entry of `--models` may name."""
    named = re.sub("^(probe|knn):", "", entry.rpartition(":=")[2])
    # Of a path with a * for seeds, the folder that they are in.
    texts = (re.sub(r"[^/]*\*.*", "", named.partition(mark)[2]) for mark in ("=", ":", "@"))
    return [
        absolute(t) for t in texts if is_remote(t) or (t and os.path.exists(os.path.expanduser(t)))
    ]


def _cleared_folders(arguments: argparse.Namespace, path: str) -> Iterator[str]:
    """Yields the folders in which a command removes files and above which a path may lie."""
    from pipeline.dataset.manifest import VERSION
    from pipeline.dataset.records import DATA_FOLDERS
    from pipeline.storage.store import WORK_FOLDER

    dataset = (*DATA_FOLDERS, "results", WORK_FOLDER)
    for name, folders in (("output", dataset), ("dataset", dataset), ("to", (WORK_FOLDER,))):
        if root := getattr(arguments, name, None):
            yield from (join(absolute(root), folder) for folder in folders)
    if (root := getattr(arguments, "publish", None)) and is_below(path, absolute(root)):
        names = files_of(root).folder_names(absolute(root))
        yield from (join(absolute(root), name) for name in names if VERSION.fullmatch(name))


def find_command(command: str) -> Callable[..., int]:
    return cast(
        Callable[..., int],
        pkgutil.resolve_name(f"pipeline.commands.{COMMANDS[command].function}"),
    )
