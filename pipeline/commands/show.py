"""`in9 show` draws a photo in the paper's eight variants, with the answers of models to each.

`in9 export --images` draws images of a dataset in the same way.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from pipeline.analyses.evaluation.images import Prediction, predictions_of, shown_models
from pipeline.commands.command_line import flags_as
from pipeline.commands.reference import REASONS
from pipeline.dataset.config import ComposeConfig, SegmentConfig
from pipeline.dataset.folder import Dataset, sample_folder, selected_rows
from pipeline.dataset.manifest import reading_store
from pipeline.display.panel import find_samples
from pipeline.display.style import FIGURE_MARK, KINDS, Cell, versions_figure
from pipeline.errors import JobError, UsageError, did_you_mean
from pipeline.generate.cut_source import Cutter, read_source
from pipeline.inputs.layout import find_layout, list_images
from pipeline.inputs.location import Location
from pipeline.models.expand import DEFAULT_MODEL, expand_models, split_labels
from pipeline.models.identity import PredictConfig, chosen_folder
from pipeline.report.write import gather
from pipeline.storage.store import single_file
from transforms.annotations import Annotation, Box, write_annotation
from transforms.codec import TooManyPixelsError, UndecodableError, decode_image
from transforms.geometry import Pixels
from transforms.hashing import text_bytes
from transforms.pairing import NO_PARTNER, Pool, pair
from transforms.scoring import argmax_then_map, classes_of_outputs, labels_of_outputs
from transforms.taxonomy import OUTSIDE, Taxonomy, imagenet9
from transforms.variants import MIXED, ONLY_BG_T, PAPER_NAMES, PICTURES, VARIANTS, VariantName

Content = tuple[list[list[Cell]], Iterable[str]]
"""Rows of pictures with answers, and the names of the models that have given these."""
Ask = Callable[[int, Sequence[Pixels]], list[Prediction]]
"""Asks a model about pictures of a label."""
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
    box: tuple[int, int, int, int]
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
    write_figure(flags.to, functools.partial(_compose_photo, flags))
    return 0


def write_figure(path: str, make: Callable[[], Content]) -> None:
    """Writes what `make` returns; UsageError, before it is called, if the file is no figure's."""
    kind = path.rpartition(".")[2].lower().replace("jpeg", "jpg")
    if kind not in KINDS:
        raise UsageError(f"--to {path}: a figure needs a file that ends in .{', .'.join(KINDS)}")
    with single_file(path) as (target, name):
        if target.exists(name) and text_bytes(FIGURE_MARK) not in target.read(name):
            raise UsageError(f"--to {target.path(name)} is no figure of in9; choose another name")
        target.write(name, versions_figure(*make(), kind))
    print(f"figure: {target.path(name)}")


def read_images(dataset: Dataset, split: str, keys: Sequence[str]) -> Content:
    """Reads the images of some keys in all variants, and what models have answered to them.

    Raises:
      UsageError: an image is not in the dataset.
      JobError: a picture is broken.
    """
    variants = dataset.picture_variants
    samples = {name: find_samples(dataset, split, name, keys) for name in variants}
    if missing := [key for key in keys if key not in samples[variants[0]]]:
        raise UsageError(
            f"--images {missing[0]}: split {split} of the dataset does not have this image"
        )
    evidence = gather(dataset, dataset.taxonomy)
    answered, models = shown_models(evidence)
    models = models if answered == split else ()
    answers = {
        (*picture, one.model): one.lines
        for picture, of_picture in predictions_of(evidence, split, models, keys).items()
        for one in of_picture
    }
    try:
        rows = [
            [
                Cell(
                    PAPER_NAMES.get(str(name), str(name)),
                    decode_image(samples[name][key].image),
                    [
                        line
                        for model, _ in models
                        for line in answers.get((str(name), key, model.name), ("-", ""))
                    ],
                )
                for name in variants
            ]
            for key in keys
        ]
    except (UndecodableError, TooManyPixelsError) as error:
        raise JobError(f"a stored picture is broken ({error}); see: in9 verify") from error
    return rows, [model.name for model, _ in models]


