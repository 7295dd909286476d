"""The files that introduce a dataset to people and tools: card, classes, Croissant."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pipeline.config import SegmentConfig
from pipeline.manifest import Manifest
from pipeline.sinks import SAMPLE_FIELDS
from transforms.taxonomy import Taxonomy
from transforms.variants import split_replicate

CARD_FILES = ("README.md", "classes.txt", "croissant.json")

_DESCRIPTIONS = {
    "original": "the image as it is",
    "only_bg_b": "background only, the annotated box blacked out",
    "only_bg_t": "background only, tiled over the annotated box",
    "no_fg": "the foreground cut out, a black silhouette",
    "only_fg": "the foreground on black",
    "mixed_same": "the foreground on a background of the same class",
    "mixed_rand": "the foreground on a background of a random class",
    "mixed_next": "the foreground on a background of the next class",
    "fg_mask": "the foreground mask, 255 or 0",
    "bg_blurred": "the background blurred, the foreground sharp",
    "mixed_external": "the foreground on a scene that is no image of the dataset",
}


def _describe(name: str) -> str:
    """What a variant, or a replicate of one, shows."""
    variant, replicate = split_replicate(name)
    again = f", drawn again ({replicate})" if replicate else ""
    return _DESCRIPTIONS.get(variant, "the user's own; see manifest.json") + again


def card_files(manifest: Manifest, taxonomy: Taxonomy) -> Iterator[tuple[str, bytes]]:
    """(path, content) of each file. The same manifest gives the same bytes."""
    yield "README.md", _readme(manifest).encode()
    yield "classes.txt", "".join(f"{name}\n" for name in taxonomy.names).encode()
    yield "croissant.json", _croissant(manifest)


def _readme(manifest: Manifest) -> str:
    config = manifest.config
    total = sum(images["selected"] for images in manifest.images.values())
    lines = ["---", "license: other", "task_categories:", "- image-classification"]
    if "parquet" in config.compose.formats:
        # Without these, loaders merge all variants silently.
        lines.append("configs:")
        for variant in config.compose.composed:
            lines += [f"- config_name: {variant}", "  data_files:"]
            for split in config.split:
                lines += [f"  - split: {split}", f"    path: parquet/{variant}/{split}-*.parquet"]
    lines += [
        "---",
        "",
        "# ImageNet-9 variants",
        "",
        "Made by the protocol of *Noise or Signal: The Role of Image Backgrounds in Object",
        "Recognition* (arXiv 2006.09994): each image is separated into foreground and",
        "background, and put together again in every variant. All variants hold the same keys",
        "in the same order. The pictures remain under the terms of the images they come from.",
        "",
        f"{total} images in each variant.",
        "",
        "| variant | what it shows |",
        "|---|---|",
    ]
    lines += [f"| `{name}` | {_describe(name)} |" for name in config.compose.composed]
    lines += [
        "",
        "| split | listed | accepted | rejected | in the dataset |",
        "|---|---|---|---|---|",
    ]
    for split in config.split:
        images = manifest.images[split]
        lines.append(
            f"| {split} | {images['listed']} | {images['accepted']} | {images['rejected']} "
            f"| {images['selected']} |"
        )
    masks = _masks(config.segment)
    if config.is_imported:
        masks = (
            "Imported from the released layout: pictures and masks are those of the release, and\n"
            "the backgrounds of mixed pictures are found by their pixels, null where that is not\n"
            "sure (`<variant>_bg_*` in the index)."
        )
    lines += [
        "",
        f"{masks} `index/` holds a",
        "row for every source image with the reason for each rejection, `manifest.json` the",
        "configuration and a checksum of every file.",
        "",
    ]
    return "\n".join(lines)


def _masks(config: SegmentConfig) -> str:
    """Where the masks come from."""
    segmenter = config.find_segmenter()
    if segmenter.method == "grabcut":
        return "Masks are GrabCut's from the annotated box and not corrected by hand."
    if segmenter.method == "masks":
        return "Masks were given with the images."
    if segmenter.method == "box":
        return "Masks are the annotated boxes."
    return f"Masks are a network's, `{segmenter.label}`, and not corrected by hand."


_CROISSANT_TYPES = {
    "string": "sc:Text",
    "int64": "sc:Integer",
    "int32": "sc:Integer",
    "double": "sc:Float",
}


def _croissant(manifest: Manifest) -> bytes:
    """Croissant 1.0 metadata: one record set a variant, over its Parquet files."""
    config = manifest.config
    content: dict[str, Any] = {
        "@context": _CROISSANT_CONTEXT,
        "@type": "sc:Dataset",
        "name": "imagenet9-variants",
        "description": "ImageNet-9 background variants, one record set each.",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "citeAs": "Xiao, Engstrom, Ilyas, Madry: Noise or Signal. arXiv 2006.09994",
        "license": "other",
        "url": "https://arxiv.org/abs/2006.09994",
        "version": "1.0.0",
        "distribution": [],
        "recordSet": [],
    }
    if "parquet" in config.compose.formats:
        for variant in config.compose.composed:
            distribution, record_set = _croissant_variant(manifest, variant)
            content["distribution"] += distribution
            content["recordSet"].append(record_set)
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def _croissant_variant(
    manifest: Manifest, variant: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The files of a variant, and its record set."""
    files = [
        {
            "@type": "cr:FileObject",
            "@id": file.path,
            "name": file.path,
            "contentUrl": file.path,
            "contentSize": f"{file.bytes} B",
            "encodingFormat": "application/x-parquet",
            "sha256": file.sha256,
        }
        for file in manifest.files
        if file.path.startswith(f"parquet/{variant}/")
    ]
    file_set = {
        "@type": "cr:FileSet",
        "@id": f"files-{variant}",
        "name": f"files-{variant}",
        "containedIn": [{"@id": file["@id"]} for file in files],
        "encodingFormat": "application/x-parquet",
        "includes": f"parquet/{variant}/*.parquet",
    }

    def field(name: str, kind: str, **extract: Any) -> dict[str, Any]:
        source = {
            "fileSet": {"@id": file_set["@id"]},
            "extract": {"column": name},
            **extract,
        }
        return {
            "@type": "cr:Field",
            "@id": f"{variant}/{name}",
            "name": name,
            "dataType": kind,
            "source": source,
        }

    fields = [
        field("key", "sc:Text"),
        field("image", "sc:ImageObject", transform=[{"jsonPath": "bytes"}]),
    ]
    fields += [
        field(column.name, _CROISSANT_TYPES[str(column.type)])
        for column in SAMPLE_FIELDS
        if column.name != "box"
    ]
    record_set = {
        "@type": "cr:RecordSet",
        "@id": variant,
        "name": variant,
        "description": _describe(variant),
        "field": fields,
    }
    return [*files, file_set], record_set


_CROISSANT_CONTEXT = {
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
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
