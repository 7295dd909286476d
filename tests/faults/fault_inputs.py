"""Faults of input: hostile pictures, masks, scenes, tables, archives, links and devices."""

import dataclasses
import functools
import itertools
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset
import pyarrow.parquet as pq
from fault_lab import Ended, Lab, Outcome, Trial, advises_again, contents, faults_of
from fault_pictures import ANY, Hostile, encoded, fitting_xml, hostile_pictures, picture, shown
from PIL import Image
from runs import keys

MAKE = (
    *("--image_size", "64", *keys(resize=64), "--formats", "webdataset"),
    *("--variants", "original", "--pictures", "none", "--direct_num_workers=1"),
)
BOX = ("--segmenter", "box")
Make = Callable[[Path], Any]
Arrange = Callable[[Path], tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Batch:
    """A job on many hostile pictures at once.

    If the job fails, each half of the batch is tried on its own, until a single picture remains
    that makes it fail. The `place` is what they are used as: `images`, `masks` or `scenes`.
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
        flags = _with_masks(folder)
        self._images(folder, encoded(picture(), "JPEG"))
        self._write(folder / "masks", b".png")
        return flags

    def _scenes(self, folder: Path) -> tuple[str, ...]:
        flags = _with_scenes(folder)
        self._write(folder / "scenes", b".jpg")
        return flags

    def _write(self, folder: Path, suffix: bytes) -> None:
        for each in self.pictures:
            with open(os.fsencode(folder) + b"/" + each.name + suffix, "wb") as file:
                file.write(each.data)

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
    return [Batch("images", tuple(hostile)), Batch("masks", pictures), Batch("scenes", pictures)]


def _sparse(size: int, path: Path) -> None:
    """Makes a file of zeros that takes no disk space."""
    path.touch()
    os.truncate(path, size)


# Single inputs.


@dataclasses.dataclass(frozen=True)
class Input:
    """An input that is malformed or leads elsewhere.

    `make` makes it in a folder of good pictures, and returns additional flags. The closing line, if
    there is one, must contain one of the `names`.
    """

    kind: str
    name: str
    make: Arrange
    names: tuple[str, ...]
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
            ended = lab.run(trial, *command)
            faults = faults_of(ended, *self.names)
            if self.code not in (None, ended.code):
                faults.append(f"exit code {ended.code}, where {self.code} was wanted")
            if temporary := [each for each in trial.glob("**/.in9/tmp/*") if each.is_file()]:
                faults.append(f"{temporary[0].name} is left")
            if advises_again(ended) and lab.run(trial, *command).code != 0:
                faults.append("'the same command again' does not help")
            if contents(trial / "victim") != victim or len(list(trial.iterdir())) > 4:
                faults.append("something outside of the output has changed")
        return [Outcome(self.kind, self.name, tuple(faults), ended)]


def _arranged(
    prepare: Arrange, at: Callable[[Path], Path], make: Make, folder: Path
) -> tuple[str, ...]:
    flags = prepare(folder)
    make(at(folder))
    return flags


def _links() -> Iterator[Input]:
    def image_at(folder: Path) -> Path:
        return next(folder.glob("val/*")) / "hostile.JPEG"

    def xml_at(folder: Path) -> Path:
        shutil.copy(next(folder.glob("val/*/sample*")), image_at(folder))
        return folder / "Annotations" / "val" / "hostile.xml"

    def link(target: str) -> Callable[[Path], None]:
        return lambda path: path.symlink_to(target.format(victim=path.parents[2] / "../victim"))

    makers: dict[str, Make] = {
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
        "300 MB of nothing": functools.partial(_sparse, 300 << 20),
        "12 GB of nothing": functools.partial(_sparse, 12 << 30),
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
        arrange = functools.partial(_arranged, prepare, at, make)
        # What a link leads to may lie on a disk that is not mounted, which is no fault of the file.
        is_away = name in ("link to nothing", "link through a file") and place != "scene"
        code = int(is_away)
        names = ("hostile",)
        yield Input("links and devices", f"{place}: {name}", arrange, names, code=code)


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


def _listen(path: Path) -> None:
    at = os.getcwd()
    os.chdir(path.parent)  # Addresses of Unix sockets must be short.
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(at)


SIZES: dict[str, Make] = {
    "12 GB of nothing": functools.partial(_sparse, 12 << 30),
    "pipe": os.mkfifo,
    "socket": _listen,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
}
"""Functions that make something unexpected in the place of a file."""


def _in_place(name: str, flag: str, make: Make, folder: Path) -> tuple[str, ...]:
    make(folder / name)
    return (*flag.split(), str(folder / name))


def _in_place_of_files() -> Iterator[Input]:
    """Yields inputs in which a flag names a file as large as a disk, or not a file at all."""
    flags = {
        "table.csv": ("--input", "generate"),
        "table.json": ("--input", "generate"),
        "table.jsonl": ("--input", "generate"),
        "table.parquet": ("--input", "generate"),
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
            arrange = functools.partial(_in_place, name, flag, make)
            kind = "in place of files"
            yield Input(kind, f"{flag} {name}: {size}", arrange, (name,), command, 2)


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


_OF_TABLE = ("key", "group", "class", "image", "mask", "split")
_OF_TAXONOMY = ("superclass", "name", "class")


def _names() -> Iterator[Input]:
    """Yields such names in each place in which an input gives names."""
    where, box = "val/n02110063/sample_val_00000001.JPEG", [[20, 20, 70, 60]]
    image = {"image": where, "class": "n02110063", "boxes": box}
    row = {"class": "n02110063", "superclass": "dog"}
    for name, text in ENCODINGS.items():
        places = [("m.json", "--input", image, column) for column in _OF_TABLE]
        places += [("t.json", "--taxonomy", row, column) for column in _OF_TAXONOMY]
        for file, flag, first, column in places:
            data = json.dumps([first, {**first, column: text}])
            arrange = functools.partial(_in_place, file, flag, functools.partial(_write_text, data))
            place = "input table" if flag == "--input" else "taxonomy"
            yield Input("names in every encoding", f"{place}, {column}: {name}", arrange, (file,))


def _write_text(text: str, path: Path) -> None:
    path.write_text(text)


FAMILIES = (_links, _in_place_of_files, _names)


def all_inputs() -> list[Trial]:
    """Returns all trials of inputs; the batches come first because they take longest."""
    return [*batches(), *itertools.chain.from_iterable(family() for family in FAMILIES)]
