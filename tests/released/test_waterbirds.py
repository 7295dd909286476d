"""Tests Waterbirds' layout with a reader that does what group_DRO's and WILDS' do."""

from pathlib import Path
from typing import Any, NamedTuple

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


class Shown(NamedTuple):
    """A picture as a reader gets it: its file's bytes, and the numbers in its row."""

    image: bytes
    split: int
    y: int
    place: int


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset of pictures of noise, 160 to train on and 64 to test on, most in groups of two."""
    root, random = tmp_path_factory.mktemp("waterbirds"), np.random.default_rng(0)
    rows = ["image,class,xmin,ymin,xmax,ymax,group,split"]
    for split, count in (("train", 160), ("val", 64)):
        for number in range(count):
            pixels = random.integers(0, 256, (6, 6, 3)).astype(np.uint8)
            path = root / f"{split}_{number}.png"
            Image.fromarray(pixels).resize((32, 32)).save(path)
            group = f"{split} {number // 2}" if number % 8 < 6 else ""
            rows.append(f"{path},{WNIDS[number % 3]},8,8,24,24,{group},{split}")
    (root / "manifest.csv").write_text("\n".join(rows))
    flags = ("--variants", "original,mixed_p95,mixed_rand", "--replicates", 2, *QUICK, *ONE)
    more = ("--split", "train,val", *keys(images_per_shard=64), "--output", root / "out")
    run_here("generate", "--input", root / "manifest.csv", *flags, *more)
    return root / "out"


def read(folder: Path, num_classes: int) -> tuple[list[Shown], list[dict[str, str]]]:
    """Reads an export by `metadata.csv` alone, as both readers do: (pictures, rows).

    They open `img_filename` in the folder, and take `y`, `place` and `split` as they are.
    """
    rows = csv_rows(folder / "metadata.csv")
    assert [*rows[0]] == ["img_id", "img_filename", "y", "split", "place", "place_filename"]
    shown = []
    for number, row in enumerate(rows, 1):
        with Image.open(folder / row["img_filename"]) as picture:
            assert picture.convert("RGB").size == (64, 64)
        image = (folder / row["img_filename"]).read_bytes()
        shown.append(Shown(image, *(int(row[name]) for name in ("split", "y", "place"))))
        assert row["img_id"] == str(number)
        assert {shown[-1].y, shown[-1].place} <= set(range(num_classes))
    assert results_of(folder).keys() == {*(row["img_filename"] for row in rows), "metadata.csv"}
    return shown, rows


def expected(
    dataset: Path, splits: tuple[str, str], variants: list[str], holdout: float, classes: list[int]
) -> dict[Shown, str]:
    """Returns the pictures that an export should have, by the index, and the unit of each."""
    units_of, opened = {}, dataset_in(dataset)
    for is_test, (split, variant) in enumerate(zip(splits, variants, strict=True)):
        files = sorted((dataset / "index").glob(f"{split}-*"))
        index: list[dict[str, Any]] = pyarrow.dataset.dataset(files).to_table().to_pylist()
        rows = {row["key"]: row for row in index if row["selected"]}
        units = {key: row["group"] or key for key, row in rows.items()}
        if holdout:
            is_out = held_out([*units.values()], holdout)
            rows = {
                k: row for (k, row), o in zip(rows.items(), is_out, strict=True) if o == is_test
            }
        usable = {key: row["label"] for key, row in rows.items() if row["label"] in classes}
        first = dict(zip(units, held_out([*units.values()], holdout / 2 or 0.5), strict=True))
        names = [name for name in opened.variants if str(name.variant) == variant]
        images = {
            (name, sample.key): sample.image
            for name in names
            for shard in opened.shards(split)
            for sample in opened.samples(split, shard, name)
        }
        for key, label in usable.items():
            for name in names:
                if (place := usable.get(rows[key][f"{name}_bg_key"])) is not None:
                    part = (1 if first[key] else 2) if is_test else 0
                    numbers = classes.index(label), classes.index(place)
                    units_of[Shown(images[name, key], part, *numbers)] = units[key]
                    break
    return units_of


def images_in(rows: list[dict[str, str]], splits: str) -> set[str]:
    """Returns the images, foregrounds and backgrounds, that pictures of some splits show."""
    found = set()
    for path in (Path(row["img_filename"]) for row in rows if row["split"] in splits):
        found |= {path.parts[1] + name for name in path.stem.removeprefix("fg_").split("_bg_")}
    return found


@pytest.mark.parametrize("named", [(), ("fish", "dog")])
@pytest.mark.parametrize("holdout", [0, 0.5])
def test_a_reader_gets_what_the_index_says(
    holdout: float, named: tuple[str, ...], made: Path, tmp_path: Path
) -> None:
    names = dataset_in(made).taxonomy.names
    flags = ("--holdout", holdout, *(["--classes", ",".join(named)] if named else []))
    command = ("export", "--dataset", made, "--layout", "waterbirds", "--to", tmp_path)
    # What an earlier export wrote is removed.
    run_here(*command, "--variants", "mixed_rand,mixed_rand")
    assert "removed" in run_here(*command, "--variants", "mixed_p95,mixed_rand", *flags).out
    shown, rows = read(tmp_path, len(named or names))
    classes = [names.index(name) for name in named or names]
    splits = ("train", "train" if holdout else "val")
    wanted = expected(made, splits, ["mixed_p95", "mixed_rand"], holdout, classes)
    assert sorted(shown) == sorted(wanted)
    units = [{unit for one, unit in wanted.items() if one.split == split} for split in range(3)]
    assert not units[1] & units[2]
    assert not images_in(rows, "0") & images_in(rows, "12")
    assert {row["place_filename"].split("/")[1] for row in rows} == set(splits)
    # Of two classes, one of the two others is left out, in half of the 5 %.
    share = 0.95 / 0.975 if named else 0.95
    own = [one.y == one.place for one in shown if one.split == 0]
    low, high = scipy.stats.binom.interval(0.999, len(own), share)
    assert low <= sum(own) <= high


def test_an_export_is_whole_or_has_no_metadata(made: Path, tmp_path: Path) -> None:
    flags = ("--layout", "waterbirds", "--variants", "mixed_p95,mixed_rand", "--to", tmp_path)
    command = ("export", "--dataset", made, *flags)
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
    with pytest.raises(UsageError, match="no split val to test on"):
        plan_waterbirds(dataset_in(made), Store(str(tmp_path)), (), (), ("train", "train"), 0)
