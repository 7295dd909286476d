"""From logits to superclass predictions, by the two label rules.

Source: the authors' evaluation protocol (`argmax_then_map`), and the rule its users ask
for (`mapped_only`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from transforms.taxonomy import OUTSIDE, Taxonomy

Logits = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """What one rule says of a batch.

    Attributes:
      prediction: (n,) int64 superclass label, `OUTSIDE` if the output has none.
      output: (n,) int64 winning model output.
      top1: (n,) float32 softmax probability of that output.
      true: (n,) float32 summed softmax probability of the true label's outputs.
    """

    prediction: Labels
    output: Labels
    top1: NDArray[np.float32]
    true: NDArray[np.float32]


def _score(logits: Logits, labels: Labels, output_labels: Labels, allowed: Labels) -> Scores:
    kept = logits[:, allowed]
    shifted = np.exp(kept - kept.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    winner = kept.argmax(axis=1)
    output = allowed[winner]
    of_true = output_labels[allowed][np.newaxis] == labels[:, np.newaxis]
    return Scores(
        prediction=output_labels[output],
        output=output,
        top1=probabilities[np.arange(len(kept)), winner],
        true=(probabilities * of_true).sum(axis=1, dtype=np.float32),
    )


def argmax_then_map(logits: Logits, labels: Labels, output_labels: Labels) -> Scores:
    """The paper's rule: the best of all outputs, then its superclass; none counts as wrong.

    Args:
      logits: (n, k) float32.
      labels: (n,) int64 true superclass labels.
      output_labels: (k,) int64 superclass of each output, `OUTSIDE` for none.
    """
    return _score(logits, labels, output_labels, np.arange(logits.shape[1]))


def mapped_only(logits: Logits, labels: Labels, output_labels: Labels) -> Scores:
    """The best of the outputs that have a superclass (370 of ImageNet's 1000).

    Arguments as `argmax_then_map`; probabilities are over those outputs alone.
    """
    return _score(logits, labels, output_labels, np.flatnonzero(output_labels != OUTSIDE))


LABEL_RULES: dict[str, Callable[[Logits, Labels, Labels], Scores]] = {
    "argmax_then_map": argmax_then_map,
    "mapped_only": mapped_only,
}
"""By name, the paper's first."""


def labels_of_outputs(num_outputs: int, taxonomy: Taxonomy) -> Labels:
    """Superclass of each model output.

    Args:
      num_outputs: size of the model's head: all classes of the taxonomy, or one output
        for each superclass (its argmax is the label; both rules agree).
      taxonomy: classes and superclasses.

    Returns:
      (num_outputs,) int64.

    Raises:
      ValueError: any other head.
    """
    if num_outputs == len(taxonomy.wnids):
        return taxonomy.label_of_output()
    if num_outputs == taxonomy.num_labels:
        return np.arange(num_outputs)
    raise ValueError(
        f"a head of {num_outputs} outputs fits neither the {len(taxonomy.wnids)} classes "
        f"nor the {taxonomy.num_labels} superclasses"
    )
