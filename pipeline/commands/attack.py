"""`in9 attack` and `run --attack`: from flags to the stage, and what is said of it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.analyses.attack.plan import Attacking, check_variants, open_grid
from pipeline.analyses.attack.stage import Attack
from pipeline.analyses.attack.tables import read_attacks
from pipeline.commands.evaluation_flags import evaluation_of_stored
from pipeline.commands.stage import StageJob, run_stage
from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.failures import read_failures, say_failures
from pipeline.evaluate.results import display_name, interval
from pipeline.report.text_tables import aligned
from pipeline.storage.store import Store


def attacking_from_flags(
    arguments: argparse.Namespace, store: Store, config: DatasetConfig
) -> Attacking:
    """Checks the flags of attack, or of run with --attack; arguments and errors as
    `evaluation_from_flags`."""
    evaluation = evaluation_of_stored(
        arguments, store, config, "an attack composes the stored pixels and feeds them as they are"
    )
    check_variants(config.compose.variants)
    of_run = arguments.command == "run"
    foregrounds, backgrounds = arguments.attack if of_run else arguments.grid
    return Attacking(
        evaluation=evaluation,
        foregrounds=foregrounds,
        backgrounds=backgrounds,
        early_stop=not of_run and arguments.early_stop,
    )


def run_attack(arguments: argparse.Namespace, rest: list[str]) -> int:
    """The command `attack`; arguments, exit code and errors as `run_stage`."""
    return run_stage(arguments, rest, _plan)


def _plan(arguments: argparse.Namespace, dataset: Dataset) -> StageJob:
    attacking = attacking_from_flags(arguments, dataset.store, dataset.manifest.config)
    # Images may be missing, too.
    open_grid(dataset, attacking)
    return StageJob(Attack(attacking, dataset.taxonomy), attacking.evaluation, say_attacks)


def say_attacks(store: Store, models: Sequence[str]) -> None:
    """The closing words of a job that attacked these entries of `--models`.

    Raises:
      JobError: none of them could be attacked.
    """
    dataset = Dataset.open(store).manifest.fingerprint
    attacks, stale = read_attacks(store, dataset)
    failed, failed_before = read_failures(store, dataset, "attack")
    stale += failed_before
    print(attack_table(attacks))
    if stale:
        print(f"attacks of an earlier dataset, so not in the tables: {', '.join(stale)}")
    say_failures(failed, models, "not attacked")


def attack_table(attacks: Sequence[Mapping[str, Any]]) -> str:
    """Attacked models in percent, the paper's label rule, with the size of the grid; aligned."""
    table = [["adversarial backgrounds, %", "challenge accuracy", "fooled", "grid", "forwards"]]
    for attack in attacks:
        rule = attack["rules"]["argmax_then_map"]
        grid = f"{attack['foregrounds']} x {attack['backgrounds']}"
        challenge, fooled = (
            "-"
            if rule[name] is None
            else interval(rule[name], rule[f"{part}_ci_low"], rule[f"{part}_ci_high"])
            for name, part in (("challenge_accuracy", "challenge"), ("fooled", "fooled"))
        )
        table.append([display_name(attack), challenge, fooled, grid, str(attack["forwards"])])
    return aligned(table)
