"""The training loop, which resumes a stopped training after its last complete epoch.

Each epoch has a progress bar, a line of output and a row of a table.

OUTPUT/model.safetensors   weights after the last epoch, for --models ARCH=FILE
OUTPUT/state.pth           weights, optimizer, log, plan and more: all that resuming needs
OUTPUT/log.csv             measurements of the epochs, a row for each
"""

import contextlib
import dataclasses
import io
import time
from collections.abc import Iterator

import torch

from pipeline.dataset.folder import Dataset
from pipeline.errors import JobError, ModelError, UsageError, counted
from pipeline.models.checkpoint import (
    TrainedOn,
    digest_of_classes,
    refuse_compressed,
    save_checkpoint,
)
from pipeline.runtime.machine import usable_cores
from pipeline.runtime.progress import duration, live_bar
from pipeline.storage.state_files import csv_bytes
from pipeline.storage.store import WORK_FOLDER, Store
from pipeline.training.batches import (
    Batch,
    Schedule,
    learning_rate,
    training_batches,
)
from pipeline.training.network import Learner, Network, State, build_network
from pipeline.training.train_plan import Samples, TrainPlan, find_samples
from transforms.hashing import keyed_hash

LOG = "log.csv"
MODEL = "model.safetensors"
STATE = "state.pth"
_FORMAT = {"format": "imagenet9 training", "version": 1}
_SETTINGS = ("batch_size", "lr", "weight_decay", "precision")
"""Fields of the plan that the checkpoint stores as settings of the method."""


@dataclasses.dataclass(frozen=True)
class EpochLog:
    """Measurements of one epoch. Losses are mean cross entropies, in nats.

    Attributes:
      epoch: number of the epoch, counted from 1.
      lr: learning rate.
      loss, accuracy: loss and accuracy on the augmented training pictures, during the epoch.
      val_loss, val_accuracy: loss and accuracy on the validation pictures, after the epoch; None
        without validation.
      data_wait: share of the training time (0 to 1) that was spent waiting for pictures.
      seconds: duration of the epoch in seconds, including validation.
    """

    epoch: int
    lr: float
    loss: float
    accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    images_per_second: float
    data_wait: float
    seconds: float

    def line(self, epochs: int, seconds_left: float, *, is_first: bool) -> str:
        """Formats the epoch as a line of output.

        Args:
          seconds_left: estimated time until the training ends; 0 after its last epoch.
          is_first: whether this is the first epoch that this process trains. Its line does not
            report the time spent waiting for pictures, because the processes that load them had
            only just started.
        """
        text = (
            f"epoch {self.epoch} of {epochs}: loss {self.loss:.3f}, "
            f"accuracy {100 * self.accuracy:.1f} %"
        )
        if self.val_accuracy is not None:
            text += f"; validation {self.val_loss:.3f}, {100 * self.val_accuracy:.1f} %"
        text += f"; {self.images_per_second:.1f} images/s"
        if self.data_wait >= 0.1 and not is_first:
            text += f" ({100 * self.data_wait:.0f} % of the time waiting for pictures: --workers)"
        return text + (f", {duration(seconds_left)} left" if seconds_left else "")


def train(
    dataset: Dataset,
    plan: TrainPlan,
    store: Store,
    *,
    overwrite: bool = False,
) -> tuple[str, bool]:
    """Trains a network, or resumes the training in the folder.

    The weights depend only on the plan's `identity`, as far as the device is deterministic: the CPU
    of one machine with a fixed number of threads reproduces them byte for byte. Neither the number
    of loader processes nor interruptions change them.

    Args:
      store: folder of the training; no other job may write to it.

    Returns:
      (entry of `--models` that evaluates the model; whether this call trained any epochs, False if
      the training was already complete).

    Raises:
      UsageError: the plan does not fit the dataset or the machine, or the folder holds another
        training.
      JobError: the training failed; the last complete epoch is kept.
    """
    with torch_settings(plan):
        state = read_resumed(dataset, plan, store, overwrite=overwrite)
        training, validation = find_samples(dataset, plan)
        network = build_network(
            plan.arch,
            dataset.taxonomy,
            seed=plan.seed,
            pretrained=plan.pretrained,
            weights=plan.weights,
        )
        return _TrainingRun(dataset, plan, store, network, training, validation).run(state)


