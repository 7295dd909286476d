"""The state of a training after an epoch: all that going on needs, in one file."""

from __future__ import annotations

import io
from typing import Any

import torch

from pipeline.errors import JobError
from pipeline.storage.store import Store

STATE = "state.pth"
_FORMAT = "imagenet9 training"
_VERSION = 1


def write_state(store: Store, content: dict[str, Any]) -> None:
    """Writes the state: whole, or the last one stays.

    Args:
      store: the training's folder.
      content: tensors, numbers, text, and lists and dictionaries of them.
    """
    data = io.BytesIO()
    torch.save({"format": _FORMAT, "version": _VERSION, **content}, data)
    with store.create(STATE) as file:
        file.write(data.getbuffer())  # type: ignore[arg-type]


def read_state_file(store: Store) -> dict[str, Any] | None:
    """What `write_state` wrote, on the CPU; None if there is nothing.

    Raises:
      JobError: it cannot be read.
    """
    if not store.exists(STATE):
        return None
    path = store.path(STATE)
    try:
        with store.open(STATE) as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
        found = (content["format"], content["version"])
    except Exception as error:  # Whatever the bytes provoke.
        raise JobError(
            f"{path} cannot be read ({type(error).__name__}); begin anew with --overwrite"
        ) from error
    if found != (_FORMAT, _VERSION):
        raise JobError(
            f"{path} is {found[0]!r} of version {found[1]}, which is not read here; begin anew "
            "with --overwrite"
        )
    state: dict[str, Any] = content
    return state
