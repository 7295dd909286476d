"""The summary that a job prints at its end."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping

from pipeline.analyses import ANALYSES
from pipeline.dataset.card import notes_of
from pipeline.dataset.manifest import MANIFEST, Manifest
from pipeline.dataset.records import CARD_FILES
from pipeline.errors import counted
from pipeline.generate.commit import is_dropped
from pipeline.runtime.progress import bytes_written, stage_seconds
from transforms.filters import Reason

_MODEL_STAGES = tuple(analysis for analysis in ANALYSES if analysis.runs_models)
_STAGES = (
    *("list", "segment", "plan", "compose", "commit"),
    *(analysis.name for analysis in _MODEL_STAGES),
    "publish",
)
"""Names of the stages whose time is measured, in the order of the graph."""
_ALSO_MADE = ("commits", "versions_published", *(one.counter for one in _MODEL_STAGES))
"""Counters of finished work whose names do not end with `_made`."""
_CUT = {
    "images_cropped": "looked at",
    "images_cut": "cut by the recipe",
    "images_segmented": "segmented",
}
"""What became of new images, by counter; a job has one of these."""
_FALLBACKS = {
    "segmenter_fallbacks": ("images", "was", "were", "segmented by OpenCV instead of our kernels"),
    "fill_fallbacks": (
        *("filled backgrounds", "is", "are"),
        "tiled, because the hole covers the whole picture",
    ),
}
"""What was made in another way, by counter: of what, the verb for one and for several, and how."""
_PICTURES = {
    "pictures_in_other_files": "in other files, with the same pixels",
    "pictures_not_in_recipe": "of the input not in the recipe: ignored",
}
"""What became of the pictures of a recipe's input, by counter."""
_NAMED = 3
"""The most reasons to name."""
_SHARE = 0.05
"""Smallest share of all images (0 to 1) that a reason must account for to be named."""

_BOXES = "boxes are xmin, ymin, xmax, ymax in pixels"
_HELP: dict[str, str] = {
    Reason.MISSING_ANNOTATION: "--annotations names the boxes, --masks the masks; --selection in9l "
    "needs none",
    Reason.UNREADABLE_ANNOTATION: "--annotations names another folder of boxes",
    Reason.SIZE_MISMATCH: "--annotations must be of these pictures at their size",
    Reason.NOT_ONE_BOX: "--objects largest, union or each takes images with several boxes, "
    "--annotations names boxes of those without",
    Reason.BOX_TOO_LARGE: "--crop pad shows more around it, or raise the key max_box",
    Reason.INVALID_BOX: _BOXES,
    Reason.BOX_OFF_CENTER: f"{_BOXES}; if so, --crop pad cuts nothing off, or lower the key "
    "min_visible",
    Reason.SEGMENTATION_FAILED: "another --segmenter (docs/segmenters.md), or lower "
    "the key min_foreground",
    Reason.EXCLUDED: "--exclude and --include leave them out",
    Reason.NO_BACKGROUND: "--own_background lets images keep theirs, or leave mixed variants out "
    "with --variants",
}


def describe_images(
    manifest: Manifest, *, may_advise: bool = True, had: Iterable[str] = ()
) -> list[str]:
    """Returns notes on the dataset, then lines that count each split's images.

    Advice follows if too many were rejected, and a line on `--backgrounds`. The notes name the
    variants from outside that the dataset `had` before, and lacks now.
    """
    lines = notes_of(manifest) + [
        f"{name} is left out, because the selected images, or how they are stored, have "
        f"changed; import it again: in9 import --dataset DIR --variant {name}=DIR"
        for name in had
        if name not in manifest.outside
    ]
    for split, images in manifest.images.items():
        accepted, rejected, selected = (images[n] for n in ("accepted", "rejected", "selected"))
        reasons = ", ".join(f"{n} {reason}" for reason, n in manifest.rejections[split].items())
        objects = f"{counted(images['objects'], 'object')}, " if "objects" in images else ""
        is_advised = may_advise and not manifest.config.is_imported
        of_split = (
            f"{counted(images['listed'], 'image')}, {objects}{accepted} accepted, "
            f"{rejected} rejected"
            + (f" ({reasons})" if reasons else "")
            + (f", {selected} selected" if selected != accepted else ""),
            manifest.unmatched.get(split, ""),
            *(advise(manifest.rejections[split], accepted + rejected) if is_advised else ()),
            "" if selected else _why_empty(manifest, split),
        )
        lines += [f"{split}: {line}" for line in of_split if line]
    if manifest.backgrounds:
        fates = ", ".join(f"{n} {status}" for status, n in manifest.backgrounds.items())
        number = sum(manifest.backgrounds.values())
        lines.append(f"backgrounds: {counted(number, 'picture')} ({fates})")
    return lines


def advise(rejected: Mapping[str, int], total: int) -> list[str]:
    """Returns a line of advice if over half are rejected, and a frequent reason has a remedy.

    The numbers by reason are of images, with `--objects each` of objects.
    """
    if 2 * sum(rejected.values()) <= total:
        return []
    frequent = sorted(rejected, key=lambda reason: (-rejected[reason], reason))
    named = [
        f"{reason} ({rejected[reason]}): {_HELP[reason]}"
        for reason in frequent[:_NAMED]
        if reason in _HELP and rejected[reason] >= _SHARE * total
    ]
    return [f"over half are rejected. {'; '.join(named)}"] if named else []


