"""Tests the dial: each picture is one of two, in datasets, and as a variant like any other."""

from pathlib import Path

import pytest
from runs import ONE, QUICK, dataset_in, index_of, results_of, run_here

from pipeline.dataset.folder import selected_rows, training_pictures
from transforms.variants import DIAL_VARIANTS, VariantName


@pytest.fixture(scope="module")
def dial(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("dial") / "out"
    flags = ("--variants", "all,dial", "--replicates", 3, *QUICK, *ONE, "--output", output)
    run_here("generate", "--input", small_sample, *flags)
    return output


def pictures_of(output: Path, variant: str) -> dict[str, tuple[bytes, str]]:
    samples = dataset_in(output).samples("val", 0, VariantName.parse(variant))
    return {sample.key: (sample.image, sample.fields["bg_key"]) for sample in samples}


def test_own_classes_come_from_mixed_same_and_all_other_files_stay(
    dial: Path, three_draws: Path
) -> None:
    """A law of pairing says that the other pictures are those of mixed_rand from other classes."""
    new, old = results_of(dial), results_of(three_draws)
    others = [path for path in old if path.startswith(("parquet/", "layers/"))]
    assert all(new[path] == old[path] for path in others)
    index = {row["key"]: row for row in index_of(dial) if row["selected"]}
    for draw in ("", "_r1", "_r2"):
        same = pictures_of(dial, f"mixed_same{draw}")
        before: set[str] = set()
        for name in DIAL_VARIANTS:
            shown = pictures_of(dial, f"{name}{draw}")
            of_class = {key for key, picture in shown.items() if picture == same[key]}
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
