"""The files that introduce a dataset to people and tools: README card, class list and Croissant.

The report page and the terminal also print the card's notes before any numbers.
"""

import json
import re
from collections.abc import Iterator, Sequence

from pipeline.dataset.croissant import COLUMNS, croissant_metadata
from pipeline.dataset.datasheet import datasheet, steps_of
from pipeline.dataset.folder import LICENCE, sample_sources
from pipeline.dataset.manifest import Manifest
from pipeline.errors import escaped_line, shown_bytes
from transforms.filters import Reason
from transforms.taxonomy import Taxonomy
from transforms.variants import VARIANTS, Variant, VariantName

CITATION = "Xiao, Engstrom, Ilyas, Madry: Noise or Signal. arXiv 2006.09994"

_IN_MARKDOWN = re.compile(r"[\\`*\[\]<&|~#$]|(?<![^\W_])_|_(?![^\W_])")
"""Characters that Markdown may take for more than themselves within a line. An underscore between
letters is only itself."""

_CLASSES_SHOWN = 10
"""Largest number of classes that are listed by name."""

_SIZES = (
    *((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K")),
    *((1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M")),
)
"""Limits below which a number of samples has each name on the Hugging Face hub."""

_INTRO_CUT = (
    "Made by the protocol of *Noise or Signal: The Role of Image Backgrounds in Object",
    "Recognition* (arXiv 2006.09994): each image is separated into foreground and",
    "background, which are recombined in every variant. All variants hold the same keys",
    "in the same order.",
)
_INTRO_WHOLE = (
    "All images of the classes, with or without annotated boxes, by the protocol of *Noise or",
    "Signal: The Role of Image Backgrounds in Object Recognition* (arXiv 2006.09994), which",
    "calls this set IN-9L. Images are resized and cropped, but not cut apart.",
)

_LAST_SECTIONS = {
    "Biases": "dataBiases",
    "Personal information": "personalSensitiveInformation",
    "Social impact": "dataSocialImpact",
    "Maintenance": "dataReleaseMaintenancePlan",
}
"""Last sections of the card, each with its answers' name in the datasheet."""

_TERMS_OF_MASKS = (
    "A mask says where an object is in a picture, and shows nothing of it. Whether masks count as "
    "derived from the pictures or from the annotations depends on the terms of both."
)


def card_files(manifest: Manifest, taxonomy: Taxonomy) -> Iterator[tuple[str, bytes]]:
    """Yields (path, content) of each introductory file. The same manifest gives the same bytes."""
    yield "README.md", shown_bytes(_readme(manifest, taxonomy))
    yield "classes.txt", shown_bytes("".join(f"{name}\n" for name in taxonomy.names))
    yield (
        "croissant.json",
        croissant_metadata(
            manifest,
            taxonomy,
            name=_name(manifest).lower().replace(" ", "-"),
            licence=LICENCE if manifest.is_sample and not manifest.outside else "",
            descriptions={str(name): _describe(name, manifest) for name in manifest.variants},
            cite=CITATION,
        ),
    )


def markdown(text: str) -> str:
    r"""Escapes text that would be HTML, a link, emphasis or a cell's end within a line of Markdown.

    >>> markdown("a_b|<b> [x](y)")
    'a_b\\|\\<b> \\[x\\](y)'
    """
    return _IN_MARKDOWN.sub(r"\\\g<0>", escaped_line(text))


def terms_of(manifest: Manifest) -> str:
    """Returns a line with the terms that a dataset's maker states."""
    terms = manifest.about.terms
    command = "import" if manifest.config.is_imported else "generate"
    return (
        f"Terms stated by its maker: {markdown(terms)}"
        if terms
        else f"Its maker has stated no terms (`terms` of `in9 {command}`)."
    )


def sentence(note: str) -> str:
    """Returns a note as a sentence."""
    return f"{note[0].upper()}{note[1:]}."


def size_category(samples: int) -> str:
    """Returns the Hugging Face hub's name for a number of samples.

    >>> size_category(999), size_category(1000), size_category(2_000_000)
    ('n<1K', '1K<n<10K', '1M<n<10M')
    """
    return next((name for limit, name in _SIZES if samples < limit), "10M<n<100M")


def _readme(manifest: Manifest, taxonomy: Taxonomy) -> str:
    config = manifest.config
    versions = ", ".join(f"{name} {version}" for name, version in manifest.libraries.items())
    sheet = datasheet(manifest, markdown)
    lines = [
        *_front_matter(manifest),
        "",
        f"# {_name(manifest)}",
        "",
        *(f"**{markdown(sentence(note))}**\n" for note in notes_of(manifest)),
        *(_INTRO_WHOLE if config.segment.keeps_image_whole else _INTRO_CUT),
        "",
        "## Motivation",
        "",
        " ".join(sheet["dataUseCases"]),
        "",
        "## Composition",
        "",
        *_composition(manifest, taxonomy),
        "",
        "## Columns",
        "",
        *_table(["column", "holds"], [[f"`{n}`", text] for n, text in COLUMNS.items()]),
        "",
        "`index/` has a row for every source image, with the reason if it was rejected.",
        "`manifest.json` has the configuration and a checksum of every file, and",
        "`croissant.json` describes the same files as Croissant 1.0.",
        "",
        "## Collection",
        "",
        " ".join(sheet["dataCollection"] + sheet["dataCollectionMissingData"]),
        "",
        "## How it was made",
        "",
        *steps_of(config),
        "",
        f"Made with {versions}. All flags are in `manifest.json`.",
        "",
        "## Known limits",
        "",
        *(f"* {limit}" for limit in sheet["dataLimitations"]),
        "",
        *(
            line
            for heading, name in _LAST_SECTIONS.items()
            if name in sheet
            for line in (f"## {heading}", "", " ".join(sheet[name]), "")
        ),
        "## Terms and citation",
        "",
        "The pictures remain under the terms of the images they are made of, and so does every",
        "variant.",
        *(("", sample_sources()) if manifest.is_sample else ()),
        *(() if config.segment.keeps_image_whole else ("", _TERMS_OF_MASKS)),
        "",
        terms_of(manifest),
        "",
        "The protocol, and the pictures if these are the release's:"
        if config.is_imported
        else "The protocol:",
        "",
        f"> {CITATION}",
        "",
    ]
    return "\n".join(lines)


def _composition(manifest: Manifest, taxonomy: Taxonomy) -> list[str]:
    """Lists the variants, and counts the images of each split and class."""
    counted = ("listed", "accepted", "rejected", "selected")
    variants = manifest.variants
    total = sum(counts["selected"] for counts in manifest.images.values())
    return [
        f"{total} {manifest.counted_noun} in each variant.",
        "",
        *_table(
            ["variant", "what it shows"], [[f"`{n}`", _describe(n, manifest)] for n in variants]
        ),
        "",
        *_table(
            ["split", *counted[:3], "in the dataset"],
            [
                [markdown(split), *(counts[name] for name in counted)]
                for split, counts in manifest.images.items()
            ],
        ),
        "",
        *_classes(manifest, taxonomy),
    ]


def _front_matter(manifest: Manifest) -> list[str]:
    """Returns the lines of YAML that the Hugging Face hub and its loaders read."""
    config = manifest.config
    variants = manifest.variants
    total = sum(counts["selected"] for counts in manifest.images.values())
    licence = ("license: other", "license_name: terms-of-the-source-images")
    lines = [
        *(
            "---",
            *(("license: gpl-2.0",) if manifest.is_sample and not manifest.outside else licence),
        ),
        f"pretty_name: {_name(manifest)}",
        *("task_categories:", "- image-classification"),
        *("size_categories:", f"- {size_category(total * len(variants))}"),
        *("tags:", "- background-robustness", "- arxiv:2006.09994"),
        *(("- imagenet-9",) if manifest.taxonomy is None else ()),
        # Without a configuration for each variant, loaders silently merge all variants.
        "configs:",
    ]
    folder, suffix = (
        ("parquet", "parquet") if "parquet" in config.compose.formats else ("webdataset", "tar")
    )
    for variant in variants:
        lines += [f"- config_name: {_yaml(str(variant))}", "  data_files:"]
        for split in config.split:
            lines += [
                f"  - split: {_yaml(split)}",
                f"    path: {folder}/{variant}/{split}-*.{suffix}",
            ]
    return [*lines, "---"]


def _yaml(text: str) -> str:
    """Formats text as a YAML string; unquoted, a name such as `no` or `null` is of another type."""
    return json.dumps(text, ensure_ascii=False)


def _name(manifest: Manifest) -> str:
    if manifest.config.segment.keeps_image_whole:
        return "IN-9L" if manifest.taxonomy is None else "Whole images"
    name = "ImageNet-9 variants" if manifest.taxonomy is None else "Background variants"
    return f"{name} of the sample" if manifest.is_sample else name


def _describe(name: VariantName, manifest: Manifest) -> str:
    """Describes what a variant, or a draw of one, shows."""
    variant = str(name.variant)
    shown = (
        "a picture that others have made of the image (`in9 import --variant`)"
        if variant in manifest.outside
        else VARIANTS.get(variant, Variant(variant)).description
    )
    return f"{shown}, drawn again ({name.draw})" if name.draw else shown


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    return [f"| {' | '.join(map(str, line))} |" for line in [head, ["---"] * len(head), *rows]]


def _classes(manifest: Manifest, taxonomy: Taxonomy) -> list[str]:
    """Counts each class's images by split; says what classes other than ImageNet-9's contain."""
    splits = list(manifest.samples)
    first_variant = str(manifest.config.compose.composed[0])
    is_custom = manifest.taxonomy is not None
    rows = [
        [
            *(label, markdown(name)),
            *([_members(taxonomy, label)] if is_custom else []),
            *(manifest.samples[split][first_variant].get(name, 0) for split in splits),
        ]
        for label, name in enumerate(taxonomy.names)
    ]
    more = ["contains"] if is_custom else []
    return _table(["label", "class", *more, *map(markdown, splits)], rows)


def _members(taxonomy: Taxonomy, label: int) -> str:
    """Lists the classes of a superclass."""
    names = [n for n, own in zip(taxonomy.wnids, taxonomy.labels, strict=True) if own == label]
    more = ", ..." if len(names) > _CLASSES_SHOWN else ""
    return ", ".join(map(markdown, names[:_CLASSES_SHOWN])) + more


def notes_of(manifest: Manifest) -> list[str]:
    """Returns notes to read before any numbers, in lower case and without a full stop."""
    notes = []
    if manifest.is_sample:
        notes.append(
            "these pictures are composites from the embedded sample, so accuracies on them say "
            "nothing about ImageNet"
        )
    if lacking := sum(
        rejected.get(reason, 0)
        for rejected in manifest.rejections.values()
        for reason in (Reason.MISSING_SOURCE, Reason.SOURCE_DIFFERS)
    ):
        notes.append(
            f"this is not the recipe's dataset: it lacks {lacking} {manifest.counted_noun}, whose "
            "pictures were missing or had other pixels"
        )
    for split, by_variant in manifest.samples.items():
        images_per_class = by_variant[str(manifest.config.compose.composed[0])]
        missing = sorted(name for name, images in images_per_class.items() if not images)
        if not missing or len(missing) == len(images_per_class):
            continue
        omitted = len(missing) - _CLASSES_SHOWN
        more = f" and {omitted} more" if omitted > 0 else ""
        why = f"; an image whose class has no other is left out ({Reason.NO_BACKGROUND})"
        notes.append(
            f"split {split} has no image of {', '.join(missing[:_CLASSES_SHOWN])}{more}"
            + (why if manifest.rejections[split].get(Reason.NO_BACKGROUND) else "")
        )
    return notes
