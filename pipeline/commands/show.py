"""`in9 show` draws a photo in the paper's eight variants, with the answers of models to each.

`in9 export --images` draws images of a dataset in the same way.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from pipeline.analyses.evaluation.images import predictions_of, shown_models
from pipeline.analyses.evaluation.patterns import Prediction
from pipeline.commands.command_line import flags_as
from pipeline.commands.reference import REASONS
from pipeline.dataset.config import ComposeConfig, DatasetConfig
from pipeline.dataset.folder import Dataset, sample_folder, selected_rows
from pipeline.dataset.reading import DatasetReader, Example
from pipeline.display.style import FIGURE_MARK, KINDS, Cell, versions_figure
from pipeline.errors import UsageError, did_you_mean, shown_bytes
from pipeline.generate.cut_source import Cutter, read_source
from pipeline.inputs.layout import find_layout, list_images
from pipeline.inputs.location import Location
from pipeline.models.expand import DEFAULT_MODEL, expand_models, split_labels
from pipeline.models.identity import PredictConfig, chosen_folder
from pipeline.report.write import gather
from pipeline.storage.store import single_file
from transforms.geometry import Pixels
from transforms.pairing import NO_PARTNER, Pool, pair
from transforms.scoring import argmax_then_map, classes_of_outputs
from transforms.taxonomy import OUTSIDE, Taxonomy, imagenet9
from transforms.variants import MIXED, ONLY_BG_T, PAPER_NAMES, PICTURES, VARIANTS, VariantName

Content = tuple[list[Cell], int, Sequence[str]]
"""Pictures with answers, row by row; the number of columns; and the names of the models that have
given the answers."""
_BELOW = {
    "original": "the photo",
    "only_bg_b": "its box black",
    "only_bg_t": "its box tiled over",
    "no_fg": "the object black",
    "only_fg": "on black",
}
"""What is under pictures of a photo that have its own background, or none."""


class ShowFlags(msgspec.Struct, frozen=True, kw_only=True):
    """Words and flags of `in9 show`; `named` is the superclass of the object."""

    photo: str
    box: tuple[str, ...]
    to: str
    named: str | None = msgspec.field(name="class")
    dataset: str | None
    models: tuple[str, ...] | None
    weights: str | None


def run_show(arguments: argparse.Namespace) -> int:
    """Runs `in9 show`; returns the exit code.

    Raises:
      UsageError: the photo cannot be read or cut, its class or a background for it is not known, or
        another flag is wrong.
      JobError: a model cannot be loaded or run.
    """
    flags = flags_as(ShowFlags, arguments)
    write_figure(flags.to, lambda: _compose_photo(flags))
    return 0


def write_figure(path: str, make: Callable[[], Content]) -> None:
    """Writes what `make` returns; UsageError, before it is called, if the file is no figure's."""
    kind = path.rpartition(".")[2].lower().replace("jpeg", "jpg")
    if kind not in KINDS:
        raise UsageError(f"--to {path}: a figure needs a file that ends in .{', .'.join(KINDS)}")
    with single_file(path) as (target, name):
        if target.exists(name) and shown_bytes(FIGURE_MARK) not in target.read(name):
            raise UsageError(f"--to {target.path(name)} is no figure of in9; choose another name")
        target.write(name, versions_figure(*make(), kind))
    print(f"figure: {target.path(name)}")


def read_images(dataset: Dataset, split: str, keys: Sequence[str]) -> Content:
    """Reads the images of some keys in all variants, and what models have answered to them.

    Raises:
      UsageError: an image is not in the dataset.
      JobError: a picture is broken.
    """
    evidence = gather(dataset, dataset.taxonomy)
    _, models = shown_models(evidence, split)
    answers = {
        (*picture, one.model): one.lines
        for picture, of_picture in predictions_of(evidence, split, models, keys).items()
        for one in of_picture
    }
    try:
        cells = [
            Cell(
                PAPER_NAMES.get(name, name),
                DatasetReader(dataset, name, split)[key][0],
                [
                    line
                    for model, _ in models
                    for line in answers.get((name, key, model.name), ("-", ""))
                ],
            )
            for key in keys
            for name in map(str, dataset.picture_variants)
        ]
    except KeyError as error:
        raise UsageError(
            f"--images {error.args[0]}: split {split} of the dataset does not have this image"
        ) from error
    return cells, len(dataset.picture_variants), [model.name for model, _ in models]


