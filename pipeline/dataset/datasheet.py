"""What is said of a dataset: how it was made, its limits, and what else a datasheet answers.

The README card and the Croissant metadata say the same, in these words. Nothing is said that
neither the flags and counts nor the dataset's maker tell.
"""

from collections import Counter
from collections.abc import Callable, Iterator

from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.manifest import Manifest
from transforms.variants import VARIANTS

_IMPORTED_STEPS = (
    (
        "always",
        "Imported from the released layout. Pictures and masks are those of the input. The "
        "background of a mixed picture is identified by its pixels, and is null where that is "
        "uncertain (`<variant>_bg_*` in the index).",
    ),
)

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
    "own_background": {
        True: "may be the image's own, or of its group",
        False: "is never the image's own, nor of its group",
    },
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
    "is_mixed": {True: ", except where a mixed variant draws another", False: ""},
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
        "the key (`--seed {seed}`); it {own_background}, and `mixed_rand` draws from {mixed_rand}.",
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
        "is_jpeg",
        "JPEG changes pixels by a few grey levels, most of all at edges{has_layers}.",
    ),
    (
        "is_remade",
        "This is not a copy of the released ImageNet-9: other images were accepted, and other "
        "backgrounds were drawn. Accuracies differ from the published ones.",
    ),
    ("has_imagenet_classes", "Where labels are ImageNet's, so are their errors."),
    (
        "is_sample",
        "Pictures are composites of cut-outs and other photographs; the classes dog and reptile "
        "each rest on a single cut-out.",
    ),
)
"""Limits of a dataset, each with the fact that must hold for the limit to be listed."""

_SHEET = {
    "dataUseCases": (
        ("is_cut", "It is for measuring how far an image classifier relies on the background."),
        (
            "has_gap",
            "Its headline is BG-Gap, the accuracy on `mixed_same` minus that on `mixed_rand`.",
        ),
        (
            "keeps_image_whole",
            "It is for training and testing classifiers on all images of the classes.",
        ),
        ("always", "It is not for testing a model that was trained on the same images."),
        ("is_cut", "Compare gaps on datasets that were made by the same method."),
    ),
    "dataCollection": (
        ("is_sample", "Pictures and classes are those of the sample that comes with in9."),
        ("has_imagenet_classes", "Classes are ImageNet's."),
        ("has_own_classes", "Classes are those of the input."),
        (
            "is_of_input",
            "Pictures are those of the input; only its owner can say where they are from and how "
            "they were collected.",
        ),
        (
            "is_made",
            "Classes, and boxes where they are used, come with the pictures, and were not checked "
            "again.",
        ),
    ),
    "dataCollectionMissingData": (
        (
            "always",
            "Of {listed} images listed, {rejected}{objects_counted} were rejected{reasons}; "
            "`index/` has a row for each.",
        ),
    ),
    "dataAnnotationProtocol": (("is_made_of_masks", "{masks}"),),
    "annotationsPerItem": (
        ("is_made_of_masks", "one class, one box and one mask"),
        ("is_imported", "one class and one mask"),
        ("keeps_image_whole", "one class"),
    ),
    "machineAnnotationTools": (("is_computed", "{tool} (method, version, parameters)"),),
    "dataLimitations": _LIMITS,
    "dataBiases": (
        (
            "is_of_one_box",
            "Images whose box is too large, off the centre or one of several are not in it. The "
            "remaining images are easier than the rest: they show one object, in the middle.",
        ),
        (
            "always",
            "Which background goes with which class is as in the source images{is_mixed}.",
        ),
    ),
    "personalSensitiveInformation": (
        (
            "always",
            "Nothing was searched for or removed: faces, and names of files and groups, are as in "
            "the input.",
        ),
    ),
    "dataSocialImpact": (
        (
            "is_cut",
            "A model that answers by the background can fail where objects appear in other places, "
            "which this dataset shows. A small gap does not show that a model is fair, or robust "
            "in other ways.",
        ),
    ),
    "dataReleaseMaintenancePlan": (
        (
            "always",
            "The fingerprint `{fingerprint}` is its version: other images or flags give another. "
            "The same pictures, flags and libraries give the same files.",
        ),
        ("creator", "Made by {creator}."),
        ("contact", "Contact: {contact}"),
        ("is_anonymous", "Who made and maintains it was not stated (`creator`, `contact`)."),
    ),
}
"""Answers of a datasheet by property of Croissant's vocabulary for responsible AI, each with the
fact that must hold for the answer to be given. How it was made comes from `steps_of`."""


def steps_of(config: DatasetConfig) -> list[str]:
    """Returns lines that say how a dataset is made, numbered unless the dataset was imported."""
    if config.is_imported:
        return [step for _, step in _IMPORTED_STEPS]
    return [
        f"{number}. {step}" for number, step in enumerate(_applicable(_STEPS, _facts(config)), 1)
    ]


def datasheet(manifest: Manifest, shown: Callable[[str], str] = str) -> dict[str, list[str]]:
    """Returns what is said of a dataset, a sentence or two each, by property of Croissant.

    `shown` is how texts that somebody wrote are shown, such as `markdown`.
    """
    config, about = manifest.config, manifest.about
    reasons = sum(map(Counter[str], manifest.rejections.values()), Counter[str]())
    named = ", ".join(f"{number} {reason}" for reason, number in sorted(reasons.items()))
    facts = {
        **_facts(config),
        "has_imagenet_classes": has_imagenet_classes(manifest),
        "is_remade": has_imagenet_classes(manifest) and not config.is_imported,
        "is_sample": manifest.is_sample,
        "is_of_input": not manifest.is_sample,
        "has_own_classes": manifest.taxonomy is not None and not manifest.is_sample,
        "listed": sum(images["listed"] for images in manifest.images.values()),
        "rejected": reasons.total(),
        "objects_counted": " objects" if "objects" in manifest.counted_noun else "",
        "reasons": f" ({named})" if named else "",
        "fingerprint": manifest.fingerprint,
        "creator": shown(about.creator),
        "contact": shown(about.contact),
        "is_anonymous": not (about.creator or about.contact),
    }
    questions = {
        **_SHEET,
        "dataPreprocessingProtocol": _IMPORTED_STEPS if config.is_imported else _STEPS,
    }
    answers = {name: list(_applicable(texts, facts)) for name, texts in questions.items()}
    return {name: texts for name, texts in answers.items() if texts}


def has_imagenet_classes(manifest: Manifest) -> bool:
    """Returns whether a dataset's classes are ImageNet's, which does not tell of its pictures."""
    return manifest.taxonomy is None and not manifest.is_sample


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
        "is_made": is_made,
        "is_imported": not is_made,
        "is_made_of_masks": is_cut and is_made,
        "is_computed": is_cut and is_made and segmenter.method not in ("masks", "box"),
        "tool": segmenter.label,
        "has_gap": {"mixed_same", "mixed_rand"} <= {*compose.variants},
        # It is not known how an imported dataset's masks and pictures were made, nor how its images
        # were chosen.
        "is_segmented": is_cut and (config.is_imported or segmenter.method != "masks"),
        "by_hand": is_made,
        "is_of_one_box": is_cut and is_made and segment.objects == "one",
        "is_mixed": any(name.is_mixed for name in compose.composed),
        "is_jpeg": is_jpeg,
        "has_noise": any(VARIANTS[name].from_noise for name in built_in),
        "as_png": f", {', '.join(lossless)} as PNG" if lossless else "",
        "has_layers": config.layers == "keep" and is_cut and is_made,
    }
