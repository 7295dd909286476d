"""Recipes: a dataset without its pixels, from which the same pictures make the same dataset.

`recipe.parquet` has a row for each row of the dataset's source records, with the mask as run
lengths. The rows of an image stand together, its objects in order. The metadata holds the manifest,
and a checksum of the whole file.

A recipe comes from strangers: its checksum is tested first, and then every value; nothing that it
names is opened or imported.
"""

import base64
import dataclasses
import functools
import hashlib
import itertools
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import pyarrow as pa

from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.manifest import Manifest, library_versions, stage_versions
from pipeline.dataset.records import ACCEPTED, RECORD_SCHEMA, ImageRow, Row
from pipeline.errors import JobError, UsageError, one_line
from pipeline.inputs.input_format import SplitLayout
from pipeline.inputs.layout import FORMATS
from pipeline.inputs.location import (
    NOWHERE,
    Location,
    column_chunks,
    open_parquet,
    read_location,
    rows_of,
    shown,
)
from pipeline.inputs.source_images import SourceImage
from pipeline.runtime.progress import count
from pipeline.storage.files import files_of
from pipeline.storage.store import WORK_FOLDER
from transforms.codec import MAX_PIXELS, check_narrow
from transforms.filters import FILTER_RESIZE, Reason, is_valid_key
from transforms.hashing import fingerprint, text_bytes
from transforms.masks import decode_runs
from transforms.taxonomy import OUTSIDE, Taxonomy, imagenet9

RECIPE = "recipe.parquet"
RECIPE_COPY = f"{WORK_FOLDER}/{RECIPE}"
"""The copy of its recipe in the folder of a dataset that was made from one."""
FLAG = "--recipe"
METADATA_KEY = b"in9"
DIGESTS = {"source_md5": 16, "source_digest": 16, "layer_digest": 8}
"""Numbers of bytes of the digests, which are hexadecimal in a record."""
CUT_COLUMNS = (
    "box",
    "fg_fraction",
    *(name for name in RECORD_SCHEMA.names if name.endswith(("_offset", "_length"))),
)
"""Columns that come of cutting. Only the recipe of a dataset without layers has them, because not
all of its images are cut again."""
SEAL = b"sha256:" + b"0" * 64
"""Where the checksum will be, in the metadata of a file that is still to be sealed."""
_MAX_TEXT, _MAX_METADATA = 300, 256 << 20
"""Largest numbers of characters of a text in a record, and of bytes of the unpacked metadata."""
_ROW_BYTES, _OBJECT_BYTES = 16, 4
"""Fewest bytes that a row of an image, and that of an object, takes however well it is compressed:
the digest of a source is like a random number, and so are a few bytes of a box."""
_LEAVES_INPUT = re.compile(r"[/\\]|(.*[/\\])?\.\.([/\\]|$)")


def recipe_schema(*, has_layers: bool) -> pa.Schema:
    """Returns the columns of a recipe: those of a record, `split` and `mask`.

    `mask` is at output size (`transforms.masks.encode_runs`). It is null for a row that was not
    accepted, and without layers for an image that was not selected.
    """
    return pa.schema(
        [
            pa.field("split", pa.string()),
            *(
                field.with_type(pa.binary(DIGESTS[field.name])) if field.name in DIGESTS else field
                for field in RECORD_SCHEMA
                if field.name != "label" and not (has_layers and field.name in CUT_COLUMNS)
            ),
            pa.field("mask", pa.binary()),
        ]
    )


def sealed(data: bytes) -> bytes:
    """Returns the bytes of a recipe with the checksum that they must have, in its place."""
    before, mark, after = data.rpartition(SEAL[:7])
    digest = hashlib.sha256(before + SEAL + after[64:]).hexdigest()
    return before + mark + text_bytes(digest) + after[64:]


class RecipeRow(NamedTuple):
    """A row of a recipe: its split, what it has of the record's row, and the mask."""

    split: str
    row: ImageRow
    mask: bytes | None