def _compose_photo(flags: ShowFlags) -> Content:
    """Composes the variants of a photo, in two rows, and asks the models about them."""
    reader = DatasetReader.open(flags.dataset, None, None) if flags.dataset else None
    config = reader.dataset.config if reader else DatasetConfig()
    taxonomy = reader.dataset.taxonomy if reader else imagenet9()
    # A dataset's masks are of other pictures, and code that it names is not imported.
    segment = dataclasses.replace(config.segment, segmenter="grabcut", segmenter_parameters=())
    cutter, boxes = Cutter(segment), json.dumps({"boxes": [flags.box]})
    try:
        (cut,) = cutter.cut(read_source(Location(flags.photo), Location(text=boxes)))
    except OSError as error:
        raise UsageError(f"{flags.photo} cannot be read: {error.strerror or error}") from error
    if cut.reason is not None:
        raise UsageError(
            f"{flags.photo} is rejected, {cut.reason}: {REASONS[cut.reason]} ({cut.detail})"
        )
    assert cut.layer is not None
    entries, titles = split_labels(flags.models or (DEFAULT_MODEL,))
    # Loaded late, because it takes longest.
    models = dict(
        _load(entry, titles.get(entry), chosen_folder(flags.weights), taxonomy)
        for entry in expand_models(entries)
    )
    (first, ask), *_ = models.items()
    named, names = flags.named or ask(OUTSIDE, [cut.layer.image])[0].answer, taxonomy.names
    if named not in names:
        raise UsageError(
            f"--class must say what the photo shows, one of {', '.join(names)}: "
            + (f"got {named!r}{did_you_mean(named, names)}" if flags.named else f"{first} cannot")
        )
    print(f"class: {named}" + f", as {first} answers; --class names another" * (not flags.named))
    key, label = flags.photo.rpartition("/")[2].rpartition(".")[0], names.index(named)
    drawn = _draw(reader, config.compose, cutter, key, label)
    pictures = [
        VARIANTS[name].compose(cut.layer, drawn[name][0] if name in drawn else None)
        for name in PICTURES
    ]
    answers = [ask(label, pictures) for ask in models.values()]
    cells = [
        Cell(
            PAPER_NAMES[name],
            picture,
            [
                f"on {names[drawn[name][1]]}" if name in drawn else _BELOW[name],
                *(line for one in of_picture for line in one.lines),
            ],
        )
        for name, picture, *of_picture in zip(PICTURES, pictures, *answers, strict=True)
    ]
    return cells, 4, [*models]


def _load(
    entry: str, title: str | None, weights: str | None, taxonomy: Taxonomy
) -> tuple[str, Callable[[int, Sequence[Pixels]], list[Prediction]]]:
    """Loads a model; returns its name, and what asks it about pictures of a label."""
    # Imported late, because an export needs no torch.
    from pipeline.models.predict import Predictor, are_numbers, refuse_broken
    from pipeline.models.registry import load_model
    from pipeline.models.source import check_head

    model = load_model(entry, weights, taxonomy, needs_network=True)
    outputs, classes = check_head(model, taxonomy), classes_of_outputs(model.num_outputs, taxonomy)
    name, predictor = title or model.name, Predictor(model, PredictConfig())

    def ask(label: int, pictures: Sequence[Pixels]) -> list[Prediction]:
        logits = predictor.forward(predictor.to_device(np.stack(pictures))).cpu()
        refuse_broken(are_numbers(logits))
        scores = argmax_then_map(logits.numpy(), np.full(len(pictures), label), outputs)
        columns = (scores.prediction, scores.output, scores.top1, scores.prediction == label)
        return [Prediction.of(name, taxonomy, classes, *row) for row in zip(*columns, strict=True)]

    return name, ask


def _draw(
    reader: DatasetReader | None, config: ComposeConfig, cutter: Cutter, key: str, label: int
) -> dict[str, Example]:
    """Draws backgrounds for a photo, as if it were an image of the dataset or of the sample.

    Returns the background of each mixed variant.
    """
    if reader:
        tiled: DatasetReader | dict[str, Example] = DatasetReader(
            reader.dataset, str(ONLY_BG_T), reader.split
        )
        labels = {
            row["key"]: row["label"]
            for row in selected_rows(reader.dataset, reader.split)
            if row["key"] in tiled
        }
    else:
        images, *_ = list_images(find_layout(sample_folder(), None, "val"), imagenet9())
        tiled = {
            image.key: (
                cutter.cut_background(read_source(image.location, image.annotation)),
                image.label,
                {},
            )
            for image in images
        }
        labels = {image.key: image.label for image in images}
    labels[key] = label
    keys = [*labels]
    pool = Pool.from_images(keys, np.asarray([*labels.values()], np.int64), seed=config.seed)
    drawn = {
        name: pair(
            pool,
            np.asarray([keys.index(key)]),
            [key],
            VariantName(name),
            seed=config.seed,
            mixed_rand=config.mixed_rand,
        ).item()
        for name in MIXED
    }
    if missing := [name for name, position in drawn.items() if position == NO_PARTNER]:
        raise UsageError(
            f"the dataset has no background for {missing[0]}: it lacks images of the class, or the "
            "variant only_bg_t"
        )
    return {name: tiled[keys[position]] for name, position in drawn.items()}
