"""Finds the images and annotations of a split; lists images with class, label and annotation.

Images lie in one of the formats of `FORMATS`. Annotations lie in `Annotations/<split>/*.xml` or
`Annotations/<split>/<wnid>/*.xml`, also below `Annotations/CLS-LOC`; in Kaggle's
`LOC_<split>_solution.csv`; or in an archive `ILSVRC2012_bbox_<split>*.tgz`.

The folder decides the class of an image. If the image lies in no class folder, its annotation
decides.
"""

import dataclasses
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec
import numpy as np

from pipeline.errors import UsageError
from pipeline.inputs.annotations import annotated_wnid, index_annotations
from pipeline.inputs.archives import ARCHIVES, COMPRESSED, members
from pipeline.inputs.imagenet import ImageFolder, ImagenetTars, files_in, find_images, holds_files
from pipeline.inputs.input_format import (
    FileFormat,
    InputFormat,
    SplitLayout,
    find_files,
    has_boxes_by_name,
)
from pipeline.inputs.input_table import InputTable, find_table
from pipeline.inputs.lists import KeyList
from pipeline.inputs.source_images import IMAGE_SUFFIXES, Packed, SourceImage
from pipeline.inputs.tables import HubParquet
from pipeline.inputs.webdataset import WebDataset
from pipeline.storage.files import absolute, files_of, join, parent
from transforms.selection import lowest_hashes
from transforms.taxonomy import OUTSIDE, Taxonomy

FORMATS: dict[str, InputFormat] = {
    each.kind: each
    for each in (InputTable(), ImageFolder(), WebDataset(), ImagenetTars(), HubParquet())
}
"""All formats, by `kind`. If an input fits several formats, the first of them is used."""


class InputFlags(msgspec.Struct, frozen=True, kw_only=True):
    """Flags that name what a dataset is made from, by absolute paths.

    `taxonomy` is a file as it was typed.
    """

    input: str | None
    input_columns: tuple[str, ...] | None
    annotations: str | None
    masks: str | None
    backgrounds: str | None
    taxonomy: str | None
    exclude: str | None
    include: str | None
    recipe: str | None
    allow_partial: bool

    @property
    def lists(self) -> dict[str, str]:
        """The file of `--exclude` and of `--include`, by flag, if they are given."""
        files = {"exclude": self.exclude, "include": self.include}
        return {name: path for name, path in files.items() if path}


MAX_NAMES = 10_000
"""Largest number of classes whose images `list_images` counts, beside those of the taxonomy."""

_ANNOTATION_TREES = (
    "",
    "Annotations",
    "Annotations/CLS-LOC",
    "ILSVRC/Annotations/CLS-LOC",
    "CLS-LOC",
)


def find_layout(
    root: str,
    annotations: str | None,
    split: str,
    *,
    needs_boxes: bool = True,
    takes_any_folder: bool = False,
    columns: Mapping[str, str] | None = None,
) -> SplitLayout:
    """Finds the images and annotations of a split.

    Args:
      root: the input folder, the split's own folder, or a file with its images.
      annotations: a folder, an archive or a table; None to look beside the images.
      takes_any_folder: whether the input itself may hold the images, or its subfolders, because
        something else than a folder says which of them are of the split.
      columns: result of `named_columns`; with any, the images must be those of an input table.

    Raises:
      UsageError: there are no images or no annotations, and the message says where they were looked
        for; or this user may not read a file.
    """
    root = absolute(root)
    try:
        layout = (
            find_table(root, split, columns)
            if columns
            else _find_images(root, split, takes_any_folder)
        )
        if layout is None:
            raise UsageError(
                f"--input_columns is for input tables, and {root} is no table with paths in a "
                f"column {(columns or {}).get('image', 'image')!r}"
            )
        input_format = FORMATS[layout.kind]
        if not input_format.takes_annotations:
            if annotations is not None:
                raise UsageError(
                    f"--annotations {annotations}: boxes are in the {layout.kind} "
                    f"{layout.files[0]}; leave it out"
                )
            return layout
        path = (
            _named_annotations(annotations, layout)
            if annotations
            else find_annotations(layout.root, layout.images, split)
        )
    except PermissionError as error:
        raise UsageError(f"{error.filename} cannot be read: {error.strerror}") from error
    is_needed = needs_boxes or annotations is not None
    if path is None and is_needed and not input_format.may_hold_boxes:
        searched = annotations if annotations is not None else root
        raise UsageError(
            f"no annotations of {split!r} in {searched}: expected .xml files in "
            f"Annotations/{split} or Annotations/CLS-LOC/{split}, LOC_{split}_solution.csv or an "
            "archive ILSVRC2012_bbox_... of them. Name them with --annotations"
        )
    return dataclasses.replace(layout, annotations=path)


