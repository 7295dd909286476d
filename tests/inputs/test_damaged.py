"""Tests that damaged input is refused in a line that names it, and that stray files are skipped."""

import contextlib
import errno
import gzip
import hashlib
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import run_python
from shapes import listed, tar_bytes

from pipeline.errors import UsageError
from pipeline.inputs import archives
from pipeline.inputs.annotations import coco_objects, index_annotations
from pipeline.inputs.archives import stream
from pipeline.inputs.imagenet import ImageFolder
from pipeline.inputs.location import Location, read_location
from pipeline.inputs.source_images import Checksums, Content, KnownContent
from pipeline.inputs.tables import HubParquet, column_names, read_rows
from pipeline.models.answers import read_answers
from pipeline.storage.store import Store
from transforms.codec import UndecodableError, open_picture
from transforms.limits import MAX_ANNOTATION_BYTES, Unread
from transforms.taxonomy import imagenet9


def hub_file(path: Path, meta: bytes, label: int = 5) -> list[object]:
    """Writes a Parquet file with this metadata and label; returns its images."""
    image = {"bytes": b"x", "path": "a.jpg"}
    table = pa.Table.from_pylist([{"image": image, "label": label}])
    pq.write_table(table.replace_schema_metadata({"huggingface": meta}), path)
    return [*listed(HubParquet(), path.parent, path.name)]


def named(count: int) -> bytes:
    names = list(imagenet9().wnids[:count])
    return json.dumps({"info": {"features": {"label": {"names": names}}}}).encode()


@pytest.mark.parametrize("row", ["a\rb", f"a,{'1' * 200_000}"])
def test_a_table_of_boxes_that_is_no_csv_is_named(row: str, tmp_path: Path) -> None:
    path = tmp_path / "LOC_val_solution.csv"
    head = "ImageId,PredictionString"
    path.write_bytes(f"{head}\r\n{row}\r\n".encode())
    with pytest.raises(UsageError, match=rf"{path}, line \d"):
        index_annotations(str(path))
    path.write_text(f"{head}\na,n02085620 1 2 3 4\n\n")
    assert index_annotations(str(path)).find("", "a") is not None


@pytest.mark.parametrize("meta", [b"{", b"[]", b'{"info": null}', b'{"info": {"features": 3}}'])
def test_metadata_of_another_form_names_no_labels(meta: bytes, tmp_path: Path) -> None:
    assert len(hub_file(tmp_path / "val.parquet", meta)) == 1


def test_a_label_that_has_no_name_is_refused(tmp_path: Path) -> None:
    assert len(hub_file(tmp_path / "val.parquet", named(2), label=1)) == 1
    with pytest.raises(UsageError, match=r"val.parquet/0/0 is of class 5, of 2"):
        hub_file(tmp_path / "val.parquet", named(2))


def test_entries_of_coco_must_fit_each_other_and_boxes_are_left_to_their_image() -> None:
    names = [{"id": 1, "name": "cat"}]
    whole = {"id": 5, "image_id": 1, "category_id": 1, "bbox": [10**400, 0, 1, 1]}

    def objects(categories: list[dict[str, Any]], **changes: int) -> list[Any]:
        images, annotations = [{"id": 1, "file_name": "a.jpg"}], [{**whole, **changes}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        return list(coco_objects("a.json", content))

    ((_, (annotated,)),) = objects(names)
    assert annotated.box == whole["bbox"]
    for categories, changes, what in (
        ([{"id": 1}], {}, "has no name"),
        ([*names, {"id": 1, "name": "dog"}], {}, "two categories have the id 1"),
        (names, {"image_id": 2}, "annotation 5 names image 2, which the file does not"),
        (names, {"category_id": 7}, "category 7"),
    ):
        with pytest.raises(UsageError, match=what):
            objects(categories, **changes)


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_damaged_compressed_archive_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "boxes.tgz"
    data = bytearray(tar_bytes([("a.xml", bytes(range(256)) * 4000)], f"w:{kind}"))
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"boxes.tgz is (not a whole tar archive|damaged)"):
        list(stream(str(path)))


