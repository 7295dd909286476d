"""Turns flags into a Dataflow job, with or without GPUs, checks it first, and submits it."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import apache_beam as beam
import msgspec
from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
    WorkerOptions,
)
from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator
from apache_beam.runners.runner import PipelineResult, create_runner

from pipeline.errors import JobError, UsageError
from pipeline.models.expand import split_labels
from pipeline.runtime.flag_types import as_given
from pipeline.runtime.lock import DATASET_LOCK, release_if_owned
from pipeline.storage.files import absolute, files_of, is_remote
from pipeline.storage.store import Store
from transforms.hashing import fingerprint

DISK_GB = 50
"""Size of the boot disk in GB for an image with CUDA's libraries, as Dataflow's documentation
recommends. Unpacking such an image fills the default disk of 25 GB."""
_GPU = re.compile(r"([a-z0-9-]+)(?::([a-z0-9-]+))?")
_MACHINES = {
    "nvidia-l4": ("g2-",),
    "nvidia-tesla-t4": ("n1-", "custom-"),
    "nvidia-tesla-a100": ("a2-highgpu-", "a2-megagpu-"),
    "nvidia-a100-80gb": ("a2-ultragpu-",),
    "nvidia-h100-80gb": ("a3-highgpu-",),
    "nvidia-h100-mega-80gb": ("a3-megagpu-",),
    "nvidia-rtx-pro-6000": ("g4-",),
    "nvidia-tesla-p4": ("n1-", "custom-"),
    "nvidia-tesla-p100": ("n1-", "custom-"),
    "nvidia-tesla-v100": ("n1-", "custom-"),
}
"""Prefixes of the machine types that can have a GPU, by the GPU's type. If no machine is named,
Dataflow chooses a type that also exists without a GPU, and among these only N1 does."""
_DRIVER = "install-nvidia-driver:5xx"
"""CUDA 12 needs driver 525 or newer; without a version, Dataflow may install an older one."""
_MPS = "use_nvidia_mps"
"""Several SDK processes of a machine may each hold a model; MPS lets them share the GPU."""
_OPTION = re.compile(
    r"count:[1-9][0-9]?|install-nvidia-driver(:[a-z0-9.]+)?"
    rf"|{_MPS}|provisioning_model:[A-Za-z_-]+"
)


@dataclasses.dataclass(frozen=True)
class Gpu:
    """The GPU that the key `gpu` asks for.

    Attributes:
      machine: machine type; empty if `--machine_type` or Dataflow chooses it.
      options: further parts of the resource hint, as Dataflow spells them.
    """

    type: str
    machine: str
    count: int
    options: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Gpu:
        """Parses the key's value; raises UsageError if it is malformed, or contradicts itself.

        >>> Gpu.parse("nvidia-l4:g2-standard-8").hint
        'type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver:5xx;use_nvidia_mps'
        """
        first, *words = text.split(",")
        match = _GPU.fullmatch(first)
        if match is None:
            raise UsageError(
                f"gpu {text}: expected TYPE[:MACHINE][,OPTION...], such as "
                "nvidia-l4:g2-standard-8 or nvidia-tesla-t4,count:2"
            )
        if match[1] not in _MACHINES:
            raise UsageError(f"gpu {text}: expected one of {', '.join(_MACHINES)}")
        options: dict[str, str] = {}
        for word in words:
            name = word.partition(":")[0]
            if _OPTION.fullmatch(word) is None:
                raise UsageError(
                    f"gpu {text}: {word!r} is no option; known: count:N, "
                    f"install-nvidia-driver:VERSION, {_MPS}, provisioning_model:NAME"
                )
            if name in options:
                raise UsageError(f"gpu {text}: {name} is given twice")
            options[name] = word
        count = int(options.pop("count", "count:1").removeprefix("count:"))
        if count > 1 and _MPS in options:
            raise UsageError(f"gpu {text}: NVIDIA MPS is only for machines with a single GPU")
        options.setdefault("install-nvidia-driver", _DRIVER)
        if count == 1:
            options[_MPS] = _MPS
        return cls(match[1], match[2] or "", count, tuple(options.values()))

    @property
    def hint(self) -> str:
        """Value of the resource hint `accelerator`."""
        machine = [f"machine_type:{self.machine}"] if self.machine else []
        return ";".join([f"type:{self.type}", f"count:{self.count}", *machine, *self.options])

    @property
    def hints(self) -> tuple[tuple[str, str], ...]:
        """Resource hints of a step that runs models: the GPU, and a block at a time on each."""
        return ("accelerator", self.hint), ("max_active_bundles_per_worker", str(self.count))

    def check_machine(self, chosen: str | None) -> None:
        """Raises UsageError if no machine with the GPU is named, also not by `--machine_type`."""
        prefixes = _MACHINES[self.type]
        if not (self.machine or chosen) and "n1-" not in prefixes:
            raise UsageError(
                f"gpu {self.type}: only machines {prefixes[0]}* have it; name one, as in "
                f"{self.type}:MACHINE"
            )


class WorkerFlags(msgspec.Struct, frozen=True, kw_only=True):
    """Flags that choose the workers of a job, and those that its workers must be able to obey.

    A command that runs no models has neither `device` nor `gpu`; one that makes no dataset has no
    `output`.
    """

    command: str
    dask: str | None
    gpus: int | None
    publish: str | None
    gpu: str | None = None
    compile: bool = False
    device: str | None = None
    input: str | None = None
    models: tuple[str, ...] | None = None
    output: str | None = None


def check_gpu(flags: WorkerFlags, options: PipelineOptions) -> None:
    """Checks the key `gpu` against the other flags of a job for Dataflow."""
    if not flags.gpu:
        if flags.device == "cuda":
            raise UsageError(
                "--device cuda needs the key gpu on Dataflow: write, for example, gpu = "
                '"nvidia-l4:g2-standard-8" in the file that --config names'
            )
        return
    if flags.device == "cpu":
        raise UsageError("gpu and --device cpu contradict each other; leave one out")
    gpu = Gpu.parse(flags.gpu)
    workers = options.view_as(WorkerOptions)
    gpu.check_machine(workers.machine_type)
    if workers.disk_size_gb and workers.disk_size_gb < DISK_GB:
        raise UsageError(
            f"--disk_size_gb={workers.disk_size_gb}: an image with CUDA's libraries needs a boot "
            f"disk of {DISK_GB} GB or more"
        )
    if not workers.sdk_container_image:
        raise UsageError(
            "--sdk_container_image=IMAGE is required with gpu: Beam's own image does not find "
            "the driver; build ours with TORCH=cuda"
        )


@dataclasses.dataclass(frozen=True)
class Submission:
    """A Dataflow job, which this process only launches.

    Attributes:
      job: project, region and name of the job, by which locks identify it.
      is_template: whether the launcher of a Flex template will submit the job that is built here.
    """

    job: dict[str, str]
    waits: bool
    is_template: bool

    @property
    def owner(self) -> dict[str, dict[str, str]]:
        """The job as the owner of a lock."""
        return {"dataflow": self.job}


def is_dataflow(runner: str | None) -> bool:
    """Returns whether `--runner` names Dataflow."""
    return (runner or "").rpartition(".")[2].lower() in ("dataflowrunner", "dataflow")


def _job_of(options: PipelineOptions) -> dict[str, str]:
    """Returns the identity of the job that these options submit, as a lock records it."""
    google = options.view_as(GoogleCloudOptions)
    job = {name: str(getattr(google, name)) for name in ("project", "region", "job_name")}
    endpoint = google.dataflow_endpoint
    if endpoint and endpoint != GoogleCloudOptions.DATAFLOW_ENDPOINT:
        job["endpoint"] = str(endpoint)
    return job


def submission_from_flags(
    flags: WorkerFlags,
    options: PipelineOptions,
    typed: Mapping[str, object],
    paths: Iterable[str],
) -> Submission | None:
    """Checks the flags of a Dataflow job, and completes Beam's options; None for other runners.

    Args:
      options: Beam's options, whose package, disk, labels and job name are set here, and which are
        told not to pickle the main session.
      typed: all values by name of their flag, as they were typed.
      paths: names of the flags that name folders or files, which workers must be able to reach.
    """
    standard = options.view_as(StandardOptions)
    if not is_dataflow(standard.runner):
        for name, value in (
            ("gpu", flags.gpu),
            ("no_wait_until_finish", standard.no_wait_until_finish),
        ):
            if value:
                raise UsageError(f"{as_given(name)} is for --runner=DataflowRunner")
        return None
    _check_paths(flags, options, {name: typed.get(name) for name in paths})
    _check_package(options)
    check_gpu(flags, options)
    _check_options(options)
    _check_buckets(flags.publish, options)
    google, workers = options.view_as(GoogleCloudOptions), options.view_as(WorkerOptions)
    workers.disk_size_gb = workers.disk_size_gb or DISK_GB
    google.labels = [*(google.labels or []), "app=in9", f"command={flags.command}"]
    google.job_name = google.job_name or _job_name(flags, typed)
    # Workers import our package, so Beam need not pickle the main session of this process.
    options.view_as(SetupOptions).save_main_session = False
    is_template = bool(google.template_location)
    # This process cannot wait, because a template's launcher submits the job once it has ended.
    waits = not standard.no_wait_until_finish and not is_template
    return Submission(job=_job_of(options), waits=waits, is_template=is_template)


def submit(pipeline: beam.Pipeline, submission: Submission, store: Store) -> PipelineResult:
    """Submits a pipeline, prints its address in the console, and waits if `submission` says so.

    A failed job still holds its lock of the dataset in the store, which is then released.
    """
    result = pipeline.run()
    if submission.is_template:
        return result
    address = (
        "https://console.cloud.google.com/dataflow/jobs/"
        f"{submission.job['region']}/{result.job_id()}?project={submission.job['project']}"
    )
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


def _check_paths(flags: WorkerFlags, options: PipelineOptions, paths: Mapping[str, object]) -> None:
    """Checks that the options Dataflow needs are given, and workers can reach all flags' paths."""
    google = options.view_as(GoogleCloudOptions)
    for name, example in (
        ("project", "PROJECT"),
        ("region", "REGION"),
        ("temp_location", "gs://BUCKET/FOLDER"),
    ):
        if not getattr(google, name):
            raise UsageError(f"--{name}={example} is required with --runner=DataflowRunner")
    for name in ("temp_location", "staging_location"):
        if (location := getattr(google, name)) and not is_remote(absolute(location)):
            raise UsageError(f"--{name} must be gs://BUCKET/FOLDER: got {location}")
    for name, path in paths.items():
        if isinstance(path, str) and not is_remote(absolute(path)):
            raise UsageError(
                f"--{name} {path} lies on this machine, where workers of Dataflow cannot reach "
                "it; copy it to gs://"
            )
    if flags.output and not flags.input:
        raise UsageError("--input gs://BUCKET/FOLDER is required with --runner=DataflowRunner")
    for entry in split_labels(flags.models or ())[0]:
        from pipeline.models.registry import source_of  # Imports torch.

        source, inner = source_of(entry)
        if (file := source.path(inner)) and not is_remote(absolute(file)):
            raise UsageError(
                f"--models {entry}: workers of Dataflow cannot reach {file}; copy it to gs://"
            )


