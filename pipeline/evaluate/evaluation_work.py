"""Evaluate: predictions of models on output shards."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from pipeline.dataset.fingerprints import fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.errors import JobError
from pipeline.evaluate.gap_power import power_of
from pipeline.evaluate.predict_shards import PredictShards
from pipeline.evaluate.prediction_files import ModelMetadata
from pipeline.evaluate.predictions import EvalImages, read_predictions
from pipeline.evaluate.result_files import result_file, result_folder, tested_part, write_result
from pipeline.evaluate.work import Work

_LIBRARIES = ("numpy", "torch", "timm")


class EvaluationWork(Work):
    """Predictions of output shards, from which all statistics are made."""

    stage = "evaluate"
    unit_name = "prediction_shards"
    pictures_name = "pictures_predicted"
    refuses_overlap = True

    def units(self, dataset: Dataset) -> Sequence[int]:
        """As `Work.units`: output shards."""
        return dataset.shards(self.evaluation.split)

    def size(self, dataset: Dataset, unit: int) -> int:
        """As `Work.size`."""
        return dataset.pictures(self.evaluation.split, unit)

    def begin(self, dataset: Dataset, metadata: ModelMetadata) -> PredictShards:
        """As `Work.begin`."""
        return PredictShards(dataset, metadata)

    def sum_up(self, dataset: Dataset, metadata: ModelMetadata, entry: str) -> None:
        """As `Work.sum_up`; raises JobError for predictions that do not fit the dataset."""
        store, shards = dataset.store, PredictShards(dataset, metadata)
        folder = result_folder(metadata["model"], metadata["evaluation"])
        images = EvalImages.read(dataset, *tested_part(metadata))
        missing = read_predictions(dataset, images, metadata).missing
        if missing:
            raise JobError(
                f"what is in {store.path(f'results/{folder}/predictions')} does not fit the "
                f"dataset: the predictions on {missing[0]} are of other images. Remove that "
                "folder and evaluate the model again"
            )
        power = power_of(dataset, images, metadata)
        commit_predictions(
            shards, self.units(dataset), {**metadata, "entry": entry, "power": power}
        )


def commit_predictions(
    shards: PredictShards, units: Sequence[int], metadata: ModelMetadata
) -> None:
    """Writes a model's file, as all of its predictions are there, and removes those that are of
    other shards.

    Args:
      shards: its predictions.
      units: numbers of all shards.
      metadata: the model and how it was run, with its entry of `--models` and its power.
    """
    store, folder = shards.store, result_folder(metadata["model"], metadata["evaluation"])
    model = {
        **metadata,
        "libraries": {name: version(name) for name in _LIBRARIES},
        "predictions": fingerprint([shards.checksum(unit) for unit in units]),
    }
    write_result(store, result_file(folder, "model"), model)
    current = {shards.path(unit) for unit in units}
    for path in list(store.walk(f"results/{folder}/predictions")):
        if path not in current:
            store.delete(path)
