"""The evaluation stage: stores the predictions of models on output shards."""

import dataclasses
from collections.abc import Sequence
from importlib.metadata import version

from typing_extensions import override

from pipeline.analyses.evaluation.tables import measure_power
from pipeline.dataset.folder import Dataset
from pipeline.errors import JobError
from pipeline.evaluate.planned import PlannedAnalysis
from pipeline.evaluate.predict_shards import PredictShards
from pipeline.evaluate.predictions import EvalImages, evaluated_variants, read_predictions
from pipeline.evaluate.results import LIBRARIES, ModelRun, pick, result_file, write_result
from pipeline.evaluate.summary import Evaluated
from transforms.hashing import fingerprint


@dataclasses.dataclass(eq=False)
class PlannedEvaluation(PlannedAnalysis):
    """The stage that predicts all pictures of output shards, for tables of accuracy and BG-Gap."""

    stage = "evaluate"
    refuses_overlap = True
    needs_network = False

    @override
    def size(self, dataset: Dataset, chunk: int) -> int:
        if not self.evaluation.holdout:
            return dataset.pictures(self.evaluation.split, chunk)
        return len(self.evaluation.rows(dataset, chunk)) * len(evaluated_variants(dataset))

    @override
    def for_model(self, dataset: Dataset, run: ModelRun) -> PredictShards:
        return PredictShards(dataset, run)

    @override
    def summarize(self, dataset: Dataset, run: ModelRun, entry: str) -> None:
        """Writes model.json; raises JobError if predictions do not fit the dataset."""
        store, shards = dataset.store, PredictShards(dataset, run)
        images = EvalImages.read(dataset, *run.tested_on)
        missing = read_predictions(dataset, images, run).missing
        if missing:
            raise JobError(
                f"the files in {store.path(f'results/{run.folder}/predictions')} do not fit the "
                f"dataset: the predictions on {missing[0]} are of other images. Remove that "
                "folder and evaluate the model again"
            )
        commit_predictions(
            shards,
            self.chunks(dataset),
            run,
            entry=entry,
            power=measure_power(dataset, images, run),
        )


def commit_predictions(
    shards: PredictShards, chunks: Sequence[int], run: ModelRun, **values: object
) -> None:
    """Writes model.json, which says that all predictions of the model exist; removes stale files.

    The arguments are those of `describe_predictions`.
    """
    store, content = shards.store, describe_predictions(shards, chunks, run, **values)
    write_result(store, result_file(run.folder, "model"), content)
    store.delete_all(
        set(store.walk(f"results/{run.folder}/predictions")).difference(map(shards.path, chunks))
    )


def describe_predictions(
    shards: PredictShards, chunks: Sequence[int], run: ModelRun, **values: object
) -> Evaluated:
    """Returns the content of model.json."""
    return pick(
        Evaluated,
        run,
        libraries={name: version(name) for name in LIBRARIES},
        predictions=fingerprint([shards.fingerprint(chunk) for chunk in chunks]),
        **values,
    )
