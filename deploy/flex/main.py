"""What the launcher of the Flex template runs: `in9 run` with the template's parameters.

The launcher reads what comes on standard error. A line of text becomes an entry of severity INFO in
the job's log; one of JSON, as it is made here, has the severity that it names:
https://cloud.google.com/dataflow/docs/guides/troubleshoot-templates
"""

from __future__ import annotations

import datetime
import io
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

from pipeline.commands.cli import main

_IMAGE = "--sdk_container_image"
_WARNING = "in9: WARNING"


class LogEntries(io.TextIOBase):
    """Standard error with an entry of the log for each line. What `in9` says there is a warning of
    its log, or why it ends.

    Args:
      stream: what the launcher reads.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._begun = ""

    def write(self, text: str) -> int:
        """Writes the lines that are whole; returns the length of the text."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in filter(str.strip, lines):
            entry = {
                "severity": "WARNING" if line.startswith(_WARNING) else "ERROR",
                "message": line,
                "timestamp": datetime.datetime.now(datetime.UTC).isoformat(),
            }
            self._stream.write(json.dumps(entry) + "\n")
        return len(text)

    def flush(self) -> None:
        """Hands on what has been written."""
        self._stream.flush()


def arguments(flags: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The command: workers are the image that this is in, unless the flags name another one."""
    image = environment.get("IN9_IMAGE")
    named = any(flag.split("=")[0] == _IMAGE for flag in flags)
    return ["run", *flags, *([f"{_IMAGE}={image}"] if image and not named else [])]


if __name__ == "__main__":
    sys.stderr = LogEntries(sys.stderr)
    code = main(arguments(sys.argv[1:], os.environ))
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # The launcher waits for this process, and the person for the launcher, until the polling of
    # its result times out: a thread that is still at work must not keep us.
    os._exit(code)
