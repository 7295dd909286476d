"""report.html: one self-contained page of what a dataset holds and what models make of it."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import jinja2

from pipeline.dataset import Dataset
from pipeline.lock import TABLES_LOCK, held
from pipeline.results import read_summaries
from pipeline.sinks import Sample
from pipeline.storage import Store
from transforms.scoring import LABEL_RULES
from transforms.taxonomy import Taxonomy
from transforms.variants import PICTURES

REPORT = "report.html"

# Paper table 2 and the README of its evaluation repository: fractions by variant.
_PUBLISHED = (
    (
        "ResNet-50 (paper)",
        {"original": 0.962, "only_bg_t": 0.178, "mixed_same": 0.823, "mixed_rand": 0.763},
        0.060,
    ),
    (
        "MobileNet-v3 (paper)",
        {"original": 0.910, "only_bg_t": 0.157, "mixed_same": 0.697, "mixed_rand": 0.561},
        0.136,
    ),
    (
        "EfficientNet-b0 (paper)",
        {"original": 0.956, "only_bg_t": 0.119, "mixed_same": 0.797, "mixed_rand": 0.678},
        0.119,
    ),
)


@dataclasses.dataclass(frozen=True)
class Strip:
    """One image in every variant.

    Attributes:
      key: of the image.
      class_name: its superclass.
      pictures: (variant, data URI, class and key of the background or "").
    """

    key: str
    class_name: str
    pictures: tuple[tuple[str, str, str], ...]


def render_report(dataset: Dataset, taxonomy: Taxonomy) -> str:
    """Renders the page from what is there; the same content gives the same text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}"
    manifest = dataset.manifest
    summaries, stale = read_summaries(dataset.store, manifest.fingerprint)
    variants = [name for name in dataset.variants if name in PICTURES]
    return environment.get_template(REPORT).render(
        manifest=manifest,
        classes=taxonomy.names,
        variants=variants,
        rules=list(LABEL_RULES),
        models=[_model(summary) for summary in summaries],
        stale=stale,
        published=_PUBLISHED,
        strips=_strips(dataset, taxonomy, variants),
    )


def _model(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary, with its rows by label rule and variant."""
    rows = {(row["label_rule"], row["variant"]): row for row in summary["accuracy"]}
    gaps = {row["label_rule"]: row for row in summary["gaps"]}
    return {**summary, "rows": rows, "gap_of": gaps}


def _strips(dataset: Dataset, taxonomy: Taxonomy, variants: list[str]) -> list[Strip]:
    """One image of each class, of the first shard that has one; no more shards are read
    than that takes."""
    split = dataset.manifest.config.split[0]
    found: dict[int, Strip] = {}
    for shard in dataset.shards(split):
        chosen: dict[int, str] = {}
        for row in dataset.index_of_shard(split, shard):
            if row["selected"] and row["label"] not in found:
                chosen.setdefault(row["label"], row["key"])
        samples = {
            variant: _samples_of(dataset, split, shard, variant, set(chosen.values()))
            for variant in variants
            if chosen
        }
        for label, key in chosen.items():
            pictures = [(variant, samples[variant][key]) for variant in variants]
            found[label] = Strip(
                key=key,
                class_name=taxonomy.names[label],
                pictures=tuple(
                    (variant, _data_uri(sample), _background(sample, taxonomy))
                    for variant, sample in pictures
                ),
            )
        if len(found) == taxonomy.num_labels:
            break
    return [strip for _, strip in sorted(found.items())]


def _samples_of(
    dataset: Dataset, split: str, shard: int, variant: str, keys: set[str]
) -> dict[str, Sample]:
    """Samples of a shard by key, reading until all are found."""
    found: dict[str, Sample] = {}
    with contextlib.closing(dataset.samples(split, shard, variant)) as samples:
        for sample in samples:
            if sample.key in keys:
                found[sample.key] = sample
                if len(found) == len(keys):
                    break
    return found


def _data_uri(sample: Sample) -> str:
    kind = "jpeg" if sample.suffix == "jpg" else sample.suffix
    return f"data:image/{kind};base64,{base64.b64encode(sample.image).decode()}"


def _background(sample: Sample, taxonomy: Taxonomy) -> str:
    label = sample.fields["bg_label"]
    return "" if label is None else f"{taxonomy.names[label]}, {sample.fields['bg_key']}"


def write_report(store: Store, taxonomy: Taxonomy) -> bool:
    """Writes the page if it has changed; returns whether it has."""
    with held(store, TABLES_LOCK, wait=60):
        return store.update(REPORT, render_report(Dataset.open(store), taxonomy).encode())


class WriteReport(beam.DoFn):
    """Dataset fingerprint -> the same; writes the page."""

    def __init__(self, store: Store, taxonomy: Taxonomy) -> None:
        self._store = store
        self._taxonomy = taxonomy

    def process(self, dataset: str) -> Iterator[str]:
        write_report(self._store, self._taxonomy)
        yield dataset
