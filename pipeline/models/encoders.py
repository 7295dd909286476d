"""Frozen encoders, whose features a head classifies: `probe:ENTRY` and `knn:ENTRY`.

ENTRY is that of any model that can be run, with or without a head. What is loaded, fetched and
hashed is the encoder alone, so both forms of an entry have the same weights.
"""

import dataclasses
from collections.abc import Callable

import torch

from pipeline.errors import UsageError
from pipeline.models.answers import has_network
from pipeline.models.checkpoint import encoder_of_head
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
        inner = _encoder(spec)
        if not inner or encoder_of(inner) or not has_network(inner):
            raise UsageError(
                f"--models {spec}: behind probe: or knn: comes the entry of one encoder that can "
                "be run, such as probe:resnet50 or knn:hf:facebook/dinov2-small"
            )
        return self.source_of(inner)

    def check(self, spec: str) -> None:
        self._source(spec).check(_encoder(spec))

    def check_installed(self, spec: str) -> None:
        self._source(spec).check_installed(_encoder(spec))

    def load(self, spec: str, taxonomy: Taxonomy, *, encoder: bool = True) -> LoadedModel:
        model = self._source(spec).load(_encoder(spec), taxonomy, encoder=encoder)
        return dataclasses.replace(model, name=_named(spec, model.name))

    def build(self, name: str, recipe: Recipe) -> torch.nn.Module:
        return self._source(name).build(_encoder(name), recipe)

    def origin(self, spec: str, model: LoadedModel) -> Origin | None:
        return self._source(spec).origin(_encoder(spec), model)

    def path(self, spec: str) -> str:
        return self._source(spec).path(_encoder(spec))

    def digest(self, spec: str) -> str | None:
        return self._source(spec).digest(_encoder(spec))

    def full_name(self, spec: str) -> str:
        return _named(spec, self._source(spec).full_name(_encoder(spec)))

    def needs_hub(self, spec: str) -> bool:
        return self._source(spec).needs_hub(_encoder(spec))


def _encoder(spec: str) -> str:
    """Returns the entry of the encoder; the head of `probe:FILE` names it."""
    return encoder_of_head(spec) or encoder_of(spec)


def _named(spec: str, encoder: str) -> str:
    """Returns the name in results of a model whose encoder has this name."""
    return spec if encoder_of_head(spec) else f"{spec.partition(':')[0]}:{encoder}"
