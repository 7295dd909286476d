"""Lists the images of a split, with class, label and annotation.

The folder decides the class of an image. If the image lies in no class folder, its annotation
decides.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator

import numpy as np

from pipeline.inputs.annotation_index import annotated_wnid, index_annotations
from pipeline.inputs.formats import FORMATS
from pipeline.inputs.image_folder import files_in
from pipeline.inputs.input_format import SplitLayout
from pipeline.inputs.key_lists import KeyLists
from pipeline.inputs.source_images import IMAGE_SUFFIXES, SourceImage
from pipeline.storage.file_kind import missing
from pipeline.storage.files import files_of
from transforms.selection import lowest_hashes
from transforms.taxonomy import OUTSIDE, Taxonomy


def image_classes(images: str, annotations: str | None) -> Iterator[tuple[str, int, str]]:
    """Yields (path, size in bytes, wnid) for every image in a split's folder; the wnid is empty if
    neither a folder nor an annotation tells it.

    Args:
      images: folder of the images.
      annotations: result of `find_annotations`; None without annotations.

    Raises:
      UsageError: the archive or the table of annotations is not valid.
      OSError: a folder cannot be read, or an annotation that is needed for the class cannot be
        read.
    """
    index = index_annotations(annotations)
    for file in files_in(images, IMAGE_SUFFIXES):
        if not file.key:
            continue
        wnid = file.folder
        if not wnid and (annotation := index.find("", file.key)):
            wnid = annotated_wnid(annotation.path)
        size = file.size
        if size is None:
            info = files_of(file.path).info(file.path)
            if info is None:
                raise missing(file.path)
            size = info.size
        yield file.path, size, wnid


def list_images(
    layout: SplitLayout,
    taxonomy: Taxonomy,
    limit: int | None = None,
    keys: KeyLists = KeyLists(),  # noqa: B008
) -> tuple[tuple[SourceImage, ...], Counter[str]]:
    """Lists the images of a split.

    Args:
      layout: result of `find_layout`.
      taxonomy: the classes to list.
      limit: number of images to keep of each superclass, and of those without a class; the images
        whose keys have the lowest hashes are kept. None keeps all images.
      keys: lists that exclude images.

    Returns:
      The images of the taxonomy's classes, and those whose class nothing tells, in order of `name`;
      and counts: `outside` for images of other classes, `other_files` for files that are no images.

    Raises:
      UsageError: the input is not valid, is incomplete, or is refused.
      OSError: a file cannot be read.
    """
    index = index_annotations(layout.annotations)
    images = []
    passed_over: Counter[str] = Counter()
    for image in FORMATS[layout.kind].list_images(layout, taxonomy):
        if image is None:
            passed_over["other_files"] += 1
            continue
        annotation, md5 = image.annotation, None
        if annotation is None and (file := index.find(image.wnid, image.key)):
            annotation, md5 = file.path, file.md5
        wnid = image.wnid or annotated_wnid(annotation)
        label = taxonomy.label_of(wnid)
        if label == OUTSIDE and wnid:
            passed_over["outside"] += 1
            continue
        images.append(
            dataclasses.replace(
                image,
                wnid=wnid,
                label=label,
                annotation=annotation,
                annotation_md5=md5,
                is_excluded=keys.excludes(image.key, wnid),
            )
        )
    if limit is not None:
        labels = np.asarray([image.label for image in images], np.int64)
        kept = lowest_hashes([i.key for i in images], labels, limit, seed=0, purpose="limit")
        images = [image for image, keep in zip(images, kept, strict=True) if keep]
    images.sort(key=lambda image: image.name)
    return tuple(images), passed_over
