"""Plans, trains and tests the rows of matrices; what exists is not made again.

The model of a row is named `NAME-VARIANT`, after its matrix and the variant that it was trained on,
and not after its entry of `--models`, so that the same checkpoint can also be evaluated on its own.
Its predictions on IN-9L lie in a separate folder, whose name includes the beginning of that
dataset's fingerprint.

A trainer fits linear probes on a frozen network, whose tests reuse the stored features of pictures,
or trains whole networks in the same way as `in9 train`.
"""

import dataclasses
import os
import time
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import torch
from msgspec import UNSET, UnsetType
from msgspec.structs import replace
from numpy.typing import NDArray

from pipeline.analyses.matrix import dial
from pipeline.analyses.matrix.results import IN9L, Matrix, sort_names, write_matrix_tables
from pipeline.dataset.folder import Dataset, refuse_empty_test, selected_rows
from pipeline.display.table import listed
from pipeline.errors import JobError, UsageError, counted, did_you_mean, refuse_first
from pipeline.evaluate.features import HeadPlan
from pipeline.evaluate.planned import Evaluation
from pipeline.evaluate.predict_shards import (
    PredictShards,
    RowsScorer,
    Scorer,
    ShardPictures,
    commit_predictions,
)
from pipeline.evaluate.resident import free_memory
from pipeline.evaluate.results import ModelRun, read_results, result_file
from pipeline.evaluate.summary import Evaluated, MatrixRow
from pipeline.models.checkpoint import (
    MODELS,
    PROBE,
    TrainedOn,
    digest_of_classes,
    encoder_of,
    metadata_of_entry,
    read_metadata,
)
from pipeline.models.heads import head_of
from pipeline.models.identity import ModelIdentity, PredictConfig
from pipeline.models.library_names import read_state
from pipeline.models.predict import Predictor, are_numbers, refuse_broken
from pipeline.models.registry import load_model
from pipeline.models.source import state_hash
from pipeline.runtime.lock import DATASET_LOCK, TABLES_LOCK, locked
from pipeline.runtime.progress import Progress, duration
from pipeline.storage.store import WORK_FOLDER, Store
from pipeline.training.loop import MODEL, holds_other_training, train
from pipeline.training.probe_fit import Encoder
from pipeline.training.train_plan import TrainPlan, describe_penalty
from transforms.hashing import fingerprint


@dataclasses.dataclass(frozen=True)
class MatrixPlan:
    """The settings of a matrix.

    Attributes:
      dataset: the dataset with the variants; results are written to its folder.
      in9l: the dataset of IN-9L; None to leave out its row and its column.
      rows, columns: names of the variants to train and to test on, and IN-9L if there is its
        dataset; they differ for a dial alone.
      train_split, split: splits to train and to test on; with a holdout, both are the same split.
      holdout: share of the images that models are tested on, and not trained on; 0 if `train_split`
        is another split.
      predict: settings to run models with in the tests, and to compute the features of probes.
    """

    dataset: Dataset
    in9l: Dataset | None
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    train_split: str
    split: str
    holdout: float
    predict: PredictConfig
    allow_overlap: bool = False

    @property
    def is_dial(self) -> bool:
        return self.rows != self.columns

    def source(self, name: str) -> tuple[Dataset, str]:
        """Returns the dataset and the variant that a row or a column stands for."""
        if name == IN9L and self.in9l is not None:
            return self.in9l, "original"
        return self.dataset, name

    def suffix(self) -> str:
        """Returns a suffix for matrices' names, made of training settings that are not the default.

        With it, matrices of models that were trained differently lie side by side, as do a dial
        and the matrix of other variants.
        """
        parts = (
            self.train_split if self.train_split != "train" else "",
            f"holdout{self.holdout:g}" if self.holdout else "",
            "dial" if self.is_dial else "",
        )
        return "".join(f"-{part}" for part in parts if part)


