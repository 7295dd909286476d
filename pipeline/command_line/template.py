"""The Dataflow Flex template of `in9 run`, from the flags of the command line.

`python -m pipeline.command_line.template --image NAME` prints the specification, which lies in a
bucket and names the image; `deploy/cloudbuild.yaml` puts it there.
https://cloud.google.com/dataflow/docs/guides/templates/configuring-flex-templates
"""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

from apache_beam.options.pipeline_options import WorkerOptions

from pipeline.command_line.flag_types import Words, boolean
from pipeline.command_line.parser import COMMANDS, flags_of

COMMAND = "run"

# A template only submits: it prints no plan.
_WITHOUT = frozenset({"dry_run"})

# Flags of Beam that the environment of a launch request has no field for.
_OF_BEAM = ("min_cpu_platform",)

_FOLDER = "^gs://[a-z0-9][a-z0-9._-]+[a-z0-9](/.*)?$"
_BOOLEAN = "^([Tt]rue|[Ff]alse)$"
_NUMBERS = {int: "^-?[0-9]+$", float: "^-?[0-9]+([.][0-9]+)?$"}
_COUNT = "[1-9][0-9]*"


def _alternatives(action: argparse.Action) -> tuple[str, ...]:
    """The words of a placeholder such as `all|N`; empty if it is not a choice."""
    text = action.metavar if isinstance(action.metavar, str) else ""
    words = tuple(text.split("|"))
    return words if len(words) > 1 or text == "N" else ()


def _regex(action: argparse.Action) -> str | None:
    """What a value looks like, as a POSIX expression; None if it can be anything."""
    if action.type is boolean:
        return _BOOLEAN
    if action.metavar in ("DIR", "FILE"):
        return _FOLDER
    if isinstance(action.type, Words):
        word = f"({'|'.join(action.type.known)})"
        return f"^{word}(,{word})*$"
    if action.type in _NUMBERS:
        return _NUMBERS[action.type]
    words = _alternatives(action)
    # Placeholders are in capitals, as N is; words that stand for themselves are not.
    if any(word.isupper() and word != "N" for word in words):
        return None
    parts = [_COUNT if word.isupper() else re.escape(word) for word in words]
    return f"^({'|'.join(parts)})$" if parts else None


def _kind(action: argparse.Action, required: bool) -> dict[str, Any]:
    """How the console asks for a value."""
    if action.type is boolean:
        return {"paramType": "BOOLEAN"}
    if action.metavar == "DIR":
        is_written = required or action.dest == "publish"
        return {"paramType": "GCS_WRITE_FOLDER" if is_written else "GCS_READ_FOLDER"}
    words = _alternatives(action)
    if words and not any(word.isupper() for word in words):
        return {
            "paramType": "ENUM",
            "enumOptions": [{"value": word, "label": word} for word in words],
        }
    if action.type in _NUMBERS or words == ("N",):
        return {"paramType": "NUMBER"}
    return {"paramType": "TEXT"}


def _default(action: argparse.Action) -> dict[str, str]:
    if action.default in (None, ()):
        return {}
    if action.type is boolean:
        return {"defaultValue": str(action.default).lower()}
    if isinstance(action.default, tuple):
        return {"defaultValue": ",".join(action.default)}
    return {"defaultValue": str(action.default)}


def _parameter(action: argparse.Action, group: str) -> dict[str, Any]:
    """A flag as a parameter: the same name, the help that `in9 run --help` gives."""
    name = _name(action)
    required = "(required)" in (action.help or "")
    regex = _regex(action)
    return {
        "name": name,
        "label": name.replace("_", " ").capitalize(),
        "helpText": f"--{name} {action.metavar or name.upper()}: {action.help}",
        "isOptional": not required,
        **({"regexes": [regex]} if regex else {}),
        **_kind(action, required),
        **_default(action),
        "groupName": group,
    }


def _name(action: argparse.Action) -> str:
    return action.option_strings[0].removeprefix("--")


def parameters() -> list[dict[str, Any]]:
    """The template's parameters, in the order of `in9 run --help`."""
    own = [
        _parameter(action, group.title or "")
        for group in flags_of(COMMAND)._action_groups
        for action in group._group_actions
        if action.option_strings
        and action.help != argparse.SUPPRESS
        and _name(action) not in _WITHOUT
    ]
    beam = argparse.ArgumentParser(add_help=False)
    WorkerOptions._add_argparse_args(beam)
    return own + [
        _parameter(action, "workers") for action in beam._actions if _name(action) in _OF_BEAM
    ]


def container_spec(image: str) -> dict[str, Any]:
    """The template itself, which a launch request names by its address: `ContainerSpec`.

    Args:
      image: name and tag, or digest, of the image that `deploy/Dockerfile` makes.
    """
    return {
        "image": image,
        "sdkInfo": {"language": "PYTHON"},
        "metadata": {
            "name": "ImageNet-9",
            "description": f"ImageNet-9 from your own images: {COMMANDS[COMMAND].text}.",
            "parameters": parameters(),
        },
    }


def main() -> None:
    """Prints the specification."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--image", metavar="NAME", required=True, help="that the template names")
    print(json.dumps(container_spec(parser.parse_args().image), indent=2))


if __name__ == "__main__":
    main()
