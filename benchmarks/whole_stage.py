"""The figures of `gpu.py` beyond one stage: loads, ten models, processes, storage, precisions."""

from __future__ import annotations

import dataclasses
import importlib.util
import multiprocessing
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import timm
import torch
from bare_loops import Loaded, Setting
from measure import row, run_in9

from pipeline.dataset.folder import Dataset
from pipeline.evaluate import resident
from pipeline.evaluate.planned import Evaluation
from pipeline.evaluate.predict_shards import PredictShards
from pipeline.models.identity import Precision
from pipeline.models.library_names import EFFICIENTNETS, Packaged
from pipeline.models.registry import load_model
from pipeline.runtime.machine import missing_to_compile
from transforms.scoring import PAPER_RULE

MODELS = 10
SLACK = 30.0
_STARTED = 300.0
"""Seconds in which processes start and finish."""


def has_weights(arch: str) -> bool:
    """Returns whether an installed package ships weights of an architecture."""
    return arch in EFFICIENTNETS and Packaged().has_package(arch)


def with_weights(arch: str, folder: Path, seed: int | None = None) -> str:
    """Returns an entry of `--models`, with weights of an installed package or random ones.

    Args:
      arch: architecture of timm, or a name of `EFFICIENTNETS`.
      folder: folder for a file of random weights.
      seed: seed of random weights, which are then taken in any case.
    """
    if seed is None and has_weights(arch):
        return arch
    torch.manual_seed(seed or 0)
    architecture = EFFICIENTNETS.get(arch, arch)
    file = folder / f"{architecture}-{seed or 0}.pth"
    if not file.exists():
        torch.save(timm.create_model(architecture).state_dict(), file)
    return f"{architecture}={file}"


def measure_loads(setting: Setting) -> None:
    """Measures how long models take to load: each entry's first load in a process, and a second."""
    for entry in dict.fromkeys([setting.model, with_weights(setting.arch, setting.folder, 1)]):
        for time_of in ("first", "second"):
            wall, cpu = time.perf_counter(), time.process_time()
            load_model(entry)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            kind = "a file" if "=" in entry else "a package"
            row(f"load from {kind}, {setting.arch}, {time_of}", f"{wall:.2f} s", f"CPU {cpu:.2f} s")


def predict(evaluation: Evaluation, dataset: Dataset, entry: str) -> pa.Table:
    """Loads a model, and predicts all pictures of a dataset; writes nothing."""
    with (
        resident.in_memory(entry, evaluation, dataset.taxonomy) as model,
        resident.on_device(model, evaluation) as predictor,
    ):
        work = PredictShards(dataset, evaluation.describe(dataset, model))
        shards = dataset.shards(evaluation.split)
        outputs = work.run(predictor, shards, shards, lambda *_: None)
        return pa.concat_tables([output.table for output in outputs if output.is_complete])


def measure_ten_models(setting: Setting) -> None:
    """Measures ten models: the first and the tenth beside their forward passes, and all of them."""
    entries = tuple(with_weights(setting.arch, setting.folder, n) for n in range(MODELS))
    evaluation = dataclasses.replace(setting.evaluation, models=entries)
    forwards = []
    for number, entry in enumerate(entries):
        with Loaded(dataclasses.replace(setting, model=entry), evaluation) as loaded:
            pictures = sum(loaded.dataset.pictures("val", s) for s in loaded.dataset.shards("val"))
            # Libraries initialise in the first passes of a process.
            for _ in range(1 if number else 2):
                loaded.forward(pictures)
            started = time.perf_counter()
            loaded.evaluate()
            between = time.perf_counter()
            loaded.forward(pictures)
            forwards.append(time.perf_counter() - between)
        if number in (0, MODELS - 1):
            which, bound = ("tenth", ">= 0.95") if number else ("first", "")
            ratio = f"{forwards[-1] / (between - started):.2f} x"
            value = ratio if setting.turn_seconds else "too few to tell"
            row(f"{which} of ten models, {setting.name}", value, "bare loop", bound)
    resident.forget_pictures()
    dataset = Dataset.open(evaluation.store)
    started = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:  # A job loads a model while another runs.
        list(pool.map(lambda entry: predict(evaluation, dataset, entry), entries))
    wall = time.perf_counter() - started
    resident.forget_pictures()
    row(
        f"ten models with their loads, {setting.name}",
        f"{wall:.1f} s",
        f"forward passes: {sum(forwards):.1f} s",
        f"<= {1.25 * sum(forwards) + SLACK:.1f} s",
    )


def measure_two_processes(setting: Setting) -> None:
    """Measures two processes on one device beside one, each of which predicts all pictures."""
    spawn = multiprocessing.get_context("spawn")
    barrier, seconds = spawn.Barrier(3), []
    processes = [
        spawn.Process(target=_predict_twice, args=(setting, barrier, waits))
        for waits in (False, True)
    ]
    for process in processes:
        process.start()
    for _ in ("one", "both"):
        barrier.wait(_STARTED)
        started = time.perf_counter()
        barrier.wait(_STARTED)
        seconds.append(time.perf_counter() - started)
    for process in processes:
        process.join()
    value = f"{2 * seconds[0] / seconds[1]:.2f} x" if setting.turn_seconds else "too few to tell"
    row(f"two processes on one device, {setting.name}", value, "pictures per second of one")


