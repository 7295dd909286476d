"""Writes the images of a folder in every layout in which ImageNet is distributed."""

import csv
import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.inputs.input_format import InputFormat, SplitLayout
from pipeline.inputs.source_images import SourceImage
from transforms.taxonomy import Taxonomy, imagenet9


def _images(source: Path) -> list[Path]:
    return sorted(source.glob("val/*/*.JPEG"))


def _xml(source: Path, key: str) -> Path:
    return source / "Annotations" / "val" / f"{key}.xml"


def _boxes(xml: str) -> list[list[int]]:
    corners = (re.findall(rf"<{name}>(\d+)</{name}>", xml) for name in ("xmin", "ymin"))
    ends = (re.findall(rf"<{name}>(\d+)</{name}>", xml) for name in ("xmax", "ymax"))
    return [[int(value) for value in box] for box in zip(*corners, *ends, strict=True)]


def listed(
    form: InputFormat, root: Path, *files: str, taxonomy: Taxonomy | None = None
) -> list[SourceImage | None]:
    """Lists the images of split val in files of a format, or in a folder of images."""
    paths = tuple(f"{root}/{name}" for name in files)
    layout = SplitLayout(form.kind, "val", str(root), f"{root}/val", paths)
    return list(form.list_images(layout, taxonomy or imagenet9()))


def tar_bytes(files: Iterable[tuple[str, bytes]], mode: str = "w") -> bytes:
    """Returns a tar with these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _write_boxes(source: Path, target: Path) -> None:
    """Writes `ILSVRC2012_bbox_val_v3.tgz`."""
    files = ((f"val/{i.stem}.xml", _xml(source, i.stem).read_bytes()) for i in _images(source))
    (target / "ILSVRC2012_bbox_val_v3.tgz").write_bytes(tar_bytes(files, "w:gz"))


def kaggle(source: Path, target: Path) -> None:
    """Writes the tree of the Kaggle download, with its XML files."""
    images = target / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    images.mkdir(parents=True)
    for image in _images(source):
        shutil.copy(image, images)
    boxes = target / "ILSVRC" / "Annotations" / "CLS-LOC" / "val"
    shutil.copytree(source / "Annotations" / "val", boxes)


def kaggle_table(source: Path, target: Path) -> None:
    """Writes the images of the Kaggle download, and its table of boxes."""
    kaggle(source, target)
    shutil.rmtree(target / "ILSVRC" / "Annotations")
    lines = ["ImageId,PredictionString"]
    for image in _images(source):
        boxes = _boxes(_xml(source, image.stem).read_text())
        words = (" ".join(map(str, (image.parent.name, *box))) for box in boxes)
        lines.append(f"{image.stem},{' '.join(words)} ")
    (target / "LOC_val_solution.csv").write_text("\n".join(lines) + "\n")


def val_tar(source: Path, target: Path) -> None:
    """Writes the validation set as downloaded, whose classes are only in the annotations."""
    files = ((image.name, image.read_bytes()) for image in _images(source))
    (target / "ILSVRC2012_img_val.tar").write_bytes(tar_bytes(files))
    _write_boxes(source, target)


def train_tar(source: Path, target: Path) -> None:
    """Writes a training set as downloaded: an archive for each class, and one of boxes."""
    images, boxes = [], []
    for folder in sorted((source / "val").iterdir()):
        paths = sorted(folder.glob("*.JPEG"))
        files = [(image.name, image.read_bytes()) for image in paths]
        images.append((f"{folder.name}.tar", tar_bytes(files)))
        xmls = [(f"{folder.name}/{i.stem}.xml", _xml(source, i.stem).read_bytes()) for i in paths]
        boxes.append((f"{folder.name}.tar.gz", tar_bytes(xmls, "w:gz")))
    (target / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes(images))
    (target / "ILSVRC2012_bbox_train_v2.tar.gz").write_bytes(tar_bytes(boxes, "w:gz"))


def webdataset(source: Path, target: Path) -> None:
    """Writes three shards, with classes in `.cls` and boxes in `.json`."""
    shards: list[list[tuple[str, bytes]]] = [[], [], []]
    for number, image in enumerate(_images(source)):
        label = imagenet9().index_of[image.parent.name]
        boxes = {"boxes": _boxes(_xml(source, image.stem).read_text())}
        shards[number % 3] += [
            (f"{image.stem}.cls", str(label).encode()),
            (f"{image.stem}.jpg", image.read_bytes()),
            (f"{image.stem}.json", json.dumps(boxes).encode()),
        ]
    for number, files in enumerate(shards):
        (target / f"imagenet1k-validation-{number:02d}.tar").write_bytes(tar_bytes(files))


def parquet(source: Path, target: Path) -> None:
    """Writes two files like those on the Hugging Face hub, with the boxes beside them."""
    rows = [
        {
            "image": {
                "bytes": image.read_bytes(),
                "path": f"{image.stem}_{image.parent.name}.JPEG",
            },
            "label": imagenet9().index_of[image.parent.name],
        }
        for image in _images(source)
    ]
    (target / "data").mkdir()
    middle = len(rows) // 2
    for number, part in enumerate((rows[:middle], rows[middle:])):
        path = target / "data" / f"validation-0000{number}-of-00002.parquet"
        pq.write_table(pa.Table.from_pylist(part), path, row_group_size=max(2, middle // 3))
    _write_boxes(source, target)


def _rows(source: Path, target: Path) -> list[dict[str, object]]:
    """Copies the images; returns a row for each box, with the path of the copied image."""
    shutil.copytree(source / "val", target / "pictures")
    return [
        {"image": f"pictures/{image.relative_to(source / 'val')}", "class": image.parent.name}
        | dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        for image in _images(source)
        for box in _boxes(_xml(source, image.stem).read_text())
    ]


def table_csv(source: Path, target: Path) -> None:
    """Writes a table that names the images."""
    rows = _rows(source, target)
    with (target / "input_table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def table_parquet(source: Path, target: Path) -> None:
    """Writes a table with one row for each image, and all its boxes in a list."""
    rows: dict[object, dict[str, object]] = {}
    for row in _rows(source, target):
        image, name, *box = row.values()
        boxes = rows.setdefault(image, {"image": image, "class": name, "boxes": []})["boxes"]
        boxes.append(box)  # type: ignore[attr-defined]
    pq.write_table(pa.Table.from_pylist(list(rows.values())), target / "input_table.parquet")


def table_coco(source: Path, target: Path) -> None:
    """Writes COCO's JSON beside copies of the images."""
    names = sorted(folder.name for folder in (source / "val").iterdir())
    images, annotations = [], []
    for number, image in enumerate(_images(source)):
        shutil.copy(image, target)
        with Image.open(image) as picture:
            width, height = picture.size
        entry = {"id": number, "file_name": image.name, "width": width, "height": height}
        images.append(entry)
        for x0, y0, x1, y1 in _boxes(_xml(source, image.stem).read_text()):
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            known = {"id": len(annotations), "image_id": number}
            annotations.append({**known, "category_id": names.index(image.parent.name), **box})
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (target / "input_table.json").write_text(json.dumps(content))


SHAPES: dict[str, Callable[[Path, Path], None]] = {
    "kaggle": kaggle,
    "kaggle_table": kaggle_table,
    "val_tar": val_tar,
    "train_tar": train_tar,
    "webdataset": webdataset,
    "parquet": parquet,
    "table_csv": table_csv,
    "table_parquet": table_parquet,
    "table_coco": table_coco,
}


def split_of(shape: str) -> str:
    """Returns the split that a shape contains."""
    return "train" if shape == "train_tar" else "val"
