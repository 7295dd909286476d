"""The evaluation plan that all stages that run models share: which models, and their settings."""

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
    """The models to evaluate, and the settings to run them with.

    Attributes:
      store: the dataset folder.
      models: entries of `--models`, in order.
      split: the split to evaluate on.
      predict: device, precision, input and batch size.
      progress: where workers note their progress.
      accept_new_weights: whether weights may differ from those behind earlier results.
      weights: folder of `in9 models fetch` to load weights from, if any.
      groups: number of groups of shards that are evaluated at the same time. Each group has one
        model on a device at a time, so there should be one for each device.
      hints: resource hints of the step that runs models, as (name, value); empty if it may run
        on the same machines as all other steps.
      holdout: share of the images to test on, which training with the same share leaves out; 0
        for all images.
      pixel_cache: bytes of decoded pictures that a process keeps for the next model; None for a
        quarter of the machine's memory, divided by its cores.
      allow_overlap: whether a model may be tested on images that it was trained on.
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
        """Number of threads of a group. Groups may share this machine's cores, unless resource
        hints ask for machines of their own."""
        return max(1, usable_cores() // (1 if self.hints else self.groups))

    @property
    def eval_settings(self) -> dict[str, Any]:
        """Settings by flag name, which tell two runs of the same model apart."""
        return {"split": self.split, "holdout": self.holdout, **self.predict.identity}

    def test_on(self, dataset: Dataset) -> EvalSubset:
        """Returns the part of a dataset that models are tested on."""
        return EvalSubset(dataset, self.split, self.holdout, self.allow_overlap)

    def rows(self, dataset: Dataset, shard: int | None = None) -> list[dict[str, Any]]:
        """Returns the index rows of the tested images, of one output shard or of all."""
        return selected_rows(dataset, self.split, Holdout(self.holdout), shard)


def describe_model(
    model: ModelIdentity, evaluation: Evaluation, dataset: Dataset
) -> dict[str, Any]:
    """Describes a model and how it is run, as its results record it; serializable as JSON."""
    stored_size = dataset.manifest.config.segment.image_size
    is_resized = model.preprocessing.fixed_size or evaluation.predict.eval_input == "native"
    return {
        "model": model.name,
        "architecture": model.architecture,
        "weights": model.weights,
        "weights_sha256": model.weights_sha256,
        "preprocessing": dataclasses.asdict(model.preprocessing),
        "num_outputs": model.num_outputs,
        "evaluate_version": EVALUATE_VERSION,
        "evaluation": {
            **evaluation.eval_settings,
            "input_size": model.preprocessing.input_size if is_resized else stored_size,
        },
        **training_note(model.name, evaluation.test_on(dataset)),
    }
