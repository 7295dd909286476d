"""What the launcher of the Flex template runs: `in9 run` with the template's parameters."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from pipeline.commands.cli import run_process

_IMAGE = "--sdk_container_image"


def arguments(flags: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The command: workers are the image that this is in, unless the flags name another one."""
    image = environment.get("IN9_IMAGE")
    named = any(flag.split("=")[0] == _IMAGE for flag in flags)
    return ["run", *flags, *([f"{_IMAGE}={image}"] if image and not named else [])]


if __name__ == "__main__":
    sys.argv[1:] = arguments(sys.argv[1:], os.environ)
    run_process()
