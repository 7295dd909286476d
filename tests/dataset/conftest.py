"""A dataset that several modules read or damage."""

from pathlib import Path

import pytest
from runs import ONE, SHARDS, keys, made_once, run_in9


@pytest.fixture(scope="session")
def in_tars(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset in several shards with tars only. Tests must not write into it."""
    small = ("--segmenter", "box", "--image_size", 64, *keys(resize=64), *SHARDS, *ONE)
    command = ("generate", "--input", small_sample, "--formats", "webdataset", *small, "--output")
    return made_once(tmp_path_factory, "in-tars", lambda out: run_in9(*command, out))
