"""Frozen encoders, whose features a head classifies: `probe:ENTRY` and `knn:ENTRY`.

ENTRY is that of any model that can be run, with or without a head. What is loaded, fetched and
hashed is the encoder alone, so both forms of an entry have the same weights.
"""

import dataclasses
from collections.abc import Callable

import torch

from pipeline.errors import UsageError
from pipeline.models.answers import has_network
from pipeline.models.identity import Origin, encoder_of
from pipeline.models.source import LoadedModel, Recipe, Source
from transforms.taxonomy import Taxonomy


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenEncoder(Source):
    """`probe:ENTRY` or `knn:ENTRY`, of which the source of ENTRY knows everything.

    Attributes:
      source_of: returns the source of an entry; raises UsageError if there is none.
    """

    form = "probe:ENTRY or knn:ENTRY"
    text = "a linear probe, or nearest neighbours, on the features of any model but answers"

    source_of: Callable[[str], Source]

    def _source(self, spec: str) -> Source:
        """Returns the source of the encoder; raises UsageError if the entry cannot be one's."""
        inner = encoder_of(spec)
        if not inner or encoder_of(inner) or not has_network(inner):
            raise UsageError(
                f"--models {spec}: behind probe: or knn: comes the entry of one encoder that can "
                "be run, such as probe:resnet50 or knn:hf:facebook/dinov2-small"
            )
        return self.source_of(inner)

    def check(self, spec: str) -> None:
        self._source(spec).check(encoder_of(spec))

    def check_installed(self, spec: str) -> None:
        self._source(spec).check_installed(encoder_of(spec))

    def load(self, spec: str, taxonomy: Taxonomy, *, encoder: bool = True) -> LoadedModel:
        model = self._source(spec).load(encoder_of(spec), taxonomy, encoder=encoder)
        return dataclasses.replace(model, name=f"{spec.partition(':')[0]}:{model.name}")

    def build(self, name: str, recipe: Recipe) -> torch.nn.Module:
        return self._source(name).build(encoder_of(name), recipe)

    def origin(self, spec: str, model: LoadedModel) -> Origin | None:
        return self._source(spec).origin(encoder_of(spec), model)

    def path(self, spec: str) -> str:
        return self._source(spec).path(encoder_of(spec))

    def digest(self, spec: str) -> str | None:
        return self._source(spec).digest(encoder_of(spec))

    def full_name(self, spec: str) -> str:
        return f"{spec.partition(':')[0]}:{self._source(spec).full_name(encoder_of(spec))}"

    def needs_hub(self, spec: str) -> bool:
        return self._source(spec).needs_hub(encoder_of(spec))
