"""Fits the head of a frozen encoder on a variant: a linear probe, or nearest neighbours.

The checkpoint holds the head alone and names the encoder, so `--models probe:FILE` loads both. The
encoder's features of each picture are computed once (`pipeline.evaluate.features`).

A linear probe is a multinomial logistic regression. It is kept and evaluated, whereas
`transforms.power` fits throw-away classifiers to measure an accuracy. The penalised loss is convex,
so the result does not depend on the starting point, and fitting uses no randomness: the same
features give the same probe.

The best weights are combinations of the n images, so the fit takes min(n, features) coordinates in
which the images have the same scalar products; one decomposition serves all penalties. Newton's
method compares no values of the loss, whose rounding would end a search along a line too early.

The fit stops by a bound. The penalty makes the loss strongly convex: if the gradient of the weights
is G, and the biases are the best for them, the best weights are at most |G| / penalty away, and a
logit of an image with features x moves with them by at most e = |x| |G| / penalty. The biases keep
the mean probability of each class, so no set of classes can gain more than 2 e over each of the
others, and the biases move against each other by at most 2 e (classes - 1). Together, the
difference between two logits of an image moves by at most 2 e classes. For given weights, the
biases are at most their gradient divided by the least curvature of the loss in them away from the
best ones. Each of the two is held to `_TOLERANCE`. (On 72 probes of real pictures, a tolerance of a
100th changed no logit by more than 3e-9.)

Sources: Alain and Bengio 2016 (probes); Boehning 1992, "Multinomial logistic regression algorithm"
(the bound on the curvature by which conjugate gradients are scaled).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy, one_hot

from pipeline.dataset.folder import selected_rows
from pipeline.dataset.records import write_table
from pipeline.errors import ModelError
from pipeline.evaluate.features import FeatureFiles, Features, HeadPlan, encode, is_fitted
from pipeline.evaluate.predict_shards import ShardPictures
from pipeline.models.checkpoint import PROBE, TrainedOn, head_file, save_checkpoint
from pipeline.models.identity import PredictConfig
from pipeline.models.predict import Predictor
from pipeline.models.registry import load_model
from pipeline.storage.store import Store
from pipeline.training.train_plan import PENALTIES
from transforms.hashing import keyed_hashes

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

FOLDS = 5
CHOICE_UNITS = 5000
"""Largest number of units that the penalty is chosen on; more units hardly change the choice."""

_ABSENT_LOGIT = -1e4
"""Logit of a class without training images."""
_STEPS = 100
"""Largest number of Newton steps, and of conjugate gradients in each; most fits need 5 to 20."""
_TOLERANCE = 1e-6
"""What weights or biases may still change in a logit of an image that the probe was fitted on."""
_ACCURACY = 0.1
"""Residual of a Newton step, as a share of the gradient. The steps that follow remove it."""


@dataclasses.dataclass(frozen=True, eq=False)
class LinearProbe:
    """A linear layer, logits = features @ weight.T + bias, of float64.

    `weight` is (classes, features), `bias` (classes,).
    """

    weight: Floats
    bias: Floats
    penalty: float

    def logits(self, features: NDArray[np.floating]) -> Floats:
        """Computes the (n, classes) float64 logits of (n, features) features."""
        return np.asarray(features, np.float64) @ self.weight.T + self.bias


def fit_probes(
    features: NDArray[np.floating], labels: Labels, num_classes: int, penalties: Sequence[float]
) -> list[LinearProbe]:
    """Fits a probe with each penalty.

    Features are standardised for the fit, so that the penalty has the same effect on each. The
    resulting probes take features without standardisation.

    Args:
      features: (n, features), n >= 1.
      labels: (n,) int64 in [0, num_classes).
      num_classes: number of outputs; a class without images is never predicted.
      penalties: factors of the penalty, > 0, which is half the sum of the squared weights and is
        added to the mean loss of an image. Biases are not penalised. The fit is fastest in
        descending order, because each starts from the one before.

    Raises:
      JobError: rounding errors exceed the tolerance, for a tiny penalty or extreme features.
    """
    values = np.asarray(features, np.float64)
    mean, scale = values.mean(axis=0), values.std(axis=0)
    # A constant feature becomes 0 everywhere, instead of 0 / 0.
    scale = np.where(scale > 1e-12, scale, 1.0)
    inputs = torch.from_numpy((values - mean) / scale)
    present, targets = np.unique(labels, return_inverse=True)
    indicators = one_hot(torch.from_numpy(targets)).double()
    probes = []
    threads = torch.get_num_threads()
    # Uses one thread, because sums must not depend on the number of cores, and because several
    # threads would mostly wait for each other.
    torch.set_num_threads(1)
    try:
        coordinates = _coordinates(inputs)
        parameters = coordinates.new_zeros(len(present), coordinates.shape[1])
        for penalty in penalties:
            parameters, residuals = _minimise(coordinates, indicators, penalty, parameters)
            # The gradient of the weights is 0 at the minimum, which gives them as a combination of
            # the images. Builds the standardisation into the layer, and adds the classes that have
            # no images.
            weight = np.zeros((num_classes, len(mean)))
            bias = np.full(num_classes, _ABSENT_LOGIT)
            weight[present] = (residuals.T @ inputs).numpy() / (len(labels) * penalty) / scale
            bias[present] = parameters[:, -1].numpy() - (weight[present] * mean).sum(axis=1)
            probes.append(LinearProbe(weight, bias, penalty))
    finally:
        torch.set_num_threads(threads)
    return probes


def choose_penalty(
    features: NDArray[np.floating],
    labels: Labels,
    units: Sequence[str],
    *,
    penalties: Sequence[float] = PENALTIES,
) -> float:
    """Chooses the penalty with the smallest cross-validated loss.

    Args:
      features: (n, features).
      labels: (n,) int64.
      units: (n,) unit of each image: its group, or its key. All images of a unit are in the same
        fold. Keyed hashes select at most `CHOICE_UNITS` units and assign them to folds.
      penalties: penalties to try, in descending order.

    Returns:
      The best penalty; the strongest of equally good penalties, or of all if there are too few
      images to compare them.
    """
    names, unit_of = np.unique(np.asarray(units, object), return_inverse=True)
    order = np.argsort(keyed_hashes(0, "probe folds", names), kind="stable")
    rank = np.argsort(order)[unit_of]
    folds = np.where(rank < CHOICE_UNITS, rank % FOLDS, -1)
    losses = np.zeros(len(penalties))
    for fold in range(FOLDS):
        train, test = (folds >= 0) & (folds != fold), folds == fold
        # An image whose class is missing in `train` would not help to compare penalties.
        test &= np.isin(labels, labels[train])
        if not train.any() or not test.any():
            continue
        targets = torch.from_numpy(labels[test])
        probes = fit_probes(features[train], labels[train], int(labels.max()) + 1, penalties)
        for index, probe in enumerate(probes):
            logits = torch.from_numpy(probe.logits(features[test]))
            losses[index] += float(cross_entropy(logits, targets, reduction="sum"))
    # Losses that differ less than the tolerance allows are equal.
    return float(penalties[int(np.argmax(losses <= losses.min() + _TOLERANCE * len(labels)))])


def _coordinates(inputs: torch.Tensor) -> torch.Tensor:
    """Turns (n, features) to their principal axes, and appends a column of ones.

    The (n, min(n, features) + 1) coordinates have the scalar products of the inputs.
    """
    is_wide = inputs.shape[0] <= inputs.shape[1]
    squares, vectors = torch.linalg.eigh(inputs @ inputs.T if is_wide else inputs.T @ inputs)
    rotated = vectors * squares.clamp(min=0).sqrt() if is_wide else inputs @ vectors
    return torch.cat([rotated, rotated.new_ones(len(rotated), 1)], dim=1)


def _minimise(
    inputs: torch.Tensor, indicators: torch.Tensor, penalty: float, parameters: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds the parameters that minimise the mean loss plus the penalty, by Newton's method.

    Args:
      inputs: (n, k + 1) float64 coordinates of the images, with a last column of ones.
      indicators: (n, classes) float64, 1 for the class of each image.
      parameters: (classes, k + 1) float64 to start from: weights and bias of each class.

    Returns:
      (parameters, residuals: (n, classes) indicators minus probabilities).
    """
    strength = torch.full_like(inputs[0], penalty)
    strength[-1] = 0
    longest = inputs.norm(dim=1).max()
    step, slope = torch.zeros_like(parameters), 0.0
    for _ in range(_STEPS):
        shares = (inputs @ parameters.T).softmax(dim=1)
        residuals = indicators - shares
        gradient = strength * parameters - residuals.T @ inputs / len(inputs)
        in_biases = shares.mean(dim=0).diag() - shares.T @ shares / len(inputs)
        # The least eigenvalue is 0, because a shift of all biases changes nothing.
        curvature = float(torch.linalg.eigvalsh(in_biases)[:2].max())
        # Twice, because weights computed from the residuals differ from these by |G| / penalty.
        if 2 * longest * gradient.norm() <= _TOLERANCE * min(penalty, curvature):
            return parameters, residuals
        if -float((gradient * step).sum()) > slope / 10:
            # The step went too far: at its end, the loss rises along it. Takes half of it back.
            step, slope = step / 2, slope / 2
            parameters = parameters + step
        else:
            step = _newton_step(inputs, shares, strength, gradient)
            slope = float((gradient * step).sum())
            parameters = parameters - step
    raise ModelError(
        f"a probe with a penalty of {penalty:g} does not converge, because features of some "
        "pictures are too extreme; use another network"
    )


