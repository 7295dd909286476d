"""Terraform providers that serve their schemas and do nothing else.

`terraform validate`, and `terraform test` with mocked providers, ask a provider only for the
schemas of its resources. The real providers come from a registry; this module serves the same names
and types (provider_schema.json) from this process. The protocol is Protocol Buffers over
gRPC: https://github.com/hashicorp/terraform/blob/main/docs/plugin-protocol/tfplugin5.proto
"""

import json
import os
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

SCHEMAS = json.loads(Path(__file__).with_name("provider_schema.json").read_text())
_NESTING = {"single": 1, "list": 2}


def _varint(number: int) -> bytes:
    low, high = number & 127, number >> 7
    return bytes([low | 128]) + _varint(high) if high else bytes([low])


def _field(number: int, value: int | bytes | str) -> bytes:
    """Encodes a field of a message: a number, or bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _attribute(name: str, of: dict[str, Any]) -> bytes:
    flags = (of.get(kind, False) for kind in ("required", "optional", "computed"))
    return (
        _field(1, name)
        + _field(2, json.dumps(of["type"]))
        + b"".join(_field(number, int(flag)) for number, flag in enumerate(flags, 4))
    )


def _block(of: dict[str, Any]) -> bytes:
    attributes = (_attribute(name, each) for name, each in of["attributes"].items())
    nested = (
        _field(1, name)
        + _field(2, _block(each["block"]))
        + _field(3, _NESTING[each["nesting_mode"]])
        + _field(4, each.get("min_items", 0))
        + _field(5, each.get("max_items", 0))
        for name, each in of["block_types"].items()
    )
    return b"".join(_field(2, each) for each in attributes) + b"".join(
        _field(3, each) for each in nested
    )


def _schema(of: dict[str, Any]) -> bytes:
    return _field(1, of["version"]) + _field(2, _block(of["block"]))


def _provider(of: dict[str, Any]) -> bytes:
    resources = of["resource_schemas"].items()
    return _field(1, _schema(of["provider"])) + b"".join(
        _field(2, _field(1, name) + _field(2, _schema(each))) for name, each in resources
    )


class _Answers(grpc.GenericRpcHandler):
    """Answers a request for the schema with it, and any other request with an empty message."""

    def __init__(self, schema: bytes) -> None:
        self._schema = schema

    def service(self, details: Any) -> Any:
        _, service, method = details.method.split("/")
        if service != "tfplugin5.Provider":
            return None
        answer = self._schema if method == "GetSchema" else b""
        return grpc.unary_unary_rpc_method_handler(lambda request, context: answer)


@contextmanager
def providers() -> Iterator[dict[str, str]]:
    """Serves all providers of the schemas; yields the variable by which Terraform finds them."""
    servers, addresses = [], {}
    for name, schema in SCHEMAS["provider_schemas"].items():
        server = grpc.server(futures.ThreadPoolExecutor(4))
        server.add_generic_rpc_handlers((_Answers(_provider(schema)),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        addresses[name] = {
            "Protocol": "grpc",
            "ProtocolVersion": 5,
            "Pid": os.getpid(),
            "Test": True,
            "Addr": {"Network": "tcp", "String": f"127.0.0.1:{port}"},
        }
    try:
        yield {"TF_REATTACH_PROVIDERS": json.dumps(addresses)}
    finally:
        for server in servers:
            server.stop(None)
