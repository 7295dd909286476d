"""The stage of the method: predicts both mixed variants in all renderings, for the same pairs.

Renderings that the dataset does not store are composed while they are read
(`pipeline.generate.composed`), in the order and batches of a stored shard. Predictions of the
evaluation are taken over if they are of the same pictures.
"""

import dataclasses
from collections.abc import Generator, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from typing_extensions import override

from pipeline.analyses.evaluation.comparisons import gap_draws, picture_roles
from pipeline.analyses.method.results import (
    HOLES,
    PAIRS,
    PAPER,
    MethodResult,
    MethodRow,
    stored_pairs,
)
from pipeline.dataset.config import ComposeConfig
from pipeline.dataset.folder import Dataset, selected_rows
from pipeline.evaluate.evaluation import ChunkOutput, NoteDone, PlannedAnalysis
from pipeline.evaluate.predict_shards import PredictShards, Scorer
from pipeline.evaluate.predictions import (
    COLUMNS,
    EvalImages,
    predictions_in_table,
    split_fingerprint,
)
from pipeline.evaluate.results import ModelRun, pick, result_file, result_shard, write_result
from pipeline.generate.composed import ComposedDataset
from pipeline.generate.custom_variants import versioned
from pipeline.runtime.progress import count
from pipeline.storage.state_files import read_table
from pipeline.storage.store import Store
from transforms.analysis import gaps_of_pictures
from transforms.intervals import holm
from transforms.renderings import AGAINST, COMMON, RENDERINGS
from transforms.scoring import LABEL_RULES
from transforms.two_way import difference_interval, p_value
from transforms.variants import name_of, parse_name, select_variants, with_rendering


def method_config(
    config: ComposeConfig, replicates: int | None, renderings: Sequence[str]
) -> ComposeConfig:
    """Returns how a dataset would compose `PAIRS` in all renderings.

    Args:
      config: the dataset's configuration.
      replicates: number of draws; None for the dataset's.
      renderings: entries of `--renderings`.

    Raises:
      UsageError: a function is not found, or its name or version is not valid.
      ValueError: there are too many draws, or the name of a function is taken.
    """
    built_in = [with_rendering(name, each) for name in PAIRS for each in ("", *RENDERINGS)]
    own = (each for each in versioned((), renderings) if each.partition("=")[0] in PAIRS)
    return dataclasses.replace(
        config,
        variants=select_variants([*built_in, *own]),
        replicates=replicates or config.replicates,
    )


class MethodShards(PredictShards):
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
    def _read_kept(self, shard: int) -> dict[str, pa.Table]:
        return {
            **PredictShards(self._dataset, self._run, self.store)._read_kept(shard),
            **super()._read_kept(shard),
        }


@dataclasses.dataclass(eq=False)
class PlannedMethod(PlannedAnalysis):
    """The stage that measures BG-Gap in all renderings.

    Attributes:
      compose: how the renderings are composed, from `method_config`.
      against: folder of the dataset to compare with; None without one.
      share: share of the selected images that this dataset has, too.
    """

    stage = "method"
    chunk_name = "method_shards"
    pictures_name = "renderings_predicted"
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
    def for_model(self, dataset: Dataset, run: ModelRun) -> MethodShards:
        composed = self.composed(dataset)
        return MethodShards(composed, pick(ModelRun, run, variants=composed.variants))

    @override
    def summarize(self, dataset: Dataset, run: ModelRun, entry: str) -> None:
        store, model_work = dataset.store, self.for_model(dataset, run)
        paths = [model_work.path(chunk) for chunk in self.chunks(dataset)]
        # The metadata of each shard differ, and tables with different metadata do not concatenate.
        table = pa.concat_tables(
            read_table(store, path, COLUMNS).replace_schema_metadata() for path in paths
        ).unify_dictionaries()
        composed, images = model_work._dataset, EvalImages.read(dataset, *run.tested_on)
        shares = {
            row["key"]: (x1 - x0) * (y1 - y0) / dataset.manifest.config.segment.image_size**2
            for row in selected_rows(dataset, self.evaluation.split)
            for x0, y0, x1, y1 in [row["box"]]
        }
        renderings = {
            parse_name(name_of(entry)).rendering: entry.partition("=")[2]
            for entry in self.compose.variants
        }
        draws = [name for of_base in gap_draws(self.compose.composed) for name in of_base]
        rows = [*method_rows(table, images, shares, draws, renderings)]
        if composed.other:
            is_common = np.isin(images.keys.to_pylist(), list(composed.images[AGAINST].keys))
            of = dict.fromkeys((COMMON, AGAINST), composed.other.manifest.fingerprint)
            rows += (
                row
                for row in method_rows(table, images.select(is_common), shares, draws, of)
                if row.hole == HOLES[0]
            )
        write_result(
            store,
            result_file(run.folder, "method"),
            pick(
                MethodResult,
                run,
                of=split_fingerprint(dataset, self.evaluation.split, stored_pairs(dataset)),
                rows=tuple(rows),
            ),
        )
        store.delete_all(set(store.walk(f"results/{run.folder}/method")).difference(paths))


