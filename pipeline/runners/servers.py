"""Where the servers that Beam starts in a process listen, and what their calls pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import grpc


@contextlib.contextmanager
def servers_at(
    address: str,
    interceptors: Sequence[grpc.ServerInterceptor] = (),
    options: Sequence[tuple[str, Any]] = (),
) -> Iterator[None]:
    """Binds the servers that Beam starts during the block to one interface.

    Beam binds them to all interfaces, and they give any file of this user to whoever asks.

    Args:
      address: name or address of the interface.
      interceptors: what every call passes first.
      options: further options of the servers.
    """
    make = grpc.server

    def make_at(*arguments: Any, **named: Any) -> grpc.Server:
        for name, more in (("options", options), ("interceptors", interceptors)):
            named[name] = [*named.get(name, ()), *more]
        server = make(*arguments, **named)
        bind = server.add_insecure_port
        server.add_insecure_port = lambda port: bind(port.replace("[::]", address))
        return server

    grpc.server = make_at
    try:
        yield
    finally:
        grpc.server = make
