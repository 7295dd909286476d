"""Tests Waterbirds' layout with a reader that does what group_DRO's and WILDS' do."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset
import pytest
import scipy.stats
from PIL import Image
from runs import ONE, QUICK, csv_rows, dataset_in, keys, results_of, run_here

from pipeline.errors import UsageError
from pipeline.released.waterbirds import plan_waterbirds
from pipeline.storage.store import Store
from transforms.selection import held_out

WNIDS = ("n02085620", "n01530575", "n01440764")
"""A dog, a bird and a fish."""
VARIANTS = ("mixed_p95", "mixed_rand")
BIRDS = ("--layout", "waterbirds", "--variants", ",".join(VARIANTS))
Shown = tuple[int, int, int, bytes]
"""What a reader gets of a picture: split, y, place, and the bytes of its file."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset of pictures of noise, 160 to train on and 64 to test on, most in groups of two."""
    root, random = tmp_path_factory.mktemp("waterbirds"), np.random.default_rng(0)
    rows = ["image,class,xmin,ymin,xmax,ymax,group,split"]
    for split, count in (("train", 160), ("val", 64)):
        for number in range(count):
            path = root / f"{split}_{number}.png"
            pixels = random.integers(0, 256, (6, 6, 3)).astype(np.uint8)
            Image.fromarray(pixels).resize((32, 32)).save(path)
            group = f"{split} {number // 2}" if number % 8 < 6 else ""
            rows.append(f"{path},{WNIDS[number % 3]},8,8,24,24,{group},{split}")
    (root / "input_table.csv").write_text("\n".join(rows))
    flags = ("--variants", "original,mixed_p95,mixed_rand", "--replicates", 2, *QUICK, *ONE)
    more = ("--split", "train,val", *keys(images_per_shard=64), "--output", root / "out")
    run_here("generate", "--input", root / "input_table.csv", *flags, *more)
    return root / "out"


def read(folder: Path) -> tuple[list[Shown], list[dict[str, str]]]:
    """Reads an export by `metadata.csv` alone, as both readers do: (pictures, rows)."""
    rows, shown = csv_rows(folder / "metadata.csv"), []
    for number, row in enumerate(rows, 1):
        with Image.open(folder / row["img_filename"]) as picture:
            assert picture.convert("RGB").size == (64, 64)
        image = (folder / row["img_filename"]).read_bytes()
        shown.append((int(row["split"]), int(row["y"]), int(row["place"]), image))
        columns = ["img_id", "img_filename", "y", "split", "place", "place_filename"]
        assert ([*row], row["img_id"]) == (columns, str(number))
    assert results_of(folder).keys() == {*(row["img_filename"] for row in rows), "metadata.csv"}
    return shown, rows


def expected(
    dataset: Path, splits: tuple[str, str], holdout: float, classes: list[int]
) -> dict[Shown, str]:
    """Returns the pictures that an export should have, by the index, and the unit of each."""
    units_of, opened = {}, dataset_in(dataset)
    for is_test, (split, variant) in enumerate(zip(splits, VARIANTS, strict=True)):
        files = sorted((dataset / "index").glob(f"{split}-*"))
        index: list[dict[str, Any]] = pyarrow.dataset.dataset(files).to_table().to_pylist()
        rows = {row["key"]: row for row in index if row["selected"]}
        units = {key: row["group"] or key for key, row in rows.items()}
        first = dict(zip(units, held_out([*units.values()], holdout / 2 or 0.5), strict=True))
        if holdout:
            is_out = held_out([*units.values()], holdout)
            rows = {
                k: row for (k, row), o in zip(rows.items(), is_out, strict=True) if o == is_test
            }
        usable = {key: row["label"] for key, row in rows.items() if row["label"] in classes}
        names = [name for name in opened.variants if str(name.variant) == variant]
        images = {
            (name, sample.key): sample.image
            for name in names
            for shard in opened.shards(split)
            for sample in opened.samples(split, shard, name)
        }
        for key, label in usable.items():
            places = [(usable.get(rows[key][f"{name}_bg_key"]), name) for name in names]
            place, name = next((one for one in places if one[0] is not None), (None, names[0]))
            if place is not None:
                part = (1 if first[key] else 2) if is_test else 0
                numbers = classes.index(label), classes.index(place)
                units_of[part, *numbers, images[name, key]] = units[key]
    return units_of


@pytest.mark.parametrize("named", [(), ("fish", "dog")])
@pytest.mark.parametrize("holdout", [0, 0.5])
def test_a_reader_gets_what_the_index_says(
    holdout: float, named: tuple[str, ...], made: Path, tmp_path: Path
) -> None:
    names = dataset_in(made).taxonomy.names
    command = ("export", "--dataset", made, *BIRDS, "--to", tmp_path)
    # What an earlier export wrote is removed.
    run_here(*command, "--classes", "bird,dog")
    flags = ("--holdout", holdout, *(["--classes", ",".join(named)] if named else []))
    assert "removed" in run_here(*command, *flags).out
    shown, rows = read(tmp_path)
    splits = ("train", "train" if holdout else "val")
    wanted = expected(made, splits, holdout, [names.index(name) for name in named or names])
    assert sorted(shown) == sorted(wanted)
    units = [{unit for one, unit in wanted.items() if one[0] == split} for split in range(3)]
    assert not units[1] & units[2]
    images: tuple[set[str], set[str]] = set(), set()
    for row in rows:
        path = Path(row["img_filename"])
        both = path.stem.removeprefix("fg_").split("_bg_")
        images[row["split"] != "0"].update(path.parts[1] + name for name in both)
        assert row["place_filename"].endswith(f"/{both[1]}.JPEG")
    assert not images[0] & images[1]
    # With two of three classes, half of the other backgrounds are left out.
    own = [y == place for split, y, place, _ in shown if split == 0]
    low, high = scipy.stats.binom.interval(0.999, len(own), 0.95 / 0.975 if named else 0.95)
    assert low <= sum(own) <= high


def test_an_export_is_whole_or_has_no_metadata(made: Path, tmp_path: Path) -> None:
    command = ("export", "--dataset", made, *BIRDS, "--to", tmp_path)
    run_here(*command, "--classes", "dog,fish")
    *_, last = sorted((made / "parquet" / "mixed_rand").glob("val-*"))
    intact = last.read_bytes()
    last.write_bytes(intact[:99])
    run_here(*command, code=1)
    assert not (tmp_path / "metadata.csv").exists()
    last.write_bytes(intact)
    run_here(*command)
    whole = results_of(tmp_path)
    assert "nothing to do" in run_here(*command).out
    next(tmp_path.glob("mixed_*/*/*/*")).unlink()
    (tmp_path / "metadata.csv").unlink()
    run_here(*command)
    assert results_of(tmp_path) == whole
    for variants, splits, why in (
        ((), ("train", "train"), "no split val to test on"),
        (("mixed_p95_r1", "mixed_rand"), ("train", "val"), "mixed variants mixed_rand, mixed_p95;"),
    ):
        with pytest.raises(UsageError, match=why):
            plan_waterbirds(dataset_in(made), Store(str(tmp_path)), variants, (), splits, 0)
