"""Kills work in the middle: before a change of a file, or a worker that has just finished a call.

    python killing.py STEP MARK COMMAND...

starts a worker that kills itself when it has just finished a call of a step. Only the first worker
that can make the folder MARK does so.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

STEPS = {
    "List": "pipeline.generate.graph:ListSplits.process",
    "Segment": "pipeline.generate.segment:SegmentShard.process",
    "Plan": "pipeline.generate.plan:PlanSplit.process",
    "Compose": "pipeline.generate.compose:ComposeShard.process",
    "Prepare": "pipeline.generate.graph:prepare_step",
    "Move": "pipeline.generate.commit:MoveFiles.process",
    "Finish": "pipeline.generate.graph:finish_step",
    "FindDone": "pipeline.evaluate.model_stage:FindDone.process",
    "RunModels": "pipeline.evaluate.model_stage:RunModels.process",
    "SummarizeModel": "pipeline.evaluate.model_stage:SummarizeModel.process",
    "Report": "pipeline.report.write:write_results",
    "End": "pipeline.jobs.main_job:finish_job",
}
"""Steps of the main job, by the function that does their work."""


CHANGES = ("os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "open")


def killed_before_change(number: int, work: Callable[[], object]) -> bool:
    """Runs work in a process that is killed after `number` changes of files or folders.

    Returns whether it was killed before the work ended.
    """
    child = os.fork()
    if child == 0:
        remaining = iter(range(number))

        def look(event: str, arguments: tuple[Any, ...]) -> None:
            reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if event in CHANGES and not reads and next(remaining, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(look)
        try:
            work()
        finally:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def main() -> None:
    step, mark = sys.argv[1:3]
    target, _, method = STEPS[step].partition(":")[2].partition(".")
    module = __import__(STEPS[step].partition(":")[0], fromlist=[target])
    # Functions are pickled by the module that defines them.
    found: Any = getattr(module, target)
    holder, name = (found, method) if method else (sys.modules[found.__module__], target)
    original = getattr(holder, name)

    @functools.wraps(original)
    def killing(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        try:
            os.mkdir(mark)
        except FileExistsError:
            return result
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(holder, name, killing)
    from pipeline.runners import worker

    worker.work()


if __name__ == "__main__":
    main()
