"""The formats that the input may have."""

from __future__ import annotations

from pipeline.inputs.image_folder import ImageFolder
from pipeline.inputs.image_manifest import ImageManifest
from pipeline.inputs.imagenet_tars import ImagenetTars
from pipeline.inputs.input_format import InputFormat
from pipeline.inputs.parquet import HubParquet
from pipeline.inputs.webdataset import WebDataset

_IN_ORDER: tuple[InputFormat, ...] = (
    ImageManifest(),
    ImageFolder(),
    WebDataset(),
    ImagenetTars(),
    HubParquet(),
)

FORMATS = {each.kind: each for each in _IN_ORDER}
"""All formats, by `kind`. If an input fits several formats, the first of them is used."""
