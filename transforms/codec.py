"""Decodes and encodes pictures, under one stated policy.

* Pixels are taken as stored. An EXIF orientation is ignored: boxes are annotated on the
  stored pixels, and the authors' script ignores it too.
* Everything becomes 8-bit RGB. Grey is repeated; CMYK is converted by Pillow, which
  honours Adobe's inversion; 16-bit values keep their upper 8 bits; alpha is dropped, not blended.
* The content decides the format, not the file name, because ImageNet holds a PNG named .JPEG.
* Only the formats in `FORMATS` are opened. Pillow would hand a PostScript file to Ghostscript,
  which executes it, and it supports some forty more formats that no data set uses.
* JPEG is written with 4:4:4 chroma, so that the edges of a composite stay sharp.
"""

import contextlib
import io
import re
import struct
import warnings
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from transforms.geometry import Mask, Pixels
from transforms.limits import MAX_PICTURE_BYTES, Unread

MAX_PIXELS = 50_000_000
"""Largest number of pixels of a picture that is decoded: slightly more than a camera's 8,160 x
6,120. The memory and time that segmenting takes grow with this number."""

MAX_SCANS = 64
"""Largest number of scans of a JPEG that is decoded. Encoders write one scan, or about ten in a
progressive file. A scan can cover the whole picture, so a small file with thousands of scans would
take minutes to decode."""

_MARKER = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")
"""A JPEG marker, except restart markers, which occur within a scan, and TEM (1), which decoders
ignore. None of these is followed by the length of a segment."""
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN = 0xD8, 0xD9, 0xDA
_SEQUENTIAL_FRAMES = (0xC0, 0xC1)
"""Markers of frames that may have one scan of all components."""
_JPEG_START = bytes([0xFF, _START_OF_IMAGE])
_LOSSLESS = re.compile(rb"\xff[\xc3\xc7\xcb\xcf]")
"""The beginning of the frame of a lossless JPEG."""
_REFUSALS = (ValueError, KeyError, RuntimeError)
"""Exceptions of simplejpeg. KeyError is an unusual chroma sampling, such as 4:4:1."""

_EXIF = re.compile(rb"(\xff\xe1..)Exif(?=\0\0)", re.DOTALL)
"""The beginning of an EXIF segment. Pillow would parse the segment to find the resolution. It has
up to 65,535 tags, and Pillow reads as many bytes as each tag claims, so a file of 800 kB could take
gigabytes of memory. That is why the name of the segment is changed before Pillow sees it."""

_MAX_READS_OF_HEAD, _MAX_READS = 10_000, 1_000_000
"""Largest number of read calls that Pillow may make to open a picture, and then to decode it. Each
comment, tag and chunk takes a few calls, and Pillow then copies all parts read so far, so a file of
20 MB can take minutes. Camera files take some hundred calls, a 50-megapixel PNG some ten thousand.
"""

_PNG_START, _PNG_SIZE = b"\x89PNG\r\n\x1a\n", struct.Struct(">16xII")
"""How a PNG begins: with its signature, and a chunk that begins with width and height."""

_MAX_READ_BYTES = 4_000_000_000
"""Largest number of bytes that Pillow may read to decode a picture. For each strip of a TIFF it
reads 64 kB, even if the strip is short, and it reads all ranges that tags claim, even if they
overlap."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats in which pictures, masks and scenes are opened, by Pillow's names. Cameras write JPEG
(which includes the MPO of phones), scanners and microscopes write TIFF with 16 bits, and the other
formats are common on the web."""

# As errors (`python -W error`), Pillow's warnings would reject pictures that it decodes.
warnings.filterwarnings("ignore", module=r"PIL\.")


class _Watched(io.BytesIO):
    """A file in memory that limits how much Pillow reads from it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.calls_left = _MAX_READS_OF_HEAD
        # Before the pixels, Pillow reads each byte at most once, after a peek at some of the bytes.
        self.bytes_left = 2 * len(data) + (1 << 20)

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.calls_left -= 1
        self.bytes_left -= len(data)
        if self.calls_left < 0 or self.bytes_left < 0:
            raise UndecodableError("it holds too much beside its pixels")
        return data


class UndecodableError(ValueError):
    """The bytes are not a complete picture of a known format."""


class TooManyPixelsError(ValueError):
    """The picture's header announces more pixels than the limit allows."""


