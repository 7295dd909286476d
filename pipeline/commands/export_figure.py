"""`in9 export --images`: a figure of some images in all their versions."""

from __future__ import annotations

import os

from pipeline.dataset.folder import Dataset
from pipeline.errors import JobError, UsageError
from pipeline.report.latex import PAPER_NAMES
from pipeline.report.pictures import find_samples
from pipeline.storage.store import Store
from transforms.codec import TooManyPixelsError, UndecodableError, decode_image


def export_figure(dataset: Dataset, split: str, keys: tuple[str, ...], path: str) -> None:
    """Writes the figure.

    Args:
      dataset: the dataset.
      split: that the images are of.
      keys: of the images, a row each.
      path: of the file, whose ending says what it becomes.

    Raises:
      UsageError: an image that has no versions, or a file of another kind.
      JobError: a picture is broken.
    """
    from pipeline.report.figures.versions import KINDS, versions_figure

    folder, name = os.path.split(path)
    kind = name.rpartition(".")[2].lower().replace("jpeg", "jpg")
    if kind not in KINDS:
        raise UsageError(f"--to {path}: with --images, a file that ends in .{', .'.join(KINDS)}")
    target = Store.at(folder or ".")
    variants = dataset.picture_variants
    found = {name: find_samples(dataset, split, name, keys) for name in variants}
    for key in keys:
        if key not in found[variants[0]]:
            raise UsageError(f"--images {key}: the dataset's {split} has no versions of it")
    try:
        rows = [[decode_image(found[variant][key].image) for variant in variants] for key in keys]
    except (UndecodableError, TooManyPixelsError) as error:
        raise JobError(f"a stored picture is broken ({error}); see: in9 verify") from error
    heads = [PAPER_NAMES.get(variant, variant) for variant in variants]
    target.write(name, versions_figure(heads, rows, kind))
    print(f"figure: {target.path(name)}")
