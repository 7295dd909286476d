"""What is evaluated, and how: the plan that all steps that run models share."""

from __future__ import annotations

import dataclasses
from typing import Any

from pipeline.dataset.fingerprints import EVALUATE_VERSION
from pipeline.dataset.folder import Dataset
from pipeline.dataset.holdout import Holdout, selected_rows
from pipeline.models.identity import ModelIdentity
from pipeline.models.leakage import EvalSubset, training_note
from pipeline.models.predict_config import PredictConfig
from pipeline.runtime.machine import usable_cores
from pipeline.runtime.progress import Progress
from pipeline.storage.store import Store


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What to evaluate, and how.

    Attributes:
      store: the dataset folder.
      models: entries of `--models`, in order.
      split: the split to evaluate on.
      predict: how.
      progress: where workers note what is done.
      accept_new_weights: take weights that differ from those behind earlier results.
      weights: folder of `in9 models fetch` that weights are taken from, if any.
      groups: in how many groups the shards are evaluated at the same time; each holds one
        model at a time, so one for each device.
      hints: resource hints of the steps that run models, as (name, value); none if they may run
        on the machines of all others.
      holdout: share of the images that is tested on, as training with it leaves them out; 0 for
        all images.
      pixel_cache: bytes of decoded pictures that a process keeps for the next model, None for a
        quarter of the machine's memory, divided by its cores.
      allow_overlap: whether images may be tested on that a model was trained on.
    """

    store: Store
    models: tuple[str, ...]
    split: str
    predict: PredictConfig
    progress: Progress
    accept_new_weights: bool = False
    weights: str | None = None
    groups: int = 1
    hints: tuple[tuple[str, str], ...] = ()
    holdout: float = 0.0
    pixel_cache: int | None = None
    allow_overlap: bool = False

    @property
    def threads(self) -> int:
        """Threads of a group: how many cores of this machine are its own. All of them, where
        groups ask for machines; else groups may share this one."""
        return max(1, usable_cores() // (1 if self.hints else self.groups))

    @property
    def how(self) -> dict[str, Any]:
        """How models are run, by flag name: tells two runs of a model apart."""
        return {"split": self.split, "holdout": self.holdout, **self.predict.identity}

    def test_on(self, dataset: Dataset) -> EvalSubset:
        """What models are tested on, of the dataset as it is."""
        return EvalSubset(dataset, self.split, self.holdout, self.allow_overlap)

    def rows(self, dataset: Dataset, shard: int | None = None) -> list[dict[str, Any]]:
        """Index rows of the images that are tested on, of one output shard or of all."""
        return selected_rows(dataset, self.split, Holdout(self.holdout), shard)


def describe_model(
    model: ModelIdentity, evaluation: Evaluation, dataset: Dataset
) -> dict[str, Any]:
    """What results say of a model and of how it was run; fit for JSON."""
    preprocessing = dataclasses.asdict(model.preprocessing)
    stored = dataset.manifest.config.segment.image_size
    fixed = model.preprocessing.fixed_size or evaluation.predict.eval_input == "native"
    return {
        "model": model.name,
        "architecture": model.architecture,
        "weights": model.weights,
        "weights_sha256": model.weights_sha256,
        "preprocessing": preprocessing,
        "num_outputs": model.num_outputs,
        "evaluate_version": EVALUATE_VERSION,
        "evaluation": {
            **evaluation.how,
            "input_size": model.preprocessing.input_size if fixed else stored,
        },
        **training_note(model.name, evaluation.test_on(dataset)),
    }
