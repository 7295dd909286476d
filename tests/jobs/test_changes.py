"""Tests which changes of images are found between two versions, and the line that sums them up."""

import shutil
from pathlib import Path

import pyarrow as pa
from runs import Run, darken, dataset_in, keys, pictures_of

from pipeline.analyses.evaluation.parts import AccuracyChange, ModelChange, describe_models
from pipeline.jobs.publish import Changes, ImageChanges, compare_images, summary_of, to_markdown


def test_images_are_compared_by_key_and_content(
    run_small: Run, small_input: Path, tmp_path: Path
) -> None:
    output, first, second = (tmp_path / name for name in ("out", "first", "second"))
    run_small("generate", "--variants", "original")
    shutil.copytree(output, first)
    gone, broken, darker, twice, *_, last = pictures_of(small_input)
    gone.unlink()
    broken.write_bytes(b"no picture")
    darken(darker)
    copy = Path(shutil.copy(twice, last.parent))
    run_small("generate", "--variants", "original", "--overwrite", "rebuild")
    shutil.copytree(output, second)

    def kinds(before: Path, after: Path) -> dict[str, list[tuple[str, str]]]:
        compared = compare_images(dataset_in(before), dataset_in(after), "val")
        assert compared.repaired == {}
        return {
            kind: sorted(zip(rows["key"].to_pylist(), rows["status"].to_pylist(), strict=True))
            for kind, rows in compared.kinds.items()
        }

    undecodable, accepted = (broken.stem, "undecodable"), (broken.stem, "accepted")
    duplicate, other = (copy.stem, "duplicate_key"), (darker.stem, "accepted")
    assert kinds(first, second) == {
        "added": [duplicate],
        "removed": [(gone.stem, "accepted")],
        "rejected": sorted([undecodable, duplicate]),
        "accepted": [],
        "changed": sorted([undecodable, other]),
    }
    assert kinds(second, first) == {
        "added": [(gone.stem, "accepted")],
        "removed": [duplicate],
        "rejected": [],
        "accepted": [accepted],
        "changed": sorted([accepted, other]),
    }
    # All images of a dataset with other numbers of shards are read, and nothing differs.
    run_small(
        "generate", "--variants", "original", "--overwrite", "shards", *keys(images_per_shard=5)
    )
    assert not any(kinds(second, output).values())
    # A split that only one of two datasets has is compared with nothing.
    changes = compare_images(dataset_in(first), dataset_in(second), "train")
    assert not any(len(rows) for rows in changes.kinds.values())


def test_the_line_that_sums_up_changes_leaves_no_kind_out() -> None:
    accepted = pa.table({name: ["a", "b"] for name in ("key", "path", "status")})
    row = AccuracyChange("original", 0.1, 0.0, 0.2)
    model = ModelChange("m", ["weights"], 9, "argmax_then_map", [row])
    for images, models, line in (
        (ImageChanges({"accepted": accepted}, {}), [], "images: 2 accepted"),
        (ImageChanges({}, {"mixed_rand": 3}), [], "images: 3 other backgrounds"),
        (ImageChanges({}, {}), [model], "none in images, none in BG-Gap"),
        (ImageChanges({}, {}), [], "none in images, none in accuracies"),
    ):
        results = [describe_models(models, [])]
        changes = Changes("a", "b", images={"val": images}, results=results)
        assert summary_of(to_markdown(changes)) == line
