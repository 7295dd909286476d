"""The job that makes a dataset: its settings, its folder, and where the layers come from.

They come from images that are segmented, or from a recipe's images and masks.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import cv2
from typing_extensions import override

from pipeline.dataset.config import DatasetConfig, SegmentConfig
from pipeline.dataset.manifest import NOTHING_STATED, About
from pipeline.dataset.records import STAGING, ShardCounts, Staging
from pipeline.errors import UsageError, counted
from pipeline.generate.cut_source import Cutter, MaskCutter
from pipeline.generate.recipe import Recipe, RecipeImage, recipe_images
from pipeline.generate.segmenters import index_masks, no_mask
from pipeline.inputs.input_format import SplitLayout
from pipeline.inputs.input_table import InputTable
from pipeline.inputs.layout import list_images
from pipeline.inputs.lists import KeyList, read_key_list
from pipeline.inputs.location import read_location
from pipeline.inputs.source_images import Checksums, Content, FileIndex, SourceImage
from pipeline.runtime.lock import fenced_for_job
from pipeline.runtime.machine import keep_freed_memory
from pipeline.runtime.progress import Progress, count
from pipeline.runtime.workers import Step
from pipeline.storage.store import Store
from transforms.filters import Reason
from transforms.segmentation import takes_masks
from transforms.taxonomy import OUTSIDE, Taxonomy, imagenet9

_SHOWN = 40
"""The most characters of the name of a class that are shown."""


class Listing(NamedTuple):
    """The images of a split.

    Attributes:
      skipped: numbers of images of other classes (`outside`) and of `other_files`.
      unmatched: a line on classes that only the input has, or only the taxonomy; "" if none.
    """

    images: Sequence[SourceImage]
    skipped: Mapping[str, int]
    unmatched: str


class Origin(abc.ABC):
    """Where the layers come from.

    Attributes:
      recipe: the recipe; None for an input. It has decided which images are accepted, so pictures
        only have to be found, all of them before anything is made; and it decides the layer of an
        image, as the configuration does.
    """

    recipe: Recipe | None

    @abc.abstractmethod
    def list_images(
        self, config: DatasetConfig, taxonomy: Taxonomy, layout: SplitLayout
    ) -> Listing:
        """Lists a split's images with the files that are used; UsageError if none can be used."""

    @abc.abstractmethod
    def cutter(self, config: SegmentConfig) -> Cutter:
        """Returns what cuts the layers."""

    def find_pictures(
        self, config: SegmentConfig, images: Sequence[SourceImage], checksums: Checksums
    ) -> Iterable[SourceImage]:
        """Returns the images with their pictures, or known to lack them."""
        return images

    @abc.abstractmethod
    def refuse_lacking(self, images: Iterable[SourceImage]) -> None:
        """Raises UsageError if images lack their pictures, unless they may."""


@dataclasses.dataclass(frozen=True)
class InputOrigin(Origin):
    """Images of an input, which are segmented.

    Attributes:
      masks: folder or file of masks, for a segmenter that takes them; None without `--masks`.
      exclude, include: absolute paths of lists of images.
    """

    masks: str | None = None
    exclude: str | None = None
    include: str | None = None
    recipe = None

    @override
    def list_images(
        self, config: DatasetConfig, taxonomy: Taxonomy, layout: SplitLayout
    ) -> Listing:
        segment = config.segment
        masks = None if self.masks is None else index_masks(self.masks, layout.split)
        adapt = functools.partial(_with_used_files, masks=masks, config=segment)
        images, skipped, classes = list_images(
            layout, taxonomy, config.limit, self.key_lists(config), adapt
        )
        unmatched = _describe_unmatched(classes, taxonomy)
        if not images:
            raise _no_images(skipped, unmatched, layout, taxonomy)
        if masks is not None and not any(image.mask for image in images):
            raise no_mask(images[0], str(self.masks), layout.split, masks)
        _check_used(images, layout, segment)
        return Listing(images, skipped, unmatched)

    @override
    def cutter(self, config: SegmentConfig) -> Cutter:
        return Cutter(config)

    @override
    def refuse_lacking(self, images: Iterable[SourceImage]) -> None:
        """Does nothing: every image was listed with its picture."""

    def key_lists(self, config: DatasetConfig) -> list[KeyList]:
        """Reads the lists of images.

        Raises UsageError if a list cannot be read, or has changed since the job was launched.
        """
        lists = []
        for name, path in (("exclude", self.exclude), ("include", self.include)):
            if path is not None:
                lists.append(read_key_list(path, f"--{name}"))
                if lists[-1].summary != getattr(config, name):
                    raise UsageError(f"--{name} {path} has changed since this run was started")
        return lists


