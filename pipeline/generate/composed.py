"""A finished dataset that also has variants that it does not store.

They are composed from the layers when they are read, and pass through the dataset's own encoder, so
their pictures are, byte for byte, those that would have been stored.
"""

import collections
import dataclasses
import functools
import itertools
import tempfile
from collections.abc import Generator, Iterable, Sequence
from typing import NamedTuple

import pyarrow as pa
from typing_extensions import override

from pipeline.dataset.config import ComposeConfig
from pipeline.dataset.folder import SAMPLES_AT_ONCE, Dataset, selected_rows, table_of
from pipeline.dataset.records import ACCEPTED, layer_record, read_image_rows
from pipeline.generate.cut_source import Cutter
from pipeline.generate.pictures import (
    Composer,
    Fills,
    LayerSource,
    SelectedImage,
    find_variants,
)
from pipeline.generate.plan import Plan, plan_of_dataset
from pipeline.storage.store import FileDigest
from transforms.hashing import fingerprint
from transforms.renderings import AGAINST, COMMON
from transforms.variants import (
    PAPER,
    VariantName,
    filled_bases,
)


class _Images(NamedTuple):
    """Images that pictures are composed of: their keys, each with the key in `dataset`.

    Pairs are drawn from the plan `drawn`; the plan `found` finds the layers.
    """

    dataset: Dataset
    keys: dict[str, str]
    drawn: Plan
    found: Plan


