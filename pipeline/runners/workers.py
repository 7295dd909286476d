"""The workers of a job that are started by a command or by pools, as flags name them."""

import argparse
import dataclasses
import importlib.metadata
import shutil
import socket
from collections.abc import Sequence

from apache_beam.options.pipeline_options import (
    DirectOptions,
    PipelineOptions,
    StandardOptions,
)

from pipeline.errors import UsageError
from pipeline.runners.worker import read_secret

TESTED_BEAM = ("2.77.0",)
"""Versions of Beam whose internals this module is known to fit."""


@dataclasses.dataclass(frozen=True)
class Workers:
    """The workers of a job, and how they are started.

    Attributes:
      number: number of worker processes.
      command: words before the command of each worker; none start it on this machine.
      pools: addresses of worker pools, which start workers in turn; none to use `command`.
      secret: what the pools know, too.
      address: the address of this machine at which workers call back.
      seconds: time after which a worker that has not called back, or no longer answers, is given
        up.
    """

    number: int
    command: tuple[str, ...] = ()
    pools: tuple[str, ...] = ()
    secret: bytes = dataclasses.field(default=b"", repr=False)
    address: str = "localhost"
    seconds: float = 300


def workers_from_flags(
    arguments: argparse.Namespace, options: PipelineOptions, rest: Sequence[str]
) -> Workers | None:
    """Checks the flags of workers.

    Args:
      arguments: the parsed arguments.
      options: Beam's options.
      rest: flags for Beam, as the user wrote them.

    Returns:
      The workers; None if they are threads of this process, or another runner's.

    Raises:
      UsageError: a flag is missing or wrong.
    """
    command, pools = arguments.worker_command, arguments.worker_pools or ()
    direct, beam = options.view_as(DirectOptions), importlib.metadata.version("apache-beam")
    is_chosen = any(word.startswith("--direct_num_workers") for word in rest)
    has_any, has_secret = command is not None or bool(pools), bool(arguments.worker_secret)
    for is_wrong, why in (
        (
            not has_any and (has_secret or arguments.worker_timeout or arguments.callback_address),
            "--worker_secret, --worker_timeout and --callback_address go with --worker_command or "
            "--worker_pools",
        ),
        (command and pools, "--worker_command and --worker_pools exclude each other"),
        (
            has_any and options.view_as(StandardOptions).runner != "FnApiRunner",
            "--worker_command and --worker_pools need no --runner",
        ),
        (
            has_any and beam not in TESTED_BEAM,
            f"--worker_command and --worker_pools are tested with apache-beam "
            f"{', '.join(TESTED_BEAM)}, but this is {beam}; pip install "
            f"apache-beam=={TESTED_BEAM[-1]}",
        ),
        (
            command is not None and not (command and shutil.which(command[0])),
            f"--worker_command {' '.join(command or ())}: there is no such command",
        ),
        (
            command and not is_chosen,
            "--worker_command needs --direct_num_workers, the number of workers",
        ),
        (
            has_any and bool(pools) != has_secret,
            "--worker_pools needs --worker_secret, the file that the pools got with --secret, and "
            "nothing else does",
        ),
    ):
        if is_wrong:
            raise UsageError(why)
    if not has_any:
        return None
    return Workers(
        number=direct.direct_num_workers if is_chosen else len(pools),
        command=tuple(command or ()),
        pools=pools,
        secret=read_secret(arguments.worker_secret) if pools else b"",
        address=_own_address(arguments.callback_address),
        seconds=arguments.worker_timeout or Workers.seconds,
    )


def _own_address(named: str | None) -> str:
    """Returns the address at which this machine can be called: the one named, or its own name's.

    Raises UsageError if it is not an address of this machine, or only this machine can reach it.
    """
    address = named or socket.gethostname()
    try:
        # By its number, because other machines may not know the name.
        found = socket.gethostbyname(address)
        socket.create_server((found, 0)).close()
    except OSError as error:
        raise UsageError(
            f"--callback_address: {address} is no address of this machine ({error.strerror})"
        ) from error
    if named is None and found.startswith("127."):
        raise UsageError(
            f"this machine's name, {address}, is known to itself alone ({found}); name the address "
            "at which workers reach it with --callback_address"
        )
    return found