@functools.lru_cache(maxsize=16)
def row_group(path: str, sha256: str, number: int) -> pa.Table:
    """Reads a row group of the file with this SHA-256; the groups of a few shards are kept."""
    with open_parquet(path, FLAG) as file:
        return file.read_row_group(number)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeImage(SourceImage):
    """An image of a recipe. `location` is `NOWHERE` if its picture is missing or not needed.

    Its mask holds its place in the recipe; `files` are the pictures of the input that have its key.
    """

    is_needed: bool
    files: tuple[SourceImage, ...] = ()

    @property
    def lacks(self) -> str:
        """Why its picture is missing, a `Reason`; else ""."""
        return self.status if self.is_needed and self.status != ACCEPTED else ""

    def lacking(self, reason: Reason) -> Self:
        """Returns the image without a picture, and so with another digest."""
        digest = fingerprint(self.digest, str(reason))
        return dataclasses.replace(
            self, location=NOWHERE, files=(), status=str(reason), digest=digest
        )

    def found(self, is_its: Callable[[SourceImage, Self], bool]) -> Self:
        """Returns the image at the first of its files that is its picture; itself if none is."""
        file = next((file for file in self.files if is_its(file, self)), None)
        return self if file is None else dataclasses.replace(self, location=file.location, files=())


