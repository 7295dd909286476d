"""Turns flags into a Dataflow job, checked before anything is sent, and submits it."""

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
    """A Dataflow job, which this process only launches.

    Attributes:
      job: project, region and name of the job, by which locks identify it.
      waits: whether the launcher waits for the end of the job.
      is_template: whether the launcher of a Flex template will submit the job that is built here.
    """

    job: dict[str, str]
    waits: bool
    is_template: bool

    @property
    def owner(self) -> dict[str, dict[str, str]]:
        """The job as the owner of a lock."""
        return {"dataflow": self.job}


def submission_from_flags(
    arguments: argparse.Namespace, options: PipelineOptions, paths: Iterable[str]
) -> Submission | None:
    """Checks the flags of a Dataflow job, and completes Beam's options.

    Args:
      arguments: the parsed arguments.
      options: Beam's options, whose package, disk, labels and job name are set here, and which
        are told not to pickle the main session.
      paths: names of the flags that name folders or files, which workers must be able to reach.

    Returns:
      The job to launch; None if it is not for Dataflow.

    Raises:
      UsageError: a flag is missing or wrong.
    """
    standard = options.view_as(StandardOptions)
    if not is_dataflow(standard.runner):
        for name, value in (
            ("gpu", arguments.gpu),
            ("no_wait_until_finish", standard.no_wait_until_finish),
        ):
            if value:
                raise UsageError(f"--{name} is for --runner=DataflowRunner")
        return None
    _check_paths(arguments, options, paths)
    _check_package(options)
    check_gpu(arguments, options)
    _check_options(options)
    _check_buckets(arguments, options)
    google, workers = options.view_as(GoogleCloudOptions), options.view_as(WorkerOptions)
    workers.disk_size_gb = workers.disk_size_gb or DISK_GB
    google.labels = [*(google.labels or []), "app=in9", f"command={arguments.command}"]
    google.job_name = google.job_name or _job_name(arguments)
    # Workers import our package, so Beam need not pickle the main session of this process.
    options.view_as(SetupOptions).save_main_session = False
    is_template = bool(google.template_location)
    # A template's launcher submits the job only after this process has ended, so this process
    # cannot wait for it.
    waits = not standard.no_wait_until_finish and not is_template
    return Submission(job=job_of(options), waits=waits, is_template=is_template)


def flags_of_workers(
    arguments: argparse.Namespace, submission: Submission | None
) -> argparse.Namespace:
    """Returns the flags with `device` set to the workers' device, because this machine's may be
    another."""
    if submission is None or not hasattr(arguments, "device"):
        return arguments
    device = "cuda" if arguments.gpu else "cpu"
    return argparse.Namespace(**{**vars(arguments), "device": device})


def submit(pipeline: beam.Pipeline, submission: Submission, store: Store) -> PipelineResult:
    """Submits a pipeline, prints the job's address in the console, and waits for its end unless
    `submission` says not to.

    Args:
      pipeline: the graph.
      submission: how to submit it.
      store: the dataset folder; a failed job still holds its lock, which is then released.

    Raises:
      Exception: the job failed, or the service refused it.
    """
    result = pipeline.run()
    if submission.is_template:
        return result
    address = console_address(submission.job, result.job_id())
    print(f"job {submission.job['job_name']} ({result.job_id()}): {address}")
    if not submission.waits:
        return result
    try:
        result.wait_until_finish()
    except KeyboardInterrupt:
        print(f"the job continues on Dataflow: {address}", file=sys.stderr)
        raise
    except Exception as error:
        if result.is_in_terminal_state():
            release_if_owned(store, DATASET_LOCK, submission.owner)
            if str(error).rstrip().endswith(("Error:", "None")):
                raise JobError(
                    f"it ended as {result.state} without a message; see {address}"
                ) from error
        raise
    return result


