"""Tests pictures from outside, which become variants of a finished dataset."""

import itertools
import json
import os
import shutil
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pytest
from killing import killed_before_change
from PIL import Image
from released_folders import samples_of, truth_of
from runs import (
    ONE,
    QUICK,
    Run,
    darken,
    dataset_in,
    manifest_of,
    pictures_of,
    pixels_of,
    refusal,
    results_of,
    run_here,
    stamps,
    table_of,
)
from soundness import assert_sound
from two_way_by_hand import interval_of, share_interval

import in9
from pipeline.commands.finished import verify
from pipeline.dataset.folder import selected_rows, training_pictures
from transforms.variants import PAPER, VARIANTS, VariantName

pytestmark = pytest.mark.usefixtures("no_figures")

CARD = {"README.md", "croissant.json", "manifest.json"}
MODELS = ("--models", "python:tiny_models:first,python:tiny_models:second", "--pictures", "none")


def turned(output: Path, to: Path, degrees: int = 120) -> Path:
    """Writes the originals of a dataset by key, their hue turned by an angle."""
    to.mkdir()
    for key, pixels in pixels_of(output, "original").items():
        hsv = np.asarray(Image.fromarray(pixels).convert("HSV")).copy()
        hsv[..., 0] += np.uint8(degrees * 256 // 360)
        Image.fromarray(hsv, "HSV").convert("RGB").save(to / f"{key}.png")
    return to


def take_up(output: Path, *variants: str) -> str:
    return run_here("import", "--dataset", output, "--variant", ",".join(variants)).out


@pytest.fixture
def output(quick_shards: Path, tmp_path: Path) -> Path:
    """A dataset of 18 small pictures in several shards, to write into."""
    return Path(shutil.copytree(quick_shards, tmp_path / "out", copy_function=shutil.copy2))


def test_pictures_from_outside_are_a_variant_like_any_other(output: Path, tmp_path: Path) -> None:
    """Checks bytes, predictions and, by hand, intervals with backgrounds that pictures share."""
    evaluate = ("evaluate", "--dataset", output, *MODELS, *ONE)
    run_here(*evaluate)
    hue, before, times = turned(output, tmp_path / "hue"), results_of(output), stamps(output)
    keys = sorted(path.stem for path in hue.iterdir())
    shared = {key: f"scene{number // 4}" for number, key in enumerate(keys[2:])}
    named = [f"{key}{'.png' * (key > keys[9])},{scene}" for key, scene in shared.items()]
    (hue / "pictures.csv").write_text("\ufeffpicture,background\n" + "\n".join(named))
    assert "\nhue: 16 pictures with a named background\ntime: " in take_up(output, f"hue={hue}")
    assert {n for n, data in results_of(output).items() if before.get(n) != data} == {
        *CARD,
        *(name for name in results_of(output) if name.startswith("parquet/hue/")),
    }
    assert [*verify(dataset_in(output))] == []
    for sample in samples_of(output, "hue"):
        assert sample.image == (hue / f"{sample.key}.png").read_bytes()
        assert sample.fields["bg_key"] == shared.get(sample.key)
    originals = {s.key: s.fields for s in samples_of(output, "original")}
    assert {s.key: {**s.fields, "bg_key": None} for s in samples_of(output, "hue")} == originals
    assert "done now: 36 pictures predicted" in run_here(*evaluate, "--fail_if", "hue<0").out
    kept = stamps(output)
    assert all(kept[n] == t for n, t in times.items() if n.startswith(("parquet/", "index/")))
    files = sorted(output.glob("results/*/predictions/*.parquet"))
    rule = "argmax_then_map"
    right: dict[str, dict[str, bool]] = {}
    for file in files:
        for row in pyarrow.dataset.dataset(file).to_table().to_pylist():
            if (row["variant"], row["label_rule"]) == ("hue", rule):
                name = json.loads((file.parents[1] / "model.json").read_text())["model"]
                model = right.setdefault(name, {})
                model[row["fg_key"]] = row["prediction"] == row["label"]
    assert [len(answers) for answers in right.values()] == [18, 18]
    for row in table_of(output, "summary"):
        if (row["variant"], row["label_rule"]) == ("hue", rule):
            answers = right[row["model"]]
            by_hand = share_interval([(key, shared.get(key, key), answers[key]) for key in keys])
            assert (float(row["ci_low"]), float(row["ci_high"])) == pytest.approx(by_hand, abs=1e-6)
    (row,) = (
        row
        for row in table_of(output, "comparisons")
        if (row["variant"], row["label_rule"]) == ("hue", rule)
    )
    first, second = (right[row[name]] for name in ("first", "second"))
    differences = {key: int(first[key]) - int(second[key]) for key in keys}
    mean = sum(differences.values()) / len(keys)
    pictures = [(k, shared.get(k, k), (d - mean) / len(keys)) for k, d in differences.items()]
    by_hand = interval_of(mean, pictures)
    assert (float(row["ci_low"]), float(row["ci_high"])) == pytest.approx(by_hand, abs=1e-6)
    page = (output / "report.html").read_text()
    assert all("hue" in text for text in (page, (output / "README.md").read_text()))
    assert '"name": "hue"' in (output / "croissant.json").read_text()
    assert in9.open_dataset(output, "hue")[0][1] in range(9)
    run_here("export", "--dataset", output, "--to", tmp_path / "exported")
    assert len(list(tmp_path.glob("exported/hue/val/*/*.JPEG"))) == 18


def test_backgrounds_that_are_images_are_held_out_with_them(output: Path, tmp_path: Path) -> None:
    """Gives each edit the background of its picture in mixed_rand, and keeps what jobs staged."""
    hue, staged = turned(output, tmp_path / "hue"), output / ".in9/staging/job/file"
    backgrounds = {s.key: s.fields["bg_key"] for s in samples_of(output, "mixed_rand")}
    lines = [f"{key},{background}" for key, background in backgrounds.items()]
    (hue / "pictures.csv").write_text("\n".join(["picture,background", *lines]))
    staged.parent.mkdir(parents=True)
    staged.touch()
    take_up(output, f"hue={hue}")
    assert staged.exists()
    run_here("evaluate", "--dataset", output, *MODELS, *ONE, "--holdout", 0.5)
    counted = {
        variant: [row["n"] for row in table_of(output, "summary", variant=variant)]
        for variant in ("hue", "mixed_rand", "original")
    }
    assert counted["hue"] == counted["mixed_rand"] != counted["original"]
    tested = {row["key"] for row in selected_rows(dataset_in(output), "val", 0.5)}
    trained = training_pictures(dataset_in(output), "val", "hue", 0.5)
    assert {backgrounds[key] for key in trained}.isdisjoint(tested)
    assert trained
    wrong = ("saliency", "--dataset", output, *MODELS[:2], "--variant", "huee")
    assert "did you mean hue?" in refusal(*wrong)


def test_edits_are_found_for_classes_and_splits_of_any_name(tmp_path: Path) -> None:
    rows, edits = ["image,class,xmin,ymin,xmax,ymax,split"], tmp_path / "edits"
    for split, number in itertools.product(("train", "val"), range(4)):
        path = tmp_path / split / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(noise).save(path)
        rows.append(f"{path},{('dog', 'cat')[number % 2]},8,8,24,24,{split}")
    (tmp_path / "pictures.csv").write_text("\n".join(rows))
    (tmp_path / "classes.csv").write_text("class,superclass\ndog,a\ncat,b")
    output, taxonomy = tmp_path / "out", ("--taxonomy", tmp_path / "classes.csv")
    flags = ("--input", tmp_path / "pictures.csv", *taxonomy, *QUICK, *ONE, "--split", "train,val")
    run_here("generate", *flags, "--output", output)
    for split in ("train", "val"):
        run_here("export", "--dataset", output, "--split", split, "--to", tmp_path / "exported")
        for sample in dataset_in(output).samples(split, 0, VariantName("no_fg")):
            path = edits / split / f"{sample.key}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(sample.image)
    take_up(output, f"a={tmp_path / 'exported' / 'mixed_rand'}", f"b={edits}")
    for name, of in (("a", "mixed_rand"), ("b", "no_fg")):
        for split in ("train", "val"):
            pictures = [
                [sample.image for sample in dataset_in(output).samples(split, 0, VariantName(each))]
                for each in (name, of)
            ]
            assert pictures[0] == pictures[1]
    shutil.rmtree(edits / "train")
    says = "is of two images; give each split a folder"
    (edits / "val").rename(edits / "all")
    assert says in refusal("import", "--dataset", output, "--variant", f"b={edits}")


def test_the_fingerprint_depends_on_the_pictures_alone(output: Path, tmp_path: Path) -> None:
    one, two = (turned(output, tmp_path / name, degrees) for name, degrees in (("a", 90), ("b", 9)))
    plain, again = manifest_of(output), Path(shutil.copytree(output, tmp_path / "again"))
    take_up(output, f"a={one}", f"b={two}")
    assert "named background" not in take_up(again, f"b={one}")
    assert manifest_of(again)["made"] == plain["fingerprint"] != manifest_of(again)["fingerprint"]
    take_up(again, f"b={two}")
    take_up(again, f"a={one}")
    assert results_of(again) == results_of(output)
    assert_sound(again)
    before = stamps(again)
    assert "\nnothing to do: everything is up to date\n" in take_up(again, f"b={two}", f"a={one}")
    assert stamps(again) == before
    (two / "pictures.csv").write_text(f"picture,background\n{next(two.iterdir()).name},x\n")
    take_up(again, f"b={two}")
    assert manifest_of(again)["fingerprint"] != manifest_of(output)["fingerprint"]
    printed = run_here("export", "--dataset", again, "--layout", "recipe", "--to", tmp_path / "r")
    assert f"of dataset {plain['fingerprint'][:12]}" in printed.out
    assert printed.out.count("not in the recipe") == 2
    assert (
        "Not contained, because it comes from outside: a, b."
        in (tmp_path / "r/README.md").read_text()
    )


def test_generating_again_keeps_them_while_the_selected_images_stay(
    run_small: Run, small_input: Path, tmp_path: Path
) -> None:
    output, lost = tmp_path / "out", "hue is left out"
    run_small("generate")
    take_up(output, f"hue={turned(output, tmp_path / 'hue')}")
    before = stamps(output)
    assert "nothing to do" in run_small("generate")
    assert stamps(output) == before
    more = ("--variants", "original,mixed_same,mixed_rand,no_fg", "--overwrite", "config")
    assert lost not in run_small("generate", *more)
    kept = stamps(output)
    assert [kept.get(n) for n in before if "hue" in n] == [before[n] for n in before if "hue" in n]
    assert_sound(output)
    fewer = Path(shutil.copytree(output, tmp_path / "fewer")), tmp_path / "out"
    assert lost in run_small("generate", *more, "--per_class", "1", "--own_background")
    assert not (output / "parquet/hue").exists()
    assert "outside" not in manifest_of(output)
    assert_sound(output)
    shutil.rmtree(output)
    fewer[0].rename(output)
    darken(pictures_of(small_input)[0])
    assert lost in run_small("generate", *more[:2])
    take_up(output, f"hue={tmp_path / 'hue'}")
    next(output.glob("parquet/hue/*")).unlink()
    assert lost in run_small("generate", *more[:2])
    assert_sound(output)


def test_a_picture_is_named_by_key_or_as_an_export_names_it(output: Path, tmp_path: Path) -> None:
    exported = tmp_path / "exported"
    run_here("export", "--dataset", output, "--to", exported)
    flat, packed, stems = tmp_path / "flat", tmp_path / "packed.tar.gz", truth_of(exported)
    flat.mkdir()
    for file in (exported / "original").rglob("*.JPEG"):
        shutil.copy(file, flat / f"{stems[file.stem]['key']}.jpg")
        (flat / f"{stems[file.stem]['key']}.json").write_text("{}")
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(exported / "mixed_same", "edits/mixed")
    take_up(output, f"a={exported / 'original'}", f"b={flat}", f"c={packed}")
    made = manifest_of(output)["outside"]
    assert made["a"] == made["b"] != made["c"]
    for ours, theirs in (("a", "original"), ("c", "mixed_same")):
        pictures = ({s.key: s.image for s in samples_of(output, name)} for name in (ours, theirs))
        assert next(pictures) == next(pictures)
    assert not (output / ".in9" / "import").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("missing", "of 18 selected images, 4 have no JPEG or PNG and 0 have several: sample_val_"),
        ("twice", "0 have no JPEG or PNG and 1 have several: sample_val_"),
        ("larger", " NEW; find NEW -iname '*.*g' -exec mogrify -resize '64x64!' {} +"),
        ("gif", "neither JPEG nor PNG"),
        ("cut off", ".png: "),
        ("bomb", "more than the limit"),
        ("no column", "pictures.csv has no column background"),
        ("no text", ": pictures.csv"),
        ("no row", ": pictures.csv has no rows"),
    ],
)
def test_pictures_that_cannot_be_taken_are_refused(
    change: str, says: str, output: Path, tmp_path: Path
) -> None:
    folder = turned(output, tmp_path / "edited")
    first, *others = sorted(folder.iterdir())
    picture = Image.open(first)
    if change == "missing":
        for path in others[:4]:
            path.unlink()
    elif change == "twice":
        (folder / "more").mkdir()
        picture.save(folder / "more" / f"{first.stem}.jpg")
    elif change == "larger":
        picture.resize((65, 64)).save(first)
    elif change == "gif":
        picture.save(first, "GIF")
    elif change == "cut off":
        first.write_bytes(first.read_bytes()[:200])
    elif change == "bomb":
        first.write_bytes(b"\x89PNG")
        os.truncate(first, 1 << 33)
    else:
        head = b"picture,background\n"
        content = {"no column": b"picture\nx\n", "no text": head + b"\xff,\n", "no row": head}
        (folder / "pictures.csv").write_bytes(content[change])
    line = refusal("import", "--dataset", output, "--variant", f"hue={folder}")
    assert says in line
    assert f"--variant hue={folder}" in line


