"""Faults of models: outputs that are not numbers, and errors without a message."""

import dataclasses
import functools
import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from fault_lab import Lab, Outcome, faults_of
from runs import keys
from safetensors.numpy import load, save

ARCH = "test_resnet"
LAST = "--direct_num_workers=1"
TRAIN = ("train", "--dataset", "{out}", "--variant", "original", "--holdout", "0.5", "--arch")
LOOP = ("--epochs", "1", "--batch_size", "8", "--workers", "0")


@dataclasses.dataclass(frozen=True)
class Broken:
    """A command with a model that is broken.

    Attributes:
      kind, name: kind and name of the outcome.
      command: arguments, with `{out}` for a dataset, `{input}` for its input, and `{file}` for a
        checkpoint of `ARCH`.
      said: words that the output must contain, in the closing line if there is one.
      damage: damages the bytes of the checkpoint; None if the command needs none.
      code: expected exit code.
      absent: results that must not exist, as a pattern.
    """

    kind: str
    name: str
    command: tuple[str, ...]
    said: str
    damage: Callable[[bytes], bytes] | None = None
    code: int = 1
    absent: str = "results/*/*.json"

    def __call__(self, lab: Lab) -> list[Outcome]:
        """Runs the command; returns one outcome."""
        with lab.trial() as trial:
            output, file = trial / "out", trial / "model.safetensors"
            shutil.copytree(_dataset(lab), output)
            if self.damage:
                file.write_bytes(self.damage(_checkpoint(lab).read_bytes()))
            values = {"out": str(output), "input": str(lab.input), "file": str(file)}
            ended = lab.run(trial, *(word.format(**values) for word in self.command))
            faults = faults_of(ended, self.said)
            if ended.code != self.code:
                faults.append(f"exit code {ended.code}, where {self.code} was wanted")
            if self.said not in ended.stdout + ended.stderr:
                faults.append(f"nothing says {self.said}")
            if ended.code == 1 and "report: " in ended.stdout:
                faults.append("it shows a page of nothing")
            faults += [f"{path.name} is written" for path in output.glob(self.absent)]
        return [Outcome(self.kind, self.name, tuple(faults), ended)]


@functools.cache
def _dataset(lab: Lab) -> Path:
    """Returns a dataset that has the variants of all stages, made when it is first needed."""
    folder = lab.folder / "of all stages"
    (lab.folder / "tmp").mkdir(exist_ok=True)
    flags = ("--segmenter", "box", "--image_size", "64", *keys(resize=64), LAST)
    ended = lab.run(
        lab.folder, "generate", "--input", str(lab.input), "--output", str(folder), *flags
    )
    if ended.code != 0:
        raise RuntimeError(f"the dataset could not be made: {ended}")
    return folder


@functools.cache
def _checkpoint(lab: Lab) -> Path:
    """Returns a checkpoint that `in9 train` wrote, made when it is first needed."""
    folder = lab.folder / "trained"
    flags = (*TRAIN, ARCH, *LOOP, "--output", str(folder))
    ended = lab.run(lab.folder, *(word.format(out=_dataset(lab)) for word in flags))
    if ended.code != 0:
        raise RuntimeError(f"the checkpoint could not be made: {ended}")
    return folder / "model.safetensors"


def _with_nan(checkpoint: bytes) -> bytes:
    state = load(checkpoint)
    kernels = {name: value * np.float32("nan") for name, value in state.items() if value.ndim == 4}
    return save(state | kernels)


def non_finite(lab: Lab, states: Sequence[str]) -> Iterator[Broken]:
    """Yields models whose outputs, gradients, features, loss or weights are not numbers."""
    run = ("--dataset", "{out}", "--pictures", "none", LAST, "--models")
    stages = {
        "evaluate": ("evaluate", *run),
        "attack": ("attack", "--grid", "3", *run),
        "saliency": ("saliency", *run),
    }
    values = ("nan", "infinity", "masked")
    kind, model = "non-finite outputs", "python:fault_hooks:"
    for stage, words in stages.items():
        for value in (*values, *(("steep",) if stage == "saliency" else ())):
            yield Broken(kind, f"{stage}: {value}", (*words, f"{model}{value}"), "not numbers")
    imagenet = ("evaluate", "--imagenet", "{input}", *run, f"{model}nan_when_large")
    absent = "results/*/imagenet.json"
    yield Broken(kind, "imagenet: nan", imagenet, "not numbers", code=0, absent=absent)
    absent = "models/**/*.safetensors"
    probe = (*TRAIN, f"{ARCH}={{file}}", "--probe")
    yield Broken(kind, "probe: nan", probe, "not numbers", _with_nan, absent=absent)
    train = (*TRAIN, ARCH, *LOOP, "--lr", "1e30", "--output", "{out}/models")
    for name, flags in (("loss", ("--batch_size", "2")), ("weights", ("--weight_decay", "1e38"))):
        yield Broken(kind, f"training: {name}", (*train, *flags), f"the {name} ", absent=absent)


def failing_functions(lab: Lab, states: Sequence[str]) -> Iterator[Broken]:
    """Yields functions that end the process, or whose error has no message.

    They are tried alone and beside a good model.
    """
    for kind, function, said in (
        ("errors without a message", "untold", "Untold"),
        ("functions that exit", "exits", "SystemExit(3)"),
    ):
        entry = f"python:fault_hooks:{function}"
        make = ("generate", "--input", "{input}", "--output", "{out}2", LAST)
        yield Broken(kind, "segmenter", (*make, "--segmenter", entry), said)
        box = (*make, "--segmenter", "box", "--variants")
        yield Broken(kind, "variant", (*box, f"original,{entry}"), said)
        yield Broken(kind, "fill", (*box, "original,mixed_same", "--renderings", entry), said)
        models = ("--dataset", "{out}", "--pictures", "none", LAST, "--models")
        names = (function, f"{function}_forward")
        for command, name in itertools.product(("evaluate", "saliency"), names):
            entry = f"python:fault_hooks:{name}"
            yield Broken(kind, f"{command}: {name}", (command, *models, entry), said)
            yield Broken(
                kind,
                f"{command}: {name} beside another model",
                (command, *models, f"{entry},python:fault_hooks:tiny"),
                said,
                code=0,
                absent=f"results/*{name}*/*",
            )
    own = "python:fault_hooks:complex_numbers"
    yield Broken("non-finite outputs", "evaluate: complex", ("evaluate", *models, own), "Complex")


FAMILIES = (non_finite, failing_functions)
