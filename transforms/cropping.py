"""Decodes, resizes and crops whole images, for IN-9L and for scenes, without segmenting them.

Source: paper section 2 and appendix C. IN-9L holds all images of the 370 classes, with or without
boxes, so only the filters that need no box apply.
"""

from __future__ import annotations

import dataclasses
import hashlib

from transforms.codec import TooManyPixelsError, UndecodableError, check_narrow, decode_source
from transforms.filters import Reason
from transforms.geometry import Pixels, ResizeCrop


@dataclasses.dataclass(frozen=True, eq=False)
class CroppedImage:
    """The result of cropping a source image.

    Attributes:
      image: (S, S, 3) uint8, RGB, after Resize + CenterCrop; None if the image was rejected.
      reason: reason for the rejection; None if the image was accepted.
      detail: exact cause of the rejection, for people; empty if the image was accepted.
      width, height: native size in pixels, None if the image was not decoded.
    """

    image: Pixels | None = None
    reason: Reason | None = None
    detail: str = ""
    width: int | None = None
    height: int | None = None

    @property
    def digest(self) -> str | None:
        """First 16 hexadecimal digits of the pixels' SHA-256; None if the image was rejected."""
        return None if self.image is None else hashlib.sha256(self.image.tobytes()).hexdigest()[:16]


def crop_whole(
    image: bytes, *, resize: int, crop: int, interpolation: str, pad: bool = False
) -> CroppedImage:
    """Decodes an image, resizes it, and crops it.

    Args:
      image: the image file's bytes.
      resize: shorter side after the resize, in pixels.
      crop: side of the centre crop, in pixels; at most `resize`.
      interpolation: one of `INTERPOLATIONS`.
      pad: see `ResizeCrop.for_size`.

    Returns:
      The cropped image, or the reason for its rejection. Broken or hostile bytes lead to a
      rejection; they never raise an error.

    Raises:
      ValueError: the crop is larger than the resize, or below 1.
      KeyError: the interpolation is unknown.
      MemoryError: the picture does not fit into memory.
    """
    try:
        pixels = decode_source(image)
    except UndecodableError as error:
        return CroppedImage(reason=Reason.UNDECODABLE, detail=str(error))
    except TooManyPixelsError as error:
        return CroppedImage(reason=Reason.TOO_MANY_PIXELS, detail=str(error))
    height, width = pixels.shape[:2]
    # Checked before anything of the resized size is allocated.
    problem = "" if pad else check_narrow(width, height, resize)
    if problem:
        return CroppedImage(
            reason=Reason.TOO_MANY_PIXELS, detail=problem, width=width, height=height
        )
    transform = ResizeCrop.for_size(
        native_width=width, native_height=height, resize=resize, crop=crop, pad=pad
    )
    return CroppedImage(image=transform.image(pixels, interpolation), width=width, height=height)
