"""The specification of the Dataflow Flex template of `in9 run`, made from its flags.

`python -m pipeline.commands.template --image NAME` prints it, and `deploy/cloudbuild.yaml` puts it
into a bucket.
https://cloud.google.com/dataflow/docs/guides/templates/configuring-flex-templates
"""

import argparse
import json
import re

from pipeline.commands.flags import sections_of
from pipeline.commands.parser import COMMANDS
from pipeline.runtime.flag_types import Flag, Section, WordListParser, boolean, count

COMMAND = "run"

# A template only submits a job, so it cannot print a plan, and coordinates no workers.
_WITHOUT = frozenset({"dry_run", "dask"})

# Flags of Beam that are parameters of the template, too. The scheduled request sets the first three
# in its `environment` (deploy/flex/launch.json.tmpl).
OF_BEAM = Section(
    "workers",
    (COMMAND,),
    (
        Flag("--num_workers", "N", "workers to begin with (by Dataflow)", type=count),
        Flag("--network", "NETWORK", "network of the workers (default)"),
        Flag("--dataflow_kms_key", "KEY", "Cloud KMS key of the job's data (Google's own)"),
        Flag("--min_cpu_platform", "PLATFORM", "oldest processor of the workers (by Dataflow)"),
    ),
)

_FOLDER = "^gs://[a-z0-9][a-z0-9._-]+[a-z0-9](/.*)?$"
_BOOLEAN = "^([Tt]rue|[Ff]alse)$"
_NUMBERS = {int: "^-?[0-9]+$", float: "^-?[0-9]+([.][0-9]+)?$"}
_COUNT = "[1-9][0-9]*"
_SIDE = f"(all|{_COUNT})"
_PLACEHOLDERS = {"N": _COUNT, "FxB": f"{_SIDE}x{_SIDE}"}
"""What may be typed for an alternative that is not the word itself."""


def _alternatives(flag: Flag) -> tuple[str, ...]:
    """Returns a flag's choices, or the alternatives in its placeholder.

    The alternatives in `all|N` are ("all", "N"). `N` alone counts as an alternative, too; any other
    placeholder without `|` has none.
    """
    words = flag.choices or tuple(flag.metavar.split("|"))
    return words if len(words) > 1 or flag.metavar == "N" else ()


def _regex(flag: Flag) -> str | None:
    """Returns a POSIX regular expression that a flag's values must match; None if unchecked."""
    if flag.type is boolean:
        return _BOOLEAN
    if flag.metavar in ("DIR", "FILE"):
        return _FOLDER
    if isinstance(flag.type, WordListParser):
        word = f"({'|'.join(flag.type.known)})"
        return f"^{word}(,{word})*$"
    if flag.type in _NUMBERS:
        return _NUMBERS[flag.type]
    words = _alternatives(flag)
    # Words with capitals, such as N, are placeholders; other words stand for themselves.
    if any(not word.islower() and word not in _PLACEHOLDERS for word in words):
        return None
    parts = [_PLACEHOLDERS.get(word) or re.escape(word) for word in words]
    return f"^({'|'.join(parts)})$" if parts else None


def _kind(flag: Flag) -> dict[str, object]:
    """Returns the fields of a parameter that decide how the console asks for its value."""
    if flag.type is boolean:
        return {"paramType": "BOOLEAN"}
    if flag.metavar == "DIR":
        is_written = flag.is_required or flag.dest == "publish"
        return {"paramType": "GCS_WRITE_FOLDER" if is_written else "GCS_READ_FOLDER"}
    words = _alternatives(flag)
    if words and all(word.islower() for word in words):
        return {
            "paramType": "ENUM",
            "enumOptions": [{"value": word, "label": word} for word in words],
        }
    if flag.type in _NUMBERS or words == ("N",):
        return {"paramType": "NUMBER"}
    return {"paramType": "TEXT"}


def _parameter(flag: Flag, group: str) -> dict[str, object]:
    """Converts a flag to a parameter of the same name, with the help text of `in9 run`."""
    regex, default = _regex(flag), flag.default_text
    return {
        "name": flag.dest,
        "label": flag.dest.replace("_", " ").capitalize(),
        "helpText": f"{flag.name} {flag.metavar}: {flag.full_help}",
        "isOptional": not flag.is_required,
        **({"regexes": [regex]} if regex else {}),
        **_kind(flag),
        **({"defaultValue": default} if default else {}),
        "groupName": group,
    }


def parameters() -> list[dict[str, object]]:
    """Returns the template's parameters.

    They are the flags of `in9 run`, in the order of its help, and then those of `OF_BEAM`.
    """
    return [
        _parameter(flag, title)
        for title, _, flags in (*sections_of(COMMAND), OF_BEAM)
        for flag in flags
        if flag.dest not in _WITHOUT
    ]


def container_spec(image: str) -> dict[str, object]:
    """Returns the template, which is a `ContainerSpec` in JSON.

    A launch request names the address at which the template is stored.

    Args:
      image: name, with tag or digest, of an image that was built from `deploy/Dockerfile`.
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
    parser.add_argument("--image", metavar="NAME", required=True, help="image of the launcher")
    print(json.dumps(container_spec(parser.parse_args().image), indent=2))


if __name__ == "__main__":
    main()
