"""Turns flags into jobs, checked before anything starts.

Makes the job that generates a dataset, the evaluation (which models to run and how), and the work
that each analysis plans for the models.
"""

import argparse
import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence

from pipeline.analyses import ANALYSES
from pipeline.dataset.config import DatasetConfig, SegmentConfig
from pipeline.dataset.folder import Dataset, Holdout, refuse_empty_test, sample_folder
from pipeline.dataset.manifest import Manifest, last_manifest, stated
from pipeline.dataset.records import DATA_FOLDERS
from pipeline.errors import UsageError, refuse_first
from pipeline.evaluate.planned import Evaluation, PlannedAnalysis
from pipeline.evaluate.results import ModelRun, read_results
from pipeline.generate.commit import INPUT_NOTE, read_prepared
from pipeline.generate.custom_variants import versioned
from pipeline.generate.job import GenerateJob
from pipeline.generate.scenes import list_scenes
from pipeline.inputs.image_manifest import (
    ImageManifest,
    is_coco_manifest,
    named_columns,
    tells_splits,
)
from pipeline.inputs.input_format import SplitLayout
from pipeline.inputs.layout import find_layout
from pipeline.inputs.lists import read_key_list, read_taxonomy
from pipeline.inputs.recipe import RECIPE, RECIPE_COPY, Recipe
from pipeline.jobs.changes import describe_list_change, shown
from pipeline.models.answers import MISSING_ANSWERS, refuse_answers, refuse_other_dataset
from pipeline.models.expand import DEFAULT_MODEL, expand_models, name_of, split_labels
from pipeline.models.identity import KnownModels, PredictConfig, chosen_folder
from pipeline.released.export import EXPORT_FOLDER
from pipeline.runners.dataflow import Gpu
from pipeline.runtime.custom_functions import PREFIX
from pipeline.runtime.progress import Progress
from pipeline.segmenters import check_coco, check_masks, parameters_of
from pipeline.storage.files import absolute, is_below, join
from pipeline.storage.state_files import read_json
from pipeline.storage.store import WORK_FOLDER, Store
from transforms.segmentation import takes_masks
from transforms.taxonomy import Taxonomy, imagenet9
from transforms.variants import EXTERNAL, OF_WHOLE_IMAGES, select_variants

_OF_FILES = ("exclude", "include", "taxonomy")
"""Flags that name files, of which a dataset's configuration has digests."""
# Separates the input and its columns in the note of them.
_COLUMNS_NOTED = " --input_columns "


def evaluation_from_flags(
    arguments: argparse.Namespace, store: Store, config: DatasetConfig, taxonomy: Taxonomy
) -> Evaluation:
    """Makes an evaluation from flags, which are checked against each other and the dataset.

    Args:
      arguments: the parsed arguments of a command that runs models.
      store: the dataset folder.
      config: the dataset's configuration.
      taxonomy: the dataset's taxonomy.

    Raises:
      UsageError: a flag is wrong.
    """
    weights = chosen_folder(arguments.weights)
    load = functools.cache(KnownModels(store, weights, taxonomy).load)
    entries, labels = split_labels(
        (DEFAULT_MODEL,) if arguments.models is None else arguments.models
    )
    models = expand_models(entries, load)
    if not models:
        raise UsageError("--models names no model")
    # For `run`, the dataset may not exist yet, so its models are checked when they are run.
    dataset = None if arguments.command == "run" else Dataset.open(store)
    for model in models:
        if dataset:
            refuse_other_dataset(model, dataset.manifest.fingerprint)
        # A model that was loaded before needs no check, so its library need not be imported.
        if load(model) is None:
            from pipeline.models.registry import check_fit, check_model

            check_model(model, weights)
            check_fit(model, taxonomy, weights)
    split = arguments.eval_split or config.eval_split
    # Only some commands have the flag.
    megabytes: int | None = getattr(arguments, "pixel_cache", None)
    refuse_first(
        {
            f"--eval_split {split}: the dataset has {', '.join(config.split)}": split
            not in config.split,
            f"--pixel_cache must be at least 0: got {megabytes}": megabytes is not None
            and megabytes < 0,
        }
    )
    settings = {field.name for field in dataclasses.fields(PredictConfig)}
    evaluation = Evaluation(
        store=store,
        models=models,
        labels=_labels(
            store,
            [name_of(model, load) for model in models],
            {name_of(entry, load): label for entry, label in labels.items()},
        ),
        split=split,
        predict=PredictConfig(**{name: getattr(arguments, name) for name in settings}),
        progress=Progress.for_store(store),
        accept_new_weights="weights" in arguments.overwrite,
        weights=weights,
        blocks=arguments.gpus,
        hints=Gpu.parse(arguments.gpu).hints if arguments.gpu else (),
        has_machines=bool(arguments.gpu or arguments.dask),
        holdout=arguments.holdout,
        pixel_cache=None if megabytes is None else megabytes << 20,
        # A command without the flag measures no test score, so overlap is allowed.
        allow_overlap=getattr(arguments, "allow_overlap", True),
        missing_answers=getattr(arguments, "missing_answers", MISSING_ANSWERS[0]),
    )
    if dataset:
        refuse_empty_test(dataset, split, Holdout(evaluation.holdout))
        for model in models if hasattr(arguments, "allow_overlap") else ():
            evaluation.refuse_unfit(dataset, model)
    return evaluation


