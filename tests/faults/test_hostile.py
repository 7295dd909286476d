"""Tests broken and malicious input, and folders that cannot be read or written.

Each fault must end as a row with its reason, or as a message of one line, and the rest of the job
must complete.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_pictures import png_header, shown
from runs import forks, index_of, keys, manifest_of, run_in9
from soundness import assert_sound

UNPRIVILEGED = """
import ctypes

VERSION_3, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 0x20080522, 1, 2
libc = ctypes.CDLL(None, use_errno=True)
header = (ctypes.c_uint32 * 2)(VERSION_3, 0)
sets = (ctypes.c_uint32 * 6)()
done = libc.capget(header, sets) == 0
# Effective, permitted and inheritable sets, of which the first word has these capabilities.
for number in range(3):
    sets[number] &= ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)
if not done or libc.capset(header, sets) != 0:
    raise OSError(ctypes.get_errno(), "capabilities cannot be given up")
"""
"""A module that makes permissions count even for root, in the process that imports it, but not in
programs that this process executes."""
VARIANTS = ("--variants", "original,mixed_rand", "--formats", "webdataset")


def xml(width: int, height: int, *boxes: tuple[int, int, int, int]) -> str:
    """Returns an annotation with these boxes."""
    objects = "".join(
        f"<object><name>n01641577</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for x0, y0, x1, y1 in boxes
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation>{size}{objects}</annotation>"


BOMB = (
    '<!DOCTYPE bomb [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">'
    '<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>'
    "<annotation><size><width>&c;</width></size></annotation>"
)
OUTWARD = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>'


def test_every_hostile_image_is_a_row_with_its_reason(tiny_input: Path, tmp_path: Path) -> None:
    good = sorted(tiny_input.glob("val/*/*.JPEG"))[0]
    folder, annotations = good.parent, tiny_input / "Annotations" / "val"
    good_xml = (annotations / f"{good.stem}.xml").read_text()
    intact = good.read_bytes()
    expected: dict[bytes, str] = {}

    def add(name: bytes | str, image: bytes, annotation: str | None, reason: str) -> None:
        stem = os.fsencode(name)
        with open(os.fsencode(folder) + b"/" + stem + b".JPEG", "wb") as file:
            file.write(image)
        if annotation is not None:
            with open(os.fsencode(annotations) + b"/" + stem + b".xml", "w") as file:
                file.write(annotation)
        expected[stem] = reason

    add("empty", b"", good_xml, "undecodable")
    add("cut_short", intact[: len(intact) // 2], good_xml, "undecodable")
    add("text", b"GIF? no.", good_xml, "undecodable")
    add("picture_bomb", png_header(50_000, 50_000), xml(50_000, 50_000, (1, 1, 9, 9)),
        "too_many_pixels")  # fmt: skip
    add("cut_png", png_header(500, 500), xml(500, 500, (1, 1, 9, 9)), "undecodable")
    add("no_xml", intact, None, "missing_annotation")
    add("no_markup", intact, "box: 1 1 9 9", "unreadable_annotation")
    add("xml_bomb", intact, BOMB, "unreadable_annotation")
    add("xml_outward", intact, OUTWARD, "unreadable_annotation")
    add("words", intact, good_xml.replace("<xmin>", "<xmin>left "), "unreadable_annotation")
    add("infinite", intact, xml(1, 1).replace(">1<", ">1e999<"), "unreadable_annotation")
    add("size", intact, xml(17, 17, (1, 1, 9, 9)), "size_mismatch")
    width, height = (
        int(good_xml.split(f"<{side}>")[1].split("<")[0]) for side in ("width", "height")
    )
    add("no_box", intact, xml(width, height), "not_one_box")
    add("two_boxes", intact, xml(width, height, (1, 1, 50, 50), (9, 9, 60, 60)), "not_one_box")
    add("outside", intact, xml(width, height, (width + 5, 1, width + 50, 50)), "invalid_box")
    add("negative", intact, xml(width, height, (-50, -50, -5, -5)), "invalid_box")
    add("no_area", intact, xml(width, height, (20, 20, 20, 60)), "invalid_box")
    add("inside_out", intact, xml(width, height, (60, 60, 20, 20)), "invalid_box")
    add("whole_picture", intact, xml(width, height, (0, 0, width, height)), "box_too_large")
    add("..", intact, good_xml, "invalid_key")
    # Systems leave such hidden files beside others, so they are passed over.
    add("._left", intact, good_xml, "")
    del expected[b"._left"]
    add("with.dots", intact, good_xml, "invalid_key")
    add("two\nlines\x1b[31m", intact, good_xml, "invalid_key")
    add("back\\slash", intact, good_xml, "invalid_key")
    add(b"not\xffutf8", intact, good_xml, "invalid_key")
    add("x" * 240, intact, good_xml, "invalid_key")
    for name, target in (("circle", "circle.JPEG"), ("long", "x" * 300), ("zeros", "/dev/zero")):
        add(name, b"", good_xml, "undecodable")
        (folder / f"{name}.JPEG").unlink()
        (folder / f"{name}.JPEG").symlink_to(target)
    add("no_xml_file", intact, "", "unreadable_annotation")
    (annotations / "no_xml_file.xml").unlink()
    (annotations / "no_xml_file.xml").symlink_to("no_xml_file.xml")
    other = next(path for path in sorted(tiny_input.glob("val/*")) if path > folder)
    shutil.copy(good, other)  # It has the same key, in a class that comes later.

    output = tmp_path / "out"
    done = run_in9("generate", "--input", tiny_input, "--output", output, *VARIANTS)
    index = index_of(output)
    assert len(index) == len(expected) + 7
    rows = {
        row["path"].rpartition("/")[2].removesuffix(".JPEG"): (row["status"], row["detail"])
        for row in index
        if row["status"] not in ("accepted", "duplicate_key", "segmentation_failed")
    }

    assert {name: status for name, (status, _) in rows.items()} == {
        shown(os.fsencode(name)): reason for name, reason in expected.items()
    }
    assert all(detail for _, detail in rows.values())
    # Both have the same content, so the class decides.
    duplicates = [row["path"] for row in index if row["status"] == "duplicate_key"]
    assert duplicates == [f"val/{other.name}/{good.name}"]
    images = manifest_of(output)["images"]["val"]
    assert (images["listed"], images["accepted"]) == (len(index), 5)
    assert f"{len(index)} images, 5 accepted" in done.stdout
    assert "\x1b" not in done.stdout
    assert_sound(output)
    # No name of an image may lead out of the output.
    assert {path.name for path in tmp_path.iterdir()} == {"input", "out"}


def test_names_in_a_manifest_of_files_stay_inside(tiny_input: Path, tmp_path: Path) -> None:
    """Checks that a link out of the input is read as a picture and its target is not touched."""
    image = sorted(tiny_input.glob("val/*/*.JPEG"))[0]
    aside = tmp_path / "aside.JPEG"
    image.rename(aside)
    image.symlink_to(aside)
    before = aside.read_bytes()
    output = tmp_path / "out"
    run_in9("generate", "--input", tiny_input, "--output", output, *VARIANTS)
    assert manifest_of(output)["images"]["val"]["listed"] == 6
    assert aside.read_bytes() == before
    image.unlink()
    image.symlink_to(tmp_path / "gone.JPEG")
    broken = run_in9("generate", "--input", tiny_input, "--output", output, *VARIANTS, check=1)
    assert "No such file or directory" in broken.stderr
    assert broken.stderr.count("\n") == 1


@pytest.fixture
def locked() -> Iterator[list[Path]]:
    """Paths that are to be made accessible again at the end."""
    paths: list[Path] = []
    yield paths
    for path in paths:
        path.chmod(0o755)


def test_folders_that_cannot_be_read_or_written_are_named(
    tiny_input: Path, tmp_path: Path, locked: list[Path]
) -> None:
    (tmp_path / "unprivileged.py").write_text(UNPRIVILEGED)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def refused(*arguments: object, code: int = 2) -> str:
        words = ["generate", *VARIANTS, *map(str, arguments)]
        done = forks().run(words, environment, modules=("unprivileged",))
        assert done.returncode == code, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    def lock(path: Path, mode: int = 0) -> None:
        path.chmod(mode)
        locked.append(path)

    output = tmp_path / "out"
    closed = sorted(tiny_input.glob("val/*"))[0]
    lock(closed)
    line = refused("--input", tiny_input, "--output", output)
    assert f"{closed} cannot be read: Permission denied" in line
    closed.chmod(0o755)
    lock(tiny_input / "val")
    line = refused("--input", tiny_input, "--output", output)
    assert f"{tiny_input / 'val'} cannot be read: Permission denied" in line
    (tiny_input / "val").chmod(0o755)
    read_only = tmp_path / "read_only"
    read_only.mkdir()
    lock(read_only, 0o555)
    line = refused("--input", tiny_input, "--output", read_only / "out")
    assert f"--output {read_only / 'out'} cannot be written: Permission denied" in line
    # One image that cannot be read is an error of the machine, not of the image.
    image = sorted(tiny_input.glob("val/*/*.JPEG"))[0]
    lock(image)
    line = refused("--input", tiny_input, "--output", output, code=1)
    assert "Permission denied" in line
    assert str(image) in line
    image.chmod(0o644)
    run_in9("generate", "--input", tiny_input, "--output", output, *VARIANTS)
    assert manifest_of(output)["images"]["val"]["accepted"] == 5


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small file system cannot be mounted here: {error}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_fails_the_job_and_harms_nothing(
    small_sample: Path, tmp_path: Path, small_disk: Path
) -> None:
    output = small_disk / "out"
    flags = ("generate", "--input", small_sample, "--output", output, *keys(images_per_shard=3))
    failed = run_in9(*flags, check=1)
    assert f"No space left on device; free some space: '{output}/" in failed.stderr
    assert failed.stderr.count("\n") == 1
    assert not (output / "manifest.json").exists()
    subprocess.run(["mount", "-o", "remount,size=60m", str(small_disk)], check=True)
    done = run_in9(*flags)
    assert "18 images segmented" not in done.stdout
    assert not list(output.glob(".in9/tmp/*"))
    fresh = tmp_path / "fresh"
    run_in9("generate", "--input", small_sample, "--output", fresh, *keys(images_per_shard=3))
    assert (output / "manifest.json").read_bytes() == (fresh / "manifest.json").read_bytes()


def test_an_evaluation_without_room_says_so(tiny_input: Path, small_disk: Path) -> None:
    output = small_disk / "out"
    run_in9("generate", "--input", tiny_input, "--output", output, *VARIANTS, "--layers", "drop")
    room = os.statvfs(small_disk)
    (small_disk / "ballast").write_bytes(bytes(room.f_bavail * room.f_frsize))
    before = manifest_of(output)
    failed = run_in9("evaluate", "--dataset", output, check=1)
    assert "No space left on device" in failed.stderr
    assert failed.stderr.count("\n") == 1
    (small_disk / "ballast").unlink()
    run_in9("evaluate", "--dataset", output)
    assert manifest_of(output) == before


# A machine that gives the process some threads, and refuses all others.
FEW_THREADS = """
import os, threading

start, left = threading._start_new_thread, int(os.environ["FEW_THREADS"])

def start_new_thread(*arguments):
    global left
    left -= 1
    if left < 0:
        threading.stack_size(1 << 46)
    return start(*arguments)

threading._start_new_thread = start_new_thread
"""


@pytest.mark.parametrize(
    ("threads", "flags"),
    [(0, ()), (1, ()), (2, ()), (7, ()), (3, ("--direct_running_mode=multi_processing",))],
)
def test_a_machine_without_threads_is_one_line(
    tiny_input: Path, tmp_path: Path, threads: int, flags: tuple[str, ...]
) -> None:
    (tmp_path / "few_threads.py").write_text(FEW_THREADS)
    words = ["generate", "--input", str(tiny_input), "--output", str(tmp_path / "out"), *flags]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "FEW_THREADS": str(threads)}
    done = forks().run([*words, *VARIANTS], environment, modules=("few_threads",))
    assert done.returncode == 1
    assert "the job failed" in done.stderr
    assert "can't start new thread" in done.stderr
    assert done.stderr.count("\n") == 1
