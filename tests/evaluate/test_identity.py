"""Tests what results depend on: each field of a model and of its settings, changed alone."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from runs import dataset_in

from pipeline.analyses.attack.stage import PlannedAttack
from pipeline.analyses.evaluation.parts import PlannedEvaluation
from pipeline.analyses.imagenet.stage import ImageNetImage, ImageNetListing, ImageNetShards
from pipeline.analyses.saliency.stage import PlannedSaliency
from pipeline.evaluate.planned import Evaluation
from pipeline.models.identity import ModelIdentity, PredictConfig, Preprocessing
from pipeline.runtime.progress import Progress
from transforms.taxonomy import imagenet9

MODEL = ModelIdentity(
    name="m",
    architecture="a",
    weights="w",
    weights_sha256="0" * 64,
    preprocessing=Preprocessing(32, False, (0.5,) * 3, (0.5,) * 3, "bicubic", 0.9, "center"),
    num_outputs=9,
)
OTHER_PREPROCESSING: dict[str, object] = {
    "input_size": 33,
    "fixed_size": True,
    "mean": (0.5, 0.5, 0.6),
    "std": (0.5, 0.5, 0.6),
    "interpolation": "nearest",
    "crop_pct": 0.8,
    "crop_mode": "squash",
}
OTHER_MODEL: dict[str, object] = {
    "name": "n",
    "architecture": "b",
    "weights": "v",
    "weights_sha256": "1" * 64,
    "num_outputs": 1000,
}
OTHER_RUN: dict[str, object] = {
    "device": "cuda",
    "precision": "bf16",
    "compile": True,
    "batch_size": 7,
    "eval_input": "native",
    "holdout": 0.5,
}
ALIKE = {"architecture", "weights", "num_outputs", "device", "batch_size"}
"""Fields that say nothing new, or change the last bits of a score alone."""
ON_STORED_PICTURES = {"eval_input", "holdout"}
"""Fields that do not concern images of ImageNet, which are always native."""
NAMES_FOLDER = {"name", "precision", "compile", "eval_input", "holdout"}


@pytest.fixture(scope="module")
def identities(three_draws: Path) -> Any:
    """Function from what differs to the folder of results, and by stage its fingerprint."""
    dataset = dataset_in(three_draws)
    listing = ImageNetListing((ImageNetImage("/i", "i", 1, 0),), 0)

    def identify(**other: Any) -> tuple[str, dict[str, str]]:
        preprocessing, model, run = (
            {name: value for name, value in other.items() if name in of}
            for of in (OTHER_PREPROCESSING, OTHER_MODEL, OTHER_RUN)
        )
        holdout = run.pop("holdout", 0.0)
        evaluation = Evaluation(
            store=dataset.store,
            models=("m",),
            split="val",
            predict=PredictConfig(**run),
            progress=Progress.for_store(dataset.store),
            holdout=holdout,
        )
        identity = dataclasses.replace(
            MODEL, preprocessing=dataclasses.replace(MODEL.preprocessing, **preprocessing), **model
        )
        described = evaluation.describe(dataset, identity)
        works = (
            PlannedEvaluation(evaluation, imagenet9()),
            PlannedAttack(evaluation, imagenet9(), 9, 9),
            PlannedSaliency(evaluation, imagenet9()),
        )
        of_stages = {
            work.stage: work.for_model(dataset, described).fingerprint(0) for work in works
        }
        shards = ImageNetShards(dataset.store, described, "f", "/", listing)
        return described.folder, {**of_stages, "imagenet": shards.fingerprint(0)}

    return identify


def test_every_field_is_tried() -> None:
    for kind, fields in (
        (Preprocessing, OTHER_PREPROCESSING),
        (ModelIdentity, {**OTHER_MODEL, "preprocessing": 0, "answers": 0, "features": 0}),
        (PredictConfig, {name: 0 for name in OTHER_RUN if name != "holdout"}),
    ):
        assert {field.name for field in dataclasses.fields(kind)} == fields.keys()


@pytest.mark.parametrize("field", [*OTHER_PREPROCESSING, *OTHER_MODEL, *OTHER_RUN])
def test_a_field_changes_what_depends_on_it_and_nothing_else(identities: Any, field: str) -> None:
    value = {**OTHER_PREPROCESSING, **OTHER_MODEL, **OTHER_RUN}[field]
    (folder, before), (other_folder, after) = identities(), identities(**{field: value})
    assert (folder != other_folder) == (field in NAMES_FOLDER)
    for stage, fingerprint in before.items():
        depends = field not in ALIKE
        if stage == "imagenet":
            depends = depends and field not in ON_STORED_PICTURES
        assert (after[stage] != fingerprint) == depends, stage
