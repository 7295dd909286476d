"""One image as a whole, for IN-9L and for scenes: decoded, resized and cropped, not cut apart.

Source: paper section 2 and appendix C. IN-9L holds all images of the 370 classes, with boxes or
without, so that of the filters only those of the picture itself apply.
"""

from __future__ import annotations

import dataclasses
import hashlib

from transforms.codec import TooManyPixelsError, UndecodableError, decode_source, too_narrow
from transforms.filters import Reason
from transforms.geometry import Pixels, ResizeCrop


@dataclasses.dataclass(frozen=True, eq=False)
class CroppedImage:
    """What became of a source image.

    Attributes:
      image: (S, S, 3) uint8, RGB, after Resize + CenterCrop; None if it was rejected.
      reason: None if it was accepted.
      detail: what exactly was wrong, for a reader; empty if accepted.
      width, height: native size in pixels, None if it could not be decoded.
    """

    image: Pixels | None = None
    reason: Reason | None = None
    detail: str = ""
    width: int | None = None
    height: int | None = None

    @property
    def digest(self) -> str | None:
        """Identifies the pixels; None if it was rejected."""
        return None if self.image is None else hashlib.sha256(self.image.tobytes()).hexdigest()[:16]


def crop_whole(
    image: bytes, *, resize: int, crop: int, interpolation: str, pad: bool = False
) -> CroppedImage:
    """Decodes, resizes and crops an image.

    Args:
      image: the image file's bytes.
      resize: shorter side after the resize, in pixels.
      crop: side of the centre crop, in pixels; at most `resize`.
      interpolation: one of `INTERPOLATIONS`.
      pad: as `ResizeCrop.for_size`.

    Returns:
      The picture, or the reason why there is none. Nothing in the bytes raises.

    Raises:
      ValueError: the crop is larger than the resize.
      KeyError: an unknown interpolation.
    """
    try:
        pixels = decode_source(image)
    except UndecodableError as error:
        return CroppedImage(reason=Reason.UNDECODABLE, detail=str(error))
    except TooManyPixelsError as error:
        return CroppedImage(reason=Reason.TOO_MANY_PIXELS, detail=str(error))
    height, width = pixels.shape[:2]
    # The size after the resize, before anything of that size is made.
    narrow = "" if pad else too_narrow(width, height, resize)
    if narrow:
        return CroppedImage(
            reason=Reason.TOO_MANY_PIXELS, detail=narrow, width=width, height=height
        )
    transform = ResizeCrop.for_size(
        native_width=width, native_height=height, resize=resize, crop=crop, pad=pad
    )
    return CroppedImage(image=transform.image(pixels, interpolation), width=width, height=height)
