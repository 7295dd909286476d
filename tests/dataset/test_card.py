"""Tests the flags of a dataset, and the card and Croissant that describe it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import datasets
import mlcroissant
import numpy as np
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard
from runs import dataset_in, manifest_of

from pipeline.dataset.card import card_files, notes_of, size_category
from pipeline.dataset.config import ComposeConfig, DatasetConfig, SegmentConfig
from pipeline.dataset.croissant import COLUMNS
from pipeline.dataset.datasheet import datasheet, steps_of
from pipeline.dataset.folder import LICENCE, sample_sources
from pipeline.dataset.manifest import NOTHING_STATED, About, Manifest
from pipeline.dataset.records import CARD_FILES
from pipeline.dataset.sinks import SAMPLE_FIELDS
from pipeline.jobs.messages import describe_images
from transforms.hashing import fingerprint
from transforms.taxonomy import IN9_NAMES, Taxonomy, imagenet9
from transforms.variants import PAPER

TOYS = Taxonomy(
    names=("car", "boat"),
    wnids=("red car", "blue car", "boat"),
    labels=(0, 0, 1),
    class_names=("red car", "blue car", "boat"),
)


@pytest.fixture(scope="module")
def manifest(one_worker: Path) -> Manifest:
    return dataset_in(one_worker).manifest


def cards(manifest: Manifest, taxonomy: Taxonomy | None = None) -> dict[str, str]:
    files = card_files(manifest, taxonomy or imagenet9())
    return {path: content.decode() for path, content in files}


def changed(manifest: Manifest, **flags: Any) -> Manifest:
    """Returns the manifest with other flags in its configuration."""
    config = type(manifest.config).from_flags({**manifest.config.flags(), **flags})
    return dataclasses.replace(manifest, config=config)


def test_the_hub_reads_the_card(one_worker: Path) -> None:
    data = DatasetCard.load(one_worker / "README.md").data.to_dict()
    assert data["license"] == "other"
    assert data["size_categories"] == ["n<1K"]
    assert data["task_categories"] == ["image-classification"]
    assert [config["config_name"] for config in data["configs"]] == list(PAPER)
    assert data["configs"][0]["data_files"] == [
        {"split": "val", "path": "parquet/original/val-*.parquet"}
    ]


def test_the_card_says_how_it_was_made_and_what_to_mind(manifest: Manifest) -> None:
    card = cards(manifest)["README.md"]
    for words in (
        *("## How it was made", "seeded before every image (`grabcut_seed 0`)"),
        *("at most 0.9 of the crop", "at least 0.5 of the box", "at least 0.1 of the box"),
        *("## Known limits", "not corrected by hand", "| 0 | dog | 2 |"),
        *("JPEG of quality 95, `fg_mask` as PNG", "All accepted images", "opencv"),
        "| `no_fg` | the foreground cut out, a black silhouette |",
        "| `mixed_rand` | the foreground on a background of a random class |",
    ):
        assert words in card, words
    for name in ("key", "image", *(field.name for field in SAMPLE_FIELDS)):
        assert f"| `{name}` |" in card
    other = cards(
        changed(manifest, seed=7, per_class="min", encoding="png", crop="pad", objects="largest")
    )["README.md"]
    for words in ("`--seed 7`", "`--per_class min`", "stored as PNG", "is black", "the largest is"):
        assert words in other, words
    assert "JPEG" not in other.partition("## How")[2]
    assert "one of several are not in it" in card
    assert "one of several are not in it" not in other


def test_the_card_of_other_data_does_not_call_it_imagenet(manifest: Manifest) -> None:
    samples = {"val": {name: {"car": 3, "boat": 4} for name in PAPER}}
    own = dataclasses.replace(manifest, taxonomy=TOYS, samples=samples)
    files = cards(own, TOYS)
    assert "| 1 | boat | boat | 4 |" in files["README.md"]
    barred = dataclasses.replace(TOYS, names=("car", "boat|ship"))
    samples = {"val": {name: {"car": 3, "boat|ship": 4} for name in PAPER}}
    card = cards(dataclasses.replace(own, taxonomy=barred, samples=samples), barred)["README.md"]
    assert "| 1 | boat\\|ship | boat | 4 |" in card
    assert "ImageNet-9" not in files["README.md"].replace("released ImageNet-9", "")
    assert files["classes.txt"] == "car\nboat\n"
    assert json.loads(files["croissant.json"])["name"] == "background-variants"


def test_the_card_of_the_sample_names_its_own_sources(manifest: Manifest) -> None:
    def of(of_sample: int) -> dict[str, str]:
        images = {"val": {**manifest.images["val"], "of_sample": of_sample}}
        return cards(dataclasses.replace(manifest, images=images))

    selected = manifest.images["val"]["selected"]
    card = of(selected)["README.md"]
    assert "\nlicense: gpl-2.0\n" in card
    title, first, *_ = card.partition("---\n\n")[2].split("\n\n")
    assert title == "# ImageNet-9 variants of the sample"
    assert "composites from the embedded sample, so accuracies on them say nothing" in first
    assert f"\n{sample_sources()}\n" in card
    for words in ("tuxpaint-stamps-default", "Bill Kendrick", "GPL-2.0", "a single cut-out"):
        assert words in card, words
    for words in ("of the input", "terms-of-the-source", "labels are ImageNet's", "not a copy of"):
        assert words not in card, words
    assert json.loads(of(selected)["croissant.json"])["license"] == LICENCE
    # A dataset with a single other picture is not the sample.
    assert of(selected - 1) == cards(manifest)


def test_a_class_without_images_is_named(manifest: Manifest) -> None:
    per_class = {name: int(name not in ("fish", "insect")) for name in IN9_NAMES}
    rejections = {"val": {"no_background": 1}}
    samples = {"val": dict.fromkeys(PAPER, per_class)}
    gone = dataclasses.replace(manifest, samples=samples, rejections=rejections)
    note = "split val has no image of fish, insect; an image whose class has no other is left out"
    assert notes_of(gone) == [f"{note} (no_background)"]
    assert describe_images(gone)[0] == notes_of(gone)[0]
    assert f"**S{note[1:]}" in cards(gone)["README.md"]
    unrejected = dataclasses.replace(gone, rejections={"val": {}})
    assert notes_of(unrejected) == ["split val has no image of fish, insect"]
    # The note names ten of many classes. If no class has an image, another line says so.
    many = {"a": 1, **{f"class {number:02}": 0 for number in range(12)}}
    few = dataclasses.replace(unrejected, samples={"val": dict.fromkeys(PAPER, many)})
    assert notes_of(few)[0].endswith("class 08, class 09 and 2 more")
    nothing = {"val": dict.fromkeys(PAPER, dict.fromkeys(IN9_NAMES, 0))}
    assert notes_of(dataclasses.replace(unrejected, samples=nothing)) == []


def test_whole_images_have_no_masks_to_speak_of(manifest: Manifest) -> None:
    card = cards(changed(manifest, selection="in9l", variants=("original",)))["README.md"]
    assert "# IN-9L" in card
    assert "GrabCut" not in card
    assert "`layers/`" not in card


@pytest.mark.parametrize(
    ("samples", "category"),
    [(0, "n<1K"), (45_405 * 9, "100K<n<1M"), (9_999, "1K<n<10K"), (20_000_000, "10M<n<100M")],
)
def test_sizes_are_called_as_the_hub_does(samples: int, category: str) -> None:
    assert size_category(samples) == category


def test_equal_manifests_give_equal_cards(one_worker: Path, manifest: Manifest) -> None:
    for path, content in cards(manifest).items():
        assert (one_worker / path).read_text() == content
    assert set(cards(manifest)) == set(CARD_FILES)


ABOUT = About("Ann & {Bob}", "https://example.org/us", "CC BY-NC 4.0 <for> *masks*")


def test_what_its_maker_states_is_in_the_manifest_and_the_cards(manifest: Manifest) -> None:
    assert "about" not in json.loads(manifest.to_json())
    stated = dataclasses.replace(manifest, about=ABOUT)
    assert Manifest.from_json(stated.to_json()) == stated != manifest
    before, after = cards(manifest), cards(stated)
    assert before["classes.txt"] == after["classes.txt"]
    assert "Made by Ann & {Bob}. Contact: https://example.org/us\n" in after["README.md"].replace(
        "\\", ""
    )
    assert "stated by its maker: CC BY-NC 4.0 \\<for> \\*masks\\*\n" in after["README.md"]
    for words in ("was not stated (`creator`, `contact`)", "has stated no terms (`terms`"):
        assert words in before["README.md"]
        assert words not in after["README.md"]
    croissant = json.loads(after["croissant.json"])
    assert croissant["license"] == ABOUT.terms
    assert croissant["creator"] == {
        "@type": "sc:Organization", "name": ABOUT.creator, "url": ABOUT.contact
    }  # fmt: skip
    by_mail = dataclasses.replace(manifest, about=About("Ann", "ann@example.org"))
    assert json.loads(cards(by_mail)["croissant.json"])["creator"]["email"] == "ann@example.org"
    for terms, licence in (
        ("masks: CC BY 4.0", "other"),
        ("research only; masks: CC BY 4.0", "research only"),
    ):
        files = cards(dataclasses.replace(manifest, about=About(terms=terms)))
        assert json.loads(files["croissant.json"])["license"] == licence
        assert f"Terms stated by its maker: {terms}\n" in files["README.md"]
    too_long = json.loads(stated.to_json()) | {"about": {"terms": "x" * 1001}}
    with pytest.raises(ValueError, match="length <= 1000"):
        Manifest.from_json(json.dumps(too_long).encode())


def test_card_and_croissant_say_the_same(manifest: Manifest) -> None:
    files = cards(dataclasses.replace(manifest, about=ABOUT))
    croissant, card = json.loads(files["croissant.json"]), files["README.md"].replace("\\", "")
    answers = {name: text for name, text in croissant.items() if name.startswith("rai:")}
    assert len(answers) == 12
    # A sentence of their own has the tool, and the kinds of annotations.
    for name in answers.keys() - {"rai:machineAnnotationTools", "rai:annotationsPerItem"}:
        texts = answers[name]
        for text in [texts] if isinstance(texts, str) else texts:
            assert text in card, name
    listed = manifest.images["val"]["listed"]
    assert f"Of {listed} images listed, {sum(manifest.rejections['val'].values())} were" in card
    assert croissant["version"] == f"1.0.0+{manifest.fingerprint}"
    names = ["Noise or Signal: The Role of Image Backgrounds in Object Recognition", "ImageNet"]
    assert [base["name"] for base in croissant["isBasedOn"]] == names
    assert croissant["isBasedOn"][1]["description"] == "source of the classes"
    files = cards(dataclasses.replace(manifest, taxonomy=TOYS), TOYS)
    own = json.loads(files["croissant.json"])
    assert own["isBasedOn"]["name"] == names[0]
    assert "ImageNet's" not in json.dumps(own)
    assert "\n- imagenet-9\n" in card
    assert "imagenet-9" not in files["README.md"]
    # The address of a dataset is not the paper's.
    assert "url" not in croissant
    assert "never the image's own, nor of its group" in card


@pytest.mark.parametrize("origin", ["made", "imported"])
def test_nobody_but_the_inputs_owner_says_where_pictures_are_from(
    manifest: Manifest, origin: str
) -> None:
    """Photographs of one's own in folders of WordNet ids are not ImageNet's."""
    config = dataclasses.replace(manifest.config, origin=origin)
    images = {"val": {n: m for n, m in manifest.images["val"].items() if n != "of_sample"}}
    files = cards(dataclasses.replace(manifest, config=config, images=images))
    owner = "Pictures are those of the input; only its owner can say where they are from and how"
    for name in ("README.md", "croissant.json"):
        assert f"Classes are ImageNet's. {owner} they were collected." in files[name]
        for claim in ("ictures and classes are ImageNet", "show people", "imagenet-1k", "a few po"):
            assert claim not in files[name], claim
    assert "those of the release" not in files["README.md"]
    command = {"made": "generate", "imported": "import"}[origin]
    assert f"has stated no terms (`terms` of `in9 {command}`)" in files["README.md"]


def test_croissant_comes_back_from_its_library_whole(manifest: Manifest, tmp_path: Path) -> None:
    for name, about in (("stated", ABOUT), ("not", NOTHING_STATED)):
        path = tmp_path / f"{name}.json"
        path.write_text(cards(dataclasses.replace(manifest, about=about))["croissant.json"])
        metadata = mlcroissant.Dataset(jsonld=str(path)).metadata
        assert json.loads(json.dumps(metadata.to_json())) == json.loads(path.read_text())


def test_croissant_validates(one_worker: Path) -> None:
    metadata = mlcroissant.Dataset(jsonld=str(one_worker / "croissant.json")).metadata
    assert metadata.issues.errors == set()
    versions = json.loads((one_worker / "croissant.json").read_text())["recordSet"][1:]
    assert len(versions) == len(PAPER)
    for version in versions:
        descriptions = [each["description"] for each in version["field"][1:]]
        assert descriptions == list(COLUMNS.values())
    # One recommendation is not followed, because a date would make equal datasets differ.
    (warning,) = metadata.issues.warnings
    assert "datePublished" in warning
    files = manifest_of(one_worker)["files"]
    stated = {each.id: each.sha256 for each in metadata.distribution if hasattr(each, "sha256")}
    assert stated == {f["path"]: f["sha256"] for f in files if f["path"].startswith("parquet/")}


@pytest.mark.parametrize("variant", ["mixed_rand", "fg_mask"])
def test_croissant_loads_every_sample(one_worker: Path, variant: str) -> None:
    loaded = mlcroissant.Dataset(jsonld=str(one_worker / "croissant.json"))
    assert [row["classes/name"] for row in loaded.records("classes")] == list(IN9_NAMES)
    records = list(loaded.records(variant))
    rows = [
        row
        for file in sorted((one_worker / "parquet" / variant).glob("*.parquet"))
        for row in pq.read_table(file).to_pylist()
    ]
    assert len(records) == len(rows) > 10
    for record, row in zip(records, rows, strict=True):
        fields = {name.partition("/")[2]: value for name, value in record.items()}
        assert fields.pop("split") == b"val"
        picture = np.asarray(fields.pop("image"))
        assert picture.shape[:2] == (224, 224)
        del row["image"]
        texts = {k: v.encode() if isinstance(v, str) else v for k, v in row.items()}
        assert fields == texts


def test_tars_alone_have_configurations_too(in_tars: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset(str(in_tars), "mixed_same", split="val", cache_dir=cache)
    assert len(loaded) == manifest_of(in_tars)["images"]["val"]["selected"] > 10
    assert loaded[0]["jpg"].size == (64, 64)
    metadata = mlcroissant.Dataset(jsonld=str(in_tars / "croissant.json")).metadata
    assert metadata.issues.errors == set()


# A value other than the default for every flag, and in NEEDS the other flags that it requires.
SEGMENT = {
    **vars(
        SegmentConfig(*(128, 300, "bicubic", "box", 1, (), "each", 0.8, 0.4, 0.2, "pad", "in9l"))
    ),
    "segmenter_parameters": ("version=3", "size=7"),
}
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
