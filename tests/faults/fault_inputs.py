"""Faults of input: hostile pictures, masks, scenes, tables, archives, links and devices."""

import dataclasses
import gzip
import io
import itertools
import json
import os
import shutil
import socket
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fault_hooks
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from fault_lab import MODEL, Ended, Lab, Outcome, Trial, advises_again, contents, faults_of
from fault_pictures import (
    ANY,
    Hostile,
    encoded,
    fitting_xml,
    hostile_pictures,
    picture,
    shown,
)
from PIL import Image
from runs import keys
from shapes import SHAPES

MAKE = (
    *("--image_size", "64", *keys(resize=64), "--formats", "webdataset"),
    *("--variants", "original", "--pictures", "none", "--direct_num_workers=1"),
)
BOX = ("--segmenter", "box")


@dataclasses.dataclass(frozen=True)
class Batch:
    """A job on many hostile pictures at once.

    If the job fails, each half of the batch is tried on its own, until a single picture remains
    that makes it fail.

    Attributes:
      place: what the pictures are used as: `images`, `masks` or `scenes`.
      pictures: pictures of `fault_pictures`.
    """

    place: str
    pictures: tuple[Hostile, ...]

    def __call__(self, lab: Lab) -> list[Outcome]:
        """Runs the job; returns an outcome for each picture."""
        with lab.trial() as trial:
            folder = shutil.copytree(lab.input, trial / "input")
            flags = {"images": self._images, "masks": self._masks, "scenes": self._scenes}
            added = flags[self.place](folder)
            victim = contents(trial / "victim")
            output = trial / "out"
            command = ("generate", "--input", str(folder), "--output", str(output), *MAKE, *added)
            ended = lab.run(trial, *command, foreign=str(trial / "victim"))
            faults = faults_of(ended)
            if ended.code != 0:
                faults.append(f"the job does not complete: exit code {ended.code}")
            if contents(trial / "victim") != victim or len(list(trial.iterdir())) != 4:
                faults.append("something outside of the output has changed")
            if not faults:
                statuses = self._statuses(output)
                return [self._outcome(each, ended, statuses) for each in self.pictures]
        if len(self.pictures) == 1:
            (each,) = self.pictures
            return [Outcome(self._kind(each), repr(each.name)[2:-1], tuple(faults), ended)]
        middle = len(self.pictures) // 2
        halves = self.pictures[:middle], self.pictures[middle:]
        return [outcome for half in halves for outcome in Batch(self.place, half)(lab)]

    def _kind(self, each: Hostile) -> str:
        return each.kind if self.place == "images" else self.place

    def _outcome(self, each: Hostile, ended: Ended, statuses: dict[str, str]) -> Outcome:
        status = statuses.get(shown(each.name), "no row")
        wanted = self._wanted(each)
        is_right = status in wanted.split("|") if wanted else status != "no row"
        faults = () if is_right else (f"{status}, where {wanted or 'a row'} was wanted",)
        return Outcome(self._kind(each), repr(each.name)[2:-1], faults, ended)

    def _wanted(self, each: Hostile) -> str:
        if self.place == "masks":
            is_png = each.data[:4] == b"\x89PNG"
            return ANY if is_png else "unreadable_annotation"
        return each.status

    def _images(self, folder: Path, jpeg: bytes | None = None) -> tuple[str, ...]:
        images = os.fsencode(next(folder.glob("val/*")))
        annotations = os.fsencode(folder / "Annotations" / "val")
        for each in self.pictures:
            with open(images + b"/" + each.name + b".JPEG", "wb") as file:
                file.write(jpeg or each.data)
            with open(annotations + b"/" + each.name + b".xml", "wb") as file:
                file.write(fitting_xml().encode() if each.xml is None else each.xml)
        return BOX

    def _masks(self, folder: Path) -> tuple[str, ...]:
        self._images(folder, encoded(picture(), "JPEG"))
        masks = folder.parent / "input" / "masks"
        masks.mkdir()
        sides = {}
        for path in folder.glob("val/*/sample*.JPEG"):
            with Image.open(path) as image:
                sides[path.stem] = image.size
        for stem, size in sides.items():
            mask = picture("1", size)
            mask.paste(1, (size[0] // 3, size[1] // 3, size[0] * 2 // 3, size[1] * 2 // 3))
            (masks / f"{stem}.png").write_bytes(encoded(mask, "PNG"))
        for each in self.pictures:
            with open(os.fsencode(masks) + b"/" + each.name + b".png", "wb") as file:
                file.write(each.data)
        return ("--segmenter", "masks", "--masks", str(masks))

    def _scenes(self, folder: Path) -> tuple[str, ...]:
        scenes = folder / "scenes"
        scenes.mkdir()
        (scenes / "good scene.jpg").write_bytes(encoded(picture(), "JPEG"))
        for each in self.pictures:
            with open(os.fsencode(scenes) + b"/" + each.name + b".jpg", "wb") as file:
                file.write(each.data)
        return (*BOX, "--backgrounds", str(scenes), "--variants", "original,mixed_external")

    def _statuses(self, output: Path) -> dict[str, str]:
        if self.place == "scenes":
            rows = pq.read_table(output / "backgrounds" / "scenes.parquet").to_pylist()
        else:
            rows = pyarrow.dataset.dataset(str(output / "index")).to_table().to_pylist()
        names = (row["path"].rpartition("/")[2].rpartition(".")[0] for row in rows)
        return dict(zip(names, (row["status"] for row in rows), strict=True))


def batches() -> list[Trial]:
    """Returns a batch of all hostile pictures as images, and of pictures as masks and as scenes."""
    hostile = hostile_pictures()
    pictures = tuple(each for each in hostile if each.kind.startswith("pictures"))
    return [
        Batch("images", tuple(hostile)),
        Batch("masks", pictures),
        Batch("scenes", pictures),
    ]


def _is_temporary(path: Path) -> bool:
    """Returns whether a file is a temporary file of the work folder."""
    return path.parent.parts[-2:] == (".in9", "tmp") and path.is_file()


def sparse(size: int) -> Callable[[Path], None]:
    """Returns a function that makes a file of zeros that takes no disk space."""

    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(size)

    return make


# Single inputs.


@dataclasses.dataclass(frozen=True)
class Input:
    """An input that is malformed or leads elsewhere.

    Attributes:
      kind, name: kind and name of the outcome.
      make: makes the input in a folder that has good pictures; returns additional flags, which may
        include another `--input`.
      names: strings, one of which the closing line must contain if there is one.
      foreign_may_be_opened: whether the user's own table or link leads to foreign files.
      command: `generate`, `run` or `import`, for which `make` returns the flag `--from`.
      code: expected exit code, None for any.
    """

    kind: str
    name: str
    make: Callable[[Path], tuple[str, ...]]
    names: tuple[str, ...]
    foreign_may_be_opened: bool = False
    command: str = "generate"
    code: int | None = None

    def __call__(self, lab: Lab) -> list[Outcome]:
        """Runs the command on the input; returns one outcome."""
        with lab.trial() as trial:
            folder = shutil.copytree(lab.input, trial / "input")
            added = self.make(folder)
            input_flags = () if "--input" in added else ("--input", str(folder))
            victim = contents(trial / "victim")
            output = ("--output", str(trial / "out"))
            segmenter = () if "--segmenter" in added else BOX
            command = (self.command, *output, *added)
            if self.command != "import":
                command = (self.command, *input_flags, *MAKE, *segmenter, *output, *added)
            foreign = "" if self.foreign_may_be_opened else str(trial / "victim")
            ended = lab.run(trial, *command, foreign=foreign)
            faults = faults_of(ended, *self.names)
            if self.code not in (None, ended.code):
                faults.append(f"exit code {ended.code}, where {self.code} was wanted")
            if temporary := [path for path in trial.rglob("*") if _is_temporary(path)]:
                faults.append(f"{temporary[0].name} is left")
            if advises_again(ended) and lab.run(trial, *command, foreign=foreign).code != 0:
                faults.append("'the same command again' does not help")
            if contents(trial / "victim") != victim or len(list(trial.iterdir())) > 4:
                faults.append("something outside of the output has changed")
        return [Outcome(self.kind, self.name, tuple(faults), ended)]


def _links() -> Iterator[Input]:
    def image_at(folder: Path) -> Path:
        return next(folder.glob("val/*")) / "hostile.JPEG"

    def xml_at(folder: Path) -> Path:
        shutil.copy(next(folder.glob("val/*/sample*")), image_at(folder))
        return folder / "Annotations" / "val" / "hostile.xml"

    def link(target: str) -> Callable[[Path], None]:
        return lambda path: path.symlink_to(target.format(victim=path.parents[2] / "../victim"))

    makers: dict[str, Callable[[Path], Any]] = {
        "link to a picture elsewhere": link("{victim}/val/n02110063/sample_val_00000001.JPEG"),
        "link to a text elsewhere": link("{victim}/diary.txt"),
        "link to nothing": link("/nowhere/at/all"),
        "link to itself": lambda path: path.symlink_to(path.name),
        "links in a circle": lambda path: [
            path.symlink_to(f"{path}.other"),
            Path(f"{path}.other").symlink_to(path),
        ],
        "link to a name that is too long": link("x" * 300),
        "link through a file": link("/dev/null/x"),
        "link to a folder": link("/"),
        "link to zeros": link("/dev/zero"),
        "link to chance": link("/dev/urandom"),
        "link to the terminal": link("/dev/tty"),
        "pipe": os.mkfifo,
        "socket": _listen,
        "folder": Path.mkdir,
        "300 MB of nothing": sparse(300 << 20),
        "12 GB of nothing": sparse(12 << 30),
    }

    def mask_at(folder: Path) -> Path:
        shutil.copy(next(folder.glob("val/*/sample*")), image_at(folder))
        return folder / "masks" / "hostile.png"

    def scene_at(folder: Path) -> Path:
        return folder / "scenes" / "hostile.JPEG"

    places: dict[str, tuple[Any, Any]] = {
        "image": (lambda folder: BOX, image_at),
        "annotation": (lambda folder: BOX, xml_at),
        "mask": (_with_masks, mask_at),
        "scene": (_with_scenes, scene_at),
    }
    for (place, (prepare, at)), (name, make) in itertools.product(places.items(), makers.items()):

        def arrange(
            folder: Path, prepare: Any = prepare, at: Any = at, make: Callable[[Path], Any] = make
        ) -> tuple[str, ...]:
            flags = prepare(folder)
            make(at(folder))
            return tuple(flags)

        # What a link leads to may lie on a disk that is not mounted, which is no fault of the file.
        is_away = name in ("link to nothing", "link through a file") and place != "scene"
        code = int(is_away)
        names = ("hostile",)
        yield Input("links and devices", f"{place}: {name}", arrange, names, True, code=code)


def _tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in members:
            info.size = len(data) if info.isfile() else 0
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def _archives() -> Iterator[Input]:
    jpeg = encoded(picture(), "JPEG")
    good = [
        (_member(f"n02110063/good_{number}.JPEG"), encoded(picture("L"), "JPEG"))
        for number in range(2)
    ]
    paxed = _member("short.JPEG")
    paxed.pax_headers = {"path": "../victim/x.JPEG"}
    sized = bytearray(_tar(*good))
    sized[124:136] = b"77777777777\0"
    inner = _tar((_member("../victim/x.JPEG"), jpeg))
    tars = {
        **{
            f"member {name!r}": _tar(*good, (_member(name), jpeg))
            for name in (
                *("../victim/x.JPEG", "/tmp/owned.JPEG", "a/../../victim/x.JPEG"),
                *("..\\victim\\x.JPEG", "C:x.JPEG", "a\nb.JPEG", "\x1b[31m.JPEG", "//x.JPEG"),
                *("n02110063/" + "x" * 300 + ".JPEG", ".JPEG", "n02110063/.JPEG", "n02110063/a"),
            )
        },
        "link to a name": _tar(*good, (_member("l.JPEG", tarfile.SYMTYPE, "/etc/passwd"), b"")),
        "hard link": _tar(*good, (_member("l.JPEG", tarfile.LNKTYPE, "../victim/x"), b"")),
        "device": _tar(*good, (_member("d.JPEG", tarfile.CHRTYPE), b"")),
        "pipe": _tar(*good, (_member("d.JPEG", tarfile.FIFOTYPE), b"")),
        "name in a header": _tar(*good, (paxed, jpeg)),
        "archive in it": _tar((_member("n02110063.tar"), inner)),
        "the same twice": _tar(*good, *good),
        "huge size": bytes(sized),
        "cut": _tar(*good)[:700],
        "without an end": _tar(*good)[: 512 * 3],
        "empty file": b"",
        "zeros": bytes(10240),
        "garbage": jpeg,
    }
    for name, data in tars.items():

        def arrange(folder: Path, data: bytes = data) -> tuple[str, ...]:
            shutil.rmtree(folder / "val")
            (folder / "ILSVRC2012_img_val.tar").write_bytes(data)
            for stem in ("good_0", "good_1", "x"):
                (folder / "Annotations" / "val" / f"{stem}.xml").write_text(fitting_xml())
            return ()

        yield Input("archives", name, arrange, ("ILSVRC2012_img_val.tar",))
    fitting = fitting_xml().encode()
    two = [("k.jpg", jpeg), ("k.cls", b"151"), ("k.xml", fitting)]
    shards: dict[str, list[tuple[str, bytes]]] = {
        "key above": [("../victim/k.jpg", jpeg), ("../victim/k.xml", fitting)],
        "json is a list": [("k.jpg", jpeg), ("k.json", b"[]"), ("k.xml", fitting)],
        "json is deep": [("k.jpg", jpeg), ("k.json", b'{"a":' * 100_000)],
        "json of hostile types": [("k.jpg", jpeg), ("k.json", b'{"wnid": {}, "boxes": 7}')],
        "json with a huge label": [("k.jpg", jpeg), ("k.json", b'{"label": 1e400}')],
        "class is a word": [("k.jpg", jpeg), ("k.cls", b"dog"), ("k.xml", fitting)],
        "class is huge": [("k.jpg", jpeg), ("k.cls", b"9" * 10_000), ("k.xml", fitting)],
        "json is large": [("k.jpg", jpeg), ("k.json", bytes(11 << 20)), ("k.cls", b"151")],
        "class is large": [("k.jpg", jpeg), ("k.cls", bytes(11 << 20)), ("k.xml", fitting)],
        "two of one key": [*two, *two],
        "key with a colon": [(f"a:{name}", data) for name, data in two],
        "class is no text": [("k.jpg", jpeg), ("k.cls", b"\xff\xfe"), ("k.xml", fitting)],
        "PostScript": [("k.jpg", b"%!PS\n"), ("k.cls", b"151"), ("k.xml", fitting)],
        "XML outward": [
            *(("k.jpg", jpeg), ("k.cls", b"151")),
            ("k.xml", b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>'),
        ],
    }
    for name, files in shards.items():

        def shard(folder: Path, files: list[tuple[str, bytes]] = files) -> tuple[str, ...]:
            good_files = [("g.jpg", jpeg), ("g.cls", b"151"), ("g.xml", fitting_xml().encode())]
            data = _tar(*((_member(name), content) for name, content in [*good_files, *files]))
            shutil.rmtree(folder)
            folder.mkdir()
            (folder / "val-000000.tar").write_bytes(data)
            return ()

        code = 2 if name == "key above" else 0
        yield Input("WebDataset", name, shard, ("val-000000.tar",), code=code)


def _tables() -> Iterator[Input]:
    jpeg = encoded(picture(), "JPEG")

    def parquet(**columns: Any) -> Callable[[Path], tuple[str, ...]]:
        def arrange(folder: Path) -> tuple[str, ...]:
            shutil.rmtree(folder / "val")
            pq.write_table(pa.table(columns), folder / "validation-00000-of-00001.parquet")
            return ()

        return arrange

    def image(path: str, data: bytes | None = jpeg) -> list[dict[str, Any]]:
        return [{"bytes": data, "path": path}, {"bytes": jpeg, "path": "sample_val_00000001.JPEG"}]

    labels = [151, 151]
    tables = {
        "path above": parquet(image=image("../victim/x.JPEG"), label=labels),
        "only a path": parquet(image=image("../victim/diary.txt", None), label=labels),
        "PostScript": parquet(image=image("a.JPEG", b"%!PS\n"), label=labels),
        "no path": parquet(image=image(""), label=labels),
        "huge label": parquet(image=image("a.JPEG"), label=[10**12, 151]),
        "negative label": parquet(image=image("a.JPEG"), label=[-1, 151]),
        "label of text": parquet(image=image("a.JPEG"), label=["x", "y"]),
        "other columns": parquet(a=[1]),
        "pictures of numbers": parquet(image=[1, 2], label=labels),
        "no rows": parquet(image=pa.array([], pa.struct([("bytes", pa.binary())])), label=[]),
    }
    for name, make in tables.items():
        yield Input("Parquet", name, make, (".parquet",))

    def text(name: str, content: str | bytes, *flags: str) -> Callable[[Path], tuple[str, ...]]:
        def arrange(folder: Path) -> tuple[str, ...]:
            path = folder / name
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
            return ("--input", str(path), *flags)

        return arrange

    head = "image,class,xmin,ymin,xmax,ymax,key,mask,group\n"
    hidden = "val/n02110063/sample_val_00000001.JPEG,n02110063,20,20,70,60"
    box = "n02110063,20,20,70,60"
    csvs = {
        **{
            f"image {path!r}": f"{head}{path},{box},k,,\n{hidden},good,,\n"
            for path in (
                *("../victim/diary.txt", "../victim/val/n02110063/sample_val_00000001.JPEG"),
                *("/dev/zero", "/dev/urandom", "/etc/passwd", "/", ".", "file:///etc/passwd"),
                *("http://127.0.0.1:9/x.jpg", "~/x.jpg", "x" * 300, "nothing.jpg"),
            )
        },
        **{
            f"key {key!r}": f'{head}{hidden},"{key}",,\n'
            for key in ("../victim", "a/b", "a\nb", "\x1b[31m", "x" * 5000, "\u202e", ".")
        },
        **{
            f"box {value}": f"{head}{hidden.replace('20,20', f'{value},20')},k,,\n"
            for value in ("NaN", "1e999", "-1e308", "left", "9" * 5000, "0x10")
        },
        "group of 100 kB": f"{head}{hidden},k,,{'g' * 100_000}\n",
        "cell of 1 MB": f"{head}{hidden},{'k' * 1_000_000},,\n",
        "NUL": f"{head}{hidden},a\0b,,\n",
        "quote without end": f'{head}{hidden},"k,,\n',
        "not UTF-8": head.encode() + hidden.encode() + b",\xff,,\n",
        "empty": "",
        "head alone": head,
        "zeros": "\0" * 1000,
    }
    for name, content in csvs.items():
        names = ("manifest.csv", "line 2", "hostile")
        yield Input("manifests, CSV", name, text("manifest.csv", content), names, True)
    for path in ("/dev/zero", "../victim/diary.txt", "/", "%!PS"):
        row = f"{head}{hidden},k,{path},\n"
        flags = ("--segmenter", "masks")
        make = text("manifest.csv", row, *flags)
        yield Input("manifests, CSV", f"mask {path!r}", make, ("manifest.csv", path), True)
    where = "val/n02110063/sample_val_00000001.JPEG"
    lines = {
        "deep": "[" * 100_000,
        "list": "[1]",
        "boxes of words": json.dumps({"image": where, "class": "n02110063", "boxes": "x"}),
        "boxes, deep": json.dumps({"image": where, "class": "n02110063", "boxes": "[" * 100_000}),
        "boxes of objects": json.dumps({"image": where, "class": "n02110063", "boxes": [{}]}),
        "image is a list": json.dumps({"image": [where], "class": "n02110063"}),
        "class is an object": json.dumps({"image": where, "class": {"a": 1}}),
        "two classes": f'{{"image": "{where}", "class": "n02110063", "class": "n02084071"}}',
        "long number": f'{{"image": "{where}", "class": "n02110063", "xmin": {"9" * 10_000}}}',
    }
    for name, content in lines.items():
        make = text("manifest.jsonl", content)
        yield Input("manifests, JSON lines", name, make, ("manifest.jsonl",))

    def coco(
        segmentation: Any = None, bbox: Any = (20, 20, 50, 40), **about: Any
    ) -> dict[str, Any]:
        entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": bbox}
        if segmentation is not None:
            entry["segmentation"] = segmentation
        return {
            "images": [{"id": 1, "file_name": where, "width": 125, "height": 93, **about}],
            "annotations": [entry],
            "categories": [{"id": 1, "name": "n02110063"}],
        }

    documents: dict[str, Any] = {
        "name above": coco(file_name="../victim/diary.txt"),
        "name of a device": coco(file_name="/dev/zero"),
        "name is a number": coco(file_name=7),
        "box of words": coco(bbox=["a", "b", "c", "d"]),
        "box is null": coco(bbox=None),
        "box is infinite": coco(bbox=[1e308, 1e308, 1e308, 1e308]),
        "runs of a huge mask": coco({"size": [10**9, 10**9], "counts": [10**18]}),
        "runs of another size": coco({"size": [10, 10], "counts": [50, 50]}),
        "runs of a wrong length": coco({"size": [93, 125], "counts": [5, 5]}),
        "runs below 0": coco({"size": [93, 125], "counts": [-5, 11630]}),
        "packed runs that are none": coco({"size": [93, 125], "counts": "\u00ff\0zzzz"}),
        "polygon of two points": coco([[1, 2, 3, 4]]),
        "polygon of words": coco([["a", "b", "c", "d", "e", "f"]]),
        "polygon far outside": coco([[1e300, 0, 0, 1e300, 5, 5]]),
        "polygon of NaN": coco([[float("nan")] * 6]),
        "category that is not there": {**coco(), "categories": []},
        "images is an object": {**coco(), "images": {"a": 1}},
        "annotations is null": {**coco(), "annotations": None},
        "huge number": {**coco(), "annotations": [{"id": 10**400, "image_id": 1}]},
    }
    for name, document in documents.items():
        content = json.dumps(document)
        names = ("manifest.json", "/dev/zero", "diary.txt")
        masked = ("--segmenter", "masks") if "segmentation" in content else ()
        make = text("manifest.json", content, *masked)
        yield Input("manifests, COCO", name, make, names, name == "name above")


def _lists() -> Iterator[Input]:
    for flag, file in (("--exclude", "list.txt"), ("--include", "list.txt"),
                       ("--taxonomy", "list.csv")):  # fmt: skip
        contents_of = {
            "zeros": bytes(500),
            "not UTF-8": b"\xff\xfe\xfd",
            "paths": b"../victim\n/etc/passwd\n",
            "escape": b"\x1b[31m\n",
            "long line": b"x" * 1_000_000,
        }
        for name, data in contents_of.items():

            def arrange(
                folder: Path, flag: str = flag, file: str = file, data: bytes = data
            ) -> tuple[str, ...]:
                (folder / file).write_bytes(data)
                return (flag, str(folder / file))

            yield Input("lists", f"{flag}: {name}", arrange, (file, "no image", "no images"))


# Files that change.


@dataclasses.dataclass(frozen=True)
class Unsteady:
    """A file of the input that changes while it is read, and is then restored with its old time.

    Attributes:
      shape: one of `UNSTEADY`, the reader.
      change: one of `fault_hooks.CHANGES`.
    """

    shape: str
    change: str
    kind: str = "short and long reads"

    @property
    def name(self) -> str:
        return f"{self.shape}: {self.change}"

    def __call__(self, lab: Lab) -> list[Outcome]:
        """Runs the job while the file changes, and once more; returns one outcome."""
        make, pattern, openings = UNSTEADY[self.shape]
        with lab.trial() as trial:
            folder = trial / "input"
            folder.mkdir()
            flags = make(lab.input, folder)
            files = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
            held = {path: path.read_bytes() for path in files}

            def run(output: str, **variables: str) -> Ended:
                folders = ("--input", str(folder), "--output", str(trial / output))
                return lab.run(trial, "generate", *folders, *MAKE, *flags, variables=variables)

            steady = run("steady")
            change = {fault_hooks.CHANGE: f"{openings} {self.change} {pattern}"}
            ended = run("out", **change)
            changed = [path for path in files if path.read_bytes() != held[path]]
            faults = faults_of(ended, *map(str, changed))
            if ended.code not in (1, 2):
                faults.append(f"exit code {ended.code}: the file was believed")
            if len(changed) != 1:
                faults.append(f"{len(changed)} files were changed")
            for path in changed:
                path.write_bytes(held[path])
                os.utime(path, ns=(files[path].st_atime_ns, files[path].st_mtime_ns))
            manifests = [trial / output / "manifest.json" for output in ("steady", "out")]
            if steady.code or run("out").code:
                faults.append("restored, it is not used")
            elif manifests[0].read_bytes() != manifests[1].read_bytes():
                faults.append("restored, it has another row than it had")
        return [Outcome(self.kind, self.name, tuple(faults), ended)]


def _folder(source: Path, target: Path) -> tuple[str, ...]:
    shutil.copytree(source, target, dirs_exist_ok=True)
    return BOX


def _with_masks(target: Path) -> tuple[str, ...]:
    masks = target / "masks"
    masks.mkdir()
    for path in target.glob("val/*/*.JPEG"):
        with Image.open(path) as image:
            width, height = image.size
        mask = picture("1", (width, height))
        mask.paste(1, (width // 3, height // 3, width * 2 // 3, height * 2 // 3))
        (masks / f"{path.stem}.png").write_bytes(encoded(mask, "PNG"))
    return ("--segmenter", "masks", "--masks", str(masks))


def _with_scenes(target: Path) -> tuple[str, ...]:
    scenes = shutil.copytree(next(target.glob("val/*")), target / "scenes")
    return (*BOX, "--backgrounds", str(scenes), "--variants", "original,mixed_external")


def _folder_and(
    prepare: Callable[[Path], tuple[str, ...]],
) -> Callable[[Path, Path], tuple[str, ...]]:
    def make(source: Path, target: Path) -> tuple[str, ...]:
        _folder(source, target)
        return prepare(target)

    return make


def _shape(name: str) -> Callable[[Path, Path], tuple[str, ...]]:
    def make(source: Path, target: Path) -> tuple[str, ...]:
        SHAPES[name](source, target)
        return BOX

    return make


UNSTEADY: dict[str, tuple[Callable[[Path, Path], tuple[str, ...]], str, int]] = {
    "folder": (_folder, r"/input/.*JPEG$", 1),
    "annotation": (_folder, r"/input/.*xml$", 1),
    "mask": (_folder_and(_with_masks), r"/input/.*png$", 1),
    "scene": (_folder_and(_with_scenes), r"/scenes/.*JPEG$", 3),
    "member of a tar": (_shape("val_tar"), r"/input/.*img_val[.]tar$", 4),
    "WebDataset": (_shape("webdataset"), r"/input/.*00[.]tar$", 3),
    "Parquet": (_shape("parquet"), r"/input/.*00000-of.*parquet$", 3),
}
"""For each reader, a function that makes an input and returns flags, a pattern of files of which
one changes, and at which opening of them, because shards are also opened when they are listed."""


def _unsteady() -> Iterator[Unsteady]:
    """Yields a trial for each reader and change."""
    for shape, change in itertools.product(UNSTEADY, fault_hooks.CHANGES):
        yield Unsteady(shape, change)


def _listen(path: Path) -> None:
    at = os.getcwd()
    os.chdir(path.parent)  # Addresses of Unix sockets must be short.
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(at)


SIZES: dict[str, Callable[[Path], Any]] = {
    "12 GB of nothing": sparse(12 << 30),
    "pipe": os.mkfifo,
    "socket": _listen,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
}
"""Functions that make something unexpected in the place of a file."""


def _in_place_of_files() -> Iterator[Input]:
    """Yields inputs in which a flag names a file as large as a disk, or not a file at all."""
    flags = {
        "manifest.csv": ("--input", "generate"),
        "manifest.json": ("--input", "generate"),
        "manifest.jsonl": ("--input", "generate"),
        "manifest.parquet": ("--input", "generate"),
        "images.tar": ("--input", "generate"),
        "boxes.tgz": ("--annotations", "generate"),
        "boxes.csv": ("--annotations", "generate"),
        "list.txt": ("--exclude", "generate"),
        "classes.csv": ("--taxonomy", "generate"),
        "masks.json": ("--segmenter masks --masks", "generate"),
        "released.tar.gz": ("--from", "import"),
    }
    for name, (flag, command) in flags.items():
        for size, make in SIZES.items():

            def arrange(
                folder: Path,
                name: str = name,
                flag: str = flag,
                make: Callable[[Path], Any] = make,
            ) -> tuple[str, ...]:
                make(folder / name)
                return (*flag.split(), str(folder / name))

            kind = "in place of files"
            yield Input(kind, f"{flag} {name}: {size}", arrange, (name,), True, command, 2)


def _bombs() -> Iterator[Input]:
    """Yields small archives and tables that would fill a machine."""

    def tgz(member: tarfile.TarInfo, megabytes: int) -> bytes:
        """Returns a compressed tar with a member of zeros that is compressed in pieces."""
        member.size = megabytes << 20
        header = gzip.compress(member.tobuf(tarfile.GNU_FORMAT))
        return header + zeros * megabytes + gzip.compress(bytes(1024))

    def chain(kind: bytes, count: int) -> bytes:
        header = tarfile.TarInfo("././@LongLink")
        header.type, header.size = kind, 5
        return (header.tobuf(tarfile.GNU_FORMAT) + b"9 a=bc\n".ljust(512, b"\0")) * count

    def sized(kind: bytes, size: int) -> bytes:
        header = tarfile.TarInfo("x")
        header.type, header.size = kind, size
        return header.tobuf(tarfile.GNU_FORMAT)

    zeros = gzip.compress(bytes(1 << 20))
    nested = _tar((_member("a.xml"), fitting_xml().encode()))
    for depth in range(5):
        nested = _tar((_member(f"{depth}.tar"), nested))
    end = bytes(1024)
    long_name = sized(tarfile.GNUTYPE_LONGNAME, 11 << 30)
    boxes = {
        "3 GB of zeros": tgz(_member("a.xml"), 3 << 10),
        "3 GB beside": tgz(_member("a.txt"), 3 << 10),
        "archive of 3 GB in it": tgz(_member("a.tar"), 3 << 10),
        "archives in archives": nested,
        "chain of long names": chain(tarfile.GNUTYPE_LONGNAME, 5000) + end,
        "chain of headers": chain(tarfile.XHDTYPE, 900) + end,
        "name of 11 GB": long_name + end,
        "header of 11 GB": sized(tarfile.XHDTYPE, 11 << 30) + end,
        "header cut": sized(tarfile.XHDTYPE, 600) + b"9 a=",
        "cut": tgz(_member("a.xml"), 3)[:-2000],
    }
    for name, data in boxes.items():
        yield Input(
            "bombs",
            f"boxes: {name}",
            _flagged("boxes.tgz", data, "--annotations"),
            ("boxes.tgz",),
            command="generate",
            code=2,
        )
        if not data.startswith(b"\x1f"):
            make = _flagged("images_val.tar", data, "--input")
            names = ("images_val.tar", "no image of an ImageNet-9 class")
            yield Input("bombs", f"images: {name}", make, names, code=2)
    for name, data in boxes.items():
        make = _flagged("released.tgz", data, "--from")
        yield Input("bombs", f"import: {name}", make, ("released.tgz",), command="import", code=2)

    def parquet(folder: Path) -> tuple[str, ...]:
        text = pa.array(["x" * 20_000_000]).dictionary_encode()
        column = pa.DictionaryArray.from_arrays(np.zeros(100_000, np.int32), text.dictionary)
        path = folder / "manifest.parquet"
        pq.write_table(pa.table({"image": column, "class": column}), path, compression="zstd")
        return ("--input", str(path))

    yield Input("bombs", "table of a value for all rows", parquet, ("manifest.parquet",), code=2)
    lines = {
        "manifest.csv": ("--input", b"image,class\n", b"x"),
        "manifest.jsonl": ("--input", b'{"image": "', b"x"),
        "manifest_val.csv": ("--input", b"image,class\n", b'"a\n",'),
        "b.csv": ("--annotations", b"ImageId,PredictionString\n", b"x"),
    }
    for name, (flag, head, more) in lines.items():
        make = _flagged(name, head, flag, more * 1_000_000, 300 // len(more))
        yield Input("bombs", f"line: {name}", make, (name,), code=2)
    footer = io.BytesIO()
    pq.write_table(pa.table({"image": ["a"], "class": ["b"]}), footer)
    intact = footer.getvalue()
    for at in (-4, -8, -60, -200):
        broken = bytearray(intact)
        broken[at] ^= 0xFF
        make = _flagged("manifest.parquet", bytes(broken), "--input")
        yield Input("Parquet", f"damaged at {at}", make, ("manifest.parquet",), code=2)


def _flagged(
    name: str, data: bytes, flag: str, more: bytes = b"", times: int = 0
) -> Callable[[Path], tuple[str, ...]]:
    """Returns a function that writes `data`, then `more` several times, to a file for a flag."""

    def arrange(folder: Path) -> tuple[str, ...]:
        with (folder / name).open("wb") as file:
            file.writelines(itertools.chain([data], itertools.repeat(more, times)))
        return (flag, str(folder / name))

    return arrange


ENCODINGS = {
    "lone surrogate": "bird\ud800",
    "byte that is not UTF-8": "bird\udcff",
    "line break": "bird\nbird",
    "NUL": "bird\0",
    "escape": "\x1b[31mbird",
    "from right to left": "bird\u202e",
    "beyond the first plane": "bird\U0001f426",
}
"""Names that some file format, terminal or operating system cannot hold."""


def _names() -> Iterator[Input]:
    """Yields such names in each place in which an input gives names."""
    where, box = "val/n02110063/sample_val_00000001.JPEG", [[20, 20, 70, 60]]
    image = {"image": where, "class": "n02110063", "boxes": box}
    row = {"class": "n02110063", "superclass": "dog"}
    for name, text in ENCODINGS.items():
        rows = {
            **{
                f"manifest, {column}": {**image, column: text}
                for column in ("key", "group", "class")
            },
            **{
                f"manifest, {column}": {**image, column: text}
                for column in ("image", "mask", "split")
            },
            **{f"taxonomy, {column}": {**row, column: text} for column in ("superclass", "name")},
            "taxonomy, class": {"class": text, "superclass": "bird"},
        }
        for place, values in rows.items():
            is_taxonomy = place.startswith("taxonomy")
            file, flag = ("t.json", "--taxonomy") if is_taxonomy else ("m.json", "--input")
            data = json.dumps([row, image][not is_taxonomy : 1 + (not is_taxonomy)] + [values])
            make = _flagged(file, data.encode(), flag)
            yield Input("names in every encoding", f"{place}: {name}", make, (file,), True)


HOSTILE_LABELS = {
    "tag": "<img src=x onerror=alert(1)>",
    "end of a script": "<script><!--",
    "link": "![a](javascript:alert) [b]",
    "code": "`a` **b** _c_ ~~d~~",
    "end of a cell": "a | b",
    "formula": "=cmd()",
    "LaTeX": "% ~ ^ #1 $a{$ & *[b]",
    "template": "{{ 7 * 7 }} {% raw %}",
    "YAML": "null: &a",
    "quotes": '"\' onclick="a',
}
"""Names of classes that are more than text in some format."""


def _hostile_labels() -> Iterator[Input]:
    """Yields runs, with page and tables, on classes of such names."""
    for name, text in HOSTILE_LABELS.items():

        def arrange(folder: Path, text: str = text) -> tuple[str, ...]:
            wnids = sorted(path.name for path in folder.glob("val/*"))
            rows: list[dict[str, Any]] = [
                {"class": w, "superclass": f"{w[-1]}{text}"} for w in wnids
            ]
            rows[0]["superclass"] = text
            rows.append({"class": f"{text}\\input{{/x}}</td>", "superclass": text, "index": 999})
            (folder / "kinds.json").write_text(json.dumps(rows))
            variants = ("--variants", "original,only_bg_t,mixed_same,mixed_rand")
            page = ("--pictures", "sample", "--formats", "parquet,webdataset")
            return ("--taxonomy", str(folder / "kinds.json"), *variants, *page, "--models", MODEL)

        kind = "hostile class names in every writer"
        yield Input(kind, name, arrange, (), command="run", code=0)


def _deep() -> Iterator[Input]:
    """Yields nesting that is too deep, in each JSON and TOML that a flag names.

    It is too deep for parsers, or for functions that call themselves for each level.
    """
    where = "val/n02110063/sample_val_00000001.JPEG"

    def hub_model(folder: Path, deep: str) -> tuple[str, ...]:
        (folder / "hub").mkdir()
        (folder / "hub" / "config.json").write_text(deep)
        return ("--models", f"hf:{folder / 'hub'}")

    def graph(folder: Path, deep: str) -> tuple[str, ...]:
        (folder / "net.onnx").write_bytes(b"junk")
        (folder / "net.onnx.json").write_text(deep)
        return ("--models", f"onnx:{folder / 'net.onnx'}")

    def checkpoint(folder: Path, deep: str) -> tuple[str, ...]:
        (folder / "net.safetensors").write_bytes(len(deep).to_bytes(8, "little") + deep.encode())
        return ("--models", f"resnet18={folder / 'net.safetensors'}")

    def weights(folder: Path, deep: str) -> tuple[str, ...]:
        (folder / "weights").mkdir()
        (folder / "weights" / "index.json").write_text(deep)
        return ("--models", "efficientnet_lite0", "--weights", str(folder / "weights"))

    def of_file(name: str, flag: str, before: str = "", after: str = "") -> Any:
        def arrange(folder: Path, deep: str) -> tuple[str, ...]:
            (folder / name).write_text(before + deep + after)
            return (*flag.split(), str(folder / name))

        return arrange

    def hugging_face(folder: Path, deep: str) -> tuple[str, ...]:
        shutil.rmtree(folder / "val")
        image = {"bytes": encoded(picture(), "JPEG"), "path": "sample_val_00000001.JPEG"}
        table = pa.table({"image": [image], "label": [151]})
        table = table.replace_schema_metadata({"huggingface": deep})
        pq.write_table(table, folder / "validation-00000-of-00001.parquet")
        return ()

    def shard(folder: Path, deep: str) -> tuple[str, ...]:
        shutil.rmtree(folder)
        folder.mkdir()
        members = ("k.jpg", encoded(picture(), "JPEG")), ("k.json", deep.encode())
        data = _tar(*((_member(name), content) for name, content in members))
        (folder / "val-000000.tar").write_bytes(data)
        return ()

    row = f'{{"image": "{where}", "class": "n02110063", "boxes": '
    places: dict[str, tuple[Any, str, str]] = {
        "--config": (of_file("flags.toml", "--config", "limit = "), "flags.toml", "generate"),
        "--input manifest.json": (of_file("m.json", "--input"), "m.json", "generate"),
        "--input manifest.jsonl": (of_file("m.jsonl", "--input"), "m.jsonl", "generate"),
        "boxes": (of_file("m.jsonl", "--input", row, "}"), "m.jsonl", "generate"),
        "--taxonomy": (of_file("t.json", "--taxonomy"), "t.json", "generate"),
        "--masks": (of_file("o.json", "--segmenter masks --masks"), "o.json", "generate"),
        "Parquet of the hub": (hugging_face, ".parquet", "generate"),
        "WebDataset": (shard, "val-000000.tar", "generate"),
        "--weights": (weights, "index.json", "run"),
        "hf:": (hub_model, "hub", "run"),
        "onnx:": (graph, "net.onnx", "run"),
        "header of a checkpoint": (checkpoint, "net.safetensors", "run"),
    }
    for (place, (make, name, command)), levels in itertools.product(places.items(), (300, 100_000)):
        deep = "[" * levels + "]" * levels

        def arrange(folder: Path, make: Any = make, deep: str = deep) -> tuple[str, ...]:
            return tuple(make(folder, deep))

        yield Input("deep nesting", f"{place}: {levels}", arrange, (name,), True, command)


FAMILIES = (
    *(_links, _archives, _tables, _lists, _unsteady, _in_place_of_files, _bombs),
    *(_names, _hostile_labels, _deep),
)


def all_inputs() -> list[Trial]:
    """Returns all trials of inputs; the batches come first because they take longest."""
    return [*batches(), *itertools.chain.from_iterable(family() for family in FAMILIES)]
