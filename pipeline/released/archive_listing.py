"""What a released archive holds: its images, each with its file in every version."""

from __future__ import annotations

import dataclasses
import posixpath
from collections import Counter
from collections.abc import Iterable

from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.fingerprints import fingerprint
from pipeline.dataset.shards import ShardCounts
from pipeline.errors import UsageError
from pipeline.generate.shard_elements import SplitTotals
from pipeline.released.archive import ArchiveLocation, read_places
from pipeline.released.names import label_of_folder, parse_mixed, parse_stem
from transforms.codec import TooManyPixelsError, UndecodableError, decode_image
from transforms.taxonomy import Taxonomy
from transforms.variants import EXTERNAL, MIXED, VARIANTS, base_of, with_replicates

REQUIRED = ("original", "fg_mask")
"""Versions without which there is nothing to import: what is evaluated needs the masks, for the
size of the foreground."""

_TRIED_FOR_SIZE = 20


@dataclasses.dataclass(frozen=True)
class ReleasedFile:
    """A picture or mask of an image.

    Attributes:
      place: where it lies.
      named_background: stem of the background that a mixed picture's name says.
      double: another file claims to be the same.
    """

    place: ArchiveLocation
    named_background: str | None = None
    double: bool = False


@dataclasses.dataclass(frozen=True)
class ReleasedImage:
    """An image, as the archive names it.

    Attributes:
      stem: `<wnid>_<number>`: its key.
      wnid: its class.
      label: its superclass.
      files: by version.
    """

    stem: str
    wnid: str
    label: int
    files: dict[str, ReleasedFile]


@dataclasses.dataclass(frozen=True)
class ReleasedShard:
    """The unit of work.

    Attributes:
      totals: of its split.
      shard: its number.
      images: in order of their stem.
    """

    totals: SplitTotals
    shard: int
    images: tuple[ReleasedImage, ...]

    @property
    def fingerprint(self) -> str:
        """Of what the listing tells."""
        return fingerprint([dataclasses.asdict(image) for image in self.images])


