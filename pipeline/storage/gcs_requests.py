"""Requests to Google Cloud Storage: the client, what is tried again, and errors as those of files.

The client library retries what is worth retrying, with growing pauses; here is what it leaves
to its users: downloads that end early, and one kind of error for all that does not work.
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
    """A response that ended early."""


_clients: dict[int, storage.Client] = {}
_making = threading.Lock()


def client() -> storage.Client:
    """The client of this process: connections do not outlive a fork."""
    with _making:
        if os.getpid() not in _clients:
            try:
                # Objects belong to no project; without one, the library asks for its name.
                project = os.environ.get("GOOGLE_CLOUD_PROJECT", "none")
                made = storage.Client(project=project)
            except google.auth.exceptions.DefaultCredentialsError as error:
                raise UsageError(
                    "gs:// needs credentials: gcloud auth application-default login, or "
                    "GOOGLE_APPLICATION_CREDENTIALS"
                ) from error
            # As many connections as threads may ask at once, from all workers.
            adapter = requests.adapters.HTTPAdapter(pool_maxsize=8 * REQUESTS_IN_FLIGHT)
            for scheme in ("http://", "https://"):
                made._http.mount(scheme, adapter)
            _clients[os.getpid()] = made
        return _clients[os.getpid()]


def tried(call: Callable[[], T], path: str) -> T:
    """Makes a call again if what came was not whole."""
    for attempt in range(_ATTEMPTS):
        try:
            with translated(path):
                try:
                    return call()
                except requests.exceptions.ChunkedEncodingError as error:
                    raise IncompleteError(str(error)) from error
        except IncompleteError:
            time.sleep(0.1 * 2**attempt)
    raise ConnectionError(f"{path} could not be read: responses end early")


@contextlib.contextmanager
def translated(path: str) -> Iterator[None]:
    """Turns the library's errors into those of files."""
    try:
        yield
    except NotFound as error:
        raise missing(path) from error
    except Forbidden as error:
        raise PermissionError(errno.EACCES, error.message, path) from error
    except PreconditionFailed as error:
        raise FileExistsError(f"{path} is there already, or is another") from error
    except DataCorruption as error:
        raise IncompleteError(str(error)) from error
    except (GoogleAPIError, InvalidResponse, requests.RequestException) as error:
        raise ConnectionError(f"{path}: {type(error).__name__}: {error}") from error
    except google.auth.exceptions.GoogleAuthError as error:
        raise PermissionError(f"{path}: no access: {error}") from error
