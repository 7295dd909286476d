"""Stand-ins for the Dataflow service and for its workers.

The service records submitted jobs and answers as it is told. The worker runs a staged `pipeline.pb`
unchanged, in this process, with the options that Dataflow would pass.
"""

from __future__ import annotations

import http.server
import json
import re
import threading
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

_JOBS = re.compile(r"/v1b3/projects/([^/]+)/locations/([^/]+)/jobs(?:/([^/?]+))?(/\w+)?")


class DataflowStub:
    """A Dataflow service that only records jobs.

    Attributes:
      state: state of jobs submitted from now on.
      later: state of all jobs when they are next queried; None leaves them unchanged.
      messages: messages of every job, as (importance, text).
      counters: our counters in every job, by name.
    """

    def __init__(self) -> None:
        self.jobs: list[dict[str, Any]] = []
        self.state = "JOB_STATE_RUNNING"
        self.later: str | None = None
        self.messages: list[tuple[str, str]] = []
        self.counters: dict[str, int] = {}
        stub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self._answer(stub._post(self.path, body))

            def do_GET(self) -> None:
                self._answer(stub._get(self.path))

            def _answer(self, content: dict[str, Any] | None) -> None:
                data = json.dumps(content or {"error": {"code": 404, "message": "?"}}).encode()
                self.send_response(200 if content is not None else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Logs nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # Beam uses plain HTTP only with this host name.
        self.url = f"http://localhost:{self._server.server_address[1]}"

    def __enter__(self) -> DataflowStub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _post(self, path: str, body: bytes) -> dict[str, Any] | None:
        if path == "/token":
            return {"access_token": "none", "expires_in": 3600, "token_type": "Bearer"}
        match = _JOBS.match(path)
        if match is None:
            return None
        address = {"projectId": match[1], "location": match[2]}
        known = {**json.loads(body), **address, "id": f"job-{len(self.jobs)}"}
        self.jobs.append({**known, "currentState": self.state})
        return self._short(self.jobs[-1])

    def _get(self, path: str) -> dict[str, Any] | None:
        match = _JOBS.match(path)
        if match is None:
            return None
        if match[4] == "/metrics":
            return {"metrics": [self._metric(*c, t) for c in self.counters.items() for t in (0, 1)]}
        for job in self.jobs:
            job["currentState"] = self.later or job["currentState"]
        if match[4] == "/messages":
            time = "2020-01-01T00:00:00Z"
            entries = [
                {"id": str(i), "time": time, "messageImportance": level, "messageText": text}
                for i, (level, text) in enumerate(self.messages)
            ]
            return {"jobMessages": entries}
        if match[3]:
            entries = [self._short(job) for job in self.jobs if job["id"] == match[3]]
            return entries[0] if entries else None
        return {"jobs": [self._short(job) for job in self.jobs]}

    def _metric(self, name: str, value: int, tentative: int) -> dict[str, Any]:
        context = {"namespace": "in9", "step": "s1", **({"tentative": "true"} if tentative else {})}
        return {"name": {"origin": "user", "name": name, "context": context}, "scalar": value}

    def _short(self, job: dict[str, Any]) -> dict[str, Any]:
        names = ("id", "name", "projectId", "location", "currentState", "clientRequestId")
        return {name: job[name] for name in names if name in job}


def write_credentials(path: Path, token_uri: str) -> None:
    """Writes the key of a fictitious service account, whose tokens the stub issues."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {
        "type": "service_account",
        "project_id": "p",
        "private_key_id": "1",
        "private_key": pem.decode(),
        "client_email": "in9@p.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": token_uri,
    }
    path.write_text(json.dumps(account))


def run_staged(pipeline: bytes) -> None:
    """Runs a staged pipeline."""
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.portability import common_urns, python_urns
    from apache_beam.portability.api import beam_runner_api_pb2
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    proto = beam_runner_api_pb2.Pipeline.FromString(pipeline)
    for environment in proto.components.environments.values():
        assert environment.urn == common_urns.environments.DOCKER.urn
        environment.urn = python_urns.EMBEDDED_PYTHON
        environment.ClearField("payload")
        environment.ClearField("dependencies")
        environment.ClearField("resource_hints")
    FnApiRunner().run_via_runner_api(proto, PipelineOptions([])).wait_until_finish()
