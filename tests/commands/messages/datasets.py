"""Flags of datasets that do not fit each other, and functions that do not exist."""

from messages import Rows

FORM = "must look like python:my_segmenters:salient"
ROWS: Rows = {
    "generate --input {input} --output {new}": [
        ("--variants mixed_external", "mixed_external needs --backgrounds"),
        ("--variants mixed_external_telea", "mixed_external has no renderings"),
        ("--variants mixed_rand_box --layers drop", "leave --layers drop out"),
        ("--variants mixed_rand,original@3", "unknown variant 'original@3'"),
        ("--variants mixed_rand,mixed_same@x", "unknown variant 'mixed_same@x'"),
        ("--variants mixed_rand,all@1", "unknown variant 'all@1'"),
        ("--variants python:none_such:x", "none_such is not found"),
        ("--variants python:json:none_such", "json has no function 'none_such'"),
        ("--variants python:json:JSONDecoder", "small letters"),
        ("--variants python:transforms.variants:original", "'original' is taken"),
        ("--backgrounds nowhere", "nowhere does not exist, or is not a folder that can be"),
        ("--objects all", "choose from 'one', 'largest', 'union', 'each'"),
        ("--crop stretch", "--crop: invalid choice: 'stretch' (choose from 'center', 'pad')"),
        ("--config {tmp}/k.toml", "max_box must be between 0 and 1", {"k.toml": "max_box = 2"}),
        ("--masks .", "--masks goes with --segmenter masks"),
        ("--segmenter masks", "--segmenter masks needs --masks"),
        ("--segmenter python:json", FORM),
        ("--segmenter python:none_such:x", "python:none_such:x: none_such is not found"),
        ("--segmenter masks --masks /none", "neither a folder of PNGs nor a COCO"),
        ("--segmenter masks --masks /none.json", "not a file that can be read"),
        ("--segmenter masks --masks {tmp}/a", "a, which has 0 masks; expected", {"a/b.txt": ""}),
    ],
    "run --input {input} --output {new} --selection in9l": [
        ("--variants mixed_rand_box", "has only original"),
        ("--variants original,no_fg", "leave no_fg out of --variants"),
        ("--segmenter box", "leave --segmenter out"),
        ("--fail_if 'bg_gap>0.1'", "the dataset has no mixed_same"),
    ],
}