def _why_empty(manifest: Manifest, split: str) -> str:
    """Says why a split holds no image, and what to do."""
    accepted, per_class = manifest.images[split]["accepted"], manifest.config.compose.per_class
    why = "no image is in the dataset, because " + (
        f"--per_class {per_class} leaves no image a background"
        if accepted
        else "all of them were rejected"
    )
    if manifest.rejections[split].get(Reason.NO_BACKGROUND):
        raised = ", or raise --per_class" if accepted else ", or give more images"
        return (
            f"{why}: mixed_same needs two images of a class, mixed_next (and --mixed_rand other) "
            f"two classes. Leave these variants out with --variants{raised}"
        )
    return (
        f"{why}. docs/reference.md explains each reason; give other images, or change the flags "
        "that the reason names"
    )


def describe_dataset(
    manifest: Manifest,
    counters: dict[str, int],
    seconds: float,
    *,
    may_advise: bool = True,
    had: Iterable[str] = (),
) -> str:
    """Describes in a few lines the images, what was done and written, and how long it took."""
    lines = describe_images(manifest, may_advise=may_advise, had=had)
    names = [name for name, n in counters.items() if n]
    if not any(name.endswith("_made") or name in _ALSO_MADE for name in names):
        # If a model failed, something is left to do, and the caller reports the failure.
        if not any(name.endswith("_failed") for name in names):
            lines.append("nothing to do: everything is up to date")
    else:
        done = [
            next(
                (
                    f"{counted(counters[name], 'image')} {fate}"
                    for name, fate in _CUT.items()
                    if name in counters
                ),
                "0 images segmented",
            ),
            f"{counters.get('images_composed', 0)} composed",
            *(
                f"{counted(n, analysis.picture_noun)} {analysis.participle}"
                for analysis in _MODEL_STAGES
                if (n := counters.get(analysis.counter))
            ),
        ]
        # Nothing was to be made, but models have run.
        has_only_run = done[2:] and all(one.startswith("0 ") for one in done[:2])
        fallbacks = [
            f"{number} of the {what} {one if number == 1 else several} {fate}"
            for name, (what, one, several, fate) in _FALLBACKS.items()
            if (number := counters.get(name))
        ]
        written = [f"{size(n)} {folder}" for folder, n in bytes_written(counters).items()]
        stages = [
            f"{name} {s:.1f} s" for name, s in stage_seconds(counters, _STAGES).items() if s >= 0.05
        ]
        lines += [
            *fallbacks,
            f"done now: {', '.join(done[2:] if has_only_run else done)}",
            *_describe_shards(counters),
            *([f"written: {', '.join(written)}"] if written else []),
            f"time: {seconds:.1f} s; summed over workers: {', '.join(stages)}",
        ]
    lines.append(f"dataset {manifest.fingerprint[:12]}")
    return "\n".join(lines)


def describe_recipe(recipe: Manifest, dataset: Manifest, counters: Mapping[str, int]) -> list[str]:
    """Compares a dataset with the one whose recipe it was made from."""
    lines = [
        f"{counted(counters[name], 'picture')} {text}"
        for name, text in _PICTURES.items()
        if name in counters
    ]
    if dataset.config != recipe.config:
        return [*lines, "this is a dataset of its own, from the recipe's masks"]
    ours, theirs = (
        {file.path: file.sha256 for file in m.files if not is_dropped(recipe.config, file.path)}
        for m in (dataset, recipe)
    )
    differ = [
        *sorted(path for path in {**ours, **theirs} if ours.get(path) != theirs.get(path)),
        *([] if dataset == dataclasses.replace(recipe, files=dataset.files) else [MANIFEST]),
    ]
    if not differ:
        return [*lines, f"all {len(ours)} files and the manifest are the recipe's, byte for byte"]
    stated = [n for n, text in vars(dataset.about).items() if text != getattr(recipe.about, n)]
    alike = dataclasses.replace(recipe, files=dataset.files, about=dataset.about)
    if stated and dataset == alike and {*differ} <= {*CARD_FILES, MANIFEST}:
        return [
            *lines,
            "all pictures are equal; the card differs, because "
            f"{' and '.join(stated)} {'were' if stated[1:] else 'was'} set",
        ]
    kinds = Counter(path.rpartition("/")[0].partition("/")[0] or path for path in differ)
    return [
        *lines,
        f"{counted(len(differ), 'file')} {'is' if len(differ) == 1 else 'are'} not the recipe's, "
        f"byte for byte ("
        f"{', '.join(f'{number} {kind}' for kind, number in kinds.items())}): "
        f"{', '.join(differ[:_NAMED])}{', ...' * (len(differ) > _NAMED)}",
        *(
            f"made with {name} {version}, the recipe with {recipe.libraries.get(name)}"
            for name, version in dataset.libraries.items()
            if recipe.libraries.get(name) != version
        ),
    ]


def _describe_shards(counters: dict[str, int]) -> list[str]:
    """Describes how many shards were made; empty if no shard was kept from an earlier run."""
    names = {
        "source": "source_shards",
        "output": "output_shards",
        "of predictions": "evaluate_chunks",
    }
    kept = {kind: counters.get(f"{name}_kept", 0) for kind, name in names.items()}
    every = {kind: counters.get(f"{names[kind]}_made", 0) + n for kind, n in kept.items()}
    parts = [f"{n - kept[kind]} of {n} {kind}" for kind, n in every.items() if n]
    return [f"shards made: {', '.join(parts)}"] if any(kept.values()) else []


def size(count: float) -> str:
    """Formats a number of bytes, such as `640 B` or `12.3 MB`."""
    for unit, digits in (("B", 0), ("kB", 0), ("MB", 1), ("GB", 1)):
        # Compared as printed: 999.96 MB are 1.0 GB, not 1000.0 MB.
        if round(count, digits) < 1000:
            return f"{count:.{digits}f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
