"""ImageNet's archives as downloaded: `ILSVRC2012_img_val.tar`, which holds the images directly, and
`ILSVRC2012_img_train.tar`, which holds an archive for each class."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.errors import UsageError
from pipeline.inputs.archives import ARCHIVES, Member, first_names, members
from pipeline.inputs.checksums import stamp_of
from pipeline.inputs.input_format import FileFormat, SplitLayout
from pipeline.inputs.source_images import (
    IMAGE_SUFFIXES,
    SourceImage,
    is_hidden,
    is_wnid,
    wnid_of_folder,
)
from pipeline.storage.files import relative
from pipeline.storage.parallel import read_ahead
from transforms.taxonomy import Taxonomy


class ImagenetTars(FileFormat):
    """Tar archives that hold images, or other archives of images."""

    kind = "tar"
    suffix = ".tar"

    def recognizes(self, path: str) -> bool:
        names = first_names(path)
        endings = (*IMAGE_SUFFIXES, *ARCHIVES)
        if not any(name.endswith(endings) for name in names if not is_hidden(name)):
            raise UsageError(
                f"{path} holds no images among its first members: {', '.join(names[:3]) or 'none'}"
            )
        return True

    def list_images(self, layout: SplitLayout, taxonomy: Taxonomy) -> Iterator[SourceImage | None]:
        for path in layout.files:
            archive_name = relative(path, layout.root)
            stamp = stamp_of(path)
            inner = []
            for member, _ in members(path):
                if is_hidden(member.name):
                    continue
                if member.name.lower().endswith(ARCHIVES):
                    inner.append(member)
                else:
                    yield _image(member, archive_name, wnid_of_folder(member.name, taxonomy), stamp)

            def list_inner(archive: Member, path: str = path) -> list[Member]:
                return [member for member, _ in members(path, archive)]

            for archive, inner_members in read_ahead(list_inner, inner):
                stem = archive.name.rpartition("/")[2].rpartition(".")[0]
                wnid_of_archive = stem if is_wnid(stem) or taxonomy.holds(stem) else ""
                for member in inner_members:
                    wnid = wnid_of_folder(member.name, taxonomy) or wnid_of_archive
                    if not is_hidden(member.name):
                        yield _image(member, f"{archive_name}/{archive.name}", wnid, stamp)


def _image(member: Member, archive: str, wnid: str, stamp: str | None) -> SourceImage | None:
    stem, dot, suffix = member.name.rpartition("/")[2].rpartition(".")
    if f"{dot}{suffix}".lower() not in IMAGE_SUFFIXES:
        return None
    return SourceImage(
        key=stem,
        path=member.location,
        name=f"{archive}/{member.name}",
        wnid=wnid,
        stamp=stamp,
    )
