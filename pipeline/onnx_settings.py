"""What is written down of an ONNX graph, which itself says nothing of mean and std: `FILE.json`
beside it, else metadata properties of the graph."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from pipeline.storage.files import files_of


def settings_file(path: str) -> str:
    """The file beside a graph."""
    return f"{path}.json"


def read_settings(
    path: str, properties: Mapping[str, str], *, names: Collection[str], texts: Collection[str]
) -> tuple[Any, str]:
    """Settings as they are written, unchecked.

    Args:
      path: of the graph.
      properties: its metadata.
      names: of the settings; other properties, such as the exporter's, are none of ours.
      texts: those that are texts in metadata, where all others are JSON.

    Returns:
      (whatever the file beside the graph holds, else the properties by name; where that is).

    Raises:
      ValueError: no JSON.
      OSError: the file cannot be read.
    """
    beside = settings_file(path)
    files = files_of(beside)
    if files.info(beside) is not None:
        return json.loads(files.read(beside)), beside
    given = {
        name: text if name in texts else json.loads(text)
        for name, text in properties.items()
        if name in names
    }
    return given, f"metadata of {path}"
