"""Maps what a model answers to superclass predictions, by label rules.

`argmax_then_map` is the rule of the authors' evaluation protocol. `mapped_only` is a rule that
users of the dataset ask for. Both compare logits; without logits, the winning output alone decides
the first. `closed_choice` is the rule of answers that name a superclass, such as those to a prompt
that lists the superclasses.
"""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from transforms.taxonomy import OUTSIDE, Taxonomy, imagenet9, imagenet_output

Logits = NDArray[np.float32]
Labels = NDArray[np.int64]

NO_ANSWER = -2
"""In place of an output or label: the model has not answered, which counts as wrong. An answer that
is none of the classes is `OUTSIDE`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """The predictions of one label rule for a batch of n pictures.

    Attributes:
      prediction: (n,) int64 predicted superclass label, `OUTSIDE` if the winning output has none.
      output: (n,) int64 index of the winning output of the model, or `NO_ANSWER`.
      top1: (n,) float32 softmax probability of the winning output; NaN without logits.
      true: (n,) float32 sum of the softmax probabilities of all outputs of the true superclass; NaN
        without logits.
    """

    prediction: Labels
    output: Labels
    top1: NDArray[np.float32]
    true: NDArray[np.float32]


def _score(logits: Logits, labels: Labels, output_labels: Labels, allowed: Labels) -> Scores:
    """Scores pictures as if the model had only the outputs at the positions `allowed`."""
    kept = logits[:, allowed]
    best = kept.max(axis=1, keepdims=True)
    # The best may be -infinity, and the sum 0, which otherwise is at least 1.
    shifted = np.exp(kept - np.maximum(best, np.finfo(best.dtype).min))
    probabilities = shifted / np.maximum(shifted.sum(axis=1, keepdims=True), 1)
    winner = kept.argmax(axis=1)
    output = np.where(np.isneginf(best[:, 0]), logits.argmax(axis=1), allowed[winner])
    output[np.isneginf(logits.max(axis=1))] = NO_ANSWER
    is_true = output_labels[allowed][np.newaxis] == labels[:, np.newaxis]
    return Scores(
        prediction=np.where(output == NO_ANSWER, OUTSIDE, output_labels[output]),
        output=output,
        top1=probabilities[np.arange(len(kept)), winner],
        true=(probabilities * is_true).sum(axis=1, dtype=np.float32),
    )


def argmax_then_map(logits: Logits, labels: Labels, output_labels: Labels) -> Scores:
    """Predicts the superclass of the output with the highest logit, which is the paper's rule.

    If this output has no superclass, the prediction counts as wrong.

    Args:
      logits: (n, k) float32, the k outputs of the model for each of n pictures. -infinity masks an
        output; if it masks all, the model has not answered. NaN and +infinity are not allowed.
      labels: (n,) int64 true superclass labels.
      output_labels: (k,) int64 superclass of each output, `OUTSIDE` for none.

    Returns:
      The scores of the pictures. The first of equal logits wins.
    """
    return _score(logits, labels, output_labels, np.arange(logits.shape[1]))


def mapped_only(logits: Logits, labels: Labels, output_labels: Labels) -> Scores:
    """Predicts the best among the outputs that have a superclass (370 of 1000 in ImageNet-9).

    Same as `argmax_then_map`, but as if the model had no other outputs, so the probabilities of
    these outputs add up to 1. If a picture's outputs that have a superclass are all masked, their
    probabilities are 0, the best of the other outputs wins, and the prediction counts as wrong.
    Raises ValueError if no output has a superclass.
    """
    return _score(logits, labels, output_labels, np.flatnonzero(output_labels != OUTSIDE))


def map_answer(answers: Labels, labels: Labels, answer_labels: Labels) -> Scores:
    """Predicts the superclass of an answer that comes without logits.

    Of a winning output, it is what `argmax_then_map` predicts from logits. A model that names a
    superclass predicts that one.

    Args:
      answers: (n,) int64 winning output, or label of the named superclass, of each picture;
        `OUTSIDE` for none that has a superclass, which counts as wrong, or `NO_ANSWER`.
      labels: (n,) int64 true superclass labels.
      answer_labels: (k,) int64 superclass of each answer, from `labels_of_answers`.
    """
    unknown = np.full(len(answers), np.nan, np.float32)
    predicted = np.where(answers < 0, OUTSIDE, answer_labels[np.maximum(answers, 0)])
    return Scores(predicted, answers, top1=unknown, true=unknown)


Rule = Callable[[NDArray[Any], Labels, Labels], Scores]

LABEL_RULES: dict[str, Rule] = {
    "argmax_then_map": argmax_then_map,
    "mapped_only": mapped_only,
}
"""Label rules of logits by name, the paper's first."""

