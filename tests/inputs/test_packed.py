"""Tests that packed objects come out as they went in, and what memory they take."""

import tracemalloc
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from pipeline.inputs.location import Location
from pipeline.inputs.packed import Packed
from pipeline.inputs.source_images import KeyedFile, SourceImage

# With lone surrogates, as in file names that are no UTF-8.
TEXT = st.text(st.sampled_from("a/\0\1\udcffÿ."), max_size=6)
MAYBE = st.none() | TEXT
LOCATION = st.builds(Location, TEXT, st.none() | st.tuples(st.integers(), st.integers()))


@given(
    st.lists(
        st.builds(
            SourceImage, TEXT, LOCATION, TEXT, TEXT, st.integers(-1, 9), st.none() | LOCATION, MAYBE
        )
        | st.builds(KeyedFile, TEXT, TEXT, LOCATION, MAYBE, st.none() | st.integers(0, 1 << 40))
    )
)
def test_objects_come_out_as_they_went_in(items: list[object]) -> None:
    packed = Packed(iter(items))
    assert [*packed] == [packed[number] for number in range(len(packed))] == items


def test_a_listed_image_takes_a_hundred_bytes() -> None:
    def images() -> Iterator[SourceImage]:
        for number in range(20_000):
            wnid = f"n{number // 40:08d}"
            key = f"{wnid}_{number}"
            name = f"train/{wnid}/{key}.JPEG"
            box = Location(f"/data/imagenet/Annotations/CLS-LOC/train/{wnid}/{key}.xml")
            picture = Location(f"/data/imagenet/{name}")
            yield SourceImage(key, picture, name, wnid, number % 9, box)

    tracemalloc.start()
    packed = Packed(images())
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert size < 100 * len(packed)
    assert packed[12_345] == [*images()][12_345]
