"""Tests the flags of a dataset: their fingerprints, and how card and Croissant describe them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from runs import dataset_in

from pipeline.dataset.config import ComposeConfig, DatasetConfig, SegmentConfig
from pipeline.dataset.croissant import COLUMNS, croissant_metadata
from pipeline.dataset.datasheet import datasheet, steps_of
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.sinks import SAMPLE_FIELDS
from transforms.hashing import fingerprint
from transforms.taxonomy import imagenet9

# A value other than the default for every flag, and in NEEDS the other flags that it requires.
SEGMENT = SegmentConfig(
    *(128, 300, "bicubic", "box", 1, (), "each", 0.8, 0.4, 0.2, "pad", "in9l")
).flags() | {"segmenter_parameters": ("version=3", "size=7")}
COMPOSE = vars(
    ComposeConfig(("original",), ("webdataset",), "png", 90, 1, "7", "other", True, 3, "4 pictures")
)
REST = vars(DatasetConfig(("train", "val"), "1 key", "2 keys", "2 superclasses", 9, 6, "drop"))
NEEDS = {
    "segmenter_parameters": {"segmenter": "python:mine:cut"},
    "selection": {"variants": ("original",)},
}


def flags(**others: Any) -> DatasetConfig:
    return DatasetConfig.from_flags({**DatasetConfig().flags(), **others})


EACH = {
    name: flags(**{name: ({**REST, **COMPOSE, **SEGMENT})[name], **NEEDS.get(name, {})})
    for name in DatasetConfig().flags()
}


def test_every_flag_survives_json_and_identifies_the_dataset() -> None:
    for name, config in EACH.items():
        assert DatasetConfig.from_flags(json.loads(json.dumps(config.flags()))) == config
        differing = sorted({name, *NEEDS.get(name, {})})
        assert config.differing_flags(DatasetConfig()) == differing
    every = [config.fingerprint() for config in (DatasetConfig(), *EACH.values())]
    assert len(set(every)) == len(every)
    with pytest.raises(ValueError, match="Expected `int`, got `str`"):
        flags(replicates="2")
    with pytest.raises(ValueError, match="newer release: flags age, colour are not known"):
        flags(colour="red", age=3)


def test_a_flag_changes_what_it_decides_and_nothing_else() -> None:
    base = DatasetConfig()
    for name, config in EACH.items():
        changed = {name, *NEEDS.get(name, {})}
        decides = config.segment.fingerprint() != base.segment.fingerprint()
        assert decides == bool(changed & set(SEGMENT)), name
        decides = config.compose.fingerprint() != base.compose.fingerprint()
        # Composing counts the scenes that were drawn, not the flag `backgrounds`.
        assert decides == bool(changed & set(COMPOSE) - {"backgrounds"}), name
    # cv2 is another implementation that gives the same masks.
    assert flags(segmenter="cv2").fingerprint() == base.fingerprint()


def test_of_an_import_only_some_flags_are_known() -> None:
    imported = dataclasses.replace(flags(image_size=512, resize=600, seed=4), origin="imported")
    assert DatasetConfig.from_flags(imported.flags()).flags() == imported.flags()
    assert not {"seed", "resize", "segmenter"} & set(imported.flags())
    differing = flags(image_size=512, resize=600, seed=4).differing_flags(imported)
    assert {"origin", "seed", "resize"} <= set(differing)
    assert "image_size" not in differing
    assert imported.differing_flags(flags(image_size=512, resize=600, seed=4)) == differing
    assert DatasetConfig.from_flags({"origin": "imported"}).is_imported
    assert imported.fingerprint() == dataclasses.replace(imported, limit=9).fingerprint()
    assert imported.fingerprint() != dataclasses.replace(imported, images_per_shard=6).fingerprint()


def test_fingerprints_are_equal_where_their_parts_are() -> None:
    parts = ([1], [[1]], ["1"], [1, 2], [[1, 2]], [2, 1], [{"a": 1, "b": 2}], [{"a": 2, "b": 1}])
    assert len({fingerprint(*part) for part in parts}) == len(parts)
    assert fingerprint({"b": 2, "a": (1,)}) == fingerprint({"a": [1], "b": 2})


@pytest.fixture(scope="module")
def manifest(three_draws: Path) -> Manifest:
    return dataset_in(three_draws).manifest


def test_steps_and_limits_are_those_of_the_flags(manifest: Manifest) -> None:
    def told(config: DatasetConfig) -> str:
        sheet = datasheet(dataclasses.replace(manifest, config=config))
        return "\n".join([*steps_of(config), *(line for lines in sheet.values() for line in lines)])

    base = DatasetConfig()
    for config in (base, *EACH.values()):
        numbers = [step.partition(". ")[0] for step in steps_of(config)]
        assert numbers == [str(position + 1) for position in range(len(numbers))]
        assert not set("{}") & set(told(config))
    for name, text in (
        *(("image_size", "128 x 128"), ("resize", "resized to 300"), ("max_box", "at most 0.8")),
        *(("objects", "is an image of its own"), ("mixed_rand", "draws from other classes")),
        *(("own_background", "may be the image's own"), ("per_class", "`--per_class 7`")),
        *(("segmenter_parameters", "`python:mine:cut 3 size=7`"), ("seed", "`--seed 1`")),
    ):
        assert text in told(EACH[name])
        assert text not in told(base)
    with_masks = flags(segmenter="masks")
    imported = dataclasses.replace(with_masks, origin="imported")
    masks, jpeg, one = "Masks have errors", "; `layers/` is lossless", "one of several are not"
    for text, config in (
        *((masks, with_masks), (masks, EACH["selection"]), (jpeg, EACH["layers"])),
        *((jpeg, imported), (one, EACH["objects"]), (one, imported)),
    ):
        assert text in told(base)
        assert text not in told(config)
    assert masks in told(imported)


def test_croissant_lists_each_file_once_and_has_every_column(manifest: Manifest) -> None:
    descriptions = dict.fromkeys(map(str, manifest.config.compose.composed), "a version")
    words = {"name": "n", "licence": "l", "cite": "c"}
    metadata = json.loads(
        croissant_metadata(manifest, imagenet9(), descriptions=descriptions, **words)
    )
    assert metadata["license"] == "l"
    stored = [file.path for file in manifest.files if file.path.startswith("parquet/")]
    sets = [f"files-{name}" for name in descriptions]
    assert sorted(each["@id"] for each in metadata["distribution"]) == sorted(sets + stored)
    for version, files in zip(metadata["recordSet"][1:], sets, strict=True):
        assert {each["source"]["fileSet"]["@id"] for each in version["field"]} == {files}
        names = [each["name"] for each in version["field"]]
        assert names == ["split", "key", "image", *(field.name for field in SAMPLE_FIELDS)]
        assert [each["description"] for each in version["field"][1:]] == list(COLUMNS.values())
