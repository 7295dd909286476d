"""Turns flags into the job that makes a dataset, the evaluation, and what each analysis plans.

All are checked before anything starts.
"""

import argparse
import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipeline.analyses import ANALYSES
from pipeline.commands.command_line import flags_as
from pipeline.dataset.config import DatasetConfig, SegmentConfig
from pipeline.dataset.folder import Dataset, refuse_empty_test, sample_folder
from pipeline.dataset.manifest import Manifest, StatedFlags, last_manifest, stated
from pipeline.dataset.records import DATA_FOLDERS, ShardCounts
from pipeline.errors import UsageError, refuse_first
from pipeline.evaluate.planned import Evaluation, ModelFlags, PlannedAnalysis, split_to_fit
from pipeline.evaluate.results import ModelRun, read_results
from pipeline.generate.commit import INPUT_NOTE, read_prepared
from pipeline.generate.origin import GenerateJob, InputOrigin, Origin, RecipeOrigin
from pipeline.generate.pictures import versioned
from pipeline.generate.recipe import RECIPE, RECIPE_COPY, Recipe
from pipeline.generate.scenes import list_scenes
from pipeline.generate.segmenters import check_coco, check_masks, parameters_of
from pipeline.inputs.input_format import SplitLayout
from pipeline.inputs.input_table import InputTable, content_of_coco, named_columns, tells_splits
from pipeline.inputs.layout import InputFlags, find_layout
from pipeline.inputs.lists import read_key_list, read_taxonomy
from pipeline.jobs.publish import describe_list_change, shown
from pipeline.models.answers import refuse_answers, refuse_other_dataset
from pipeline.models.checkpoint import KnownModels, encoder_of
from pipeline.models.expand import DEFAULT_MODEL, Load, expand_models, name_of, split_labels
from pipeline.models.identity import PredictConfig, chosen_folder
from pipeline.released.export import EXPORT_FOLDER
from pipeline.runners.dataflow import Gpu
from pipeline.runtime.custom_functions import PREFIX
from pipeline.runtime.flag_types import as_given
from pipeline.runtime.progress import Progress
from pipeline.storage.files import is_below, join
from pipeline.storage.state_files import read_json
from pipeline.storage.store import WORK_FOLDER, Store
from transforms.segmentation import takes_masks
from transforms.taxonomy import Taxonomy, imagenet9
from transforms.variants import EXTERNAL, OF_WHOLE_IMAGES, select_variants

_OF_FILES = ("exclude", "include", "taxonomy")
"""Flags that name files, of which a dataset's configuration has digests."""
# Separates the input and its columns in the note of them.
_COLUMNS_NOTED = " --input_columns "


class DatasetFlags(InputFlags, frozen=True, kw_only=True):
    """Flags of `run` and `generate` that name files, and those that decide on others."""

    given: tuple[str, ...]
    output: str
    publish: str | None
    overwrite: tuple[str, ...]
    selection: str
    segmenter: str
    variants: tuple[str, ...]
    renderings: tuple[str, ...]