def read_resumed(
    dataset: Dataset, plan: TrainPlan, store: Store, *, overwrite: bool
) -> State | None:
    """Reads the state that `train`, called with these arguments, goes on from; None if it begins.

    Raises UsageError if the folder holds another training, and JobError as `read_state_file` does.
    """
    state = None if overwrite else read_state_file(store)
    if state is None:
        return None
    stored, requested = state["identity"], plan.identity(dataset)
    if differing := sorted(name for name in requested if stored.get(name) != requested[name]):
        flags = [f"--{name} {stored.get(name)}" for name in differing if name != "dataset"]
        raise UsageError(
            f"{store.root} holds another training "
            f"({', '.join(flags) or 'the dataset has changed since'}): choose another --output, "
            "or start again with --overwrite"
        )
    return state


def holds_other_training(dataset: Dataset, plan: TrainPlan, store: Store) -> bool:
    """Returns whether a folder holds a training that `train`, thus called, would not resume."""
    try:
        read_resumed(dataset, plan, store, overwrite=False)
    except (JobError, UsageError):
        return True
    return False


@dataclasses.dataclass
class _TrainingRun:
    """A running training.

    Attributes:
      network: the network to train, with its initial weights.
      validation: pictures to validate on, None without validation.
    """

    dataset: Dataset
    plan: TrainPlan
    store: Store
    network: Network
    training: Samples
    validation: Samples | None

    def __post_init__(self) -> None:
        preprocessing = self.network.preprocessing
        stored = self.dataset.manifest.config.segment.image_size
        size = preprocessing.input_size if preprocessing.fixed_size else stored
        self._learner = Learner(self.network, self.plan, size)

    def run(self, state: State | None) -> tuple[str, bool]:
        """Trains the epochs that the state lacks; returns what `train` returns."""
        plan = self.plan
        if state is not None:
            self._learner.restore(state)
        done = state["epoch"] if state is not None else 0
        rows = state["rows"] if state is not None else []
        entry = f"{self.network.architecture}={self.store.path(MODEL)}"
        if done == plan.epochs:
            if not self.store.exists(MODEL):
                self._write_model(done)
            return entry, False
        print(self._describe(done))
        epochs = range(done, plan.epochs)
        with training_batches(plan, self._learner, self.training, self.validation, epochs) as (
            schedule,
            batches,
        ):
            for epoch in epochs:
                measured = run_epoch(epoch, plan, self._learner, schedule, batches)
                rows.append(dataclasses.asdict(measured))
                # Epochs of an earlier process may have run on another machine, so they do not
                # count.
                new = epoch + 1 - done
                mean_seconds = sum(row["seconds"] for row in rows[-new:]) / new
                seconds_left = mean_seconds * (plan.epochs - measured.epoch)
                print(measured.line(plan.epochs, seconds_left, is_first=new == 1))
                self._write(epoch + 1, rows)
        return entry, True

    def _describe(self, done: int) -> str:
        """Describes the training in one line; `done` is the number of complete epochs."""
        plan = self.plan
        source = "held out" if plan.holdout else f"of {plan.eval_split}"
        parts = (
            f"{plan.arch} on {counted(len(self.training), 'image')} of {plan.train_split}, "
            f"{plan.variant}",
            f"validation on {len(self.validation)} {source}"
            if self.validation is not None
            else "no validation",
            f"{self._learner.device.type}, {plan.precision}, seed {plan.seed}",
            f"resuming after epoch {done} of {plan.epochs}" if done else "",
        )
        return "; ".join(filter(None, parts))

    def _write(self, epochs: int, rows: list[dict[str, object]]) -> None:
        """Writes the model, the log and then the state, which makes an epoch count as complete."""
        self._write_model(epochs)
        columns = [field.name for field in dataclasses.fields(EpochLog)]
        self.store.write(LOG, csv_bytes(columns, rows))
        state: State = {
            **_FORMAT,
            "identity": self.plan.identity(self.dataset),
            "epoch": epochs,
            **self._learner.state(),
            "rows": rows,
        }
        data = io.BytesIO()
        torch.save(state, data)
        with self.store.create(STATE) as file:
            file.write(data.getbuffer())  # type: ignore[arg-type]
        self.store.prune(WORK_FOLDER)

    def _write_model(self, epochs: int) -> None:
        plan = self.plan
        save_checkpoint(
            self.store,
            MODEL,
            self._learner.weights(),
            TrainedOn(
                architecture=self.network.architecture,
                variant=plan.variant,
                dataset=self.dataset.manifest.fingerprint,
                split=plan.train_split,
                classes=digest_of_classes(self.dataset.taxonomy),
                preprocessing=self.network.preprocessing,
                keys=tuple(sorted(self.training.keys.tolist())),
                method="train",
                seed=plan.seed,
                epochs=epochs,
                holdout=plan.holdout,
                pretrained=self.network.pretrained,
                settings={name: getattr(plan, name) for name in _SETTINGS},
            ),
        )


