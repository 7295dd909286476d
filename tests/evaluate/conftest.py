"""A dataset with predictions that several modules read."""

import shutil
from pathlib import Path

import pytest
from runs import ONE, TINY_MODEL, made_once, run_in9


@pytest.fixture(scope="session")
def sharded(quick_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small pictures in some shards, with results of a tiny model. Tests must not change them."""

    def make(output: Path) -> None:
        shutil.copytree(quick_shards, output)
        printed = run_in9("evaluate", "--dataset", output, *TINY_MODEL, *ONE).stdout
        # There are too few pictures for a probe.
        cannot = "a probe cannot tell the class from these backgrounds, so a gap near 0 is no evid"
        assert cannot in printed

    return made_once(tmp_path_factory, "sharded", make)