def headers(kind: bytes, count: int, size: int = 5) -> bytes:
    """Returns headers of a tar that describe the member behind them."""
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = kind, size
    return (header.tobuf(tarfile.GNU_FORMAT) + b"9 a=bc\n".ljust(512, b"\0")) * count


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (headers(tarfile.XHDTYPE, 600), "not a whole tar archive"),
        (headers(tarfile.GNUTYPE_LONGNAME, 1, 11 << 30), "the headers of a member have more"),
        (headers(tarfile.XHDTYPE, 1, 11 << 30), "the headers of a member have more"),
        (gzip.compress(tar_bytes([("a.xml", bytes(5_000_000))]))[:-99], "not a whole tar archive"),
    ],
    ids=["chain", "long name", "long header", "cut"],
)
def test_an_archive_that_says_too_much_is_named(data: bytes, what: str, tmp_path: Path) -> None:
    path = tmp_path / "boxes.tgz"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=rf"{path} is .*{what}"):
        list(stream(str(path)))


def test_an_archive_is_unpacked_within_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "boxes.tgz"
    large = tar_bytes([("large.xml", bytes(MAX_ANNOTATION_BYTES + 1)), ("a.xml", b"<a/>")])
    path.write_bytes(gzip.compress(tar_bytes([("n02085620.tgz", gzip.compress(large))])))
    contents = dict(stream(str(path)))
    assert (type(contents["large.xml"]), contents["a.xml"]) == (Unread, b"<a/>")
    nested = large
    for _ in range(3):
        nested = tar_bytes([("n.tar", nested)])
    (tmp_path / "nested.tar").write_bytes(nested)
    with pytest.raises(UsageError, match=r"nested.tar/n.tar/n.tar/n.tar is refused"):
        list(stream(str(tmp_path / "nested.tar")))
    # The limit covers an archive together with the archives inside it.
    monkeypatch.setattr(archives, "_MAX_UNPACKED_BYTES", len(large))
    with pytest.raises(UsageError, match=r"boxes.tgz/n02085620.tgz is refused: it unpacks to more"):
        list(stream(str(path)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "image,class\n{}"),
        ("b.csv", 'image,class\n"{}'),
        ("c.csv", 'image,class\n"a\n","{}'),
        ("d.jsonl", '{{"image": "{}'),
    ],
)
def test_a_row_is_read_no_further_than_its_limit(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.inputs.tables.MAX_ROW", 1000)
    path = tmp_path / name
    # No line of the CSV files exceeds the limit by itself.
    path.write_text(text.format("x" * 995 + "\n") * 2)
    with pytest.raises(UsageError, match=rf"{path}, line \d: a row of more than 1000 characters"):
        list(read_rows(str(path), "--input"))


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.parquet", "a.png"])
def test_a_file_as_large_as_a_disk_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with path.open("wb") as file:
        file.truncate(12 << 30)
    if name == "a.png":
        assert isinstance(read_location(Location(str(path))), Unread)
        assert isinstance(read_location(Location(str(path), (5, 11 << 30))), Unread)
        return
    with pytest.raises(UsageError, match=str(path)):
        list(read_rows(str(path), "--input"))


@pytest.mark.parametrize("at", [-2, -7, -60])
def test_a_damaged_foot_of_a_table_is_named(at: int, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": ["a"]}), path)
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(UsageError, match=f"--input {path} is not a whole Parquet file"):
        list(read_rows(str(path), "--input"))


@pytest.mark.parametrize("has_dictionary", [True, False])
def test_text_that_is_not_utf8_is_named_by_row_and_column(
    has_dictionary: bool, tmp_path: Path
) -> None:
    texts = pa.array([b"good", b"bad\xff", b"good"]).view(pa.string())
    path = tmp_path / "answers.parquet"
    table = pa.table({"key": ["a", "b", "c"], "variant": texts, "label": ["dog"] * 3})
    pq.write_table(table, path, use_dictionary=has_dictionary, write_statistics=False)
    place = f"{path}, row group 0, row 2, column variant: not text in UTF-8"
    with pytest.raises(UsageError, match=place):
        list(read_rows(str(path), "--input"))
    with pytest.raises(UsageError, match=place):
        read_answers(f"answers:{path}", imagenet9())
    path.write_bytes(path.read_bytes().replace(b"variant", b"varian\xff"))
    with pytest.raises(UsageError, match=f"{path} has columns whose names or texts are not UTF-8"):
        column_names(str(path), "--input")


def test_a_value_that_all_rows_share_fills_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    values = pa.array(["x" * 2_000_000])
    column = pa.DictionaryArray.from_arrays(np.zeros(100_000, np.int32), values)
    pq.write_table(pa.table({"image": column}), path, compression="zstd")
    assert path.stat().st_size < 100_000
    before = pa.total_allocated_bytes()
    with pytest.raises(UsageError, match=r"a.parquet, row 1 .* column image: 2000000 characters"):
        list(read_rows(str(path), "--input"))
    assert pa.total_allocated_bytes() - before < 1 << 30


def test_a_large_value_in_a_small_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    image = pa.array([{"path": "x" * 200_000_000}])
    pq.write_table(pa.table({"image": image}), path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 100_000
    code = f"""
import pathlib, re
from pipeline.errors import UsageError
from pipeline.inputs import location

def peak():  # ru_maxrss would begin with that of the process that has started this one.
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])

location.MAX_READ_BYTES = 1 << 20
with location.open_parquet({str(path)!r}) as file:
    before = peak()
    try:
        list(location.rows_of(file, {str(path)!r}, ['image.path']))
    except UsageError as error:
        print("more than the limit" in str(error), end=" ")
    print(peak() - before < 100_000)
"""
    assert run_python(code).stdout == "True True\n"


@pytest.mark.parametrize(
    ("call", "own"), [("os.stat", {"ELOOP", "ENAMETOOLONG"}), ("builtins.open", set())]
)
def test_an_error_of_the_system_is_the_files_own_only_if_no_machine_finds_the_file(
    call: str, own: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, found = tmp_path / "a.JPEG", set()
    path.write_bytes(b"x")
    real: Any = {"os.stat": os.stat, "builtins.open": open}[call]
    for number, name in errno.errorcode.items():

        def fail(file: Any, *arguments: Any, number: int = number, **options: Any) -> Any:
            if str(file) == str(path):
                raise OSError(number, os.strerror(number), str(path))
            return real(file, *arguments, **options)

        with monkeypatch.context() as patched, contextlib.suppress(OSError):
            patched.setattr(call, fail)
            if isinstance(read_location(Location(str(path))), Unread):
                found.add(name)
    assert found == own


UNREADABLE: dict[str, Callable[[Path], object]] = {
    "its links lead in a circle": lambda path: path.symlink_to(path.name),
    "it is a link to a name that is too long": lambda path: path.symlink_to("x" * 300),
    "not a file but a pipe": os.mkfifo,
    "not a file but a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize(("why", "make"), UNREADABLE.items())
def test_what_no_machine_can_read_is_content_that_is_known(
    why: str, make: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "val" / "a.JPEG"
    path.parent.mkdir()
    make(path)
    (path.parent / "notes").symlink_to("notes")
    assert [image and image.key for image in listed(ImageFolder(), tmp_path)] == ["a", None]
    known = KnownContent(hashlib.md5(why.encode()).hexdigest(), "")
    content = Content(Location(str(path)))
    assert Checksums(Store(str(tmp_path)), "val", 0).known(content) == known
    data, again = Checksums(Store(str(tmp_path)), "val", 0).read(content)
    assert again == known
    with pytest.raises(UndecodableError, match=why):
        open_picture(data)
    assert isinstance(read_location(Location(str(path), (0, 1))), Unread)
