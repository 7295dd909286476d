"""Fits a linear probe on a variant: a new last layer for a frozen pretrained network.

The checkpoint holds the complete network with the new layer, so `--models ARCH=FILE` loads it. The
features, which are the input of the last layer, are computed once for each picture.

.in9/features/<model>/<variant>/<split>-NNNNN.parquet   features of one output shard, recomputed if
                                                        the weights, the settings of inference or
                                                        the pictures have changed
"""

import contextlib
import dataclasses
import functools
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Self

import numpy as np
import pyarrow as pa
import timm
import torch
from numpy.typing import NDArray

from pipeline.dataset import records
from pipeline.dataset.config import EVALUATE_VERSION
from pipeline.dataset.folder import Dataset, selected_rows, training_pictures
from pipeline.errors import ModelError, UsageError
from pipeline.evaluate.predict_shards import ShardPictures
from pipeline.evaluate.results import safe_name
from pipeline.models.checkpoint import (
    SUFFIX,
    TrainedOn,
    digest_of_classes,
    read_metadata,
    save_checkpoint,
)
from pipeline.models.identity import PredictConfig
from pipeline.models.predict import Predictor, are_numbers, refuse_broken
from pipeline.models.registry import load_model
from pipeline.storage.state_files import read_table
from pipeline.storage.store import WORK_FOLDER, Store
from pipeline.training.linear_probe import choose_penalty, fit_probes
from transforms.hashing import fingerprint
from transforms.variants import VariantName

_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("label", pa.int64()),
        pa.field("features", pa.list_(pa.float32())),
    ]
)


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """Features of n pictures: (n,) keys, (n,) int64 labels, (n, features) float32 values."""

    keys: tuple[str, ...]
    labels: NDArray[np.int64]
    values: NDArray[np.float32]

    def select(self, keys: Iterable[str]) -> Self:
        """Selects images by key, in the given order. Raises KeyError for an unknown key."""
        row_of = {key: row for row, key in enumerate(self.keys)}
        rows = np.asarray([row_of[key] for key in keys], np.int64)
        return type(self)(tuple(self.keys[i] for i in rows), self.labels[rows], self.values[rows])

    @classmethod
    def concatenate(cls, several: Sequence[Self]) -> Self:
        """Joins several `Features`, in order."""
        return cls(
            tuple(key for features in several for key in features.keys),
            np.concatenate([features.labels for features in several]),
            np.concatenate([features.values for features in several]),
        )


class _WithoutHead(torch.nn.Module):
    """A timm network without its last layer."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.network.forward_head(
            self.network.forward_features(pictures), pre_logits=True
        )
        return features


class Backbone:
    """A frozen pretrained network that computes features.

    Args:
      name: entry of `--models` for a timm network with weights.
      cache: dataset folder that caches the features.

    Attributes:
      architecture: timm's name, without a tag.
      layer: the last layer of the network, which the probe will replace.

    Raises:
      UsageError: the model is not a timm network that ends with a linear layer, or for the reasons
        of `load_model`.
      JobError: for the reasons of `load_model`.
    """

    def __init__(
        self, name: str, predict: PredictConfig, cache: Store, weights: str | None = None
    ) -> None:
        model = load_model(name, weights)
        network: Any = model.module
        self.model = model
        self.architecture = model.architecture.partition(".")[0]
        if not (hasattr(network, "forward_head") and timm.is_model(self.architecture)):
            raise UsageError(
                f"{name}: a probe needs a network of timm, such as efficientnet_lite0 or resnet50"
            )
        self.layer = network.get_classifier()
        headless = _WithoutHead(network).eval()
        side = model.preprocessing.input_size
        trial = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            features, logits = headless(trial), network(trial)
            is_linear = isinstance(self.layer, torch.nn.Linear) and features.ndim == 2
            # Weights of NaN are not refused here: `features` says what is wrong.
            if not is_linear or not torch.allclose(
                self.layer(features), logits, atol=1e-3, equal_nan=True
            ):
                raise UsageError(f"{name}: a probe needs a network that ends with a linear layer")
        self._predict, self._cache = predict, cache
        self._headless = dataclasses.replace(
            model, module=headless, num_outputs=int(features.shape[1])
        )

    @functools.cached_property
    def _predictor(self) -> Predictor:
        return Predictor(self._headless, self._predict)

    def features(
        self,
        dataset: Dataset,
        split: str,
        variant: VariantName,
        keys: Collection[str] | None = None,
    ) -> Features:
        """Computes the features of a variant's pictures, or reads them from the cache.

        They are in the dataset's order, of the images `keys`, or of all.

        Raises:
          ModelError: the network's forward pass fails, or a feature is NaN or infinite.
          JobError: a stored picture cannot be decoded.
        """
        chosen = None if keys is None else frozenset(keys)
        return Features.concatenate(
            [
                self.shard_features(ShardPictures(dataset, split, shard, variant, chosen))
                for shard in dataset.shards(split)
            ]
        )

    def shard_features(self, pictures: ShardPictures) -> Features:
        """Does the same as `features` for one output shard."""
        try:
            return self._shard_features(pictures)
        except ModelError as error:
            raise ModelError(f"{self.model.name}: {error}") from error

    def _shard_features(self, pictures: ShardPictures) -> Features:
        dataset, keys = pictures.dataset, pictures.keys
        store, name = self._cache, safe_name(str(pictures.variant))
        if dataset.store != store:
            # The features are cached in another dataset's folder, because `dataset` may be
            # read-only.
            name = f"{dataset.manifest.fingerprint[:12]}-{name}"
        folder = f"{WORK_FOLDER}/features/{safe_name(self.model.name)}/{name}"
        path = f"{folder}/{pictures.split}-{pictures.shard:05d}.parquet"
        checksum = fingerprint(
            self.model.weights_sha256,
            dataclasses.asdict(self.model.preprocessing),
            self._predict.identity,
            EVALUATE_VERSION,
            [file.sha256 for file in pictures.files],
            None if keys is None else sorted(keys),
        )
        metadata = records.read_metadata(store, path)
        if metadata is None or metadata.fingerprint != checksum:
            tables = [_SCHEMA.empty_table()]
            side = dataset.manifest.config.segment.image_size
            with contextlib.closing(self._predictor.logits([pictures], side)) as batches:
                for batch, values in batches:
                    columns = batch.rows.select(["key", "label"]).columns
                    tables.append(pa.table([*columns, pa.array(list(values))], _SCHEMA))
            records.write_table(store, path, pa.concat_tables(tables), checksum)
        table = read_table(store, path)
        flat = table["features"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        features = Features(
            tuple(table["key"].to_pylist()),
            table["label"].to_numpy().astype(np.int64),
            flat.reshape(len(table), self._headless.num_outputs),
        )
        # A feature masks no class, so none may be -infinity.
        refuse_broken(are_numbers(torch.from_numpy(np.abs(features.values))), "features")
        return features


PROBE_VERSION = 2
"""Incremented by hand whenever a change of the code makes the same features give another probe."""
MODELS = "models"
"""Folder of a dataset that holds the checkpoints trained on it."""


@dataclasses.dataclass(frozen=True)
class ProbePlan:
    """The pictures that a probe is fitted on.

    Attributes:
      name: name that the checkpoint records instead of `variant`, such as `in9l`; None for the
        variant's own.
    """

    dataset: Dataset
    variant: str
    split: str
    holdout: float
    name: str | None = None


def probe_file(backbone: Backbone, plan: ProbePlan) -> str:
    """Returns the path of a probe's checkpoint in the folder of a dataset."""
    parts = ["probe", backbone.model.name.replace("/", "_"), plan.split]
    parts += [f"holdout{plan.holdout:g}"] if plan.holdout else []
    return f"{MODELS}/{'-'.join(parts)}-seed0/{plan.name or plan.variant}{SUFFIX}"


