"""Tests the dial: each picture is one of two, in datasets, and as a variant like any other."""

from pathlib import Path

import pytest
from runs import ONE, QUICK, dataset_in, index_of, results_of, run_here

from pipeline.dataset.folder import selected_rows, training_pictures
from transforms.variants import DIAL_VARIANTS, VariantName, select_variants


@pytest.fixture(scope="module")
def dial(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("dial") / "out"
    flags = ("--variants", "all,dial", "--replicates", 3, *QUICK, *ONE, "--output", output)
    run_here("generate", "--input", small_sample, *flags)
    return output


def pictures_of(output: Path, variant: str) -> dict[str, tuple[bytes, str]]:
    samples = dataset_in(output).samples("val", 0, VariantName.parse(variant))
    return {sample.key: (sample.image, sample.fields["bg_key"]) for sample in samples}


def test_each_picture_is_one_of_two_and_all_other_files_stay(
    dial: Path, three_draws: Path, small_sample: Path, tmp_path: Path
) -> None:
    new, old = results_of(dial), results_of(three_draws)
    others = [path for path in old if path.startswith(("parquet/", "layers/"))]
    assert all(new[path] == old[path] for path in others)
    only = ("--variants", "mixed_rand", "--mixed_rand", "other", "--replicates", 3, *QUICK, *ONE)
    run_here("generate", "--input", small_sample, *only, "--output", tmp_path / "other")
    index = {row["key"]: row for row in index_of(dial) if row["selected"]}
    for draw in ("", "_r1", "_r2"):
        same = pictures_of(dial, f"mixed_same{draw}")
        other = pictures_of(tmp_path / "other", f"mixed_rand{draw}")
        before: set[str] = set()
        for name in DIAL_VARIANTS:
            shown = pictures_of(dial, f"{name}{draw}")
            of_class = {key for key, picture in shown.items() if picture == same[key]}
            assert all(shown[key] == other[key] for key in shown.keys() - of_class)
            assert before <= of_class
            before = of_class
            for key, (_, background) in shown.items():
                assert index[key][f"{name}{draw}_bg_key"] == background
                is_own = index[background]["label"] == index[key]["label"]
                assert is_own == (key in of_class)
            everyone = {"mixed_p00": set(), "mixed_p100": set(index)}
            assert of_class == everyone.get(name, of_class)


def test_models_are_trained_on_it_and_its_export_comes_back(dial: Path, tmp_path: Path) -> None:
    dataset = dataset_in(dial)
    chosen = training_pictures(dataset, "val", "mixed_p50", 0.5)
    tested = {row["key"] for row in selected_rows(dataset, "val", 0.5)}
    index = {row["key"]: row for row in index_of(dial)}
    assert {index[key][f"{name}_bg_key"] for key, name in chosen.items()}.isdisjoint(tested)
    assert chosen
    run_here("export", "--dataset", dial, "--to", tmp_path / "export")
    run_here("import", "--from", tmp_path / "export", "--output", tmp_path / "back")
    assert dataset_in(tmp_path / "back").variants == dataset.variants


def test_names_that_are_not_of_the_dial_are_refused() -> None:
    for name, hint in (
        ("mixed_p90_telea", "unknown variant 'mixed_p90_telea'"),
        ("mixed_p9", "did you mean mixed_p9"),
        ("python:own_variants:mixed_p50", "is taken"),
    ):
        with pytest.raises(ValueError, match=hint):
            select_variants([f"{name}@1" if ":" in name else name])