def _find_images(root: str, split: str, takes_any_folder: bool) -> SplitLayout:
    """Finds a split's images by the first format that the input has, but not their annotations."""
    for each in FORMATS.values():
        if layout := each.find(root, split):
            return layout
    if takes_any_folder and holds_files(root, IMAGE_SUFFIXES):
        return SplitLayout(ImageFolder.kind, split, root, root)
    for suffix in COMPRESSED:
        for path in find_files(root, split, suffix):
            next(members(path), None)  # Raises, because the user must unpack the archive first.
    suffixes = tuple(
        dict.fromkeys(each.suffix for each in FORMATS.values() if isinstance(each, FileFormat))
    )
    return SplitLayout(ImageFolder.kind, split, root, find_images(root, split, suffixes=suffixes))


def find_annotations(root: str, images: str, split: str) -> str | None:
    """Returns a split's annotations beside `images`, the folder of its images or of their files."""
    return _annotations_in([root, parent(images), parent(root)], images, split)


def _named_annotations(named: str, layout: SplitLayout) -> str | None:
    """Finds the annotations of a split in the folder or file that `--annotations` names."""
    files = files_of(named)
    if named.lower().endswith((*ARCHIVES, ".csv")) and files.info(named) is not None:
        return named
    if not files.is_folder(named):
        raise UsageError(
            f"--annotations {named} is neither a folder that can be read, nor an archive or a "
            ".csv file"
        )
    path = _annotations_in([named], layout.images, layout.split)
    return named if path is None and holds_files(named, (".xml",)) else path


def _annotations_in(bases: Sequence[str], images: str, split: str) -> str | None:
    folders = (
        path
        for base in bases
        for tree in _ANNOTATION_TREES
        if (path := join(base, tree, split)) != images and holds_files(path, (".xml",))
    )
    files = (
        path
        for base in bases
        for path in files_of(base).file_paths(base)
        if has_boxes_by_name(path, split)
    )
    return next(folders, None) or next(files, None)


def image_classes(images: str, annotations: str | None) -> Iterator[tuple[str, int, str]]:
    """Yields (path, size in bytes, wnid or "" if unknown) for every image in a split's folder.

    `annotations` is the result of `find_annotations`. Raises UsageError if they are not valid.
    """
    index = index_annotations(annotations)
    for file in files_in(images, IMAGE_SUFFIXES):
        if not file.key:
            continue
        wnid = file.folder
        if not wnid and (annotation := index.find("", file.key)):
            wnid = annotated_wnid(annotation.location)
        path = file.location.path
        # A listing of objects tells their sizes.
        yield path, os.path.getsize(path) if file.size is None else file.size, wnid


def list_images(
    layout: SplitLayout,
    taxonomy: Taxonomy,
    limit: int | None = None,
    lists: Sequence[KeyList] = (),
    adapt: Callable[[SourceImage], SourceImage] = lambda image: image,
) -> tuple[Packed[SourceImage], Counter[str], Counter[str]]:
    """Lists the images of a split, in flat memory.

    Args:
      limit: number of images to keep of each superclass, and of those without a class, by the
        lowest hashes of their keys. None keeps all images.

    Returns:
      The images of the taxonomy's classes, and those of unknown class; counts: `outside` for images
        of other classes, `other_files` for files that are not images; and the number of images by
        class, before `limit`, where "" stands for no class, and for names beyond `MAX_NAMES`.
    """
    skipped: Counter[str] = Counter()
    classes: Counter[str] = Counter()
    others: set[str] = set()

    def listed() -> Iterator[SourceImage]:
        index = index_annotations(layout.annotations)
        for image in FORMATS[layout.kind].list_images(layout, taxonomy):
            if image is None:
                skipped["other_files"] += 1
                continue
            annotation, md5 = image.annotation, None
            if annotation is None and (file := index.find(image.wnid, image.key)):
                annotation, md5 = file.location, file.md5
            wnid = image.wnid or annotated_wnid(annotation)
            label = taxonomy.label_of(wnid)
            if wnid not in taxonomy.index_of and len(others) < MAX_NAMES:
                others.add(wnid)
            classes[wnid if wnid in others or wnid in taxonomy.index_of else ""] += 1
            if label == OUTSIDE and wnid:
                skipped["outside"] += 1
                continue
            yield adapt(
                dataclasses.replace(
                    image,
                    wnid=wnid,
                    label=label,
                    annotation=annotation,
                    annotation_md5=md5,
                    is_excluded=any(each.excludes(image.key, wnid) for each in lists),
                )
            )

    images = Packed(listed())
    if limit is not None:
        labels = np.asarray([image.label for image in images], np.int64)
        kept = lowest_hashes([i.key for i in images], labels, limit, seed=0, purpose="limit")
        images = Packed(itertools.compress(images, kept))
    return images, skipped, classes
