"""WebDataset shards: `<key>.jpg` beside `<key>.cls` or `<key>.json`, and perhaps `<key>.xml`."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.errors import UsageError
from pipeline.inputs.annotations import annotation_by, annotation_of
from pipeline.inputs.archives import Member, first_names, members
from pipeline.inputs.input_format import FileFormat, SplitLayout
from pipeline.inputs.location import Location
from pipeline.inputs.source_images import (
    HIDDEN,
    IMAGE_SUFFIXES,
    SourceImage,
    is_wnid,
    stamp_of,
    wnid_of_label,
)
from pipeline.storage.files import relative
from pipeline.storage.interface import read_ahead
from transforms.annotations import AnnotationError, annotation_from, parse_annotation
from transforms.limits import MAX_ANNOTATION_BYTES, Unread, load_json
from transforms.taxonomy import Taxonomy

_MARKS = (".cls", ".json")
"""Suffixes of members that distinguish shards from other archives of images."""
_READ = (*_MARKS, ".xml")
"""Suffixes of members that are read when a shard is listed."""


class WebDataset(FileFormat):
    """Tar files of samples."""

    kind = "webdataset"
    suffix = ".tar"
    may_hold_boxes = True

    def recognizes(self, path: str) -> bool:
        return any(name.endswith(_MARKS) for name in first_names(path) if not HIDDEN.search(name))

    def list_images(self, layout: SplitLayout, taxonomy: Taxonomy) -> Iterator[SourceImage | None]:
        """Yields the images of all samples, and None for each sample without an image.

        The class comes from `wnid` in the `.json`, or else from the `.cls`, or else from `label` in
        the `.json`. Boxes come from the `.xml`, or else from `boxes` in the `.json`, each (xmin,
        ymin, xmax, ymax). A sample whose `.json` is no object, or whose label is not a class, has a
        `fault`; if all samples have one, UsageError is raised.
        """
        list_shard = functools.partial(_list_shard, root=layout.root, taxonomy=taxonomy)
        faults: list[str] = []
        for _, images in read_ahead(list_shard, layout.files):
            faults += [image.fault and f"{image.name}: {image.fault}" for image in images if image]
            yield from images
        if faults and all(faults):
            raise UsageError(faults[0])


@dataclasses.dataclass
class _Sample:
    """The members of a sample.

    Attributes:
      images: pictures, of different suffixes.
      others: contents of other members, by suffix; None for those that do not matter.
    """

    images: list[Member] = dataclasses.field(default_factory=list)
    others: dict[str, bytes | None] = dataclasses.field(default_factory=dict)


def _list_shard(path: str, root: str, taxonomy: Taxonomy) -> list[SourceImage | None]:
    shard, stamp = relative(path, root), stamp_of(path)
    samples: dict[str, list[_Sample]] = {}
    for member, read in members(path):
        folder, _, file = member.name.rpartition("/")
        key, _, extension = file.partition(".")
        if HIDDEN.search(member.name):
            continue
        suffix = f".{extension.lower()}"
        of_key = samples.setdefault(f"{folder}/{key}", [])
        # The second member of a suffix belongs to another sample of the same key.
        if not of_key or suffix in of_key[-1].others:
            of_key.append(_Sample())
        of_key[-1].others[suffix] = read(MAX_ANNOTATION_BYTES) if suffix in _READ else None
        if suffix in IMAGE_SUFFIXES:
            of_key[-1].images.append(member)
    return [
        image
        for key, of_key in samples.items()
        for sample in of_key
        for image in _images(key, sample, shard, stamp, taxonomy) or [None]
    ]


def _images(
    path: str, sample: _Sample, shard: str, stamp: str | None, taxonomy: Taxonomy
) -> Sequence[SourceImage | None]:
    wnid, fault = "", ""
    try:
        fields = _fields(sample.others.get(".json"))
        annotation = _annotation(sample.others.get(".xml"), fields)
        wnid = _wnid(sample.others.get(".cls"), fields, taxonomy)
    except UsageError as error:
        fault = str(error)
        annotation = annotation_of(AnnotationError(fault))
    return [
        SourceImage(
            key=path.rpartition("/")[2],
            location=member.location,
            name=f"{shard}/{member.name}",
            wnid=wnid,
            stamp=stamp,
            annotation=annotation,
            fault=fault,
        )
        for member in sample.images
    ]


def _text(data: bytes, suffix: str) -> str:
    if isinstance(data, Unread):
        raise UsageError(f"its {suffix} has {data.decode()}")
    return data.decode("utf-8", "replace")


def _fields(data: bytes | None) -> dict[str, Any]:
    if data is None:
        return {}
    try:
        fields = load_json(_text(data, ".json"))
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise UsageError("its .json is not a JSON object")
    return fields


def _wnid(data: bytes | None, fields: dict[str, Any], taxonomy: Taxonomy) -> str:
    wnid = str(fields.get("wnid") or "")
    if is_wnid(wnid) or wnid in taxonomy.index_of:
        return wnid
    label = fields.get("label") if data is None else _text(data, ".cls")
    return wnid_of_label(label, taxonomy, "it")


def _annotation(xml: bytes | None, fields: dict[str, Any]) -> Location | None:
    """Returns the location of the boxes in the sample, None if the sample has no boxes."""
    if xml is not None:
        return annotation_by(parse_annotation, xml)
    if "boxes" not in fields:
        return None
    return annotation_by(annotation_from, {**fields, "wnid": None})