@dataclasses.dataclass(frozen=True)
class ComposedDataset(Dataset):
    """A finished dataset with further mixed variants of one split.

    Attributes:
      compose: how they are made: variants, pairs and encoding. Backgrounds that the index names are
        not drawn again.
      other: a dataset with this split to compare with, which adds variants with `COMMON` and
        `AGAINST` in their names; or None.
      tiled: for each variant that was read to its end, number of backgrounds that stayed tiled.
    """

    split: str
    compose: ComposeConfig
    other: Dataset | None = None
    tiled: list[int] = dataclasses.field(default_factory=list, compare=False)

    @property
    @override
    def variants(self) -> tuple[VariantName, ...]:
        return (
            *self.compose.composed,
            *(
                dataclasses.replace(name, rendering=each)
                for each in ((COMMON, AGAINST) if self.other else ())
                for name in dict.fromkeys(name.pairs for name in self.compose.composed)
            ),
        )

    # Equal datasets share their plans, so that not every model of a process waits for them.
    @functools.cached_property
    @functools.lru_cache(maxsize=4)  # noqa: B019
    def images(self) -> dict[str, _Images]:
        """The images by what stands in place of a rendering: "" for all, `COMMON`, `AGAINST`.

        Two datasets have an image in common if both have the same file (by MD5), label and, if
        either has `--objects each`, box, and if these images have backgrounds among themselves.
        """
        every = {row["key"]: row["key"] for row in selected_rows(self, self.split)}
        plan = plan_of_dataset(self, self.split, self.compose, list(every))
        images = {"": _Images(self, every, plan, plan)}
        if self.other:
            by_box = "each" in (
                self.manifest.config.segment.objects,
                self.other.manifest.config.segment.objects,
            )
            ours, theirs = (
                {
                    (row["source_md5"], row["label"], by_box and tuple(row["native_box"])): row[
                        "key"
                    ]
                    for row in selected_rows(dataset, self.split)
                }
                for dataset in (self, self.other)
            )
            both = {key: theirs[image] for image, key in ours.items() if image in theirs}
            plan = plan_of_dataset(self, self.split, self.compose, list(both))
            keys = {key: both[key] for key in plan.keys.take(pa.array(plan.rows)).to_pylist()}
            found = plan_of_dataset(self.other, self.split, self.compose, list(keys.values()))
            images |= {
                COMMON: _Images(self, {key: key for key in keys}, plan, plan),
                AGAINST: _Images(self.other, keys, plan, found),
            }
        return images

    def _shown(self, variant: VariantName) -> tuple[str, VariantName, str] | None:
        """Finds out how a variant is composed; returns None if it is stored.

        The result is (key in `images`, the variant composed of them, its entry of the
        configuration).
        """
        kind = variant.rendering if variant not in self.compose.composed else ""
        name, stored = variant.pairs if kind else variant, self.manifest.config.compose
        entry = next(
            each for each in self.compose.variants if VariantName.parse(each) == name.variant
        )
        is_stored = not kind and name in stored.composed and entry in stored.variants
        return None if is_stored else (kind, name, entry)

    @functools.cached_property
    @functools.lru_cache(maxsize=4)  # noqa: B019
    def _files(self) -> dict[str, tuple[str, collections.Counter[int]]]:
        """For each set of images: what pictures depend on, also pairs, and number by shard."""
        return {
            kind: (
                fingerprint(
                    [
                        each.digests[layer_record(self.split, number)].sha256
                        for each in (self, images.dataset)
                        for number in range(each.manifest.shards[self.split].source)
                    ],
                    [
                        dataclasses.replace(each, variants=PAPER, replicates=1).fingerprint()
                        for each in (self.compose, images.dataset.manifest.config.compose)
                    ],
                    sorted(images.keys.items()),
                ),
                collections.Counter(self.shard_of(self.split, key) for key in images.keys),
            )
            for kind, images in self.images.items()
        }

    @override
    def shard_files(
        self, split: str, shard: int, variants: Iterable[VariantName]
    ) -> list[FileDigest]:
        """Adds an entry without bytes for a variant that is not stored, behind those of files.

        Its digest is that of everything that the pictures depend on.
        """
        variants = tuple(variants)
        shown = {variant: how for variant in variants if (how := self._shown(variant))}
        stored = (variant for variant in variants if variant not in shown)
        return [
            *super().shard_files(split, shard, stored),
            *(
                FileDigest(
                    str(variant), 0, fingerprint(of, shard, str(name), entry), samples[shard]
                )
                for variant, (kind, name, entry) in shown.items()
                for of, samples in [self._files[kind]]
            ),
        ]

    @override
    def tables(
        self, split: str, shard: int, variant: VariantName, columns: Sequence[str]
    ) -> Generator[pa.Table, None, None]:
        if (shown := self._shown(variant)) is None:
            yield from super().tables(split, shard, variant, columns)
            return
        kind, name, entry = shown
        dataset = self.images[kind].dataset
        composer = Composer(dataset.manifest.config.compose, (name,), find_variants([entry]))
        source = LayerSource(
            dataset.store,
            Cutter(dataset.manifest.config.segment),
            filled=filled_bases([name]),
        )
        with tempfile.TemporaryFile() as file:
            selected, fills = self._selected(shard, kind, name.pairs), Fills(file)
            composed = (
                composer.compose(source, selected, fills)
                if "image" in columns
                else ((image, {}) for image in selected)
            )
            samples = (
                composer.sample(image, name, pictures.get(name)) for image, pictures in composed
            )
            while batch := list(itertools.islice(samples, SAMPLES_AT_ONCE)):
                yield table_of(batch, columns)
            self.tiled.append(fills.tiled)

    def _selected(self, shard: int, kind: str, pairs: VariantName) -> list[SelectedImage]:
        """Returns the selected images of a shard in order, each with its background."""
        images, index = self.images[kind], selected_rows(self, self.split, shard=shard)
        keys = [row["key"] for row in index if row["key"] in images.keys]
        backgrounds = [row.get(f"{pairs}_bg_key") for row in index]
        if kind or not all(backgrounds):
            backgrounds = [one.key for one in images.drawn.backgrounds(keys, (pairs,))[pairs]]
        used = {key: images.keys[key] for key in (*keys, *backgrounds)}
        found = dict(zip(used, images.found.find(list(used.values())), strict=True))
        records = {
            row.key: row
            for tar in sorted({found[key].tar or "" for key in keys})
            for row in read_image_rows(images.dataset.store, tar.replace(".tar", ".parquet"))
            if row.status == ACCEPTED
        }
        return [
            SelectedImage(
                dataclasses.replace(records[used[key]], key=key),
                found[key],
                {pairs: dataclasses.replace(found[background], key=background)},
            )
            for key, background in zip(keys, backgrounds, strict=True)
        ]
