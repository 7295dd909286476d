"""How a dataset was made, and where its limits are, in the words of its card."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.dataset.config import DatasetConfig, SegmentConfig
from pipeline.dataset.manifest import Manifest
from transforms.variants import MIXED, base_of

_OBJECTS = {
    "one": "Only images with one annotated box are taken. ",
    "largest": "Of several boxes the largest is taken. ",
    "union": "Of several boxes that around all of them is taken. ",
    "each": "Each annotated box is an image of its own. ",
}


def steps_of(config: DatasetConfig) -> list[str]:
    """Lines that say how the images of a configuration are made, as a numbered list."""
    segment, compose = config.segment, config.compose
    if config.is_imported:
        return [
            "Imported from the released layout: pictures and masks are those of the release, and",
            "the backgrounds of mixed pictures are found by their pixels, null where that is not",
            "sure (`<variant>_bg_*` in the index).",
        ]
    size = f"{segment.image_size} x {segment.image_size}"
    steps = [
        f"The longer side is resized to {segment.image_size} ({segment.interpolation}), and the "
        f"rest of {size} is black."
        if segment.crop == "pad"
        else f"The shorter side is resized to {segment.resize} ({segment.interpolation}), then the "
        f"centre is cropped to {size}."
    ]
    if not segment.is_whole:
        steps.append(f"{_masks(segment)} {_filters(segment)}")
    if any(base_of(name) in MIXED for name in compose.composed):
        own = "may be" if compose.own_background else "is never"
        steps.append(
            "A background is another image's `only_bg_t`, of the same split, drawn by a keyed hash "
            f"of the key (`--seed {compose.seed}`); {own} the image's own, and `mixed_rand` "
            f"draws from {'other classes' if compose.mixed_rand == 'other' else 'any class'}."
        )
    if compose.per_class == "all":
        steps.append("All accepted images are in it: the classes differ in size.")
    else:
        steps.append(f"Classes are balanced at random (`--per_class {compose.per_class}`).")
    stored = "PNG" if compose.encoding == "png" else f"JPEG of quality {compose.jpeg_quality}"
    masks = ", masks as PNG" if "fg_mask" in compose.composed else ""
    steps.append(f"Pictures are stored as {stored}{masks}.")
    return [f"{number}. {step}" for number, step in enumerate(steps, 1)]


def _filters(config: SegmentConfig) -> str:
    return (
        f"{_OBJECTS[config.objects]}An image is left out unless its box covers at most "
        f"{config.max_box:g} of the crop, at least {config.min_visible:g} of the box is in it, "
        f"and at least {config.min_foreground:g} of the box is foreground."
    )


def _masks(config: SegmentConfig) -> str:
    """Where the masks come from."""
    segmenter = config.find_segmenter()
    if segmenter.method == "grabcut":
        return (
            "Masks are GrabCut's from the annotated box, seeded before every image "
            f"(`--grabcut_seed {config.grabcut_seed}`), and not corrected by hand."
        )
    if segmenter.method == "masks":
        return "Masks were given with the images."
    if segmenter.method == "box":
        return "Masks are the annotated boxes."
    return f"Masks are by the user's own function, `{segmenter.label}`, and not corrected by hand."


def limits_of(manifest: Manifest) -> Iterator[str]:
    """What a dataset is not, a sentence or two each."""
    config = manifest.config
    if config.segment.is_whole:
        yield "Images are as they are: some show several objects, or objects of several classes."
        yield "What lies outside the centre crop is lost, now and then the object itself."
    else:
        # An import knows nothing of its own masks, nor of how images were chosen.
        if config.is_imported or config.segment.find_segmenter().method != "masks":
            yield (
                "Masks have errors: parts of the object may be missing, and parts of the "
                "background left. The authors corrected those of their test set by hand, which "
                "was not done here."
            )
        yield (
            "Splicing leaves traces at the edge of the foreground. Compare `mixed_rand` with "
            "`mixed_same`, which has them, too, and not with `original`."
        )
        yield (
            "`only_bg_b` and `only_bg_t` still show where the object was and how large it is, and "
            "a strip of one pixel of it may be left in the tiles, as in the authors' script."
        )
        if not config.is_imported and config.segment.objects == "one":
            yield (
                "Images whose box is too large, off the centre, or one of several are not in it; "
                "what is, is easier than the whole: one object, in the middle."
            )
    if config.compose.encoding == "jpg":
        kept = config.layers == "keep" and not config.segment.is_whole and not config.is_imported
        lossless = "; `layers/` has no loss" if kept else ""
        yield f"JPEG changes pixels by a few grey levels, most of all at edges{lossless}."
    if manifest.taxonomy is None:
        yield (
            "It is no copy of the released ImageNet-9: other images were accepted, and other "
            "backgrounds drawn. Accuracies differ from published ones by some points."
        )
        yield "Labels are ImageNet's, with its errors; some pictures show people."
