"""Saliency: how much of a model's gradient lies on the foreground, a model on output shards."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.analyses.saliency.plan import METHOD, SaliencyPlan, shown_images
from pipeline.analyses.saliency.results import measure, shown_rows
from pipeline.analyses.saliency.shards import SaliencyShards
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.answers import Images, pictures_of
from pipeline.evaluate.predictions import About
from pipeline.evaluate.results import result_file, result_folder, write_result
from pipeline.evaluate.work import Work
from transforms.taxonomy import Taxonomy


class Explain(Work):
    """Saliency of output shards.

    Args:
      plan: what is done.
      taxonomy: the models' heads must fit.
    """

    stage = "saliency"
    unit_name = "saliency_shards"
    pictures_name = "images_explained"
    refuses_overlap = False

    def __init__(self, plan: SaliencyPlan, taxonomy: Taxonomy) -> None:
        super().__init__(plan.evaluation, taxonomy)
        self._plan = plan
        self._chosen: tuple[str, dict[str, int]] | None = None

    def _shown(self, dataset: Dataset) -> dict[str, int]:
        """The pictures to show, for which the whole index is read: once for all models."""
        fingerprint = dataset.manifest.fingerprint
        if self._chosen is None or self._chosen[0] != fingerprint:
            self._chosen = fingerprint, shown_images(dataset, self._plan)
        return self._chosen[1]

    def units(self, dataset: Dataset) -> Sequence[int]:
        """As `Work.units`: output shards."""
        return dataset.shards(self.evaluation.split)

    def size(self, dataset: Dataset, unit: int) -> int:
        """As `Work.size`."""
        files = dataset.shard_files(self.evaluation.split, unit, (self._plan.variant,))
        return sum(file.samples or 0 for file in files)

    def begin(self, dataset: Dataset, about: About) -> SaliencyShards:
        """As `Work.begin`."""
        return SaliencyShards(dataset, self._plan, about, self._shown(dataset))

    def sum_up(self, dataset: Dataset, about: About, entry: str) -> None:
        """As `Work.sum_up`."""
        store, shards = dataset.store, self.begin(dataset, about)
        folder = result_folder(about["model"], about["evaluation"])
        paths = [shards.path(unit) for unit in self.units(dataset)]
        split, variant = self.evaluation.split, self._plan.variant
        images = Images.read(dataset, split)
        unit_of = dict(zip(images.keys.to_pylist(), images.units, strict=True))
        content = {
            **about,
            "of": pictures_of(dataset, split, (variant, "fg_mask")),
            "method": METHOD,
            "variant": variant,
            **measure(store, paths, unit_of),
            "maps": shown_rows(store, paths, list(self._shown(dataset)), folder),
        }
        write_result(store, result_file(folder, "saliency"), content)
        current = {*paths, *(row["file"] for row in content["maps"])}
        for path in list(store.walk(f"results/{folder}/saliency")):
            if path not in current:
                store.delete(path)