def _newton_step(
    inputs: torch.Tensor, shares: torch.Tensor, strength: torch.Tensor, gradient: torch.Tensor
) -> torch.Tensor:
    """Solves Hessian @ step = gradient by conjugate gradients, for (n, classes) probabilities."""
    # Half the mean square bounds the curvature of the mean loss along a principal axis.
    bound = inputs.square().mean(dim=0) / 2 + strength
    step, residual = torch.zeros_like(gradient), gradient
    direction = scaled = residual / bound
    for _ in range(_STEPS):
        change = shares * (inputs @ direction.T)
        change -= shares * change.sum(dim=1, keepdim=True)
        image = change.T @ inputs / len(inputs) + strength * direction
        size = (residual * scaled).sum()
        length = size / (direction * image).sum()
        step, residual = step + length * direction, residual - length * image
        if residual.norm() <= _ACCURACY * gradient.norm():
            break
        scaled = residual / bound
        direction = scaled + (residual * scaled).sum() / size * direction
    return step


State = Mapping[str, torch.Tensor]


def fit_head(plan: HeadPlan, trained: TrainedOn, features: Features) -> tuple[State, TrainedOn]:
    """Fits a head on features of all of a plan's pictures; returns its tensors and its metadata.

    Raises JobError for the reasons of `fit_probes`.
    """
    values = np.stack([features[key] for key in trained.keys])
    rows = {row["key"]: row for row in selected_rows(plan.dataset, plan.split)}
    labels = np.asarray([rows[key]["label"] for key in trained.keys], np.int64)
    if trained.method == "knn":
        return {"features": torch.from_numpy(values), "labels": torch.from_numpy(labels)}, trained
    units = [rows[key].get("group") or key for key in trained.keys]
    penalty = choose_penalty(values, labels, units)
    (probe,) = fit_probes(values, labels, plan.dataset.taxonomy.num_labels, [penalty])
    state = {"weight": torch.tensor(probe.weight).float(), "bias": torch.tensor(probe.bias).float()}
    return state, dataclasses.replace(trained, settings={**trained.settings, "penalty": penalty})


