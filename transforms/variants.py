"""Variants as pure functions of layers, and of noise: the paper's eight, the mask, and others.

Pictures are (S, S, 3) uint8 RGB, where S is the side of the layer. Source: paper section 2.

To add a variant, write its function and add an entry to `VARIANTS`. Custom variants are named by a
specification instead, `python:MODULE:FUNCTION@VERSION`, and those of a custom fill by their base
and its specification, `mixed_same=python:...` (`pipeline.generate.pictures`).

Gaussian noise has the same bytes on every machine. Logarithms and cosines differ in their last bit
between processors and libraries, so noise is not computed from uniform numbers, but looked up in a
table. 16 bits of a keyed hash select one of its 65,536 entries, which are equally likely. Each
whole number occurs in the table in proportion to its probability under the rounded normal
distribution. Whole numbers are enough, because pictures hold whole numbers, too: rounding the noise
before adding it equals rounding the sum.
"""

import dataclasses
import difflib
import functools
import math
import re
from collections.abc import Callable, Iterable
from statistics import NormalDist
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

from transforms.geometry import Mask, Pixels
from transforms.hashing import substreams
from transforms.layers import Layer
from transforms.renderings import (
    GAPS,
    PAPER_METHOD,
    RENDERINGS,
    Rendering,
    blur,
    box_hole,
    composite,
)

SIGMA = 0.25
"""Standard deviation of the noise, as a share of the range of a channel. Source: Moayeri, Singla
and Feizi 2022, "Hard ImageNet: Segmentations for Objects with Strong Spurious Cues"."""

Noise = NDArray[np.int16]

_BITS = 16
_MOST = 300
"""Noise of more than this many levels, of 255, is rarer than one entry in 65,536."""


@functools.cache
def level_table() -> Noise:
    """Returns the (65536,) rounded levels of a normal distribution, in ascending order."""
    normal = NormalDist(sigma=255 * SIGMA)
    # The number of entries below each level. Before rounding, none of these numbers is within
    # 0.0005 of a half, so the last bits of the distribution function do not matter.
    starts = [round(2**_BITS * normal.cdf(k - 0.5)) for k in range(1 - _MOST, _MOST + 1)]
    return (np.searchsorted(starts, np.arange(2**_BITS), side="right") - _MOST).astype(np.int16)