TAKEN = ("mixed_p50", "bg_blurred", "only_bg_t_telea", "mixed_same_holes", "own", "baseline", "all")
WRONG = ("haze_r1", "mixed_rand_r2", "bg_gap_x", "Haze", "1haze", "", "../haze", "ha ze")


def test_names_that_mean_something_else_and_other_flags_are_refused(
    output: Path, small_sample: Path, tmp_path: Path
) -> None:
    command = ("import", "--dataset", output, "--variant")
    assert {"mixed_p50", "bg_blurred", "only_bg_t_telea"} <= VARIANTS.keys()
    for name in (*TAKEN[:4], *TAKEN[5:], *WRONG, *PAPER):
        assert f"--variant {name!r} is no name" in refusal(*command, f"{name}={tmp_path}"), name
    for words, says in (
        (["haze"], "expected NAME=DIR or NAME=TAR, and each name once"),
        ([f"haze={tmp_path},haze={output}"], "and each name once"),
        ([f"haze={output}/parquet"], "lies inside --dataset"),
        ([f"haze={tmp_path}/none"], "is neither a folder nor a file that can be read"),
        ([f"haze={tmp_path}", "--from", tmp_path], "from does not go with --dataset and --variant"),
        ([f"haze={tmp_path}", "--split", "val"], "split does not go with --dataset"),
    ):
        assert says in refusal(*command, *words)
    assert "--variant NAME=DIR|TAR is required" in refusal("import", "--dataset", output)
    assert "--dataset DIR is required" in refusal("import", "--variant", "a=b")


