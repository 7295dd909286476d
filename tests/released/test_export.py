"""Tests the released layout: written, read as by the evaluation scripts, and imported again."""

import dataclasses
import io
import itertools
import json
import os
import re
import shutil
import signal
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from gcs import BUCKET, object_store
from killing import killed_before_change
from PIL import Image
from runs import (
    ONE,
    QUICK,
    SHARDS,
    csv_rows,
    dataset_in,
    index_of,
    keys,
    manifest_of,
    refusal,
    run_here,
    run_in9,
    stamps,
    start_in9,
    wait_until,
)
from soundness import assert_sound
from torchvision.datasets import ImageFolder

from pipeline.dataset.manifest import About
from pipeline.dataset.records import write_table
from pipeline.errors import UsageError
from pipeline.generate.commit import read_prepared, restate
from pipeline.released.archive_listing import (
    ArchiveLocation,
    ReleasedArchive,
    list_files,
    read_listing,
)
from pipeline.released.export import (
    ExportPlan,
    _sweep,
    class_folder,
    find_clashes,
    label_of_folder,
    parse_name,
    stem_of,
)
from pipeline.runtime import progress
from pipeline.storage.store import Store
from transforms.codec import UndecodableError, decode_image, decode_mask, decode_npy, encode_npy
from transforms.matching import block_means, block_means_outside, compare, decide, nearest
from transforms.taxonomy import imagenet9
from transforms.variants import MIXED, ORIGINAL, PAPER, PICTURES

pytestmark = pytest.mark.usefixtures("no_figures")

SMALL = keys(images_per_shard=20)


