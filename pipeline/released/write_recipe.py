"""Writes the recipe of a dataset: a file without a pixel, a card for people and one for tools."""

import base64
import dataclasses
import io
import tempfile
import zlib
from collections.abc import Iterator

import pyarrow as pa

from pipeline.dataset.card import CITATION, markdown, notes_of, sentence, terms_of
from pipeline.dataset.croissant import file_metadata
from pipeline.dataset.datasheet import datasheet, steps_of
from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import (
    ACCEPTED,
    Row,
    layer_record,
    layer_tar,
    read_image_rows,
    read_metadata,
)
from pipeline.dataset.sinks import layer_ranges
from pipeline.errors import refuse_first, shown_bytes
from pipeline.generate.recipe import (
    DIGESTS,
    METADATA_KEY,
    RECIPE,
    SEAL,
    Recipe,
    recipe_schema,
    sealed,
    versions_of,
)
from pipeline.runtime.custom_functions import PREFIX
from pipeline.storage.state_files import parquet_writer
from pipeline.storage.store import WORK_FOLDER, FileDigest, Store
from transforms.codec import check_png, decode_mask
from transforms.masks import encode_runs
from transforms.variants import EXTERNAL, MASK


def write_recipe(dataset: Dataset, target: Store) -> tuple[FileDigest, int]:
    """Writes a dataset's recipe to a folder; returns (digest of `recipe.parquet`, number of masks).

    Raises UsageError if the dataset has no masks, or says what no recipe may say; JobError if a
    file of it is missing or damaged.
    """
    outside, manifest = dataset.manifest.outside, dataset.manifest.with_outside({})
    dataset = dataclasses.replace(dataset, manifest=manifest)
    config, has_layers = manifest.config, manifest.config.layers == "keep"
    refuse_first(
        {
            "it was imported": config.is_imported,
            "it keeps images whole (--selection in9l)": config.segment.keeps_image_whole,
            "it has neither layers (--layers drop) nor the variant fg_mask": not has_layers
            and MASK not in dataset.variants,
        },
        f"--layout recipe: {dataset.store.root} has no masks, because ",
    )
    schema, buffer, masks = recipe_schema(has_layers=has_layers), io.BytesIO(), 0
    with parquet_writer(
        buffer,
        schema,
        compression="zstd",
        compression_level=19,  # A tenth smaller than by default.
        use_dictionary=False,  # Digests do not repeat, and zstd sees what does.
        write_statistics=False,
        store_schema=False,
    ) as writer:
        for split, shard in [(each, n) for each in config.split for n in dataset.shards(each)]:
            table = pa.Table.from_pylist(list(_rows(dataset, split, shard)), schema)
            masks += len(table) - table["mask"].null_count
            writer.write_table(table, max(len(table), 1))
        files = (*dataset.manifest.files, *_dropped_tars(dataset))
        packed = zlib.compress(dataclasses.replace(dataset.manifest, files=files).to_json(), 9)
        writer.add_key_value_metadata({METADATA_KEY: base64.b64encode(packed), b"seal": SEAL})
    data = sealed(buffer.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        # A recipe that nobody could use must not replace one in the folder.
        Store(folder).write(RECIPE, data)
        Recipe.open(f"{folder}/{RECIPE}", f"--layout recipe: the recipe of {dataset.store.root}")
    file = target.write(RECIPE, data)
    target.write("README.md", shown_bytes(_readme(dataset, masks, ", ".join(outside))))
    target.write("croissant.json", file_metadata(file, dataset.manifest, CITATION))
    target.remove_temporary()
    target.prune(WORK_FOLDER)
    return file, masks


def _dropped_tars(dataset: Dataset) -> list[FileDigest]:
    """Returns the digests of the tars that records name, and that the dataset does not have."""
    known = {file.path for file in dataset.manifest.files}
    named = (
        read_metadata(dataset.store, path)
        for path in sorted(known)
        if path.startswith("layers/") and path.endswith(".parquet")
    )
    return [file for each in named if each for file in each.files if file.path not in known]


def _rows(dataset: Dataset, split: str, shard: int) -> Iterator[Row]:
    """Yields the rows of an output shard, in the order in which Segment met their images."""
    has_layers = dataset.manifest.config.layers == "keep"
    rows = [
        (row, layer_tar(split, source))
        for source in dataset.manifest.shards[split].sources_of(shard)
        for row in read_image_rows(dataset.store, layer_record(split, source))
    ]
    rows.sort(
        key=lambda each: (
            *(each[0].source_key, each[0].source_md5 or "", each[0].wnid or ""),
            *(each[0].object or 0, each[0].path),
        )
    )
    stored = () if has_layers else dataset.samples(split, shard, MASK)
    pngs = {sample.key: sample.image for sample in stored}
    for row, tar in rows:
        with dataset.naming_file(tar):
            if has_layers and row.status == ACCEPTED:
                (pngs[row.key],) = dataset.store.read_ranges(tar, [layer_ranges(vars(row))[-1]])
                check_png(pngs[row.key])
            mask = encode_runs(decode_mask(pngs.pop(row.key))) if row.key in pngs else None
        digests = {name: bytes.fromhex(getattr(row, name) or "") or None for name in DIGESTS}
        yield {**vars(row), **digests, "split": split, "mask": mask}


def _readme(dataset: Dataset, masks: int, outside: str) -> str:
    manifest = dataset.manifest
    segment, compose = manifest.config.segment, manifest.config.compose
    named = [name.partition("@")[0] for name in compose.variants if name != EXTERNAL]
    variants = [name for name in named if "=" not in name]
    fills = dict.fromkeys(name.partition("=")[2] for name in named if "=" in name)
    # Nothing that a recipe names is imported, and it has no scenes.
    flags = {
        f" --segmenter {segment.segmenter}": segment.segmenter.startswith(PREFIX),
        f" --variants {','.join(variants)}": any(name.startswith(PREFIX) for name in variants),
        f" --renderings {','.join(fills)}": bool(fills),
        " --backgrounds SCENES": compose.backgrounds is not None,
    }
    return "\n".join(
        [
            f"# Recipe of dataset {manifest.fingerprint[:12]}",
            "",
            f"`{RECIPE}` holds no pixel. It names every picture by its MD5, and has {masks} masks. "
            "Whoever has the pictures makes the same dataset from it, in any layout of the "
            "pictures, without annotations and without segmenting:",
            "",
            "```bash",
            "in9 generate --recipe THIS_FOLDER --input PICTURES --output OUTPUT"
            + "".join(flag for flag, is_needed in flags.items() if is_needed),
            "```",
            "",
            *(f"**{sentence(note)}**\n" for note in notes_of(manifest)),
            *((f"Not contained, because it comes from outside: {outside}.", "") if outside else ()),
            "## How it was made",
            "",
            *steps_of(manifest.config),
            "",
            f"With {versions_of(manifest.libraries)}. Other versions may write other files from "
            "the same pixels.",
            "",
            "## Licence and citation",
            "",
            "The pictures are not in here, and remain under their own terms.",
            "",
            terms_of(manifest),
            "",
            " ".join(datasheet(manifest, markdown)["dataReleaseMaintenancePlan"]),
            "",
            "Name the fingerprint with every result:",
            f"`{manifest.fingerprint}`.",
            "",
            f"> {CITATION}",
            "",
        ]
    )
