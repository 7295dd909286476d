"""Tries all faults, and prints tried and handled by kind; exit code 1 if one is not handled.

scripts/faults                        # minutes
scripts/faults --only 'strays|names'  # kinds that hold this
"""

from __future__ import annotations

import argparse
import concurrent.futures
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import fault_documents
import fault_states
from fault_documents import STRICT
from fault_inputs import all_inputs
from fault_lab import Lab, Outcome, Trial, describe, table
from fault_states import DAMAGED_STATES


def all_faults(lab: Lab, states: Sequence[str] = DAMAGED_STATES) -> list[Trial]:
    """All faults: of input, and of these of `fault_lab.STATES`; "finished" must be one."""
    families = (*fault_states.FAMILIES, *fault_documents.FAMILIES)
    return [*all_inputs(), *(fault for family in families for fault in family(lab, states))]


def kind_of_trial(trial: Trial) -> str:
    """Row of the table that a trial belongs to, or its group."""
    return str(getattr(trial, "kind", f"pictures as {getattr(trial, 'place', '')}"))


SAMPLE_STATES = ("finished", "killed in compose", "killed in publish")


def sample(lab: Lab) -> list[Trial]:
    """The first fault of each group of kinds; of documents that all depends on, of each kind."""

    def group_of(trial: Trial) -> str:
        kind = kind_of_trial(trial)
        return kind if kind.endswith(STRICT) else kind.partition(":")[0]

    trials = all_faults(lab, SAMPLE_STATES)
    return list({group_of(trial): trial for trial in reversed(trials)}.values())[::-1]


def try_all(trials: list[Trial], labs: list[Lab]) -> list[Outcome]:
    """Tries them, in as many threads as there are labs; says how far it is."""
    waiting = iter(enumerate(trials))
    found: dict[int, list[Outcome]] = {}

    def work(lab: Lab) -> None:
        for number, trial in waiting:
            found[number] = trial(lab)
            if sys.stderr.isatty():
                print(f"\r{len(found)} of {len(trials)}", end="", file=sys.stderr)

    with concurrent.futures.ThreadPoolExecutor(len(labs)) as pool:
        for done in [pool.submit(work, lab) for lab in labs]:
            done.result()
    return [outcome for number in sorted(found) for outcome in found[number]]


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="kinds that this expression is found in")
    parser.add_argument("--sample", action="store_true", help="what the tests try")
    parser.add_argument("--quiet", action="store_true", help="the table alone")
    parser.add_argument("--processes", type=int, default=2, help="that work at a time (2)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="in9-faults-") as folder:
        labs: list[Lab] = []
        for number in range(arguments.processes):
            (place := Path(folder) / str(number)).mkdir()
            labs.append(Lab(place, labs[0] if labs else None))
        trials = (sample if arguments.sample else all_faults)(labs[0])
        trials = [each for each in trials if re.search(arguments.only, kind_of_trial(each))]
        outcomes = try_all(trials, labs)
    unhandled = [outcome for outcome in outcomes if outcome.faults]
    if unhandled and not arguments.quiet:
        print("\n\n".join(describe(outcome) for outcome in unhandled), end="\n\n")
    print(table(outcomes))
    return int(bool(unhandled))


if __name__ == "__main__":
    sys.exit(main())
