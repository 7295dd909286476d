"""Entries of `--models`, and the command `models`."""

from messages import Rows

ROWS: Rows = {
    "run --output {new} --models": [
        ("resnet5O", "timm has no model 'resnet5O'; close to it: resnet50"),
        ("resnet18=/nowhere.pth", "there is no file /nowhere.pth"),
        ("resnet50.a9_in1k", "no such weights; timm has a1_in1k"),
        ("efficientnet_lite0,efficientnet_lite0", "names a model twice"),
        ("mynet.py", "python:mynet:FUNCTION, with its folder on PYTHONPATH"),
        ("lib/mynet.py:net", "for a function of your own: python:mynet:net"),
        ("python:mynet.py:net", "say python:mynet:net, with its folder on"),
        ("net.onnx", "use onnx:net.onnx"),
        ("resnet50.pth", "add its architecture, such as resnet50=resnet50.pth"),
        ("resnet50 resnet18", "'resnet18'; example: in9 run --output out"),
    ],
    "evaluate --dataset {dataset} --models": [
        ("{tmp}/a.parquet", "architecture, such as resnet50={tmp}/a.parquet", {"a.parquet": "\0"}),
        ("answers:{tmp}/a.xlsx", "answers are in a table, .csv, ", {"a.xlsx": ""}),
        ("GPT4=answers:{tmp}/a.csv", "for a label, write GPT4:=answers:{tmp}/a.csv"),
        ("probe:probe:resnet50", "probe:resnet50: behind probe: or knn: comes the entry of one"),
        ("knn:answers:{tmp}/a.csv", "behind probe: or knn: comes the entry of one encoder that"),
        ("probe:call:net", "probe:call:net: behind probe: or knn: comes the entry of one encoder"),
        ("GPT4=resnet50", "there is no file resnet50; for a label, write GPT4:=resnet50"),
        ("erm#*:=resnet50={tmp}/*.pth", "{tmp}/*.pth: there is no such file; * stands for"),
        (
            "erm#*:=resnet50={tmp}/*.pth",
            "--models: erm#1 and erm#2 have equal weights, or answers",
            {"1.pth": "", "2.pth": ""},
        ),
    ],
    "models": [
        ("fech", "invalid choice: 'fech'"),
        ("fetch --models resnet50", "fetch needs --models A,B and --to DIR"),
        ("fetch --models resnet5O --to {new}", "timm has no model"),
        ("fetch --weights {tmp}", "leave it out"),
        ("list resnet5O", "timm has no model 'resnet5O'; close to it: resnet50"),
        ("list --models resnet18,nosuch", "timm has no model 'nosuch'"),
        ("fetch --models knn:probe:resnet50 --to {new}", "behind probe: or knn: comes the entry"),
        ("fetch --models knn:answers:a.csv --to {new}", "behind probe: or knn: comes the entry"),
        ("list probe:", "probe:: behind probe: or knn: comes the entry of one encoder"),
        ("list probe:mine:=resnet50", "probe:mine:=resnet50: a label is a name of its own"),
        ("list probe:resnet5O", "timm has no model 'resnet5O'; close to it: resnet50"),
        ("list resnet* --weights {tmp}", "leave it out"),
        ("list --models resnet18 --weights {tmp}", "leave it out"),
    ],
}
