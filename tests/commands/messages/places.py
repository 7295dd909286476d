"""Folders and files: where a command may neither read nor write, and datasets that are none."""

from messages import Rows
from pipeline.dataset.folder import sample_folder

PHOTO = f"{sample_folder()}/val/n01820546/sample_val_00000016.JPEG"
FITS = f"{PHOTO} --box 169,95,437,221 --to {{tmp}}/a.png"
CLEARED = "where files are replaced and removed; name a place outside of it"
OUT: dict[str, str | bytes] = {"out/.in9/progress/mine": "# mine"}
MINE = {"mine/thesis.txt": "mine"}
PUBLISHED = "{tmp}/published/v-0123456789ab"
VERSION: dict[str, str | bytes] = {"published/v-0123456789ab/m/": ""}
BIRDS = "--layout waterbirds --to {new}"
TWO = f"{BIRDS} --variants mixed_same,mixed_rand --holdout 0.5 --classes"
TRAIN = "--dataset {dataset} --holdout 0.5 --output {tmp}/mine"


def foreign(name: str) -> dict[str, str | bytes]:
    """Returns somebody else's file in `{tmp}/mine`."""
    return {f"mine/{name}": "# mine"}


ROWS: Rows = {
    "generate": [
        ("--input {input} --output {input}/out", "lies inside --input"),
        ("--output {tmp}/mine", "not empty", MINE),
        ("--output {tmp}/mine/thesis.txt", "is not a folder", MINE),
        ("--output {dataset} --input {dataset}/.in9/staging/mine", CLEARED),
        ("--output {dataset} --input {input} --annotations {dataset}/.in9/tmp/mine", CLEARED),
    ],
    # What a run would remove itself.
    "run --output {dataset} --input {input}": [
        *(
            (f"--{flag} {{dataset}}/{folder}/mine", CLEARED)
            for flag, folder in (
                *(
                    ("segmenter masks --masks", "index"),
                    ("backgrounds", "layers"),
                    ("imagenet", "parquet"),
                ),
                *(("weights", "results"), ("exclude", ".in9/staging"), ("include", ".in9/tmp")),
                ("taxonomy", "index"),
            )
        ),
        (f"--publish {{tmp}}/published --backgrounds {PUBLISHED}/m", CLEARED, VERSION),
    ],
    "evaluate --dataset {dataset}": [
        ("--imagenet {dataset}/parquet", CLEARED),
        (f"--publish {{tmp}}/published --weights {PUBLISHED}", CLEARED, VERSION),
    ],
    "train": [
        ("--dataset {dataset} --train_split val --output {dataset}/results/new", CLEARED),
        ("--dataset {dataset} --train_split val --probe --output {dataset}/index/mine", CLEARED),
        (
            f"{TRAIN} --probe --arch efficientnet_lite0",
            "{tmp}/mine",
            foreign("original.safetensors"),
        ),
        *(
            (f"{TRAIN} --overwrite", "was not trained here", foreign(name))
            for name in ("model.safetensors", "state.pth", "log.csv")
        ),
        (f"{TRAIN}/model.pth", "is not a folder", foreign("model.pth")),
        (
            "--dataset {dataset} --variant mixed_best --train_split val --output {new}",
            "--variant mixed_best: the dataset has",
        ),
    ],
    "models fetch --models": [
        ("onnx:{tmp}/.in9 --to {tmp}", CLEARED, {".in9/": ""}),
        ("efficientnet_lite0 --to {tmp}/mine", "{tmp}/mine", foreign("index.json")),
        ("efficientnet_lite0 --to {tmp}/mine/a", "is not a folder", foreign("a")),
    ],
    "import": [
        ("--output {dataset} --from {dataset}/.in9/staging/mine/val", CLEARED),
        ("--output {dataset} --from {dataset}/.in9/import/mine.tar", CLEARED),
        ("--output {tmp}/mine --from {input}", "{tmp}/mine", foreign("index/a")),
        ("--output {new} --from {dataset}", "is not the released layout"),
        ("--output {new} --from {tmp}/nowhere", "neither a folder nor a file"),
    ],
    "export --dataset {dataset}": [
        ("--to {dataset}/export", "lies inside --dataset"),
        ("--to {tmp}/mine", "{tmp}/mine", foreign("original/a")),
        *(
            (
                f"--images sample_val_00000027 --to {{tmp}}/mine/a.{kind}",
                "mine",
                foreign(f"a.{kind}"),
            )
            for kind in ("pdf", "png", "jpg")
        ),
        ("--layout answers --to {tmp}/a.csv", "--layout answers needs a", {"a.csv": ""}),
        ("--layout answers --to {tmp}/a.xlsx", "{tmp}/a.xlsx: --layout answers needs a new file"),
        ("--to {new} --classes dog,fish", "--layout released takes no --classes; leave --classes"),
        (f"{BIRDS} --variants mixed_same,mixed_rand --split val", "waterbirds takes no --split"),
        (f"{BIRDS} --variants mixed_same,mixed_rand", "no split train, but val: generate one"),
        (f"{BIRDS} --holdout 0.5", "needs two --variants"),
        (f"{BIRDS} --holdout 0.5 --variants mixed_rand,original", "--variants original: the data"),
        (f"{BIRDS} --holdout 1e-9 --variants mixed_same,mixed_rand", "is left for split 1"),
        (f"{TWO} dog,brd", "--classes brd: the dataset has dog,"),
        *((f"{TWO} {names}", f"--classes {names}: name two") for names in ("dog", "dog,dog")),
    ],
    f"show {PHOTO} --to {{tmp}}/a.png --class bird": [
        ("--box 900,900,990,990", "rejected, invalid_box: the box holds no pixel of the image"),
        ("--box 0,0,500,500", "rejected, box_too_large: the box covers more than 0.9"),
        *(
            (f"--box {box}", "rejected, unreadable_annotation: its annotation or mask is broken")
            for box in ("1,2,3", "a,b,c,d", "'1,1,9,9],[1,1,9,9'")
        ),
    ],
    "show": [
        ("{tmp}/a.jpg --box 1,1,9,9 --to {tmp}/a.tif", "a.tif: a figure needs a file that ends"),
        ("{tmp}/a.jpg --box 1,1,9,9 --to {tmp}/a.png", "{tmp}/a.jpg cannot be read: No such"),
        ("{tmp}/a.jpg --box 1,1,9,9 --to {tmp}/a.png", "rejected, undecodable", {"a.jpg": "mine"}),
        (f"{FITS} --models resnet5O", "close to it: resnet50"),
        (f"{PHOTO} --box 1,1,9,9 --to {{tmp}}/a.png", "is no figure of in9", {"a.png": "mine"}),
        (
            f"{FITS} --class brd",
            "--class must say what the photo shows, one of dog, bird, wheeled vehicle, reptile, "
            "carnivore, insect, musical instrument, primate, fish: got 'brd'; did you mean bird?",
        ),
    ],
    "run --input {input}": [
        *(
            (f"--output {{tmp}}/out --models {entry}{{tmp}}/out/.in9/progress/mine", CLEARED, OUT)
            for entry in ("a,resnet18=", "onnx:", "@")
        ),
        ("--output {tmp}/out --config {tmp}/out/.in9/progress/mine", CLEARED, OUT),
        ("--output {tmp}/mine", "{tmp}/mine", foreign(".in9/export/source.json")),
        ("--output {tmp}/mine", "{tmp}/mine", foreign("parquet/a")),
        ("--output {new} --publish {tmp}/mine", "{tmp}/mine", foreign("latest.json")),
        ("--output {new} --publish {tmp}/mine", "{tmp}/mine", foreign("diary.txt")),
        ("--output {new} --publish {tmp}/mine", "{tmp}/mine", foreign("public/index.html")),
    ],
    **{
        f"{command} --dataset": [
            ("{tmp}", "in9 generate --output"),
            ("{tmp}/nowhere", "does not exist"),
            ("{tmp}/notes", "is a file", {"notes": "mine"}),
            # The authors' archive, packed and unpacked, is what most people have first.
            *(
                (f"{{tmp}}/{name}", f"in9 import --from {{tmp}}/{name} --output released", made)
                for name, made in (
                    *(("bg.tar", {"bg.tar": ""}), ("bg.tar.gz", {"bg.tar.gz": ""})),
                    *(("bg.tgz", {"bg.tgz": ""}), ("bg.data", {"bg.data/original/val/": ""})),
                )
            ),
        ]
        for command in ("evaluate", "report", "verify")
    },
    "verify --dataset {tmp}": [
        ("", f"{says}", {"manifest.json": manifest})
        for manifest, says in (
            ('{"format": "other", "format_version": 1}', "'other' version 1"),
            (
                '{"format": "imagenet9-dataset", "format_version": 7}',
                "'imagenet9-dataset' version 7",
            ),
            ("[]", "If it is damaged, remove it"),
            ("", "holds no finished dataset"),
            ("[", "holds no finished dataset"),
            (b"\xff\xfe\x00", "holds no finished dataset"),
        )
    ],
}
