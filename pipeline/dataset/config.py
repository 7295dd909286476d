"""What a dataset is made with: the configuration that manifests and fingerprints hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import msgspec

from pipeline.dataset.fingerprints import (
    COMPOSE_VERSION,
    IMPORT_VERSION,
    SEGMENT_VERSION,
    fingerprint,
)
from transforms.codec import MAX_PIXELS
from transforms.filters import MAX_BOX, MIN_FOREGROUND, MIN_VISIBLE, Rules
from transforms.segmentation import Segmenter, describe_segmenter
from transforms.variants import EXTERNAL, PAPER, WHOLE, select_variants, with_replicates

_SINCE_RELEASE: dict[str, Any] = {}
"""Flags that were added after 1.0, with the value that does what was done before: no dataset is
made again because a flag exists."""

_IMPORTED = (
    *("origin", "split", "variants", "replicates", "formats", "image_size", "images_per_shard"),
)
"""The flags that are known of an imported dataset."""

FORMATS = ("parquet", "webdataset")
_Config = TypeVar("_Config", "SegmentConfig", "ComposeConfig", "DatasetConfig")


def _counted(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that a fingerprint holds: all, but for new ones that change nothing."""
    return {name: value for name, value in flags.items() if _SINCE_RELEASE.get(name, ...) != value}