PAPER_RULE = "argmax_then_map"
"""The label rule of the paper's figures."""
CLOSED_CHOICE = "closed_choice"

AnswerKind = Literal["scores", "output", "label"]
"""What a model answers a picture with: all its logits, the winning output, or a superclass."""

RULES_OF_ANSWERS: dict[AnswerKind, dict[str, Rule]] = {
    "scores": LABEL_RULES,
    "output": {PAPER_RULE: map_answer},
    "label": {CLOSED_CHOICE: map_answer},
}
"""Label rules by what a model answers with; the first is that of its headline figures."""
ALL_RULES = (*LABEL_RULES, CLOSED_CHOICE)
"""Names of all label rules, in the order of tables."""


def _outputs_in_imagenet(taxonomy: Taxonomy) -> dict[str, int | None]:
    """Maps each class that has a superclass to its output in ImageNet models.

    The value is None if ImageNet models have no output for the class, if several classes would
    share the output, or if the taxonomy itself names the outputs of its classes.
    """
    labels = zip(taxonomy.wnids, taxonomy.labels, strict=True)
    inside = [wnid for wnid, label in labels if label != OUTSIDE]
    if taxonomy.outputs is not None:
        return dict.fromkeys(inside)
    outputs = {wnid: imagenet_output(wnid) for wnid in inside}
    times = collections.Counter(outputs.values())
    return {wnid: index if times[index] == 1 else None for wnid, index in outputs.items()}


def labels_of_outputs(num_outputs: int, taxonomy: Taxonomy) -> Labels:
    """Finds the superclass of each model output.

    The first of these interpretations that fits the number of outputs is used:

    1. The outputs are as the taxonomy names them for its classes; all other outputs have no
       superclass.
    2. The outputs are ImageNet's 1000 classes, if these include all of the taxonomy's classes.
    3. There is one output for each superclass, so both label rules agree.
    4. There is one output for each class, if the taxonomy names no outputs.
    5. The outputs are ImageNet's 1000 classes, if the taxonomy names no outputs, and every class
       with a superclass has the WordNet id or the name of a different class of ImageNet's.

    Returns:
      (num_outputs,) int64 superclass labels, `OUTSIDE` for none.

    Raises:
      ValueError: no interpretation fits.
    """
    meaning = _meaning_of_outputs(num_outputs, taxonomy)
    if meaning is None:
        raise ValueError(
            f"a head of {num_outputs} outputs fits neither {_classes_that_fit(taxonomy)} "
            f"nor the {taxonomy.num_labels} superclasses{_hint(num_outputs, taxonomy)}"
        )
    return meaning[0]


def labels_of_answers(kind: AnswerKind, num_outputs: int, taxonomy: Taxonomy) -> Labels:
    """Finds the superclass of each answer that a model can give.

    Args:
      kind: what the model answers with.
      num_outputs: number of the model's outputs, if it gives scores.

    Returns:
      (answers,) int64 superclass labels, `OUTSIDE` for none. An answer is an output, as
      `labels_of_outputs` says; or an output of the taxonomy's own classes, which is the one that
      the taxonomy names, else the position of the class; or a label.

    Raises:
      ValueError: for the reason of `labels_of_outputs`.
    """
    if kind == "scores":
        return labels_of_outputs(num_outputs, taxonomy)
    return _labels_of_classes(taxonomy) if kind == "output" else np.arange(taxonomy.num_labels)


