"""The files that introduce a dataset to people and tools: card, classes, Croissant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.dataset.croissant import COLUMNS, croissant
from pipeline.dataset.how_made import limits_of, steps_of
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.notes import notes_of, sentence
from pipeline.dataset.sample import LICENCE, sample_sources
from transforms.taxonomy import Taxonomy
from transforms.variants import split_replicate

_CLASSES_SHOWN = 10

CITATION = "Xiao, Engstrom, Ilyas, Madry: Noise or Signal. arXiv 2006.09994"

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
    "noise_fg": "the image with Gaussian noise on the foreground, standard deviation 0.25",
    "noise_bg": "the image with the same noise on the background instead",
    "mixed_external": "the foreground on a scene that is no image of the dataset",
}

_SIZES = ((1_000, "1K"), (10_000, "10K"), (100_000, "100K"), (1_000_000, "1M"))


def _describe(name: str) -> str:
    """What a variant, or a replicate of one, shows."""
    variant, replicate = split_replicate(name)
    again = f", drawn again ({replicate})" if replicate else ""
    return _DESCRIPTIONS.get(variant, "the user's own; see manifest.json") + again


def card_files(manifest: Manifest, taxonomy: Taxonomy) -> Iterator[tuple[str, bytes]]:
    """(path, content) of each file. The same manifest gives the same bytes."""
    variants = manifest.config.compose.composed
    yield "README.md", _readme(manifest, taxonomy).encode()
    yield "classes.txt", "".join(f"{name}\n" for name in taxonomy.names).encode()
    yield (
        "croissant.json",
        croissant(
            manifest,
            taxonomy,
            name=_name(manifest).lower().replace(" ", "-"),
            licence=LICENCE if manifest.is_sample else "other",
            descriptions={name: _describe(name) for name in variants},
            cite=CITATION,
        ),
    )


def size_category(samples: int) -> str:
    """How the Hugging Face hub calls a number of samples.

    >>> size_category(999), size_category(1000), size_category(2_000_000)
    ('n<1K', '1K<n<10K', '1M<n<10M')
    """
    lower = ""
    for limit, name in _SIZES:
        if samples < limit:
            return f"{lower}n<{name}"
        lower = f"{name}<"
    return "1M<n<10M" if samples < 10_000_000 else "10M<n<100M"


def _name(manifest: Manifest) -> str:
    if manifest.config.segment.is_whole:
        return "IN-9L" if manifest.taxonomy is None else "Whole images"
    name = "ImageNet-9 variants" if manifest.taxonomy is None else "Background variants"
    return f"{name} of the sample" if manifest.is_sample else name


def _front_matter(manifest: Manifest) -> list[str]:
    """The YAML that the Hugging Face hub and its loaders read."""
    config = manifest.config
    variants = config.compose.composed
    images = sum(images["selected"] for images in manifest.images.values())
    is_imagenet = manifest.taxonomy is None and not manifest.is_sample
    source = "extended|imagenet-1k" if is_imagenet else "original"
    licence = ("license: other", "license_name: terms-of-the-source-images")
    lines = [
        *("---", *(("license: gpl-2.0",) if manifest.is_sample else licence)),
        f"pretty_name: {_name(manifest)}",
        *("task_categories:", "- image-classification"),
        *("source_datasets:", f"- {source}"),
        *("size_categories:", f"- {size_category(images * len(variants))}"),
        *("tags:", "- background-robustness", "- imagenet-9", "- arxiv:2006.09994"),
    ]
    # Without these, loaders merge all variants silently.
    folder, suffix = (
        ("parquet", "parquet") if "parquet" in config.compose.formats else ("webdataset", "tar")
    )
    lines.append("configs:")
    for variant in variants:
        lines += [f"- config_name: {variant}", "  data_files:"]
        for split in config.split:
            lines += [f"  - split: {split}", f"    path: {folder}/{variant}/{split}-*.{suffix}"]
    return [*lines, "---"]


def _readme(manifest: Manifest, taxonomy: Taxonomy) -> str:
    config = manifest.config
    total = sum(images["selected"] for images in manifest.images.values())
    variants = config.compose.composed
    lines = [
        *_front_matter(manifest),
        "",
        f"# {_name(manifest)}",
        "",
        *(f"**{sentence(note)}**\n" for note in notes_of(manifest)),
        *(_WHOLE if config.segment.is_whole else _CUT),
        "",
        f"{total} {manifest.counted} in each variant.",
        "",
        *_table(["variant", "what it shows"], [[f"`{n}`", _describe(n)] for n in variants]),
        "",
        *_table(
            ["split", "listed", "accepted", "rejected", "in the dataset"],
            [
                [split, *(images[n] for n in ("listed", "accepted", "rejected", "selected"))]
                for split, images in manifest.images.items()
            ],
        ),
        "",
        *_classes(manifest, taxonomy),
        "",
        "## Columns",
        "",
        *_table(["column", "holds"], [[f"`{n}`", text] for n, text in COLUMNS.items()]),
        "",
        "`index/` holds a row for every source image with the reason for each rejection,",
        "`manifest.json` the configuration and a checksum of every file, `croissant.json` the",
        "same files as Croissant 1.0.",
        "",
        "## How it was made",
        "",
        *steps_of(config),
        "",
        *_made_with(manifest),
        "",
        "## Known limits",
        "",
        *(f"* {limit}" for limit in limits_of(manifest)),
        "",
        "## Licence and citation",
        "",
        *_licence(manifest),
        "",
        "The protocol:",
        "",
        f"> {CITATION}",
        "",
    ]
    return "\n".join(lines)


def _licence(manifest: Manifest) -> list[str]:
    """Whose terms the pictures are under."""
    remain = "The pictures remain under the terms of the images they are made of, and so does every"
    return [remain, "variant.", *(("", sample_sources()) if manifest.is_sample else ())]


_CUT = (
    "Made by the protocol of *Noise or Signal: The Role of Image Backgrounds in Object",
    "Recognition* (arXiv 2006.09994): each image is separated into foreground and",
    "background, and put together again in every variant. All variants hold the same keys",
    "in the same order.",
)
_WHOLE = (
    "All images of the classes, with annotated boxes or without, by the protocol of *Noise or",
    "Signal: The Role of Image Backgrounds in Object Recognition* (arXiv 2006.09994), which",
    "calls this set IN-9L. Images are resized and cropped, and not cut apart.",
)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines]


def _classes(manifest: Manifest, taxonomy: Taxonomy) -> list[str]:
    """How many images of each class there are, by split; of classes that are not ImageNet-9's,
    also what they are made of."""
    splits = list(manifest.samples)
    first = manifest.config.compose.composed[0]
    own = manifest.taxonomy is not None
    rows = [
        [
            *(label, name),
            *([_members(taxonomy, label)] if own else []),
            *(manifest.samples[split][first].get(name, 0) for split in splits),
        ]
        for label, name in enumerate(taxonomy.names)
    ]
    return _table(["label", "class", *(["of"] if own else []), *splits], rows)


def _members(taxonomy: Taxonomy, label: int) -> str:
    """Classes of a superclass."""
    found = [name for name, of in zip(taxonomy.wnids, taxonomy.labels, strict=True) if of == label]
    more = ", ..." if len(found) > _CLASSES_SHOWN else ""
    return ", ".join(f"`{name}`" for name in found[:_CLASSES_SHOWN]) + more


def _made_with(manifest: Manifest) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in manifest.libraries.items())
    return [f"Made with {versions}. All flags are in `manifest.json`."]
