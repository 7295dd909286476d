"""The files that introduce a dataset to people and tools: README card, class list and Croissant.

The report page and the terminal also print the card's notes before any numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.croissant import COLUMNS, croissant_metadata
from pipeline.dataset.folder import LICENCE, sample_sources
from pipeline.dataset.manifest import Manifest
from pipeline.errors import escaped_line, shown_bytes
from transforms.filters import Reason
from transforms.taxonomy import Taxonomy
from transforms.variants import MIXED, VARIANTS, Variant, base_of, parse_name, variant_of

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

_IMPORTED_STEPS = [
    "Imported from the released layout. Pictures and masks are those of the release. The",
    "background of a mixed picture is identified by its pixels, and is null where that is",
    "uncertain (`<variant>_bg_*` in the index).",
]

_PHRASES: dict[str, dict[object, str]] = {
    "crop": {
        "pad": "The longer side is resized to {image_size} ({interpolation}), and the rest of "
        "{image_size} x {image_size} is black.",
        "center": "The shorter side is resized to {resize} ({interpolation}), then the centre is "
        "cropped to {image_size} x {image_size}.",
    },
    "objects": {
        "one": "Only images with exactly one annotated box are used.",
        "largest": "Of several boxes, the largest is used.",
        "union": "Several boxes are replaced by the box around all of them.",
        "each": "Each annotated box is an image of its own.",
    },
    "own_background": {True: "may be", False: "is never"},
    "mixed_rand": {"other": "other classes", "any": "any class"},
    "per_class": {
        "all": "All accepted images are included, so the classes differ in size.",
        None: "Classes are balanced at random (`--per_class {per_class}`).",
    },
    "encoding": {"png": "PNG", "jpg": "JPEG of quality {jpeg_quality}"},
    "has_layers": {True: "; `layers/` is lossless", False: ""},
    "by_hand": {
        True: " The authors corrected the masks of their test set by hand, which was not done "
        "here.",
        False: "",
    },
}
"""Texts for the values of each flag or fact; None stands for all other values."""

_STEPS = (
    ("always", "{crop}"),
    (
        "is_cut",
        "{masks} {objects} An image is left out unless its box covers at most {max_box:g} of the "
        "crop, at least {min_visible:g} of the box is visible in the crop, and at least "
        "{min_foreground:g} of the box is foreground.",
    ),
    (
        "is_mixed",
        "A background is the `only_bg_t` of an image of the same split, drawn by a keyed hash of "
        "the key (`--seed {seed}`); it {own_background} the image's own, and `mixed_rand` draws "
        "from {mixed_rand}.",
    ),
    (
        "has_noise",
        "Noise is Gaussian, with a standard deviation of a quarter of a channel's range, drawn for "
        "each picture by a keyed hash of its key (`--seed {seed}`), and clipped.",
    ),
    ("always", "{per_class}"),
    ("always", "Pictures are stored as {encoding}{as_png}."),
)
"""Steps in which a dataset is made, each with the fact that must hold for the step to be listed."""

_LIMITS = (
    (
        "keeps_image_whole",
        "Images were not filtered: some show several objects, or objects of several classes.",
    ),
    (
        "keeps_image_whole",
        "Everything outside the centre crop is lost, sometimes the object itself.",
    ),
    (
        "is_segmented",
        "Masks have errors: parts of the object may be missing, and parts of the background may "
        "remain.{by_hand}",
    ),
    (
        "is_cut",
        "Splicing leaves traces at the edge of the foreground. Compare `mixed_rand` with "
        "`mixed_same`, which has the same traces, and not with `original`.",
    ),
    (
        "is_cut",
        "`only_bg_b` and `only_bg_t` still show where the object was and how large it was, and "
        "the tiles may contain a strip of it one pixel wide, as with the authors' script.",
    ),
    (
        "is_of_one_box",
        "Images whose box is too large, off the centre or one of several are not in it. The "
        "remaining images are easier than the rest: they show one object, in the middle.",
    ),
    (
        "is_jpeg",
        "JPEG changes pixels by a few grey levels, most of all at edges{has_layers}.",
    ),
    (
        "is_remade",
        "This is not a copy of the released ImageNet-9: other images were accepted, and other "
        "backgrounds were drawn. Accuracies differ from the published ones by a few points.",
    ),
    ("is_imagenet", "Labels are ImageNet's, including its errors; some pictures show people."),
    (
        "is_sample",
        "Pictures are composites of cut-outs and other photographs; the classes dog and reptile "
        "each rest on a single cut-out.",
    ),
)
"""Limits of a dataset, each with the fact that must hold for the limit to be listed."""


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
            licence=LICENCE if manifest.is_sample else "other",
            descriptions={name: _describe(name) for name in manifest.config.compose.composed},
            cite=CITATION,
        ),
    )


def markdown(text: str) -> str:
    r"""Escapes text for the middle of a line of Markdown.

    Unescaped, it could be HTML, a link, emphasis or the end of a table's cell.

    >>> markdown("a_b|<b> [x](y)")
    'a_b\\|\\<b> \\[x\\](y)'
    """
    return _IN_MARKDOWN.sub(r"\\\g<0>", escaped_line(text))


def sentence(note: str) -> str:
    """Returns a note as a sentence."""
    return f"{note[0].upper()}{note[1:]}."


def steps_of(config: DatasetConfig) -> list[str]:
    """Returns lines that say how a dataset is made, numbered unless the dataset was imported."""
    if config.is_imported:
        return _IMPORTED_STEPS
    steps = _applicable(_STEPS, _facts(config))
    return [f"{number}. {step}" for number, step in enumerate(steps, 1)]


def limits_of(manifest: Manifest) -> Iterator[str]:
    """Returns the limits of a dataset, a sentence or two each."""
    is_imagenet = _is_imagenet(manifest)
    facts = {
        "is_imagenet": is_imagenet,
        "is_remade": is_imagenet and not manifest.config.is_imported,
        "is_sample": manifest.is_sample,
    }
    return _applicable(_LIMITS, {**_facts(manifest.config), **facts})


def size_category(samples: int) -> str:
    """Returns the Hugging Face hub's name for a number of samples.

    >>> size_category(999), size_category(1000), size_category(2_000_000)
    ('n<1K', '1K<n<10K', '1M<n<10M')
    """
    return next((name for limit, name in _SIZES if samples < limit), "10M<n<100M")


def _readme(manifest: Manifest, taxonomy: Taxonomy) -> str:
    config = manifest.config
    total = sum(counts["selected"] for counts in manifest.images.values())
    variants = config.compose.composed
    versions = ", ".join(f"{name} {version}" for name, version in manifest.libraries.items())
    lines = [
        *_front_matter(manifest),
        "",
        f"# {_name(manifest)}",
        "",
        *(f"**{markdown(sentence(note))}**\n" for note in notes_of(manifest)),
        *(_INTRO_WHOLE if config.segment.keeps_image_whole else _INTRO_CUT),
        "",
        f"{total} {manifest.counted_noun} in each variant.",
        "",
        *_table(["variant", "what it shows"], [[f"`{n}`", _describe(n)] for n in variants]),
        "",
        *_table(
            ["split", "listed", "accepted", "rejected", "in the dataset"],
            [
                [
                    markdown(split),
                    *(counts[n] for n in ("listed", "accepted", "rejected", "selected")),
                ]
                for split, counts in manifest.images.items()
            ],
        ),
        "",
        *_classes(manifest, taxonomy),
        "",
        "## Columns",
        "",
        *_table(["column", "holds"], [[f"`{n}`", text] for n, text in COLUMNS.items()]),
        "",
        "`index/` has a row for every source image, with the reason if it was rejected.",
        "`manifest.json` has the configuration and a checksum of every file, and",
        "`croissant.json` describes the same files as Croissant 1.0.",
        "",
        "## How it was made",
        "",
        *steps_of(config),
        "",
        f"Made with {versions}. All flags are in `manifest.json`.",
        "",
        "## Known limits",
        "",
        *(f"* {limit}" for limit in limits_of(manifest)),
        "",
        "## Licence and citation",
        "",
        "The pictures remain under the terms of the images they are made of, and so does every",
        "variant.",
        *(("", sample_sources()) if manifest.is_sample else ()),
        "",
        "The protocol:",
        "",
        f"> {CITATION}",
        "",
    ]
    return "\n".join(lines)


def _front_matter(manifest: Manifest) -> list[str]:
    """Returns the lines of YAML that the Hugging Face hub and its loaders read."""
    config = manifest.config
    variants = config.compose.composed
    total = sum(counts["selected"] for counts in manifest.images.values())
    source = "extended|imagenet-1k" if _is_imagenet(manifest) else "original"
    licence = ("license: other", "license_name: terms-of-the-source-images")
    lines = [
        *("---", *(("license: gpl-2.0",) if manifest.is_sample else licence)),
        f"pretty_name: {_name(manifest)}",
        *("task_categories:", "- image-classification"),
        *("source_datasets:", f"- {source}"),
        *("size_categories:", f"- {size_category(total * len(variants))}"),
        *("tags:", "- background-robustness", "- imagenet-9", "- arxiv:2006.09994"),
    ]
    # Without a configuration for each variant, loaders silently merge all variants.
    folder, suffix = (
        ("parquet", "parquet") if "parquet" in config.compose.formats else ("webdataset", "tar")
    )
    lines.append("configs:")
    for variant in variants:
        lines += [f"- config_name: {_yaml(variant)}", "  data_files:"]
        for split in config.split:
            path = f"{folder}/{variant}/{split}-*.{suffix}"
            lines += [f"  - split: {_yaml(split)}", f"    path: {path}"]
    return [*lines, "---"]


def _yaml(text: str) -> str:
    """Formats text as a YAML string; unquoted, a name such as `no` or `null` is of another type."""
    return json.dumps(text, ensure_ascii=False)


def _name(manifest: Manifest) -> str:
    if manifest.config.segment.keeps_image_whole:
        return "IN-9L" if manifest.taxonomy is None else "Whole images"
    name = "ImageNet-9 variants" if manifest.taxonomy is None else "Background variants"
    return f"{name} of the sample" if manifest.is_sample else name


def _is_imagenet(manifest: Manifest) -> bool:
    return manifest.taxonomy is None and not manifest.is_sample


def _describe(name: str) -> str:
    """Describes what a variant, or a replicate of a variant, shows."""
    variant, replicate = variant_of(name), parse_name(name).replicate
    suffix = f", drawn again ({replicate})" if replicate else ""
    return VARIANTS.get(variant, Variant(variant)).description + suffix


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    return [f"| {' | '.join(map(str, line))} |" for line in [head, ["---"] * len(head), *rows]]


def _classes(manifest: Manifest, taxonomy: Taxonomy) -> list[str]:
    """Counts the images of each class by split, in a table.

    For classes other than ImageNet-9's, the table also lists what they contain.
    """
    splits = list(manifest.samples)
    first_variant = manifest.config.compose.composed[0]
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
    labels = zip(taxonomy.wnids, taxonomy.labels, strict=True)
    names = [name for name, its_label in labels if its_label == label]
    more = ", ..." if len(names) > _CLASSES_SHOWN else ""
    return ", ".join(map(markdown, names[:_CLASSES_SHOWN])) + more


def notes_of(manifest: Manifest) -> list[str]:
    """Returns notes that a reader needs before any numbers.

    Each note begins in lower case and has no full stop.
    """
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
        images_per_class = by_variant[manifest.config.compose.composed[0]]
        missing = sorted(name for name, images in images_per_class.items() if not images)
        if not missing or len(missing) == len(images_per_class):
            continue
        omitted = len(missing) - _CLASSES_SHOWN
        more = f" and {omitted} more" if omitted > 0 else ""
        note = f"split {split} has no image of {', '.join(missing[:_CLASSES_SHOWN])}{more}"
        if manifest.rejections[split].get(Reason.NO_BACKGROUND):
            note += f"; an image whose class has no other is left out ({Reason.NO_BACKGROUND})"
        notes.append(note)
    return notes


def _applicable(texts: tuple[tuple[str, str], ...], facts: dict[str, object]) -> Iterator[str]:
    """Returns the texts whose fact holds, with flags and facts filled in."""
    words = {
        name: values.get(facts[name], values.get(None, "")).format(**facts)
        for name, values in _PHRASES.items()
    }
    return (text.format(**{**facts, **words}) for fact, text in texts if facts[fact])


def _facts(config: DatasetConfig) -> dict[str, object]:
    """Returns the flags by name, and facts that follow from them."""
    segment, compose = config.segment, config.compose
    segmenter = segment.describe_segmenter()
    is_cut, is_made = not segment.keeps_image_whole, not config.is_imported
    built_in = [name for name in compose.variants if name in VARIANTS]
    is_jpeg = is_made and compose.encoding == "jpg"
    lossless = [f"`{name}`" for name in built_in if is_jpeg and VARIANTS[name].lossless]
    return {
        **vars(config),
        **vars(segment),
        **vars(compose),
        "masks": segmenter.description.format(**vars(segment), label=segmenter.label),
        "always": True,
        "keeps_image_whole": segment.keeps_image_whole,
        "is_cut": is_cut,
        # It is not known how an imported dataset's masks and pictures were made, nor how its images
        # were chosen.
        "is_segmented": is_cut and (config.is_imported or segmenter.method != "masks"),
        "by_hand": is_made,
        "is_of_one_box": is_cut and is_made and segment.objects == "one",
        "is_mixed": any(base_of(name) in MIXED for name in compose.composed),
        "is_jpeg": is_jpeg,
        "has_noise": any(VARIANTS[name].from_noise for name in built_in),
        "as_png": f", {', '.join(lossless)} as PNG" if lossless else "",
        "has_layers": config.layers == "keep" and is_cut and is_made,
    }
