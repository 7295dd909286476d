"""Rows of the matrix by linear probes of a frozen network: tests reuse its features."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Iterable

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline.analyses.matrix.plan import MatrixPlan
from pipeline.evaluate.shards import Pictures
from pipeline.models.timm_names import read_state
from pipeline.training.features import Backbone
from pipeline.training.probe import ProbePlan, fit_variant


class ProbeTrainer:
    """Fits a probe on each variant.

    Args:
      backbone: the network.
      plan: of the matrix.
    """

    def __init__(self, backbone: Backbone, plan: MatrixPlan) -> None:
        self._backbone, self._plan = backbone, plan
        self.arch = backbone.model.name
        self.name = f"probe-{self.arch.replace('/', '_')}{plan.suffix()}"

    def train(self, row: str) -> str:
        """As `Trainer.train`."""
        dataset, variant = self._plan.source(row)
        return fit_variant(
            self._backbone,
            ProbePlan(
                dataset, variant, self._plan.train_split, self._plan.holdout, self._plan.seed, row
            ),
            self._plan.dataset.store,
        )

    def scorer(self, entry: str) -> ProbeScorer:
        """As `Trainer.scorer`."""
        return ProbeScorer(self._backbone, entry.partition("=")[2], self._plan.predict.device)


class ProbeScorer:
    """Logits of a probe, from the features of its network: no forward pass.

    Args:
      backbone: the network.
      path: of the probe's checkpoint.
      device: that features are computed on.

    Attributes:
      device: the same.
    """

    def __init__(self, backbone: Backbone, path: str, device: str) -> None:
        self._backbone = backbone
        self.device = torch.device(device)
        state = read_state(path)
        names = {id(value): name for name, value in backbone.model.module.named_parameters()}
        self._weight = state[names[id(backbone.layer.weight)]]
        self._bias = state[names[id(backbone.layer.bias)]]

    @torch.inference_mode()
    def _scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        inputs = torch.from_numpy(features)
        return np.asarray(torch.nn.functional.linear(inputs, self._weight, self._bias))

    def logits(
        self, parts: Iterable[Pictures], stored: int
    ) -> Generator[tuple[_Rows, NDArray[np.float32]], None, None]:
        """As `Predictor.logits`, all pictures of a part in one batch."""
        for part in parts:
            with contextlib.closing(part.tables(())) as tables:
                rows = list(tables)
            if not sum(map(len, rows)):
                continue
            table = pa.concat_tables(rows)
            whole = dataclasses.replace(part, keys=None)
            features = self._backbone.of_shard(whole).of(table["key"].to_pylist())
            yield _Rows(part, table), self._scores(features.values)


@dataclasses.dataclass(frozen=True, eq=False)
class _Rows:
    """Pictures that nobody had to decode: see `Shown`."""

    part: Pictures
    rows: pa.Table
    is_new: bool = False
