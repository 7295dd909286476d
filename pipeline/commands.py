"""What each command does: checks its flags, builds one graph, runs it, says what came out."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import resources

import apache_beam as beam
import torch

from pipeline.config import DatasetConfig
from pipeline.dataset import Dataset
from pipeline.errors import UsageError
from pipeline.evaluate import Evaluate, Evaluation
from pipeline.flags import COMMANDS
from pipeline.generate import Generate, Job
from pipeline.manifest import MANIFEST, Manifest, read_manifest
from pipeline.models import DEFAULT_MODEL, check_model
from pipeline.predict import EVAL_INPUTS, PRECISIONS, PredictConfig
from pipeline.report import REPORT, WriteReport, write_report
from pipeline.results import write_tables
from pipeline.runner import check_unknown, pipeline_options, run_pipeline
from pipeline.source import find_layout
from pipeline.storage import WORK_FOLDER, Store
from pipeline.terminal import accuracy_table, describe_dataset
from pipeline.verify import verify
from transforms.taxonomy import imagenet9
from transforms.variants import VARIANTS, select_variants

CPU_BATCH = 32
GPU_BATCH = 256


def run_command(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Runs a parsed command.

    Args:
      arguments: of `build_parser`.
      rest: what it did not know, for Beam.

    Returns:
      The exit code.

    Raises:
      UsageError: wrong usage or unreadable input.
      JobError: the job failed.
    """
    check_unknown(rest, _own_flags(arguments.command))
    if arguments.command in ("report", "verify"):
        if rest:
            raise UsageError(f"{rest[0]} is for commands that run a Beam pipeline")
        return (_report if arguments.command == "report" else _verify)(arguments)
    return _run(arguments, rest)


def _own_flags(command: str) -> list[str]:
    parser = argparse.ArgumentParser(add_help=False)
    for add in COMMANDS[command][2]:
        add(parser)
    return sorted(parser._option_string_actions)


def _run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """run, generate and evaluate: one graph of what each needs."""
    taxonomy = imagenet9()
    options = pipeline_options(rest)
    generates = arguments.command in ("run", "generate")
    evaluates = arguments.command in ("run", "evaluate")
    store = Store(os.path.abspath(arguments.output if generates else arguments.dataset))
    job = _job(arguments, store) if generates else None
    config = job.config if job else Dataset.open(store).manifest.config
    evaluation = _evaluation(arguments, store, config) if evaluates else None
    pipeline = beam.Pipeline(options=options)
    if job:
        dataset = pipeline | "Generate" >> Generate(job, taxonomy)
    else:
        dataset = pipeline | "Dataset" >> beam.Create([Dataset.open(store).manifest.fingerprint])
    if evaluation:
        dataset = dataset | "Evaluate" >> Evaluate(evaluation, taxonomy)
    if arguments.command != "generate":
        _ = dataset | "Report" >> beam.ParDo(WriteReport(store, taxonomy)).with_output_types(str)
    counters = run_pipeline(pipeline)
    _say(store, counters, evaluation is not None)
    return 0


