"""The configuration of a dataset and the versions of stages, both part of fingerprints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pipeline.errors import did_you_mean
from pipeline.storage.state_files import convert
from transforms.codec import MAX_PIXELS
from transforms.filters import MAX_BOX, MIN_FOREGROUND, MIN_VISIBLE, Rules
from transforms.hashing import fingerprint
from transforms.limits import MAX_IMAGE_SIZE
from transforms.segmentation import Segmenter, describe_segmenter
from transforms.variants import (
    DIAL,
    EXTERNAL,
    MIXED,
    OF_WHOLE_IMAGES,
    PAPER,
    VARIANTS,
    VariantName,
    select_variants,
    with_replicates,
)

SEGMENT_VERSION = 1
"""Raised by hand when Segment would write other layers or records for the same input."""
COMPOSE_VERSION = 1
"""Raised by hand when Plan or Compose would write other files for the same layers."""
EVALUATE_VERSION = 2
"""Raised by hand when Evaluate would write other predictions for the same pixels."""
IMPORT_VERSION = 1
"""Raised by hand when Import would write other files for the same archive."""


_FLAGS_ADDED_AFTER_1_0: dict[str, Any] = {}
"""Flags that were added after 1.0, each with the value that keeps the earlier behaviour, so that
adding a flag does not invalidate existing datasets."""

_FLAGS_OF_IMPORTS = (
    *("origin", "split", "variants", "replicates", "formats", "image_size", "images_per_shard"),
)
"""The flags whose values are known for an imported dataset."""

FORMATS = ("parquet", "webdataset")
_Config = TypeVar("_Config", "SegmentConfig", "ComposeConfig", "DatasetConfig")


def _fingerprinted(flags: dict[str, Any]) -> dict[str, Any]:
    """Returns a fingerprint's flags: all but newer ones whose values keep the earlier behaviour."""
    return {
        name: value
        for name, value in flags.items()
        if _FLAGS_ADDED_AFTER_1_0.get(name, ...) != value
    }


@dataclasses.dataclass(frozen=True)
class SegmentConfig:
    """The flags that decide the layers; ValueError for a value out of range names its flag.

    Attributes:
      selection: `in9` takes images with boxes and cuts them apart; `in9l` takes all images and
        keeps them whole, so that only `image_size`, `resize`, `interpolation` and `crop` matter.
      segmenter_parameters: version and file digests that a custom function's masks depend on, each
        as `name=value`.
      max_box: largest fraction of the crop that the box may cover.
      min_visible: smallest fraction of the box that must lie inside the crop.
      min_foreground: smallest fraction of the box that must be foreground.
    """

    image_size: int = 224
    resize: int = 256
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "nearest"
    segmenter: str = "grabcut"
    grabcut_seed: int = 0
    segmenter_parameters: tuple[str, ...] = ()
    objects: Literal["one", "largest", "union", "each"] = "one"
    max_box: float = MAX_BOX
    min_visible: float = MIN_VISIBLE
    min_foreground: float = MIN_FOREGROUND
    crop: Literal["center", "pad"] = "center"
    selection: Literal["in9", "in9l"] = "in9"

    def __post_init__(self) -> None:
        if not 16 <= self.image_size <= MAX_IMAGE_SIZE:
            raise ValueError(
                f"--image_size must be between 16 and {MAX_IMAGE_SIZE}: got {self.image_size}"
            )
        if not self.image_size <= self.resize <= 8192:
            raise ValueError(
                f"resize must be between --image_size {self.image_size} and 8192: got {self.resize}"
            )
        self.describe_segmenter()
        if not 0 <= self.grabcut_seed < 2**31:
            raise ValueError(
                f"grabcut_seed must be between 0 and 2**31 - 1: got {self.grabcut_seed}"
            )
        for flag in ("max_box", "min_visible", "min_foreground"):
            if not 0 <= getattr(self, flag) <= 1:
                raise ValueError(f"{flag} must be between 0 and 1: got {getattr(self, flag)}")

    @property
    def keeps_image_whole(self) -> bool:
        """Whether images stay whole: without segmentation, boxes and layers."""
        return self.selection == "in9l"

    @property
    def rules(self) -> Rules:
        return Rules(
            objects=self.objects,
            max_box=self.max_box,
            min_visible=self.min_visible,
            min_foreground=self.min_foreground,
            pad=self.crop == "pad",
        )

    def describe_segmenter(self) -> Segmenter:
        """Describes the segmenter. Raises ValueError if no segmenter has this name."""
        return describe_segmenter(self.segmenter, self.segmenter_parameters)

    def fingerprint(self) -> str:
        """Identifies everything that a layer depends on, except the input."""
        segmenter = self.describe_segmenter()
        return fingerprint(
            {**_fingerprinted(vars(self)), "segmenter": segmenter.method},
            [segmenter.version, segmenter.parameters],
            MAX_PIXELS,
            SEGMENT_VERSION,
        )


