"""Tests images and boxes in folders, archives and tables, and packed in memory."""

import re
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gcs import BUCKET, object_store
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import listed, tar_bytes

from pipeline.errors import UsageError
from pipeline.generate.cut_source import reject_by_name
from pipeline.inputs.annotations import annotated_wnid, index_annotations
from pipeline.inputs.archives import members, stream
from pipeline.inputs.imagenet import ImageFolder, ImagenetTars, files_in
from pipeline.inputs.input_format import find_files, has_boxes_by_name, has_images_by_name
from pipeline.inputs.layout import find_layout
from pipeline.inputs.location import NOWHERE, Location, read_location
from pipeline.inputs.source_images import (
    FileIndex,
    KeyedFile,
    Packed,
    SourceImage,
    stamp_of,
    wnid_of_label,
)
from pipeline.inputs.tables import HubParquet, holds_pictures
from pipeline.inputs.webdataset import WebDataset
from pipeline.storage.store import Store
from transforms.annotations import AnnotationError, Box, parse_annotation
from transforms.filters import Reason
from transforms.taxonomy import Taxonomy, imagenet9

Files = list[tuple[str, bytes]]
CUPS = Taxonomy(("all",), ("0", "cup"), (0, 0), ("zero", "cup"))
NAMES = st.from_regex(r"[a-z]{1,5}(/[a-z]{1,5})?\.JPEG", fullmatch=True)
MEMBERS = st.lists(st.tuples(NAMES, st.binary(max_size=600)), max_size=5, unique_by=lambda f: f[0])
BOXES = b'{"wnid": "cup", "label": 0, "boxes": [[1, 2, 3, 4]], "width": 9}'
SAMPLES = [("a.JPG", b"1"), ("a.cls", b"0"), ("a.json", BOXES), ("b/a.png", b"2"),
           ("b/a.cls", b"cup\n"), ("b/a.xml", b"<no"), ("b/a.json", b'{"boxes": [], "label": 0}'),
           ("c.jpg", b"3"), ("c.json", b'{"label": 1}'), ("d", b""), (".d.jpg", b"")]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("containers")


def seen(images: Iterable[SourceImage | None]) -> list[tuple[str, str, str, bytes] | None]:
    """Lists name, key, class and bytes of each image, and None for each other file."""
    return [i and (i.name, i.key, i.wnid, read_location(i.location)) for i in images]


@settings(max_examples=30)
@given(MEMBERS)
def test_a_member_is_read_without_unpacking(root: Path, files: Files) -> None:
    path, dotted = root / "members.tar", [(f"./{name}", data) for name, data in files]
    path.write_bytes(tar_bytes([("before", b"x"), ("in.tar", tar_bytes(dotted)), ("after", b"")]))
    inside = [member for member, _ in members(str(path))][1]
    contents = [(member, read(9999)) for member, read in members(str(path), inside)]
    assert [(member.name, data) for member, data in contents] == files
    assert [read_location(member.location) for member, _ in contents] == [data for _, data in files]
    everything = [("before", b"x"), *files, ("after", b"")]
    assert list(stream(str(path))) == everything
    path.write_bytes(tar_bytes([("in.tgz", tar_bytes(everything, "w:gz"))], "w:gz"))
    assert list(stream(str(path))) == everything


def test_an_inner_archive_ends_where_its_member_does(tmp_path: Path) -> None:
    path, endless = tmp_path / "t.tar", tar_bytes([("a.JPEG", b"1")])[:1024]
    path.write_bytes(tar_bytes([("in.tar", endless), ("b.JPEG", b"2")]))
    with pytest.raises(UsageError, match=r"t.tar/in.tar is damaged or not complete"):
        list(members(str(path), next(members(str(path)))[0]))


