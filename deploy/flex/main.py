"""Entry point of the Flex template's launcher: `in9 run` with the template's parameters.

The launcher reads standard error. A line of text becomes an entry of severity INFO in the job's
log, but a line of JSON, as written here, has the severity that it names:
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
    """A standard error that writes a log entry for each line.

    `in9` writes warnings there, and the error with which it ends.

    Args:
      stream: the stream that the launcher reads.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._unfinished = ""

    def write(self, text: str) -> int:
        """Writes an entry for each complete line; returns the length of the text."""
        *lines, self._unfinished = (self._unfinished + text).split("\n")
        for line in filter(str.strip, lines):
            entry = {
                "severity": "WARNING" if line.startswith(_WARNING) else "ERROR",
                "message": line,
                "timestamp": datetime.datetime.now(datetime.UTC).isoformat(),
            }
            self._stream.write(json.dumps(entry) + "\n")
        return len(text)

    def flush(self) -> None:
        """Flushes the launcher's stream."""
        self._stream.flush()


def arguments(flags: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Returns the arguments of the command; workers use this image unless the flags name one."""
    image = environment.get("IN9_IMAGE")
    names_image = any(flag.split("=")[0] == _IMAGE for flag in flags)
    return ["run", *flags, *([f"{_IMAGE}={image}"] if image and not names_image else [])]


if __name__ == "__main__":
    sys.stderr = LogEntries(sys.stderr)
    # Parameters are all flags, and keys of the file of --config.
    code = main(arguments(sys.argv[1:], os.environ), takes_keys=True)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Ends at once, even if a thread is still at work, because the launcher waits for this process,
    # and whoever launched the job for the launcher.
    os._exit(code)
