"""Forecasts what a job would find and do, from names, annotations and records alone.

Work of an earlier run counts as done if that run has stored checksums of its inputs; without them,
the inputs would have to be read.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.dataset.config import DatasetConfig, SegmentConfig
from pipeline.dataset.manifest import read_manifest
from pipeline.dataset.records import ACCEPTED
from pipeline.generate.cut_source import reject_by_name
from pipeline.generate.graph import list_split
from pipeline.generate.job import GenerateJob
from pipeline.generate.plan import group_numbers
from pipeline.generate.previous_layers import PreviousLayers, Survey
from pipeline.generate.shard_elements import SplitTotals, make_shards
from pipeline.inputs.location import read_location
from pipeline.inputs.source_images import SourceImage
from transforms.cutting import check_annotation
from transforms.filters import Reason
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
"""Reasons in a record that names or annotations alone have shown. Annotations may also lead to
`too_many_pixels` and `size_mismatch`, but in a record these usually come from the picture."""

_WITHOUT_OWN_KEY = frozenset({Reason.INVALID_KEY, Reason.DUPLICATE_KEY})
"""Reasons for which the key in a record does not identify an image: it may be escaped or shortened,
or is that of another image."""


@dataclasses.dataclass(frozen=True)
class SplitForecast:
    """The part of a forecast that is about one split.

    Attributes:
      classes: number of listed images by superclass name.
      rejected: number of images by reason for rejection, as far as names and annotations show it.
      accepted: images that an earlier run has accepted, once for each accepted object.
      has_partner: for each of `candidates`, whether it would find a background for every mixed
        variant if all candidates were accepted.
      is_up_to_date: whether all records are up to date and in the dataset.
    """

    totals: SplitTotals
    classes: dict[str, int]
    rejected: dict[str, int]
    accepted: tuple[SourceImage, ...]
    left: tuple[SourceImage, ...]
    has_partner: tuple[bool, ...]
    is_up_to_date: bool

    @property
    def candidates(self) -> tuple[SourceImage, ...]:
        """Images that are accepted, or may be accepted."""
        return self.accepted + self.left


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What a job would do, from its output folder and input, with the listed images by split."""

    splits: tuple[SplitForecast, ...]
    listed: dict[SplitTotals, Sequence[SourceImage]]
    is_up_to_date: bool

    @property
    def left(self) -> list[SourceImage]:
        """Images to segment in all splits."""
        return [image for split in self.splits for image in split.left]


def make_forecast(job: GenerateJob) -> Forecast:
    """Makes a job's forecast, writing nothing; UsageError if the input is empty or unreadable."""
    manifest = read_manifest(job.store)
    has_same_flags = (
        manifest is not None
        and (manifest.config, manifest.about) == (job.config, job.about)
        and not job.reshard
    )
    listed = {totals: images for images, totals in (list_split(job, one) for one in job.layouts)}
    splits = tuple(_forecast_split(job, images, totals) for totals, images in listed.items())
    is_up_to_date = has_same_flags and all(split.is_up_to_date for split in splits)
    return Forecast(splits, listed, is_up_to_date)


def _forecast_split(
    job: GenerateJob, images: Sequence[SourceImage], totals: SplitTotals
) -> SplitForecast:
    split = totals.split
    job.origin.refuse_lacking(images)
    previous = PreviousLayers(job.store, split, job.previous.get(split, totals.counts))
    rejected: Counter[str] = Counter()
    accepted: list[SourceImage] = []
    left: list[SourceImage] = []
    is_up_to_date = True
    for shard in make_shards(images, totals):
        found = Survey(job.layer_staging(), job.config, shard.make())
        rows = found.read_rows()
        is_in_place = found.record is not None and found.record.path == found.path
        is_up_to_date &= is_in_place and rows is not None
        statuses: dict[str, list[str]] = {}
        for row in rows or ():
            # The key of an image's object may be invalid, too, but the image's own is not.
            if row.object or row.status not in _WITHOUT_OWN_KEY:
                statuses.setdefault(row.source_key, []).append(row.status)
        preceding = None
        for image, digest in zip(found.images, found.digests, strict=True):
            by_name, preceding = reject_by_name(image, preceding), image
            if by_name is not None:
                rejected[by_name[0]] += 1
                continue
            recorded = statuses.get(image.key, [])
            if rows is None and digest is not None:
                recorded = [row.status for row in previous.rows(image.key, digest)]
            if not recorded and (reason := _reject_by_annotation(image, job.config.segment)):
                rejected[reason] += 1
            elif not recorded:
                left.append(image)
            elif _BY_ANNOTATION.issuperset(recorded):
                rejected[recorded[0]] += 1
            accepted += [image] * recorded.count(ACCEPTED)
    classes = Counter(job.taxonomy.names[i.label] for i in images if i.label != OUTSIDE)
    return SplitForecast(
        totals=totals,
        classes=dict(classes),
        rejected={str(reason): rejected[reason] for reason in sorted(rejected)},
        accepted=tuple(accepted),
        left=tuple(left),
        has_partner=_has_partner([*accepted, *left], job.config),
        is_up_to_date=is_up_to_date,
    )


def _has_partner(images: Sequence[SourceImage], config: DatasetConfig) -> tuple[bool, ...]:
    """Returns for each image whether every mixed variant has a background for it."""
    # Images of one group cannot be each other's background. Neither can objects of one image, whose
    # group is its key in the job, too.
    by_object = config.segment.objects == "each"
    groups = [image.group or (image.key if by_object else None) or None for image in images]
    has_partner: list[bool] = has_partners(
        np.asarray([image.label for image in images], np.int64),
        mixed={name.base for name in config.compose.mixed},
        own_background=config.compose.own_background,
        mixed_rand=config.compose.mixed_rand,
        groups=group_numbers(pa.array(groups, pa.string())),
    ).tolist()
    return tuple(has_partner)


def _reject_by_annotation(image: SourceImage, config: SegmentConfig) -> Reason | None:
    """Returns why an image will be rejected, if its annotation or the lack of a file shows it."""
    if config.keeps_image_whole or image.status:  # Neither needs an annotation.
        return None
    if takes_masks(config.segmenter) and (image.mask is None or image.annotation is None):
        # A mask is enough; boxes are optional.
        return Reason.MISSING_ANNOTATION if image.mask is None else None
    annotation = None if image.annotation is None else read_location(image.annotation)
    return check_annotation(annotation, config.rules)
