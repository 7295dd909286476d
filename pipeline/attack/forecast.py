"""`in9 attack --dry_run`: how long an attack takes, from two batches of every model."""

from __future__ import annotations

import contextlib
import sys
import time

import torch

from pipeline.attack.arrays import GridModel, load_backgrounds, stream_cutouts
from pipeline.attack.chunks import Chunks
from pipeline.attack.plan import AttackGrid, Attacking, open_grid
from pipeline.dataset.folder import Dataset
from pipeline.errors import ModelError
from pipeline.evaluate.plan import model_identity
from pipeline.evaluate.predict import Predictor
from pipeline.evaluate.resident import free_memory, load_checked, put_on_device
from pipeline.memory import keep_freed_memory
from pipeline.runner.progress import duration
from transforms.adversarial import Labels
from transforms.scoring import labels_of_outputs
from transforms.taxonomy import Taxonomy

_BATCHES = 2


def forecast_attack(dataset: Dataset, attacking: Attacking, taxonomy: Taxonomy) -> None:
    """Prints what an attack would do; writes nothing.

    Args:
      dataset: finished.
      attacking: what to attack.
      taxonomy: of the labels.

    Raises:
      UsageError, JobError: as the attack would.
    """
    keep_freed_memory()
    evaluation = attacking.evaluation
    grid = open_grid(dataset, attacking)
    foregrounds, backgrounds = len(grid.foregrounds), len(grid.backgrounds)
    what = "all images" if grid.is_full else "a sample"
    print(
        f"{evaluation.split}: {foregrounds} foregrounds x {backgrounds} backgrounds ({what}) = "
        f"{foregrounds * backgrounds} forwards a model"
    )
    print(f"dry run: measuring {_BATCHES} batches a model", file=sys.stderr)
    for spec in evaluation.models:
        try:
            model = load_checked(spec, evaluation, taxonomy)
            predictor = put_on_device(model, evaluation)
            about = model_identity(model, evaluation, dataset)
            chunks = Chunks(dataset, attacking, grid, model, about)
            left = sum(
                len(grid.positions(chunk)) for chunk in grid.chunks if not chunks.is_there(chunk)
            )
            if not left:
                print(f"{model.name}: attacked already")
                continue
            output_labels = labels_of_outputs(model.num_outputs, taxonomy)
            rate = _forwards_a_second(dataset, attacking, grid, predictor, output_labels)
            print(
                f"{model.name}: {'at most' if attacking.early_stop else 'about'} "
                f"{duration(left * backgrounds / rate)} for {left * backgrounds} forwards on "
                f"{evaluation.predict.device} ({rate:.1f} a second)"
            )
        except ModelError as error:
            print(f"{spec}: {error}")
        finally:
            model = predictor = chunks = None  # type: ignore[assignment]
            free_memory()
    print("dry run: nothing was written")


def _forwards_a_second(
    dataset: Dataset,
    attacking: Attacking,
    grid: AttackGrid,
    predictor: Predictor,
    output_labels: Labels,
) -> float:
    """Speed of a model on composites, after a batch in which libraries set themselves up."""
    evaluation, device = attacking.evaluation, predictor.device
    size = evaluation.predict.batch_size
    few = grid.backgrounds.take(range(min(size, len(grid.backgrounds))))
    backgrounds = load_backgrounds(dataset, evaluation.split, few, device)
    with contextlib.closing(
        stream_cutouts(dataset, evaluation.split, grid, [0], device)
    ) as streaming:
        cutouts = next(streaming)
    network = GridModel(predictor, output_labels, backgrounds)
    pairs = torch.arange(size, device=device)
    sides = pairs % len(cutouts.pixels), pairs % len(few)
    network.predict(cutouts, *sides).cpu()
    started = time.perf_counter()
    for _ in range(_BATCHES):
        network.predict(cutouts, *sides).cpu()
    return _BATCHES * size / (time.perf_counter() - started)