def _job(arguments: argparse.Namespace, store: Store) -> Job:
    """Checks the flags of run and generate against each other and against the output."""
    config = _dataset_config(arguments)
    source = os.path.abspath(arguments.input) if arguments.input else sample_folder()
    annotations = os.path.abspath(arguments.annotations) if arguments.annotations else None
    for split in config.split:
        find_layout(source, annotations, split)
    inside = os.path.commonpath([os.path.realpath(store.root), os.path.realpath(source)])
    if inside == os.path.realpath(source):
        raise UsageError(
            f"--output {store.root} lies inside --input {source}; choose another folder"
        )
    manifest = read_manifest(store)
    _check_output(store, manifest)
    reshard = arguments.reshard
    if manifest is not None and not arguments.overwrite:
        differing = manifest.config.differing_flags(config)
        if reshard:
            differing = [name for name in differing if name != "images_per_shard"]
        _refuse(differing, manifest.config, config)
    try:
        os.makedirs(store.path(WORK_FOLDER), exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {store.root} cannot be written: {error.strerror}") from error
    return Job.of(
        config,
        source=source,
        annotations=annotations,
        store=store,
        manifest=manifest,
        reshard=reshard or (manifest is not None and _resized(manifest.config, config)),
    )


def _resized(old: DatasetConfig, new: DatasetConfig) -> bool:
    """Whether `--overwrite` asks for other shard sizes."""
    return old.images_per_shard != new.images_per_shard


def _dataset_config(arguments: argparse.Namespace) -> DatasetConfig:
    flags = {name: getattr(arguments, name) for name in DatasetConfig().flags()}
    try:
        wanted = flags["variants"]
        flags["variants"] = select_variants(VARIANTS if wanted == ("all",) else wanted)
        return DatasetConfig.from_flags(flags)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _check_output(store: Store, manifest: Manifest | None) -> None:
    """Refuses a folder with other things in it: Commit removes what is not of the dataset."""
    if os.path.exists(store.root) and not os.path.isdir(store.root):
        raise UsageError(f"--output {store.root} is not a folder")
    if manifest is None and os.path.isdir(store.root):
        entries = os.listdir(store.root)
        if entries and WORK_FOLDER not in entries:
            raise UsageError(
                f"--output {store.root} is not empty and holds no dataset; choose another folder"
            )


def _refuse(differing: list[str], old: DatasetConfig, new: DatasetConfig) -> None:
    if not differing:
        return
    was, now = old.flags(), new.flags()
    shown = ", ".join(
        f"--{name}={_shown(now[name])} (the dataset has {_shown(was[name])})" for name in differing
    )
    raise UsageError(
        f"the configuration differs from the dataset's: {shown}. Repeat the dataset's flags, "
        "choose another --output, or add --overwrite to rebuild what depends on them"
    )


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def sample_folder() -> str:
    """The embedded sample: 72 pictures in ImageNet's layout."""
    return str(resources.files("pipeline") / "data" / "sample")


def _evaluation(arguments: argparse.Namespace, store: Store, config: DatasetConfig) -> Evaluation:
    models = (DEFAULT_MODEL,) if arguments.models is None else arguments.models
    if not models:
        raise UsageError("--models names no model")
    if len(set(models)) != len(models):
        raise UsageError("--models names a model twice")
    for model in models:
        check_model(model)
    split = arguments.eval_split or ("val" if "val" in config.split else config.split[0])
    if split not in config.split:
        raise UsageError(f"--eval_split {split}: the dataset has {', '.join(config.split)}")
    return Evaluation(
        store=store,
        models=models,
        split=split,
        predict=_predict_config(arguments),
        accept_new_weights=arguments.accept_new_weights,
    )


def _predict_config(arguments: argparse.Namespace) -> PredictConfig:
    device = arguments.device
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device must be auto, cpu or cuda: got {device!r}")
    has_gpu = torch.cuda.is_available()
    if (arguments.require_gpu or device == "cuda") and not has_gpu:
        raise UsageError(
            "there is no CUDA device that torch can use; leave --require_gpu out, "
            "and --device auto, to run on the CPU"
        )
    if arguments.precision not in PRECISIONS:
        raise UsageError(
            f"--precision must be one of {', '.join(PRECISIONS)}: got {arguments.precision!r}"
        )
    if arguments.eval_input not in EVAL_INPUTS:
        raise UsageError(
            f"--eval_input must be one of {', '.join(EVAL_INPUTS)}: got {arguments.eval_input!r}"
        )
    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise UsageError(f"--batch_size must be at least 1: got {arguments.batch_size}")
    if device == "auto":
        device = "cuda" if has_gpu else "cpu"
    default = GPU_BATCH if device == "cuda" else CPU_BATCH
    return PredictConfig(
        device=device,
        precision=arguments.precision,
        batch_size=arguments.batch_size or default,
        eval_input=arguments.eval_input,
    )


def _say(store: Store, counters: dict[str, int], evaluated: bool) -> None:
    """The closing words of a job."""
    dataset = Dataset.open(store)
    print(describe_dataset(dataset.manifest, counters))
    if evaluated:
        print(accuracy_table(write_tables(store, dataset.manifest.fingerprint)))
        print(f"report: {store.path(REPORT)}")


def _report(arguments: argparse.Namespace) -> int:
    store = Store(os.path.abspath(arguments.dataset))
    dataset = Dataset.open(store)
    summaries = write_tables(store, dataset.manifest.fingerprint)
    write_report(store, imagenet9())
    if summaries:
        print(accuracy_table(summaries))
    print(f"report: {store.path(REPORT)}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    dataset = Dataset.open(Store(os.path.abspath(arguments.dataset)))
    faults = 0
    for fault in verify(dataset, imagenet9()):
        print(fault)
        faults += 1
    if faults:
        print(
            f"in9 verify: {faults} faults; remove the files concerned and run the command that "
            "made the dataset again",
            file=sys.stderr,
        )
        return 1
    print(f"{len(dataset.manifest.files)} files agree with {MANIFEST}")
    return 0