def test_folders_or_inner_archives_tell_the_classes_of_a_tar(tmp_path: Path) -> None:
    known = tar_bytes([("a.JPEG", b"a"), ("notes.txt", b""), (".git/a.JPEG", b"")])
    own = tar_bytes([("b.b.PNG", b"b"), ("n01440764/c.jpg", b"c")])
    flat = [("cup/e.JPEG", b"e"), ("f.JPEG", b"f"), ("readme", b"")]
    inner = [("n02085620.tar", known), ("._n02085620.tar", b"x"), ("cup.tar", own)]
    (tmp_path / "t.tar").write_bytes(tar_bytes([*inner, *flat]))
    assert seen(listed(ImagenetTars(), tmp_path, "t.tar", taxonomy=CUPS)) == [
        ("t.tar/cup/e.JPEG", "e", "cup", b"e"), ("t.tar/f.JPEG", "f", "", b"f"), None,
        ("t.tar/n02085620.tar/a.JPEG", "a", "n02085620", b"a"), None,
        ("t.tar/cup.tar/b.b.PNG", "b.b", "cup", b"b"),
        ("t.tar/cup.tar/n01440764/c.jpg", "c", "n01440764", b"c"),
    ]  # fmt: skip


@given(st.permutations(SAMPLES))
def test_members_of_a_sample_may_come_in_any_order(root: Path, files: Files) -> None:
    (root / "val.tar").write_bytes(tar_bytes(files))
    images = listed(WebDataset(), root, "val.tar", taxonomy=CUPS)
    assert images.count(None) == 1
    ordered = sorted((image for image in images if image), key=lambda image: image.name)
    assert seen(iter(ordered)) == [("val.tar/a.JPG", "a", "cup", b"1"),
                                 ("val.tar/b/a.png", "a", "cup", b"2"),
                                 ("val.tar/c.jpg", "c", "cup", b"3")]  # fmt: skip
    boxed, broken, bare = (image.annotation for image in ordered)
    annotation = parse_annotation(read_location(boxed or NOWHERE))
    assert (annotation.width, annotation.boxes) == (9, (Box(1, 2, 3, 4),))
    with pytest.raises(AnnotationError, match="not a readable XML"):
        parse_annotation(read_location(broken or NOWHERE))
    assert bare is None


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ([("a.jpg", b"1"), ("a.json", b"[]"), ("a.cls", b"cup")], "its .json is not a JSON object"),
        ([("a.jpg", b"1"), ("a.json", b"{"), ("a.cls", b"cup")], "its .json is not a JSON object"),
        ([("a.jpg", b"1"), ("a.json", b" " * 10_000_001)], "its .json has 10000001 bytes, more"),
        ([("a.jpg", b"1"), ("a.cls", b" " * 10_000_001)], "its .cls has 10000001 bytes, more"),
        ([("a.jpg", b"1"), ("a.cls", b"7")], "it is of class '7': expected one of the 2 classes"),
        ([("a.jpg", b"1"), ("a.json", b'{"label": "ox"}')], "it is of class 'ox': expected one"),
    ],
)
def test_a_member_that_is_no_class_or_object_concerns_its_sample(
    files: Files, fault: str, tmp_path: Path
) -> None:
    path = tmp_path / "val.tar"
    path.write_bytes(tar_bytes([*files, ("b.jpg", b"2"), ("b.cls", b"cup")]))
    faulty, good = listed(WebDataset(), tmp_path, "val.tar", taxonomy=CUPS)
    assert faulty is not None
    assert good is not None
    assert (faulty.wnid, good.wnid, good.fault) == ("", "cup", "")
    reason, detail = reject_by_name(faulty, None) or (None, "")
    assert (reason, detail[: len(fault)]) == (Reason.UNREADABLE_ANNOTATION, fault)
    # Shards of which no sample can be used are a mistake that concerns all of them.
    path.write_bytes(tar_bytes(files))
    with pytest.raises(UsageError, match=re.escape(f"val.tar/a.jpg: {fault}")):
        listed(WebDataset(), tmp_path, "val.tar", taxonomy=CUPS)