@dataclasses.dataclass(frozen=True)
class RecipeOrigin(Origin):
    """The images of a recipe, which are cut along its masks.

    Attributes:
      allow_partial: whether a dataset is made if pictures are missing.
    """

    recipe: Recipe
    allow_partial: bool

    @override
    def list_images(
        self, config: DatasetConfig, taxonomy: Taxonomy, layout: SplitLayout
    ) -> Listing:
        return Listing(*self.recipe.list_images(layout))

    @override
    def cutter(self, config: SegmentConfig) -> MaskCutter:
        return MaskCutter(config, self.recipe)

    @override
    def find_pictures(
        self, config: SegmentConfig, images: Sequence[SourceImage], checksums: Checksums
    ) -> Iterable[SourceImage]:
        """Finds pictures by their MD5. One with another MD5 is decoded.

        If it gives the recipe's layers, it is the same picture in another file.
        """
        cutter = self.cutter(config)

        def has_md5(file: SourceImage, image: RecipeImage) -> bool:
            content = Content(file.location, None, file.md5, file.stamp)
            return checksums.identify(content).md5 == image.md5

        def gives_layers(file: SourceImage, image: RecipeImage) -> bool:
            picture = read_location(file.location)
            is_its = all(
                cutter.cut_along(picture, row, mask)
                for _, row, mask in self.recipe.rows_of(image)
                if mask
            )
            count("pictures_in_other_files", is_its)
            return is_its

        found = [image.found(has_md5).found(gives_layers) for image in recipe_images(images)]
        return [i.lacking(Reason.SOURCE_DIFFERS) if i.files else i for i in found]

    @override
    def refuse_lacking(self, images: Iterable[SourceImage]) -> None:
        needed = [image for image in recipe_images(images) if image.is_needed]
        lacking = [image for image in needed if image.lacks]
        if lacking and not self.allow_partial:
            missing = sum(image.lacks == Reason.MISSING_SOURCE for image in lacking)
            raise UsageError(
                f"of {counted(len(needed), 'picture')} of the recipe, {missing} missing and "
                f"{len(lacking) - missing} with other pixels: "
                f"{', '.join(f'{image.name} ({image.lacks})' for image in lacking[:3])}"
                f"{', ...' * (len(lacking) > 3)}. No dataset was written; name the recipe's "
                "pictures with --input, or add --allow_partial to leave these images out"
            )


def _describe_unmatched(classes: Mapping[str, int], taxonomy: Taxonomy) -> str:
    """Names classes that the taxonomy lacks, and classes of a user's taxonomy without an image.

    A class without a superclass is outside on purpose. The line names the first of either; it is ""
    if there are none.
    """
    lacking = {n: count for n, count in classes.items() if n and n not in taxonomy.index_of}
    frequent = sorted(lacking, key=lambda name: (-lacking[name], name))
    own = () if taxonomy == imagenet9() else zip(taxonomy.wnids, taxonomy.labels, strict=True)
    parts = {
        f"{sum(lacking.values())} of classes that the taxonomy lacks: ": [
            f"{repr(name)[:_SHOWN]} ({lacking[name]})" for name in frequent
        ],
        "classes without an image: ": [
            repr(name)[:_SHOWN] for name, label in own if label != OUTSIDE and name not in classes
        ],
    }
    return "; ".join(
        f"{start}{', '.join(names[:3])}" + f" and {len(names) - 3} more" * (len(names) > 3)
        for start, names in parts.items()
        if names
    )


def _with_used_files(
    image: SourceImage, masks: FileIndex | None, config: SegmentConfig
) -> SourceImage:
    """Adds the mask of an image from `--masks`, and drops the files that are not used.

    So a change in an unused file does not invalidate the layer. An image that stays whole, but has
    no class, keeps its files, because its annotation decides the reason of its rejection.
    """
    if masks is not None:
        mask = masks.find(image.wnid, image.key)
        return (
            image
            if mask is None
            else dataclasses.replace(image, mask=mask.location, mask_md5=mask.md5)
        )
    if takes_masks(config.segmenter) or (config.keeps_image_whole and not image.wnid):
        return image
    if config.keeps_image_whole:
        image = dataclasses.replace(image, annotation=None, annotation_md5=None)
    return image if image.mask is None else dataclasses.replace(image, mask=None, mask_md5=None)