def _predict_twice(setting: Setting, barrier: threading.Barrier, waits: bool) -> None:
    """Predicts all pictures, or `waits`, and predicts all again beside another process."""
    with Loaded(setting) as loaded:
        loaded.evaluate()  # In the first passes of a process, libraries initialise.
        for is_idle in (waits, False):
            resident.forget_pictures()
            barrier.wait(_STARTED)
            if not is_idle:
                loaded.evaluate()
            barrier.wait(_STARTED)


def measure_busy(setting: Setting) -> None:
    """Measures for which share of an evaluation a GPU computes or copies."""
    name = f"GPU busy, {setting.name}"
    if setting.predict.device != "cuda":
        row(name, "not measured", "this device is a CPU")
        return
    with Loaded(setting) as loaded:
        loaded.evaluate()
        resident.forget_pictures()
        torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            loaded.evaluate()
            torch.cuda.synchronize()
        wall = time.perf_counter() - started
    busy = until = 0.0
    for start, end in sorted(
        (event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.device_type.name == "CUDA"
    ):
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    row(name, f"{busy / 1e6 / wall:.2f}", f"of {wall:.2f} s; it is idle for the rest")


def measure_slow_storage(setting: Setting) -> None:
    """Measures the whole stage on storage that answers late, beside storage that does not."""
    if importlib.util.find_spec("apache_beam") is None:
        row(f"slow storage, {setting.name}", "not measured", "apache-beam is not installed")
        return
    from loader import measure_evaluation

    measure_evaluation(setting.evaluation, setting.name, setting.turns)


def measure_agreement(setting: Setting) -> None:
    """Measures how many answers are those of fp32, and BG-Gap, by precision and compilation."""
    dataset = Dataset.open(setting.evaluation.store)

    def answers(precision: Precision, compiled: bool) -> pa.Table:
        how = dataclasses.replace(setting.predict, precision=precision, compile=compiled)
        evaluation = dataclasses.replace(setting.evaluation, predict=how)
        table = predict(evaluation, dataset, setting.model)
        return table.filter(pc.equal(table["label_rule"], PAPER_RULE))

    missing = missing_to_compile(setting.predict.device == "cuda")
    exact = answers("fp32", False)
    row(f"fp32: answers, {setting.arch}", f"{len(exact)}", f"BG-Gap {gap(exact)} points")
    kinds: list[tuple[Precision, bool]] = [("fp32", True), ("tf32", False), ("bf16", False)]
    # With --quick, networks are compiled for fp32 alone, because that takes a minute for each.
    kinds += [("bf16", True)] if setting.turn_seconds else []
    has_tf32 = setting.predict.device == "cuda" and torch.cuda.get_device_capability() >= (8, 0)
    for precision, compiled in kinds:
        name = f"{precision + ' compiled' * compiled}: answers equal to fp32's, {setting.arch}"
        if precision == "tf32" and not has_tf32:
            row(name, "not measured", "this device computes fp32")
            continue
        if compiled and missing:
            row(name, "not compiled", f"missing: {missing}")
            continue
        table = answers(precision, compiled)
        equal = pc.sum(pc.equal(table["output"], exact["output"])).as_py()
        value = f"{equal} of {len(exact)} ({equal / len(exact):.2%})"
        row(name, value, f"BG-Gap {gap(table)} points")


def gap(table: pa.Table) -> str:
    """Returns the difference of the accuracies on mixed_same and mixed_rand, in points."""
    same, rand = (
        pc.mean(table.filter(pc.equal(table["variant"].cast(pa.string()), name))["correct"]).as_py()
        for name in ("mixed_same", "mixed_rand")
    )
    return f"{100 * (same - rand):.2f}"


def measure_gpus(setting: Setting) -> None:
    """Measures all GPUs of the machine beside one, without the start of the processes."""
    gpus = torch.cuda.device_count() if setting.predict.device == "cuda" else 0
    why = "" if importlib.util.find_spec("apache_beam") else "apache-beam is not installed"
    if why or gpus < 2:
        why = why or f"this machine has {gpus}"
        row(f"several GPUs, {setting.name}", "not measured", why)
        return
    flags = ("--dataset", setting.dataset, "--models", setting.model)
    seconds = []
    for count in (1, gpus):
        setting.evaluation.store.delete_tree("results")
        how = ("--precision", setting.predict.precision, "--gpus", count)
        # The second run finds nothing to do.
        walls = [
            run_in9("evaluate", *flags, *how, batch_size=setting.batch_size).wall for _ in range(2)
        ]
        seconds.append(walls[0] - walls[1])
    row(f"{gpus} GPUs, {setting.name}", f"{seconds[0] / seconds[1]:.2f} x", "one GPU")


FIGURES: dict[str, Callable[[Setting], None]] = {
    "loads": measure_loads,
    "ten_models": measure_ten_models,
    "two_processes": measure_two_processes,
    "busy": measure_busy,
    "slow_storage": measure_slow_storage,
    "agreement": measure_agreement,
    "gpus": measure_gpus,
}
"""What is measured by the name in `--stages`."""
