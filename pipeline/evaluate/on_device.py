"""Computes label rules where a model runs: of a thousand logits, a GPU hands over three numbers."""

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.models.predict import Predictor, are_numbers
from transforms.scoring import LABEL_RULES, Labels, Scores
from transforms.taxonomy import OUTSIDE


class RulesOnDevice:
    """The rules in `transforms.scoring.LABEL_RULES`, for logits that lie on a device.

    Args:
      output_labels: (outputs,) int64, superclass of each output, `OUTSIDE` for none.
    """

    def __init__(self, predictor: Predictor, output_labels: Labels) -> None:
        self._labels = output_labels
        allowed = {
            "argmax_then_map": np.arange(len(output_labels)),
            "mapped_only": np.flatnonzero(output_labels != OUTSIDE),
        }
        self._rules = [
            (predictor.to_device(allowed[rule]), predictor.to_device(output_labels[allowed[rule]]))
            for rule in LABEL_RULES
        ]

    def labels(self, logits: torch.Tensor) -> torch.Tensor:
        """Predicts n pictures from (n, outputs) float32, under each rule: (rules, n) int64."""
        predictions = []
        for allowed, labels in self._rules:
            best = logits[:, allowed].max(dim=1)
            predictions.append(labels[best.indices].masked_fill(best.values.isneginf(), OUTSIDE))
        return torch.stack(predictions)

    def scores(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Scores n pictures, whose true labels are (n,) int64, for `fetched_scores`.

        Returns (n, 3 * rules) float32. Where logits are not numbers, neither are these. The first
        of equal logits wins: `torch.max` says so of a single axis.
        """
        columns = []
        for allowed, of_outputs in self._rules:
            kept = logits[:, allowed]
            best = kept.max(dim=1, keepdim=True)
            # The best may be -infinity, as in `transforms.scoring`.
            shares = (kept - best.values.clamp(min=torch.finfo(kept.dtype).min)).exp()
            shares /= shares.sum(dim=1, keepdim=True).clamp(min=1)
            others = logits.max(dim=1, keepdim=True).indices
            columns += [
                torch.where(best.values.isneginf(), others, allowed[best.indices]).float(),
                shares.gather(1, best.indices),
                (shares * (of_outputs == labels[:, None])).sum(dim=1, keepdim=True),
            ]
        return torch.cat(columns, dim=1).masked_fill(~are_numbers(logits)[:, None], torch.nan)

    def fetched_scores(self, values: NDArray[np.float32]) -> dict[str, Scores]:
        """Returns by label rule what `scores` has computed."""
        rules = {}
        for number, rule in enumerate(LABEL_RULES):
            output, top1, true = values[:, 3 * number : 3 * number + 3].T
            # A float32 holds each number of an output exactly.
            output = output.astype(np.int64)
            rules[rule] = Scores(self._labels[output], output, top1, true)
        return rules
