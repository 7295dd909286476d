"""Tests the same images in every shape of input, and inputs that are not what they seem."""

import hashlib
import io
import itertools
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Mapping, Sequence
from hashlib import md5
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from gcs import BUCKET
from PIL import Image
from runs import ONE, QUICK, index_of, keys, manifest_of, run_here, stamps
from shapes import SHAPES, split_of, tar_bytes

from pipeline.dataset.config import SegmentConfig
from pipeline.errors import UsageError
from pipeline.generate.cut_source import Cutter, SourceBytes
from pipeline.inputs.layout import find_layout, list_images
from pipeline.inputs.location import Location, read_location, reads_ahead
from pipeline.inputs.source_images import Checksums, Content, SourceImage
from pipeline.storage.store import Store
from transforms.annotations import (
    Annotation,
    AnnotationError,
    Box,
    parse_annotation,
    write_annotation,
)
from transforms.filters import Reason
from transforms.taxonomy import imagenet9

Listed = tuple[Sequence[SourceImage], Mapping[str, int], Mapping[str, int]]


def listed(root: Path | str, split: str = "val", **options: Any) -> Listed:
    return list_images(find_layout(str(root), None, split, **options), imagenet9())


def contents(listing: Listed) -> dict[str, tuple[object, ...]]:
    """Maps the key of each image to what decides its fate: class, pixels, boxes."""
    by_key = {}
    for image in listing[0]:
        assert image.annotation is not None
        annotation = parse_annotation(read_location(image.annotation))
        digest = hashlib.sha256(read_location(image.location)).hexdigest()
        by_key[image.key] = (image.wnid, image.label, digest, annotation.boxes)
    assert len(by_key) == len(listing[0])
    return by_key


def identities_of(output: Path) -> dict[str, str]:
    """Returns the digests that identify the images of a dataset, by key."""
    records = pyarrow.dataset.dataset(sorted(map(str, output.glob("layers/*.parquet"))))
    rows = records.to_table(columns=["key", "source_digest"]).to_pylist()
    return {row["key"]: row["source_digest"] for row in rows}


def test_of_images_with_one_key_the_lowest_md5_is_taken(tiny_input: Path, tmp_path: Path) -> None:
    """Checks that neither the names of the images nor the number of shards matters."""
    first, *_, last = sorted(tiny_input.glob("val/*/*.JPEG"))
    low, high = sorted((first.read_bytes(), last.read_bytes()), key=lambda d: md5(d).hexdigest())
    for number, datas in enumerate(((low, high), (high, low))):
        source = tmp_path / f"{number}"
        for folder, data in zip(("a", "b"), datas, strict=True):
            (source / folder).mkdir(parents=True)
            (source / folder / "same.JPEG").write_bytes(data)
        rows = [f"{name}/same.JPEG,{first.parent.name},1,1,9,9" for name in ("a", "b")]
        (source / "input_table.csv").write_text(
            "\n".join(["image,class,xmin,ymin,xmax,ymax", *rows, ""])
        )
        output = tmp_path / f"out{number}"
        run_here("generate", "--input", source, "--output", output, "--segmenter", "box", *ONE,
            "--variants", "original", "--image_size", 32, *keys(resize=32))  # fmt: skip
        index = index_of(output)
        accepted, other = "ab" if number == 0 else "ba"
        assert [(row["path"][0], row["status"] == "duplicate_key") for row in index] == [
            (accepted, False),
            (other, True),
        ]
    assert manifest_of(tmp_path / "out0")["fingerprint"] == manifest_of(output)["fingerprint"]


