"""The parts of the accuracy on ImageNet."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from pipeline.analyses.evaluation.summaries import read_summaries
from pipeline.analyses.imagenet.results import describe_imagenet
from pipeline.analyses.parts import Parts
from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.folder import Dataset
from pipeline.errors import UsageError
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.work import Work
from pipeline.storage.files import absolute
from transforms.taxonomy import Taxonomy


class ImageNetParts(Parts):
    """The parts of the accuracy on ImageNet. Its results are shown by the trend."""

    def plan(
        self,
        arguments: argparse.Namespace,
        evaluation: Evaluation,
        config: DatasetConfig,
        taxonomy: Taxonomy,
    ) -> Work | None:
        """Same as `Parts.plan`."""
        root = getattr(arguments, "imagenet", None)
        if not root:
            return None
        if config.taxonomy is not None:
            raise UsageError(
                "--imagenet is for the trend of ImageNet-9, but this dataset has another taxonomy; "
                "leave it out"
            )
        from pipeline.analyses.imagenet.stage import SPLIT, ImageNetWork
        from pipeline.inputs.image_folder import find_images

        # Raises UsageError if there are no images.
        find_images(root, SPLIT, "--imagenet")
        return ImageNetWork(evaluation, absolute(root), taxonomy)

    def lines(self, dataset: Dataset, work: Work | None) -> Iterator[str]:
        """Same as `Parts.lines`."""
        if work:
            summaries, _ = read_summaries(dataset)
            fingerprint, entries = dataset.manifest.fingerprint, work.evaluation.entries
            yield describe_imagenet(dataset.store, fingerprint, summaries, entries)


PARTS = ImageNetParts()
