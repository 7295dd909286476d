"""From flags to a job of Dataflow, checked before anything is sent there."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
    WorkerOptions,
)
from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator
from apache_beam.runners.runner import PipelineResult, create_runner

from pipeline.dataset.fingerprints import fingerprint
from pipeline.errors import JobError, UsageError
from pipeline.models.expand import flat_entries
from pipeline.runners.dataflow_gpu import DISK_GB, check_gpu
from pipeline.runtime.dataflow_jobs import console_address, is_dataflow, job_of
from pipeline.runtime.lock import DATASET_LOCK, release_if_owned
from pipeline.storage.files import absolute, files_of, is_remote
from pipeline.storage.store import Store

_SUBNETWORK = re.compile(r"(?:.*/)?regions/([^/]+)/subnetworks/[^/]+")
_KEY = re.compile(r"projects/[^/]+/locations/([^/]+)/keyRings/[^/]+/cryptoKeys/[^/]+")
_REGION = re.compile(r"[a-z]+-[a-z]+[0-9]+")


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
    arguments: argparse.Namespace, options: PipelineOptions, paths: Iterable[str]
) -> Submission | None:
    """Checks the flags of a job for Dataflow, and fills in what Beam needs to be told.

    Args:
      arguments: of `build_parser`.
      options: of Beam; package, disk, labels and name of the job are set here.
      paths: names of flags whose folders or files workers must reach.

    Returns:
      None if the job is not for Dataflow.

    Raises:
      UsageError: the first flag that is missing or wrong.
    """
    standard = options.view_as(StandardOptions)
    if not is_dataflow(standard.runner):
        for name, given in (
            ("gpu", arguments.gpu),
            ("no_wait_until_finish", standard.no_wait_until_finish),
        ):
            if given:
                raise UsageError(f"--{name} is for --runner=DataflowRunner")
        return None
    _check_places(arguments, options, paths)
    _check_package(options)
    check_gpu(arguments, options)
    _check_options(options)
    _check_buckets(arguments, options)
    google, workers = options.view_as(GoogleCloudOptions), options.view_as(WorkerOptions)
    workers.disk_size_gb = workers.disk_size_gb or DISK_GB
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
            release_if_owned(store, DATASET_LOCK, submission.owner)
            if str(error).rstrip().endswith(("Error:", "None")):
                raise JobError(
                    f"it ended as {result.state} without a word; see {address}"
                ) from error
        raise
    return result


def _check_places(
    arguments: argparse.Namespace, options: PipelineOptions, paths: Iterable[str]
) -> None:
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
        if place and not is_remote(absolute(place)):
            raise UsageError(f"--{name} must be gs://BUCKET/FOLDER: got {place}")
    for name in paths:
        folder = getattr(arguments, name, None)
        if folder and not is_remote(absolute(folder)):
            raise UsageError(
                f"--{name} {folder} is a folder of this machine, which workers of Dataflow "
                "cannot reach; copy it to gs://"
            )
    if hasattr(arguments, "input") and not arguments.input:
        raise UsageError("--input gs://BUCKET/FOLDER is required with --runner=DataflowRunner")
    for entry in flat_entries(getattr(arguments, "models", None) or ()):
        from pipeline.models.registry import source_of  # Imports torch.

        path = source_of(entry).path(entry)
        if path and not is_remote(absolute(path)):
            raise UsageError(
                f"--models {entry}: workers of Dataflow cannot reach {path}; copy it to gs://"
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


def _check_options(options: PipelineOptions) -> None:
    """What Beam and Dataflow would refuse later, when the output folder has been touched."""
    google, workers = options.view_as(GoogleCloudOptions), options.view_as(WorkerOptions)
    for name, place, pattern, example in (
        ("subnetwork", workers.subnetwork, _SUBNETWORK, "regions/REGION/subnetworks/NAME"),
        (
            "dataflow_kms_key",
            google.dataflow_kms_key,
            _KEY,
            "projects/PROJECT/locations/REGION/keyRings/RING/cryptoKeys/KEY",
        ),
    ):
        match = pattern.fullmatch(place) if place else None
        if place and match is None:
            raise UsageError(f"--{name}={place}: expected {example}")
        # A key may also lie in no region, such as `global`.
        if match and _REGION.fullmatch(match[1]) and match[1] != google.region:
            raise UsageError(f"--{name}={place} is of {match[1]}, the job of {google.region}")
    beam_own = PipelineOptionsValidator(options, create_runner("DataflowRunner"))
    # As a whole it would also ask for the bucket's policy, and wait for minutes where that fails.
    if beam_own.is_service_runner():
        errors = [
            *beam_own.validate_cloud_options(google),
            *beam_own.validate_num_workers(workers),
            *beam_own.validate_worker_region_zone(workers),
        ]
        if errors:
            raise UsageError(errors[0])


def _check_buckets(arguments: argparse.Namespace, options: PipelineOptions) -> None:
    """Whether there are buckets that are written to first when the job is at work, or where Beam
    would try again for many minutes. Those that are read, job_from_flags asks for."""
    google = options.view_as(GoogleCloudOptions)
    for name, place in (
        ("temp_location", google.temp_location),
        ("staging_location", google.staging_location),
        ("publish", arguments.publish),
    ):
        if not place:
            continue
        try:
            # An account that must not list may still write.
            with contextlib.suppress(PermissionError):
                next(files_of(place).walk(absolute(place)), None)
        except FileNotFoundError as error:
            raise UsageError(f"--{name} {place}: there is no such bucket") from error


def _job_name(arguments: argparse.Namespace) -> str:
    """A name that two jobs on the same output share: Dataflow refuses the second while the
    first runs. Evaluations may run side by side, so theirs holds all of their flags."""
    if hasattr(arguments, "output"):
        return f"in9-{fingerprint(absolute(arguments.output))[:12]}"
    flags = sorted((name, str(value)) for name, value in vars(arguments).items())
    return f"in9-{arguments.command}-{fingerprint(flags)[:12]}"
