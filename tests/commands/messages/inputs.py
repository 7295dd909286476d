"""Inputs: folders, tables and lists that are not what a flag is for."""

import pyarrow as pa
import pyarrow.parquet as pq
from shapes import tar_bytes

from messages import Rows

CLASSES = "class,superclass\ncup,dishes\nplate,dishes\nfork,cutlery\nlamp,lights\n"
FITS = (
    "--models efficientnet_lite0: a head of 1000 outputs fits neither the 4 classes nor the 3 "
    "superclasses, and ImageNet has no output for 'fork' and 1 more; a column index"
)
TABLE = "image,class,xmin,ymin,xmax,ymax\na.png,cup,1,2,30,40\n"
TOY = {"kinds.csv": CLASSES, "toy/input_table.csv": TABLE, "toy/a.png": b"\x89PNG"}
KAGGLE = "ImageId,PredictionString\n"
TAR = tar_bytes([("a.JPEG", b"")])
pq.write_table(pa.table({"text": ["a"]}), written := pa.BufferOutputStream())
TEXTS = written.getvalue().to_pybytes()
COCO = '{"images": [], "annotations": [], "categories": []}'
ROWS: Rows = {
    "generate --output {new} --input": [
        ("s3://bucket/images", "s3:// is not supported; give a local path, or gs://"),
        ("http://host/a.csv", "http:// is not supported"),
        ("/nowhere", "--input /nowhere does not exist, or is not a folder"),
        ("{dataset}", "is a dataset that in9 made"),
        ("{tmp}/a.parquet", "not a whole Parquet file", {"a.parquet": "junk\0"}),
        ("{input} --exclude {tmp}/list.txt", "is not text", {"list.txt": "a\0b"}),
        ("{tmp}/in", "no folder 'val'", {"in/": ""}),
        ("{tmp}/in", "no annotations of 'val'", {"in/val/holiday/": ""}),
        (
            "{tmp}/in",
            "no image of an ImageNet-9 class",
            {"in/val/holiday/": "", "in/Annotations/val/a.xml": "<annotation/>"},
        ),
        ("{input} --input_columns class=label", "input tables, and {input} is no table with paths"),
        ("{tmp}/c.json --input_columns class=label", "which has no columns", {"c.json": COCO}),
        (
            "{tmp}/t.csv --input_columns image=w --segmenter masks",
            "t.csv, line 2, column w: there is no file",
            {"t.csv": "image,class,w\na.png,cup,x\n"},
        ),
        ("{tmp}/toy --segmenter box", "no image of an ImageNet-9 class", TOY),
        ("{tmp}/toy --taxonomy {tmp}/none.csv", "is not a file that can be read", TOY),
    ],
    "run --output {new} --input {tmp}/toy --taxonomy {tmp}/kinds.csv --segmenter box": [
        ("--models efficientnet_lite0", FITS, TOY),
        ("--models efficientnet_lite0 --dry_run", FITS, TOY),
    ],
    "generate --output {new} --input {tmp}/toy --taxonomy {tmp}/kinds.csv": [
        ("--annotations {tmp}", "boxes are in the input table", TOY),
        ("--split val,train", "does not say which images are of which --split", TOY),
        ("--segmenter masks", "no image of", TOY),
    ],
    "generate --output {new} --input {tmp}/toy --taxonomy {tmp}/kinds.csv --input_columns": [
        (f"'{columns}'", says, TOY)
        for columns, says in (
            ("picture=filename", "expected NAME=COLUMN, where NAME is one of image,"),
            ("image", "width, height, or label for class"),
            ("image=", "image=: expected NAME=COLUMN"),
            ("image=image,image=class", "image=class: image or class is named twice"),
            ("class=class,label=image", "label=image: class or image is named twice"),
            ("image=class,class=class", "class=class: class or class is named twice"),
            ("image=nowhere", "has no column 'nowhere'"),
            ("image=class", "has no column 'class' that --input_columns leaves: an input table"),
            ("width=xmin,group=x", "no columns 'xmin' that --input_columns leaves, 'x': an inp"),
            ("group=scene,key=name", "has no columns 'scene', 'name'"),
            ("", "expected words separated by commas"),
        )
    ],
    "generate --output {new} --input {tmp}/in": [
        (
            "",
            "LOC_val_solution.csv, line 2: expected",
            {"in/LOC_val_solution.csv": f"{KAGGLE}a,n02085620 1 2\n", "in/val.tar": TAR},
        ),
        ("", "val.tar holds no images", {"in/val.tar": tar_bytes([("readme.txt", b"")])}),
        ("", "call it .tar if it is one", {"in/val.tar.gz": TAR}),
        (
            "",
            "expected the columns image",
            {"in/LOC_val_solution.csv": KAGGLE, "in/val.parquet": TEXTS},
        ),
    ],
    "generate --output {new} --input {tmp}/t.csv": [
        ("", says, {"t.csv": text, "a.png": b"\x89PNG"})
        for text, says in (
            ("image,class,xmin,ymin,xmax,ymax\nb.png,cup,1,2,3,4\n", "column image: there is no"),
            ("image,class,xmin,ymin,xmax,ymax\n,cup,1,2,3,4\n", "2, column image: names no file"),
            ("picture,class\na.png,cup\n", "has no column 'image'"),
            ("image,class,xmin\na.png,cup,1\n", "'ymin', 'xmax', 'ymax': an input table"),
            ("path,xmin,ymin,xmax\na.png,1,1,2\n", "has no columns 'image', 'class', 'ymax'"),
            ("image,class,boxes,xmin,ymin,xmax,ymax\na.png,cup,,1,2,3,4\n", "boxes in two ways"),
            ("image,class,key\na.png,cup,x\na.png,cup,y\n", "line 3, column key: 'y' differs"),
            ('image,class\n"a.png,cup\n', "unexpected end of data"),
            ("a\n\n\xfc\n".encode("latin-1"), "t.csv is not text in UTF-8"),
            ("", "has no rows"),
        )
    ],
    "generate --output {new} --input {tmp}/t.json": [
        ("", says, {"t.json": text, "a.png": b"\x89PNG"})
        for text, says in (
            ("{", "is not JSON"),
            ("{}", "neither COCO's JSON"),
            ('[{"a": [{"c": 1, "c": 1}]}]', "t.json is not JSON: an object has two fields 'c'"),
        )
    ],
    "generate --input {input} --output {new} --taxonomy": [
        ("dogs", "dogs is not a file that can be read"),
        *(
            ("{tmp}/t.csv", f"{{tmp}}/t.csv{says}", {"t.csv": text})
            for text, says in (
                ("class,kind\na,b\n", ": expected the columns class and superclass"),
                ("class,superclass\n", " has no rows"),
            )
        ),
    ],
}
