"""Recipes: a dataset without its pixels, from which the same pictures make the same dataset.

`recipe.parquet` has a row for each row of the dataset's source records, with the mask as run
lengths. The rows of an image stand together, its objects in order. The metadata holds the manifest,
and a checksum of the whole file.

A recipe comes from strangers. Its checksum is tested first, and then every value; nothing that it
names is opened or imported.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import math
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.config import DatasetConfig, fingerprint
from pipeline.dataset.manifest import Manifest, library_versions, stage_versions
from pipeline.dataset.records import (
    ACCEPTED,
    RECORD_SCHEMA,
    ImageRow,
    Row,
)
from pipeline.errors import JobError, UsageError, one_line
from pipeline.inputs.annotations import annotation_of
from pipeline.inputs.input_format import SplitLayout
from pipeline.inputs.layout import FORMATS
from pipeline.inputs.location import open_parquet, row_location, rows_of, shown
from pipeline.inputs.source_images import SourceImage
from pipeline.storage.files import files_of
from pipeline.storage.store import WORK_FOLDER
from transforms.annotations import Annotation, Box
from transforms.codec import MAX_PIXELS, check_narrow
from transforms.filters import FILTER_RESIZE, Reason, is_valid_key
from transforms.hashing import text_bytes
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
_LEAVES_INPUT = re.compile(r"[/\\]|(.*[/\\])?\.\.([/\\]|$)")


def recipe_schema(*, has_layers: bool) -> pa.Schema:
    """Returns the columns of a recipe: those of a record, `split` and `mask`.

    `mask` is the mask at output size (`transforms.masks.encode_runs`). It is null for a row that
    was not accepted, and in a dataset without layers for an image that was not selected.
    """
    fields = [
        field.with_type(pa.binary(DIGESTS[field.name])) if field.name in DIGESTS else field
        for field in RECORD_SCHEMA
        if field.name != "label" and not (has_layers and field.name in CUT_COLUMNS)
    ]
    return pa.schema([pa.field("split", pa.string()), *fields, pa.field("mask", pa.binary())])


def checksum(data: bytes) -> tuple[int, bytes]:
    """Returns (position of a recipe's checksum in its bytes, the checksum that they must have)."""
    position = data.rfind(SEAL[:7]) + 7
    unsealed = data[:position] + SEAL[7:] + data[position + 64 :]
    return position, text_bytes(hashlib.sha256(unsealed).hexdigest())


class RecipeRow(NamedTuple):
    """A row of a recipe: what it has of the record's row, and the mask."""

    row: ImageRow
    mask: bytes | None


Place = tuple[int, int, int]
"""Where the rows of an image are: row group, number of the first, number of rows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeImage(SourceImage):
    """An image of a recipe. `path` is empty if its picture is not there, or is not needed.

    Attributes:
      source_digest: its column in the record; `md5` is its `source_md5`.
      place: where its rows are in the recipe.
      status: `accepted` if any row is, else that of the first row.
      is_needed: whether its picture must be there.
      files: the pictures of the input that have its key.
      lacks: why its picture is not there, a `Reason`; else "".
    """

    source_digest: str
    place: Place
    status: str
    is_needed: bool
    files: tuple[SourceImage, ...] = ()
    lacks: str = ""

    @property
    def digest(self) -> str:
        """The source digest, another one if the picture is not there."""
        return fingerprint(self.source_digest, self.lacks) if self.lacks else self.source_digest


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A recipe that was checked.

    Attributes:
      path: absolute path of the file.
      manifest: manifest of the dataset. If it has no layers, the files include the tars that its
        records name.
      sha256: SHA-256 of the file.
    """

    path: str
    manifest: Manifest
    sha256: str

    @classmethod
    def open(cls, path: str, name: str = "") -> Recipe:
        """Opens a recipe, and checks its checksum and then all of its content.

        Args:
          path: absolute path of the file.
          name: what messages call the file; the flag and the path if empty.

        Raises:
          UsageError: it is missing or damaged, or says what no recipe may say, in one line.
          OSError: the file cannot be read.
        """
        try:
            data = files_of(path).read(path)
            position, expected = checksum(data)
            if data[position : position + 64] != expected:
                raise ValueError("it is damaged: its checksum differs")
            with open_parquet(path, FLAG) as file:
                packed = (file.metadata.metadata or {}).get(METADATA_KEY, b"")
                content = zlib.decompressobj().decompress(base64.b64decode(packed), _MAX_METADATA)
                recipe = cls(path, Manifest.from_json(content), hashlib.sha256(data).hexdigest())
                recipe.check(file, len(data))
            for split in recipe.manifest.config.split:
                recipe.images(split)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UsageError(f"{FLAG}: there is no {path}") from error
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

    def check(self, file: pq.ParquetFile, size: int) -> None:
        """Checks all but the rows, which are not read yet.

        Args:
          file: the open file.
          size: its size in bytes.

        Raises:
          ValueError: it says what no recipe may say.
        """
        config, taxonomy = self.manifest.config, self.manifest.taxonomy
        ours, groups = (
            stage_versions(config),
            [file.metadata.row_group(number) for number in range(file.num_row_groups)],
        )
        faults = {
            "it is of a dataset without masks": config.is_imported
            or config.segment.keeps_image_whole,
            # Few bytes might stand for more rows than fit into memory.
            f"its {size} bytes have more rows than bytes, or dictionaries": sum(
                group.num_rows for group in groups
            )
            > size
            or any(
                group.column(number).has_dictionary_page
                for group in groups
                for number in range(group.num_columns)
            ),
            "its columns have other names or types": file.schema_arrow.remove_metadata()
            != recipe_schema(has_layers=self.has_layers),
            "its classes are not those of its configuration": config.taxonomy
            != (taxonomy and taxonomy.description),
            f"it was made by stages {self.manifest.stages}, and this release has {ours}; use the "
            "release that made it": self.manifest.stages != ours,
        }
        if fault := next((fault for fault, is_there in faults.items() if is_there), ""):
            raise ValueError(fault)

    @property
    def has_layers(self) -> bool:
        """Whether the dataset has layers, so that every accepted image has a mask."""
        return self.manifest.config.layers == "keep"

    @property
    def taxonomy(self) -> Taxonomy:
        """The dataset's classes and superclasses."""
        return self.manifest.taxonomy or imagenet9()

    def images(self, split: str) -> list[RecipeImage]:
        """Lists the images of a split in the recipe's order, and checks their rows.

        Raises:
          ValueError: a row says what no recipe may say.
        """
        images: list[RecipeImage] = []
        with open_parquet(self.path, FLAG) as file:
            for group, number, values in rows_of(file, self.path):
                if values["split"] != split:
                    if values["split"] not in self.manifest.config.split:
                        raise ValueError(f"row {number} of row group {group}: its split is unknown")
                    continue
                row, mask = self._row(values)
                last = images[-1] if images else None
                follows = last is not None and (*last.place, last.key, last.source_digest) == (
                    *(group, number - (row.object or 0) + 1, (row.object or 0) - 1),
                    *(row.source_key, row.source_digest),
                )
                if fault := _fault_of_row(row, mask, self.manifest.config, follows=follows):
                    raise ValueError(f"row {number} of row group {group}: {fault}")
                if row.is_first or last is None:
                    images.append(
                        RecipeImage(
                            key=row.source_key,
                            path="",
                            name=row.path,
                            wnid=row.wnid or "",
                            label=OUTSIDE if row.label is None else row.label,
                            group=row.group or "",
                            source_digest=row.source_digest or "",
                            md5=row.source_md5,
                            place=(group, number, 1),
                            status=row.status,
                            is_needed=mask is not None,
                        )
                    )
                else:
                    images[-1] = dataclasses.replace(
                        last,
                        place=(*last.place[:2], last.place[2] + 1),
                        status=ACCEPTED if row.status == ACCEPTED else last.status,
                        is_needed=last.is_needed or mask is not None,
                    )
        keys = [image.key for image in images if image.status == ACCEPTED]
        if len(keys) > len(set(keys)) or len(images) != self.manifest.images[split]["listed"]:
            raise ValueError(f"its images of {split} share keys, or are not as many as it says")
        return images

    def list_images(self, layout: SplitLayout) -> tuple[list[RecipeImage], int]:
        """Lists the images of a split, with the pictures of the input that have their keys.

        Returns:
          (the images, number of pictures of the input that the recipe does not have).

        Raises:
          UsageError: the input is not valid.
          OSError: a file cannot be read.
        """
        images = self.images(layout.split)
        files: dict[str, list[SourceImage]] = {image.key: [] for image in images}
        extra = 0
        for each in FORMATS[layout.kind].list_images(layout, self.taxonomy):
            if each is not None:
                extra += each.key not in files
                files.get(each.key, []).append(each)
        return [
            dataclasses.replace(
                image,
                path=next((file.path for file in files[image.key]), ""),
                files=tuple(files[image.key]),
                lacks="" if files[image.key] else str(Reason.MISSING_SOURCE),
            )
            if image.is_needed
            else image
            for image in images
        ], extra

    def read(self, images: Iterable[SourceImage]) -> dict[Place, list[RecipeRow]]:
        """Reads the rows of images, by their places."""
        places = [image.place for image in images if isinstance(image, RecipeImage)]
        with open_parquet(self.path, FLAG) as file:
            groups = {n: file.read_row_group(n) for n in {group for group, _, _ in places}}
        return {
            place: [self._row(values) for values in groups[place[0]].slice(*place[1:]).to_pylist()]
            for place in places
        }

    def _row(self, values: Row) -> RecipeRow:
        columns: Row = {name: values.get(name) for name in RECORD_SCHEMA.names}
        columns |= {name: columns[name] and columns[name].hex() for name in DIGESTS}
        label = self.taxonomy.label_of(columns["wnid"] or "")
        columns["label"] = None if label == OUTSIDE else label
        return RecipeRow(ImageRow(**columns), values["mask"])

    def sources(
        self, images: Iterable[SourceImage], rows: Mapping[Place, list[RecipeRow]]
    ) -> Callable[[ImageRow], SourceImage]:
        """Returns a function that finds the source image of an accepted row.

        Its annotation has the recipe's boxes, and its mask is the location of the recipe's, None if
        the recipe has none. `rows` are those of the images, from `read`.
        """
        found: dict[str, SourceImage] = {}
        for image in images:
            assert isinstance(image, RecipeImage)
            corners = (each.row.native_box or (0, 0, 0, 0) for each in rows[image.place])
            boxes = annotation_of(Annotation(None, None, tuple(map(Box._make, corners)), None))
            for number, each in enumerate(rows[image.place], image.place[1]):
                if each.row.status == ACCEPTED:
                    mask = row_location(self.path, image.place[0], number, "mask")
                    found[each.row.key] = dataclasses.replace(
                        image, annotation=boxes, mask=None if each.mask is None else mask
                    )
        return lambda row: found[row.key]

    def other_layer(self, location: str) -> JobError:
        """Returns the error for a picture that has the recipe's MD5, but gives another layer."""
        return JobError(
            f"{shown(location)} gives another layer than the recipe's. "
            + (
                f"The libraries are the same ({_versions(library_versions())}), so the picture has "
                "changed since it was identified, or the recipe is wrong"
                if library_versions() == self.manifest.libraries
                else f"Here is {_versions(library_versions())}; the recipe was made with "
                f"{_versions(self.manifest.libraries)}. Install that and run the same command again"
            )
        )


def _versions(libraries: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in libraries.items())


def _fault_of_row(
    row: ImageRow, mask: bytes | None, dataset: DatasetConfig, *, follows: bool
) -> str:
    """Returns what is wrong with a row, "" if nothing is.

    Args:
      row: the row.
      mask: its mask.
      dataset: configuration of the dataset.
      follows: whether the rows before it are all of the same image.
    """
    config = dataset.segment
    texts = (row.key, row.path, row.wnid, row.detail, row.group)
    width, height = row.width or 0, row.height or 0
    boxes = [box for box in (row.native_box, row.box) if box is not None]
    has_corners = all(len(box) == 4 and None not in box for box in boxes)
    numbers = [x for x in (row.mask_over_box, row.fg_fraction) if x is not None]
    is_accepted, number = row.status == ACCEPTED, row.object or 0
    xmin, ymin, xmax, ymax = row.native_box if row.native_box and has_corners else (0, 0, 0, 0)
    has_size = min(width, height) >= 1 and width * height <= MAX_PIXELS
    resize = max(config.resize, FILTER_RESIZE)
    faults = {
        "a text is too long, or not printable": any(
            len(text) > _MAX_TEXT or not text.isprintable() for text in texts if text
        ),
        "its path leads out of the input": _LEAVES_INPUT.match(row.path) is not None,
        "its status is unknown": row.status not in {ACCEPTED, *Reason},
        "its class is unknown": row.wnid is not None and row.label is None,
        "it has no digest": None in (row.source_md5, row.source_digest),
        "a box has no four corners": not has_corners,
        "a number is not finite": not all(map(math.isfinite, numbers)),
        "its object has no such number": number < 0
        or (row.object is not None) != (config.objects == "each"),
        "its image is not the one before": number > 1 and not follows,
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
        and check_narrow(width, height, resize) != "",
        "its box is not in its picture": is_accepted
        and not (0 <= xmin < xmax <= width and 0 <= ymin < ymax <= height),
    }
    if mask is not None:
        decode_runs(mask, config.image_size)
    return next((fault for fault, is_there in faults.items() if is_there), "")