def evaluation_from_flags(
    flags: ModelFlags,
    predict: PredictConfig,
    made: GenerateJob | Dataset,
) -> Evaluation:
    """Makes an evaluation from flags, which are checked against each other and the dataset."""
    store, config, weights = made.store, made.config, chosen_folder(flags.weights)
    load = functools.cache(KnownModels(store, weights, made.taxonomy).load)
    entries, given = split_labels((DEFAULT_MODEL,) if flags.models is None else flags.models)
    models = expand_models(entries, load)
    if not models:
        raise UsageError("--models names no model")
    # Of a dataset that is still to be made, models are checked when they are run.
    dataset = made if isinstance(made, Dataset) else None
    for model in models:
        if dataset:
            refuse_other_dataset(model, dataset.manifest.fingerprint)
        # A model that was loaded before needs no check, so its library need not be imported.
        if load(model) is None:
            from pipeline.models.registry import check_fit, check_model

            try:
                check_model(model, weights)
            except UsageError as error:
                runs = read_results(store, "model", ModelRun)
                if labelled := [run.model for run in runs if run.label == model]:
                    raise UsageError(
                        f"--models {model} is the label of {labelled[0]}; name that"
                    ) from error
                raise
            check_fit(model, made.taxonomy, weights)
    split, megabytes = flags.eval_split or config.eval_split, flags.pixel_cache
    refuse_first(
        {
            f"--eval_split {split}: the dataset has {', '.join(config.split)}": split
            not in config.split,
            f"pixel_cache must be at least 0: got {megabytes}": megabytes is not None
            and megabytes < 0,
        }
    )
    _refuse_equal_seeds({entry: label for entry, label in given.items() if "#" in label}, load)
    evaluation = Evaluation(
        store=store,
        models=models,
        labels=_labels(
            store,
            [name_of(model, load) for model in models],
            {name_of(entry, load): label for entry, label in given.items()},
        ),
        split=split,
        predict=predict,
        progress=Progress.for_store(store),
        accept_new_weights="weights" in flags.overwrite,
        weights=weights,
        blocks=flags.gpus,
        hints=Gpu.parse(flags.gpu).hints if flags.gpu else (),
        has_machines=bool(flags.gpu or flags.dask),
        # With both flags, all images are tested, and results say on how many a model was fitted.
        holdout=0.0 if flags.allow_overlap else flags.holdout,
        fit=split_to_fit(config.split, split, flags.holdout),
        pixel_cache=None if megabytes is None else megabytes << 20,
        # A command without the flag measures no test score, so overlap is allowed.
        allow_overlap=flags.allow_overlap is not False,
        missing_answers=flags.missing_answers,
    )
    if dataset:
        refuse_empty_test(dataset, split, evaluation.holdout)
        for model in models if flags.allow_overlap is not None else ():
            evaluation.refuse_unfit(dataset, model)
    return evaluation


