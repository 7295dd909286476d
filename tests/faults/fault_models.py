"""Faults of models and functions: outputs that are not numbers, errors without a message."""

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import timm
import torch
from fault_lab import Lab, Outcome, faults_of
from safetensors.torch import save_file

ARCH = "test_resnet"
LAST = "--direct_num_workers=1"


@dataclasses.dataclass(frozen=True)
class Broken:
    """A command with a model or a function that is broken, which must fail and write no result.

    In `command`, `{out}` is a dataset, `{input}` its input, and `{file}` a checkpoint of `ARCH`
    whose kernels are not numbers.
    """

    kind: str
    name: str
    command: tuple[str, ...]
    said: str

    def __call__(self, lab: Lab) -> list[Outcome]:
        """Runs the command; returns one outcome."""
        with lab.trial() as trial:
            output, file = trial / "out", trial / "model.safetensors"
            shutil.copytree(lab.state("finished"), output)
            _write_checkpoint(file)
            before = _results_in(output)
            values = {"out": str(output), "input": str(lab.input), "file": str(file)}
            ended = lab.run(trial, *(word.format(**values) for word in self.command))
            faults = faults_of(ended, self.said)
            if ended.code != 1:
                faults.append(f"exit code {ended.code}, where 1 was wanted")
            if "report: " in ended.stdout:
                faults.append("it shows a page of nothing")
            faults += [f"{name} is written" for name in _results_in(output) - before]
        return [Outcome(self.kind, self.name, tuple(faults), ended)]


def _results_in(output: Path) -> set[str]:
    found = (*output.glob("results/*/*.json"), *output.glob("models/**/*.safetensors"))
    return {path.name for path in found}


def _write_checkpoint(file: Path) -> None:
    torch.manual_seed(0)
    state = timm.create_model(ARCH, num_classes=9).state_dict()
    kernels = {name: value * float("nan") for name, value in state.items() if value.ndim == 4}
    save_file(state | kernels, file)


def broken(lab: Lab, states: Sequence[str]) -> Iterator[Broken]:
    """Yields models whose outputs or features are not numbers, and functions that fail mutely."""
    run = ("--dataset", "{out}", "--pictures", "none", LAST, "--models")
    kind, hooks = "non-finite outputs", "python:fault_hooks:"
    for value in ("nan", "masked"):
        attack = ("attack", "--grid", "3", *run, f"{hooks}{value}")
        yield Broken(kind, f"attack: {value}", attack, "not numbers")
    train = ("train", "--dataset", "{out}", "--variant", "original", "--holdout", "0.5", "--arch")
    yield Broken(kind, "probe: nan", (*train, f"{ARCH}={{file}}", "--probe"), "not numbers")
    kind, entry = "errors without a message", f"{hooks}untold"
    make = ("generate", "--input", "{input}", "--output", "{out}2", LAST)
    box = (*make, "--segmenter", "box", "--variants")
    for name, command in {
        "segmenter": (*make, "--segmenter", entry),
        "variant": (*box, f"original,{entry}"),
        "fill": (*box, "original,mixed_same", "--renderings", entry),
        "evaluate": ("evaluate", *run, entry),
        "saliency": ("saliency", *run, f"{entry}_forward"),
    }.items():
        yield Broken(kind, name, command, "Untold")


FAMILIES = (broken,)
