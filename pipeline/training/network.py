"""Networks to train: timm architectures with one output per superclass, and the learner.

The learner is a network with its optimizer, and learns one batch at a time.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import timm
import torch
from torch.nn import functional

from pipeline.errors import JobError, UsageError
from pipeline.models.identity import Preprocessing
from pipeline.models.library_names import EFFICIENTNETS, timm_model
from pipeline.models.predict import NetworkInput, is_out_of_memory
from pipeline.models.registry import check_model, load_model
from pipeline.models.source import closest
from pipeline.training.train_plan import TrainPlan
from transforms.hashing import keyed_hash
from transforms.taxonomy import Taxonomy

MOMENTUM = 0.9
State = dict[str, Any]
"""State of a training: tensors, numbers, strings, and lists and dictionaries of such values."""
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network to train.

    Attributes:
      architecture: timm's name of the architecture, as in `--models ARCH=FILE`.
      module: the module, in float32 on the CPU.
      pretrained: name and SHA-256 of the weights that the training starts from, None for random
        weights.
    """

    architecture: str
    module: torch.nn.Module
    preprocessing: Preprocessing
    pretrained: str | None


class Learner:
    """A network, moved to the device and not copied, with its optimizer.

    `size` is the side of the network's input, in pixels.
    """

    def __init__(self, network: Network, plan: TrainPlan, size: int) -> None:
        self.device = device = torch.device(plan.device)
        self.size = size
        self._plan = plan
        self._input = NetworkInput(network.preprocessing, device)
        self._module: torch.nn.Module = network.module.to(
            device,
            memory_format=torch.channels_last,  # type: ignore[call-overload]
        )
        self._optimizer = torch.optim.SGD(
            self._module.parameters(),
            lr=plan.lr,
            momentum=MOMENTUM,
            weight_decay=plan.weight_decay,
        )
        self._scaler = torch.amp.GradScaler(device.type, enabled=plan.precision == "fp16")

    def weights(self) -> dict[str, torch.Tensor]:
        """Returns all parameters and buffers, by name."""
        return self._module.state_dict()

    def state(self) -> State:
        """Returns everything of the learner that a resumed training needs."""
        return {
            "module": self.weights(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def restore(self, state: State) -> None:
        """Restores a state that `state` returned."""
        self._module.load_state_dict(state["module"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])

    def begin_training(self, lr: float) -> None:
        """Prepares for the steps of an epoch, which all use the learning rate `lr`."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._module.train()

    def begin_validation(self) -> None:
        """Prepares for `test`."""
        self._module.eval()

    def zero_sums(self) -> torch.Tensor:
        """Returns zeros to add the results of `step` and `test` to."""
        return torch.zeros(4, dtype=torch.float64, device=self.device)

    def has_finite_weights(self) -> bool:
        """Returns whether all weights are finite. Waits for the device."""
        finite = [weight.isfinite().all() for weight in self._module.parameters()]
        return bool(torch.stack(finite).all())

    def step(self, pictures: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Takes one step of the optimizer, on (n, 3, S, S) uint8 RGB and (n,) int64 labels.

        Returns:
          (4,) float64, on the device: summed cross entropy, number of correct answers, number of
          pictures, number of pictures whose cross entropy is not finite.

        Raises:
          JobError: memory does not suffice, or the network does not take pictures of this size.
        """
        with self._explain_errors():
            self._optimizer.zero_grad(set_to_none=True)
            losses, sums = self._forward(pictures, labels)
            self._scaler.scale(losses.float().mean()).backward()  # type: ignore[no-untyped-call]
            self._scaler.step(self._optimizer)
            self._scaler.update()
            return sums

    @torch.inference_mode()
    def test(self, pictures: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Computes the same sums as `step`, but leaves the weights as they are."""
        with self._explain_errors():
            return self._forward(pictures, labels)[1]

    def _forward(
        self, pictures: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        labels = labels.to(self.device, non_blocking=True)
        mixed = self._plan.precision in _DTYPES
        with torch.autocast(self.device.type, _DTYPES.get(self._plan.precision), enabled=mixed):
            floats = pictures.to(self.device, non_blocking=True).float().div_(255)
            logits = self._module(self._input(floats, self.size))
            losses = functional.cross_entropy(logits, labels, reduction="none")
        total = losses.detach().double().sum()
        correct = (logits.detach().argmax(dim=1) == labels).double().sum()
        broken = (~losses.detach().isfinite()).double().sum()
        # `new_full` fills on the device; a copy of a number from the host would be waited for.
        return losses, torch.stack([total, correct, total.new_full((), len(labels)), broken])

    @contextlib.contextmanager
    def _explain_errors(self) -> Iterator[None]:
        """Turns an exception from the network into a JobError, whose message is one line."""
        try:
            yield
        except (RuntimeError, ValueError, MemoryError) as error:
            if is_out_of_memory(error):
                raise JobError(
                    f"there is not enough memory for batches of {self._plan.batch_size}: use a "
                    "smaller --batch_size"
                ) from error
            text = " ".join(str(error).split())[:300]
            raise JobError(
                f"{self._plan.arch} cannot be trained with these settings: {text}"
            ) from error


def check_architecture(arch: str, *, pretrained: bool, weights: str | None) -> None:
    """Checks `--arch` without loading weights.

    Raises UsageError if timm has no such architecture (the message suggests similar names), or with
    `pretrained` for the reasons of `check_model`.
    """
    name = EFFICIENTNETS.get(arch, arch)
    if not timm.is_model(name.partition(".")[0]):
        raise UsageError(
            f"--arch {arch}: timm has no such architecture"
            f"{closest(name.partition('.')[0], [*EFFICIENTNETS, *timm.list_models()])}"
        )
    if pretrained:
        check_model(arch, weights)


def build_network(
    arch: str,
    taxonomy: Taxonomy,
    *,
    seed: int,
    pretrained: bool = False,
    weights: str | None = None,
) -> Network:
    """Builds a network. Its random weights depend only on the architecture and the seed.

    Args:
      arch: timm's name, or one of `EFFICIENTNETS`, which `check_architecture` has accepted.
      taxonomy: its superclasses get one output each.
      pretrained: whether to start from weights for ImageNet, except the head's.

    Raises:
      JobError: the weights cannot be fetched or read, or the network's head cannot be replaced.
    """
    outputs = taxonomy.num_labels
    loaded = load_model(arch, weights) if pretrained else None
    # Initialisation uses torch's global generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_hash(seed, "initialisation", "") >> 1)
        if loaded is None:
            try:
                module = timm.create_model(EFFICIENTNETS.get(arch, arch), num_classes=outputs)
            except (RuntimeError, ValueError, AssertionError) as error:
                raise UsageError(f"--arch {arch} cannot be built: {error}") from error
        else:
            module = loaded.module
            reset = getattr(module, "reset_classifier", None)
            if reset is None:
                raise JobError(f"{arch} has no head that can be replaced")
            reset(outputs)
    described = timm_model(arch, module, "", taxonomy)
    # `timm_model` turns gradients off, for evaluation.
    module.requires_grad_(True)
    return Network(
        # A network with random weights must not carry the tag of pretrained weights.
        architecture=described.architecture if loaded else EFFICIENTNETS.get(arch, arch),
        module=module,
        preprocessing=described.preprocessing,
        pretrained=f"{loaded.name} {loaded.weights_sha256}" if loaded else None,
    )