def _check_package(options: PipelineOptions) -> None:
    """Makes workers install this package, unless the flags name an image or a setup file.

    Raises UsageError if its setup.py is missing, as in an installed package.
    """
    setup, image = options.view_as(SetupOptions), options.view_as(WorkerOptions).sdk_container_image
    if not image and not setup.setup_file:
        setup_file = Path(__file__).resolve().parents[2] / "setup.py"
        if not setup_file.is_file():
            raise UsageError(
                "--sdk_container_image=IMAGE is required with --runner=DataflowRunner: workers "
                "need this package, and its setup.py is not here"
            )
        setup.setup_file = str(setup_file)


def _check_options(options: PipelineOptions) -> None:
    """Checks options that Beam and Dataflow would refuse only after the job has written output."""
    google, workers = options.view_as(GoogleCloudOptions), options.view_as(WorkerOptions)
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


def _check_buckets(publish: str | None, options: PipelineOptions) -> None:
    """Checks that some buckets exist; `job_from_flags` checks those that are read.

    These are the buckets that are written to only while the job runs, and those that Beam would
    otherwise retry for many minutes.
    """
    google = options.view_as(GoogleCloudOptions)
    for name, location in (
        ("temp_location", google.temp_location),
        ("staging_location", google.staging_location),
        ("publish", publish),
    ):
        if not location:
            continue
        try:
            # An account that may not list a bucket may still write to it.
            with contextlib.suppress(PermissionError):
                next(files_of(location).walk(absolute(location)), None)
        except FileNotFoundError as error:
            raise UsageError(f"--{name} {location}: there is no such bucket") from error


def _job_name(flags: WorkerFlags, typed: Mapping[str, object]) -> str:
    """Makes the same name for jobs with the same output, so that Dataflow refuses a second one.

    Evaluations may run side by side, so all of their flags are part of the name.
    """
    if flags.output:
        return f"in9-{fingerprint(flags.output)[:12]}"
    texts = sorted((name, str(value)) for name, value in typed.items())
    return f"in9-{flags.command}-{fingerprint(texts)[:12]}"