def test_a_tar_that_was_copied_makes_no_work(tiny_input: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "tars", tmp_path / "out"
    source.mkdir()
    late = sorted(tiny_input.glob("val/*/*.JPEG"))[-1]
    aside = shutil.move(late, tmp_path / late.name)
    SHAPES["val_tar"](tiny_input, source)
    command = ("generate", "--input", source, "--output", output, "--layers", "drop", *QUICK)
    run_here(*command)
    before = stamps(output)
    os.utime(source / "ILSVRC2012_img_val.tar", (1, 1))
    assert "nothing to do" in run_here(*command).out
    assert stamps(output) == before
    shutil.move(aside, late)
    SHAPES["val_tar"](tiny_input, source)
    # Without layers, all images are cut again, now from the tar that has changed.
    run_here(*command)
    index = index_of(output)
    assert {row["path"].rpartition("/")[0] for row in index} == {"ILSVRC2012_img_val.tar"}
    assert len(index) == 6


@pytest.fixture(scope="module")
def bucket(server: str) -> str:
    """Bucket of a real object store."""
    return f"gs://{BUCKET}"


@pytest.mark.parametrize("shape", SHAPES)
def test_all_shapes_hold_the_same_images_here_and_in_object_storage(
    bucket: str, small_sample: Path, one_worker: Path, tmp_path: Path, shape: str
) -> None:
    SHAPES[shape](small_sample, tmp_path)
    here, remote = Store(str(tmp_path)), Store(f"{bucket}/{shape}")
    here.copy_into(remote, [(path, path) for path in here.walk("")])
    listing = listed(remote.root, split_of(shape))
    expected = contents(listed(small_sample))
    assert contents(listed(tmp_path, split_of(shape))) == contents(listing) == expected
    first = Checksums(Store(str(tmp_path / "memory")), "all", 0)
    cutter = Cutter(SegmentConfig())
    identities = [cutter.identify(image, first.identify) for image in listing[0]]
    found = zip(listing[0], identities, strict=True)
    digests = {image.key: known.digest for image, known in found if known}
    assert digests == identities_of(one_worker)
    first.save()
    # Whether an image has changed is known without downloading it again.
    again = Checksums(Store(str(tmp_path / "memory")), "all", 0)
    known = [cutter.identify(image, again.known) for image in listing[0]]
    assert known == identities
    for image in listing[0]:
        assert reads_ahead([image.location]) > 1
        assert image.md5 or image.stamp
        assert image.annotation_md5 or (image.annotation and image.annotation.text)


def test_of_several_layouts_the_named_one_is_read(small_sample: Path, tmp_path: Path) -> None:
    several = tmp_path / "several"
    several.mkdir()
    for shape in ("kaggle_table", "val_tar", "parquet", "table_csv"):
        SHAPES[shape](small_sample, several)
    shutil.copytree(small_sample / "val", several / "val")
    for named, kind, images in (
        ("", "input table", "."),
        ("val", "folder", "val"),
        ("ILSVRC", "folder", "ILSVRC/Data/CLS-LOC/val"),
        ("ILSVRC2012_img_val.tar", "tar", "."),
        ("data", "parquet", "data"),
    ):
        layout = find_layout(str(several / named), None, "val")
        assert (layout.kind, Path(layout.images)) == (kind, several / images)
        assert len(listed(several / named)[0]) == 18


def test_the_file_itself_and_boxes_from_elsewhere(small_sample: Path, tmp_path: Path) -> None:
    roots = {shape: tmp_path / shape for shape in ("val_tar", "kaggle_table")}
    for shape, root in roots.items():
        root.mkdir()
        SHAPES[shape](small_sample, root)
    tar, boxes = roots["val_tar"] / "ILSVRC2012_img_val.tar", roots["kaggle_table"]
    for named in (boxes, boxes / "LOC_val_solution.csv", small_sample / "Annotations"):
        layout = find_layout(str(tar), str(named), "val")
        assert contents(list_images(layout, imagenet9())) == contents(listed(small_sample))
    # The split's own folder has them beside it.
    assert contents(listed(small_sample / "val")) == contents(listed(small_sample))
    # Unpacked files take precedence over the archives beside them.
    shutil.copytree(small_sample, roots["val_tar"], dirs_exist_ok=True)
    assert find_layout(str(roots["val_tar"]), None, "val").kind == "folder"


def link(name: str, target: str, kind: bytes, **headers: str) -> Callable[[tarfile.TarFile], None]:
    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.pax_headers = kind, target, headers
        tar.addfile(info)

    return add


@pytest.mark.parametrize(
    ("add", "why"),
    [
        (link("b.JPEG", "/etc/passwd", tarfile.SYMTYPE), "a link"),
        (link("b.JPEG", "a.JPEG", tarfile.LNKTYPE), "a link"),
        (link("b.JPEG", "", tarfile.CHRTYPE), "neither a plain file nor a folder"),
        (link("b.JPEG", "", tarfile.FIFOTYPE), "neither a plain file nor a folder"),
        (link("../b.JPEG", "", tarfile.REGTYPE), "outside it"),
        (link("val/../../b.JPEG", "", tarfile.REGTYPE), "outside it"),
        (link("/etc/b.JPEG", "", tarfile.REGTYPE), "at an absolute path"),
        (link("C:\\b.JPEG", "", tarfile.REGTYPE), "at an absolute path"),
        (link("b.JPEG", "", tarfile.REGTYPE, path="../b.JPEG"), "outside it"),
    ],
)
def test_archives_that_reach_out_are_refused(
    tmp_path: Path, add: Callable[[tarfile.TarFile], None], why: str
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("a.JPEG")
        tar.addfile(info)
        add(tar)
    inner = tar_bytes([("n02085620.tar", buffer.getvalue())])
    boxes = tar_bytes([("val/a.xml", b"<annotation/>")])
    for split, data in (("val", buffer.getvalue()), ("train", inner)):
        (tmp_path / f"ILSVRC2012_img_{split}.tar").write_bytes(data)
        (tmp_path / f"ILSVRC2012_bbox_{split}.tar").write_bytes(boxes)
        with pytest.raises(UsageError, match=f"is refused: its member .* is {why}"):
            listed(tmp_path, split)
    tar_with_boxes = tmp_path / "ILSVRC2012_bbox_val.tar"
    tar_with_boxes.write_bytes(buffer.getvalue())
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(tar_bytes([("a.JPEG", b"")]))
    with pytest.raises(UsageError, match="is refused"):
        listed(tmp_path)


NOT_WHOLE, DAMAGED = "is not a whole tar archive", "is damaged or not complete"


def inner_without_end(data: bytes, last: tarfile.TarInfo) -> bytes:
    end = last.offset_data + last.size
    return data[: end - 10240] + b"x" * 10240 + data[end:]


@pytest.mark.parametrize(
    ("split", "kind", "change", "why"),
    [
        ("val", "img", lambda data, last: data[: last.offset_data + 100], NOT_WHOLE),
        ("val", "img", lambda data, last: data[: last.offset], DAMAGED),
        ("val", "img", lambda data, last: data[: last.offset] + b"x" * 512, DAMAGED),
        ("val", "img", lambda *_: b"", NOT_WHOLE),
        ("val", "img", lambda *_: b"<html>404</html>", NOT_WHOLE),
        ("val", "bbox", lambda data, _: data[: len(data) // 2], NOT_WHOLE),
        ("val", "bbox", lambda data, _: data[:100] + b"xxxx" + data[104:], NOT_WHOLE),
        ("val", "bbox", lambda *_: tar_bytes([("a.txt", b"")], "w:gz"), "holds no annotations"),
        ("train", "img", lambda *_: tar_bytes([("n1.tar.gz", b"\x1f\x8b")]), "gz is compressed"),
        ("train", "img", lambda *_: tar_bytes([("n1.tar.gz", b"<html>")]), "is not a .* '<html>'"),
        ("train", "img", inner_without_end, r"/n\d+.tar is (damaged|not a whole)"),
    ],
)
def test_a_broken_archive_is_named(
    split: str, kind: str, change: Any, why: str, small_sample: Path, tmp_path: Path
) -> None:
    SHAPES[f"{split}_tar"](small_sample, tmp_path)
    (path,) = tmp_path.glob(f"*_{kind}_*")
    with tarfile.open(path) as tar:
        path.write_bytes(change(path.read_bytes(), tar.getmembers()[-1]))
    with pytest.raises(UsageError, match=why) as caught:
        listed(tmp_path, split)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_of_a_subset_are_not_taken_for_imagenets(tmp_path: Path) -> None:
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n")
    row = {"image": {"bytes": b"", "path": "ILSVRC2012_val_00000001_n02085620.JPEG"}, "label": 1}

    def written(names: list[str]) -> Listed:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        meta = json.dumps({"info": {"features": features}})
        table = pa.Table.from_pylist([row]).replace_schema_metadata({"huggingface": meta})
        pq.write_table(table, tmp_path / "val.parquet")
        return listed(tmp_path)

    with pytest.raises(UsageError, match="labels of 2 classes that are no WordNet ids"):
        written(["tench", "dog"])
    (image,) = written(["n01440764", "n02085620"])[0]
    assert (image.key, image.wnid, image.label) == ("ILSVRC2012_val_00000001", "n02085620", 0)
    (image,) = written([f"class {number}" for number in range(1000)])[0]
    assert image.wnid == "n01443537"


def test_places_are_lines_that_say_where_bytes_lie(tmp_path: Path) -> None:
    path = str(tmp_path / "a file: with, colons")
    Path(path).write_bytes(b"0123456789")
    assert read_location(Location(path)) == b"0123456789"
    assert read_location(Location(path, (2, 3))) == b"234"
    assert read_location(Location(path, (2, 0))) == b""
    assert read_location(Location(text='{"a": 1}')) == b'{"a": 1}'
    with pytest.raises(OSError, match="ends before"):
        read_location(Location(path, (8, 3)))
    with pytest.raises(FileNotFoundError):
        read_location(Location(f"{path}s", (8, 3)))
    for location in (Location(path, (2, 3)), Location(text="part:1"), Location(path)):
        assert Location.parse(location.line) == location
    values = [b"a", None, b"c", *(bytes([n]) * 9 for n in range(40))]
    table = pa.Table.from_pylist([{"image": {"bytes": value}} for value in values])
    pq.write_table(table, path, row_group_size=30)
    for number, value in enumerate(values):
        location = Location(path, row=(number // 30, number % 30, "image.bytes"))
        assert Location.parse(location.line) == location
        assert read_location(location) == (value or b"")
    with pytest.raises(OSError, match="no row 30"):
        read_location(Location(path, row=(0, 30, "image.bytes")))


def test_a_part_is_known_by_its_content(tmp_path: Path) -> None:
    store, file = Store(str(tmp_path / "out")), tmp_path / "file"
    file.write_bytes(b"0123456789")
    spans = ((0, 4), (4, 4))
    places = [Content(Location(str(file), span), bytes.decode) for span in spans]
    checksums = Checksums(store, "val", 0)
    digests = [checksums.identify(part) for part in places]
    assert digests == [(md5(data).hexdigest(), data.decode()) for data in (b"0123", b"4567")]
    checksums.save()
    known = Checksums(store, "val", 0)
    assert [known.known(part) for part in places] == digests
    file.write_bytes(b"01234567xx")
    os.utime(file, (9, 9))
    # A job looks at a file only once; the next job sees that it has changed.
    assert known.identify(places[0]) == digests[0]
    later = Checksums(store, "val", 0)
    assert later.known(places[0]) is None
    assert later.must_have_changed(places[0])
    assert [later.identify(part) for part in places] == digests


@pytest.mark.parametrize(
    ("moment", "others", "span"),
    [
        *itertools.product(
            ("before", "after"), (b"a picture, and more", b"a pic", b"A PICTURE"), (None,)
        ),
        # A member of an archive.
        *itertools.product(("before", "after"), (b"A PICTURE",), ((2, 3),)),
        # Restored before the read is over, only another size gives a file away.
        *itertools.product(("during",), (b"a picture, and more", b"a pic"), (None,)),
    ],
)
def test_what_changes_while_it_is_read_is_no_content(
    moment: str,
    others: bytes,
    span: tuple[int, int] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Annotations and masks are read by the same function, in `read_source` of segment.py."""
    store, file = Store(str(tmp_path / "out")), tmp_path / "file"
    content = Content(Location(str(file), span))

    def put(content: bytes, time: int) -> None:
        file.write_bytes(content)
        os.utime(file, (time, time))

    def read(location: Location) -> bytes:
        if moment == "after":
            return (read_location(location), put(others, 2))[0]
        put(others, 2)
        data = read_location(location)
        if moment == "during":
            put(b"a picture", 1)
        return data

    put(b"a picture", 1)
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.inputs.source_images.read_location", read)
        checksums = Checksums(store, "val", 0)
        with pytest.raises(OSError, match=r"file.* has changed while it was read"):
            checksums.identify(content)
        checksums.save()
    put(b"a picture", 1)
    again = Checksums(store, "val", 0)
    whole = b"a picture" if span is None else b"pic"
    assert again.identify(content).md5 == md5(whole).hexdigest()
    # The layers of a picture are known by its digest, which comes from an earlier read.
    put(others, 2)
    with pytest.raises(OSError, match=r"file.* has changed while it was read"):
        again.read(content)


def test_an_object_is_what_its_listing_told(bucket: str) -> None:
    store = Store(f"{bucket}/changing")
    store.write("a.JPEG", b"a picture")
    path = store.path("a.JPEG")
    told = store.files.info(path)
    assert told is not None
    store.write("a.JPEG", b"A PICTURE")
    span = Location(path, (2, 3))
    for part in (Content(Location(path), None, told.md5), Content(span, None, None, told.md5)):
        with pytest.raises(OSError, match="has changed while it was read"):
            Checksums(store, "val", 0).read(part)


def test_a_picture_that_is_corrupted_on_the_way_is_not_rejected(bucket: str) -> None:
    store = Store(bucket)
    store.write("corrupted.tar", b"__junk__")
    location = Location(store.path("corrupted.tar"), (2, 4))
    boxes = write_annotation(Annotation(None, None, (Box(1, 2, 30, 40),), None)).encode()
    cutter = Cutter(SegmentConfig())
    (cut,) = cutter.cut(SourceBytes(b"junk", boxes, location=location))
    assert cut.reason is Reason.UNDECODABLE
    for each in (cutter, Cutter(SegmentConfig(selection="in9l"))):
        with pytest.raises(OSError, match=r"corrupted\.tar, 4 bytes at 2 has changed"):
            list(each.cut(SourceBytes(b"punk", boxes, location=location)))


def test_an_annotation_counts_as_what_it_says_of_its_picture(
    tiny_input: Path, tmp_path: Path
) -> None:
    path = next(tiny_input.glob("val/*/*.JPEG"))
    with Image.open(path) as picture:
        width, height = picture.size
    checksums = Checksums(Store(str(tmp_path)), "val", 0)

    def digest(*size: int | None, ymax: int = 40, wnid: str | None = None) -> str:
        location = Location(text=write_annotation(Annotation(*size, (Box(1, 2, 30, ymax),), wnid)))
        image = SourceImage("a", Location(str(path)), "", "n02085620", 0, location)
        identity = Cutter(SegmentConfig()).identify(image, checksums.identify)
        assert identity is not None
        return identity.digest

    expected = digest(width, height)
    # A missing size means the picture's, and the class comes from the image.
    assert digest(None, None) == digest(width, None) == digest(width, height, wnid="n1") == expected
    sizes = ((width + 1, height), (width, height + 1))
    others = [*(digest(*size) for size in sizes), digest(width, height, ymax=41)]
    assert len({expected, *others}) == 4


def test_what_is_wrong_with_an_annotation_is_kept() -> None:
    for boxes in ((), (Box(1, 2, 3, 4), Box(5, 6, 7, 8))):
        for size in ((None, None), (20, 10)):
            annotation = Annotation(*size, boxes, "n02085620")
            assert parse_annotation(write_annotation(annotation).encode()) == annotation
    with pytest.raises(AnnotationError, match="no <size>"):
        parse_annotation(write_annotation(AnnotationError("no <size>")).encode())
    hostile = ['{"boxes": [[1, 2, 3]]}', '{"boxes": 1}', "{", "{}", '{"boxes": [[1, 2, 3, "x"]]}',
               '{"boxes": [[1, 2, 3, Infinity]]}', '{"a":' * 100_000]  # fmt: skip
    for text in hostile:
        with pytest.raises(AnnotationError):
            parse_annotation(text.encode())
