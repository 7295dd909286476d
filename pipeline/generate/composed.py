"""A finished dataset that also has variants that it does not store.

They are composed from the layers when they are read, and pass through the dataset's own encoder, so
that their pictures are those that would have been stored, byte for byte.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import tempfile
from collections.abc import Generator, Iterable, Sequence

import pyarrow as pa
from typing_extensions import override

from pipeline.dataset.config import ComposeConfig, fingerprint
from pipeline.dataset.folder import SAMPLES_AT_ONCE, Dataset, selected_rows, table_of
from pipeline.dataset.records import ACCEPTED, layer_record, read_image_rows
from pipeline.generate.custom_variants import find_variants
from pipeline.generate.cut_source import Cutter
from pipeline.generate.pictures import Composer, Fills, LayerSource, SelectedImage
from pipeline.generate.plan import Plan, plan_of_dataset
from pipeline.storage.store import FileDigest
from transforms.geometry import Pixels
from transforms.variants import PAPER, filled_bases, pairs_of


@dataclasses.dataclass(frozen=True)
class ComposedDataset(Dataset):
    """A finished dataset with further mixed variants of one split.

    Attributes:
      split: the split.
      compose: how they are made: variants, pairs and encoding. Backgrounds that the index names are
        not drawn again.
    """

    split: str
    compose: ComposeConfig

    @property
    @override
    def variants(self) -> tuple[str, ...]:
        return self.compose.composed

    @functools.cached_property
    def _plan(self) -> Plan:
        keys = [row["key"] for row in selected_rows(self, self.split)]
        return plan_of_dataset(self, self.split, self.compose, keys)

    @functools.cached_property
    def _of(self) -> str:
        """Identifies what composed pictures depend on: layers, pairs and flags."""
        layers = [
            self._digests[layer_record(self.split, number)].sha256
            for number in range(self.manifest.shards[self.split].source)
        ]
        columns = ["key", *dict.fromkeys(f"{pairs_of(name)}_bg_key" for name in self.variants)]
        pairs = [[row.get(name) for name in columns] for row in selected_rows(self, self.split)]
        flags = dataclasses.replace(self.compose, variants=PAPER, replicates=1)
        return fingerprint(layers, pairs, flags.fingerprint())

    @override
    def shard_files(self, split: str, shard: int, variants: tuple[str, ...]) -> list[FileDigest]:
        """Has an entry without bytes for a variant that is not stored.

        Its digest is that of everything that the pictures depend on.
        """
        stored = self.manifest.config.compose.composed
        (samples,) = {file.samples for file in super().shard_files(split, shard, stored)} or {0}
        return super().shard_files(split, shard, variants) + [
            FileDigest(name, 0, fingerprint(self._of, shard, name), samples)
            for name in variants
            if name not in stored
        ]

    @override
    def tables(
        self, split: str, shard: int, variant: str, columns: Sequence[str]
    ) -> Generator[pa.Table, None, None]:
        if variant in self.manifest.config.compose.composed:
            yield from super().tables(split, shard, variant, columns)
            return
        composer = Composer(self.compose, (variant,), find_variants(self.compose.variants))
        # Layers are read and never cut, so a custom segmenter need not be importable.
        config = dataclasses.replace(
            self.manifest.config.segment, segmenter="box", segmenter_parameters=()
        )
        source = LayerSource(self.store, Cutter(config), filled=filled_bases([variant]))
        with tempfile.TemporaryFile() as file:
            images = self._images(shard, variant)
            composed: Iterable[tuple[SelectedImage, dict[str, Pixels]]]
            composed = composer.compose(source, images, Fills(file))
            if "image" not in columns:
                composed = ((image, {}) for image in images)
            samples = (
                composer.sample(image, variant, pictures.get(variant))
                for image, pictures in composed
            )
            while batch := list(itertools.islice(samples, SAMPLES_AT_ONCE)):
                yield table_of(batch, columns)

    def _images(self, shard: int, variant: str) -> list[SelectedImage]:
        """Returns the selected images of a shard in order, each with its background."""
        counts, pairs = self.manifest.shards[self.split], pairs_of(variant)
        index = selected_rows(self, self.split, shard=shard)
        records = {
            row.key: row
            for number in counts.sources_of(shard)
            for row in read_image_rows(self.store, layer_record(self.split, number))
            if row.status == ACCEPTED
        }
        keys = [row["key"] for row in index]
        named = [row[f"{pairs}_bg_key"] for row in index if row.get(f"{pairs}_bg_key")]
        if len(named) == len(index):
            unique = list(dict.fromkeys(named))
            found = dict(zip(unique, self._plan.find(unique), strict=True))
            drawn = [found[key] for key in named]
        else:
            drawn = self._plan.backgrounds(keys, (pairs,))[pairs]
        planned = self._plan.find(keys)
        return [
            SelectedImage(records[key], image, {pairs: background})
            for key, image, background in zip(keys, planned, drawn, strict=True)
        ]
