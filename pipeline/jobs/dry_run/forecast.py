"""Forecast: what a job would find and do, from names, annotations and records alone.

No picture is opened. Work of an earlier run counts as done where checksums of the inputs
are remembered, so that nothing has to be read again to know it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

from pipeline.dataset.config import DatasetConfig, SegmentConfig
from pipeline.dataset.manifest import read_manifest
from pipeline.dataset.records import ACCEPTED, read_rows, source_key
from pipeline.dataset.shards import layer_record
from pipeline.generate.cut_source import known_digest, reject_by_name
from pipeline.generate.job import GenerateJob
from pipeline.generate.list_split import list_split
from pipeline.generate.plan import mixed_variants
from pipeline.generate.previous_layers import PreviousLayers, find_layers
from pipeline.generate.shard_elements import make_shards
from pipeline.inputs.checksums import Checksums
from pipeline.inputs.input_format import SplitLayout
from pipeline.inputs.location import read_location
from pipeline.inputs.source_images import SourceImage
from transforms.cutting import check_annotation
from transforms.filters import Reason
from transforms.pairing import group_numbers
from transforms.segmentation import takes_masks
from transforms.selection import has_partners
from transforms.taxonomy import OUTSIDE

_BY_ANNOTATION = frozenset(
    {
        Reason.INVALID_KEY,
        Reason.DUPLICATE_KEY,
        Reason.EXCLUDED,
        Reason.MISSING_ANNOTATION,
        Reason.UNREADABLE_ANNOTATION,
        Reason.NOT_ONE_BOX,
        Reason.INVALID_BOX,
        Reason.BOX_TOO_LARGE,
        Reason.BOX_OFF_CENTER,
    }
)
"""Reasons that need no look at the picture."""


@dataclasses.dataclass(frozen=True)
class SplitForecast:
    """What a job would do with a split.

    Attributes:
      split: its name.
      listed: images of the taxonomy's classes.
      outside: images of other classes, which are only counted.
      other_files: files beside the images that are none.
      classes: images by superclass name.
      rejected: images by reason, as far as names and annotations tell.
      done: images whose layer, or rejection by their pixels, an earlier run has left.
      accepted: those of `done` that have a layer, once for each.
      left: the images to segment.
      served: whether each of `candidates` would find a background for every mixed variant, if all
        of them were accepted.
    """

    split: str
    listed: int
    outside: int
    other_files: int
    classes: dict[str, int]
    rejected: dict[str, int]
    done: int
    accepted: tuple[SourceImage, ...]
    left: tuple[SourceImage, ...]
    served: tuple[bool, ...]

    @property
    def candidates(self) -> tuple[SourceImage, ...]:
        """Images that are accepted, or may be."""
        return self.accepted + self.left

    @property
    def lonely(self) -> int:
        """How many of them would find none."""
        return self.served.count(False)


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What a job would do.

    Attributes:
      splits: by split.
      is_up_to_date: whether the dataset in the output folder is what the job would make.
    """

    splits: tuple[SplitForecast, ...]
    is_up_to_date: bool

    @property
    def left(self) -> int:
        """How many images are to be segmented, of all splits."""
        return sum(len(split.left) for split in self.splits)


def make_forecast(job: GenerateJob) -> Forecast:
    """Looks at a job's input and at what is there already; writes nothing.

    Raises:
      UsageError: there is nothing to work on, or it cannot be read.
      OSError: an annotation cannot be read.
    """
    manifest = read_manifest(job.store)
    in_place = manifest is not None and manifest.config == job.config and not job.reshard
    splits = []
    for layout in job.layouts:
        split, unchanged = _forecast_split(job, layout)
        splits.append(split)
        in_place &= unchanged
    return Forecast(tuple(splits), in_place)


def _forecast_split(job: GenerateJob, layout: SplitLayout) -> tuple[SplitForecast, bool]:
    """A split's forecast, and whether all of its records in place are up to date."""
    split = layout.split
    images, totals = list_split(job, layout)
    previous = PreviousLayers(job.store, split, job.previous.get(split, totals.counts))
    fates: Counter[str] = Counter()
    accepted: list[SourceImage] = []
    left: list[SourceImage] = []
    unchanged = True
    for shard in make_shards(images, totals):
        checksums = Checksums.for_shard(job.store, split, shard.shard)
        digests = [known_digest(i, job.config.segment, checksums.known) for i in shard.images]
        need_files = job.config.layers == "keep"
        found = find_layers(
            job.layer_staging(), shard, digests, job.config.segment, need_files=need_files
        )
        unchanged &= found is not None and found.path == layer_record(split, shard.shard)
        if found is not None:
            of_key = {image.key: image for image in shard.images}
            columns = ["key", "object", "status"]
            of_image: dict[str, list[str]] = {}
            for row in read_rows(job.store, found.path, columns):
                if row["status"] == Reason.DUPLICATE_KEY:
                    fates[row["status"]] += 1
                else:
                    of_image.setdefault(source_key(row), []).append(row["status"])
            for key, statuses in of_image.items():
                fates[ACCEPTED if ACCEPTED in statuses else statuses[0]] += 1
                accepted += [of_key[key]] * statuses.count(ACCEPTED)
            continue
        for position, image in enumerate(shard.images):
            before = shard.images[position - 1] if position else None
            found_fates = _fates(image, before, digests[position], previous, job.config.segment)
            if not found_fates:
                left.append(image)
            else:
                fates[ACCEPTED if ACCEPTED in found_fates else found_fates[0]] += 1
                accepted += [image] * found_fates.count(ACCEPTED)
    rejected = {name: fates[name] for name in sorted(fates) if name in _BY_ANNOTATION}
    names = (job.taxonomy.names[i.label] for i in images if i.label != OUTSIDE)
    forecast = SplitForecast(
        split=split,
        listed=totals.listed,
        outside=totals.outside,
        other_files=totals.other_files,
        classes=dict(Counter(names)),
        rejected=rejected,
        done=fates.total() - sum(rejected.values()),
        accepted=tuple(accepted),
        left=tuple(left),
        served=_served([*accepted, *left], job.config),
    )
    return forecast, unchanged


def _served(images: Sequence[SourceImage], config: DatasetConfig) -> tuple[bool, ...]:
    """Whether each image has a partner in every mixed variant."""
    # Objects of one image share its background; else only images of one group do.
    keys = [image.key for image in images]
    if config.segment.objects != "each":
        keys = [f"{number}" for number in range(len(images))]
    found = has_partners(
        np.asarray([image.label for image in images], np.int64),
        mixed=mixed_variants(config.compose),
        own_background=config.compose.own_background,
        mixed_rand=config.compose.mixed_rand,
        groups=group_numbers(keys, [image.group for image in images]),
    )
    return tuple(found.tolist())


def _fates(
    image: SourceImage,
    before: SourceImage | None,
    digest: str | None,
    previous: PreviousLayers,
    config: SegmentConfig,
) -> list[str]:
    """The status of an image, or of each of its objects, as far as it is known without opening
    it; none if it is not."""
    by_name = reject_by_name(image, before)
    if by_name is not None:
        return [str(by_name[0])]
    rows = [] if digest is None else previous.rows(image.key, digest)
    if rows:
        return [str(row["status"]) for row in rows]
    if config.is_whole:
        return []
    if takes_masks(config.segmenter):
        if image.mask is None:
            return [str(Reason.MISSING_ANNOTATION)]
        if image.annotation is None:
            return []
    annotation = None if image.annotation is None else read_location(image.annotation)
    reason = check_annotation(annotation, config.rules)
    return [] if reason is None else [str(reason)]