def _labels(store: Store, models: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """Returns the label of each model that has one: the given one, or else the stored one.

    Args:
      store: the dataset folder.
      models: names of the models to run.
      given: label by name of the model, from flags.

    Raises:
      UsageError: tables already show another model by the name that a model would have in them.
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
    return labels


def analyses_from_flags(
    arguments: argparse.Namespace, store: Store, config: DatasetConfig, taxonomy: Taxonomy
) -> dict[str, PlannedAnalysis]:
    """Makes the works from flags, which are checked against each other and the dataset.

    Args:
      arguments: the parsed arguments of a command of the main job.
      store: the dataset folder.
      config: the dataset's configuration.
      taxonomy: the dataset's taxonomy.

    Returns:
      The works by name of their analysis, in order; none for `generate`.

    Raises:
      UsageError: a flag is wrong.
    """
    if arguments.command == "generate":
        return {}
    evaluation = evaluation_from_flags(arguments, store, config, taxonomy)
    plans = (
        (one.name, one.parts.plan(arguments, evaluation, config, taxonomy)) for one in ANALYSES
    )
    works = {name: work for name, work in plans if work is not None}
    if any(work.needs_network for work in works.values()):
        for model in evaluation.models:
            refuse_answers(model)
    return works


def job_from_flags(arguments: argparse.Namespace, store: Store) -> GenerateJob:
    """Makes the job of `run` and `generate`.

    It finds the input, and checks the flags against each other, the input and the output.

    Args:
      arguments: the parsed arguments of `run` or `generate`.
      store: the output folder.

    Raises:
      UsageError: a flag is wrong, or does not fit the input or the output.
    """
    taxonomy, recipe = read_taxonomy(arguments.taxonomy), _find_recipe(arguments, store)
    config = (
        _recipe_config(arguments, taxonomy, recipe)
        if recipe
        else _dataset_config(arguments, taxonomy)
    )
    told = recipe.manifest if recipe else None
    source = absolute(arguments.input) if arguments.input else sample_folder()
    annotations = absolute(arguments.annotations) if arguments.annotations else None
    columns = named_columns(arguments.input_columns or ())
    needs_boxes = not (
        recipe or takes_masks(arguments.segmenter) or config.segment.keeps_image_whole
    )
    layouts = tuple(
        find_layout(
            source,
            annotations,
            split,
            needs_boxes=needs_boxes,
            takes_any_folder=recipe is not None,  # It knows every picture.
            columns=columns,
        )
        for split in config.split
    )
    _check_splits(layouts)
    masks = None if recipe else _masks(arguments, layouts)
    for flag in ("output", "publish"):
        if (folder := getattr(arguments, flag)) and is_below(absolute(folder), source):
            raise UsageError(
                f"--{flag} {absolute(folder)} lies inside --input {source}; choose another folder"
            )
    manifest = last_manifest(store)
    _check_output(store, manifest)
    named = ",".join(f"{name}={column}" for name, column in sorted(columns.items()))
    note = f"{source}{_COLUMNS_NOTED}{named}" if columns else source
    if manifest is not None:
        if "input" not in arguments.overwrite:
            _check_input(arguments.input, note, store)
        _check_config(manifest.config, config, arguments.overwrite)
    previous, stages = ({}, None) if manifest is None else (manifest.shards, manifest.stages)
    if told and not manifest and told.config.images_per_shard == config.images_per_shard:
        previous = told.shards
    return GenerateJob(
        config=config,
        layouts=layouts,
        taxonomy=(told.taxonomy if told else taxonomy) or imagenet9(),
        store=store,
        progress=Progress.for_store(store),
        previous=previous,
        source=note if arguments.input else "",
        reshard="shards" in arguments.overwrite,
        guarded=None if "rebuild" in arguments.overwrite else stages,
        masks=masks,
        scenes=absolute(arguments.backgrounds) if arguments.backgrounds else None,
        recipe=recipe,
        allow_partial=arguments.allow_partial,
        about=stated(arguments, read_prepared(store) or manifest or told),
        **_list_paths(arguments),
    )


def _find_recipe(arguments: argparse.Namespace, store: Store) -> Recipe | None:
    """Opens the recipe that `--recipe` names, or the copy in the output; None without one."""
    folder = arguments.recipe or (store.exists(RECIPE_COPY) and store.path(WORK_FOLDER))
    if arguments.allow_partial and not folder:
        raise UsageError("--allow_partial goes with --recipe")
    if folder and (flags := [n for n in ("annotations", "masks") if getattr(arguments, n)]):
        raise UsageError(
            f"boxes and masks come from the recipe in {folder}; leave --{flags[0]} out"
        )
    file = folder and join(absolute(folder).removesuffix(f"/{RECIPE}"), RECIPE)
    return Recipe.open(file) if file else None


def _recipe_config(
    arguments: argparse.Namespace, taxonomy: Taxonomy | None, recipe: Recipe
) -> DatasetConfig:
    """Returns the configuration of a dataset that is made from a recipe.

    Flags that were not given have the recipe's values. Nothing that the recipe names is imported.

    Raises:
      UsageError: a flag contradicts the recipe, or must be given with it.
    """
    told, given = recipe.manifest.config, arguments.given
    named_anew = {*given, *_OF_FILES, "backgrounds", "segmenter_parameters"}
    kept = {name: value for name, value in told.flags().items() if name not in named_anew}
    is_kept = "variants" in kept or "config" not in arguments.overwrite
    filled = {name for name in told.compose.variants if "=" in name}
    for flag, names in (
        ("variants", told.compose.variants),
        ("renderings", [name.partition("=")[2] for name in filled if is_kept]),
        ("segmenter", [told.segment.segmenter]),
    ):
        code = [name.partition("@")[0] for name in names if name.startswith(PREFIX)]
        if code and flag not in given:
            raise UsageError(
                f"the recipe names {code[0]}, and functions are only imported if you name them, "
                f"too: give --{flag}"
            )
    if arguments.allow_partial and not recipe.has_layers and told.compose.per_class != "all":
        raise UsageError(
            "--allow_partial: the recipe has masks of the selected images only (--layers drop), so "
            f"no other image can stand in for a missing one (--per_class {told.compose.per_class})"
        )
    if told.compose.backgrounds and not arguments.backgrounds and is_kept:
        raise UsageError(
            "the recipe's mixed_external needs its scenes: name them with --backgrounds"
        )
    merged = argparse.Namespace(**{**vars(arguments), **kept})
    # They are added again, with --backgrounds and --renderings.
    merged.variants = tuple(n for n in merged.variants if n not in {EXTERNAL, *filled})
    config = dataclasses.replace(
        _dataset_config(merged, taxonomy),
        **{name: getattr(told, name) for name in _OF_FILES if name not in given},
    )
    differing = told.differing_flags(config)
    # What was decided before the masks were made, or for lack of masks, cannot be decided anew.
    may_differ = recipe.has_layers and set(differing) <= {
        *(*vars(told.compose), "images_per_shard", "layers")
    }
    if differing and not (may_differ and "config" in arguments.overwrite):
        was, now = told.flags(), config.flags()
        changes = (f"--{n}={shown(now[n])} (the recipe has {shown(was[n])})" for n in differing)
        raise UsageError(
            f"other flags than the recipe's: {', '.join(changes)}. Leave them out"
            + (", or add --overwrite config to compose another dataset of its masks" * may_differ)
        )
    return config


def _check_input(input_flag: str | None, note: str, store: Store) -> None:
    """Refuses to make a dataset of other images if `--input` or its columns seem to be forgotten.

    Args:
      input_flag: value of `--input`.
      note: what would be noted of the input.
      store: the dataset folder.
    """
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


def _list_paths(arguments: argparse.Namespace) -> dict[str, str]:
    """Returns the absolute path of `--exclude` and of `--include`, by flag, if they are given."""
    return {
        name: absolute(path)
        for name in ("exclude", "include")
        if (path := getattr(arguments, name))
    }


def _check_splits(layouts: Sequence[SplitLayout]) -> None:
    """Refuses to make several splits from one manifest that does not tell them apart.

    Otherwise each split would get all of its images.
    """
    files = [layout.files for layout in layouts if layout.kind == ImageManifest.kind]
    for one in set(files):
        if files.count(one) > 1 and not tells_splits(one[0], layouts[0].columns):
            raise UsageError(
                f"{one[0]} does not say which images are of which --split: add a column split, or "
                f"give a manifest for each, manifest_{layouts[0].split}.csv"
            )


def _masks(arguments: argparse.Namespace, layouts: Sequence[SplitLayout]) -> str | None:
    """Returns the absolute path of `--masks`; None if a manifest names them or none are needed."""
    takes = takes_masks(arguments.segmenter)
    are_manifests = all(layout.kind == ImageManifest.kind for layout in layouts)
    if takes and arguments.masks is None and are_manifests:
        if any(is_coco_manifest(each.files[0]) for each in layouts):
            check_coco("--segmenter masks with a COCO file")
        return None
    if takes != (arguments.masks is not None):
        raise UsageError(
            "--masks goes with --segmenter masks"
            if arguments.masks
            else "--segmenter masks needs --masks: a folder of PNGs, or a COCO .json file"
        )
    if arguments.masks is None:
        return None
    masks = absolute(arguments.masks)
    check_masks(masks)
    return masks


def _dataset_config(arguments: argparse.Namespace, taxonomy: Taxonomy | None) -> DatasetConfig:
    names = set(DatasetConfig().flags()) - {"segmenter_parameters", "taxonomy"}
    flags = {
        **{name: getattr(arguments, name) for name in names},
        **{
            name: read_key_list(path, f"--{name}").summary
            for name, path in _list_paths(arguments).items()
        },
        "taxonomy": None if taxonomy is None else taxonomy.description,
        "segmenter_parameters": parameters_of(arguments.segmenter),
    }
    variants = arguments.variants
    if flags["selection"] == "in9l":
        for flag in ("segmenter", "backgrounds"):
            if getattr(arguments, flag) not in (None, SegmentConfig.segmenter):
                raise UsageError(f"--selection in9l keeps images whole; leave --{flag} out")
        # Images of this selection are kept whole, so `all` means only the variants of whole images.
        variants = tuple(name for name in variants if name != "all") or OF_WHOLE_IMAGES
    if arguments.backgrounds:
        flags["backgrounds"] = list_scenes(absolute(arguments.backgrounds)).summary
        variants = (*variants, EXTERNAL)
    try:
        flags["variants"] = select_variants(versioned(variants, arguments.renderings))
        return DatasetConfig.from_flags(flags)
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
    words = dict.fromkeys(old.differing_flags(new), "config")
    if "images_per_shard" in words:
        words["images_per_shard"] = "shards"
    if None not in (old.compose.backgrounds, new.compose.backgrounds):
        # Like --input, the folder is input, so its content may change.
        words.pop("backgrounds", None)
    differing = [name for name, word in words.items() if word not in overwrite]
    if not differing:
        return
    accepted = ",".join(sorted({*overwrite, *(words[name] for name in differing)}))
    was, now = old.flags(), new.flags()
    differences = [
        f"--{name} {change}"
        if (change := describe_list_change(was[name], now[name]))
        else f"--{name}={shown(now[name])} (the dataset has {shown(was[name])})"
        for name in differing
    ]
    raise UsageError(
        f"the configuration differs from the dataset's: {', '.join(differences)}. Repeat the "
        f"dataset's flags, choose another --output, or add --overwrite {accepted} to accept them"
    )