def _check_paths(
    arguments: argparse.Namespace, options: PipelineOptions, paths: Iterable[str]
) -> None:
    """Checks that the options without which Dataflow runs no job are given, and that workers can
    reach every path that a flag names."""
    google = options.view_as(GoogleCloudOptions)
    for name, example in (
        ("project", "PROJECT"),
        ("region", "REGION"),
        ("temp_location", "gs://BUCKET/FOLDER"),
    ):
        if not getattr(google, name):
            raise UsageError(f"--{name}={example} is required with --runner=DataflowRunner")
    for name in ("temp_location", "staging_location"):
        location = getattr(google, name)
        if location and not is_remote(absolute(location)):
            raise UsageError(f"--{name} must be gs://BUCKET/FOLDER: got {location}")
    for name in paths:
        path = getattr(arguments, name, None)
        if path and not is_remote(absolute(path)):
            raise UsageError(
                f"--{name} {path} lies on this machine, where workers of Dataflow cannot reach "
                "it; copy it to gs://"
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
    """Makes workers install this package, unless the flags name an image or a setup file. Raises
    UsageError if its setup.py is missing, as in an installed package."""
    setup = options.view_as(SetupOptions)
    if options.view_as(WorkerOptions).sdk_container_image or setup.setup_file:
        return
    setup_file = Path(__file__).resolve().parents[2] / "setup.py"
    if not setup_file.is_file():
        raise UsageError(
            "--sdk_container_image=IMAGE is required with --runner=DataflowRunner: workers "
            "need this package, and its setup.py is not here"
        )
    setup.setup_file = str(setup_file)


def _check_options(options: PipelineOptions) -> None:
    """Checks the options that Beam and Dataflow would refuse only after the job has written to the
    output folder."""
    google, workers = options.view_as(GoogleCloudOptions), options.view_as(WorkerOptions)
    for name, value, pattern, example in (
        ("subnetwork", workers.subnetwork, _SUBNETWORK, "regions/REGION/subnetworks/NAME"),
        (
            "dataflow_kms_key",
            google.dataflow_kms_key,
            _KEY,
            "projects/PROJECT/locations/REGION/keyRings/RING/cryptoKeys/KEY",
        ),
    ):
        match = pattern.fullmatch(value) if value else None
        if value and match is None:
            raise UsageError(f"--{name}={value}: expected {example}")
        # A key may also lie outside of all regions, such as in `global`.
        if match and _REGION.fullmatch(match[1]) and match[1] != google.region:
            raise UsageError(
                f"--{name}={value} is in {match[1]}, but the job runs in {google.region}"
            )
    validator = PipelineOptionsValidator(options, create_runner("DataflowRunner"))
    # Only some of the validator's checks are used: others query the bucket's policy, and wait for
    # minutes if that fails.
    if validator.is_service_runner():
        errors = [
            *validator.validate_cloud_options(google),
            *validator.validate_num_workers(workers),
            *validator.validate_worker_region_zone(workers),
        ]
        if errors:
            raise UsageError(errors[0])


def _check_buckets(arguments: argparse.Namespace, options: PipelineOptions) -> None:
    """Checks that some buckets exist: those that are written to only while the job runs, and those
    that Beam would otherwise retry for many minutes. `job_from_flags` checks the buckets that are
    read."""
    google = options.view_as(GoogleCloudOptions)
    for name, location in (
        ("temp_location", google.temp_location),
        ("staging_location", google.staging_location),
        ("publish", arguments.publish),
    ):
        if not location:
            continue
        try:
            # An account that may not list a bucket may still write to it.
            with contextlib.suppress(PermissionError):
                next(files_of(location).walk(absolute(location)), None)
        except FileNotFoundError as error:
            raise UsageError(f"--{name} {location}: there is no such bucket") from error


def _job_name(arguments: argparse.Namespace) -> str:
    """Makes a job name that is the same for jobs with the same output, so that Dataflow refuses the
    second one while the first runs. Evaluations may run side by side, so all of their flags are
    part of the name."""
    if hasattr(arguments, "output"):
        return f"in9-{fingerprint(absolute(arguments.output))[:12]}"
    flags = sorted((name, str(value)) for name, value in vars(arguments).items())
    return f"in9-{arguments.command}-{fingerprint(flags)[:12]}"
