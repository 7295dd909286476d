"""The interface of an input format, and how the files of a split are found by their names."""

import abc
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar

from pipeline.inputs.archives import ARCHIVES
from pipeline.inputs.source_images import SourceImage
from pipeline.storage.files import files_of, join, parent
from transforms.taxonomy import Taxonomy

# Words in the names of other archives: boxes, the development kit, and task 3 of 2012, whose images
# are dogs that train holds, too.
_OTHER_WORDS = frozenset({"bbox", "devkit", "annotation", "annotations", "t3"})


@dataclasses.dataclass(frozen=True)
class SplitLayout:
    """The files of one split.

    Attributes:
      kind: `kind` of the `InputFormat` that lists the images.
      root: the input folder; image paths are recorded relative to it.
      images: folder of the images, or of the files that hold them.
      files: the files that hold or name the images, in order; empty for a folder of images.
      annotations: folder, archive or table; None if the images bring their own boxes, or have none.
      columns: the columns of a table that have other names than usual, by usual name.
    """

    kind: str
    split: str
    root: str
    images: str
    files: tuple[str, ...] = ()
    annotations: str | None = None
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)


class InputFormat(abc.ABC):
    """One layout of the input, in which an input format finds and lists images.

    `may_hold_boxes` says that images can bring their boxes, so missing annotations are no error.
    """

    kind: ClassVar[str]
    may_hold_boxes: ClassVar[bool] = False
    takes_annotations: ClassVar[bool] = True

    @abc.abstractmethod
    def find(self, root: str, split: str) -> SplitLayout | None:
        """Finds a split, without its annotations; returns None if the input has no such layout.

        The root is the absolute path of the input folder, of the split's own folder, or of a file.
        """

    @abc.abstractmethod
    def list_images(self, layout: SplitLayout, taxonomy: Taxonomy) -> Iterator[SourceImage | None]:
        """Yields the images of a split without reading them, and None for each other file."""


class FileFormat(InputFormat):
    """Images in a few large files that are named after their split."""

    suffix: ClassVar[str]

    def recognizes(self, path: str) -> bool:
        """Returns whether the first file of a split has this format; raises the errors of `find`.

        Subclasses override this where the suffix alone does not decide.
        """
        return True

    def find(self, root: str, split: str) -> SplitLayout | None:
        files = find_files(root, split, self.suffix)
        if not files or not self.recognizes(files[0]):
            return None
        # If --input names the file itself, the folder of the file counts as the input.
        base = parent(root) if root == files[0] else root
        return SplitLayout(self.kind, split, base, parent(files[0]), files)


def names_of(split: str) -> tuple[str, ...]:
    """Returns the names that a split goes by."""
    return ("val", "validation") if split == "val" else (split,)


def _words(path: str) -> list[str]:
    return re.split(r"[^a-z0-9]+", path.rpartition("/")[2].lower())


def has_images_by_name(path: str, split: str) -> bool:
    """Returns whether a file holds images of a split, going by its name.

    >>> has_images_by_name("/data/ILSVRC2012_img_val.tar", "val")
    True
    >>> has_images_by_name("/data/ILSVRC2012_bbox_val_v3.tgz", "val")
    False
    """
    words = _words(path)
    return any(name in words for name in names_of(split)) and _OTHER_WORDS.isdisjoint(words)


def has_boxes_by_name(path: str, split: str) -> bool:
    """Returns whether a file holds annotations of a split, going by its name.

    >>> has_boxes_by_name("/data/ILSVRC2012_bbox_val_v3.tgz", "val")
    True
    """
    words, lower = _words(path), path.lower()
    if not any(name in words for name in names_of(split)):
        return False
    if lower.endswith(".csv"):
        return "solution" in words
    return lower.endswith(ARCHIVES) and "bbox" in words


def find_files(root: str, split: str, suffix: str) -> tuple[str, ...]:
    """Returns the sorted paths of files with a suffix that hold a split; `root` may be one."""
    files = files_of(root)
    if root.lower().endswith(suffix) and files.info(root) is not None:
        return (root,)
    for folder in (root, join(root, "data")):
        paths = _ending(files.file_paths(folder), suffix)
        if named := [path for path in paths if has_images_by_name(path, split)]:
            return tuple(named)
    folders = [join(root, name) for name in names_of(split)]
    if root.rpartition("/")[2] in names_of(split):
        folders.append(root)
    for folder in folders:
        if paths := _ending(files.file_paths(folder), suffix):
            return tuple(paths)
    return ()


def _ending(paths: Iterable[str], suffix: str) -> list[str]:
    return [path for path in paths if path.lower().endswith(suffix)]