@pytest.fixture(scope="module")
def export(sample_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export of the sample. Tests must not change it."""
    target = tmp_path_factory.mktemp("export") / "to"
    run_here("export", "--dataset", sample_run, "--to", target)
    return target


def samples_of(output: Path, variant: str) -> Iterator[Any]:
    dataset = dataset_in(output)
    for shard in dataset.shards("val"):
        yield from dataset.samples("val", shard, variant)


def truth_of(export: Path) -> dict[str, dict[str, str]]:
    """Reads the rows of the export's table, by released name."""
    return {row["stem"]: row for row in csv_rows(export / "images-val.csv")}


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


def test_an_export_is_repeatable_and_mends_itself(sample_run: Path, tmp_path: Path) -> None:
    target = tmp_path / "to"
    command = ("export", "--dataset", sample_run, "--to", target)
    assert "630 files written" in run_in9(*command).stdout
    before = stamps(target)
    assert "nothing to do" in run_in9(*command).stdout
    assert stamps(target) == before
    lost = next((target / "only_fg" / "val" / "00_dog").iterdir())
    lost.unlink()
    stray = lost.parent.parent / "09_nothing" / "stray.JPEG"
    stray.parent.mkdir()
    stray.write_bytes(b"")
    mended = run_in9(*command).stdout
    assert "removed" not in mended
    assert "not of this export: 1 file, such as only_fg/val/09_nothing/stray.JPEG; they" in mended
    assert lost.exists()
    stray.unlink()
    assert stamps(target).keys() == before.keys()
    note = json.loads((target / "export-val.json").read_text())
    assert note["dataset"] == manifest_of(sample_run)["fingerprint"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for wrong in (tmp_path / "full", sample_run):
        run_in9("export", "--dataset", sample_run, "--to", wrong, check=2)


def test_an_export_follows_its_own_dataset_and_no_other(
    three_draws: Path, small_sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, target = Path(shutil.copytree(three_draws, tmp_path / "out")), tmp_path / "to"
    command = ("export", "--dataset", dataset, "--to", target)
    run_here(*command)
    flags = ("generate", "--input", small_sample, "--output", dataset, *QUICK, *ONE)
    run_here(*flags, "--overwrite", "config")
    mine = next(target.glob("mixed_next_r1/val/*/*.JPEG")).with_name("mine.JPEG")
    mine.write_bytes(b"mine")
    capsys.readouterr()
    run_here(*command)
    assert "removed" in capsys.readouterr().out
    assert list(target.glob("mixed_*_r*/val/*/*")) == [mine]
    shutil.copytree(dataset, tmp_path / "moved")
    run_here("export", "--dataset", tmp_path / "moved", "--to", target)
    ours, other = (manifest_of(one)["fingerprint"][:12] for one in (dataset, three_draws))
    capsys.readouterr()
    line = refusal(capsys, "export", "--dataset", three_draws, "--to", target)
    assert f"holds the export of dataset {ours}, and {three_draws} is {other}; choose" in line


FIGURE = ("sample_val_00000036", "sample_val_00000016")


def test_figures_are_of_several_formats_and_repeatable(sample_run: Path, tmp_path: Path) -> None:
    flags = ("export", "--dataset", sample_run, "--images", ",".join(FIGURE), "--to")
    # Figures that exist are replaced.
    for name in ("one.png", "two.png", *("three.pdf", "four.jpg") * 2, "one.png"):
        run_here(*flags, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    pdf = (tmp_path / "three.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert b"/CreationDate" not in pdf
    # The pixels of each picture are embedded unchanged.
    assert pdf.count(b"/Width 224") == len(FIGURE) * len(PICTURES)
    with Image.open(tmp_path / "four.jpg") as jpeg:
        assert (jpeg.format, jpeg.width) == ("JPEG", 1650)


def test_a_figure_shows_the_images_in_all_versions(sample_run: Path, tmp_path: Path) -> None:
    flags = ("export", "--dataset", sample_run, "--images", ",".join(FIGURE), "--to")
    run_here(*flags, tmp_path / "one.png")
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
    step = figure.width / len(PICTURES)
    for row, key in enumerate(FIGURE):
        for column, variant in enumerate(PICTURES):
            left, top = column * step, figure.height - (len(FIGURE) - row) * step + 12
            cell = figure.crop(tuple(map(round, (left + 4, top + 4, left + 190, top + 186))))
            differences = {one: np.abs(small(cell) - two).mean() for one, two in wanted.items()}
            assert min(differences, key=lambda one: differences[one]) == (key, variant)


def test_figures_that_cannot_be_made_are_refused(
    sample_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = ("export", "--dataset", sample_run, "--images")
    for images, name, message in (
        (FIGURE[0], "figure.tif", "ends in .pdf, .png, .jpg"),
        ("nowhere", "x.pdf", "split val of the dataset does not have this image"),
    ):
        assert message in refusal(capsys, *export, images, "--to", tmp_path / name)


def test_an_export_that_fails_keeps_the_shards_that_it_has_finished(
    one_worker: Path, tmp_path: Path
) -> None:
    dataset, target = Path(shutil.copytree(one_worker, tmp_path / "dataset")), tmp_path / "to"
    *_, last = sorted(dataset.glob("parquet/only_fg/*.parquet"))
    intact = last.read_bytes()
    last.write_bytes(intact[: len(intact) // 2])
    command = ("export", "--dataset", dataset, "--to", target)
    failed = run_in9(*command, check=1)
    (line,) = failed.stderr.splitlines()
    assert line.startswith(f"in9 export: the job failed: {last} is missing or has changed")
    (log,) = target.glob(".in9/export-*.log")
    assert line.endswith(f"(details: {log})")
    assert not (target / "export-val.json").exists()
    records = {path: path.stat().st_mtime_ns for path in target.glob(".in9/export/*.parquet")}
    assert len(records) == 2
    last.write_bytes(intact)
    rows = sum(pq.read_metadata(record).num_rows for record in records)
    images = manifest_of(dataset)["images"]["val"]["selected"]
    assert f"{9 * images - rows} files written" in run_in9(*command).stdout
    assert {path: path.stat().st_mtime_ns for path in records} == records


@pytest.fixture(scope="module")
def archive(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export as a compressed tar, with three faults that real archives have.

    The pictures of mixed_rand carry the names of mixed_next, one picture is cut off, and one is
    missing in one version.
    """
    path = tmp_path_factory.mktemp("archive") / "bg_challenge.tar.gz"
    broken, absent = sorted(truth_of(export))[:2]
    next_names = {p.name[:22]: p.name for p in (export / "mixed_next").rglob("*.JPEG")}
    assert len(next_names) == 70
    with tarfile.open(path, "w:gz") as tar:
        for file in sorted(export.rglob("*")):
            if not file.is_file() or ".in9" in file.parts:
                continue
            name, data = file.relative_to(export), file.read_bytes()
            if name.parts[0] == "mixed_rand":
                name = name.with_name(next_names[name.name[:22]])
            if name.parts[0] == "no_fg" and name.stem == broken:
                data = data[: len(data) // 2]
            if name.parts[0] == "only_fg" and name.stem == absent:
                continue
            member = tarfile.TarInfo(f"bg_challenge/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def imported(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset imported from the archive."""
    output = tmp_path_factory.mktemp("imported") / "out"
    done = run_in9("import", "--from", archive, "--output", output, *SMALL)
    assert "70 images, 68 accepted, 2 rejected (1 excluded, 1 undecodable)" in done.stdout
    assert "val mixed_next: found the true background of 68 of 68 images" not in done.stdout
    assert "only_bg_t is missing" not in done.stdout
    return output


def test_an_import_keeps_the_pixels_and_finds_the_true_backgrounds(
    imported: Path, export: Path, sample_run: Path
) -> None:
    assert_sound(imported)
    truth = truth_of(export)
    stems = {row["key"]: stem for stem, row in truth.items()}
    rejected = set(sorted(truth)[:2])
    for variant in PAPER:
        expected = {stems[s.key]: s for s in samples_of(sample_run, variant)}
        actual = {s.key: s for s in samples_of(imported, variant)}
        assert actual.keys() == truth.keys() - rejected
        for stem, sample in actual.items():
            ours, theirs = sample.fields, expected[stem].fields
            assert (ours["label"], ours["wnid"]) == (theirs["label"], theirs["wnid"])
            assert ours["fg_fraction"] == pytest.approx(theirs["fg_fraction"])
            if variant == "fg_mask":
                both = (decode_mask(s.image) for s in (sample, expected[stem]))
                assert np.array_equal(*both)
            else:
                assert sample.image == expected[stem].image
            if variant in MIXED:
                true = stems[truth[stem][f"{variant}_bg_key"]]
                # A background from a rejected image cannot be named, and no other is named instead.
                assert ours["bg_key"] == (None if true in rejected else true)
    selected = [row for row in index_of(imported) if row["selected"]]
    assert all(row["mixed_rand_bg_named"] is not None for row in selected)
    wrong = sum(row["mixed_rand_bg_named"] != row["mixed_rand_bg_key"] for row in selected)
    assert wrong >= 50


def test_an_import_is_repeatable_and_rewrites_its_card_alone(
    imported: Path, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, command = stamps(imported), ("import", "--from", archive, *SMALL, "--output")
    run_here(*command, imported)
    assert "nothing to do" in capsys.readouterr().out
    assert stamps(imported) == before
    assert not list((imported / ".in9").rglob("*.tar"))
    assert "was imported" in refusal(capsys, "run", "--output", imported)
    output = Path(shutil.copytree(imported, tmp_path / "out", copy_function=shutil.copy2))
    run_here(*command, output, *keys(creator="Ann"))
    rewritten = {path for path, time in stamps(output).items() if time != before[path]}
    assert rewritten == {"README.md", "croissant.json", "manifest.json"}
    assert manifest_of(output)["about"]["creator"] == "Ann"
    assert_sound(output)
    before = stamps(output)
    run_here(*command, output)
    assert stamps(output) == before


def test_an_import_can_be_stopped_and_goes_on(
    export: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out"
    command = ("import", "--from", export, "--output", output, *keys(images_per_shard=3))
    running = start_in9(*command)
    wait_until(lambda: list(output.glob(".in9/staging/*/index/*.parquet")), running)
    os.killpg(running.pid, signal.SIGINT)
    out, error = running.communicate(timeout=60)
    assert (running.returncode, out) == (1, "")
    assert error == "in9 import: stopped; run the same command again to go on\n"
    assert not list(output.glob(".in9/lock*"))
    finished = {path.name: path.stat().st_mtime_ns for path in output.rglob("index/*.parquet")}
    assert not (output / "manifest.json").exists()
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.002)
    run_here(*command)
    shards = {path.name: path.stat().st_mtime_ns for path in output.glob("index/*.parquet")}
    assert {name: shards[name] for name in finished} == finished
    assert 0 < len(finished) < len(shards)
    lines = capsys.readouterr().err.splitlines()
    assert {line.partition(":")[0] for line in lines} <= {"examine", "import"}
    assert any(re.match(r"import: \d+ of 70 images", line) for line in lines)
    assert not (output / ".in9" / "progress").exists()
    assert_sound(output)


def test_a_class_without_images_keeps_its_number(
    one_worker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_here("export", "--dataset", one_worker, "--to", tmp_path)
    assert "no images in 03_reptile, 07_primate: these folders are empty" in capsys.readouterr().out
    for variant in manifest_of(one_worker)["config"]["variants"]:
        assert [p.name[:2] for p in sorted((tmp_path / variant / "val").iterdir())] == [
            f"{label:02d}" for label in range(9)
        ]
    dataset = ImageFolder(str(tmp_path / "original" / "val"), allow_empty=True)
    for path, label in dataset.samples:
        assert Path(path).parent.name.startswith(f"{label:02d}_")
    # A second export leaves the empty folders in place.
    run_here("export", "--dataset", one_worker, "--to", tmp_path)
    assert "nothing to do" in capsys.readouterr().out
    assert not list((tmp_path / "original" / "val" / "03_reptile").iterdir())


def test_an_imports_manifest_claims_no_more_than_is_known(imported: Path) -> None:
    manifest = manifest_of(imported)
    assert manifest["config"] == {
        "origin": "imported",
        "split": ["val"],
        "variants": list(PAPER),
        "replicates": 1,
        "formats": ["parquet", "webdataset"],
        "image_size": 224,
        "images_per_shard": 20,
    }
    assert "segmenter" not in manifest
    assert manifest["stages"] == {"import": 1}
    assert "GrabCut" not in (imported / "README.md").read_text()


def test_models_are_evaluated_and_attacked_on_published_pixels(
    imported: Path, sample_run: Path, export: Path
) -> None:
    # Predictions of a fifth of the images tell as much as those of all.
    part = ("--holdout", 0.2, "--pictures", "none")
    run_here("evaluate", "--dataset", imported, *part, *ONE)
    run_here("attack", "--dataset", imported, "--grid", 3, "--pictures", "none", *ONE)
    for name in ("report.html", "results/attack.csv"):
        assert (imported / name).exists()
    stems = {row["key"]: stem for stem, row in truth_of(export).items()}
    columns = ["key", "variant", "label_rule", "prediction"]
    generated, again = (
        pyarrow.dataset.dataset(files).to_table(columns=columns).to_pylist()
        for output in (sample_run, imported)
        for files in output.glob("results/efficientnet_lite0*/predictions")
    )
    expected = {
        (stems[r["key"]], r["variant"], r["label_rule"]): r["prediction"] for r in generated
    }
    tested = {row["key"] for row in again}
    assert len(again) == len(tested) * 8 * 2
    assert 5 < len(tested) < 30
    for row in again:
        key = (row["key"], row["variant"], row["label_rule"])
        assert expected[key] == row["prediction"]


def test_backgrounds_are_found_in_strong_jpeg_noise_and_never_guessed(sample_run: Path) -> None:
    dataset = [list(samples_of(sample_run, v))[:18] for v in ("original", "fg_mask", "only_bg_t")]
    originals = [decode_image(s.image) for s in dataset[0]]
    masks = [decode_mask(s.image) for s in dataset[1]]
    backgrounds = [_noisy(decode_image(s.image), 75) for s in dataset[2]]
    pool = np.stack([block_means(background) for background in backgrounds])
    for position, (image, mask) in enumerate(zip(originals, masks, strict=True)):
        true = (position + 7) % len(backgrounds)
        mixed = _noisy(np.where(mask[..., None], image, decode_image(dataset[2][true].image)), 50)
        means, free = block_means_outside(mixed, mask)
        (near,) = nearest(pool, means[None], free[None], 4)
        differences = compare(mixed, mask, [backgrounds[i] for i in near])
        assert differences is not None
        match = decide(differences)
        assert match.is_sure
        assert near[match.position] == true
        others = [backgrounds[i] for i in near if i != true]
        without = compare(mixed, mask, others)
        assert without is not None
        assert not decide(without).is_sure
        twice = compare(mixed, mask, [backgrounds[true], backgrounds[true]])
        assert twice is not None
        assert not decide(twice).is_sure
    assert compare(mixed, np.ones_like(mask), backgrounds) is None


def _noisy(image: Any, quality: int) -> Any:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=quality, subsampling=2)
    return decode_image(content.getvalue())


@pytest.mark.parametrize("name", ["../x", "/x", "link", "device"])
def test_members_that_are_no_plain_files_are_refused(name: str, tmp_path: Path) -> None:
    member = tarfile.TarInfo(name)
    member.type = {"link": tarfile.SYMTYPE, "device": tarfile.CHRTYPE}.get(name, tarfile.REGTYPE)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(member)
    with pytest.raises(UsageError, match="is refused"):
        list_files(str(tmp_path / "a.tar"), Store(str(tmp_path / "out")))


def listing(folder: Path, *variants: str) -> ReleasedArchive:
    """Lists an archive of one image, with these `<variant>/<split>`, as splits val and train."""
    picture = folder / "picture.png"
    Image.new("RGB", (64, 64)).save(picture)
    locations = []
    for variant in variants:
        stem = "n02085936_1"
        name = f"fg_{stem}_bg_{stem}.JPEG" if variant.startswith("mixed") else f"{stem}.JPEG"
        name = f"{stem}.npy" if variant.startswith("fg_mask") else name
        size = picture.stat().st_size
        locations.append(ArchiveLocation(f"{variant}/00_dog/{name}", str(picture), 0, size, "1"))
    return read_listing(
        "bg",
        locations,
        imagenet9(),
        splits=("val", "train"),
        formats=("parquet",),
        images_per_shard=10,
    )


def test_an_archive_without_a_variant_that_is_needed_is_told_which(tmp_path: Path) -> None:
    whole = ("original/val", "fg_mask/val", "original/train", "fg_mask/train")
    for position, missing in enumerate(whole):
        with pytest.raises(UsageError, match=f"^--from bg has no {missing}, which is needed$"):
            listing(tmp_path, *whole[:position], *whole[position + 1 :])


def test_an_export_says_that_a_folder_holds_one_draw(three_draws: Path, tmp_path: Path) -> None:
    said = run_in9("export", "--dataset", three_draws, "--to", tmp_path / "draws").stdout
    assert "each folder of a mixed variant holds one of 3 draws (mixed_rand the first" in said
    assert (tmp_path / "draws" / "mixed_rand_r2").is_dir()


def test_a_draw_that_only_one_split_has_is_left_out(tmp_path: Path) -> None:
    shared = [f"{name}/{split}" for name in PAPER for split in ("val", "train")]
    draws = [f"{name}_r1/val" for name in MIXED]
    released = listing(tmp_path, *shared, *draws)
    assert released.config.compose.replicates == 1
    assert released.ignored == tuple(sorted(f"{name}_r1" for name in MIXED))
    both = listing(tmp_path, *shared, *draws, *(f"{name}_r1/train" for name in MIXED))
    assert both.config.compose.replicates == 2


def tiny_release(source: Path, stem: str, named: str) -> Path:
    """Writes the release of one picture; returns its mixed picture, whose name names `named`."""
    picture = io.BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "PNG")
    mixed = source / f"mixed_rand/val/00_dog/fg_{stem}_bg_{named}.JPEG"
    for path, data in (
        (source / f"original/val/00_dog/{stem}.JPEG", picture.getvalue()),
        (source / f"fg_mask/val/00_dog/{stem}.npy", encode_npy(np.ones((64, 64), bool))),
        (mixed, picture.getvalue()),
    ):
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
    return mixed


def test_an_import_takes_up_the_background_that_a_new_name_claims(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "bg", tmp_path / "out"
    stem, other, third = "n02085936_1", "n01534433_2", "n01534433_3"
    mixed = tiny_release(source, stem, other)
    for named in (other, third):
        mixed = mixed.rename(mixed.with_name(f"fg_{stem}_bg_{named}.JPEG"))
        run_here("import", "--from", source, "--output", output)
        (row,) = index_of(output)
        assert row["mixed_rand_bg_named"] == named
        assert "\nonly_bg_t is missing, so backgrounds cannot be" in capsys.readouterr().out


def test_an_import_that_is_killed_while_it_rewrites_its_card_is_finished(tmp_path: Path) -> None:
    """Checks that the next run keeps what was stated, and imports nothing again."""
    tiny_release(tmp_path / "bg", "n02085936_1", "n01534433_2")
    command = ("import", "--from", tmp_path / "bg", "--output", tmp_path / "whole")
    run_here(*command, *keys(creator="Ann"))
    before, stated = stamps(tmp_path / "whole"), []
    for number in itertools.count(step=3):
        output = Path(
            shutil.copytree(tmp_path / "whole", tmp_path / "out", copy_function=shutil.copy2)
        )
        store, manifest = Store(str(output)), dataset_in(output).manifest
        bob = dataclasses.replace(manifest, about=About("Bob"))
        was_killed = killed_before_change(number, partial(restate, store, imagenet9(), bob))
        is_noted = read_prepared(store) is not None
        run_here(*command[:-1], output)
        stated.append(manifest_of(output)["about"]["creator"])
        assert stated[-1] == "Bob" or not is_noted
        rewritten = {path for path, time in stamps(output).items() if time != before[path]}
        assert rewritten <= {"README.md", "croissant.json", "manifest.json"}
        assert_sound(output)
        shutil.rmtree(output)
        if not was_killed:
            break
    assert stated == sorted(stated)
    assert {*stated} == {"Ann", "Bob"}


def test_what_is_no_release_is_refused_with_one_line(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "b.tar.gz").write_bytes(b"\x1f\x8b broken")
    (tmp_path / "c.tar.gz").write_bytes(b"<html>404")
    for name, reason in (
        ("absent", "neither"),
        ("b.tar.gz", "not a whole tar"),
        ("c.tar.gz", "is not a gzip archive (it begins with '<html>404'); download it again"),
    ):
        refused = refusal(capsys, "import", "--from", tmp_path / name, "--output", tmp_path / "out")
        assert reason in refused
    refused = refusal(capsys, "import", "--from", sample, "--output", tmp_path / "out")
    assert "is not the released layout" in refused


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
