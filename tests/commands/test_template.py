"""Tests the Flex template's parameters against the command line and the service's types."""

import sys
from typing import Any

from google.cloud import dataflow_v1beta3
from runs import run_program

from pipeline.commands import template
from pipeline.commands.command_line import build_parser
from pipeline.commands.flags import flags_of
from pipeline.runners.beam_options import unknown_to_beam
from pipeline.runtime.flag_types import boolean


def parameters() -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in template.parameters()}


def test_every_flag_of_the_job_is_a_parameter() -> None:
    run = build_parser().parse_args(["run", "--output", "out"])
    left_out = {"command", "help", "dry_run", "given", "dask"}
    of_beam = {flag.dest for flag in template.OF_BEAM.flags}
    assert set(vars(run)) - left_out == set(parameters()) - of_beam
    assert unknown_to_beam([f"--{name}=1" for name in of_beam])[0] == []
    required = [name for name, entry in parameters().items() if not entry["isOptional"]]
    assert required == ["output"]


def test_defaults_pass_the_command_line() -> None:
    flags = []
    for name, entry in parameters().items():
        if "defaultValue" in entry:
            flags.append(f"--{name}={entry['defaultValue']}")
    parse = build_parser().parse_args
    given, default = (vars(parse(["run", "--output=o", *words])) for words in (flags, []))
    assert given | {"given": ()} == default | {"given": ()}


def test_the_service_reads_the_specification() -> None:
    kinds = dataflow_v1beta3.ParameterType
    image = "europe-west4-docker.pkg.dev/my-project/in9/in9:tag"
    done = run_program(sys.executable, "-m", "pipeline.commands.template", "--image", image)
    spec = dataflow_v1beta3.ContainerSpec.from_json(done.stdout, ignore_unknown_fields=False)
    assert spec.image == image
    assert spec.sdk_info.language == dataflow_v1beta3.SDKInfo.Language.PYTHON
    assert [entry.name for entry in spec.metadata.parameters] == list(parameters())
    entries = {entry.name: entry for entry in spec.metadata.parameters}
    for flag in flags_of("run"):
        kind = entries[flag.dest].param_type if flag.dest in entries else None
        # A switch is asked for as true or false, and choices are a menu.
        assert (kind == kinds.BOOLEAN) == (flag.type is boolean and flag.dest != "dry_run")
        assert (kind == kinds.ENUM) == bool(flag.choices)
        if flag.choices:
            options = [option.value for option in entries[flag.dest].enum_options]
            assert options == list(flag.choices)
    assert entries["output"].param_type == kinds.DEFAULT
