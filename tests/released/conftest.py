"""An export that several test modules share."""

from pathlib import Path

import pytest
from runs import made_once, run_here


@pytest.fixture(scope="session")
def export(sample_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export of the sample. Tests must not change it."""

    def make(target: Path) -> None:
        run_here("export", "--dataset", sample_run, "--to", target)

    return made_once(tmp_path_factory, "export", make)
