"""Tests decoding by the stated policy, and lossless encoding, run lengths of masks included."""

import io
import subprocess
import sys
from collections.abc import Callable

import fault_pictures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from transforms.annotations import AnnotationError, parse_annotation
from transforms.codec import (
    TooManyPixelsError,
    UndecodableError,
    decode_image,
    decode_into,
    decode_mask,
    decode_source,
    encode_jpeg,
    encode_mask,
    encode_png,
    open_picture,
)
from transforms.limits import MAX_ANNOTATION_BYTES, MAX_PICTURE_BYTES, Unread
from transforms.masks import MaskError, decode_runs, encode_runs, read_mask


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def ramp() -> np.ndarray:
    y, x = np.mgrid[:40, :60]
    return np.stack([x * 4, y * 6, (x + y) * 2], axis=2).astype(np.uint8)


def test_sixteen_bits_keep_the_upper_eight() -> None:
    values = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60) * 27
    decoded = decode_image(saved(Image.fromarray(values), "PNG"))
    np.testing.assert_array_equal(decoded[..., 0], values >> 8)


def test_exif_orientation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.fromarray(ramp()), "JPEG", exif=exif)
    assert decode_image(data).shape == (40, 60, 3)


def test_the_pixel_limit_is_inclusive() -> None:
    data = saved(Image.fromarray(ramp()), "PNG")
    assert decode_image(data, max_pixels=2400).shape == (40, 60, 3)
    with pytest.raises(TooManyPixelsError, match="2399"):
        decode_image(data, max_pixels=2399)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_picture_or_one_kind_of_error(data: bytes) -> None:
    with pytest.raises(UndecodableError):
        decode_image(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_pictures_are_refused(kind: str) -> None:
    data = saved(Image.fromarray(ramp()), kind)
    for length in range(0, len(data) - 20, 37):
        for decode in (decode_image, decode_mask, lambda cut: decode_into(cut, ramp())):
            with pytest.raises(UndecodableError):
                decode(data[:length])


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
def test_png_is_lossless(image: np.ndarray) -> None:
    np.testing.assert_array_equal(decode_image(encode_png(image)), image)


@given(arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_masks_are_lossless(mask: np.ndarray) -> None:
    for data in (encode_mask(mask), encode_png(mask.astype(np.uint8) * 255)):
        decoded = decode_mask(data)
        np.testing.assert_array_equal(decoded, mask)
        # Digests of layers cover bytes, so equal values are not enough.
        assert decoded.tobytes() == mask.tobytes()


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))),
    st.integers(1, 100),
)
def test_a_jpeg_has_the_bytes_that_pillow_makes(image: np.ndarray, quality: int) -> None:
    pillows = saved(Image.fromarray(image), "JPEG", quality=quality, subsampling=0)
    assert encode_jpeg(image, quality) == pillows


def jpegs() -> dict[str, bytes]:
    """Encodes a picture as the kinds of JPEG that people have."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8))
    ways = {
        "baseline": saved(image, "JPEG"),
        "progressive": saved(image, "JPEG", progressive=True),
        "grey": saved(image.convert("L"), "JPEG"),
        "CMYK": saved(image.convert("CMYK"), "JPEG"),
        "4:2:0": saved(image, "JPEG", subsampling=2),
        "restarts": saved(image, "JPEG", restart_marker_rows=1),
    }
    thumbnail = Image.Exif()
    thumbnail[0x927C] = ways["progressive"][:20_000]
    return {**ways, "thumbnail": saved(image, "JPEG", exif=thumbnail)}


@pytest.mark.parametrize("kind", jpegs())
def test_a_jpeg_that_was_cut_and_closed_again_is_refused(kind: str) -> None:
    """Checks what Pillow does not: it paints missing parts grey without an error."""
    data = jpegs()[kind]
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decode_source(data), expected)
    # Data after the end do not belong to the picture.
    assert np.array_equal(decode_source(data + b"more"), expected)
    for share in (0.1, 0.3, 0.5):
        lost = int(share * len(jpegs()["grey"]))
        cut = data[: len(data) - lost].rstrip(b"\xff") + b"\xff\xd9"
        if kind != "progressive":
            decode_image(cut)
        with pytest.raises(UndecodableError, match=r"premature end|truncated"):
            decode_source(cut)


@pytest.mark.parametrize("make", [fault_pictures.lossless_jpeg, fault_pictures.tall_chroma_jpeg])
def test_a_jpeg_that_simplejpeg_does_not_take_is_that_of_pillow(make: Callable[[], bytes]) -> None:
    data = make()
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    out = np.zeros_like(expected)
    decode_into(data, out)
    # In a process of its own, because a picture that is written behind the end of an array ends or
    # hangs the process at any later time.
    code = """
import sys
from transforms.codec import decode_source
data = sys.stdin.buffer.read()
for _ in range(20):
    pixels = decode_source(data)
sys.stdout.buffer.write(pixels.tobytes())
"""
    command = (sys.executable, "-c", code)
    done = subprocess.run(command, input=data, capture_output=True, timeout=60, check=True)
    assert done.stdout == expected.tobytes()
    for pixels in (out, decode_image(data)):
        assert np.array_equal(pixels, expected)
    cut = data[:-40] + b"\xff\xd9"
    with pytest.raises(UndecodableError, match="premature end"):
        decode_source(cut)


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded() -> None:
    data = saved(Image.fromarray(ramp()), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    scan = data[last:-2]
    few, many = (data[:-2] + scan * count + b"\xff\xd9" for count in (20, 200))
    decode_image(few)
    for decode in (decode_image, decode_mask):
        with pytest.raises(UndecodableError, match="scans"):
            decode(many)
    # Scans of a thumbnail do not belong to the picture.
    exif = Image.Exif()
    exif[0x927C] = scan * (50_000 // len(scan))
    decode_image(saved(Image.fromarray(ramp()), "JPEG", exif=exif))
    # Decoders ignore the marker TEM and fill bytes (0xFF), which are no length of a segment.
    hidden = data[:last] + b"\xff\x01\xff" + scan * 200 + b"\xff\xd9"
    assert len(scan) * 200 < 0xFFFF
    with pytest.raises(UndecodableError, match="scans"):
        decode_image(hidden)


def test_what_is_too_large_is_not_looked_at() -> None:
    for data in (bytes(MAX_PICTURE_BYTES + 1), Unread.from_size(10**12, MAX_PICTURE_BYTES)):
        for decode in (open_picture, decode_source, decode_mask):
            with pytest.raises(UndecodableError, match=f"bytes, more than .* {MAX_PICTURE_BYTES}"):
                decode(data)
        with pytest.raises(MaskError, match="bytes, more than"):
            read_mask(data)
    for data in (bytes(MAX_ANNOTATION_BYTES + 1), Unread.from_size(10**12, MAX_ANNOTATION_BYTES)):
        with pytest.raises(AnnotationError, match="bytes, more than"):
            parse_annotation(data)


SIDES = st.integers(1, 40)


@given(SIDES.flatmap(lambda side: arrays(np.bool_, (side, side))))
def test_runs_are_the_mask(mask: np.ndarray) -> None:
    runs = encode_runs(mask)
    assert (decode_runs(runs, len(mask)) == mask).all()
    with pytest.raises(MaskError):
        decode_runs(runs, len(mask) + 1)


@given(st.binary(max_size=60), SIDES)
def test_any_bytes_are_runs_or_an_error(data: bytes, side: int) -> None:
    try:
        mask = decode_runs(data, side)
    except MaskError:
        return
    assert mask.shape == (side, side)
