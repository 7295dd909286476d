"""The stage of the renderings: predicts both mixed variants in all renderings, for the same pairs.

Renderings that the dataset does not store are composed while they are read
(`pipeline.generate.composed`), in the order and batches of a stored shard. Predictions of the
evaluation are taken over if they are of the same pictures.
"""

import dataclasses
from collections.abc import Generator, Sequence

import pyarrow as pa
from typing_extensions import override

from pipeline.analyses.renderings.results import (
    HOLES,
    PAIRS,
    RenderingsResult,
    rendering_rows,
    stored_pairs,
)
from pipeline.dataset.config import ComposeConfig
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.planned import ChunkOutput, NoteDone, PlannedAnalysis
from pipeline.evaluate.predict_shards import PredictShards, Scorer
from pipeline.evaluate.predictions import split_fingerprint
from pipeline.evaluate.results import ModelRun, pick, result_file, result_shard, write_result
from pipeline.generate.composed import ComposedDataset
from pipeline.generate.pictures import versioned
from pipeline.runtime.progress import count
from pipeline.storage.store import Store
from transforms.renderings import AGAINST, COMMON, PAPER_RENDERING, RENDERINGS
from transforms.variants import VariantName, select_variants


def renderings_config(
    config: ComposeConfig, replicates: int | None, renderings: Sequence[str]
) -> ComposeConfig:
    """Returns how a dataset would compose `PAIRS` in all renderings, in its or other replicates.

    Raises:
      UsageError: a function is not found, or its name or version is not valid.
      ValueError: there are too many draws, or the name of a function is taken.
    """
    return dataclasses.replace(
        config,
        variants=select_variants(
            [
                *(str(VariantName(name, each)) for name in PAIRS for each in ("", *RENDERINGS)),
                *(each for each in versioned((), renderings) if each.partition("=")[0] in PAIRS),
            ]
        ),
        replicates=replicates or config.replicates,
    )


class RenderingsShards(PredictShards):
    """Predictions of a model on output shards, in all renderings."""

    _dataset: ComposedDataset

    @override
    def run(
        self, predictor: Scorer, chunks: Sequence[int], missing: Sequence[int], note: NoteDone
    ) -> Generator[ChunkOutput, None, None]:
        yield from super().run(predictor, chunks, missing, note)
        # Only this thread counts; pictures are composed in others.
        count("fill_fallbacks", sum(self._dataset.tiled))

    @override
    def path(self, chunk: int) -> str:
        return result_shard(self._run.folder, "method", self._run.evaluation.split, chunk)

    @override
    def keys_with(self, variant: VariantName, tested: frozenset[str]) -> frozenset[str]:
        if variant.rendering not in (COMMON, AGAINST):
            return tested
        keys = self._dataset.images[variant.rendering].keys
        return frozenset(key for key in tested if key in keys)

    @override
    def _read_kept(self, shard: int) -> dict[VariantName, pa.Table]:
        return {
            **PredictShards(self._dataset, self._run, self.store)._read_kept(shard),
            **super()._read_kept(shard),
        }


@dataclasses.dataclass(eq=False)
class PlannedRenderings(PlannedAnalysis):
    """The stage that measures BG-Gap in all renderings."""

    stage = "method"
    refuses_overlap = True

    compose: ComposeConfig
    against: Store | None = None
    share: float = 0.0

    def composed(self, dataset: Dataset) -> ComposedDataset:
        """Returns the dataset with all renderings, and with the pictures to compare with."""
        return ComposedDataset(
            dataset.store,
            dataset.manifest,
            self.evaluation.split,
            self.compose,
            Dataset.open(self.against) if self.against else None,
        )

    @override
    def size(self, dataset: Dataset, chunk: int) -> int:
        # The pictures to compare with are of the pairs of both variants, twice.
        return round(
            len(self.evaluation.rows(dataset, chunk))
            * (len(self.compose.composed) + self.share * 2 * 2 * self.compose.replicates)
        )

    @override
    def for_model(self, dataset: Dataset, run: ModelRun) -> RenderingsShards:
        composed = self.composed(dataset)
        return RenderingsShards(
            composed, pick(ModelRun, run, variants=tuple(map(str, composed.variants)))
        )

    @override
    def summarize(self, dataset: Dataset, run: ModelRun, entry: str) -> None:
        store, model_work = dataset.store, self.for_model(dataset, run)
        kept = map(model_work.path, self.chunks(dataset))
        store.delete_all(set(store.walk(f"results/{run.folder}/method")).difference(kept))
        composed, replicates = model_work._dataset, self.compose.replicates
        renderings = {
            VariantName.parse(entry).rendering or PAPER_RENDERING: entry.partition("=")[2]
            for entry in self.compose.variants
        }
        rows = [*rendering_rows(dataset, [run], replicates, renderings)]
        if composed.other:
            of = dict.fromkeys((COMMON, AGAINST), composed.other.manifest.fingerprint)
            common = rendering_rows(dataset, [run], replicates, of, composed.images[AGAINST].keys)
            rows += (row for row in common if row.hole == HOLES[0])
        write_result(
            store,
            result_file(run.folder, "method"),
            pick(
                RenderingsResult,
                run,
                of=split_fingerprint(dataset, self.evaluation.split, stored_pairs(dataset)),
                rows=tuple(rows),
            ),
        )
