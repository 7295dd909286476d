"""`in9 report`: writes tables, figures and page from existing results."""

from __future__ import annotations

import argparse

from pipeline.analyses import ANALYSES
from pipeline.dataset.card import notes_of
from pipeline.dataset.folder import Dataset
from pipeline.dataset.latest import writing_store
from pipeline.errors import UsageError, did_you_mean
from pipeline.jobs.publish import check_publishing, describe_published, publish
from pipeline.report import REPORT, write_report
from pipeline.report.write import write_tables
from pipeline.runtime.lock import TABLES_LOCK, held


def run_report(arguments: argparse.Namespace) -> int:
    """Runs `in9 report`; returns the exit code.

    Raises:
      UsageError: there is no finished dataset, it lacks a column that `--columns` names, or
        another flag is wrong.
      JobError: another process is writing the dataset's tables.
    """
    store = writing_store("dataset", arguments.dataset)
    publishing = check_publishing(store, arguments.publish, arguments.keep)
    dataset = Dataset.open(store)
    known = [column for analysis in ANALYSES for column in analysis.parts.columns(dataset)]
    for column in arguments.columns or ():
        if column not in known:
            hint = did_you_mean(column, known)
            raise UsageError(f"--columns {column}: the dataset has {', '.join(known)}{hint}")
    with held(store, TABLES_LOCK, wait=60) as tables:
        write_tables(Dataset.open(tables), arguments.columns or ())
    write_report(store, dataset.taxonomy, arguments.pictures, pdf=True)
    for note in notes_of(dataset.manifest):
        print(note)
    for analysis in ANALYSES:
        for line in analysis.parts.report(Dataset.open(store)):
            print(line)
    print(f"report: {store.path(REPORT)}")
    if publishing:
        print(describe_published(publishing.target, publish(publishing)))
    return 0
