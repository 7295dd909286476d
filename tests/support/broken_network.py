"""A proxy that injects network faults in front of an object store."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

FAULTS = ("503", "429", "reset", "slow", "truncated")


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores errors: the proxy resets connections on purpose."""


class FaultProxy:
    """Forwards requests to a store and injects faults into some of them.

    A seeded generator draws the fault of each request. Timing decides which requests are hit, but
    not how many.
    """

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target).netloc
        self._share = 0.0
        self._random = random.Random(0)
        self._lock = threading.Lock()
        self.requests = 0
        self.harmed: Counter[str] = Counter()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Else a body waits 40 ms for the acknowledgement of its headers.
            disable_nagle_algorithm = True

            def _any(self) -> None:
                proxy._handle(self)

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _any

            def log_message(self, *_: object) -> None:
                """Logs nothing."""

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FaultProxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @contextlib.contextmanager
    def harming(self, share: float) -> Iterator[None]:
        """Injects faults into this share of the requests while the block runs."""
        self._share = share
        try:
            yield
        finally:
            self._share = 0.0

    def _draw(self) -> str:
        with self._lock:
            self.requests += 1
            if self._random.random() >= self._share:
                return ""
            fault = self._random.choice(FAULTS)
            self.harmed[fault] += 1
            return fault

    def _handle(self, request: http.server.BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        fault = self._draw()
        if fault in ("503", "429"):
            self._answer(request, int(fault), {}, b"")
            return
        if fault == "reset" and self._random.random() < 0.5:
            request.close_connection = True  # The store never sees the request.
            request.connection.close()
            return
        if fault == "slow":
            time.sleep(0.4)
        connection = http.client.HTTPConnection(self._target, timeout=60)
        try:
            headers = {k: v for k, v in request.headers.items() if k.lower() != "connection"}
            connection.request(request.command, request.path, body, headers)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if fault == "reset":
            request.close_connection = True  # The store has acted, but nobody learns of it.
            request.connection.close()
            return
        kept = ("content-type", "location", "x-goog-", "content-range", "range", "etag", "x-http-")
        response_headers = {k: v for k, v in response.getheaders() if k.lower().startswith(kept)}
        if "Location" in response_headers:
            # The later requests of an upload session must come through the proxy too.
            response_headers["Location"] = response_headers["Location"].replace(
                f"http://{self._target}", self.url
            )
        self._answer(
            request, response.status, response_headers, content, truncated=fault == "truncated"
        )

    def _answer(
        self,
        request: http.server.BaseHTTPRequestHandler,
        status: int,
        headers: dict[str, str],
        content: bytes,
        *,
        truncated: bool = False,
    ) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        if request.command != "HEAD" and status not in (204, 304):
            request.send_header("Content-Length", str(len(content)))
        if truncated:
            content = content[: len(content) // 2]
            request.close_connection = True
            request.send_header("Connection", "close")
        request.end_headers()
        request.wfile.write(content)