def recipe_images(images: Iterable[SourceImage]) -> list[RecipeImage]:
    """Returns the images of a recipe among some images: all of them in a job from one."""
    return [image for image in images if isinstance(image, RecipeImage)]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A recipe that was checked, with its dataset's manifest.

    Without layers, the manifest's files include the tars that its records name.
    """

    path: str
    manifest: Manifest
    sha256: str

    @classmethod
    def open(cls, path: str, name: str = "") -> Self:
        """Opens a recipe, which messages call `name`; checks its checksum and then all its content.

        Raises UsageError if it is missing or damaged, or says what no recipe may say, in one line.
        """
        try:
            data = files_of(path).read(path)
            if data != sealed(data):
                raise ValueError("it is damaged: its checksum differs")
            with open_parquet(path, FLAG) as file:
                packed = base64.b64decode((file.metadata.metadata or {}).get(METADATA_KEY, b""))
                content = zlib.decompressobj().decompress(packed, _MAX_METADATA)
                recipe = cls(path, Manifest.from_json(content), hashlib.sha256(data).hexdigest())
                recipe.check(file, len(data))
            recipe.images()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UsageError(
                f"{FLAG}: there is no {path}; make one with: in9 export --layout recipe"
            ) from error
        except (ValueError, zlib.error) as error:
            raise UsageError(
                f"{name or f'{FLAG} {path}'} cannot be used: {one_line(error)}"
            ) from error
        return recipe

    def content(self) -> bytes:
        """Reads the file again. Raises JobError if it is not the one that was checked."""
        data = files_of(self.path).read(self.path)
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise JobError(f"{self.path} has changed. Run the same command again")
        return data

    def check(self, file: Any, size: int) -> None:
        """Checks all but the rows, which are not read yet; raises ValueError for what is wrong."""
        config, taxonomy = self.manifest.config, self.manifest.taxonomy
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        faults = {
            "it is of a dataset without masks": config.is_imported
            or config.segment.keeps_image_whole,
            # Few bytes might stand for more rows than fit into memory.
            f"its {size} bytes are too few for its rows": sum(group.num_rows for group in groups)
            * (_OBJECT_BYTES if config.segment.objects == "each" else _ROW_BYTES)
            > size,
            "its columns have other names or types": file.schema_arrow.remove_metadata()
            != recipe_schema(has_layers=self.has_layers),
            "its classes are not those of its configuration": config.taxonomy
            != (taxonomy and taxonomy.description),
            f"it was made by stages {self.manifest.stages}, and this release has "
            f"{stage_versions(config)}; use the release that made it": self.manifest.stages
            != stage_versions(config),
        }
        if fault := next((fault for fault, is_there in faults.items() if is_there), ""):
            raise ValueError(fault)
        if any(
            chunk.has_dictionary_page
            for number in range(len(groups))
            for chunk in column_chunks(file, self.path, number)
        ):
            raise ValueError("it has dictionaries")

    @property
    def has_layers(self) -> bool:
        """Whether the dataset has layers, so that every accepted image has a mask."""
        return self.manifest.config.layers == "keep"

    @property
    def taxonomy(self) -> Taxonomy:
        """The dataset's classes and superclasses."""
        return self.manifest.taxonomy or imagenet9()

    def images(self) -> dict[str, list[RecipeImage]]:
        """Lists each split's images in the recipe's order; raises ValueError if a row is wrong."""
        images: dict[str, list[RecipeImage]] = {split: [] for split in self.manifest.config.split}
        with open_parquet(self.path, FLAG) as file:
            # Rows of one image have one place, from which the number of its object counts.
            for (group, first), members in itertools.groupby(
                rows_of(file, self.path),
                lambda row: (row[0], row[1] - max(row[2]["object"] or 0, 1) + 1),
            ):
                rows: list[RecipeRow] = []
                for _, number, values in members:
                    rows.append(self._row(values))
                    if fault := _fault_of(rows, number - first, self.manifest.config):
                        raise ValueError(f"row {number} of row group {group}: {fault}")
                row = rows[0].row
                images[rows[0].split].append(
                    RecipeImage(
                        key=row.source_key,
                        location=NOWHERE,
                        name=row.path,
                        wnid=row.wnid or "",
                        label=OUTSIDE if row.label is None else row.label,
                        group=row.group or "",
                        digest=row.source_digest or "",
                        md5=row.source_md5,
                        mask=Location(text=f"{group}:{first}:{len(rows)}"),
                        status=min(
                            (each.row.status for each in rows), key=lambda one: one != ACCEPTED
                        ),
                        is_needed=any(each.mask is not None for each in rows),
                    )
                )
        for split, listed in images.items():
            keys = [image.key for image in listed if image.status == ACCEPTED]
            if len(keys) > len(set(keys)) or len(listed) != self.manifest.images[split]["listed"]:
                raise ValueError(f"its images of {split} share keys, or are not as many as it says")
            # An archive may hold two files of one path, which have one key.
            named = (image.name for image in listed if image.status != Reason.DUPLICATE_KEY)
            if twice := [path for path, times in Counter(named).items() if times > 1]:
                raise ValueError(f"two images of {split} have the path {twice[0]}")
        return images

    def list_images(
        self, layout: SplitLayout
    ) -> tuple[tuple[RecipeImage, ...], Mapping[str, int], str]:
        """Lists the images of a split, with the input's pictures of their keys; counts all others.

        Returns (the images, what the recipe's dataset skipped, its line on unmatched classes).
        """
        images, told = self.images()[layout.split], self.manifest.images[layout.split]
        files: dict[str, list[SourceImage]] = {image.key: [] for image in images}
        for each in filter(None, FORMATS[layout.kind].list_images(layout, self.taxonomy)):
            count("pictures_not_in_recipe", each.key not in files)
            files.get(each.key, []).append(each)
        listed = tuple(
            image
            if not image.is_needed
            else dataclasses.replace(image, location=found[0].location, files=tuple(found))
            if (found := files[image.key])
            else image.lacking(Reason.MISSING_SOURCE)
            for image in images
        )
        unmatched = self.manifest.unmatched.get(layout.split, "")
        return listed, {**told, "outside": told["outside_taxonomy"]}, unmatched

    def rows(self, place: bytes) -> list[RecipeRow]:
        """Returns the rows of an image by the content of its mask."""
        group, first, number = map(int, place.split(b":"))
        table = row_group(self.path, self.sha256, group).slice(first, number)
        return list(map(self._row, table.to_pylist()))

    def rows_of(self, image: SourceImage) -> list[RecipeRow]:
        """Returns the rows of an image."""
        return self.rows(read_location(image.mask or NOWHERE))

    def _row(self, values: Row) -> RecipeRow:
        columns: Row = {name: values.get(name) for name in RECORD_SCHEMA.names}
        columns |= {name: columns[name] and columns[name].hex() for name in DIGESTS}
        label = self.taxonomy.label_of(columns["wnid"] or "")
        row = ImageRow(**{**columns, "label": None if label == OUTSIDE else label})
        return RecipeRow(values["split"], row, values["mask"])

    def other_layer(self, location: Location) -> JobError:
        """Returns the error for a picture that has the recipe's MD5, but gives another layer."""
        ours, theirs = map(versions_of, (library_versions(), self.manifest.libraries))
        return JobError(
            f"{shown(location)} gives another layer than the recipe's. "
            + (
                f"The libraries are the same ({ours}), so the picture has changed since it was "
                "identified, or the recipe is wrong"
                if ours == theirs
                else f"Here is {ours}; the recipe was made with {theirs}. Install that and run the "
                "same command again"
            )
        )