def test_samples_of_one_key_are_as_many_images(tmp_path: Path) -> None:
    path, other = tmp_path / "val.tar", tmp_path / "val-2.tar"
    first, second = ([("a:1.jpg", data), ("a:1.cls", data)] for data in (b"0", b"1"))
    path.write_bytes(tar_bytes([*first, *second]))
    together = listed(WebDataset(), tmp_path, "val.tar", taxonomy=CUPS)
    path.write_bytes(tar_bytes(first))
    other.write_bytes(tar_bytes(second))
    apart = listed(WebDataset(), tmp_path, "val.tar", "val-2.tar", taxonomy=CUPS)
    wnids = [[(image.key, image.wnid) for image in each if image] for each in (together, apart)]
    assert wnids[0] == wnids[1] == [("a:1", CUPS.wnids[0]), ("a:1", CUPS.wnids[1])]
    # Of two pictures in a sample, too, none is dropped unseen.
    path.write_bytes(tar_bytes([("a.jpg", b"1"), ("a.png", b"2"), ("a.cls", b"0")]))
    both = seen(listed(WebDataset(), tmp_path, "val.tar", taxonomy=CUPS))
    assert [image[3] for image in both if image] == [b"1", b"2"]


def test_rows_of_a_parquet_file_are_images(tmp_path: Path) -> None:
    names, wnids = ("in/a.b.JPEG", None, "", "c\\d_n02085620.png"), [None, "", "n02085620", None]
    images = [{"bytes": bytes([48 + n]), "path": name} for n, name in enumerate(names)]
    # A path alone is not followed.
    images[2:3] = [{"bytes": None, "path": __file__}]
    table = pa.table({"image": images, "label": [1, -1, 0, 0], "wnid": wnids})
    pq.write_table(table, tmp_path / "v.parquet", row_group_size=3)
    assert seen(listed(HubParquet(), tmp_path, "v.parquet", taxonomy=CUPS)) == [
        ("v.parquet/0/0", "a.b", "cup", b"0"), ("v.parquet/0/1", "v-parquet-0-1", "", b"1"),
        ("v.parquet/0/2", "test_containers", "n02085620", b""), ("v.parquet/1/0", "d", "0", b"3"),
    ]  # fmt: skip
    texts = pa.array(["a.png"])
    for column in (texts, texts.cast("large_string"), texts.dictionary_encode(), images[:1]):
        pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
        assert holds_pictures(f"{tmp_path}/a.parquet") is isinstance(column, list)


def test_a_folder_is_listed_one_level_deep_and_in_order(tmp_path: Path) -> None:
    names = "n2/a.png n1/z.jpg n1/in/deep.jpg y.JPG .git/c.jpg e.f.jpeg n1/l.txt x.xml .DS_Store"
    for name in names.split():
        (tmp_path / "val" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "val" / name).write_text(name)
    images = listed(ImageFolder(), tmp_path)
    assert [image and (image.name, image.wnid) for image in images] == [
        ("val/e.f.jpeg", ""), None, ("val/y.JPG", ""), None, ("val/n1/z.jpg", "n1"),
        ("val/n2/a.png", "n2"),
    ]  # fmt: skip
    assert [file.key for file in files_in(f"{tmp_path}/val", (".xml",))] == ["x"]


def test_a_stamp_changes_when_content_does() -> None:
    with object_store():
        stamps = []
        for data in (b"1", b"2", b"1"):
            Store(f"gs://{BUCKET}").write("a", data)
            stamps.append(stamp_of(f"gs://{BUCKET}/a"))
        with pytest.raises(FileNotFoundError):
            stamp_of(f"gs://{BUCKET}/none.tar")
    assert stamps[0] == stamps[2] != stamps[1]
    assert None not in stamps
    assert stamp_of(__file__) is None  # Parts of local files are hashed instead.


