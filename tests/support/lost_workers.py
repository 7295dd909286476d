"""Workers that kill themselves when they have just finished a call of a step, or that wait before.

The worker processes of an engine find `sitecustomize.py` in a folder of `lost_after_steps` when
they start, and import this module by it. In this folder, a file that has the name of a step is for
one loss. While there is a folder of this name, calls of the step wait in it for four seconds.
"""

import contextlib
import functools
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEPS = {
    "Identify": "pipeline.generate.graph:IdentifySources",
    "Segment": "pipeline.generate.segment:SegmentShard",
    "Compose": "pipeline.generate.compose:ComposeShard",
    "Move": "pipeline.generate.commit:MoveFiles",
    "RunModels": "pipeline.evaluate.model_stage:RunModels",
}
"""The steps that an engine's workers run."""
SUPPORT = Path(__file__).parent
_FOLDER = "IN9_TEST_LOSSES"


def lost_after_steps(folder: Path) -> dict[str, str]:
    """Returns environment variables of workers that are lost after the steps named in a folder."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import lost_workers; lost_workers.lose()\n")
    return {"PYTHONPATH": f"{SUPPORT.parents[1]}:{SUPPORT}:{folder}", _FOLDER: str(folder)}


def lose() -> None:
    """Lets this process kill itself after steps, if it is a worker."""
    if "--multiprocessing-fork" not in sys.orig_argv:
        return
    for name, place in STEPS.items():
        module, _, kind = place.partition(":")
        step = getattr(importlib.import_module(module), kind)
        step.process = _losing(Path(os.environ[_FOLDER], name), step.process)


def _losing(file: Path, process: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(process)
    def losing(*arguments: Any) -> Any:
        if file.is_dir():
            (file / str(os.getpid())).touch()
            time.sleep(4)
        outputs = [*process(*arguments)]
        # Only one worker can remove the file.
        with contextlib.suppress(OSError):
            file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return outputs

    return losing
