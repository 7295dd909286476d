"""Features of pictures, which a frozen encoder computes once.

.in9/features/<encoder>/<variant><part>/<split>-NNNNN.parquet   features of an output shard

They are computed again if the weights, the settings of inference or the pictures have changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.dataset import records
from pipeline.dataset.config import EVALUATE_VERSION
from pipeline.dataset.folder import Dataset, selected_rows, training_pictures
from pipeline.errors import ModelError, UsageError, counted
from pipeline.evaluate.predict_shards import ShardPictures
from pipeline.evaluate.results import ModelRun
from pipeline.models.checkpoint import (
    KNN,
    PROBE,
    TrainedOn,
    digest_of_classes,
    encoder_of,
    read_metadata,
    safe_name,
)
from pipeline.models.identity import ModelIdentity, PredictConfig
from pipeline.storage.state_files import read_table
from pipeline.storage.store import WORK_FOLDER, Store
from transforms.hashing import fingerprint
from transforms.variants import VariantName

if TYPE_CHECKING:
    from pipeline.models.predict import Predictor


Features = Mapping[str, NDArray[np.float32]]
"""The features of pictures, (width,) float32 each, by key."""


@dataclasses.dataclass(frozen=True)
class FeatureFiles:
    """The files that keep an encoder's features in a dataset's folder.

    Attributes:
      part: name of the part of a variant's pictures that they are of; "" for all.
    """

    store: Store
    model: ModelIdentity | ModelRun
    predict: PredictConfig
    part: str = ""

    @property
    def folder(self) -> str:
        return f"{WORK_FOLDER}/features/{self.fingerprint()[:16]}"

    def path(self, pictures: ShardPictures) -> str:
        dataset, name = pictures.dataset, safe_name(f"{pictures.variant}{self.part}")
        if dataset.store != self.store:
            # Another dataset may be read-only.
            name = f"{dataset.manifest.fingerprint[:12]}-{name}"
        return f"{self.folder}/{name}/{pictures.split}-{pictures.shard:05d}.parquet"

    def fingerprint(self, *pictures: object) -> str:
        """Returns a fingerprint of the encoder, the settings, and what tells pictures apart."""
        model, settings = self.model, (self.predict.identity, EVALUATE_VERSION)
        # Weights alone do not tell what is done with them.
        entry = encoder_of(model.model if isinstance(model, ModelRun) else model.name)
        of = entry, model.weights_sha256, model.architecture, model.features or ""
        return fingerprint(*of, dataclasses.asdict(model.preprocessing), *settings, *pictures)

    def is_done(self, pictures: ShardPictures) -> bool:
        """Returns whether the present features of pictures exist."""
        metadata = records.read_metadata(self.store, self.path(pictures))
        return metadata is not None and metadata.fingerprint == self.fingerprint(pictures.name)

    def read(self, pictures: ShardPictures) -> Features:
        """Reads features that exist."""
        return features_in(read_table(self.store, self.path(pictures)))


_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("features", pa.list_(pa.float32())),
    ]
)


def values_of(table: pa.Table) -> NDArray[np.float32]:
    """Returns the (n, width) float32 features of a table's n rows."""
    flat = table["features"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    width = len(flat) // max(1, len(table))
    return np.asarray(flat, np.float32).reshape(len(table), width)


def encode(
    predictor: Predictor,
    pictures: ShardPictures,
    note: Callable[[int, int], None] = lambda *_: None,
) -> pa.Table:
    """Computes the features of pictures, for `features_in`.

    It notes after each batch how many pictures are new, and how many done.

    Raises:
      ModelError: the encoder fails, or a feature is NaN or infinite.
      JobError: a stored picture cannot be decoded.
    """
    tables = [_SCHEMA.empty_table()]
    side = pictures.dataset.manifest.config.segment.image_size
    with contextlib.closing(predictor.logits([pictures], side)) as batches:
        for batch, values in batches:
            if broken := int((~np.isfinite(values)).any(axis=1).sum()):
                raise ModelError(
                    f"its features are not numbers but NaN or infinity for {broken} of "
                    f"{counted(len(values), 'picture')} of a batch"
                )
            offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
            features = pa.ListArray.from_arrays(offsets, values.ravel())
            tables.append(pa.table([batch.rows["key"], features], _SCHEMA))
            note(len(values), len(values))
    return pa.concat_tables(tables)


def features_in(table: pa.Table) -> Features:
    """Returns the features in a table of `encode`."""
    return dict(zip(table["key"].to_pylist(), values_of(table), strict=True))


HEAD_VERSION = 3
"""Incremented by hand whenever a change of the code makes the same features give another head."""


@dataclasses.dataclass(frozen=True)
class HeadPlan:
    """The pictures that a head is fitted on.

    Attributes:
      name: name that the checkpoint records instead of `variant`, such as `in9l`; None for the
        variant's own.
    """

    dataset: Dataset
    variant: str
    split: str
    holdout: float
    name: str | None = None

    @functools.cached_property
    def pictures(self) -> dict[str, VariantName]:
        """The variant to take each image's picture from, by key.

        Raises UsageError if there are no pictures to fit on.
        """
        chosen = training_pictures(self.dataset, self.split, self.variant, self.holdout)
        if not chosen:
            raise UsageError(f"no pictures of {self.variant} in {self.split} are left to train on")
        return chosen

    @property
    def part(self) -> str:
        """Name of the part of a variant's pictures, for `FeatureFiles`."""
        return f"-fit{self.holdout:g}"

    def trained_on(
        self, name: str, model: ModelIdentity | ModelRun, predict: PredictConfig
    ) -> TrainedOn:
        """Returns what a head of the encoder `name` records of its fit, besides its penalty."""
        variants = sorted(set(self.pictures.values()), key=str)
        files = [
            file.sha256
            for shard in self.dataset.shards(self.split)
            for file in self.dataset.shard_files(self.split, shard, variants)
        ]
        return TrainedOn(
            architecture=model.architecture,
            variant=self.name or self.variant,
            dataset=self.dataset.manifest.fingerprint,
            split=self.split,
            classes=digest_of_classes(self.dataset.taxonomy),
            preprocessing=model.preprocessing,
            keys=tuple(sorted(self.pictures)),
            method=(KNN if name.startswith(KNN) else PROBE).rstrip(":"),
            seed=0,
            holdout=self.holdout,
            pretrained=encoder_of(name),
            settings={
                "head_version": HEAD_VERSION,
                "evaluate_version": EVALUATE_VERSION,
                "weights_sha256": model.weights_sha256,
                "features": model.features or "",
                "predict": predict.identity,
                "pictures": fingerprint(files),
            },
        )

    def sets(self) -> Iterator[ShardPictures]:
        """Yields all pictures, by shard; a mixed variant may have them in several replicates."""
        for shard in self.dataset.shards(self.split):
            by_variant: dict[VariantName, set[str]] = {}
            for row in selected_rows(self.dataset, self.split, shard=shard):
                if name := self.pictures.get(row["key"]):
                    by_variant.setdefault(name, set()).add(row["key"])
            for name, keys in by_variant.items():
                yield ShardPictures(self.dataset, self.split, shard, name, frozenset(keys))

    def read(self, read: Callable[[ShardPictures], Features]) -> Features:
        """Reads the features of all pictures."""
        return {key: value for one in self.sets() for key, value in read(one).items()}


def is_fitted(store: Store, path: str, trained: TrainedOn) -> bool:
    """Returns whether a head exists and was fitted on these pictures, with these settings.

    Raises JobError if the checkpoint that exists has broken metadata.
    """
    existing = read_metadata(store.path(path)) if store.exists(path) else None
    return existing is not None and existing.fit == trained.fit