@dataclasses.dataclass(frozen=True)
class ComposeConfig:
    """The flags that decide how layers become variants; raises as `SegmentConfig` does.

    `backgrounds` is `Scenes.summary` of the folder of scenes; None without such a folder.
    """

    variants: tuple[str, ...] = PAPER
    formats: tuple[str, ...] = FORMATS
    encoding: Literal["jpg", "png"] = "jpg"
    jpeg_quality: int = 95
    seed: int = 0
    per_class: str = "all"
    mixed_rand: Literal["any", "other"] = "any"
    own_background: bool = False
    replicates: int = 1
    backgrounds: str | None = None

    def __post_init__(self) -> None:
        if self.variants != select_variants(self.variants):
            raise ValueError(f"variants must be in the paper's order: got {self.variants}")
        if not self.formats or set(self.formats) - set(FORMATS):
            raise ValueError(
                f"--formats must name some of {', '.join(FORMATS)}: got {','.join(self.formats)!r}"
                f"{did_you_mean(','.join(self.formats), FORMATS)}"
            )
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality must be between 1 and 100: got {self.jpeg_quality}")
        if self.per_class not in ("all", "min") and not (
            self.per_class.isdecimal() and int(self.per_class) > 0
        ):
            raise ValueError(
                f"--per_class must be all, min or at least 1: got {self.per_class!r}"
                f"{did_you_mean(self.per_class, ('all', 'min'))}"
            )
        if EXTERNAL in self.variants and self.backgrounds is None:
            raise ValueError(f"--variants {EXTERNAL} needs --backgrounds: a folder of pictures")
        if not 1 <= self.replicates <= 100:
            raise ValueError(f"--replicates must be between 1 and 100: got {self.replicates}")

    @property
    def composed(self) -> tuple[VariantName, ...]:
        """All variants to write, replicates included, in the paper's order."""
        return with_replicates(self.variants, self.replicates)

    @property
    def mixed(self) -> tuple[VariantName, ...]:
        """The mixed variants whose backgrounds are drawn, in all draws; renderings share theirs."""
        pairs = {name.pairs for name in self.composed if name.is_mixed}
        order = list(VARIANTS)
        return tuple(sorted(pairs, key=lambda name: (order.index(name.base), name.draw)))

    @property
    def indexed(self) -> tuple[VariantName, ...]:
        """The variants, with replicates, whose backgrounds the index names; some may be missing."""
        dial = [name for name in self.variants if name in DIAL]
        return with_replicates((*MIXED, EXTERNAL, *dial), self.replicates)

    def fingerprint(self) -> str:
        """Identifies everything that a variant shard depends on, except the layers and scenes.

        Shards fingerprint the scenes that they use, so adding a scene does not invalidate them all.
        """
        return fingerprint(_fingerprinted({**vars(self), "backgrounds": None}), COMPOSE_VERSION)


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """The whole configuration of a dataset. Field names are the flags' names.

    For an imported dataset only some flags are known; `flags` leaves out the others, whose values
    here mean nothing. Raises as `SegmentConfig` does.

    Attributes:
      origin: `made` by this pipeline, or `imported` from data in the released layout.
      exclude, include: `KeyList.summary` of each list of images; None without that list.
    """

    split: tuple[str, ...] = ("val",)
    exclude: str | None = None
    include: str | None = None
    taxonomy: str | None = None
    limit: int | None = None
    images_per_shard: int = 1024
    layers: Literal["keep", "drop"] = "keep"
    origin: Literal["made", "imported"] = "made"
    segment: SegmentConfig = SegmentConfig()
    compose: ComposeConfig = ComposeConfig()

    def __post_init__(self) -> None:
        if not self.split or len(set(self.split)) != len(self.split):
            raise ValueError(f"--split must name different splits: got {','.join(self.split)!r}")
        for split in self.split:
            if not split.isidentifier():
                raise ValueError(f"--split must be a plain name, such as val: got {split!r}")
        if self.segment.keeps_image_whole and self.compose.variants != OF_WHOLE_IMAGES:
            others = ",".join(name for name in self.compose.variants if name not in OF_WHOLE_IMAGES)
            raise ValueError(
                "--selection in9l has only original, since its images need no boxes: leave "
                f"{others} out of --variants, or choose --selection in9"
            )
        if self.segment.keeps_image_whole and self.segment.objects != "one":
            raise ValueError("--selection in9l uses no boxes: leave --objects out")
        if self.layers == "drop" and any(name.rendering for name in self.compose.composed):
            raise ValueError("renderings are made from the layers: leave --layers drop out")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit must be at least 1: got {self.limit}")
        if self.images_per_shard < 1:
            raise ValueError(f"images_per_shard must be at least 1: got {self.images_per_shard}")

    @property
    def eval_split(self) -> str:
        """The split to test on unless told otherwise: `val`, else the first other than `train`."""
        others = [name for name in self.split if name != "train"]
        return "val" if "val" in others else (others or self.split)[0]

    @property
    def is_imported(self) -> bool:
        """Whether the dataset was imported, rather than made here."""
        return self.origin == "imported"

    def flags(self) -> dict[str, Any]:
        """Returns the values by flag name, flat, as the manifest stores them."""
        flat = {**vars(self.segment), **vars(self.compose), **vars(self)}
        made = (name for name in flat if name not in ("segment", "compose", "origin"))
        return {name: flat[name] for name in (_FLAGS_OF_IMPORTS if self.is_imported else made)}

    @classmethod
    def from_flags(cls, flags: Mapping[str, Any]) -> DatasetConfig:
        """Restores a configuration from the result of `flags`, or from a manifest's copy of it.

        Raises ValueError if a flag is not known, or a value has a wrong type or is not allowed.
        """
        values = dict(flags)
        if values.get("origin") == "imported" and "image_size" in values:
            # The original value is unknown, but must not be less than `image_size`.
            values.setdefault("resize", values["image_size"])

        def pop_config(kind: type[_Config]) -> _Config:
            names = [field.name for field in dataclasses.fields(kind)]
            config = convert({n: values.pop(n) for n in names if n in values}, kind)
            # msgspec does not store defaults in `__dict__`, which `flags` reads; the copy does.
            return dataclasses.replace(config)

        segment, compose = pop_config(SegmentConfig), pop_config(ComposeConfig)
        config = pop_config(cls)
        if values:
            unknown = ", ".join(sorted(values))
            raise ValueError(f"made by a newer release: flags {unknown} are not known")
        return dataclasses.replace(config, segment=segment, compose=compose)

    def differing_flags(self, other: DatasetConfig) -> list[str]:
        """Lists the flags that differ, or that only one of the two configurations knows."""
        mine, theirs = self.flags(), other.flags()
        names = sorted(mine.keys() | theirs.keys())
        return [name for name in names if mine.get(name, ...) != theirs.get(name, ...)]

    def fingerprint(self) -> str:
        """Identifies the configuration together with the versions of the stages."""
        if self.is_imported:
            return fingerprint(self.flags(), IMPORT_VERSION)
        flags = _fingerprinted(self.flags())
        flags["segmenter"] = self.segment.describe_segmenter().method
        return fingerprint(flags, self.segment.fingerprint(), self.compose.fingerprint())
