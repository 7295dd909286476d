"""Tries all faults and prints how many are handled, by kind; exits with 1 if one is not.

scripts/faults                        # takes minutes
scripts/faults --only 'strays|names'  # kinds that match
"""

import argparse
import concurrent.futures
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import fault_documents
import fault_models
import fault_states
import fault_tables
from fault_inputs import all_inputs
from fault_lab import Lab, Outcome, Trial, describe, table
from fault_states import DAMAGED_STATES


def all_faults(lab: Lab, states: Sequence[str] = DAMAGED_STATES) -> list[Trial]:
    """Returns all faults of inputs and of these states, which must include "finished"."""
    modules = (fault_states, fault_documents, fault_models, fault_tables)
    families = [family for module in modules for family in module.FAMILIES]
    return [*all_inputs(), *(fault for family in families for fault in family(lab, states))]


def kind_of_trial(trial: Trial) -> str:
    """Returns the row of the table that a trial belongs to, or its group of rows."""
    return str(getattr(trial, "kind", f"pictures as {getattr(trial, 'place', '')}"))


def name_of_trial(trial: Trial) -> str:
    """Returns the kind of a trial followed by its name."""
    return f"{kind_of_trial(trial)}: {getattr(trial, 'name', '')}"


SAMPLE_STATES = ("finished", "killed in compose")
SAMPLE = (
    *("pictures as images", "pictures as masks", "pictures as scenes"),
    *("links and devices: image: pipe", "links and devices: annotation: link to zeros"),
    *("links and devices: image: link to a picture", "links and devices: image: link to nothing"),
    *("in place of files: --exclude .*: pipe", "in place of files: --input table.json: 12 GB"),
    *("finished: index/[*].parquet: pages", "in compose: .*index/[*].parquet: pages, in9 run"),
    *("power cut: .*: finished, zeros", "file and folder swapped: manifest.json"),
    *("strays: locks: .in9/lock/notes.txt", "strays: results/foreign/model.json b'{}'"),
    *("whole document: manifest.json: list, in9 report", "document: results/[*]/model.json: {}"),
    *("field, wrong type: manifest.json: shards.val", "field, path: manifest.json: files.0.path"),
    "field, number: manifest.json: shards.val.output = '10{9}'",
    *("field, path: layers/.*files.0.path.*in9 run", "field, text: results"),
    "field, missing: results/[*]/model.json",
    *("non-finite outputs: attack: masked", "non-finite outputs: probe"),
    *("errors without a message: segmenter", "errors without a message: saliency"),
    *("names in every encoding: input table, key: lone", "names in .*superclass: byte"),
    *("foreign tables: index/[*].parquet with no metadata, in9 run", "mutated tables: recipe: 0$"),
)
"""Regular expressions; the tests try the first fault that matches each of them."""


def sample(lab: Lab) -> list[Trial]:
    """Returns the faults that the tests try; raises LookupError if an expression matches none."""
    trials = {name_of_trial(trial): trial for trial in all_faults(lab, SAMPLE_STATES)}
    sampled = {}
    for expression in SAMPLE:
        name = next((name for name in trials if re.search(expression, name)), None)
        if name is None:
            raise LookupError(expression)
        sampled[name] = trials[name]
    return list(sampled.values())


def try_all(trials: list[Trial], labs: list[Lab]) -> list[Outcome]:
    """Runs trials in one thread for each lab; prints the faults that are not handled."""
    waiting = iter(enumerate(trials))
    outcomes: dict[int, list[Outcome]] = {}

    def work(lab: Lab) -> None:
        for number, trial in waiting:
            outcomes[number] = trial(lab)
            for outcome in outcomes[number]:
                if outcome.faults:
                    print(describe(outcome), end="\n\n", flush=True)
            if sys.stderr.isatty():
                print(f"\r{len(outcomes)} of {len(trials)}\r", end="", file=sys.stderr)

    with concurrent.futures.ThreadPoolExecutor(len(labs)) as pool:
        for done in [pool.submit(work, lab) for lab in labs]:
            done.result()
    return [outcome for number in sorted(outcomes) for outcome in outcomes[number]]


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="kinds that this expression is found in")
    parser.add_argument("--every", type=int, default=1, help="every Nth alone (1)")
    parser.add_argument("--processes", type=int, default=2, help="that work at a time (2)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="in9-faults-") as folder:
        labs: list[Lab] = []
        for number in range(arguments.processes):
            (lab_folder := Path(folder) / str(number)).mkdir()
            labs.append(Lab(lab_folder, labs[0] if labs else None))
        trials = [
            each for each in all_faults(labs[0]) if re.search(arguments.only, kind_of_trial(each))
        ]
        outcomes = try_all(trials[:: arguments.every], labs)
    print(table(outcomes))
    return int(any(outcome.faults for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
