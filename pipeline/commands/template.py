"""The specification of the Dataflow Flex template of `in9 run`, made from its flags.

`python -m pipeline.commands.template --image NAME` prints it, and `deploy/cloudbuild.yaml` puts it
into a bucket.
https://cloud.google.com/dataflow/docs/guides/templates/configuring-flex-templates
"""

import argparse
import json

from pipeline.commands.command_line import COMMANDS
from pipeline.commands.flags import sections_of
from pipeline.runtime.flag_types import Flag, Section, as_given, boolean

COMMAND = "run"

# A template only submits a job, so it cannot print a plan, and coordinates no workers.
_WITHOUT = frozenset({"dry_run", "dask"})

# Flags of Beam that are parameters of the template, too. The scheduled request sets the first three
# in its `environment` (deploy/flex/launch.json.tmpl).
OF_BEAM = Section(
    "workers",
    (COMMAND,),
    (
        Flag("--num_workers", "N", "workers to begin with (by Dataflow)"),
        Flag("--network", "NETWORK", "network of the workers (default)"),
        Flag("--dataflow_kms_key", "KEY", "Cloud KMS key of the job's data (Google's own)"),
        Flag("--min_cpu_platform", "PLATFORM", "oldest processor of the workers (by Dataflow)"),
    ),
)


def parameters() -> list[dict[str, object]]:
    """Returns the template's parameters, which have the names and help texts of flags.

    They are the flags of `in9 run`, in the order of its help, and then those of `OF_BEAM`. Their
    values are checked by the command line, in the launcher.
    """
    return [
        {
            "name": flag.dest,
            "label": flag.dest.replace("_", " ").capitalize(),
            "helpText": f"{as_given(flag.dest)} {flag.metavar}: {flag.full_help}",
            "isOptional": not flag.is_required,
            "groupName": title,
            **({"defaultValue": flag.default_text} if flag.default_text else {}),
            **({"paramType": "BOOLEAN"} if flag.type is boolean else {}),
            **(
                {
                    "paramType": "ENUM",
                    "enumOptions": [{"value": word, "label": word} for word in flag.choices],
                }
                if flag.choices
                else {}
            ),
        }
        for title, _, flags in (*sections_of(COMMAND), OF_BEAM)
        for flag in flags
        if flag.dest not in _WITHOUT
    ]


def main() -> None:
    """Prints the template, which is a `ContainerSpec` in JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--image",
        metavar="NAME",
        required=True,
        help="image of the launcher with tag or digest, built from deploy/Dockerfile",
    )
    template = {
        "image": parser.parse_args().image,
        "sdkInfo": {"language": "PYTHON"},
        "metadata": {
            "name": "ImageNet-9",
            "description": f"ImageNet-9 from your own images: {COMMANDS[COMMAND].text}.",
            "parameters": parameters(),
        },
    }
    print(json.dumps(template, indent=2))


if __name__ == "__main__":
    main()