@dataclasses.dataclass(frozen=True)
class ReleasedArchive:
    """All that is imported.

    Attributes:
      config: of the dataset to make.
      shards: of all splits.
      ignored: names of folders with versions that are not imported.
    """

    config: DatasetConfig
    shards: tuple[ReleasedShard, ...]
    ignored: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Of configuration and listing."""
        return fingerprint(self.config.fingerprint(), [shard.fingerprint for shard in self.shards])


def read_listing(
    source: str,
    places: Iterable[ArchiveLocation],
    taxonomy: Taxonomy,
    *,
    splits: tuple[str, ...],
    formats: tuple[str, ...],
    images_per_shard: int,
) -> ReleasedArchive:
    """Makes sense of an archive's files.

    Args:
      source: as the user named it, for messages.
      places: its files.
      taxonomy: which classes are ours.
      splits: to import.
      formats, images_per_shard: of the dataset.

    Raises:
      UsageError: this is not the released layout, or a flag is out of range.
    """
    tree = _tree(source, list(places), splits)
    there = {variant for split in splits for variant in tree[split]}
    missing = [name for name in REQUIRED if any(name not in tree[s] for s in splits)]
    if missing:
        raise UsageError(f"--from {source} has no {missing[0]}/{splits[0]}, which is needed")
    # Scenes are no part of an archive, so what is on them cannot be told.
    known = (name for name in VARIANTS if name != EXTERNAL)
    base = tuple(name for name in known if all(name in tree[split] for split in splits))
    replicates = _replicates(base, there)
    imported = with_replicates(base, replicates)
    by_split = {split: _images(tree[split], imported, taxonomy) for split in splits}
    size = _size(source, [image for images, _, _ in by_split.values() for image in images])
    try:
        config = DatasetConfig.from_flags(
            {
                "origin": "imported",
                "split": splits,
                "variants": base,
                "replicates": replicates,
                "formats": formats,
                "image_size": size,
                "images_per_shard": images_per_shard,
            }
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    shards = []
    for split, (images, outside, other) in by_split.items():
        counts = ShardCounts.for_images(len(images), images_per_shard)
        counts = ShardCounts(source=counts.output, output=counts.output)
        totals = SplitTotals(split, counts, len(images), outside, other)
        buckets: list[list[ReleasedImage]] = [[] for _ in range(counts.output)]
        for image in images:
            buckets[counts.source_shard(image.stem)].append(image)
        shards += [ReleasedShard(totals, i, tuple(bucket)) for i, bucket in enumerate(buckets)]
    return ReleasedArchive(config, tuple(shards), tuple(sorted(there - set(imported))))


Tree = dict[str, dict[str, dict[str, list[ArchiveLocation]]]]
"""Files by split, version and class folder."""


def _tree(source: str, places: list[ArchiveLocation], splits: tuple[str, ...]) -> Tree:
    """Files below the folder that holds the versions, wherever that is."""
    roots: Counter[str] = Counter()
    for place in places:
        parts = place.name.split("/")
        if len(parts) >= 4 and parts[-4] == "original" and parts[-3] in splits:
            roots["/".join(parts[:-4])] += 1
    if not roots:
        raise UsageError(
            f"--from {source} is not the released layout: no file original/{splits[0]}/"
            "<NN_class>/<wnid>_<number>.JPEG in it"
        )
    if len(roots) > 1:
        raise UsageError(
            f"--from {source} holds several datasets: {', '.join(sorted(roots)[:3])}; name one"
        )
    (root,) = roots
    tree: Tree = {split: {} for split in splits}
    for place in places:
        if root and not place.name.startswith(f"{root}/"):
            continue
        # Without what a folder happens to be called.
        name = place.name[len(root) :].lstrip("/")
        parts = name.split("/")
        if len(parts) == 4 and parts[1] in splits and not parts[3].startswith("."):
            variant, split, folder, _ = parts
            place = dataclasses.replace(place, name=name)
            tree[split].setdefault(variant, {}).setdefault(folder, []).append(place)
    return tree


def _replicates(base: tuple[str, ...], there: set[str]) -> int:
    """How often every mixed version is there."""
    mixed = [name for name in base if name in MIXED]
    count = 1
    while mixed and all(f"{name}_r{count}" in there for name in mixed):
        count += 1
    return count


def _images(
    variants: dict[str, dict[str, list[ArchiveLocation]]],
    imported: tuple[str, ...],
    taxonomy: Taxonomy,
) -> tuple[list[ReleasedImage], int, int]:
    """(images in order of their stem, number of images outside the taxonomy, other files)."""
    images: dict[str, ReleasedImage] = {}
    outside = set()
    other = 0
    for variant in imported:
        for folder, places in variants.get(variant, {}).items():
            label = label_of_folder(folder)
            for place in places:
                found = _parse(variant, place)
                if label is None or found is None:
                    other += 1
                    continue
                stem, wnid, named = found
                if taxonomy.label_of(wnid) != label:
                    outside.add(stem)
                    continue
                image = images.setdefault(stem, ReleasedImage(stem, wnid, label, {}))
                first = image.files.get(variant)
                image.files[variant] = (
                    ReleasedFile(place, named)
                    if first is None
                    else dataclasses.replace(first, double=True)
                )
    kept = [image for stem, image in sorted(images.items()) if stem not in outside]
    return kept, len(outside), other


def _parse(variant: str, place: ArchiveLocation) -> tuple[str, str, str | None] | None:
    """(stem, wnid, background as named) of a file; None if it is none of the layout's."""
    name, suffix = posixpath.splitext(posixpath.basename(place.name))
    wanted = (".npy",) if variant == "fg_mask" else (".jpeg", ".jpg", ".png")
    if suffix.lower() not in wanted:
        return None
    background = None
    if base_of(variant) in MIXED:
        mixed = parse_mixed(name)
        if mixed is None:
            return None
        name, background = mixed
    found = parse_stem(name)
    return None if found is None else (*found, background)


def _size(source: str, images: list[ReleasedImage]) -> int:
    """Side of the pictures, by the first that can be decoded."""
    files = [image.files["original"] for image in images if "original" in image.files]
    for file in files[:_TRIED_FOR_SIZE]:
        try:
            height, width, _ = decode_image(read_places([file.place])[0]).shape
        except (UndecodableError, TooManyPixelsError):
            continue
        if height != width:
            raise UsageError(
                f"--from {source} holds {file.place.name} of {width} x {height} pixels; "
                "pictures must be square and of one size"
            )
        return int(height)
    raise UsageError(f"--from {source}: none of the first pictures in original can be decoded")