def make_plan(
    dataset: Dataset,
    in9l: Dataset | None,
    *,
    variants: Sequence[str] | None,
    train_split: str | None,
    split: str | None,
    share: float,
    predict: PredictConfig,
    allow_overlap: bool = False,
) -> MatrixPlan:
    """Makes a plan from flags, and checks it against the dataset.

    Args:
      variants: names of variants; None for all variants that are pictures, without renderings and
        those of the dial, which `dial` stands for.
      train_split: value of `--train_split`; None for the default.
      split: value of `--eval_split`; None for the default.
      share: share of the images that are held out to test on (0 to below 1); 0 to train and to test
        on all images.
    """
    existing = tuple(map(str, dataset.picture_variants))
    if variants is not None and tuple(variants) == ("dial",):
        _refuse_no_dial(dataset, in9l)
        rows, columns = dial.ROWS, dial.COLUMNS
    else:
        names = (
            variants
            or [
                str(one)
                for one in dataset.picture_variants
                if not one.rendering and one.strength is None
            ]
            or existing
        )
        for name in names:
            if name not in existing:
                raise UsageError(
                    f"--variants {name}: the dataset has {', '.join(existing) or 'none'}"
                    f"{did_you_mean(name, existing)}"
                )
        rows = columns = (*sort_names(dataset, names), *([IN9L] if in9l else []))
    if in9l and not in9l.manifest.config.segment.keeps_image_whole:
        raise UsageError(
            f"--in9l {in9l.store.root} is not an IN-9L dataset; make one with: in9 generate "
            "--selection in9l"
        )
    test_split = split or dataset.manifest.config.eval_split
    trained_split = _choose_train_split(dataset, train_split, test_split, share)
    for opened in (dataset, in9l) if in9l else (dataset,):
        available = opened.manifest.config.split
        for flag, name in (("--train_split", trained_split), ("--eval_split", test_split)):
            if name not in available:
                owner = "the dataset" if opened is dataset else "--in9l"
                raise UsageError(f"{flag} {name}: {owner} has {', '.join(available)}")
        refuse_empty_test(opened, test_split, share)
    # Refused here, and not only once the first row has been trained, which may take days.
    if trained_split == test_split and not share and not allow_overlap:
        raise UsageError(
            f"all images of {test_split} would be both trained on and tested on; divide the split "
            "with --holdout 0.5, or add --allow_overlap to test on them and mark the result"
        )
    if in9l and digest_of_classes(in9l.taxonomy) != digest_of_classes(dataset.taxonomy):
        raise UsageError("--in9l has other classes than --dataset")
    return MatrixPlan(
        dataset=dataset,
        in9l=in9l,
        rows=rows,
        columns=columns,
        train_split=trained_split,
        split=test_split,
        holdout=share,
        predict=predict,
        allow_overlap=allow_overlap,
    )


def _refuse_no_dial(dataset: Dataset, in9l: Dataset | None) -> None:
    """Refuses a dial without a variant that it needs, or whose reference is no reference."""
    missing = {*dial.ROWS, *dial.COLUMNS}.difference(map(str, dataset.picture_variants))
    faults = {
        f"the dataset lacks {listed(sorted(missing))}; make it with in9 generate --variants "
        "all,dial": bool(missing),
        "the backgrounds of mixed_rand must say nothing of the class; make the dataset without "
        "--mixed_rand other": dataset.manifest.config.compose.mixed_rand != "any",
        "it has no row of IN-9L; leave out --in9l": in9l is not None,
    }
    refuse_first(faults, "--variants dial: ")


def _choose_train_split(dataset: Dataset, given: str | None, test_split: str, share: float) -> str:
    """Returns the split to train on, which without `--train_split` depends on `--holdout`."""
    splits = dataset.manifest.config.split
    chosen = given or (test_split if share else "train")
    if share and chosen != test_split:
        raise UsageError(
            f"--holdout divides one split, {test_split}: leave out --train_split {chosen}, "
            "or --holdout"
        )
    if chosen not in splits and given is None:
        raise UsageError(
            f"the dataset has no split train, but {', '.join(splits)}: add --holdout 0.5, which "
            "trains on one half of the images and tests on the other, or make it with "
            "in9 generate --split train,val"
        )
    return chosen


class ProbeTrainer:
    """A trainer that fits a linear probe on each variant."""

    settings = UNSET

    def __init__(self, encoder: Encoder, plan: MatrixPlan) -> None:
        self._encoder, self._plan = encoder, plan
        self.arch = encoder_of(encoder.model.name)
        self.name = f"probe-{self.arch.replace('/', '_')}{plan.suffix()}"

    def train(self, row: str) -> str:
        """Fits a probe on a row's pictures, unless it did so before; returns its `--models`."""
        dataset, variant = self._plan.source(row)
        split, holdout = self._plan.train_split, self._plan.holdout
        plan = HeadPlan(dataset, variant, split, holdout, row)
        return PROBE + self._encoder.fit(plan, self._plan.dataset.store)

    def identity(self, entry: str, trained: TrainedOn) -> ModelIdentity:
        """Returns what results record of a row's model, by its entry."""
        return dataclasses.replace(self._encoder.model.identity, name=entry)

    def scorer(self, entry: str) -> RowsScorer:
        """Loads a head, `probe:FILE`, to compute logits from the frozen encoder's features.

        Features that are stored need no forward pass.
        """
        head = head_of(read_state(encoder_of(entry)), self._plan.dataset.taxonomy.num_labels)

        @torch.inference_mode()
        def logits(pictures: ShardPictures, keys: list[str]) -> NDArray[np.float32]:
            features = self._encoder.features(pictures, "-test")
            outputs = head(torch.from_numpy(np.stack([features[key] for key in keys])))
            refuse_broken(are_numbers(outputs))
            return np.asarray(outputs)

        return RowsScorer(logits, torch.device(self._plan.predict.device))