@dataclasses.dataclass(frozen=True)
class SegmentConfig:
    """What decides the layers. Field names are the flags' names.

    Attributes:
      selection: `in9`, images with boxes, cut apart; or `in9l`, all images, as a whole: then
        size, resize and interpolation are all that matters.
      segmenter_parameters: of a function of the user's, `name=value` each: what decides its masks.

    Raises:
      ValueError: a value out of range, named with its flag.
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
        if not 16 <= self.image_size <= 4096:
            raise ValueError(f"--image_size must be between 16 and 4096: got {self.image_size}")
        if not self.image_size <= self.resize <= 8192:
            raise ValueError(
                f"--resize must be between --image_size {self.image_size} and 8192: "
                f"got {self.resize}"
            )
        self.describe_segmenter()
        if not 0 <= self.grabcut_seed < 2**31:
            raise ValueError(
                f"--grabcut_seed must be between 0 and 2**31 - 1: got {self.grabcut_seed}"
            )
        for flag in ("max_box", "min_visible", "min_foreground"):
            if not 0 <= getattr(self, flag) <= 1:
                raise ValueError(f"--{flag} must be between 0 and 1: got {getattr(self, flag)}")

    @property
    def is_whole(self) -> bool:
        """Whether images stay whole: without segmentation, boxes and layers."""
        return self.selection == "in9l"

    @property
    def rules(self) -> Rules:
        """What is asked of boxes."""
        return Rules(
            objects=self.objects,
            max_box=self.max_box,
            min_visible=self.min_visible,
            min_foreground=self.min_foreground,
            pad=self.crop == "pad",
        )

    def describe_segmenter(self) -> Segmenter:
        """What is known of the segmenter. Raises ValueError if there is none of that name."""
        return describe_segmenter(self.segmenter, self.segmenter_parameters)

    def flags(self) -> dict[str, Any]:
        """Flag name to value."""
        return dict(vars(self))  # Once an image: `asdict`, which copies, takes ten times as long.

    def fingerprint(self) -> str:
        """Identifies everything but the input that a layer depends on."""
        segmenter = self.describe_segmenter()
        return fingerprint(
            {**_counted(self.flags()), "segmenter": segmenter.method},
            [segmenter.version, segmenter.parameters],
            MAX_PIXELS,
            SEGMENT_VERSION,
        )


@dataclasses.dataclass(frozen=True)
class ComposeConfig:
    """What decides the variants, given the layers. Field names are the flags' names.

    Attributes:
      backgrounds: what `Scenes.about` says of the folder of scenes, None without one.

    Raises:
      ValueError: a value out of range, named with its flag.
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
            )
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"--jpeg_quality must be between 1 and 100: got {self.jpeg_quality}")
        if self.per_class not in ("all", "min") and not (
            self.per_class.isdecimal() and int(self.per_class) > 0
        ):
            raise ValueError(f"--per_class must be all, min or a number: got {self.per_class!r}")
        if EXTERNAL in self.variants and self.backgrounds is None:
            raise ValueError(f"--variants {EXTERNAL} needs --backgrounds: a folder of pictures")
        if not 1 <= self.replicates <= 100:
            raise ValueError(f"--replicates must be between 1 and 100: got {self.replicates}")

    @property
    def composed(self) -> tuple[str, ...]:
        """All variants to write, replicates among them, in the paper's order."""
        return with_replicates(self.variants, self.replicates)

    def fingerprint(self) -> str:
        """Identifies everything but the layers and scenes that a variant shard depends on.

        Of the scenes, those count that were drawn (`pipeline.generate.compose`): another one
        more does not make all shards anew."""
        flags = {**dataclasses.asdict(self), "backgrounds": None}
        return fingerprint(_counted(flags), COMPOSE_VERSION)


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """The whole configuration of a dataset. Field names are the flags' names.

    Of an imported dataset only some are known: `flags` leaves the others out, whatever they
    are here.

    Attributes:
      origin: `made` from images here, or `imported` from the released layout.
      exclude, include: what `KeyList.about` says of the lists of images, None without one.

    Raises:
      ValueError: a value out of range, named with its flag.
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
        if self.segment.is_whole and self.compose.variants != WHOLE:
            others = ",".join(name for name in self.compose.variants if name not in WHOLE)
            raise ValueError(
                "--selection in9l has only original, since its images need no boxes: leave "
                f"{others} out of --variants, or choose --selection in9"
            )
        if self.segment.is_whole and self.segment.objects != "one":
            raise ValueError("--selection in9l knows of no boxes: leave --objects out")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit must be at least 1: got {self.limit}")
        if self.images_per_shard < 1:
            raise ValueError(f"--images_per_shard must be at least 1: got {self.images_per_shard}")

    @property
    def selection(self) -> str:
        """Which images: `in9` or `in9l`."""
        return self.segment.selection

    @property
    def is_imported(self) -> bool:
        """Whether it was read as it is, and not made here."""
        return self.origin == "imported"

    def flags(self) -> dict[str, Any]:
        """Flag name to value, flat, as the manifest stores it."""
        flat = dataclasses.asdict(self)
        del flat["segment"]
        flat = {**self.segment.flags(), **flat.pop("compose"), **flat}
        if self.is_imported:
            return {name: flat[name] for name in _IMPORTED}
        del flat["origin"]
        return flat

    @classmethod
    def from_flags(cls, flags: Mapping[str, Any]) -> DatasetConfig:
        """The inverse of `flags`; also takes a manifest's lists.

        Raises:
          ValueError: an unknown name, a value of another type or out of range, or an unknown word.
        """
        values = dict(flags)
        if values.get("origin") == "imported":
            # Unknown, and never less than the size.
            values.setdefault("resize", values["image_size"])

        def take(kind: type[_Config]) -> _Config:
            names = [field.name for field in dataclasses.fields(kind)]
            made = msgspec.convert({n: values.pop(n) for n in names if n in values}, kind)
            return dataclasses.replace(made)  # Else defaults are no attributes of its own.

        segment, compose = take(SegmentConfig), take(ComposeConfig)
        whole = take(cls)
        if values:
            unknown = ", ".join(sorted(values))
            raise ValueError(f"made by a newer release: flags {unknown} are not known")
        return dataclasses.replace(whole, segment=segment, compose=compose)

    def differing_flags(self, other: DatasetConfig) -> list[str]:
        """Names of the flags whose values differ, or that are known of one alone."""
        mine, theirs = self.flags(), other.flags()
        names = sorted(mine.keys() | theirs.keys())
        return [name for name in names if mine.get(name, ...) != theirs.get(name, ...)]

    def fingerprint(self) -> str:
        """Identifies the configuration with the stage versions."""
        if self.is_imported:
            return fingerprint(self.flags(), IMPORT_VERSION)
        flags = _counted(self.flags())
        flags["segmenter"] = self.segment.describe_segmenter().method
        return fingerprint(flags, self.segment.fingerprint(), self.compose.fingerprint())
