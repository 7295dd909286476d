"""Requests to Google Cloud Storage: the client, retries, and translation of errors.

The client library retries transient errors with growing pauses. This module adds what the library
leaves to its users: repeats of requests whose responses end early, and an OSError for every failure
(UsageError if there are no credentials).
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import google.auth.exceptions
import requests.adapters
from google.api_core.exceptions import Forbidden, GoogleAPIError, NotFound, PreconditionFailed
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

from pipeline.errors import UsageError
from pipeline.storage.file_kind import missing
from pipeline.storage.parallel import REQUESTS_IN_FLIGHT

_ATTEMPTS = 6

T = TypeVar("T")


class IncompleteError(Exception):
    """A response ended early, or its content does not have the announced checksum."""


_clients: dict[int, storage.Client] = {}
_clients_lock = threading.Lock()


def client() -> storage.Client:
    """Returns this process's client; each process has its own, because connections do not survive a
    fork."""
    with _clients_lock:
        if os.getpid() not in _clients:
            try:
                # Objects belong to no project, but unless a project is named, the library looks for
                # one.
                project = os.environ.get("GOOGLE_CLOUD_PROJECT", "none")
                new_client = storage.Client(project=project)
            except google.auth.exceptions.DefaultCredentialsError as error:
                raise UsageError(
                    "gs:// needs credentials: gcloud auth application-default login, or "
                    "GOOGLE_APPLICATION_CREDENTIALS"
                ) from error
            # The pool has a connection for every thread of every worker that may send a request.
            adapter = requests.adapters.HTTPAdapter(pool_maxsize=8 * REQUESTS_IN_FLIGHT)
            for scheme in ("http://", "https://"):
                new_client._http.mount(scheme, adapter)
            _clients[os.getpid()] = new_client
        return _clients[os.getpid()]


def with_retries(call: Callable[[], T], path: str) -> T:
    """Calls a function, up to `_ATTEMPTS` times, until its response does not end early. Raises
    OSError if the call fails."""
    for attempt in range(_ATTEMPTS):
        try:
            with translated(path):
                try:
                    return call()
                except requests.exceptions.ChunkedEncodingError as error:
                    raise IncompleteError(str(error)) from error
        except IncompleteError:
            time.sleep(0.1 * 2**attempt)
    raise ConnectionError(f"{path} could not be read: responses end early or are corrupted")


@contextlib.contextmanager
def translated(path: str) -> Iterator[None]:
    """Turns the library's errors into OSErrors, but an incomplete response into IncompleteError."""
    try:
        yield
    except NotFound as error:
        raise missing(path) from error
    except Forbidden as error:
        raise PermissionError(errno.EACCES, error.message, path) from error
    except PreconditionFailed as error:
        raise FileExistsError(f"{path} exists already, or has changed") from error
    except DataCorruption as error:
        raise IncompleteError(str(error)) from error
    except (GoogleAPIError, InvalidResponse, requests.RequestException) as error:
        raise ConnectionError(f"{path}: {type(error).__name__}: {error}") from error
    except google.auth.exceptions.GoogleAuthError as error:
        raise PermissionError(f"{path}: no access: {error}") from error