@given(st.integers(-2, 999))
def test_a_label_is_the_number_of_a_class_or_the_class_itself(number: int) -> None:
    expected = imagenet9().wnids[number] if number >= 0 else ""
    for label in (number, f" {number}\n", f"{expected} "):
        assert wnid_of_label(label, imagenet9(), "x") == expected
    # A number means the class of that name where there is one.
    assert [wnid_of_label(label, CUPS, "x") for label in (0, 1, None)] == ["0", "cup", ""]
    for wrong in (2, "n020856210"):
        with pytest.raises(UsageError, match=f"^a is of class '{wrong}': .* of --taxonomy$"):
            wnid_of_label(wrong, CUPS, "a")


def test_files_of_a_split_are_known_by_name_and_looked_for_near_by_first(tmp_path: Path) -> None:
    for name, expected in (("x-VALIDATION-0.tar", (True, False)), ("bbox_val.tgz", (False, True)),
                       ("bbox_val.txt", (False, False)), ("LOC_val_solution.csv", (True, True)),
                       ("val.csv", (True, False)), ("interval.tar", (False, False))):  # fmt: skip
        path = f"/val/{name}"
        assert (has_images_by_name(path, "val"), has_boxes_by_name(path, "val")) == expected
    with pytest.raises(UsageError, match="no folder 'val' in"):
        find_layout(str(tmp_path), None, "val")
    for kind, names in (("webdataset", ["validation/0.tar", "validation/1.tar"]),
                        ("tar", ["data/val.TAR"]), ("webdataset", ["b-val.tar"])):  # fmt: skip
        for name in (*names, "bbox_val.tar"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            mark = ".a.CLS" if kind == "tar" else "a.CLS"
            (tmp_path / name).write_bytes(tar_bytes([("a.JPG", b""), (mark, b"")]))
        paths = tuple(f"{tmp_path}/{name}" for name in names)
        assert find_files(str(tmp_path), "val", ".tar") == paths
        layout = find_layout(str(tmp_path), None, "val")
        assert (layout.kind, layout.files) == (kind, paths)
    assert find_files(f"{paths[0]}", "train", ".tar") == paths


@given(st.dictionaries(st.tuples(st.sampled_from(["", "x", "y"]), st.just("a")), st.text("01")))
def test_an_annotation_is_found_by_folder_then_by_name(places: dict[tuple[str, str], str]) -> None:
    entries = [KeyedFile(*where, Location(path)) for where, path in places.items()]
    of_key = {entry.folder: entry for entry in entries}
    only = entries[0] if len(entries) == 1 else None
    for index in (FileIndex(entries), FileIndex(reversed(entries))):
        assert len(index) == len(entries)
        for folder in ("", "x", "y", "z"):
            assert index.find(folder, "a") == of_key.get(folder, of_key.get("", only))
            assert index.find(folder, "b") is None


def test_annotations_in_an_archive_are_kept_as_what_they_say(tmp_path: Path) -> None:
    xml = b"<annotation><size><width>9</width><height>8</height></size><object><name>cup</name>"
    xml += b"<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></object>"
    xml = tar_bytes([("n02085620/a.xml", xml + b"</annotation>"), ("n01440764/a.xml", b"no")])
    files = [("in.tar", xml), ("b.XML", b"no"), ("c.txt", b"no"), ("._a.xml", b"no")]
    (tmp_path / "bbox.tgz").write_bytes(tar_bytes(files, "w:gz"))
    index = index_annotations(f"{tmp_path}/bbox.tgz")
    entries = [index.find("n02085620", "a"), index.find("", "b")]
    assert [annotated_wnid(each and each.location) for each in (*entries, None)] == ["cup", "", ""]
    boxed, _ = (read_location(each.location) for each in entries if each)
    assert parse_annotation(boxed).boxes == (Box(1, 2, 3, 4),)
    assert index.find("", "._a") is index.find("", "c") is None
    (tmp_path / "solution.csv").write_text("ImageId,Boxes\n")
    with pytest.raises(UsageError, match=r"solution.csv is not a table of boxes: its first line"):
        index_annotations(f"{tmp_path}/solution.csv")


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
