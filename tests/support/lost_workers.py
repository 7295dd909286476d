"""Workers that kill themselves when they have just finished a call of a step, or that wait before.

The worker processes of an engine find `sitecustomize.py` in a folder of `lost_after_steps` when
they start, and import this module by it. In this folder, a file that has the name of a step is for
one loss. While there is a folder of this name, calls of the step wait in it.
"""

import contextlib
import functools
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEPS = {"Move": b"MoveFiles", "RunModels": b"RunModels"}
"""The steps of workers that act on what others see, and the names of their classes."""
SUPPORT = Path(__file__).parent
_FOLDER = "IN9_TEST_LOSSES"


def lost_after_steps(folder: Path) -> dict[str, str]:
    """Returns environment variables of workers that are lost after the steps named in a folder."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text("import lost_workers; lost_workers.lose()\n")
    return {"PYTHONPATH": f"{SUPPORT.parents[1]}:{SUPPORT}:{folder}", _FOLDER: str(folder)}


def lose() -> None:
    """Lets this process kill itself after steps, if it is a worker."""
    if "--multiprocessing-fork" in sys.orig_argv:
        from pipeline.runtime import workers

        workers.run_call = functools.partial(_losing, workers.run_call)


def _losing(run_call: Callable[..., Any], call: Any, peers: int) -> Any:
    names = [name for name, kind in STEPS.items() if kind in call.step]
    files = [Path(os.environ[_FOLDER], name) for name in names]
    for file in files:
        while file.is_dir():
            (file / str(os.getpid())).touch()
            time.sleep(0.05)
    answer = run_call(call, peers)
    for file in files:
        # Only one worker can remove the file.
        with contextlib.suppress(OSError):
            file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
    return answer