@contextlib.contextmanager
def torch_settings(plan: TrainPlan) -> Iterator[None]:
    """Sets torch's global threads, cuDNN benchmark and TF32 while the block runs."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    threads, benchmark = torch.get_num_threads(), cudnn.benchmark
    allowed_tf32 = matmul.allow_tf32, cudnn.allow_tf32
    torch.set_num_threads(usable_cores())
    # The batches of a phase have at most two sizes, so benchmarking kernels pays off.
    cudnn.benchmark = True
    matmul.allow_tf32 = cudnn.allow_tf32 = plan.precision == "tf32"
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cudnn.benchmark = benchmark
        matmul.allow_tf32, cudnn.allow_tf32 = allowed_tf32


def read_state_file(store: Store) -> State | None:
    """Reads the state of a training in a folder, its tensors on the CPU; None without a file.

    Raises JobError if the file cannot be read, or its format or version is not supported.
    """
    if not store.exists(STATE):
        return None
    path = store.path(STATE)
    try:
        refuse_compressed(path)
        with store.open(STATE) as file:
            state: State = torch.load(file, map_location="cpu", weights_only=True)
        found = {name: state[name] for name in _FORMAT}
    except Exception as error:  # Broken bytes can raise anything.
        raise JobError(
            f"{path} cannot be read ({type(error).__name__}); start again with --overwrite"
        ) from error
    if found != _FORMAT:
        raise JobError(
            f"{path} is {found['format']!r} of version {found['version']}, which is not supported; "
            "start again with --overwrite"
        )
    return state


def run_epoch(
    epoch: int,
    plan: TrainPlan,
    learner: Learner,
    schedule: Schedule,
    batches: Iterator[Batch],
) -> EpochLog:
    """Trains one epoch, counted from 0, and then validates.

    The next of `batches` is the epoch's first. Raises ModelError if loss or weights are not finite.
    """
    started = time.perf_counter()
    lr = learning_rate(plan.lr, epoch, plan.epochs)
    # Dropout uses torch's global generator. It is seeded for each epoch, so that an epoch does not
    # depend on which epochs this process trained before. The 0 means nothing, but another key would
    # change the weights that a plan gives.
    torch.manual_seed(keyed_hash(plan.seed, "dropout", f"{epoch} 0") >> 1)
    learner.begin_training(lr)
    sums = learner.zero_sums()
    waited = 0.0
    with live_bar(
        f"epoch {epoch + 1} of {plan.epochs}", len(schedule.order_hashes), "images"
    ) as advance:
        for _ in range(schedule.training_batches):
            asked = time.perf_counter()
            pictures, labels = next(batches)
            waited += time.perf_counter() - asked
            sums += learner.step(pictures, labels)
            advance(len(labels))
    loss, correct, count, broken = sums.tolist()
    seconds = time.perf_counter() - started
    end = (
        f"no longer finite in epoch {epoch + 1}; the epochs before are kept. Try a smaller --lr "
        f"than {plan.lr:g}"
    )
    if broken:
        raise ModelError(f"the loss of {broken:.0f} of {count:.0f} pictures is {end}")
    # The last step may have broken them after its loss was computed.
    if not learner.has_finite_weights():
        raise ModelError(f"the weights are {end}")
    learner.begin_validation()
    sums = learner.zero_sums()
    for _ in range(schedule.validation_batches):
        sums += learner.test(*next(batches))
    val_loss, val_correct, val_count, broken = sums.tolist()
    if broken:
        raise ModelError(
            f"the validation loss of {broken:.0f} of {val_count:.0f} pictures is {end}"
        )
    return EpochLog(
        epoch=epoch + 1,
        lr=lr,
        loss=loss / count,
        accuracy=correct / count,
        val_loss=val_loss / val_count if val_count else None,
        val_accuracy=val_correct / val_count if val_count else None,
        images_per_second=count / seconds,
        data_wait=waited / seconds,
        seconds=time.perf_counter() - started,
    )
