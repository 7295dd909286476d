"""Scenes: pictures that serve as backgrounds as they are."""

from __future__ import annotations

from transforms.codec import TooManyPixelsError, decode_image, too_narrow
from transforms.geometry import Pixels, ResizeCrop


def cut_scene(image: bytes, *, resize: int, crop: int, interpolation: str, pad: bool) -> Pixels:
    """A picture of a scene, resized and cropped as images are.

    Args:
      image: the file's bytes.
      resize, crop, interpolation: as `make_layer`.
      pad: as `ResizeCrop.of`.

    Returns:
      (crop, crop, 3) uint8.

    Raises:
      UndecodableError: it is no picture.
      TooManyPixelsError: it has too many pixels, or would have when resized.
    """
    pixels = decode_image(image)
    height, width = pixels.shape[:2]
    narrow = "" if pad else too_narrow(width, height, resize)
    if narrow:
        raise TooManyPixelsError(narrow)
    transform = ResizeCrop.of(
        native_width=width, native_height=height, resize=resize, crop=crop, pad=pad
    )
    return transform.image(pixels, interpolation)