def method_rows(
    table: pa.Table,
    images: EvalImages,
    shares: Mapping[str, float],
    draws: Sequence[str],
    renderings: Mapping[str, str],
) -> Iterator[MethodRow]:
    """Compares the renderings of the same pictures.

    Args:
      table: a model's predictions, with `COLUMNS`.
      images: the n images that the model was tested on.
      shares: for the key of each image, the share of the picture that its box covers.
      draws: the draws of `mixed_same`, and then as many of `mixed_rand`.
      renderings: what the draws are predicted in, each with the value of its column `of`; others
        are compared with the first.

    Yields:
      For all pictures and for each third of them by the share of the background's box, a row for
      each rendering. There are none without pictures of both variants.
    """
    first, *_ = names = [[with_rendering(name, each) for name in draws] for each in renderings]
    shown = table.filter(pc.is_in(table["variant"].cast(pa.string()), pa.array(first)))
    holes_of = {
        (row["variant"], row["fg_key"]): shares[row["bg_key"]]
        for row in shown.select(["variant", "fg_key", "bg_key"]).to_pylist()
    }
    holes = np.asarray([holes_of[name, key] for name in first for key in images.keys.to_pylist()])
    thirds = np.searchsorted(np.quantile(holes, [1 / 3, 2 / 3]), holes) if len(holes) else holes
    every = predictions_in_table(
        table, images, [name for each in names for name in each], tuple(LABEL_RULES)
    )
    for rule, predictions in every.by_rule.items():
        of_draws = np.asarray([[predictions.correct(name) for name in each] for each in names])
        pictures = of_draws.reshape(len(names), -1)
        same, rand = np.split(of_draws.mean(axis=-1), 2, axis=1)
        all_roles = picture_roles(predictions.bg_units, images, first)
        for third, hole in enumerate(HOLES, start=-1):
            chosen = (thirds == third) | (third < 0)
            correct, roles = pictures[:, chosen], all_roles.select(chosen)
            is_same = np.flatnonzero(chosen) < len(chosen) // 2
            if len(np.unique(is_same)) < 2:
                continue
            gap, contributions = gaps_of_pictures(correct, is_same)
            # The gaps, and their differences from the first.
            estimates = np.stack([gap, gap - gap[0]])
            variance = roles.variance(np.stack([contributions, contributions - contributions[0]]))
            low, high = difference_interval(estimates, variance, roles.units)
            p_adjusted = holm(p_value(estimates[1, 1:], variance[1, 1:], roles.units))
            columns = {
                "mixed_same": correct[:, is_same].mean(axis=-1).tolist(),
                "mixed_rand": correct[:, ~is_same].mean(axis=-1).tolist(),
                "gap": gap.tolist(),
                "ci_low": low[0].tolist(),
                "ci_high": high[0].tolist(),
                "difference": [None, *estimates[1, 1:].tolist()],
                "difference_low": [None, *low[1, 1:].tolist()],
                "difference_high": [None, *high[1, 1:].tolist()],
                "p_adjusted": [None, *p_adjusted.tolist()],
            }
            for position, (name, of) in enumerate(renderings.items()):
                yield MethodRow(
                    label_rule=rule,
                    rendering=name or PAPER,
                    of=of,
                    hole=hole,
                    hole_low=None if name == AGAINST else float(holes[chosen].min()),
                    hole_high=None if name == AGAINST else float(holes[chosen].max()),
                    **{column: values[position] for column, values in columns.items()},
                    replicates=len(draws) // 2,
                    seed_sd=float((same - rand)[position].std(ddof=1))
                    if len(draws) > 2 and third < 0
                    else None,
                    pictures=len(is_same),
                )