def fit_variant(backbone: Backbone, plan: ProbePlan, store: Store, path: str | None = None) -> str:
    """Fits a probe on a variant, unless it has a checkpoint; returns the checkpoint's full path.

    `path` is the checkpoint's in the folder, by default what `probe_file` returns.

    Raises:
      UsageError: there are no pictures to train on.
      ModelError, JobError: for the reasons of `Backbone.features`; also JobError if the checkpoint
        that exists has broken metadata.
    """
    path = path or probe_file(backbone, plan)
    chosen = training_pictures(plan.dataset, plan.split, plan.variant, plan.holdout)
    if not chosen:
        raise UsageError(f"no pictures of {plan.variant} in {plan.split} are left to train on")
    metadata = TrainedOn(
        architecture=backbone.architecture,
        variant=plan.name or plan.variant,
        dataset=plan.dataset.manifest.fingerprint,
        split=plan.split,
        classes=digest_of_classes(plan.dataset.taxonomy),
        preprocessing=backbone.model.preprocessing,
        keys=tuple(sorted(chosen)),
        method="probe",
        seed=0,
        holdout=plan.holdout,
        pretrained=backbone.model.name,
        settings={
            "probe_version": PROBE_VERSION,
            "weights_sha256": backbone.model.weights_sha256,
        },
    )
    existing = read_metadata(store.path(path)) if store.exists(path) else None
    if existing:
        settings = {name: value for name, value in existing.settings.items() if name != "penalty"}
        if dataclasses.replace(existing, settings=settings) == metadata:
            return store.path(path)
    features = _training_features(backbone, plan, chosen)
    rows = {row["key"]: row for row in selected_rows(plan.dataset, plan.split)}
    units = [rows[key].get("group") or key for key in features.keys]
    num_labels = plan.dataset.taxonomy.num_labels
    penalty = choose_penalty(features.values, features.labels, units)
    (probe,) = fit_probes(features.values, features.labels, num_labels, [penalty])
    module = backbone.model.module
    names = {id(value): name for name, value in module.named_parameters()}
    state = {
        **module.state_dict(),
        names[id(backbone.layer.weight)]: torch.from_numpy(probe.weight.astype(np.float32)),
        names[id(backbone.layer.bias)]: torch.from_numpy(probe.bias.astype(np.float32)),
    }
    settings = {**metadata.settings, "penalty": penalty}
    save_checkpoint(store, path, state, dataclasses.replace(metadata, settings=settings))
    return store.path(path)


def _training_features(
    backbone: Backbone, plan: ProbePlan, chosen: dict[str, VariantName]
) -> Features:
    """Computes the features of the training pictures, which may come from several replicates."""
    features = []
    for name in dict.fromkeys(chosen.values()):
        keys = [key for key, variant in chosen.items() if variant == name]
        # Evaluation will need the features of all pictures of `variant`, so all are cached.
        subset = None if str(name) == plan.variant else keys
        features.append(backbone.features(plan.dataset, plan.split, name, subset).select(keys))
    return Features.concatenate(features)
