"""`in9 verify`: says what is wrong with a dataset."""

from __future__ import annotations

import argparse
import sys

from pipeline.dataset.folder import Dataset
from pipeline.dataset.latest import reading_store
from pipeline.dataset.manifest import MANIFEST
from pipeline.dataset.verify import verify


def run_verify(arguments: argparse.Namespace) -> int:
    """The command `verify`; returns the exit code, 1 if there are faults.

    Raises:
      UsageError: there is no finished dataset.
    """
    dataset = Dataset.open(reading_store(arguments.dataset))
    faults = 0
    for fault in verify(dataset):
        print(fault)
        faults += 1
    if faults:
        print(
            f"in9 verify: {faults} {'fault' if faults == 1 else 'faults'}; "
            "remove the files concerned and run the command that made the dataset again",
            file=sys.stderr,
        )
        return 1
    print(f"{len(dataset.manifest.files)} files agree with {MANIFEST}")
    return 0