def _compose_photo(flags: ShowFlags) -> Content:
    """Composes the variants of a photo, in two rows, and asks the models about them."""
    dataset = Dataset.open(reading_store(flags.dataset)) if flags.dataset else None
    taxonomy = dataset.taxonomy if dataset else imagenet9()
    config = dataset.config.segment if dataset else SegmentConfig()
    # A dataset's masks are of other pictures, and code that it names is not imported.
    cutter = Cutter(dataclasses.replace(config, segmenter="grabcut", segmenter_parameters=()))
    boxes = Location(text=write_annotation(Annotation(None, None, (Box(*flags.box),), None)))
    try:
        (cut,) = cutter.cut(read_source(Location(flags.photo), boxes))
    except OSError as error:
        raise UsageError(f"{flags.photo} cannot be read: {error.strerror or error}") from error
    if cut.reason is not None:
        raise UsageError(
            f"{flags.photo} is rejected, {cut.reason}: {REASONS[cut.reason]} ({cut.detail})"
        )
    assert cut.layer is not None
    # Loaded late, because it takes longest.
    models = dict(_load_models(flags, taxonomy))
    (first, ask), *_ = models.items()
    named, names = flags.named or ask(OUTSIDE, [cut.layer.image])[0].answer, taxonomy.names
    if named not in names:
        raise UsageError(
            f"--class must say what the photo shows, one of {', '.join(names)}: "
            + (f"got {named!r}{did_you_mean(named, names)}" if flags.named else f"{first} cannot")
        )
    print(f"class: {named}" + f", as {first} answers; --class names another" * (not flags.named))
    label = names.index(named)
    drawn = _draw(dataset, cutter, Path(flags.photo).stem, label)
    below = _BELOW | {name: f"on {names[of]}" for name, (of, _) in drawn.items()}
    pictures = [
        VARIANTS[name].compose(cut.layer, drawn[name][1] if name in drawn else None)
        for name in PICTURES
    ]
    answers = [ask(label, pictures) for ask in models.values()]
    cells = [
        Cell(
            PAPER_NAMES[name],
            picture,
            [below[name], *(line for one in of_picture for line in one.lines)],
        )
        for name, picture, *of_picture in zip(PICTURES, pictures, *answers, strict=True)
    ]
    return [cells[:4], cells[4:]], models


def _load_models(flags: ShowFlags, taxonomy: Taxonomy) -> Iterator[tuple[str, Ask]]:
    """Yields the name of each model, and what asks it."""
    # Imported late, because an export needs no torch.
    from pipeline.models.predict import Predictor, are_numbers, refuse_broken
    from pipeline.models.registry import check_model, load_model
    from pipeline.models.source import check_head

    def ask(
        name: str, predictor: Predictor, size: int, label: int, pictures: Sequence[Pixels]
    ) -> list[Prediction]:
        outputs = predictor.forward(predictor.to_device(np.stack(pictures))).detach().cpu()
        refuse_broken(are_numbers(outputs))
        truth, meaning = np.full(len(pictures), label), labels_of_outputs(size, taxonomy)
        scores = argmax_then_map(outputs.numpy(), truth, meaning)
        columns = (scores.prediction, scores.output, scores.top1, scores.prediction == truth)
        describe = functools.partial(
            Prediction.of, name, taxonomy, classes_of_outputs(size, taxonomy)
        )
        return [*map(describe, *(column.tolist() for column in columns))]

    entries, labels = split_labels(flags.models or (DEFAULT_MODEL,))
    weights = chosen_folder(flags.weights)
    for entry in expand_models(entries):
        check_model(entry, weights, needs_network=True)
        model = load_model(entry, weights, taxonomy)
        check_head(model, taxonomy)
        name, predictor = labels.get(entry, model.name), Predictor(model, PredictConfig())
        yield name, functools.partial(ask, name, predictor, model.num_outputs)


def _draw(
    dataset: Dataset | None, cutter: Cutter, key: str, label: int
) -> dict[str, tuple[int, Pixels]]:
    """Draws backgrounds for an image of the dataset, or of the sample, that may be none of these.

    Returns by mixed variant the label of the background, and its pixels.
    """
    config, chosen = dataset.config.compose if dataset else ComposeConfig(), {}
    if dataset:
        split = dataset.config.eval_split
        labels = {row["key"]: row["label"] for row in selected_rows(dataset, split)}
    else:
        images, *_ = list_images(find_layout(sample_folder(), None, "val"), imagenet9())
        labels = {image.key: image.label for image in images}
    # No image gets its own background.
    labels.pop(key, None)
    keys = [*labels]
    pool = Pool.from_images(keys, np.asarray([*labels.values()], np.int64), seed=config.seed)
    for name in MIXED:
        like = pool.members.get(label, pool.labels[:0])[:1]
        (drawn,) = pair(
            pool,
            like,
            [key] * len(like),
            VariantName(name),
            seed=config.seed,
            own_background=True,
            mixed_rand=config.mixed_rand,
        ).tolist() or [NO_PARTNER]
        if drawn == NO_PARTNER or (dataset and ONLY_BG_T not in dataset.variants):
            raise UsageError(
                f"{dataset.store.root if dataset else 'the sample'} has no background for {name}: "
                "it lacks images of the class, or the variant only_bg_t"
            )
        chosen[name] = keys[drawn]
    if dataset:
        found = find_samples(dataset, split, ONLY_BG_T, set(chosen.values()))
        tiled = {key: decode_image(sample.image) for key, sample in found.items()}
    else:
        tiled = {
            image.key: cutter.cut_background(read_source(image.location, image.annotation))
            for image in images
            if image.key in chosen.values()
        }
    return {name: (labels[of], tiled[of]) for name, of in chosen.items()}
