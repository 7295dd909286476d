"""The parser of the command line: commands, their flags, and the layout of help."""

import argparse
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from importlib import metadata
from typing import Any, NoReturn

from pipeline.analyses import ANALYSES
from pipeline.analyses.analysis import Command
from pipeline.commands.flags import CORE, sections_of
from pipeline.errors import UsageError, did_you_mean

_MANY = 30
"""If a command has more flags than this, `--help` shows only the flags in `CORE`."""

_WIDTH = 100
"""Width of help in columns, in a file and at most."""

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
        "write a dataset in the released layout (a folder for each class, masks as .npy), or the "
        "table of its pictures, to be filled with answers",
        "in9 export --dataset out --to bg_challenge",
        "finished:run_export",
    ),
    "import": Command(
        "turn data in the released layout into a dataset; finds the true backgrounds",
        "in9 import --from bg_challenge.tar.gz --output released",
        "import_released:run_import",
    ),
    "verify": Command(
        "check a dataset against its manifest; prints a line for each fault (exit code 1)",
        "in9 verify --dataset out",
        "finished:run_verify",
    ),
}
"""Commands by name, in the order in which `in9 --help` lists them."""


class _ShowHelp(argparse.Action):
    """The action of `--help` and `--help all`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        hidden = [] if values == "all" else [a for a in parser._actions if a.dest not in CORE]
        if len(parser._actions) > _MANY and hidden:
            for action in hidden:
                action.help = argparse.SUPPRESS
            more = f"More flags, {len(parser._actions) - 1} in all: {parser.prog} --help all"
            parser.epilog = f"{more}\n{parser.epilog}"
        parser.print_help()
        parser.exit()


class _ShowVersion(argparse.Action):
    """The action of `--version`. It looks the version up only when the flag is given."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"in9 {metadata.version('imagenet9-pipeline')}")
        parser.exit()


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
        command = re.match(r"argument COMMAND: invalid choice: '(.*?)'", message)
        if command and (hint := did_you_mean(command[1], COMMANDS)):
            message = f"there is no command {command[1]!r}{hint}"
        raise UsageError(f"{message} (see: {self.prog} --help)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses as argparse does, but treats dashes in the names of flags as underscores.

        The namespace also has `given`, the names of the flags that were given, sorted.
        """
        words = [underscored(word) for word in (sys.argv[1:] if args is None else args)]
        parsed, rest = super().parse_known_args(words, namespace)
        # A default says nothing, but the same value, if it is given, may contradict a recipe.
        parsed.given = tuple(sorted({w[2:].partition("=")[0] for w in words if w[:2] == "--"}))
        return parsed, rest


def underscored(word: str) -> str:
    """Replaces dashes in the name of a flag by underscores; returns other words unchanged.

    >>> underscored("--dry-run"), underscored("--split=my-split"), underscored("-h")
    ('--dry_run', '--split=my-split', '-h')
    """
    flag, equals, value = word.partition("=")
    if not flag.startswith("--"):
        return word
    return f"--{flag[2:].replace('-', '_')}{equals}{value}"


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of the whole command line."""
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
        action=_ShowVersion,
        nargs=0,
        default=argparse.SUPPRESS,
        help="show the version",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(
            name,
            help=command.text,
            description=f"in9 {name}: {command.text}.",
            epilog=f"Example: {command.example}\n{_RUNNER_NOTE * command.has_graph}{_EXIT_NOTE}",
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
            action=_ShowHelp,
            nargs="?",
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )
        groups: dict[str, argparse._ActionsContainer] = {"": subparser}
        for title, _, flags in sections_of(name):
            if title not in groups:
                groups[title] = subparser.add_argument_group(title)
            for flag in flags:
                options = {**flag._asdict(), "help": flag.full_help}
                options = {key: value for key, value in options.items() if value is not None}
                groups[title].add_argument(options.pop("name"), **options)
    return parser