def of_same_sizes(output: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Makes two folders of edits, whose files of a variant have the same sizes."""
    old, new = turned(output, tmp_path / "old"), turned(output, tmp_path / "new")
    for shard in dataset_in(output).shards("val"):
        keys = [row["key"] for row in dataset_in(output).index_of_shard("val", shard)]
        for key, other in zip(keys, [*keys[1:], *keys[:1]], strict=True):
            shutil.copy(old / f"{key}.png", new / f"{other}.png")
    return old, new


def test_importing_an_archive_again_mends_what_a_killed_import_left(
    output: Path, tmp_path: Path
) -> None:
    run_here("export", "--dataset", output, "--to", tmp_path / "exported")
    back, saved = tmp_path / "back", tmp_path / "saved"
    archive = ("import", "--from", tmp_path / "exported", "--output", back)
    run_here(*archive)
    old, new = of_same_sizes(back, tmp_path)
    take_up(back, f"hue={old}")
    back.rename(saved)
    for number in itertools.count(step=5):
        shutil.copytree(saved, back)
        command = ("import", "--dataset", back, "--variant", f"hue={new}")
        was_killed = killed_before_change(number, partial(run_here, *command))
        run_here(*archive)
        assert_sound(back)
        shutil.rmtree(back)
        if not was_killed:
            break
    assert number > 5


def test_an_import_that_is_killed_is_finished_by_the_next(output: Path, tmp_path: Path) -> None:
    """Replaces a variant by one with files of the same sizes; another import may come between."""
    old, new = of_same_sizes(output, tmp_path)
    take_up(output, f"hue={old}", f"same={old}")
    command = ("import", "--dataset", output, "--variant", f"hue={new}")
    whole = Path(shutil.copytree(output, tmp_path / "whole"))
    take_up(whole, f"hue={new}")
    expected, saved = results_of(whole), output.rename(tmp_path / "saved")
    kinds = set()
    for number in itertools.count(step=4):
        shutil.copytree(saved, output)
        was_killed = killed_before_change(number, partial(run_here, *command))
        if number % 8:
            printed = take_up(output, f"same={old}")
            kinds.add("hue is left out" in printed)
            assert_sound(output)
        take_up(output, f"hue={new}")
        assert results_of(output) == expected
        assert not [*output.glob(".in9/import*"), *output.glob(".in9/staging/*/*")]
        shutil.rmtree(output)
        if not was_killed:
            break
    assert kinds == {True, False}
