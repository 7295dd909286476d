"""GPUs of Dataflow's workers: parses `--gpu`, and checks that it fits the other flags."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import os
import re

from apache_beam.options.pipeline_options import (
    DebugOptions,
    GoogleCloudOptions,
    PipelineOptions,
    WorkerOptions,
)

from pipeline.errors import UsageError
from pipeline.models.expand import flat_entries

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
_SEVERAL = {
    "g2-standard-24": 2,
    "g2-standard-48": 4,
    "g2-standard-96": 8,
    "g4-standard-96": 2,
    "g4-standard-192": 4,
    "g4-standard-384": 8,
}
"""Number of GPUs of the machine types that have several GPUs without saying so in their names."""
_DRIVER = "install-nvidia-driver:5xx"
"""CUDA 12 needs driver 525 or newer; without a version, Dataflow may install an older one."""
_MPS = "use_nvidia_mps"
"""Several SDK processes of a machine may each hold a model; MPS lets them share the GPU."""
_OPTION = re.compile(
    r"count:(?P<count>[1-9][0-9]?)|install-nvidia-driver(:[a-z0-9.]+)?"
    rf"|{_MPS}|provisioning_model:[A-Za-z_-]+"
)


@dataclasses.dataclass(frozen=True)
class Gpu:
    """The GPU that `--gpu` asks for.

    Attributes:
      type: type of the GPU.
      machine: machine type; empty if `--machine_type` or Dataflow chooses it.
      count: number of GPUs of a machine.
      options: further parts of the resource hint, as Dataflow spells them.
    """

    type: str
    machine: str
    count: int
    options: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Gpu:
        """Parses the flag's value.

        >>> Gpu.parse("nvidia-l4:g2-standard-8").hint
        'type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver:5xx;use_nvidia_mps'

        Raises:
          UsageError: the value is malformed, or contradicts itself.
        """
        first, *words = text.split(",")
        match = _GPU.fullmatch(first)
        if match is None:
            raise UsageError(
                f"--gpu {text}: expected TYPE[:MACHINE][,OPTION...], such as "
                "nvidia-l4:g2-standard-8 or nvidia-tesla-t4,count:2"
            )
        if match[1] not in _MACHINES:
            raise UsageError(f"--gpu {text}: expected one of {', '.join(_MACHINES)}")
        options: dict[str, str] = {}
        count = 1
        for word in words:
            option = _OPTION.fullmatch(word)
            if option is None:
                raise UsageError(
                    f"--gpu {text}: {word!r} is no option; known: count:N, "
                    f"install-nvidia-driver:VERSION, {_MPS}, provisioning_model:NAME"
                )
            name = word.partition(":")[0]
            if name in options:
                raise UsageError(f"--gpu {text}: {name} is given twice")
            options[name] = word
            count = int(option["count"] or count)
        if count > 1 and _MPS in options:
            raise UsageError(f"--gpu {text}: NVIDIA MPS is only for machines with a single GPU")
        options.pop("count", None)
        options.setdefault("install-nvidia-driver", _DRIVER)
        if count == 1:
            options[_MPS] = _MPS
        return cls(match[1], match[2] or "", count, tuple(options.values()))

    @property
    def hint(self) -> str:
        """Value of the resource hint `accelerator`."""
        machine = [f"machine_type:{self.machine}"] if self.machine else []
        return ";".join([f"type:{self.type}", f"count:{self.count}", *machine, *self.options])

    def check_machine(self, chosen: str | None) -> None:
        """Raises UsageError if the machine cannot have this GPU.

        Args:
          chosen: value of `--machine_type`; None if it is not given.
        """
        prefixes = _MACHINES[self.type]
        example = f"{prefixes[0]}*"
        machine = self.machine or chosen
        if not machine:
            if "n1-" not in prefixes:
                raise UsageError(
                    f"--gpu {self.type}: only machines {example} have it; name one, as in "
                    f"--gpu {self.type}:MACHINE"
                )
            return
        if not machine.startswith(prefixes):
            raise UsageError(
                f"--gpu {self.type}: {machine} cannot have it, machines {example} can; name one, "
                f"as in --gpu {self.type}:MACHINE"
            )
        if "n1-" in prefixes:
            return
        named = re.search(r"-(\d+)g$", machine)
        count = int(named[1]) if named else _SEVERAL.get(machine, 1)
        if count != self.count:
            raise UsageError(
                f"--gpu {self.type}: {machine} has {count} of them; add ,count:{count}"
            )


def accelerator_hints(gpu: str | None) -> tuple[tuple[str, str], ...]:
    """Returns the resource hints of the steps that run models, as (name, value).

    Args:
      gpu: value of `--gpu`; None if it is not given.

    Raises:
      UsageError: the value is malformed.
    """
    return (("accelerator", Gpu.parse(gpu).hint),) if gpu else ()


def check_gpu(arguments: argparse.Namespace, options: PipelineOptions) -> None:
    """Checks `--gpu` against the other flags of a job for Dataflow.

    Args:
      arguments: the parsed arguments.
      options: Beam's options.

    Raises:
      UsageError: the flags do not fit together.
    """
    device = getattr(arguments, "device", None)
    if not arguments.gpu:
        if device == "cuda":
            raise UsageError("--gpu TYPE is required for a GPU on Dataflow, such as nvidia-l4")
        return
    if device is None:
        raise UsageError(
            f"--gpu is for running models, and in9 {arguments.command} runs none; leave it out"
        )
    if device == "cpu":
        raise UsageError("--gpu and --device cpu contradict each other; leave one out")
    gpu = Gpu.parse(arguments.gpu)
    workers = options.view_as(WorkerOptions)
    gpu.check_machine(workers.machine_type)
    _check_service(options)
    if workers.disk_size_gb and workers.disk_size_gb < DISK_GB:
        raise UsageError(
            f"--disk_size_gb={workers.disk_size_gb}: an image with CUDA's libraries needs a boot "
            f"disk of {DISK_GB} GB or more"
        )
    image = workers.sdk_container_image
    if not image:
        raise UsageError(
            "--sdk_container_image=IMAGE is required with --gpu: Beam's own image does not find "
            "the driver; build ours with TORCH=cuda"
        )
    if image == os.environ.get("IN9_IMAGE"):
        _check_own_image(arguments)


def _check_service(options: PipelineOptions) -> None:
    """Checks that other options of Dataflow do not conflict with `--gpu`."""
    google, debug = options.view_as(GoogleCloudOptions), options.view_as(DebugOptions)
    service = google.dataflow_service_options or []
    if any(option.startswith("worker_accelerator") for option in service):
        raise UsageError(
            "--dataflow_service_options=worker_accelerator puts a GPU into every worker; leave it "
            "out, since --gpu puts GPUs only where models run"
        )
    if debug.lookup_experiment("no_use_multiple_sdk_containers"):
        raise UsageError(
            "--experiments=no_use_multiple_sdk_containers would limit segmentation to one process "
            "a machine; leave it out, since processes share the GPU by NVIDIA MPS"
        )
    if "enable_prime" in service or debug.lookup_experiment("enable_prime"):
        raise UsageError(
            "--gpu shares the GPU by NVIDIA MPS, which Dataflow Prime does not support"
        )
    if google.flexrs_goal:
        raise UsageError(
            "--gpu uses resource hints for some steps, which --flexrs_goal does not support"
        )


def _check_own_image(arguments: argparse.Namespace) -> None:
    """Checks that this image, in which both this process and the workers run, can use a GPU."""
    if importlib.metadata.version("torch").endswith("+cpu"):
        raise UsageError("--gpu: this image has PyTorch's build for CPUs; build it with TORCH=cuda")
    entries = flat_entries(arguments.models or ())
    graphs = [entry for entry in entries if entry.startswith("onnx:")]
    if graphs and not _is_installed("onnxruntime-gpu"):
        raise UsageError(
            f"--gpu and --models {graphs[0]}: this image has onnxruntime for CPUs; leave one out"
        )


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
