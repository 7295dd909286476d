"""Tests that batches hold what the sets hold, whatever is read ahead or kept."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import BrokenPictureError
from pipeline.models.loader import Loader, PixelCache
from pipeline.storage.interface import InBackground
from transforms.codec import UndecodableError, decode_image, decode_into

SIDE = 4
PICTURE = SIDE * SIDE * 3


@dataclass
class Numbers:
    """Set of flat pictures, each filled with one number."""

    name: str
    numbers: list[int]
    table_size: int = 3
    reads: int = 0

    @property
    def count(self) -> int:
        return len(self.numbers)

    def tables(self, columns: tuple[str, ...]) -> Generator[pa.Table, None, None]:
        self.reads += bool(columns)
        for first in range(0, len(self.numbers), self.table_size):
            some = self.numbers[first : first + self.table_size]
            table = pa.table({"key": [str(n) for n in some], "image": [bytes([n]) for n in some]})
            yield table.select(["key", *columns])


class Decoder:
    """Decoder that counts its pictures; 255 stands for one that is broken."""

    def __init__(self) -> None:
        self.decoded = 0
        self._lock = threading.Lock()

    def __call__(self, data: bytes, out: np.ndarray) -> None:
        if data[0] == 255:
            raise UndecodableError("255")
        with self._lock:
            self.decoded += 1
        out[:] = data[0]


def shown(
    sets: list[Numbers],
    decoder: Decoder,
    cache: PixelCache,
    size: int = 4,
    ahead: int = 2,
    kind: str = "",
) -> list[tuple[str, list[int], list[int]]]:
    """Returns the name of the set, the keys, and the numbers in the pixels of each batch."""
    loader: Loader[Numbers] = Loader(
        decoder, SIDE, size, cache=cache, kind=kind, threads=2, ahead=ahead
    )
    results = []
    with contextlib.closing(loader.batches(sets)) as batches:
        for batch in batches:
            pixels = batch.pixels.reshape(len(batch.rows), -1)
            assert (pixels == pixels[:, :1]).all()
            keys = [int(key) for key in batch.rows["key"].to_pylist()]
            results.append((batch.pictures.name, keys, pixels[:, 0].tolist()))
            loader.hand_back(batch)
    return results


@given(
    st.lists(st.lists(st.integers(0, 254), max_size=9), max_size=6),
    *(st.integers(1, 5), st.integers(1, 5), st.integers(0, 3), st.integers(0, 20)),
)
def test_batches_are_cut_within_sets_and_kept_ones_are_the_same(
    lists: list[list[int]], size: int, table_size: int, ahead: int, room: int
) -> None:
    sets = [Numbers(f"set {i}", numbers, table_size) for i, numbers in enumerate(lists)]
    expected = [
        (
            pictures.name,
            pictures.numbers[first : first + size],
            pictures.numbers[first : first + size],
        )
        for pictures in sets
        for first in range(0, len(pictures.numbers), size)
    ]
    cache, decoder = PixelCache(room * PICTURE), Decoder()
    for _ in range(3):
        assert shown(sets, decoder, cache, size, ahead) == expected
    kept = total = 0
    for numbers in lists:
        total += len(numbers)
        kept += len(numbers) if kept + len(numbers) <= room else 0
    assert decoder.decoded == total + 2 * (total - kept)


def test_what_is_kept_is_not_read_again() -> None:
    pictures, cache = Numbers("a", [1, 2, 3]), PixelCache(3 * PICTURE)
    for _ in range(3):
        shown([pictures], Decoder(), cache)
    assert pictures.reads == 1
    nameless = Numbers("", [4])
    shown([nameless, nameless], Decoder(), PixelCache(100 * PICTURE))
    assert nameless.reads == 2


def test_a_broken_picture_is_named_and_its_set_is_not_kept() -> None:
    cache, broken = PixelCache(4 * PICTURE), Numbers("a", [1, 255, 3])
    for _ in range(2):
        with pytest.raises(BrokenPictureError) as raised:
            shown([broken], Decoder(), cache)
        assert raised.value.key == "255"
    # The space of the broken set is free again.
    intact = Numbers("b", [1, 2, 3, 4])
    for _ in range(2):
        shown([intact], Decoder(), cache)
    assert intact.reads == 1


def test_a_set_left_half_way_is_not_kept() -> None:
    cache, pictures = PixelCache(8 * PICTURE), Numbers("a", list(range(8)))
    for ahead in (0, 2):
        loader: Loader[Numbers] = Loader(
            Decoder(), SIDE, 4, cache=cache, kind="", threads=1, ahead=ahead
        )
        batches = loader.batches([pictures])
        next(batches)
        batches.close()
        assert "a" not in cache.sets
    shown([pictures], Decoder(), cache)
    assert "a" in cache.sets


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("numbers", [[1, 2, 3], [1, 2, 255]])
def test_only_what_is_kept_counts_in_the_budget(numbers: list[int], ahead: int) -> None:
    cache = PixelCache(3 * PICTURE)
    loader: Loader[Numbers] = Loader(
        Decoder(), SIDE, 3, cache=cache, kind="", threads=1, ahead=ahead
    )
    with (
        contextlib.closing(loader.batches([Numbers("a", numbers)])) as batches,
        contextlib.suppress(BrokenPictureError),
    ):
        next(batches)
    kept = "a" in cache.sets
    assert kept == (255 not in numbers)
    assert (cache.allocate((3, SIDE, SIDE, 3)) is None) == kept
    assert (cache.allocate((1, SIDE, SIDE, 3)) is None) == kept
    assert cache.allocate((4, SIDE, SIDE, 3)) is None


def test_what_runs_in_the_background_gives_its_items_its_error_and_ends() -> None:
    closed = []

    def items(fails: bool) -> Generator[int, None, None]:
        try:
            yield from range(5)
            if fails:
                raise OSError("no more")
        finally:
            closed.append(fails)

    with contextlib.closing(InBackground(items(False), 2)) as background:
        assert list(background) == [0, 1, 2, 3, 4]
    with (
        contextlib.closing(InBackground(items(True), 3)) as background,
        pytest.raises(OSError, match="no more"),
    ):
        list(background)
    # A generator that nothing refers to would be closed anyway.
    generator = items(False)
    InBackground(generator, 1).close()
    assert closed == [False, True, False]


@given(
    *(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(
        ["RGB JPEG", "L JPEG", "CMYK JPEG", "RGB PNG", "RGBA PNG", "P PNG", "RGB WEBP"]
    ),
    *(st.booleans(), st.integers(0, 2), st.integers(1, 100), st.integers(0, 2**32 - 1)),
)
def test_pixels_are_those_of_pillow(
    height: int, width: int, form: str, progressive: bool, subsampling: int, quality: int, seed: int
) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    mode, kind = form.split()
    options = {"quality": quality, "subsampling": subsampling, "progressive": progressive}
    buffer = io.BytesIO()
    picture = Image.fromarray(noise).convert(mode)
    picture.save(buffer, kind, **(options if kind == "JPEG" else {}))
    out = np.zeros((height, width, 3), np.uint8)
    decode_into(buffer.getvalue(), out)
    expected = np.asarray(Image.open(buffer).convert("RGB"))
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(decode_image(buffer.getvalue()), expected)
    for wrong in ((height + 1, width, 3), (height, width + 1, 3), (height, max(1, width - 1), 3)):
        if wrong != out.shape:
            with pytest.raises(UndecodableError):
                decode_into(buffer.getvalue(), np.zeros(wrong, np.uint8))