def _check_used(images: Sequence[SourceImage], layout: SplitLayout, config: SegmentConfig) -> None:
    """Raises UsageError if no image has what it needs: a class, a mask or boxes."""
    if config.keeps_image_whole:
        if not any(image.wnid for image in images):
            raise UsageError(
                f"nothing tells the class of an image in {layout.images}: neither folders, such as "
                "n02085620, nor annotations. Name the folder of the .xml files with --annotations"
            )
    elif takes_masks(config.segmenter):
        if not any(image.mask for image in images):
            raise UsageError(
                f"--segmenter {config.segmenter}: no image of {layout.files[0]} has a mask; name "
                "PNGs in a column mask, or elsewhere with --masks"
            )
    elif not any(image.annotation for image in images):
        if layout.kind == InputTable.kind:
            raise UsageError(
                f"no image of {layout.files[0]} has a box: expected the columns xmin, ymin, xmax "
                "and ymax, or boxes; with masks alone, add --segmenter masks"
            )
        raise UsageError(
            f"no image in {layout.images} has an annotation in {layout.annotations or 'it'}; "
            "name the folder of the .xml files with --annotations"
        )


def _no_images(
    skipped: Mapping[str, int], unmatched: str, layout: SplitLayout, taxonomy: Taxonomy
) -> UsageError:
    """Returns the error for a split without images of the taxonomy's classes."""
    where = layout.files[0] if layout.kind == InputTable.kind else layout.images
    others = f"{counted(skipped['outside'], 'image')} of other classes, "
    others += counted(skipped["other_files"], "other file")
    others += f" ({unmatched})" if unmatched else ""
    if taxonomy != imagenet9():
        shown = ", ".join(taxonomy.wnids[:3])
        return UsageError(f"no image of a class of --taxonomy ({shown}, ...) in {where}: {others}")
    return UsageError(
        f"no image of an ImageNet-9 class in {where}: {others}. Classes must be told by WordNet "
        "id, such as folders named n02085620; for classes of your own add --taxonomy"
    )


@dataclasses.dataclass(frozen=True)
class GenerateJob:
    """A job that makes a dataset.

    Attributes:
      previous: numbers of shards of the existing dataset, by split.
      source: absolute path of `--input`, then `--input_columns` if given; empty for the sample.
      reshard: whether to choose new numbers of shards instead of `previous`.
      guarded: stages of the existing dataset from its manifest, to stop a job that would make much
        of the dataset again (`pipeline.generate.previous_layers`); None to let any job run.
      scenes: absolute path of the folder of scenes.
      origin: where the layers come from.
    """

    config: DatasetConfig
    layouts: tuple[SplitLayout, ...]
    taxonomy: Taxonomy
    store: Store
    progress: Progress
    previous: dict[str, ShardCounts]
    source: str = ""
    reshard: bool = False
    guarded: Mapping[str, object] | None = None
    scenes: str | None = None
    origin: Origin = dataclasses.field(default_factory=InputOrigin)
    about: About = NOTHING_STATED

    def layer_staging(self) -> Staging:
        """Returns the staging folder of layers, which a job that draws other pairs still finds."""
        return Staging(fenced_for_job(self.store), f"{STAGING}/{self.config.segment.fingerprint()}")

    def output_staging(self) -> Staging:
        """Returns the staging folder of output shards.

        Its name depends on the origin, too, because a recipe's layers may differ from those that
        were segmented.
        """
        recipe = self.origin.recipe
        name = f"{self.config.compose.fingerprint()}{recipe.sha256 if recipe else ''}"
        return Staging(fenced_for_job(self.store), f"{STAGING}/{name}")


class JobStep(Step):
    """A step of the graph. OpenCV computes in one thread, as the runner's workers run at once.

    Freed memory is kept, since the next image needs as much.
    """

    def __init__(self, job: GenerateJob) -> None:
        self.job, self.config = job, job.config
        self.layers, self.outputs = job.layer_staging(), job.output_staging()

    @override
    def setup(self) -> None:
        cv2.setNumThreads(1)
        keep_freed_memory()
