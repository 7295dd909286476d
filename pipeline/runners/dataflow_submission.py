"""From flags to a job of Dataflow, checked before anything is sent there."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    DebugOptions,
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
    WorkerOptions,
)
from apache_beam.runners.runner import PipelineResult

from pipeline.dataset.fingerprints import fingerprint
from pipeline.errors import JobError, UsageError
from pipeline.models.entries import place_of
from pipeline.runtime.dataflow_jobs import console_address, is_dataflow, job_of
from pipeline.runtime.lock import DATASET_LOCK, release_of
from pipeline.storage.files import absolute, is_remote
from pipeline.storage.store import Store

_FOLDERS = (
    *("output", "dataset", "input", "annotations", "exclude", "include"),
    *("masks", "backgrounds", "weights", "imagenet", "publish"),
)
"""Flags that name folders or files, all of which workers must reach."""
_GPU = re.compile(r"([a-z0-9-]+)(?::([a-z0-9-]+))?")
_DRIVER = "install-nvidia-driver;use_nvidia_mps"
"""Several SDK processes of a machine may hold a model each; MPS lets them share the GPU."""


@dataclasses.dataclass(frozen=True)
class Submission:
    """A job that this process only launches.

    Attributes:
      job: project, region and name, as locks name it.
      waits: whether the launcher stays until the job is over.
      is_template: whether another one submits what is built here: the launcher of a Flex
        template.
    """

    job: dict[str, str]
    waits: bool
    is_template: bool

    @property
    def owner(self) -> dict[str, dict[str, str]]:
        """The job as the owner of locks."""
        return {"dataflow": self.job}


def submission_from_flags(
    arguments: argparse.Namespace, options: PipelineOptions
) -> Submission | None:
    """Checks the flags of a job for Dataflow, and fills in what Beam needs to be told.

    Args:
      arguments: of `build_parser`.
      options: of Beam; package, labels and name of the job are set here.

    Returns:
      None if the job is not for Dataflow.

    Raises:
      UsageError: the first flag that is missing or wrong.
    """
    standard = options.view_as(StandardOptions)
    if not is_dataflow(standard.runner):
        for name, given in (
            ("gpu", arguments.gpu),
            ("gpus", arguments.gpus),
            ("no_wait_until_finish", standard.no_wait_until_finish),
        ):
            if given:
                raise UsageError(f"--{name} is for --runner=DataflowRunner")
        return None
    _check_places(arguments, options)
    _check_package(options)
    _check_gpu(arguments, options)
    google = options.view_as(GoogleCloudOptions)
    google.labels = [*(google.labels or []), "app=in9", f"command={arguments.command}"]
    google.job_name = google.job_name or _job_name(arguments)
    # Workers import the package; a pickled main session would bring this process's along.
    options.view_as(SetupOptions).save_main_session = False
    is_template = bool(google.template_location)
    # A launcher of templates has minutes, and submits only when this process has ended.
    waits = not standard.no_wait_until_finish and not is_template
    return Submission(job=job_of(options), waits=waits, is_template=is_template)


def flags_of_workers(
    arguments: argparse.Namespace, submission: Submission | None
) -> argparse.Namespace:
    """The flags as they hold where models run: this machine's GPU is not the workers'."""
    if submission is None or not hasattr(arguments, "device"):
        return arguments
    device = "cuda" if arguments.gpu else "cpu"
    return argparse.Namespace(**{**vars(arguments), "device": device})


def inference_hints(arguments: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    """Resource hints of the steps that run models, as (name, value).

    Raises:
      UsageError: a value that is none.
    """
    if not arguments.gpu:
        return ()
    match = _GPU.fullmatch(arguments.gpu)
    if match is None:
        raise UsageError(
            f"--gpu {arguments.gpu}: expected TYPE or TYPE:MACHINE, such as "
            "nvidia-tesla-t4 or nvidia-l4:g2-standard-8"
        )
    machine = f"machine_type:{match[2]};" if match[2] else ""
    return (("accelerator", f"type:{match[1]};count:1;{machine}{_DRIVER}"),)


def submit(pipeline: beam.Pipeline, submission: Submission, store: Store) -> PipelineResult:
    """Submits a pipeline, says where it can be watched, and waits for it if that is wanted.

    Args:
      pipeline: the graph.
      submission: of `submission_from_flags`.
      store: the dataset folder, whose lock a job that failed still holds.

    Raises:
      Exception: whatever the service says of a job that failed.
    """
    result = pipeline.run()
    if submission.is_template:
        return result
    address = console_address(submission.job, result.job_id())
    print(f"job {submission.job['job_name']} ({result.job_id()}): {address}", flush=True)
    if not submission.waits:
        return result
    try:
        result.wait_until_finish()
    except KeyboardInterrupt:
        print(f"the job goes on without us: {address}", file=sys.stderr)
        raise
    except Exception as error:
        if result.is_in_terminal_state():
            release_of(store, DATASET_LOCK, submission.owner)
            if str(error).rstrip().endswith(("Error:", "None")):
                raise JobError(
                    f"it ended as {result.state} without a word; see {address}"
                ) from error
        raise
    return result


def _check_places(arguments: argparse.Namespace, options: PipelineOptions) -> None:
    google = options.view_as(GoogleCloudOptions)
    for name, example in (
        ("project", "PROJECT"),
        ("region", "REGION"),
        ("temp_location", "gs://BUCKET/FOLDER"),
    ):
        if not getattr(google, name):
            raise UsageError(f"--{name}={example} is required with --runner=DataflowRunner")
    for name in ("temp_location", "staging_location"):
        place = getattr(google, name)
        if place and not is_remote(place):
            raise UsageError(f"--{name} must be gs://BUCKET/FOLDER: got {place}")
    for name in _FOLDERS:
        folder = getattr(arguments, name, None)
        if folder and not is_remote(folder):
            raise UsageError(
                f"--{name} {folder} is a folder of this machine, which workers of Dataflow "
                "cannot reach; copy it to gs://"
            )
    if hasattr(arguments, "input") and not arguments.input:
        raise UsageError("--input gs://BUCKET/FOLDER is required with --runner=DataflowRunner")
    for entry in getattr(arguments, "models", None) or ():
        place = place_of(entry)
        if place and not is_remote(place):
            raise UsageError(
                f"--models {entry}: workers of Dataflow cannot reach {place}; copy it to gs://"
            )


def _check_package(options: PipelineOptions) -> None:
    setup = options.view_as(SetupOptions)
    if options.view_as(WorkerOptions).sdk_container_image or setup.setup_file:
        return
    ours = Path(__file__).resolve().parents[2] / "setup.py"
    if not ours.is_file():
        raise UsageError(
            "--sdk_container_image=IMAGE is required with --runner=DataflowRunner: workers "
            "need this package, and its setup.py is not here"
        )
    setup.setup_file = str(ours)


def _check_gpu(arguments: argparse.Namespace, options: PipelineOptions) -> None:
    device = getattr(arguments, "device", "auto")
    if not arguments.gpu:
        if device == "cuda":
            raise UsageError("--gpu TYPE is required for a GPU on Dataflow, such as nvidia-l4")
        return
    google, debug = options.view_as(GoogleCloudOptions), options.view_as(DebugOptions)
    inference_hints(arguments)
    service = google.dataflow_service_options or []
    if any(option.startswith("worker_accelerator") for option in service):
        raise UsageError(
            "--dataflow_service_options=worker_accelerator puts a GPU into every worker; "
            "--gpu alone puts it where models run"
        )
    if debug.lookup_experiment("no_use_multiple_sdk_containers"):
        raise UsageError(
            "--experiments=no_use_multiple_sdk_containers would leave segmentation one process "
            "a machine; with --gpu, processes share the GPU by NVIDIA MPS"
        )
    if "enable_prime" in service or debug.lookup_experiment("enable_prime"):
        raise UsageError("--gpu shares it by NVIDIA MPS, which Dataflow Prime does not support")
    if google.flexrs_goal:
        raise UsageError("--gpu is for the steps that run models, which --flexrs_goal excludes")
    if device == "cpu":
        raise UsageError("--gpu and --device cpu contradict each other")


def _job_name(arguments: argparse.Namespace) -> str:
    """A name that two jobs on the same output share: Dataflow refuses the second while the
    first runs. Evaluations may run side by side, so theirs holds all of their flags."""
    if hasattr(arguments, "output"):
        return f"in9-{fingerprint(absolute(arguments.output))[:12]}"
    flags = sorted((name, str(value)) for name, value in vars(arguments).items())
    return f"in9-{arguments.command}-{fingerprint(flags)[:12]}"