class NetworkTrainer:
    """A trainer that trains a network on each variant, from scratch or from pretrained weights.

    With `overwrite`, it starts over where a row's folder holds a training with other flags.
    """

    def __init__(self, plan: MatrixPlan, training: TrainPlan, *, overwrite: bool = False) -> None:
        self._plan, self._training, self._overwrite = plan, training, overwrite
        self.arch = training.arch
        kind = "pretrained-" if training.pretrained else ""
        self.name = f"{kind}{training.arch.replace('/', '_')}-{training.epochs}ep{plan.suffix()}"
        self.name += f"-seed{training.seed}" if training.seed else ""
        self.settings = fingerprint(
            dataclasses.replace(training, seed=0).identity(plan.dataset),
            plan.split,
            plan.in9l and plan.in9l.manifest.fingerprint,
            *(["dial"] if plan.is_dial else []),
        )

    def train(self, row: str) -> str:
        """Trains on a row's pictures, unless it did so before; returns its entry of `--models`.

        It resumes a training that was stopped. Raises UsageError if the row's folder holds a
        training with other flags, without `overwrite`.
        """
        dataset, variant = self._plan.source(row)
        tested, splits = self._plan.split, dataset.manifest.config.split
        validates = not self._plan.holdout and tested != self._plan.train_split
        training = dataclasses.replace(
            self._training,
            train_split=self._plan.train_split,
            holdout=self._plan.holdout,
            variant=variant,
            eval_split=tested if validates and tested in splits else None,
        )
        folder = f"{MODELS}/{self.name}/{row}" if row == IN9L else f"{MODELS}/{training.name}"
        store = self._plan.dataset.store.below(folder)
        path = store.path(MODEL)
        existing = read_metadata(path) if store.exists(MODEL) else None
        # A model that was trained on another version of the dataset is trained again.
        is_stale = existing is not None and existing.dataset != dataset.manifest.fingerprint
        with locked(store, DATASET_LOCK) as store:
            # A training with the same flags is resumed or kept, so that a matrix that was stopped
            # does not begin again with its first row.
            overwrite = is_stale or (
                self._overwrite and holds_other_training(dataset, training, store)
            )
            entry, _ = train(dataset, training, store, overwrite=overwrite)
        return entry

    def identity(self, entry: str, trained: TrainedOn) -> ModelIdentity:
        """Returns what results record of a row's model, by its entry."""
        path = entry.partition("=")[2]
        return ModelIdentity(
            name=entry,
            architecture=trained.architecture,
            weights=os.path.basename(path),
            weights_sha256=state_hash(read_state(path)),
            preprocessing=trained.preprocessing,
            num_outputs=self._plan.dataset.taxonomy.num_labels,
        )

    def scorer(self, entry: str) -> Predictor:
        """Loads a checkpoint, `ARCH=FILE`, to compute logits by forward passes of the network."""
        return Predictor(load_model(entry), self._plan.predict)


Trainer = ProbeTrainer | NetworkTrainer
"""A method to train a network on a variant, and to predict pictures with the trained network. Its
`name` is that of the matrix whose rows it trains, `arch` the architecture of the network, and
`settings` what the trainers of the other seeds of a network have in common."""


def make_matrices(plan: MatrixPlan, trainers: Iterable[Trainer]) -> tuple[list[Matrix], int]:
    """Trains and tests the models of matrices; also returns the number of models newly predicted.

    After every new row, it prints a line and writes the tables. `read_matrices` computes them, and
    gathers the seeds of a network in one matrix.

    Raises:
      UsageError: a model would be tested on images that it was trained on, and the plan does not
        allow that.
      ModelError, JobError: training or testing failed; finished rows are kept.
    """
    store = plan.dataset.store
    new_rows = 0
    names: set[str] = set()
    for trainer in trainers:
        names.add(trainer.name)
        with locked(store, f"{WORK_FOLDER}/lock-matrix-{trainer.name}") as locked_store:
            current: set[str] = set()
            for row in plan.rows:
                started = time.monotonic()
                tests, trained, is_new = make_row(trainer, plan, row)
                free_memory()
                current.update(test.folder for test in tests)
                if is_new:
                    new_rows += 1
                    _write_tables(plan.dataset)
                    penalty = trained.settings.get("penalty")
                    suffix = f"; penalty {describe_penalty(penalty)}" if penalty is not None else ""
                    print(
                        f"{trainer.name}: {row}, trained on "
                        f"{counted(len(trained.keys), 'picture')}, tested on "
                        f"{counted(len(plan.columns), 'column')}, "
                        f"{duration(time.monotonic() - started)}{suffix}"
                    )
            _remove_others(locked_store, trainer.name, current)
    matrices = _write_tables(plan.dataset)
    return [one for one in matrices if not names.isdisjoint(one.trainings)], new_rows


