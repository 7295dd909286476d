"""The files that introduce a dataset to people and tools: card, classes, Croissant.

What is to be known of a dataset before any figure: said first on page, card and terminal.

How a dataset was made, and where its limits are, in the words of its card.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.croissant import COLUMNS, croissant
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.sample import LICENCE, sample_sources
from transforms.filters import Reason
from transforms.taxonomy import Taxonomy
from transforms.variants import MIXED, VARIANTS, base_of, split_replicate

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


_NAMED = 10
"""Classes that are named of those without images."""


def notes_of(manifest: Manifest) -> list[str]:
    """Clauses that begin small and have no full stop, each a line on a terminal."""
    return list(_notes(manifest))


def sentence(note: str) -> str:
    """A note as a sentence."""
    return f"{note[0].upper()}{note[1:]}."


def _notes(manifest: Manifest) -> Iterator[str]:
    if manifest.is_sample:
        yield (
            "these pictures are the embedded sample: composites, so accuracies on them say nothing "
            "about ImageNet"
        )
    for split, by_variant in manifest.samples.items():
        classes = by_variant[manifest.config.compose.composed[0]]
        missing = sorted(name for name, images in classes.items() if not images)
        if not missing or len(missing) == len(classes):
            continue
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        line = f"split {split} has no image of {', '.join(missing[:_NAMED])}{more}"
        if manifest.rejections[split].get(Reason.NO_BACKGROUND):
            line += f"; an image whose class has no other is left out ({Reason.NO_BACKGROUND})"
        yield line


_IMPORTED = [
    "Imported from the released layout: pictures and masks are those of the release, and",
    "the backgrounds of mixed pictures are found by their pixels, null where that is not",
    "sure (`<variant>_bg_*` in the index).",
]

_WORDS: dict[str, dict[object, str]] = {
    "crop": {
        "pad": "The longer side is resized to {image_size} ({interpolation}), and the rest of "
        "{image_size} x {image_size} is black.",
        "center": "The shorter side is resized to {resize} ({interpolation}), then the centre is "
        "cropped to {image_size} x {image_size}.",
    },
    "method": {
        "grabcut": "Masks are GrabCut's from the annotated box, seeded before every image "
        "(`--grabcut_seed {grabcut_seed}`), and not corrected by hand.",
        "masks": "Masks were given with the images.",
        "box": "Masks are the annotated boxes.",
        None: "Masks are by the user's own function, `{label}`, and not corrected by hand.",
    },
    "objects": {
        "one": "Only images with one annotated box are taken.",
        "largest": "Of several boxes the largest is taken.",
        "union": "Of several boxes that around all of them is taken.",
        "each": "Each annotated box is an image of its own.",
    },
    "own_background": {True: "may be", False: "is never"},
    "mixed_rand": {"other": "other classes", "any": "any class"},
    "per_class": {
        "all": "All accepted images are in it: the classes differ in size.",
        None: "Classes are balanced at random (`--per_class {per_class}`).",
    },
    "encoding": {"png": "PNG", "jpg": "JPEG of quality {jpeg_quality}"},
    "has_layers": {True: "; `layers/` has no loss", False: ""},
}
"""By flag, or fact, and its value, or None for all others."""

_STEPS = (
    ("is_any", "{crop}"),
    (
        "is_cut",
        "{method} {objects} An image is left out unless its box covers at most {max_box:g} of the "
        "crop, at least {min_visible:g} of the box is in it, and at least {min_foreground:g} of "
        "the box is foreground.",
    ),
    (
        "is_mixed",
        "A background is another image's `only_bg_t`, of the same split, drawn by a keyed hash of "
        "the key (`--seed {seed}`); {own_background} the image's own, and `mixed_rand` draws from "
        "{mixed_rand}.",
    ),
    (
        "has_noise",
        "Noise is Gaussian, with a standard deviation of a quarter of a channel's range, drawn for "
        "each picture by a keyed hash of its key (`--seed {seed}`), and clipped.",
    ),
    ("is_any", "{per_class}"),
    ("is_any", "Pictures are stored as {encoding}{as_png}."),
)
"""What is done, and of which datasets."""

_LIMITS = (
    (
        "is_whole",
        "Images are as they are: some show several objects, or objects of several classes.",
    ),
    (
        "is_whole",
        "What lies outside the centre crop is lost, now and then the object itself.",
    ),
    (
        "is_segmented",
        "Masks have errors: parts of the object may be missing, and parts of the background left. "
        "The authors corrected those of their test set by hand, which was not done here.",
    ),
    (
        "is_cut",
        "Splicing leaves traces at the edge of the foreground. Compare `mixed_rand` with "
        "`mixed_same`, which has them, too, and not with `original`.",
    ),
    (
        "is_cut",
        "`only_bg_b` and `only_bg_t` still show where the object was and how large it is, and a "
        "strip of one pixel of it may be left in the tiles, as in the authors' script.",
    ),
    (
        "is_of_one_box",
        "Images whose box is too large, off the centre, or one of several are not in it; what is, "
        "is easier than the whole: one object, in the middle.",
    ),
    (
        "is_jpeg",
        "JPEG changes pixels by a few grey levels, most of all at edges{has_layers}.",
    ),
    (
        "is_imagenet",
        "It is no copy of the released ImageNet-9: other images were accepted, and other "
        "backgrounds drawn. Accuracies differ from published ones by some points.",
    ),
    ("is_imagenet", "Labels are ImageNet's, with its errors; some pictures show people."),
    (
        "is_sample",
        "Pictures are composites of cut-outs and other photographs; the classes dog and reptile "
        "each rest on a single cut-out.",
    ),
)
"""What a dataset is not, and which datasets."""


def steps_of(config: DatasetConfig) -> list[str]:
    """Lines that say how the images of a configuration are made, as a numbered list."""
    if config.is_imported:
        return _IMPORTED
    return [f"{number}. {step}" for number, step in enumerate(_told(_STEPS, _facts(config)), 1)]


def limits_of(manifest: Manifest) -> Iterator[str]:
    """What a dataset is not, a sentence or two each."""
    is_sample = manifest.is_sample
    is_imagenet = manifest.taxonomy is None and not is_sample
    facts = {"is_imagenet": is_imagenet, "is_sample": is_sample}
    return _told(_LIMITS, {**_facts(manifest.config), **facts})


def _told(texts: tuple[tuple[str, str], ...], facts: dict[str, Any]) -> Iterator[str]:
    """Those of the texts that hold, with the words for their flags."""
    words = {
        name: values.get(facts[name], values.get(None, "")).format(**facts)
        for name, values in _WORDS.items()
    }
    return (text.format(**{**facts, **words}) for fact, text in texts if facts[fact])


def _facts(config: DatasetConfig) -> dict[str, Any]:
    """Flags by name, and what follows from them."""
    segment, compose = config.segment, config.compose
    segmenter = segment.describe_segmenter()
    is_cut, is_made = not segment.is_whole, not config.is_imported
    known = [name for name in compose.variants if name in VARIANTS]
    is_jpeg = compose.encoding == "jpg"
    lossless = [f"`{name}`" for name in known if is_jpeg and VARIANTS[name].lossless]
    return {
        **vars(config),
        **vars(segment),
        **vars(compose),
        "method": segmenter.method,
        "label": segmenter.label,
        "is_any": True,
        "is_whole": segment.is_whole,
        "is_cut": is_cut,
        # An import knows nothing of its own masks, nor of how images were chosen.
        "is_segmented": is_cut and (config.is_imported or segmenter.method != "masks"),
        "is_of_one_box": is_cut and is_made and segment.objects == "one",
        "is_mixed": any(base_of(name) in MIXED for name in compose.composed),
        "is_jpeg": is_jpeg,
        "has_noise": any(VARIANTS[name].from_noise for name in known),
        "as_png": f", {', '.join(lossless)} as PNG" if lossless else "",
        "has_layers": config.layers == "keep" and is_cut and is_made,
    }
