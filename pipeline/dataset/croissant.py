"""Croissant 1.0 metadata, which tells generic tools what a dataset holds and where.

It has one record set that lists the superclasses and, if the dataset has Parquet files, one per
variant, backed by these files. Paths are relative to the metadata, so that a dataset can be moved
as a whole.
"""

import itertools
from typing import Any, TypeVar

import pyarrow as pa

from pipeline.dataset.datasheet import datasheet, has_imagenet_classes
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.sinks import SAMPLE_FIELDS
from pipeline.storage.state_files import json_bytes
from pipeline.storage.store import FileDigest
from transforms.taxonomy import Taxonomy

T = TypeVar("T")
Json = dict[str, Any]
"""An object of the metadata."""

_TYPES = {"string": "sc:Text", "int64": "sc:Integer", "int32": "sc:Integer", "double": "sc:Float"}
# [0-9-of]+ matches 00000-of-00008.
_SPLIT_IN_PATH = r"^parquet/[^/]+/(\w+)-[0-9-of]+\.parquet$"

_SINGLE = (
    *("dataCollection", "dataCollectionMissingData", "annotationsPerItem", "dataSocialImpact"),
    "dataReleaseMaintenancePlan",
)
"""Answers of the datasheet of which there is one text."""
PAPER = "Noise or Signal: The Role of Image Backgrounds in Object Recognition"
PAPER_URL = "https://arxiv.org/abs/2006.09994"

COLUMNS = {
    "key": "key of the image, usually its file name without the suffix; equal in all variants",
    "image": "the picture, JPEG or PNG",
    "label": "superclass: its label in the record set `classes` (line of `classes.txt`, from 0)",
    "wnid": "class: a WordNet id, or the name that the images came with",
    "imagenet_index": "index of the class `wnid` among the outputs of an ImageNet-1k model",
    "fg_key": "image that the foreground comes from",
    "bg_key": "image or scene that the background was drawn from; empty if none was, or unknown",
    "bg_label": "superclass of the image that the background comes from",
    "bg_wnid": "class of the image that the background comes from",
    "box": "x0, y0, x1, y1 of the annotated box in pixels of the picture, half-open",
    "fg_fraction": "share of the pixels that are foreground, in [0, 1]",
}
"""Descriptions of the samples' columns."""


def croissant_metadata(
    manifest: Manifest,
    taxonomy: Taxonomy,
    *,
    name: str,
    licence: str,
    descriptions: dict[str, str],
    cite: str,
) -> bytes:
    """Returns the metadata file's bytes, which are the same for equal manifests.

    It has no date of publication, although validators recommend one, because a dataset that is made
    again must be the same, byte for byte; and no address, which only its maker knows. `licence` is
    that of the sample's pictures, empty without them; the maker's terms are added.
    """
    text = (
        "Every image appears in several variants that differ in foreground and background. There "
        "is one record set per variant; all have the same keys in the same order."
    )
    readable = descriptions if "parquet" in manifest.config.compose.formats else {}
    content = {
        **_content(manifest, name, text, licence, cite),
        "distribution": [file for variant in readable for file in _files(manifest, variant)],
        "recordSet": [_classes(taxonomy), *itertools.starmap(_record_set, readable.items())],
    }
    return json_bytes(content)


def file_metadata(file: FileDigest, manifest: Manifest, cite: str) -> bytes:
    """Returns the metadata file's bytes for a dataset's recipe, which lies beside it."""
    text = f"Recipe of dataset {manifest.fingerprint}: decisions and masks, without a pixel."
    of_masks = manifest.about.terms.partition("masks:")[2].strip()
    content = _content(manifest, f"recipe-{manifest.fingerprint[:12]}", text, of_masks, cite)
    return json_bytes({**content, "distribution": [_file(file)]})