def open_picture(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Opens a picture and reads its header only, so it finds no fault behind the header.

    Raises the errors of `decode_image`.
    """
    if isinstance(data, Unread):
        raise UndecodableError(data.decode())
    if len(data) > MAX_PICTURE_BYTES:
        raise UndecodableError(Unread.from_size(len(data), MAX_PICTURE_BYTES).decode())
    file = _Watched(_EXIF.sub(rb"\1exif", data) if data.startswith(_JPEG_START) else data)
    try:
        image = Image.open(file, formats=FORMATS)
    except (UndecodableError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise TooManyPixelsError(str(error)) from error
    except Exception as error:  # Pillow's plugins raise whatever the bytes provoke.
        raise UndecodableError(f"not a picture: {type(error).__name__}") from error
    _check_pixels(image.width, image.height, max_pixels)
    file.calls_left, file.bytes_left = _MAX_READS, _MAX_READ_BYTES
    return image


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise TooManyPixelsError(f"{width} x {height} pixels, more than the limit of {max_pixels}")


def check_narrow(width: int, height: int, resize: int) -> str:
    """Returns a message if the shorter side of `resize` would exceed the pixel limit; else ""."""
    if resize**2 * max(width, height) / min(width, height) <= MAX_PIXELS:
        return ""
    return f"{width} x {height} is too narrow: more than {MAX_PIXELS} pixels when resized"


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decodes a picture.

    Pillow reads the header. The pixels of a JPEG whose bytes hold one start of a scan are decoded
    by `simplejpeg.decode_jpeg`, in some 70 % of the time that Pillow takes, unless it is CMYK, is
    decoded with a warning, or is of a kind that simplejpeg does not take. Pillow decodes every
    other picture. The pixels are the same.

    Args:
      data: the file's bytes, in one of `FORMATS`.
      max_pixels: a larger picture is refused before it is decoded.

    Returns:
      (H, W, 3) uint8, RGB, converted by the policy at the top of this module.

    Raises:
      UndecodableError: the bytes are not a picture, or the picture is truncated, broken, larger
        than `MAX_PICTURE_BYTES`, holds too much metadata, has floating-point pixels, or is a JPEG
        of more than `MAX_SCANS` scans.
      TooManyPixelsError: the header announces more than `max_pixels`.
      MemoryError: the pixels do not fit into memory, which is not the picture's fault.
    """
    return _decode(data, max_pixels)[0]


def _decode(data: bytes, max_pixels: int) -> tuple[Pixels, bool]:
    """Returns a picture's pixels, and whether simplejpeg has decoded them and warned of nothing."""
    image = open_picture(data, max_pixels)
    if image.format == "JPEG" and _has_one_scan(data):
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        if _decode_one_scan(data, pixels):
            return pixels, True
        del pixels  # So that the memory is free for Pillow.
    return _decode_by_pillow(data, image), False


def _decode_by_pillow(data: bytes, image: Image.Image) -> Pixels:
    """Decodes an opened picture; `data` are its bytes."""
    if image.format in ("JPEG", "MPO") and (scans := _count_scans(data)) > MAX_SCANS:
        raise UndecodableError(f"a JPEG of {scans} scans or more, over the limit of {MAX_SCANS}")
    with _decoding_errors(image):
        if image.mode.startswith("I;16") or image.mode in ("I", "F"):
            return np.repeat(_eight_bits(np.asarray(image))[..., np.newaxis], 3, axis=2)
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def check_png(data: bytes) -> None:
    """Compares the chunks of a PNG with their checksums, as Pillow's decoder does not.

    Source: `PIL.Image.verify`. Raises UndecodableError if they differ.
    """
    with _decoding_errors(image := open_picture(data)):
        image.verify()


def decode_png(data: bytes) -> Pixels:
    """Decodes what `encode_png` encoded, by `cv2.imdecode`, which compares the checksums.

    Returns (H, W, 3) uint8 RGB, with the pixels of `decode_image`, in no more time. Raises
    UndecodableError or TooManyPixelsError, for its reasons; libpng prints a line of its own, too.
    """
    if len(data) < _PNG_SIZE.size or not data.startswith(_PNG_START):
        raise UndecodableError("not a PNG")
    width, height = _PNG_SIZE.unpack_from(data)
    _check_pixels(width, height, MAX_PIXELS)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise UndecodableError("broken PNG")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def decode_into(data: bytes, out: Pixels) -> None:
    """Decodes a picture into (H, W, 3) uint8, contiguous, with the same pixels as `decode_image`.

    A JPEG of one scan, such as `encode_jpeg` writes, is decoded straight into the array, without
    the checks of its metadata.

    Raises:
      UndecodableError: for the reasons of `decode_image`, or the picture has another size.
      MemoryError: for the reason of `decode_image`.
    """
    if _has_one_scan(data) and _decode_one_scan(data, out):
        return
    try:
        pixels = decode_image(data, max_pixels=out.shape[0] * out.shape[1])
    except TooManyPixelsError as error:
        raise UndecodableError(str(error)) from error
    if pixels.shape != out.shape:
        size, wanted = (" x ".join(map(str, shape[1::-1])) for shape in (pixels.shape, out.shape))
        raise UndecodableError(f"{size} pixels, not {wanted}")
    out[:] = pixels


def _has_one_scan(data: bytes) -> bool:
    """Returns whether the data are a JPEG whose first scan must be its only one, as in most files.

    It is, if the JPEG is sequential and the scan has all components: libjpeg refuses another.
    """
    components, position = -1, len(_JPEG_START)
    if not data.startswith(_JPEG_START):
        return False
    with contextlib.suppress(struct.error, IndexError):
        while (marker := data[position + 1]) != _START_OF_SCAN:
            (length,) = struct.unpack_from(">H", data, position + 2)
            if marker in _SEQUENTIAL_FRAMES:
                components = data[position + 9]
            position += 2 + length
        return data[position] == 0xFF and data[position + 4] == components
    return False


def _decode_one_scan(data: bytes, out: Pixels) -> bool:
    """Decodes a JPEG that `_has_one_scan` into `out`; returns whether it could.

    It could not if the JPEG is CMYK or flawed, has another size, or is of a kind that simplejpeg
    does not take.
    """
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        if (height, width) != out.shape[:2] or space not in ("YCbCr", "Gray", "RGB"):
            return False
        simplejpeg.decode_jpeg(data, "RGB", buffer=out, strict=True)
    except _REFUSALS:
        return False
    return True


def decode_source(data: bytes) -> Pixels:
    """Decodes a source picture; same as `decode_image`, but also refuses incomplete JPEGs.

    If a JPEG was cut short and an end marker was appended, libjpeg only warns, and paints the
    missing part grey.
    """
    pixels, is_unflawed = _decode(data, MAX_PIXELS)
    if not is_unflawed and data.startswith(_JPEG_START) and (fault := _cut_short(data)):
        raise UndecodableError(f"broken JPEG: {fault}")
    return pixels


def _cut_short(data: bytes) -> str:
    """Returns libjpeg-turbo's warning if a JPEG ends prematurely, else an empty text.

    This repeats the entropy decoding of the whole file, but produces pixels at an eighth of the
    size only. A lossless JPEG is decoded at its full size, because libjpeg-turbo does not scale it,
    and would write behind the end of simplejpeg's smaller array.
    """
    scale = {} if _LOSSLESS.search(data) else {"min_height": 1, "min_width": 1, "min_factor": 1}
    try:
        _, _, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except _REFUSALS:
        space = ""  # The decoder takes more kinds of chroma sampling than this function.
    colours = {"CMYK": "CMYK", "YCCK": "CMYK", "RGB": "RGB"}.get(space, "GRAY")
    try:
        simplejpeg.decode_jpeg(data, colours, **scale, strict=True)
    except _REFUSALS as error:
        return str(error) if "premature end" in str(error).lower() else ""
    return ""


def _count_scans(data: bytes) -> int:
    """Counts the scans of a JPEG's first picture, but stops at one more than the limit."""
    scans, position = 0, 0
    while scans <= MAX_SCANS and (match := _MARKER.search(data, position)):
        marker, position = match[1][0], match.end()
        if marker == _END_OF_IMAGE:
            break
        scans += marker == _START_OF_SCAN
        if marker != _START_OF_IMAGE:
            # Skips the segment, because it may hold a thumbnail with scans of its own.
            position += int.from_bytes(data[position : position + 2], "big")
    return scans


@contextlib.contextmanager
def _decoding_errors(image: Image.Image) -> Iterator[None]:
    """Turns every exception from decoding, except MemoryError, into UndecodableError."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # As in `open_picture`: a broken stream can raise anything.
        raise UndecodableError(f"broken {image.format}: {error}") from error


def _eight_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Keeps the upper 8 of 16 bits, whereas Pillow would clip every value above 255 to white.

    Values of more than 16 bits become white. Raises UndecodableError for floating-point values.
    """
    if values.dtype.kind == "f":
        raise UndecodableError("floating-point pixels have no stated white")
    return np.asarray(np.clip(values, 0, 0xFFFF) >> 8, np.uint8)


def encode_jpeg(image: Pixels, quality: int) -> bytes:
    """Encodes (H, W, 3) uint8 RGB as a baseline JPEG, quality 1 to 100, 4:4:4 chroma.

    The bytes are those that Pillow makes, which holds the interpreter meanwhile.
    """
    flags = {
        cv2.IMWRITE_JPEG_QUALITY: quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR: cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    }
    return _encode(".jpg", image, flags)


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Encodes (H, W, 3) uint8 RGB or (H, W) uint8 grey as a PNG, by `cv2.imencode`.

    Raises ValueError or cv2.error if OpenCV cannot encode the array.
    """
    return _encode(".png", image, {})


def _encode(suffix: str, image: NDArray[np.uint8], flags: dict[int, int]) -> bytes:
    stored = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    pairs = [number for pair in flags.items() for number in pair]
    is_encoded, encoded = cv2.imencode(suffix, stored, pairs)
    if not is_encoded:
        raise ValueError(f"OpenCV could not encode an array of shape {image.shape}")
    return encoded.tobytes()


def encode_mask(mask: Mask) -> bytes:
    """Encodes a (H, W) bool mask as a PNG of one bit per pixel, by `cv2.imencode`."""
    return _encode(".png", mask.view(np.uint8), {cv2.IMWRITE_PNG_BILEVEL: 1})


def decode_mask(data: bytes) -> Mask:
    """Decodes a mask picture: (H, W) bool, True where any channel is not 0 in 8-bit RGB.

    Each True is the byte 1 in memory, where Pillow has 255, so equal masks have equal bytes. Raises
    UndecodableError or TooManyPixelsError, for the reasons of `decode_image`.
    """
    image = open_picture(data)
    if image.mode == "1":
        with _decoding_errors(image):
            return np.asarray(np.asarray(image.convert("L")) != 0)
    red, green, blue = decode_image(data).transpose(2, 0, 1)
    # A tenth of the time of `any`.
    return np.asarray((red | green | blue) != 0)


def encode_npy(mask: Mask) -> bytes:
    """Encodes a (H, W) bool mask as a `.npy` file of uint8, 1 on the foreground."""
    buffer = io.BytesIO()
    np.save(buffer, mask.astype(np.uint8), allow_pickle=False)
    return buffer.getvalue()


def decode_npy(data: bytes) -> Mask:
    """Decodes a `.npy` file: (H, W) bool, True where any channel is not 0.

    Raises UndecodableError unless it is a complete array of numbers in two or three dimensions.
    """
    file = io.BytesIO(data)
    try:
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[np.lib.format.read_magic(file)]
        shape, _, dtype = read_header(file)
    except Exception as error:  # NumPy evaluates the header, which raises whatever it provokes.
        raise UndecodableError(f"broken NumPy file: {type(error).__name__}") from error
    # The size is checked first, because loading allocates whatever the header claims.
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if dtype.kind not in "biuf" or size != len(data) - file.tell():
        raise UndecodableError("broken NumPy file: its header does not fit its content")
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (TypeError, ValueError) as error:
        raise UndecodableError(f"broken NumPy file: {type(error).__name__}") from error
    if array.ndim not in (2, 3):
        raise UndecodableError(f"a mask of {array.ndim} dimensions")
    return np.asarray(array != 0 if array.ndim == 2 else (array != 0).any(axis=2))