def _labels(store: Store, models: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """Returns the given label, else the stored one, of each model that has one.

    Raises UsageError if tables already show another model, or a family, by the name that one would
    have.
    """
    stored = {run.model: run.label for run in read_results(store, "model", ModelRun)}
    labels = {model: label for model, label in stored.items() if label} | dict(given)
    titles = {labels.get(model, model): model for model in stored}
    for model in models:
        if (other := titles.setdefault(title := labels.get(model, model), model)) != model:
            raise UsageError(
                f"--models {model}: tables would show it as {title}, like {other}; give it a label "
                "of its own"
            )
    families = {label.partition("#")[0]: label for label in labels.values() if "#" in label}
    for family in sorted(families.keys() & titles.keys()):
        raise UsageError(
            f"--models: tables would show {titles[family]} as {family}, like the family of "
            f"{families[family]}; give one of them another label"
        )
    return labels


def _refuse_equal_seeds(labels: Mapping[str, str], load: Load) -> None:
    """Raises UsageError if two seeds of a family have equal weights, as far as that can be known.

    `labels` are those of seeds by entry. Files are read unless the weights of all are remembered.
    """
    contents: list[tuple[str, str | None]] = [
        (label, known.weights_sha256) for entry, label in labels.items() if (known := load(entry))
    ]
    contents += [(label, encoder_of(entry)) for entry, label in labels.items()]
    if not all(map(load, labels)):
        from pipeline.models.registry import source_of

        contents += [
            (label, source.digest(inner))
            for entry, label in labels.items()
            for source, inner in [source_of(entry)]
        ]
    seen: dict[tuple[str, str], str] = {}
    for label, content in contents:
        family = label.partition("#")[0]
        if content and (same := seen.setdefault((family, content), label)) != label:
            raise UsageError(
                f"--models: {same} and {label} have equal weights, or answers; name different "
                "trainings"
            )


def analyses_from_flags(
    arguments: argparse.Namespace, made: GenerateJob | Dataset
) -> dict[str, PlannedAnalysis]:
    """Plans the analyses that flags ask for, in order by name.

    `made` is the dataset, or the job that makes it, and the flags are checked against it and each
    other.
    """
    evaluation = evaluation_from_flags(
        flags_as(ModelFlags, arguments), flags_as(PredictConfig, arguments), made
    )
    plans: dict[str, PlannedAnalysis] = {}
    for one in ANALYSES:
        flags = flags_as(one.parts.flags, arguments)
        if plan := one.parts.plan(flags, evaluation, made.config, made.taxonomy):
            plans[one.name] = plan
    if any(plan.needs_network for plan in plans.values()):
        for model in evaluation.models:
            refuse_answers(model)
    return plans


class _Start(NamedTuple):
    """What a dataset is made from, and how.

    Attributes:
      shards: numbers of shards of a dataset that does not exist yet, by split, if they are known.
    """

    config: DatasetConfig
    taxonomy: Taxonomy
    layouts: tuple[SplitLayout, ...]
    origin: Origin
    shards: dict[str, ShardCounts]


def job_from_flags(arguments: argparse.Namespace, store: Store) -> GenerateJob:
    """Makes the job of `run` and `generate`; checks flags against each other, input and output."""
    flags = flags_as(DatasetFlags, arguments)
    taxonomy, recipe = read_taxonomy(flags.taxonomy), _find_recipe(flags, store, arguments.recipe)
    config, taxonomy, layouts, origin, previous = (
        _from_recipe(arguments, taxonomy, recipe) if recipe else _from_input(arguments, taxonomy)
    )
    source, columns = flags.input or sample_folder(), named_columns(flags.input_columns or ())
    for flag, folder in (("output", flags.output), ("publish", flags.publish)):
        if folder and is_below(folder, source):
            raise UsageError(
                f"--{flag} {folder} lies inside --input {source}; choose another folder"
            )
    manifest = last_manifest(store)
    _check_output(store, manifest)
    named = ",".join(f"{name}={column}" for name, column in sorted(columns.items()))
    note = f"{source}{_COLUMNS_NOTED}{named}" if columns else source
    if manifest is not None:
        if "input" not in flags.overwrite:
            _check_input(flags.input, note, store)
        _check_config(manifest.config, config, flags.overwrite)
        previous = manifest.shards
    return GenerateJob(
        config=config,
        layouts=layouts,
        taxonomy=taxonomy,
        store=store,
        progress=Progress.for_store(store),
        previous=previous,
        source=note if flags.input else "",
        reshard="shards" in flags.overwrite,
        guarded=manifest.stages if manifest and "rebuild" not in flags.overwrite else None,
        scenes=flags.backgrounds,
        origin=origin,
        about=stated(
            flags_as(StatedFlags, arguments),
            read_prepared(store) or manifest or (origin.recipe.manifest if origin.recipe else None),
        ),
    )


def _from_input(arguments: argparse.Namespace, taxonomy: Taxonomy | None) -> _Start:
    """Returns what a dataset is made from whose images are segmented."""
    flags, config = flags_as(DatasetFlags, arguments), _dataset_config(arguments, taxonomy)
    needs_boxes = not (takes_masks(flags.segmenter) or config.segment.keeps_image_whole)
    layouts = _find_layouts(flags, config.split, needs_boxes=needs_boxes)
    masks = _masks(flags.masks, takes_masks(flags.segmenter), layouts)
    return _Start(config, taxonomy or imagenet9(), layouts, InputOrigin(masks, **flags.lists), {})


def _from_recipe(
    arguments: argparse.Namespace, taxonomy: Taxonomy | None, recipe: Recipe
) -> _Start:
    """Returns what a dataset is made from whose masks a recipe has; it knows every picture."""
    flags, config = flags_as(DatasetFlags, arguments), _recipe_config(arguments, taxonomy, recipe)
    layouts = _find_layouts(flags, config.split, needs_boxes=False, takes_any_folder=True)
    origin, made_with = RecipeOrigin(recipe, flags.allow_partial), recipe.manifest
    is_alike = made_with.config.images_per_shard == config.images_per_shard
    return _Start(config, recipe.taxonomy, layouts, origin, made_with.shards if is_alike else {})


def _find_layouts(
    flags: InputFlags, splits: Sequence[str], *, needs_boxes: bool, takes_any_folder: bool = False
) -> tuple[SplitLayout, ...]:
    """Finds the images of each split; UsageError if there are none, or two splits share them."""
    columns = named_columns(flags.input_columns or ())
    layouts = tuple(
        find_layout(
            flags.input or sample_folder(),
            flags.annotations,
            split,
            needs_boxes=needs_boxes,
            takes_any_folder=takes_any_folder,
            columns=columns,
        )
        for split in splits
    )
    files = [layout.files for layout in layouts if layout.kind == InputTable.kind]
    for one in set(files):
        if files.count(one) > 1 and not tells_splits(one[0], columns):
            raise UsageError(
                f"{one[0]} does not say which images are of which --split: add a column split, or "
                f"give a table for each, input_table_{layouts[0].split}.csv"
            )
    return layouts


def _find_recipe(inputs: InputFlags, store: Store, typed: str | None) -> Recipe | None:
    """Opens the recipe that `--recipe` names, or the copy in the output; None without one."""
    folder = inputs.recipe or (store.exists(RECIPE_COPY) and store.path(WORK_FOLDER))
    if inputs.allow_partial and not folder:
        raise UsageError("--allow_partial goes with --recipe")
    if folder and (inputs.annotations or inputs.masks):
        raise UsageError(
            f"boxes and masks come from the recipe in {typed or folder}; leave "
            f"--{'annotations' if inputs.annotations else 'masks'} out"
        )
    file = folder and join(folder.removesuffix(f"/{RECIPE}"), RECIPE)
    return Recipe.open(file) if file else None


def _recipe_config(
    arguments: argparse.Namespace, taxonomy: Taxonomy | None, recipe: Recipe
) -> DatasetConfig:
    """Returns the configuration of a dataset that is made from a recipe.

    Flags that were not given have the recipe's values. Nothing that the recipe names is imported.
    Raises UsageError if a flag contradicts the recipe, or must be given with it.
    """
    made_with, flags = recipe.manifest.config, flags_as(DatasetFlags, arguments)
    named_anew = {*flags.given, *_OF_FILES, "backgrounds", "segmenter_parameters"}
    kept = {name: value for name, value in made_with.flags().items() if name not in named_anew}
    is_kept = "variants" in kept or "config" not in flags.overwrite
    filled = {name for name in made_with.compose.variants if "=" in name}
    for flag, names in (
        ("variants", made_with.compose.variants),
        ("renderings", [name.partition("=")[2] for name in filled if is_kept]),
        ("segmenter", [made_with.segment.segmenter]),
    ):
        code = [name.partition("@")[0] for name in names if name.startswith(PREFIX)]
        if code and flag not in flags.given:
            raise UsageError(
                f"the recipe names {code[0]}, and functions are only imported if you name them, "
                f"too: give --{flag}"
            )
    if flags.allow_partial and not recipe.has_layers and made_with.compose.per_class != "all":
        raise UsageError(
            "--allow_partial: the recipe has masks of the selected images only (--layers drop), so "
            "no other image can stand in for a missing one "
            f"(--per_class {made_with.compose.per_class})"
        )
    if made_with.compose.backgrounds and not flags.backgrounds and is_kept:
        raise UsageError(
            "the recipe's mixed_external needs its scenes: name them with --backgrounds"
        )
    merged = argparse.Namespace(**{**vars(arguments), **kept})
    # They are added again, with --backgrounds and --renderings.
    merged.variants = tuple(n for n in merged.variants if n not in {EXTERNAL, *filled})
    config = dataclasses.replace(
        _dataset_config(merged, taxonomy),
        **{name: getattr(made_with, name) for name in _OF_FILES if name not in flags.given},
    )
    differing = made_with.differing_flags(config)
    # What was decided before the masks were made, or for lack of masks, cannot be decided anew.
    may_differ = recipe.has_layers and set(differing) <= {
        *(*vars(made_with.compose), "images_per_shard", "layers")
    }
    if differing and not (may_differ and "config" in flags.overwrite):
        was, now = made_with.flags(), config.flags()
        changes = (
            f"{as_given(n)}={shown(now[n])} (the recipe has {shown(was[n])})" for n in differing
        )
        raise UsageError(
            f"other flags than the recipe's: {', '.join(changes)}. Leave them out"
            + (", or add --overwrite config to compose another dataset of its masks" * may_differ)
        )
    return config


def _check_input(input_flag: str | None, note: str, store: Store) -> None:
    """Refuses to make a dataset of other images if `--input` or its columns seem forgotten."""
    last_input = read_json(store, INPUT_NOTE, str) or ""
    last, now = (text.partition(_COLUMNS_NOTED)[0] for text in (last_input, note))
    refuse_first(
        {
            f"no --input, but {store.root} was made from {last_input}; give --input, choose "
            "another --output, or add --overwrite input to replace it by the sample": bool(
                input_flag is None and last_input
            ),
            f"{store.root} was made from {last_input}; repeat that, or add --overwrite input to "
            "read other columns": last == now and last_input != note,
        }
    )


def _masks(masks: str | None, takes: bool, layouts: Sequence[SplitLayout]) -> str | None:
    """Checks `--masks`, and returns it; None if an input table names masks, or none are needed."""
    has_named = takes and masks is None and all(each.kind == InputTable.kind for each in layouts)
    if has_named and any(content_of_coco(each.files[0]) for each in layouts):
        check_coco("--segmenter masks with a COCO file")
    if not has_named and takes != (masks is not None):
        raise UsageError(
            "--masks goes with --segmenter masks"
            if masks
            else "--segmenter masks needs --masks (a folder of PNGs, or a COCO .json file) "
            "or an input table with masks"
        )
    if masks is not None:
        check_masks(masks)
    return masks


def _dataset_config(arguments: argparse.Namespace, taxonomy: Taxonomy | None) -> DatasetConfig:
    flags = flags_as(DatasetFlags, arguments)
    typed = DatasetConfig().flags().keys() - {"segmenter_parameters", "taxonomy"}
    values = {
        **{name: getattr(arguments, name) for name in typed},
        **{name: read_key_list(path, f"--{name}").summary for name, path in flags.lists.items()},
        "taxonomy": None if taxonomy is None else taxonomy.description,
        "segmenter_parameters": parameters_of(flags.segmenter),
    }
    variants = flags.variants
    if flags.selection == "in9l":
        for flag, value in (("segmenter", flags.segmenter), ("backgrounds", flags.backgrounds)):
            if value not in (None, SegmentConfig.segmenter):
                raise UsageError(f"--selection in9l keeps images whole; leave --{flag} out")
        # Images of this selection are kept whole, so `all` means only the variants of whole images.
        variants = tuple(name for name in variants if name != "all") or OF_WHOLE_IMAGES
    if flags.backgrounds:
        values["backgrounds"] = list_scenes(flags.backgrounds).summary
        variants = (*variants, EXTERNAL)
    try:
        values["variants"] = select_variants(versioned(variants, flags.renderings))
        return DatasetConfig.from_flags(values)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _check_output(store: Store, manifest: Manifest | None) -> None:
    """Refuses what cannot be the dataset's folder.

    That is a file, a link to nowhere, an imported dataset, or a folder with foreign files, because
    Commit would remove them.
    """
    store.refuse_file("--output")
    if os.path.islink(store.root) and not os.path.exists(store.root):
        raise UsageError(
            f"--output {store.root} is a link to {os.readlink(store.root)}, which does not exist"
        )
    for folder in (*DATA_FOLDERS, "results", WORK_FOLDER):
        store.writable_path(f"{folder}/file")  # Refuses a link now, not hours later when writing.
        if store.exists(folder):
            raise UsageError(f"{store.path(folder)} is a file in a folder's place; remove it")
    is_ours = store.has_folder(WORK_FOLDER) and not store.has_folder(EXPORT_FOLDER)
    refuse_first(
        {
            "was imported and cannot be made from images; choose another folder, or evaluate it: "
            f"in9 evaluate --dataset {store.root}": bool(manifest and manifest.config.is_imported),
            "is not empty and holds no dataset; choose another folder": manifest is None
            and not is_ours
            and not store.is_empty(),
        },
        f"--output {store.root} ",
    )


def _check_config(old: DatasetConfig, new: DatasetConfig, overwrite: tuple[str, ...]) -> None:
    """Refuses flags that differ from the dataset's, unless `--overwrite` accepts the change."""
    words = {
        name: "shards" if name == "images_per_shard" else "config"
        for name in old.differing_flags(new)
    }
    if None not in (old.compose.backgrounds, new.compose.backgrounds):
        # Like --input, the folder is input, so its content may change.
        words.pop("backgrounds", None)
    differing = [name for name, word in words.items() if word not in overwrite]
    accepted = ",".join(sorted({*overwrite, *(words[name] for name in differing)}))
    was, now = old.flags(), new.flags()
    differences = [
        f"{as_given(name)} {change}"
        if (change := describe_list_change(was[name], now[name]))
        else f"{as_given(name)}={shown(now[name])} (the dataset has {shown(was[name])})"
        for name in differing
    ]
    if differences:
        raise UsageError(
            f"the configuration differs from the dataset's: {', '.join(differences)}. Repeat the "
            f"dataset's flags, choose another --output, or add --overwrite {accepted} to accept "
            "them"
        )