def gaussian_noise(draw: int, shape: tuple[int, ...]) -> Noise:
    """Draws the noise of one picture from its `keyed_hash`; each channel has its own noise.

    Returns:
      Noise of this shape, int16, in levels of a channel (0 to 255), with mean 0 and standard
      deviation 255 * `SIGMA`. Each 64-bit word of the draw's substream gives four values, from its
      lowest bits to its highest.
    """
    count = math.prod(shape)
    words = substreams(np.asarray([draw], np.uint64), range(-(-count // 4)))
    indices = words.astype("<u8").view("<u2").ravel()[:count]
    return np.asarray(level_table()[indices].reshape(shape))


def add_noise(image: Pixels, noise: Noise) -> Pixels:
    """Adds noise of the same shape to an image, clipped to uint8."""
    return (image + noise).clip(0, 255).astype(np.uint8)


def original(layer: Layer) -> Pixels:
    """Returns the unchanged image."""
    return layer.image


def only_bg_b(layer: Layer) -> Pixels:
    """Blackens the annotated box."""
    return _on_black(layer.image, ~box_hole(layer))


def only_bg_t(layer: Layer) -> Pixels:
    """Returns the background, tiled over the annotated box."""
    return layer.only_bg_t


def no_fg(layer: Layer) -> Pixels:
    """Blackens the foreground to a silhouette."""
    return _on_black(layer.image, ~layer.mask)


def only_fg(layer: Layer) -> Pixels:
    """Returns the foreground on black."""
    return _on_black(layer.image, layer.mask)


def _on_black(image: Pixels, mask: Mask) -> Pixels:
    """Blackens an image where a mask is False (`cv2.copyTo`)."""
    return np.asarray(cv2.copyTo(image, mask.view(np.uint8)))


def fg_mask(layer: Layer) -> Pixels:
    """Returns the mask, (S, S) uint8: 255 on the foreground, 0 elsewhere."""
    return layer.mask.astype(np.uint8) * np.uint8(255)


_BLUR = 1 / 28
"""Standard deviation of the blur of `bg_blurred`, as a share of the side: 8 pixels for a side of
224."""


def bg_blurred(layer: Layer) -> Pixels:
    """Blurs the background and keeps the foreground sharp.

    The Gaussian blur averages background pixels only: near the foreground, the remaining weights
    are renormalised. Blurring the whole image would leave a halo of the object's colours.
    """
    side = layer.image.shape[0]
    weights = np.where(layer.mask, np.uint16(0), np.uint16(65535))
    only_bg = no_fg(layer).astype(np.uint16) * np.uint16(257)
    blurred = blur(only_bg, side * _BLUR) / np.maximum(blur(weights, side * _BLUR), 1)[..., None]
    return composite(layer.image, layer.mask, np.round(255 * blurred).clip(0, 255).astype(np.uint8))


def noise_fg(layer: Layer, noise: Noise) -> Pixels:
    """Adds noise to the foreground."""
    return composite(add_noise(layer.image, noise), layer.mask, layer.image)


def noise_bg(layer: Layer, noise: Noise) -> Pixels:
    """Adds noise to the background."""
    return composite(layer.image, layer.mask, add_noise(layer.image, noise))


@dataclasses.dataclass(frozen=True)
class Variant:
    """One version of every image.

    Attributes:
      name: name of the variant; for the paper's variants, as in the released dataset.
      from_layer: makes the picture from the image's own layer; None if the picture needs more.
      from_noise: makes the picture from the layer and noise; None if the picture needs no noise.
        Variants on a given background have neither `from_layer` nor `from_noise`.
      rendering: how a foreground is put on a given background, and how this is filled.
      lossless: whether pictures are always stored as PNG, because JPEG would change a mask, and
        would blur noise and spread it over the mask's edge.
      description: what the picture shows, for a dataset's card.
    """

    name: str
    from_layer: Callable[[Layer], Pixels] | None = None
    from_noise: Callable[[Layer, Noise], Pixels] | None = None
    rendering: Rendering = PAPER_METHOD
    lossless: bool = False
    description: str = "a custom variant; see manifest.json"

    def compose(
        self, layer: Layer, background: Pixels | None = None, noise: Noise | None = None
    ) -> Pixels:
        """Composes the picture: (S, S, 3) uint8 RGB, or (S, S) uint8 for `fg_mask`.

        Args:
          background: (S, S, 3) uint8, the background as its rendering fills it; for the paper's
            method the `only_bg_t` of the background image. Only variants that need one use it.
          noise: (S, S, 3) int16, from `gaussian_noise`; needed by variants with noise only.

        Raises:
          ValueError: the background or the noise that the variant needs is missing.
        """
        if self.from_layer is not None:
            return self.from_layer(layer)
        if self.from_noise is not None:
            if noise is None:
                raise ValueError(f"{self.name} needs noise")
            return self.from_noise(layer, noise)
        if background is None:
            raise ValueError(f"{self.name} needs a background")
        return self.rendering.paste(layer, background)


FILLED = {
    "mixed_same": "the foreground on a background of the same class",
    "mixed_rand": "the foreground on a background of a random class",
    "only_bg_t": "background only",
}
"""The variants that a fill of the box renders anew, and what they show."""


def variants_of(rendering: Rendering) -> dict[str, Variant]:
    """Returns a rendering's variants by name; only a fill of the box has one without foreground."""
    alone = dataclasses.replace(rendering, paste=lambda layer, background: background)
    return {
        f"{base}_{rendering.name}": Variant(
            f"{base}_{rendering.name}",
            rendering=alone if base == "only_bg_t" else rendering,
            description=f"{FILLED[base]}; {rendering.description}",
        )
        for base in FILLED
        if base != "only_bg_t" or rendering.hole is box_hole
    }


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("original", original, description="the image as it is"),
        Variant(
            "only_bg_b", only_bg_b, description="background only, the annotated box blacked out"
        ),
        Variant(
            "only_bg_t", only_bg_t, description="background only, tiled over the annotated box"
        ),
        Variant("no_fg", no_fg, description="the foreground cut out, a black silhouette"),
        Variant("only_fg", only_fg, description="the foreground on black"),
        Variant("mixed_same", description="the foreground on a background of the same class"),
        Variant("mixed_rand", description="the foreground on a background of a random class"),
        Variant("mixed_next", description="the foreground on a background of the next class"),
        Variant("fg_mask", fg_mask, lossless=True, description="the foreground mask, 255 or 0"),
        Variant(
            "bg_blurred", bg_blurred, description="the background blurred, the foreground sharp"
        ),
        Variant(
            "noise_fg",
            from_noise=noise_fg,
            lossless=True,
            description="the image with Gaussian noise on the foreground, standard deviation 0.25",
        ),
        Variant(
            "noise_bg",
            from_noise=noise_bg,
            lossless=True,
            description="the image with the same noise on the background instead",
        ),
        Variant(
            "mixed_external",
            description="the foreground on a scene from outside the dataset",
        ),
    )
} | {name: v for each in RENDERINGS.values() for name, v in variants_of(each).items()}
"""Variants by name: the paper's in the paper's order, then the others, then those of renderings and
the dial's."""

DIAL = {
    f"mixed_p{percent:02}": Variant(
        f"mixed_p{percent:02}",
        description="the foreground on a background of the same class for each image with a chance "
        f"of {percent} %, else of another class",
    )
    for percent in range(101)
}
"""A dial for how strongly the background goes with the class: each picture is one of `mixed_same`
or, with `--mixed_rand other`, of `mixed_rand`, and all that have the same class at a strength have
it at every greater one."""
VARIANTS |= DIAL
DIAL_VARIANTS = tuple(f"mixed_p{percent:02}" for percent in (0, 25, 50, 75, 90, 95, 99, 100))
"""The strengths that `dial` stands for, beside `mixed_rand`, whose backgrounds say nothing."""

PAPER = tuple(VARIANTS)[:9]
"""The variants that `all` stands for: the paper's eight variants and the mask."""

OF_WHOLE_IMAGES = ("original",)
"""Variants of images that are not cut into foreground and background."""

EXTERNAL = "mixed_external"
"""The variant whose backgrounds are not part of the dataset, but scenes from `--backgrounds`."""
MIXED = ("mixed_same", "mixed_rand", "mixed_next")
"""Variants whose backgrounds come from images of the dataset, without those of renderings."""
METHOD = tuple(
    dict.fromkeys((*FILLED, *(name for name, v in VARIANTS.items() if v.rendering.name)))
)
"""The variants that `method` stands for: all renderings, and the variants that have some."""
OBJECT_HIDDEN = ("only_bg_b", "only_bg_t", "no_fg")
"""Variants on which a high accuracy means that a model uses the background."""
PICTURES = tuple(name for name in PAPER if name != "fg_mask")
"""The paper's eight variants, without the mask."""
PAPER_NAMES = {
    "original": "Original",
    "only_bg_b": "Only-BG-B",
    "only_bg_t": "Only-BG-T",
    "no_fg": "No-FG",
    "only_fg": "Only-FG",
    "mixed_same": "Mixed-Same",
    "mixed_rand": "Mixed-Rand",
    "mixed_next": "Mixed-Next",
}
"""The paper's names of its variants."""

_NAME = re.compile(
    # An entry of a configuration that names a function, for a fill after the base that it renders.
    rf"\A(?:(?:({'|'.join(FILLED)})=)?python:[\w.]+:([a-z][a-z0-9_]*)@[0-9]+"
    # A name: a base, and the rendering of one that has some; then the number of the draw.
    rf"|(?:({'|'.join(FILLED)})(?:_(.+?))??|(.*?))(?:(?<=.)_r([1-9][0-9]{{0,8}}))?)\Z",
    re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class VariantName:
    """Which variant, and which draw of its backgrounds; `str` gives its name in columns and paths.

    >>> name = VariantName.parse("mixed_rand_telea_r2")
    >>> name
    VariantName(base='mixed_rand', rendering='telea', draw=2)
    >>> str(name), str(name.pairs), str(name.variant)
    ('mixed_rand_telea_r2', 'mixed_rand_r2', 'mixed_rand_telea')
    >>> str(VariantName.parse("only_bg_t=python:my_fills:mean@2"))
    'only_bg_t_mean'

    Attributes:
      base: the variant without rendering and draw, which decides pairs, units and columns.
      rendering: name of the rendering; "" for the paper's method.
      draw: number of the replicate, 0 for the first.
    """

    base: str
    rendering: str = ""
    draw: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses a name, or an entry of a configuration that names a custom function."""
        ((fill, function, filled, rendering, base, draw),) = _NAME.findall(text)
        if function:
            return cls(*filter(None, (fill, function)))
        return cls(filled or base, rendering, int(draw or 0))

    def __str__(self) -> str:
        parts = (self.base, self.rendering, f"r{self.draw}" if self.draw else "")
        return "_".join(filter(None, parts))

    @functools.cached_property
    def variant(self) -> Self:
        """The variant that it is a draw of."""
        return dataclasses.replace(self, draw=0)

    @functools.cached_property
    def pairs(self) -> Self:
        """The variant, or draw, whose pairs it shows: the one without rendering."""
        return dataclasses.replace(self, rendering="")

    @property
    def strength(self) -> float | None:
        """The chance of a background of the own class (0 to 1); None if it is not of the dial."""
        return int(self.base.removeprefix("mixed_p")) / 100 if self.base in DIAL else None

    @property
    def is_mixed(self) -> bool:
        """Whether its backgrounds are other images of the dataset."""
        return self.base in MIXED or self.base in DIAL

    @property
    def has_draws(self) -> bool:
        """Whether its backgrounds are drawn: other images, or scenes from outside the dataset."""
        return self.is_mixed or self.base == EXTERNAL

    @property
    def is_picture(self) -> bool:
        """Whether models are evaluated on it, as on all but the mask."""
        return self.base != "fg_mask"


BG_GAP = "bg_gap"
"""Name of BG-Gap, `mixed_same` less `mixed_rand`, in lists that otherwise hold variant names. That
of `X_same` and `X_rand` is `bg_gap_X`, so no variant has a name that begins with this."""

ORIGINAL, ONLY_BG_T, MASK = map(VariantName, ("original", "only_bg_t", "fg_mask"))
"""The variants that are read for other reasons than that a user asked for them."""


def filled_bases(names: Iterable[VariantName]) -> frozenset[str]:
    """Returns the mixed variants whose backgrounds some of these variants fill instead of tile.

    >>> names = ("mixed_rand_telea", "mixed_same_box", "only_bg_t_telea")
    >>> sorted(filled_bases(map(VariantName.parse, names)))
    ['mixed_rand']
    """
    return frozenset(
        name.base
        for name in names
        if name.is_mixed
        and name.rendering
        and (name.rendering not in RENDERINGS or RENDERINGS[name.rendering].hole)
    )


def with_replicates(variants: Iterable[str], replicates: int) -> tuple[VariantName, ...]:
    """Lists the variants of a configuration, each followed by its further draws, if it has draws.

    `replicates` is the number of draws, including the first.

    >>> list(map(str, with_replicates(["original", "mixed_same"], 3)))
    ['original', 'mixed_same', 'mixed_same_r1', 'mixed_same_r2']
    """
    return tuple(
        dataclasses.replace(name, draw=draw)
        for name in map(VariantName.parse, variants)
        for draw in range(replicates if name.has_draws else 1)
    )


def draws_of(names: Iterable[VariantName]) -> dict[str, tuple[VariantName, ...]]:
    """Groups the draws of each variant, by its name; both keep the order of `names`.

    >>> draws = draws_of(with_replicates(["original", "mixed_same"], 2))
    >>> list(draws), list(map(str, draws["mixed_same"]))
    (['original', 'mixed_same'], ['mixed_same', 'mixed_same_r1'])
    """
    draws: dict[str, tuple[VariantName, ...]] = {}
    for name in names:
        draws[str(name.variant)] = (*draws.get(str(name.variant), ()), name)
    return draws


def select_variants(names: Iterable[str]) -> tuple[str, ...]:
    """Checks names and specifications of variants, and puts them in order.

    The paper's variants come first, then the other built-in variants, then specifications of custom
    variants by name. `all` stands for `PAPER`, `method` for `METHOD`, `dial` for `DIAL_VARIANTS`
    and `mixed_rand`.

    >>> select_variants(["bg_blurred", "original"])
    ('original', 'bg_blurred')

    Raises:
      ValueError: a name is unknown, two variants would have the same name, a custom variant has a
        name that replicates have, or no variant is named.
    """
    sets = {"all": PAPER, "method": METHOD, "dial": (*DIAL_VARIANTS, "mixed_rand")}
    wanted = {each for name in names for each in sets.get(name, (name,))}
    parsed = {each: VariantName.parse(each) for each in wanted}
    custom = sorted(
        (each for each in wanted if str(parsed[each]) != each), key=lambda each: str(parsed[each])
    )
    plain = (name for name in VARIANTS if VariantName.parse(name).base == name not in DIAL)
    known = f"known: {', '.join(plain)}, mixed_p00 to mixed_p100, {', '.join(sets)}, "
    known += "python:MODULE:FUNCTION"
    unknown = sorted(wanted - set(VARIANTS) - set(custom))
    if unknown:
        close = difflib.get_close_matches(unknown[0], VARIANTS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        if unknown[0].startswith(f"{EXTERNAL}_"):
            raise ValueError(f"{unknown[0]}: {EXTERNAL} has no renderings; a scene has no box")
        raise ValueError(f"unknown variant {unknown[0]!r}; {known}{hint}")
    if not wanted:
        raise ValueError(f"no variant named; {known}")
    taken: list[str] = []
    for entry in custom:
        name = str(parsed[entry])
        if _is_taken(parsed[entry], taken):
            raise ValueError(f"{entry}: the name {name!r} is taken; rename the function")
        taken.append(name)
    return (*(name for name in VARIANTS if name in wanted), *custom)


def _is_taken(variant: VariantName, others: Iterable[str]) -> bool:
    """Returns whether a variant has the name of a built-in one, or one of some others.

    The name may also read as a draw's, or that of a variant as a rendering's; conditions have a
    baseline and gaps beside variants.
    """
    name, quantities = str(variant), ("baseline", *(f"mixed_same_{gap}" for gap in GAPS))
    is_reserved = name in {*VARIANTS, *quantities, *others} or name.startswith(BG_GAP)
    return is_reserved or VariantName.parse(name) != variant


def outside_variant(name: str, entries: Iterable[str]) -> VariantName:
    """Returns the name of a variant whose pictures come from outside.

    `entries` are the variants of the dataset's configuration.

    >>> str(outside_variant("haze", ["original"]))
    'haze'

    Raises:
      ValueError: the name has another form, or means something else.
    """
    taken = ("all", "method", "dial", "in9l", *(str(VariantName.parse(entry)) for entry in entries))
    if not re.fullmatch("[a-z][a-z0-9_]{,99}", name) or _is_taken(VariantName(name), taken):
        raise ValueError(
            f"{name!r} is no name for pictures from outside: it has small letters, digits and _, a "
            "letter first, and is not that of a variant, a draw, a gap or the baseline"
        )
    return VariantName(name)
