"""The authors' own archive: fetched once into the user's cache, and checked before it is read."""

import os
from pathlib import Path

import requests

from pipeline.errors import JobError, UsageError
from pipeline.runtime.progress import live_bar
from pipeline.storage.files import absolute
from pipeline.storage.store import Store
from transforms.grabcut.cache import cache_folder, claim

PAPER = "paper:"
"""What `--from` takes for the archive: a scheme, because a folder may have any other name."""

PAPER_NAME = "backgrounds_challenge_data.tar.gz"
PAPER_SITE = "https://github.com/MadryLab/backgrounds_challenge/releases/download/data"
PAPER_BYTES = 279_581_133
PAPER_SHA256 = "2d66f571b0492986b347e37d2ee498ed34b58012af425d772dacda4422896fe7"
AUTHORS = "Kai Xiao, Logan Engstrom, Andrew Ilyas and Aleksander Madry"


def is_archive(path: str) -> bool:
    """Returns whether a file is the authors' archive, by its size and SHA-256."""
    file = Store.at(path)
    return file.size("") == PAPER_BYTES and file.digest("") == PAPER_SHA256


def find_archive() -> str:
    """Returns the path of the authors' archive, which is fetched unless it is there.

    IN9_RELEASED may name another place: the address or path of the file, or of its folder.

    Raises:
      UsageError: something else is there.
      JobError: the server does not send the whole file. What it has sent is kept, and the next
        call asks for the rest.
    """
    place = os.environ.get("IN9_RELEASED") or PAPER_SITE
    source = place if place.endswith(".gz") else f"{place.rstrip('/')}/{PAPER_NAME}"
    is_address = source.startswith(("http://", "https://"))
    path = str(cache_folder() / PAPER_NAME) if is_address else absolute(source)
    if is_address and not is_archive(path):
        _fetch(source, path)
    if not is_archive(path):
        file = Store.at(path)
        raise UsageError(
            f"IN9_RELEASED: there is no {path}"
            if (size := file.size("")) is None
            else f"{source} is not the authors' archive of {PAPER_BYTES:,} bytes, SHA-256 "
            f"{PAPER_SHA256}, but has {size:,} bytes, SHA-256 {file.digest('')}; use --from FILE"
        )
    return path


def _fetch(address: str, path: str) -> None:
    # Nobody else may put a link in the place of the part.
    claim(cache_folder())
    part = Path(f"{path}.part")
    try:
        with (
            part.open("ab") as file,
            requests.get(
                address,
                # A server that packs what it sends cannot send the rest of a file.
                headers={"Range": f"bytes={file.tell()}-", "Accept-Encoding": "identity"},
                stream=True,
                timeout=30,
            ) as answer,
            live_bar("fetch", PAPER_BYTES // 10**6, "MB") as advance,
        ):
            # 416: the part is all that there is, because a run was killed before it renamed it.
            if answer.status_code != 416:
                answer.raise_for_status()
                # 206: the rest. A server that knows no ranges sends everything once more.
                advance(file.truncate(file.tell() if answer.status_code == 206 else 0) / 10**6)
                # Of a piece that is cut off, nothing is kept.
                for data in answer.iter_content(1 << 16):
                    advance(file.write(data) / 10**6)
    except requests.RequestException as error:
        status = "" if error.response is None else f" {error.response.status_code}"
        raise JobError(
            f"{address} was not fetched whole ({type(error).__name__}{status}): "
            + "run the same command again to go on, or " * (not status)
            + f"fetch the file elsewhere ({PAPER_BYTES:,} bytes, SHA-256 {PAPER_SHA256}) and name "
            "it by --from"
        ) from error
    part.replace(path)
