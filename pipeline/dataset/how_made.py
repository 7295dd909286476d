"""How a dataset was made, and where its limits are, in the words of its card."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.manifest import Manifest
from transforms.variants import MIXED, VARIANTS, base_of

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
