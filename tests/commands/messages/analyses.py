"""Flags of analyses and trainings that do not fit each other or the dataset."""

from messages import Rows

NO_IMAGE = "--holdout 0.001 leaves no image of val to test on"
NETWORK = "this needs a network that can be run"
ANSWERS = "--models answers:{tmp}/a.csv"
FILE: dict[str, str | bytes] = {"a.csv": "key,variant,label\na,original,dog\n"}
ROWS: Rows = {
    "": [
        (f"saliency --dataset {{dataset}} {ANSWERS},efficientnet_lite0", NETWORK, FILE),
        (f"models fetch {ANSWERS} --to {{new}}", NETWORK, FILE),
    ],
    "attack --dataset {dataset}": [
        ("--eval_input native", "leave --eval_input native out"),
        ("--grid 0", "expected 'all', a number of images, or two of these joined by x, as in"),
        ("--grid 1x2x3", "joined by x, as in 100x200, got '1x2x3'"),
        ("--models resnet5O", "timm has no model 'resnet5O'"),
        ("--eval_split test", "--eval_split test: the dataset has val"),
        ("--holdout 0.001", NO_IMAGE),
    ],
    "saliency --dataset {dataset}": [
        ("--eval_input native", "saliency is measured on stored pixels"),
        ("--variant fg_mask", "saliency of fg_mask: the dataset has"),
        ("--maps tench", "expected a whole number of at least 1, got 'tench'"),
        ("--holdout 0.001", NO_IMAGE),
    ],
    "evaluate --dataset {dataset}": [
        ("--holdout 0.001", NO_IMAGE),
        ("--models probe:efficientnet_lite0", "must be fitted on pictures that are not tested"),
    ],
    "method --dataset {dataset}": [("--holdout 0.001", NO_IMAGE)],
    "matrix --dataset {dataset}": [
        ("--probe --holdout 0.001", NO_IMAGE),
        ("--probe", "no split train, but val: add --holdout 0.5"),
        ("--probe --holdout 0.5 --variants mixed", "--variants mixed: the dataset has"),
        ("--probe --holdout 0.5 --variants dial", "lacks mixed_p00, mixed_p100, mixed_p25 and "),
        ("--probe --holdout 0.5 --train_split train", "--holdout divides one split"),
        ("--probe --train_split test", "--train_split test: the dataset has val"),
        ("--train_split val", "all images of val would be both trained on and tested on"),
        ("--probe --holdout 0.5 --in9l {dataset}", "make one with: in9 generate --selection in9l"),
        ("--probe --holdout 0.5 --in9l /nowhere", "--in9l: /nowhere does not exist"),
        ("--arch resnet_50 --holdout 0.5", "no such architecture"),
        ("--probe --arch answers:a.csv --holdout 0.5", "the entry of one encoder that can be run"),
    ],
    "train --dataset {dataset}": [
        ("--train_split val --arch resnet5O", "has no such architecture; close to it: resnet50"),
        ("--train_split test", "--train_split test: the dataset has val"),
        ("--train_split val --eval_split test", "--eval_split test: the dataset has val"),
        ("--train_split val --eval_split val", "--eval_split val is the split to train on"),
        ("--holdout 1", "argument --holdout: expected a fraction, at least 0 and less than 1"),
        ("--train_split val --lr 0", "--lr must be above 0: got 0.0"),
        ("--train_split val --workers -1", "--workers must be at least 0: got -1"),
        ("--train_split val --precision fp16 --device cpu", "--precision fp16 needs a GPU"),
        ("--train_split val --device cuda", "leave --device out to train on the CPU"),
        ("--epochs 0", "argument --epochs: expected a whole number of at least 1"),
        ("--runner DataflowRunner", "unknown flag --runner; example: in9 train"),
    ],
    "run --input {input} --output {new} --variants original,no_fg": [
        ("--attack 5", "the dataset has no fg_mask, only_bg_t"),
        ("--fail_if bg_gap", "--fail_if 'bg_gap': expected a measure"),
        ("--fail_if 'original<0.9,bg_gap>0.1'", "'bg_gap>0.1': the dataset has no mixed_same"),
        ("--fail_if 'original<baseline'", "add --baseline, a model or a folder of its results"),
        ("--baseline resnet18", "--baseline resnet18 is no entry of --models, no folder"),
        ("--baseline {input}", "holds no finished dataset"),
    ],
}
