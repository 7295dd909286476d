"""Tests the released layout as it is exported and as evaluation scripts read it, and figures."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from gcs import BUCKET, object_store
from PIL import Image
from released_folders import samples_of, truth_of
from runs import ONE, QUICK, SHARDS, manifest_of, refusal, run_here, run_in9, stamps
from torchvision.datasets import ImageFolder

from pipeline.dataset.records import write_table
from pipeline.released.export import (
    ExportPlan,
    _sweep,
    class_folder,
    find_clashes,
    label_of_folder,
    parse_name,
    stem_of,
)
from pipeline.storage.store import Store
from transforms.codec import UndecodableError, decode_image, decode_mask, decode_npy, encode_npy
from transforms.taxonomy import imagenet9
from transforms.variants import MIXED, ORIGINAL, PICTURES

pytestmark = pytest.mark.usefixtures("no_figures")


def test_names() -> None:
    clashes = find_clashes([("a_val_7", "n1"), ("b_val_7", "n1"), ("b_val_8", "n1")])
    assert clashes == {"a_val_7", "b_val_7"}
    stems = {stem_of(key, "n02084071", clashes) for key in ("a_val_7", "b_val_7", "kitten")}
    assert len(stems) == 3
    for stem in stems:
        assert parse_name(stem, is_mixed=False) == (stem, "n02084071", None)
    assert parse_name("n02084071_1", is_mixed=True) is None
    mixed = parse_name("fg_n02084071_1_bg_unknown", is_mixed=True)
    assert mixed == ("n02084071_1", "n02084071", None)


@pytest.mark.parametrize("count", [9, 100, 101, 1001])
def test_class_folders_sort_in_the_order_of_labels(count: int) -> None:
    folders = [class_folder(label, "x", count) for label in range(count)]
    assert sorted(folders) == folders
    assert [label_of_folder(folder) for folder in folders] == list(range(count))
    taxonomy = SimpleNamespace(names=["x"] * count)
    plan: Any = ExportPlan(SimpleNamespace(taxonomy=taxonomy), "val", *[None] * 3)  # type: ignore[arg-type]
    assert plan.folder("no_fg", count - 1) == f"no_fg/val/{folders[-1]}"


def test_sweeping_a_split_keeps_the_empty_class_folders_of_another(tmp_path: Path) -> None:
    target, dataset = Store(str(tmp_path)), SimpleNamespace(variants=(ORIGINAL,))
    plan: Any = ExportPlan(dataset, "train", target, frozenset(), None)  # type: ignore[arg-type]
    wanted = {"original/val/00_dog/a.JPEG", "original/train/00_dog/b.JPEG"}
    obsolete = ("original/train/01_bird/c.JPEG", "no_fg/train/01_bird/c.JPEG")
    mine = "original/train/02_mine/c.JPEG"
    for path in (*wanted, *obsolete, mine, "mine.txt"):
        target.write(path, b"")
    old, damaged = (f".in9/export/train-00000-{name}.parquet" for name in ("old", "damaged"))
    write_table(target, old, pyarrow.table({"path": [*obsolete, "original/train/gone.JPEG"]}), "")
    target.write(damaged, b"PAR1")
    target.make_folder("original/val/01_bird")
    assert _sweep(plan, wanted, set()) == (2, [mine])
    assert not target.exists(old)
    assert target.exists(mine)
    assert target.exists("mine.txt")
    assert target.has_folder("original/val/01_bird")
    assert not target.has_folder("original/train/01_bird")
    assert not target.has_folder("no_fg")


def test_a_mask_with_a_damaged_header_is_undecodable() -> None:
    whole = encode_npy(np.ones((4, 4), bool))
    minus = np.lib.format.magic(1, 0) + (9000).to_bytes(2, "little") + b"-" * 8999 + b"1"
    for damaged in (whole.replace(b"}", b" "), whole.replace(b" 'shape'", b"b'shape'"), minus):
        with pytest.raises(UndecodableError, match="broken NumPy file"):
            decode_npy(damaged)
    with pytest.raises(UndecodableError, match="does not fit its content"):
        decode_npy(whole[:-1])


def test_an_export_is_what_the_evaluation_scripts_read(sample_run: Path, export: Path) -> None:
    folders = [f"{label:02d}_{name}" for label, name in enumerate(imagenet9().names)]
    for variant in PICTURES:
        dataset = ImageFolder(str(export / variant / "val"))
        assert dataset.classes == folders
        pictures = {s.key: s for s in samples_of(sample_run, variant)}
        assert len(dataset) == len(pictures) == 70
        keys = {stem: row["key"] for stem, row in truth_of(export).items()}
        for (path, _), (picture, label) in zip(dataset.samples, dataset, strict=True):
            stem = Path(path).stem
            if variant in MIXED:
                names = parse_name(stem, is_mixed=True)
                assert names is not None
                stem, _, background = names
                assert keys[background or ""] == pictures[keys[stem]].fields["bg_key"]
            sample = pictures[keys[stem]]
            assert label == sample.fields["label"]
            assert picture.size == (224, 224)
            assert Path(path).read_bytes() == sample.image
    masks = {s.key: decode_mask(s.image) for s in samples_of(sample_run, "fg_mask")}
    # Like challenge_eval.py, this lists the masks and opens the originals of the same name.
    for folder in sorted(os.listdir(export / "fg_mask" / "val")):
        for name in sorted(os.listdir(export / "fg_mask" / "val" / folder)):
            mask = np.load(export / "fg_mask" / "val" / folder / name)
            assert (mask.shape, mask.dtype) == ((224, 224), np.uint8)
            with Image.open(export / "original/val" / folder / name.replace("npy", "JPEG")) as file:
                assert file.size == (224, 224)
            assert np.array_equal(mask, masks[truth_of(export)[Path(name).stem]["key"]])


def test_an_export_is_repeatable_and_mends_itself(three_draws: Path, tmp_path: Path) -> None:
    target = tmp_path / "to"

    def said() -> str:
        return run_here("export", "--dataset", three_draws, "--to", target).out

    first = said()
    assert "each folder of a mixed variant holds one of 3 draws (mixed_rand the first" in first
    assert (target / "mixed_rand_r2").is_dir()
    before = stamps(target)
    assert "nothing to do" in said()
    assert stamps(target) == before
    lost = next((target / "only_fg" / "val" / "00_dog").iterdir())
    lost.unlink()
    stray = lost.parent.parent / "09_nothing" / "stray.JPEG"
    stray.parent.mkdir()
    stray.write_bytes(b"")
    mended = said()
    assert "removed" not in mended
    assert "not of this export: 1 file, such as only_fg/val/09_nothing/stray.JPEG; they" in mended
    assert lost.exists()
    stray.unlink()
    assert stamps(target).keys() == before.keys()
    note = json.loads((target / "export-val.json").read_text())
    assert note["dataset"] == manifest_of(three_draws)["fingerprint"]


def test_an_export_follows_its_own_dataset_and_no_other(
    three_draws: Path, small_sample: Path, tmp_path: Path
) -> None:
    dataset, target = Path(shutil.copytree(three_draws, tmp_path / "out")), tmp_path / "to"
    command = ("export", "--dataset", dataset, "--to", target)
    run_here(*command)
    flags = ("generate", "--input", small_sample, "--output", dataset, *QUICK, *ONE)
    run_here(*flags, "--overwrite", "config")
    mine = next(target.glob("mixed_next_r1/val/*/*.JPEG")).with_name("mine.JPEG")
    mine.write_bytes(b"mine")
    assert "removed" in run_here(*command).out
    assert list(target.glob("mixed_*_r*/val/*/*")) == [mine]
    shutil.copytree(dataset, tmp_path / "moved")
    run_here("export", "--dataset", tmp_path / "moved", "--to", target)
    ours, other = (manifest_of(one)["fingerprint"][:12] for one in (dataset, three_draws))
    line = refusal("export", "--dataset", three_draws, "--to", target)
    assert f"holds the export of dataset {ours}, and {three_draws} is {other}; choose" in line


FIGURE = ("sample_val_00000036", "sample_val_00000016")


def test_figures_are_of_several_formats_and_repeatable(sample_run: Path, tmp_path: Path) -> None:
    flags = ("export", "--dataset", sample_run, "--images", ",".join(FIGURE), "--to")
    # A figure that exists is replaced.
    for name in ("one.png", "two.png", "three.pdf", "four.jpg", "four.jpg"):
        run_here(*flags, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    pdf = (tmp_path / "three.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert b"/CreationDate" not in pdf
    # The pixels of each picture are embedded unchanged.
    assert pdf.count(b"/Width 224") == len(FIGURE) * len(PICTURES)
    with Image.open(tmp_path / "four.jpg") as jpeg:
        assert (jpeg.format, jpeg.width) == ("JPEG", 1650)
    # Each picture is in its place.
    with Image.open(tmp_path / "one.png") as png:
        figure = png.convert("RGB")

    def small(picture: Image.Image) -> Any:
        return np.asarray(picture.resize((24, 24)), float)

    wanted = {
        (sample.key, variant): small(Image.fromarray(decode_image(sample.image)))
        for variant in PICTURES
        for sample in samples_of(sample_run, variant)
        if sample.key in FIGURE
    }
    step, height = figure.width / len(PICTURES), (figure.height - 23) / len(FIGURE)
    for row, key in enumerate(FIGURE):
        for column, variant in enumerate(PICTURES):
            # Below the names of the versions.
            left, top = column * step, row * height + 50
            cell = figure.crop(tuple(map(round, (left + 4, top + 4, left + 190, top + 186))))
            differences = {one: np.abs(small(cell) - two).mean() for one, two in wanted.items()}
            assert min(differences, key=lambda one: differences[one]) == (key, variant)


def test_figures_that_cannot_be_made_are_refused(sample_run: Path, tmp_path: Path) -> None:
    export = ("export", "--dataset", sample_run, "--images")
    for images, name, message in (
        (FIGURE[0], "figure.tif", "ends in .pdf, .png, .jpg, .html"),
        ("nowhere", "x.pdf", "split val of the dataset does not have this image"),
    ):
        assert message in refusal(*export, images, "--to", tmp_path / name)


def test_an_export_that_fails_keeps_the_shards_that_it_has_finished(
    one_worker: Path, tmp_path: Path
) -> None:
    dataset, target = Path(shutil.copytree(one_worker, tmp_path / "dataset")), tmp_path / "to"
    *_, last = sorted(dataset.glob("parquet/only_fg/*.parquet"))
    intact = last.read_bytes()
    last.write_bytes(intact[: len(intact) // 2])
    command = ("export", "--dataset", dataset, "--to", target)
    (line,) = run_here(*command, code=1).err.splitlines()
    assert line.startswith(f"in9 export: the job failed: {last} is missing or has changed")
    (log,) = target.glob(".in9/export-*.log")
    assert line.endswith(f"(details: {log})")
    assert not (target / "export-val.json").exists()
    records = {path: path.stat().st_mtime_ns for path in target.glob(".in9/export/*.parquet")}
    assert len(records) == 2
    last.write_bytes(intact)
    rows = sum(pq.read_metadata(record).num_rows for record in records)
    images = manifest_of(dataset)["images"]["val"]["selected"]
    printed = run_here(*command).out
    assert f"{9 * images - rows} files written" in printed
    assert {path: path.stat().st_mtime_ns for path in records} == records
    # A class without images keeps its number, and its folder.
    assert "no images in 03_reptile, 07_primate: these folders are empty" in printed
    for variant in manifest_of(dataset)["config"]["variants"]:
        folders = sorted((target / variant / "val").iterdir())
        assert [label_of_folder(folder.name) for folder in folders] == list(range(9))
    # A second export leaves the empty folders in place.
    assert "nothing to do" in run_here(*command).out
    assert not list((target / "original" / "val" / "03_reptile").iterdir())


def test_both_ways_in_object_storage(small_run: Path, tmp_path: Path) -> None:
    run_here("export", "--dataset", small_run, "--to", tmp_path)
    with object_store():
        address = f"gs://{BUCKET}/export"
        run_in9("export", "--dataset", small_run, "--to", address)
        here, remote = Store(str(tmp_path)), Store.at(address)
        names = [path for path in here.walk("") if not path.startswith(".in9")]
        assert names == [path for path in remote.walk("") if not path.startswith(".in9")]
        done = run_in9("import", "--from", address, "--output", f"gs://{BUCKET}/data", *SHARDS)
        count = manifest_of(small_run)["images"]["val"]["selected"]
        assert done.stdout.count(f"true background of {count} of {count} images") == 3, done.stdout
