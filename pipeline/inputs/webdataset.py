"""WebDataset shards: `<key>.jpg` beside `<key>.cls` or `<key>.json`, and perhaps `<key>.xml`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.errors import UsageError
from pipeline.inputs.annotation_index import annotation_of, annotation_of_xml
from pipeline.inputs.archives import Member, Reading, first_names, members
from pipeline.inputs.checksums import stamp_of
from pipeline.inputs.input_format import FileFormat, SplitLayout
from pipeline.inputs.source_images import (
    IMAGE_SUFFIXES,
    SourceImage,
    is_hidden,
    is_wnid,
    wnid_of_label,
)
from pipeline.storage.files import relative
from pipeline.storage.parallel import read_ahead
from transforms.annotations import AnnotationError, annotation_from
from transforms.limits import MAX_ANNOTATION_BYTES, Unread, load_json
from transforms.taxonomy import Taxonomy

_MARKS = (".cls", ".json")
"""Suffixes of members that distinguish shards from other archives of images."""


class WebDataset(FileFormat):
    """Tar files of samples."""

    kind = "webdataset"
    suffix = ".tar"
    may_hold_boxes = True

    def recognizes(self, path: str) -> bool:
        return any(name.endswith(_MARKS) for name in first_names(path) if not is_hidden(name))

    def list_images(self, layout: SplitLayout, taxonomy: Taxonomy) -> Iterator[SourceImage | None]:
        return images_in_shards(layout.files, layout.root, taxonomy)


@dataclasses.dataclass
class _Sample:
    """The members that share a key."""

    image: Member | None = None
    label: str | None = None
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    xml: bytes | None = None


def images_in_shards(
    paths: Sequence[str], root: str, taxonomy: Taxonomy
) -> Iterator[SourceImage | None]:
    """Yields the images of all samples, and None for each sample without an image.

    The class comes from `wnid` in the `.json`, or else from the `.cls`, or else from `label` in the
    `.json`. Boxes come from the `.xml`, or else from `boxes` in the `.json`, each (xmin, ymin,
    xmax, ymax).

    Args:
      paths: absolute paths of the shards.
      root: the input folder.
      taxonomy: the classes that labels refer to.

    Raises:
      UsageError: a shard is incomplete or refused, or a label is not a class.
      OSError: a shard cannot be read.
    """
    list_shard = functools.partial(_list_shard, root=root, taxonomy=taxonomy)
    for _, images in read_ahead(list_shard, paths):
        yield from images


def _list_shard(path: str, root: str, taxonomy: Taxonomy) -> list[SourceImage | None]:
    shard, stamp = relative(path, root), stamp_of(path)
    samples: dict[str, _Sample] = {}
    for member, read in members(path):
        folder, _, file = member.name.rpartition("/")
        key, _, extension = file.partition(".")
        if is_hidden(member.name):
            continue
        sample = samples.setdefault(f"{folder}/{key}", _Sample())
        match f".{extension.lower()}":
            case suffix if suffix in IMAGE_SUFFIXES:
                sample.image = member
            case ".cls":
                sample.label = _text(read, f"{shard}/{member.name}")
            case ".json":
                name = f"{shard}/{member.name}"
                sample.fields = _fields(_text(read, name), name)
            case ".xml":
                sample.xml = read(MAX_ANNOTATION_BYTES)
    return [_image(key, sample, shard, stamp, taxonomy) for key, sample in samples.items()]


def _text(read: Reading, name: str) -> str:
    data = read(MAX_ANNOTATION_BYTES)
    if isinstance(data, Unread):
        raise UsageError(f"{name} has {data.decode()}")
    return data.decode("utf-8", "replace")


def _fields(data: str, name: str) -> dict[str, Any]:
    try:
        fields = load_json(data)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise UsageError(f"{name} is not a JSON object")
    return fields


def _image(
    path: str, sample: _Sample, shard: str, stamp: str | None, taxonomy: Taxonomy
) -> SourceImage | None:
    member = sample.image
    if member is None:
        return None
    label = sample.fields.get("label") if sample.label is None else sample.label
    wnid = str(sample.fields.get("wnid") or "")
    is_known = is_wnid(wnid) or taxonomy.holds(wnid)
    name = f"{shard}/{member.name}"
    return SourceImage(
        key=path.rpartition("/")[2],
        path=member.location,
        name=name,
        wnid=wnid if is_known else wnid_of_label(label, taxonomy, name),
        stamp=stamp,
        annotation=_annotation(sample),
    )


def _annotation(sample: _Sample) -> str | None:
    """Returns the location of the boxes in the sample, None if the sample has no boxes."""
    if sample.xml is not None:
        return annotation_of_xml(sample.xml)
    if "boxes" not in sample.fields:
        return None
    try:
        return annotation_of(annotation_from({**sample.fields, "wnid": None}))
    except AnnotationError as error:
        return annotation_of(error)
