"""The stage of mirrored pictures, on output shards."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pipeline.analyses.mirrored.results import SCHEMA, MirroredResult
from typing_extensions import override

from pipeline.dataset.folder import Dataset
from pipeline.evaluate.planned import AnalysisOfModel, ChunkOutput, NoteDone, PlannedAnalysis
from pipeline.evaluate.predictions import split_fingerprint
from pipeline.evaluate.results import ModelRun, pick, result_file, result_shard, write_result
from pipeline.storage.state_files import read_table
from transforms.codec import decode_image
from transforms.hashing import fingerprint
from transforms.intervals import wilson
from transforms.scoring import labels_of_outputs
from transforms.variants import ORIGINAL

if TYPE_CHECKING:
    from pipeline.models.predict import Predictor


class PlannedMirrored(PlannedAnalysis):
    """The stage that shows mirrored pictures to models."""

    stage = "mirrored"
    refuses_overlap = False

    @override
    def size(self, dataset: Dataset, chunk: int) -> int:
        return len(self.evaluation.rows(dataset, chunk))

    @override
    def for_model(self, dataset: Dataset, run: ModelRun) -> MirroredShards:
        return MirroredShards(dataset, run)

    @override
    def summarize(self, dataset: Dataset, run: ModelRun, entry: str) -> None:
        shards, split = self.for_model(dataset, run), self.evaluation.split
        tables = [read_table(dataset.store, shards.path(chunk)) for chunk in self.chunks(dataset)]
        answers = pa.concat_tables(tables)["correct"].to_pylist()
        low, high = wilson(sum(answers), len(answers))
        result = pick(
            MirroredResult,
            run,
            of=split_fingerprint(dataset, split, (ORIGINAL,)),
            n=len(answers),
            accuracy=sum(answers) / len(answers),
            ci_low=low,
            ci_high=high,
        )
        write_result(dataset.store, result_file(run.folder, "mirrored"), result)


class MirroredShards(AnalysisOfModel):
    """Answers of a model to the mirrored pictures of output shards."""

    def __init__(self, dataset: Dataset, run: ModelRun) -> None:
        super().__init__(dataset.store)
        self._dataset, self._run = dataset, run

    @override
    def path(self, chunk: int) -> str:
        return result_shard(self._run.folder, "mirrored", self._run.evaluation.split, chunk)

    @override
    def fingerprint(self, chunk: int) -> str:
        files = self._dataset.shard_files(self._run.evaluation.split, chunk, (ORIGINAL,))
        return fingerprint(*self._run.identity, [file.sha256 for file in files])

    @override
    def run(
        self, predictor: Predictor, chunks: Sequence[int], missing: Sequence[int], note: NoteDone
    ) -> Generator[ChunkOutput, None, None]:
        outputs = labels_of_outputs(self._run.num_outputs, self._dataset.taxonomy)
        for chunk in missing:
            rows = []
            samples = self._dataset.samples(self._run.evaluation.split, chunk, ORIGINAL)
            while batch := list(itertools.islice(samples, predictor.batch_size)):
                mirrored = np.stack([decode_image(one.image)[:, ::-1] for one in batch])
                logits = predictor.forward(predictor.to_device(mirrored)).cpu().detach().numpy()
                for sample, of_sample in zip(batch, logits, strict=True):
                    is_correct = outputs[of_sample.argmax()] == sample.fields["label"]
                    rows.append({"key": sample.key, "correct": bool(is_correct)})
                note(chunk, len(batch), len(batch))
            yield ChunkOutput(chunk, pa.Table.from_pylist(rows, SCHEMA))
