"""Turns flags into the work of models: what each analysis plans."""

from __future__ import annotations

import argparse

from pipeline.analyses import ANALYSES
from pipeline.commands.evaluation_flags import evaluation_from_flags
from pipeline.dataset.config import DatasetConfig
from pipeline.evaluate.work import Work
from pipeline.storage.store import Store
from transforms.taxonomy import Taxonomy


def works_from_flags(
    arguments: argparse.Namespace, store: Store, config: DatasetConfig, taxonomy: Taxonomy
) -> dict[str, Work]:
    """Makes the works from flags, which are checked against each other and the dataset.

    Args:
      arguments: the parsed arguments of a command of the main job.
      store: the dataset folder.
      config: the dataset's configuration.
      taxonomy: the dataset's taxonomy.

    Returns:
      The works by name of their analysis, in order; none for `generate`.

    Raises:
      UsageError: a flag is wrong.
    """
    if arguments.command == "generate":
        return {}
    evaluation = evaluation_from_flags(arguments, store, config, taxonomy)
    plans = (
        (one.name, one.parts.plan(arguments, evaluation, config, taxonomy)) for one in ANALYSES
    )
    return {name: work for name, work in plans if work is not None}