def make_row(
    trainer: Trainer, plan: MatrixPlan, row: str
) -> tuple[list[ModelRun], TrainedOn, bool]:
    """Trains a row's model, and predicts the pictures of all columns that are not predicted yet.

    Returns the model's run on each dataset that it is tested on, how it was trained, and whether
    any predictions are new. Raises UsageError if it would be tested on images that it was trained
    on, and the plan does not allow that.
    """
    entry = trainer.train(row)
    trained = metadata_of_entry(entry)
    if trained is None:
        raise JobError(f"{entry} does not say what it was trained on")
    store, model = plan.dataset.store, trainer.identity(entry, trained)
    tests = list(_tests(plan, model, f"{trainer.name}-{row}"))
    overlap = max(run.overlap or 0 for _, run, _ in tests)
    if overlap and not plan.allow_overlap:
        raise UsageError(
            f"{counted(overlap, 'image')} to test on "
            f"{'was' if overlap == 1 else 'were'} trained on (row {row}); divide the split "
            "with --holdout 0.5, or add --allow_overlap to test on them and mark the result"
        )
    scorer: Scorer | None = None
    for dataset, run, groups in tests:
        shards, numbers = PredictShards(dataset, run, store), dataset.shards(plan.split)
        missing = [shard for shard in numbers if not shards.is_done(shard)]
        if missing:
            scorer = scorer or trainer.scorer(entry)
            for output in shards.run(scorer, numbers, missing, lambda *_: None):
                shards.write(store, output)
        commit_predictions(
            shards,
            numbers,
            run,
            # Relative to the dataset's folder, so that it stays valid if the folder is moved.
            entry=entry.replace(f"{store.root}/", "", 1),
            matrix=MatrixRow(
                name=trainer.name, row=row, arch=trainer.arch, settings=trainer.settings
            ),
            groups=groups,
            power=(),
        )
    return [run for _, run, _ in tests], trained, scorer is not None


def _tests(
    plan: MatrixPlan, model: ModelIdentity, name: str
) -> Iterator[tuple[Dataset, ModelRun, dict[str, str] | UnsetType]]:
    """Yields each dataset that a row is tested on, with the row's run and `Evaluated.groups`."""
    evaluation = Evaluation(
        store=plan.dataset.store,
        models=(),
        split=plan.split,
        predict=plan.predict,
        progress=Progress.for_store(plan.dataset.store),
        holdout=plan.holdout,
        allow_overlap=plan.allow_overlap,
    )
    run = evaluation.describe(plan.dataset, model)
    variants = tuple(one for one in plan.columns if one != IN9L)
    yield plan.dataset, replace(run, model=name, variants=variants), UNSET
    if plan.in9l is not None:
        run = evaluation.describe(plan.in9l, model)
        rows = selected_rows(plan.in9l, plan.split, plan.holdout)
        settings = replace(run.evaluation, dataset=plan.in9l.manifest.fingerprint)
        yield (
            plan.in9l,
            replace(run, model=name, evaluation=settings, variants=(plan.source(IN9L)[1],)),
            # Stored here, because the index of IN-9L is not available when tables are written.
            {row["key"]: row["group"] for row in rows if row.get("group")},
        )


def _write_tables(dataset: Dataset) -> list[Matrix]:
    with locked(dataset.store, TABLES_LOCK, wait=60) as store:
        return write_matrix_tables(Dataset.open(store))


def _remove_others(store: Store, name: str, current: Collection[str]) -> None:
    """Removes the results of earlier matrices of the same name.

    They may be of other rows, of another split, or of another dataset of IN-9L.
    """
    for run in read_results(store, "model", Evaluated):
        if run.matrix and run.matrix.name == name and run.folder not in current:
            # model.json is removed first, because it declares that the predictions exist.
            store.delete(result_file(run.folder, "model"))
            store.delete_all(list(store.walk(f"results/{run.folder}")))