def _labels_of_classes(taxonomy: Taxonomy, num_outputs: int = 0) -> Labels:
    """Returns the superclass of each output: of the classes' outputs, and of `num_outputs`."""
    outputs = taxonomy.outputs or range(len(taxonomy.wnids))
    labels = np.full(max(num_outputs, 1 + max(outputs, default=-1)), OUTSIDE, np.int64)
    labels[list(outputs)] = taxonomy.labels
    return labels


def _meaning_of_outputs(
    num_outputs: int, taxonomy: Taxonomy
) -> tuple[Labels, tuple[str, ...] | None] | None:
    """Finds the superclass of each output, and the name of its class, as `labels_of_outputs` says.

    There are no names if the outputs are superclasses. None if no interpretation fits.
    """
    classes = imagenet9()
    if taxonomy.outputs is not None and max(taxonomy.outputs) < num_outputs:
        labels = _labels_of_classes(taxonomy, num_outputs)
        names = dict(zip(taxonomy.outputs, taxonomy.class_names, strict=True))
        return labels, tuple(names.get(i, f"output {i}") for i in range(num_outputs))
    if num_outputs == len(classes.wnids) and taxonomy.is_of_imagenet:
        labels = np.asarray([taxonomy.label_of(wnid) for wnid in classes.wnids], np.int64)
        return labels, classes.class_names
    if num_outputs == taxonomy.num_labels:
        return np.arange(num_outputs), None
    if num_outputs == len(taxonomy.wnids) and taxonomy.outputs is None:
        return np.asarray(taxonomy.labels, np.int64), taxonomy.class_names
    in_imagenet = _outputs_in_imagenet(taxonomy)
    if num_outputs == len(classes.wnids) and None not in in_imagenet.values():
        labels = np.full(num_outputs, OUTSIDE, np.int64)
        for wnid, output in in_imagenet.items():
            labels[output] = taxonomy.label_of(wnid)
        return labels, classes.class_names
    return None


def _classes_that_fit(taxonomy: Taxonomy) -> str:
    """Describes the classes that a model's outputs could stand for, for an error message."""
    fitting = f"the {len(taxonomy.wnids)} classes"
    if taxonomy.outputs is not None:
        fitting = f"the outputs that the taxonomy names (0 to {max(taxonomy.outputs)})"
    in_imagenet = taxonomy.is_of_imagenet or None not in _outputs_in_imagenet(taxonomy).values()
    if in_imagenet and len(taxonomy.wnids) != len(imagenet9().wnids):
        fitting += f", ImageNet's {len(imagenet9().wnids)}"
    return fitting


def _hint(num_outputs: int, taxonomy: Taxonomy) -> str:
    """Suggests how a taxonomy could be made to fit the outputs; empty if nothing would help."""
    if taxonomy.is_of_imagenet or taxonomy.outputs is not None:
        return ""
    hint = "; a column index in the taxonomy file would say which outputs belong to the classes"
    missing = [wnid for wnid, output in _outputs_in_imagenet(taxonomy).items() if output is None]
    if num_outputs == len(imagenet9().wnids):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        hint = f", and ImageNet has no output for {missing[0]!r}{more}{hint}"
    return hint


def classes_of_outputs(num_outputs: int, taxonomy: Taxonomy) -> tuple[str, ...] | None:
    """Names the class of each model output; None if the outputs are superclasses or unknown.

    The arguments and the interpretation are those of `labels_of_outputs`.
    """
    meaning = _meaning_of_outputs(num_outputs, taxonomy)
    return None if meaning is None else meaning[1]
