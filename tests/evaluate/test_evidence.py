"""Tests of the results that pages, tables and claims read, and of what was published."""

import msgspec
import pytest
from made_results import made, of_model

from pipeline.evaluate.evidence import (
    PRETRAINED,
    TRAINED,
    ModelResults,
    Results,
    models_trained_on,
    published_for,
    trained_on,
    training_of,
)
from pipeline.evaluate.summary import Summary


def of_training(entry: str, *, overlap: int | None, outputs: int = 9) -> ModelResults:
    summary = made(Summary, model=entry, num_outputs=outputs, overlap=overlap or msgspec.UNSET)
    return of_model(entry, summary)


def test_models_are_found_by_what_they_were_trained_on() -> None:
    clean = of_training("resnet50=a/only_bg_t.pth", overlap=None)
    overlapping = of_training("resnet50=b/only_bg_t.pth", overlap=3)
    other = of_training("resnet50=a/original.pth", overlap=None)
    pretrained = of_training("resnet50", overlap=None, outputs=1000)
    results = Results((clean, overlapping, other, pretrained))
    assert list(models_trained_on(results, "only_bg_t")) == [clean]
    assert [training_of(one) for one in results.models] == [
        *("only_bg_t", "only_bg_t", "original", None)
    ]
    assert clean.get(Summary) is not None


def test_published_figures_are_found_by_any_name_of_the_model() -> None:
    for published in PRETRAINED:
        for name in published.architectures:
            for spelt in (name, f"tf_{name}.ns_in1k", f"torchvision:{name}"):
                assert published in published_for(spelt)
            assert published_for(f"{name}d") == published_for(f"my_{name}") == ()
        gap = published.accuracy["mixed_same"] - published.accuracy["mixed_rand"]
        assert published.gap == pytest.approx(gap, abs=0.0011)
    assert [p.source for p in published_for("resnet50.a1_in1k")] == ["paper", "README"]
    for variant in TRAINED:
        assert trained_on(f"resnet50=/only_fg/mine-{variant}.pt", 9) == variant
        assert trained_on(f"resnet50=/only_fg/{variant}/mine.pt", 9) is None
        assert trained_on(f"resnet50={variant}.pth", 1000) is None
