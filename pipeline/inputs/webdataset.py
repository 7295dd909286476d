"""WebDataset shards: `<key>.jpg` beside `<key>.cls` or `<key>.json`, perhaps `<key>.xml`."""

from __future__ import annotations

import dataclasses
import functools
import json
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
from transforms.limits import MAX_ANNOTATION_BYTES, Unread
from transforms.taxonomy import Taxonomy

_MARKS = (".cls", ".json")
"""Suffixes that tell a shard from another archive of images."""


class WebDataset(FileFormat):
    """WebDataset shards."""

    kind = "webdataset"
    suffix = ".tar"
    may_hold_boxes = True

    def recognizes(self, path: str) -> bool:
        return any(name.endswith(_MARKS) for name in first_names(path) if not is_hidden(name))

    def list_images(self, layout: SplitLayout, taxonomy: Taxonomy) -> Iterator[SourceImage | None]:
        return images_in_shards(layout.files, layout.root, taxonomy)


@dataclasses.dataclass
class _Sample:
    """The members of a key."""

    image: Member | None = None
    label: str | None = None
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    xml: bytes | None = None


def images_in_shards(
    paths: Sequence[str], root: str, taxonomy: Taxonomy
) -> Iterator[SourceImage | None]:
    """The images of samples, None for each sample without.

    The class is `wnid` in the `.json`, else `.cls`, else `label` in the `.json`; the box is in
    the `.xml`, else `boxes` in the `.json`, (xmin, ymin, xmax, ymax) each.

    Args:
      paths: of the shards, absolute.
      root: the input folder.
      taxonomy: whose class numbers labels are.

    Raises:
      UsageError: a shard is incomplete or refused, or its classes are not ImageNet's.
      OSError: it cannot be read.
    """
    listed = functools.partial(_list_shard, root=root, taxonomy=taxonomy)
    for _, found in read_ahead(listed, paths):
        yield from found


def _list_shard(path: str, root: str, taxonomy: Taxonomy) -> list[SourceImage | None]:
    own, stamp = relative(path, root), stamp_of(path)
    samples: dict[str, _Sample] = {}
    for member, read in members(path):
        folder, _, name = member.name.rpartition("/")
        key, _, extension = name.partition(".")
        if is_hidden(member.name):
            continue
        sample = samples.setdefault(f"{folder}/{key}", _Sample())
        match f".{extension.lower()}":
            case suffix if suffix in IMAGE_SUFFIXES:
                sample.image = member
            case ".cls":
                sample.label = _text(read, f"{own}/{member.name}")
            case ".json":
                where = f"{own}/{member.name}"
                sample.fields = _fields(_text(read, where), where)
            case ".xml":
                sample.xml = read(MAX_ANNOTATION_BYTES)
    return [_image(key, sample, own, stamp, taxonomy) for key, sample in samples.items()]


def _text(read: Reading, where: str) -> str:
    data = read(MAX_ANNOTATION_BYTES)
    if isinstance(data, Unread):
        raise UsageError(f"{where} has {data.decode()}")
    return data.decode("utf-8", "replace")


def _fields(data: str, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise UsageError(f"{where} is no JSON object")
    return fields


def _image(
    path: str, sample: _Sample, shard: str, stamp: str | None, taxonomy: Taxonomy
) -> SourceImage | None:
    member = sample.image
    if member is None:
        return None
    label = sample.fields.get("label") if sample.label is None else sample.label
    named = str(sample.fields.get("wnid") or "")
    is_named = is_wnid(named) or taxonomy.holds(named)
    name = f"{shard}/{member.name}"
    return SourceImage(
        key=path.rpartition("/")[2],
        path=member.place,
        name=name,
        wnid=named if is_named else wnid_of_label(label, taxonomy, name),
        stamp=stamp,
        annotation=_annotation(sample),
    )


def _annotation(sample: _Sample) -> str | None:
    """The place of what tells the boxes, None if nothing does."""
    if sample.xml is not None:
        return annotation_of_xml(sample.xml)
    if "boxes" not in sample.fields:
        return None
    try:
        return annotation_of(annotation_from({**sample.fields, "wnid": None}))
    except AnnotationError as error:
        return annotation_of(error)
