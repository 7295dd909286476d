"""The eight ImageNet-9 variants, the mask, and others, as pure functions of layers.

Pictures are (S, S, 3) uint8 RGB, of the layer's size. Source: paper section 2.

To add a variant, write its function and list it in `VARIANTS`. One that lies elsewhere has no
place there, but a specification, `python:MODULE:FUNCTION@VERSION`
(`pipeline.generate.custom_variants`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from transforms.geometry import Mask, Pixels
from transforms.layers import Layer
from transforms.noise import Noise, add_noise

Image = NDArray[np.uint8]


def composite(foreground: Pixels, mask: Mask, background: Pixels) -> Pixels:
    """Puts foregrounds on backgrounds along masks.

    Args:
      foreground, background: (..., S, S, 3) uint8.
      mask: (..., S, S) bool, True where the foreground shows.

    Returns:
      (..., S, S, 3) uint8. Truly black foreground pixels stay: the authors' script keys on
      black instead of the mask and loses them.
    """
    return np.where(mask[..., np.newaxis], foreground, background)


def original(layer: Layer) -> Image:
    """The image as it is."""
    return layer.image


def only_bg_b(layer: Layer) -> Image:
    """The background with a black rectangle for the annotated box."""
    image = layer.image.copy()
    image[layer.box.y0 : layer.box.y1, layer.box.x0 : layer.box.x1] = 0
    return image


def only_bg_t(layer: Layer) -> Image:
    """The background, tiled over the annotated box."""
    return layer.only_bg_t


def no_fg(layer: Layer) -> Image:
    """The image with a black silhouette for the foreground."""
    return layer.image * ~layer.mask[..., np.newaxis]


def only_fg(layer: Layer) -> Image:
    """The foreground on black."""
    return layer.image * layer.mask[..., np.newaxis]


def fg_mask(layer: Layer) -> Image:
    """The mask, (S, S) uint8: 255 on the foreground, 0 elsewhere."""
    return layer.mask.astype(np.uint8) * np.uint8(255)


def mixed(layer: Layer, background: Pixels) -> Image:
    """The foreground on another image's tiled background."""
    return composite(layer.image, layer.mask, background)


_BLUR = 1 / 28
"""Standard deviation of `bg_blurred`'s blur, over the side of the picture: 8 pixels of 224."""


def bg_blurred(layer: Layer) -> Image:
    """The background blurred, the foreground sharp.

    The blur is a Gaussian over background pixels alone, weighted anew beside the foreground:
    blurring the whole image would put a halo of the object's colours around it.
    """
    side = layer.image.shape[0]
    # 16-bit integers, which OpenCV blurs to the same bits on every processor.
    weights = np.where(layer.mask, np.uint16(0), np.uint16(65535))
    only_bg = no_fg(layer).astype(np.uint16) * np.uint16(257)
    blurred = _blur(only_bg, side * _BLUR) / np.maximum(_blur(weights, side * _BLUR), 1)[..., None]
    background = np.round(255 * blurred).clip(0, 255).astype(np.uint8)
    return composite(layer.image, layer.mask, background)


def _blur(image: NDArray[np.uint16], sigma: float) -> NDArray[np.uint16]:
    blurred = cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(blurred, np.uint16)


def noise_fg(layer: Layer, noise: Noise) -> Image:
    """The image with noise on the foreground."""
    return composite(add_noise(layer.image, noise), layer.mask, layer.image)


def noise_bg(layer: Layer, noise: Noise) -> Image:
    """The image with noise on the background."""
    return composite(layer.image, layer.mask, add_noise(layer.image, noise))


@dataclasses.dataclass(frozen=True)
class Variant:
    """One version of every image.

    Attributes:
      name: as in the released dataset.
      from_layer: makes the picture from the image's own layer.
      from_noise: makes it from that and noise; None, as `from_layer`, for mixed variants.
      lossless: always stored as PNG. JPEG would blur noise, and carry it over the mask's edge.
    """

    name: str
    from_layer: Callable[[Layer], Image] | None = None
    from_noise: Callable[[Layer, Noise], Image] | None = None
    lossless: bool = False

    @property
    def is_mixed(self) -> bool:
        """Whether the background comes from another picture."""
        return self.from_layer is None and self.from_noise is None

    def compose(
        self, layer: Layer, background: Pixels | None = None, noise: Noise | None = None
    ) -> Image:
        """Makes the picture: (S, S, 3) uint8 RGB, or (S, S) uint8 for `fg_mask`.

        Args:
          layer: the foreground image's layer.
          background: (S, S, 3) uint8, the `only_bg_t` of the background image; needed by
            mixed variants only.
          noise: (S, S, 3) int16 of `gaussian_noise`; needed by variants with noise only.

        Raises:
          ValueError: a mixed variant without a background, or one with noise without it.
        """
        if self.from_layer is not None:
            return self.from_layer(layer)
        if self.from_noise is not None:
            if noise is None:
                raise ValueError(f"{self.name} needs noise")
            return self.from_noise(layer, noise)
        if background is None:
            raise ValueError(f"{self.name} needs a background")
        return mixed(layer, background)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("original", original),
        Variant("only_bg_b", only_bg_b),
        Variant("only_bg_t", only_bg_t),
        Variant("no_fg", no_fg),
        Variant("only_fg", only_fg),
        Variant("mixed_same"),
        Variant("mixed_rand"),
        Variant("mixed_next"),
        Variant("fg_mask", fg_mask, lossless=True),
        Variant("bg_blurred", bg_blurred),
        Variant("noise_fg", from_noise=noise_fg, lossless=True),
        Variant("noise_bg", from_noise=noise_bg, lossless=True),
        Variant("mixed_external"),
    )
}
"""By name: the paper's, in its order, then others."""