def versions_of(libraries: Mapping[str, str]) -> str:
    """Returns the names and versions of libraries, for messages."""
    return ", ".join(f"{name} {version}" for name, version in libraries.items())


def _fault_of(rows: Sequence[RecipeRow], position: int, dataset: DatasetConfig) -> str:
    """Returns what is wrong with the last of an image's rows so far; "" if nothing is.

    The position is the row's distance from the place where the image's rows begin by its number.
    """
    split, row, mask = rows[-1]
    config, is_accepted, number = dataset.segment, row.status == ACCEPTED, row.object or 0
    width, height = row.width or 0, row.height or 0
    boxes = (row.native_box or [0] * 4, row.box or [0] * 4)
    has_corners = all(len(box) == 4 and None not in box for box in boxes)
    xmin, ymin, xmax, ymax = boxes[0] if has_corners else (0, 0, 0, 0)
    has_size = min(width, height) >= 1 and width * height <= MAX_PIXELS
    faults = {
        "its split is unknown": split not in dataset.split,
        "a text is too long, or not printable": any(
            len(text) > _MAX_TEXT or not text.isprintable()
            for text in (row.key, row.path, row.wnid, row.detail, row.group)
            if text
        ),
        "its path leads out of the input": _LEAVES_INPUT.match(row.path) is not None,
        "its status is unknown": row.status not in {ACCEPTED, *Reason},
        "its class is unknown": row.wnid is not None and row.label is None,
        "it has no digest": None in (row.source_md5, row.source_digest),
        "a box has no four corners": not has_corners,
        "a number is not finite": not all(
            math.isfinite(value or 0) for value in (row.mask_over_box, row.fg_fraction)
        ),
        "its object has no such number": number < 0
        or (row.object is not None) != (config.objects == "each"),
        "its image is not the one before": position != len(rows) - 1
        or any(
            (each.split, each.row.source_key, each.row.source_digest)
            != (split, row.source_key, row.source_digest)
            for each in rows
        ),
        "it has a mask, and was rejected": mask is not None and not is_accepted,
        "it has no mask": mask is None and is_accepted and dataset.layers == "keep",
        "it was accepted, and lacks what that needs": is_accepted
        and (
            None in (row.label, row.layer_digest, row.mask_over_box)
            or not is_valid_key(row.key)
            or row.object == 0
        ),
        "its picture has an impossible size": is_accepted and not has_size,
        "its picture is too narrow": is_accepted
        and has_size
        and config.crop != "pad"
        and check_narrow(width, height, max(config.resize, FILTER_RESIZE)) != "",
        "its box is not in its picture": is_accepted
        and not (0 <= xmin < xmax <= width and 0 <= ymin < ymax <= height),
    }
    if mask is not None:
        decode_runs(mask, config.image_size)
    return next((fault for fault, is_there in faults.items() if is_there), "")