class Encoder:
    """A frozen encoder whose features are kept in a dataset's folder.

    Args:
      entry: the encoder's entry of `--models`, such as a timm network with weights.
      cache: the folder of the dataset.

    Raises:
      UsageError, JobError: for the reasons of `load_model`.
    """

    def __init__(
        self, entry: str, predict: PredictConfig, cache: Store, weights: str | None = None
    ) -> None:
        self.model = load_model(PROBE + entry, weights)
        self._files = FeatureFiles(cache, self.model.identity, predict)

    @functools.cached_property
    def _predictor(self) -> Predictor:
        return Predictor(self.model, self._files.predict)

    def features(self, pictures: ShardPictures, part: str = "") -> Features:
        """Computes the features of pictures, or reads them; they are kept as a `part`.

        Raises:
          ModelError: the encoder's forward pass fails, or a feature is NaN or infinite.
          JobError: a stored picture cannot be decoded.
        """
        files = dataclasses.replace(self._files, part=part)
        if not files.is_done(pictures):
            try:
                table = encode(self._predictor, pictures)
            except ModelError as error:
                raise ModelError(f"{self.model.name}: {error}") from error
            write_table(files.store, files.path(pictures), table, files.fingerprint(pictures.name))
        return files.read(pictures)

    def fit(self, plan: HeadPlan, store: Store, path: str | None = None) -> str:
        """Fits a probe on a variant, unless it has a checkpoint; returns its full path.

        `path` is the checkpoint's in the folder, by default what `path_of` returns. Raises the
        errors of `HeadPlan.pictures`, `features`, `fit_head` and `is_fitted`.
        """
        path, of = path or self.path_of(plan), self.model
        trained = plan.trained_on(of.name, of, self._files.predict)
        if not is_fitted(store, path, trained):
            features = plan.read(functools.partial(self.features, part=plan.part))
            state, trained = fit_head(plan, trained, features)
            save_checkpoint(store, path, state, trained)
        return store.path(path)

    def path_of(self, plan: HeadPlan) -> str:
        """Returns the path of a probe's checkpoint in the folder of a dataset."""
        return head_file(self.model.name, plan.split, plan.holdout, plan.name or plan.variant)