PAPER = tuple(VARIANTS)[:9]
"""What `all` stands for: the paper's eight variants, and the mask."""

WHOLE = ("original",)
"""Those of images that are not cut apart."""

EXTERNAL = "mixed_external"
"""On scenes that are no images of the dataset: `--backgrounds`."""
MIXED = tuple(name for name, v in VARIANTS.items() if v.is_mixed and name != EXTERNAL)
"""On backgrounds of the dataset's own images."""
PICTURES = tuple(name for name in PAPER if name != "fg_mask")
"""The paper's eight variants that a model is evaluated on."""

_OWN = re.compile(r"python:([\w.]+):([a-z][a-z0-9_]*)@([0-9]+)")
_REPLICATE = re.compile(r"(.+)_r([1-9][0-9]*)")


def name_of(entry: str) -> str:
    """The name of a variant, which names its folder, from an entry of a configuration.

    >>> name_of("python:my_variants:silhouette@1"), name_of("original")
    ('silhouette', 'original')
    """
    found = _OWN.fullmatch(entry)
    return found[2] if found else entry


def base_of(name: str) -> str:
    """The variant that a name, which may be a replicate's, belongs to.

    >>> base_of("mixed_rand_r2"), base_of("only_bg_t")
    ('mixed_rand', 'only_bg_t')
    """
    return split_replicate(name)[0]


def split_replicate(name: str) -> tuple[str, int]:
    """The variant and the number of the replicate that a name says: 0 for the first.

    >>> split_replicate("mixed_rand_r2"), split_replicate("original")
    (('mixed_rand', 2), ('original', 0))
    """
    found = _REPLICATE.fullmatch(name)
    return (found[1], int(found[2])) if found else (name, 0)


def with_replicates(variants: Iterable[str], replicates: int) -> tuple[str, ...]:
    """Names of variants with each mixed one followed by its further replicates.

    Args:
      variants: entries of a configuration.
      replicates: how many of each there are.

    >>> with_replicates(["original", "mixed_same"], 3)
    ('original', 'mixed_same', 'mixed_same_r1', 'mixed_same_r2')
    """
    names: list[str] = []
    for variant in variants:
        names.append(name_of(variant))
        if variant in (*MIXED, EXTERNAL):
            names += [f"{variant}_r{replicate}" for replicate in range(1, replicates)]
    return tuple(names)


def draws_of(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Sorts names of variants by the variant whose draws they are.

    Args:
      names: of variants, replicates among them.

    Returns:
      The names of each variant's draws, variants and draws in the order of the names.

    >>> draws_of(["original", "mixed_same", "mixed_same_r1"])
    {'original': ('original',), 'mixed_same': ('mixed_same', 'mixed_same_r1')}
    """
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        variant = base_of(name)
        found[variant] = (*found.get(variant, ()), name)
    return found


def is_picture(name: str) -> bool:
    """Whether a model is evaluated on a dataset's variant of this name: on all but the mask."""
    return name != "fg_mask"


def select_variants(names: Iterable[str]) -> tuple[str, ...]:
    """Checks names and specifications of variants, and puts them in order: the paper's, other
    known ones, then specifications by name. `all` stands for the paper's.

    >>> select_variants(["bg_blurred", "original"])
    ('original', 'bg_blurred')

    Raises:
      ValueError: an unknown name, a name that two would have, or none at all.
    """
    wanted = {each for name in names for each in (PAPER if name == "all" else (name,))}
    own = sorted((each for each in wanted if _OWN.fullmatch(each)), key=name_of)
    known = f"known: {', '.join(VARIANTS)}, python:MODULE:FUNCTION"
    unknown = sorted(wanted - set(VARIANTS) - set(own))
    if unknown:
        raise ValueError(f"unknown variant {unknown[0]!r}; {known}")
    if not wanted:
        raise ValueError(f"no variant named; {known}")
    taken = set(VARIANTS)
    for entry in own:
        name = name_of(entry)
        if name in taken or base_of(name) != name:
            raise ValueError(f"{entry}: the name {name!r} is taken; call the function otherwise")
        taken.add(name)
    return (*(name for name in VARIANTS if name in wanted), *own)
