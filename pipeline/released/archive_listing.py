"""Lists the images of a released archive (a folder or a tar), each with a file for each version."""

import dataclasses
import itertools
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence

from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.folder import Dataset, selected_rows
from pipeline.dataset.records import ShardCounts
from pipeline.errors import UsageError, counted, refuse_first
from pipeline.generate.shard_elements import SplitTotals
from pipeline.inputs.archives import Unpacker, members, naming, unpacker_of
from pipeline.inputs.location import Location, read_location, reads_ahead
from pipeline.inputs.source_images import HIDDEN, IMAGE_SUFFIXES
from pipeline.inputs.tables import read_rows
from pipeline.released.export import find_clashes, label_of_folder, parse_name, stem_of
from pipeline.storage.files import files_of, relative
from pipeline.storage.interface import FileInfo, read_ahead
from pipeline.storage.store import WORK_FOLDER, Store
from transforms.codec import TooManyPixelsError, UndecodableError, decode_image
from transforms.hashing import fingerprint
from transforms.taxonomy import Taxonomy
from transforms.variants import EXTERNAL, ORIGINAL, VARIANTS, VariantName, with_replicates

IMPORT_FOLDER = f"{WORK_FOLDER}/import"

_MAX_RATIO, _MAX_MORE = 20, 1 << 30
"""A compressed archive may unpack to this many times its size, plus this many bytes. That is ample:
pictures hardly compress, and masks compress well but are few."""


@dataclasses.dataclass(frozen=True)
class ArchiveLocation:
    """Location of a file's content.

    Attributes:
      name: path inside the archive, with forward slashes.
      path: absolute path of the file that holds the content: the file itself, or the tar.
      offset, length: position and size of the content in that file, in bytes.
      identity: text that changes with the content of the file, the tar or the compressed tar.
    """

    name: str
    path: str
    offset: int
    length: int
    identity: str


def is_packed(source: str) -> bool:
    """Returns whether a source is a compressed file, which `list_files` unpacks."""
    return files_of(source).info(source) is not None and _unpacker(source) is not None


def _unpacker(source: str) -> Unpacker | None:
    with files_of(source).open(source) as file:
        return unpacker_of(file.read(8))


def list_files(source: str, store: Store, flag: str = "--from ") -> list[ArchiveLocation]:
    """Lists the files of a folder or a tar; unpacks a compressed tar into the store's work folder.

    `flag` stands before the source in messages. Raises UsageError if the source is neither a folder
    nor a tar, or the tar is damaged or refused (a member could point outside it, or it unpacks to
    too many bytes).
    """
    files = files_of(source)
    info = files.info(source)
    if info is None:
        if not files.is_folder(source):
            raise UsageError(f"{flag}{source} is neither a folder nor a file that can be read")
        return [
            ArchiveLocation(relative(each.path, source), each.path, 0, each.size, each.identity)
            for each in files.walk(source)
        ]
    unpacker = _unpacker(source)
    path = source if unpacker is None else _unpack(source, info, unpacker, store, flag)
    with naming(f"{flag}{source}"):
        return [
            ArchiveLocation(
                name=posixpath.normpath(member.name),
                path=path,
                offset=member.offset,
                length=member.length,
                identity=info.identity,
            )
            for member, _ in members(path)
        ]


def _unpack(source: str, info: FileInfo, unpacker: Unpacker, store: Store, flag: str) -> str:
    """Unpacks a compressed tar, unless an earlier run has done so; returns the path of the tar."""
    target = f"{IMPORT_FOLDER}/{fingerprint(source, info.size, info.identity)}.tar"
    if not store.exists(target):
        limit = _MAX_RATIO * info.size + _MAX_MORE
        with (
            naming(f"{flag}{source}"),
            files_of(source).open(source) as file,
            unpacker(file) as content,
            store.create(target) as unpacked,
        ):
            while data := content.read(1 << 20):
                unpacked.write(data)
                if unpacked.size > limit:
                    raise UsageError(
                        f"{flag}{source} is refused: it unpacks to more than {limit} bytes, "
                        f"{_MAX_RATIO} times its size and a gigabyte. Unpack it yourself"
                    )
    return store.path(target)


def read_contents(locations: Sequence[ArchiveLocation]) -> list[bytes]:
    """Reads the contents of files, in order. A file that is too large for a picture is `Unread`."""
    parts = [Location(each.path, (each.offset, each.length)) for each in locations]
    return [data for _, data in read_ahead(read_location, parts, reads_ahead(parts))]


REQUIRED = ("original", "fg_mask")
"""Versions that an import needs. The masks are needed because evaluation takes the size of
foregrounds from them."""

_TRIED_FOR_SIZE = 20


@dataclasses.dataclass(frozen=True)
class ReleasedFile:
    """A picture or mask of an image.

    Attributes:
      named_background: stem of the background that a mixed picture's file name claims, or None.
      double: whether the archive has another file for the same image and version.
    """

    place: ArchiveLocation
    named_background: str | None = None
    double: bool = False


