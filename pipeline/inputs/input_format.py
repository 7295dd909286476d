"""The interface of an input format, which finds and lists images in one layout of the input."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator
from typing import ClassVar

from pipeline.inputs.source_images import SourceImage
from pipeline.inputs.split_files import find_files
from pipeline.storage.files import parent
from transforms.taxonomy import Taxonomy


@dataclasses.dataclass(frozen=True)
class SplitLayout:
    """The files of one split.

    Attributes:
      kind: `kind` of the `InputFormat` that lists the images.
      split: name of the split.
      root: the input folder; image paths are recorded relative to it.
      images: folder of the images, or of the files that hold them.
      files: the files that hold or name the images, in order; empty for a folder of images.
      annotations: folder, archive or table of annotations; None if the images bring their own
        boxes, or there are no boxes.
    """

    kind: str
    split: str
    root: str
    images: str
    files: tuple[str, ...] = ()
    annotations: str | None = None


class InputFormat(abc.ABC):
    """One layout of the input.

    Attributes:
      kind: name of the format.
      may_hold_boxes: whether the images can bring their own boxes, so that missing annotations
        are no error.
      takes_annotations: whether boxes may also come from other files.
    """

    kind: ClassVar[str]
    may_hold_boxes: ClassVar[bool] = False
    takes_annotations: ClassVar[bool] = True

    @abc.abstractmethod
    def find(self, root: str, split: str) -> SplitLayout | None:
        """Finds a split, without its annotations; returns None if the input has no such layout.

        Args:
          root: absolute path of the input folder, of the split's own folder, or of a file.
          split: name of the split, such as `val`.

        Raises:
          UsageError: the files cannot be used; the message says why.
          OSError: a file cannot be read.
        """

    @abc.abstractmethod
    def list_images(self, layout: SplitLayout, taxonomy: Taxonomy) -> Iterator[SourceImage | None]:
        """Yields the images of a split without reading them, and None for each file that is not an
        image.

        Args:
          layout: result of `find`.
          taxonomy: classes that folders and labels may name.

        Raises:
          UsageError: a file is incomplete, refused, or not of this format.
          OSError: a file cannot be read.
        """


class FileFormat(InputFormat):
    """Images in a few large files that are named after their split.

    Attributes:
      suffix: suffix of the files, such as `.tar`.
    """

    suffix: ClassVar[str]

    def recognizes(self, path: str) -> bool:
        """Returns whether the first file of a split has this format. Subclasses override this where
        the suffix alone does not decide. Raises the errors of `find`."""
        return True

    def find(self, root: str, split: str) -> SplitLayout | None:
        files = find_files(root, split, self.suffix)
        if not files or not self.recognizes(files[0]):
            return None
        # If --input names the file itself, the folder of the file counts as the input.
        base = parent(root) if root == files[0] else root
        return SplitLayout(self.kind, split, base, parent(files[0]), files)