def _content(manifest: Manifest, name: str, text: str, licence: str, cite: str) -> Json:
    """Returns metadata without files and record sets, as `mlcroissant` writes it.

    A list of one value is that value, and what is empty is left out.
    """
    about = manifest.about
    # What stands behind `masks:` is said of the masks alone.
    terms = about.terms.partition("masks:")[0].strip(" ,;")
    place = "url" if "://" in about.contact else "email"
    # Croissant tells persons from organisations. Several people are an organisation, so that a name
    # is never that of too few.
    creator = {"@type": "sc:Organization", "name": about.creator, place: about.contact}
    bases = [{"name": PAPER, "url": PAPER_URL}]
    if has_imagenet_classes(manifest):
        bases.append({"name": "ImageNet", "description": "source of the classes"})
    sheet = {
        f"rai:{name}": " ".join(texts) if name in _SINGLE else _unboxed(texts)
        for name, texts in datasheet(manifest).items()
    }
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": name,
        "description": text,
        "conformsTo": [
            "http://mlcommons.org/croissant/1.0",
            "http://mlcommons.org/croissant/RAI/1.0",
        ],
        "citeAs": cite,
        **({"creator": {n: v for n, v in creator.items() if v}} if about.creator else {}),
        "isBasedOn": _unboxed([{"@type": "sc:CreativeWork", **base} for base in bases]),
        "license": _unboxed([each for each in (licence, terms) if each] or ["other"]),
        "version": f"1.0.0+{manifest.fingerprint}",
        "distribution": [],
        "recordSet": [],
        **sheet,
    }


def _unboxed(values: list[T]) -> T | list[T]:
    return values[0] if len(values) == 1 else values


def _classes(taxonomy: Taxonomy) -> Json:
    """Returns the record set of the superclasses, whose rows are in the metadata itself."""
    return {
        "@type": "cr:RecordSet",
        "@id": "classes",
        "name": "classes",
        "description": "superclasses by label",
        "key": {"@id": "classes/label"},
        "field": [
            {"@type": "cr:Field", "@id": f"classes/{name}", "name": name, "dataType": kind}
            for name, kind in (("label", "sc:Integer"), ("name", "sc:Text"))
        ],
        "data": [
            {"classes/label": label, "classes/name": name}
            for label, name in enumerate(taxonomy.names)
        ],
    }


def _files(manifest: Manifest, variant: str) -> list[Json]:
    """Returns a variant's files with their checksums, and the set that they form."""
    folder = f"parquet/{variant}/"
    files = [_file(file) for file in manifest.files if file.path.startswith(folder)]
    # No `containedIn`, which would say that the files are archives with the set inside.
    file_set = {
        "@type": "cr:FileSet",
        "@id": _file_set(variant),
        "name": _file_set(variant),
        "encodingFormat": "application/x-parquet",
        "includes": f"{folder}*.parquet",
    }
    return [*files, file_set]


def _file(file: FileDigest) -> Json:
    """Returns a Parquet file with its checksum."""
    return {
        "@type": "cr:FileObject",
        "@id": file.path,
        "name": file.path,
        "contentUrl": file.path,
        "contentSize": f"{file.bytes} B",
        "encodingFormat": "application/x-parquet",
        "sha256": file.sha256,
    }


def _file_set(variant: str) -> str:
    return f"files-{variant}"


def _record_set(variant: str, description: str) -> Json:
    file_set_source = {"fileSet": {"@id": _file_set(variant)}}

    def field(name: str, kind: str, text: str, source: Json, **options: object) -> Json:
        return {
            "@type": "cr:Field",
            "@id": f"{variant}/{name}",
            "name": name,
            "description": text,
            "dataType": kind,
            "source": source,
            **options,
        }

    def column(name: str, kind: str, *transforms: dict[str, str], **options: object) -> Json:
        transform = {"transform": _unboxed([*transforms])} if transforms else {}
        column_source = {**file_set_source, "extract": {"column": name}, **transform}
        return field(name, kind, COLUMNS[name], column_source, **options)

    path_source = {
        **file_set_source,
        "extract": {"fileProperty": "fullpath"},
        "transform": {"regex": _SPLIT_IN_PATH},
    }
    return {
        "@type": "cr:RecordSet",
        "@id": variant,
        "name": variant,
        "description": description,
        "field": [
            field("split", "sc:Text", "name of the split, such as train or val", path_source),
            column("key", "sc:Text"),
            column("image", "sc:ImageObject", {"jsonPath": "bytes"}),
            *(
                column(each.name, "sc:Integer", repeated=True)
                if pa.types.is_nested(each.type)
                else column(each.name, _TYPES[str(each.type)])
                for each in SAMPLE_FIELDS
            ),
        ],
    }


_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