@dataclasses.dataclass(frozen=True)
class ReleasedImage:
    """An image of the archive, by `<wnid>_<number>`, with the label of its superclass."""

    stem: str
    wnid: str
    label: int
    files: dict[VariantName, ReleasedFile]


@dataclasses.dataclass(frozen=True)
class ReleasedShard:
    """A shard of images, in order of their stems."""

    totals: SplitTotals
    shard: int
    images: tuple[ReleasedImage, ...]

    @property
    def fingerprint(self) -> str:
        """Fingerprint of everything that the listing says about the shard."""
        return fingerprint(
            [
                {**vars(image), "files": {str(n): dataclasses.asdict(f) for n, f in files}}
                for image in self.images
                for files in [image.files.items()]
            ]
        )


@dataclasses.dataclass(frozen=True)
class ReleasedArchive:
    """The listing of everything that is imported, and the names of versions that are `ignored`."""

    config: DatasetConfig
    shards: tuple[ReleasedShard, ...]
    ignored: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the configuration and the listing."""
        return fingerprint(self.config.fingerprint(), [shard.fingerprint for shard in self.shards])


def read_listing(
    source: str,
    locations: Iterable[ArchiveLocation],
    taxonomy: Taxonomy,
    *,
    splits: tuple[str, ...],
    formats: tuple[str, ...],
    images_per_shard: int,
) -> ReleasedArchive:
    """Sorts an archive's files into images, versions and shards.

    Raises UsageError if the archive does not have the released layout, its pictures cannot be
    decoded or are not square, or a flag is out of range.
    """
    tree = _tree(source, list(locations), splits)
    present = {variant for split in splits for variant in tree[split]}
    if missing := [f"{name}/{s}" for name in REQUIRED for s in splits if name not in tree[s]]:
        raise UsageError(f"--from {source} has no {missing[0]}, which is needed")
    # An archive does not contain its scenes, so backgrounds of EXTERNAL cannot be recovered.
    # The backgrounds of a rendering are those of its base.
    known = map(VariantName.parse, VARIANTS)
    trees = [tree[split].keys() for split in splits]
    base = [
        name
        for name in known
        if name.base != EXTERNAL and all({str(name), name.base} <= names for names in trees)
    ]
    variants, replicates = tuple(map(str, base)), _replicates(base, trees)
    imported = with_replicates(variants, replicates)
    by_split = {split: _images(tree[split], imported, taxonomy) for split in splits}
    size = _size(source, [image for images, _, _ in by_split.values() for image in images])
    try:
        config = DatasetConfig.from_flags(
            {
                "origin": "imported",
                "split": splits,
                "variants": variants,
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
    return ReleasedArchive(
        config, tuple(shards), tuple(sorted(present.difference(map(str, imported))))
    )


Tree = dict[str, dict[str, dict[str, list[ArchiveLocation]]]]
"""Files by split, version and class folder."""


def _tree(source: str, locations: list[ArchiveLocation], splits: tuple[str, ...]) -> Tree:
    """Sorts files below the folder that holds the versions; UsageError if there is not just one."""
    roots = {
        "/".join(parts[:-4])
        for parts in (location.name.split("/") for location in locations)
        if len(parts) >= 4 and parts[-4] == "original" and parts[-3] in splits
    }
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
    for location in locations:
        if root and not location.name.startswith(f"{root}/"):
            continue
        # Drop the root folder, so that its name does not change any fingerprint.
        name = location.name[len(root) :].lstrip("/")
        parts = name.split("/")
        if len(parts) == 4 and parts[1] in splits and not parts[3].startswith("."):
            variant, split, folder, _ = parts
            relative = dataclasses.replace(location, name=name)
            tree[split].setdefault(variant, {}).setdefault(folder, []).append(relative)
    return tree


def _replicates(base: Iterable[VariantName], present: Sequence[Collection[str]]) -> int:
    """Counts the draws that all mixed versions to import have in all splits."""
    mixed = [name for name in base if name.is_mixed]
    return next(
        draw
        for draw in itertools.count(1)
        if not mixed
        or not all(
            str(dataclasses.replace(name, draw=draw)) in names
            for name in mixed
            for names in present
        )
    )


def _images(
    variants: dict[str, dict[str, list[ArchiveLocation]]],
    imported: tuple[VariantName, ...],
    taxonomy: Taxonomy,
) -> tuple[list[ReleasedImage], int, int]:
    """Collects images from their files.

    Returns (images in order of their stems; number of images without a superclass, or with a file
    in another class's folder; number of files that are no pictures or masks of the layout).
    """
    images: dict[str, ReleasedImage] = {}
    outside = set()
    other = 0
    for variant in imported:
        for folder, locations in variants.get(str(variant), {}).items():
            label = label_of_folder(folder)
            for location in locations:
                parsed = _parse(variant, location)
                if label is None or parsed is None:
                    other += 1
                    continue
                stem, wnid, named = parsed
                if taxonomy.label_of(wnid) != label:
                    outside.add(stem)
                    continue
                image = images.setdefault(stem, ReleasedImage(stem, wnid, label, {}))
                first = image.files.get(variant)
                image.files[variant] = (
                    ReleasedFile(location, named)
                    if first is None
                    else dataclasses.replace(first, double=True)
                )
    kept = [image for stem, image in sorted(images.items()) if stem not in outside]
    return kept, len(outside), other


def _parse(variant: VariantName, location: ArchiveLocation) -> tuple[str, str, str | None] | None:
    """Parses a file name into (stem, wnid, named background); None if it is not of the layout."""
    name, suffix = posixpath.splitext(posixpath.basename(location.name))
    wanted = IMAGE_SUFFIXES if variant.is_picture else (".npy",)
    if suffix.lower() not in wanted:
        return None
    return parse_name(name, is_mixed=variant.is_mixed)


def _size(source: str, images: list[ReleasedImage]) -> int:
    """Returns the pictures' side in pixels, from the first original that can be decoded.

    Raises UsageError if this picture is not square, or none of the first can be decoded.
    """
    files = [image.files[ORIGINAL] for image in images if ORIGINAL in image.files]
    for file in files[:_TRIED_FOR_SIZE]:
        try:
            height, width, _ = decode_image(read_contents([file.place])[0]).shape
        except (UndecodableError, TooManyPixelsError):
            continue
        if height != width:
            raise UsageError(
                f"--from {source} holds {file.place.name} of {width} x {height} pixels; "
                "pictures must be square and of one size"
            )
        return int(height)
    raise UsageError(f"--from {source}: none of the first pictures in original can be decoded")


def find_pictures(
    dataset: Dataset, variant: VariantName, source: str, store: Store
) -> dict[tuple[str, str], tuple[ArchiveLocation, str | None]]:
    """Finds a picture from outside for each selected image of a dataset, by split and key.

    Its file is named by the key, or as in an export, and lies in no folder of another split. With
    it comes the name of its background in `pictures.csv`, or None. Raises UsageError if
    an image has no picture, or several, or something cannot be read.
    """
    flag, splits, found, named = f"--variant {variant}=", {*dataset.config.split}, {}, {}
    by_name: dict[str, list[ArchiveLocation]] = defaultdict(list)
    files = [file for file in list_files(source, store, flag) if not HIDDEN.search(file.name)]
    for file in files:
        stem, suffix = posixpath.splitext(posixpath.basename(file.name))
        # Other names than WordNet's may be a dataset's, too.
        for name in {stem, re.sub("fg_(.+)_bg_.+", r"\1", stem)}:
            by_name[name] += [file] * (suffix.lower() in IMAGE_SUFFIXES)
    for split in dataset.config.split:
        wnids = {row["key"]: row["wnid"] for row in selected_rows(dataset, split)}
        clashes = find_clashes(wnids.items())
        for key, wnid in wnids.items():
            found[split, key] = [
                file
                for name in {key, stem_of(key, wnid, clashes)}
                for file in by_name[name]
                if not (splits - {split}).intersection(file.name.split("/")[:-1])
            ]
    for name, number in Counter(one.name for its in found.values() for one in its).items():
        if number > 1:
            raise UsageError(f"{flag}{source}: {name} is of two images; give each split a folder")
    if wrong := sorted((len(its), key) for (_, key), its in found.items() if len(its) != 1):
        raise UsageError(
            f"{flag}{source}: of {counted(len(found), 'selected image')}, "
            f"{sum(not number for number, _ in wrong)} have no JPEG or PNG and "
            f"{sum(number > 1 for number, _ in wrong)} have several: "
            f"{', '.join(key for _, key in wrong[:3])}{', ...' * (len(wrong) > 3)}; name each "
            "picture by the key of its image, or as in9 export does"
        )
    for table in (file for file in files if posixpath.basename(file.name) == "pictures.csv"):
        # A table in a tar is copied, because tables are read from files.
        (content,) = read_contents([table])
        copy = store.path(store.write(f"{IMPORT_FOLDER}/pictures.csv", content).path)
        try:
            for row in read_rows(copy, f"{flag}{source}:"):
                refuse_first(
                    {
                        f"{copy} has no column {name}": name not in row.values
                        for name in ("picture", "background")
                    },
                    f"{flag}{source}: ",
                )
                named[row.text("picture")] = row.text("background")
        except UsageError as error:
            raise UsageError(str(error).replace(copy, table.name)) from error
    return {
        (split, key): (file, next(filter(None, map(named.get, names)), None))
        for (split, key), (file,) in found.items()
        for names in [(key, file.name, posixpath.basename(file.name))]
    }
