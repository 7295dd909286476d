"""The stage of the method: predicts both mixed variants in all renderings, for the same pairs.

Renderings that the dataset does not store are composed while they are read
(`pipeline.generate.composed`), in the order and batches of a stored shard. Predictions of the
evaluation are taken over if they are of the same pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from typing_extensions import override

from pipeline.analyses.evaluation.comparisons import gap_draws, picture_roles
from pipeline.analyses.method.results import (
    DIFFERENCE,
    HOLES,
    PAIRS,
    PAPER,
    MethodResult,
    MethodRow,
    stored_pairs,
)
from pipeline.dataset.config import ComposeConfig
from pipeline.dataset.folder import Dataset, selected_rows
from pipeline.evaluate.evaluation import PlannedAnalysis
from pipeline.evaluate.predict_shards import PredictShards
from pipeline.evaluate.predictions import (
    COLUMNS,
    EvalImages,
    Predictions,
    predictions_in_table,
    split_fingerprint,
)
from pipeline.evaluate.results import ModelRun, pick, result_file, result_shard, write_result
from pipeline.generate.composed import ComposedDataset
from pipeline.storage.state_files import read_table
from transforms.analysis import gaps_of_pictures
from transforms.intervals import holm
from transforms.renderings import RENDERINGS
from transforms.scoring import LABEL_RULES
from transforms.two_way import difference_interval, p_value
from transforms.variants import pairs_of, select_variants, with_rendering

_RENDERINGS = ("", *RENDERINGS)


def method_config(config: ComposeConfig, replicates: int | None) -> ComposeConfig:
    """Returns how a dataset would compose `PAIRS` in all renderings.

    Args:
      config: the dataset's configuration.
      replicates: number of draws; None for the dataset's.

    Raises:
      ValueError: there are too many draws.
    """
    return dataclasses.replace(
        config,
        variants=select_variants(with_rendering(n, each) for n in PAIRS for each in _RENDERINGS),
        replicates=replicates or config.replicates,
    )


class MethodShards(PredictShards):
    """Predictions of a model on output shards, in all renderings."""

    @override
    def path(self, chunk: int) -> str:
        return result_shard(self._run.folder, "method", self._run.evaluation.split, chunk)

    @override
    def _read_kept(self, shard: int) -> dict[str, pa.Table]:
        evaluated = PredictShards(self._dataset, self._run, self.store)
        return {**evaluated._read_kept(shard), **super()._read_kept(shard)}


@dataclasses.dataclass(eq=False)
class PlannedMethod(PlannedAnalysis):
    """The stage that measures BG-Gap in all renderings.

    Attributes:
      compose: how the renderings are composed, from `method_config`.
    """

    stage = "method"
    chunk_name = "method_shards"
    pictures_name = "renderings_predicted"
    refuses_overlap = True

    compose: ComposeConfig

    @override
    def chunks(self, dataset: Dataset) -> Sequence[int]:
        """Returns the numbers of the output shards."""
        return dataset.shards(self.evaluation.split)

    @override
    def size(self, dataset: Dataset, chunk: int) -> int:
        return len(self.evaluation.rows(dataset, chunk)) * len(self.compose.composed)

    @override
    def for_model(self, dataset: Dataset, run: ModelRun) -> MethodShards:
        split, run = self.evaluation.split, pick(ModelRun, run, variants=self.compose.composed)
        composed = ComposedDataset(dataset.store, dataset.manifest, split, self.compose)
        return MethodShards(composed, run, dataset.store)

    @override
    def summarize(self, dataset: Dataset, run: ModelRun, entry: str) -> None:
        store, model_work = dataset.store, self.for_model(dataset, run)
        paths = [model_work.path(chunk) for chunk in self.chunks(dataset)]
        # The metadata of each shard differ, and tables with different metadata do not concatenate.
        tables = (read_table(store, path, COLUMNS).replace_schema_metadata() for path in paths)
        table = pa.concat_tables(tables).unify_dictionaries()
        images, names = EvalImages.read(dataset, *run.tested_on), self.compose.composed
        boxes = {row["key"]: row["box"] for row in selected_rows(dataset, self.evaluation.split)}
        side = dataset.manifest.config.segment.image_size
        holes = {
            name: _hole_pixels(table, images, boxes, name) / side**2
            for name in dict.fromkeys(map(pairs_of, names))
        }
        by_rule = predictions_in_table(table, images, names, tuple(LABEL_RULES)).by_rule
        content = pick(
            MethodResult,
            run,
            of=split_fingerprint(dataset, self.evaluation.split, stored_pairs(dataset)),
            rows=tuple(method_rows(by_rule, images, holes)),
        )
        write_result(store, result_file(run.folder, "method"), content)
        store.delete_all(set(store.walk(f"results/{run.folder}/method")).difference(paths))


def _hole_pixels(
    table: pa.Table, images: EvalImages, boxes: Mapping[str, Sequence[int]], name: str
) -> NDArray[np.int64]:
    """Counts the pixels of the box of the background of each tested image's picture.

    Args:
      table: the predictions.
      images: the n tested images.
      boxes: x0, y0, x1, y1 of each image, by key.
      name: name of the draw.
    """
    drawn = table.filter(pc.equal(table["variant"], name)).select(["fg_key", "bg_key"])
    background = dict(zip(*(column.to_pylist() for column in drawn.columns), strict=True))
    corners = [boxes[background[key]] for key in images.keys.to_pylist()]
    x0, y0, x1, y1 = np.asarray(corners, np.int64).reshape(-1, 4).T
    return (x1 - x0) * (y1 - y0)


def method_rows(
    by_rule: Mapping[str, Predictions], images: EvalImages, holes: Mapping[str, NDArray[np.float64]]
) -> Iterator[MethodRow]:
    """Compares the renderings of the same pictures.

    Args:
      by_rule: a model's predictions by label rule, on both variants in all renderings.
      images: the n images that the model was tested on.
      holes: for each draw of both variants, (n,) share of the picture that the background's box
        covers.

    Yields:
      For all pictures and for each third of them by `holes`, a row for each rendering. There are
      none without pictures of both variants.
    """
    same, rand = gap_draws(holes)
    draws = (*same, *rand)
    shares = np.concatenate([holes[name] for name in draws])
    thirds = np.searchsorted(np.quantile(shares, [1 / 3, 2 / 3]), shares) if len(shares) else shares
    for rule, predictions in by_rule.items():
        pictures = [
            np.concatenate([predictions.correct(with_rendering(name, each)) for name in draws])
            for each in _RENDERINGS
        ]
        all_roles = picture_roles(predictions.bg_units, images, draws)
        by_draw = np.reshape(pictures, (len(pictures), 2, len(same), -1)).mean(axis=-1)
        for third, hole in enumerate(HOLES, start=-1):
            chosen = thirds == third if third >= 0 else np.full(len(shares), True)
            correct, roles = np.stack(pictures)[:, chosen], all_roles.select(chosen)
            is_same = np.repeat(np.isin(draws, same), len(images.keys))[chosen]
            if len(np.unique(is_same)) < 2:
                continue
            gap, contributions = gaps_of_pictures(correct, is_same)
            low, high = difference_interval(gap, roles.variance(contributions), roles.units)
            difference = gap[1:] - gap[0]
            variance = roles.variance(contributions[1:] - contributions[0])
            bounds = difference_interval(difference, variance, roles.units)
            adjusted = holm(p_value(difference, variance, roles.units))
            behind = [difference, *bounds, adjusted]
            columns = {
                "mixed_same": correct[:, is_same].mean(axis=-1).tolist(),
                "mixed_rand": correct[:, ~is_same].mean(axis=-1).tolist(),
                "gap": gap.tolist(),
                "ci_low": low.tolist(),
                "ci_high": high.tolist(),
                **{n: [None, *v.tolist()] for n, v in zip(DIFFERENCE, behind, strict=True)},
            }
            for position, name in enumerate(_RENDERINGS):
                gaps = np.subtract(*by_draw[position])
                yield MethodRow(
                    label_rule=rule,
                    rendering=name or PAPER,
                    hole=hole,
                    hole_low=float(shares[chosen].min()),
                    hole_high=float(shares[chosen].max()),
                    **{column: values[position] for column, values in columns.items()},
                    replicates=len(same),
                    seed_sd=float(gaps.std(ddof=1)) if len(gaps) > 1 and third < 0 else None,
                    pictures=len(is_same),
                )
