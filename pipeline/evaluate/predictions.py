"""A model's stored predictions: their paths and fingerprints, and functions that read them.

They are read by label rule and variant, with images in the order of their keys. A stored prediction
names its background only by key. The background's class and unit, and the size of the foreground,
come from the dataset's index. The model's logits on some pictures of backgrounds are stored in the
column `logits`, in the rows of the paper's label rule, for the probe in `measure_power`.

This module does not import Beam, so that readers of predictions start fast.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import UNSET
from numpy.typing import NDArray

from pipeline.dataset.folder import Dataset, selected_rows
from pipeline.errors import JobError
from pipeline.evaluate.results import (
    PREDICTION_SCHEMA,
    ModelRun,
    PicturesResult,
    read_results,
    result_shard,
)
from pipeline.models.identity import settings_identity
from pipeline.storage.state_files import read_intact, read_table
from transforms.hashing import fingerprint, keyed_hashes
from transforms.scoring import NO_ANSWER, RULES_OF_ANSWERS
from transforms.selection import held_out
from transforms.taxonomy import OUTSIDE
from transforms.variants import BG_GAP, EXTERNAL, ONLY_BG_T, VariantName, draws_of


def evaluated_variants(dataset: Dataset, run: ModelRun | None = None) -> tuple[VariantName, ...]:
    """Returns the variants, with replicates, that a run names, else all that are pictures."""
    if run is not None and run.variants is not UNSET:
        return tuple(map(VariantName.parse, run.variants))
    return tuple(name for name in dataset.variants if name.is_picture)


def variants_behind(quantity: str) -> tuple[str, ...]:
    """Returns the variant whose accuracy a quantity is, or the two whose difference it is.

    >>> variants_behind("bg_gap"), variants_behind("bg_gap_haze")
    (('mixed_same', 'mixed_rand'), ('haze_same', 'haze_rand'))
    >>> variants_behind("original"), variants_behind("haze - original")
    (('original',), ('haze', 'original'))
    """
    if quantity.startswith(BG_GAP):
        stem = quantity.removeprefix(BG_GAP).removeprefix("_") or "mixed"
        return f"{stem}_same", f"{stem}_rand"
    return tuple(quantity.split(" - "))


def paired_draws(quantity: str, names: Iterable[VariantName]) -> list[tuple[VariantName, ...]]:
    """Returns the draws of the variants behind a quantity, together those of the same number.

    A variant without draws stands beside each of the other's. None if one is not among `names`.

    >>> names = map(VariantName.parse, ("original", "mixed_same", "mixed_same_r1"))
    >>> [tuple(map(str, each)) for each in paired_draws("mixed_same - original", names)]
    [('mixed_same', 'original'), ('mixed_same_r1', 'original')]
    """
    draws = draws_of(names)
    of_each = (draws.get(name, ()) for name in variants_behind(quantity))
    return [
        each
        for each in itertools.product(*of_each)
        if len({name.draw for name in each if name.has_draws}) < 2
    ]


def gaps_of(names: Iterable[VariantName]) -> list[str]:
    """Returns the gaps of variants, `bg_gap` for the mixed ones, in their order.

    >>> gaps_of(map(VariantName.parse, ("mixed_same", "haze_rand", "mixed_rand", "haze_same")))
    ['bg_gap', 'bg_gap_haze']
    """
    names = list(names)
    bases = dict.fromkeys(name.base for name in names if not name.rendering)
    stems = (base.removesuffix("_same") for base in bases if base.endswith("_same"))
    gaps = (BG_GAP + f"_{stem}" * (stem != "mixed") for stem in stems)
    return [gap for gap in gaps if paired_draws(gap, names)]


def prediction_file(run: ModelRun, shard: int) -> str:
    return result_shard(run.folder, "predictions", run.evaluation.split, shard)


def prediction_fingerprints(dataset: Dataset, run: ModelRun, shard: int) -> dict[VariantName, str]:
    """Returns by variant the value of the column `of` in valid predictions on a shard."""
    settings = run.evaluation
    shared_inputs = [
        *run.identity,
        settings_identity(settings.precision, settings.eval_input),
        run.evaluate_version,
        # A changed group moves images into or out of the holdout without changing any picture.
        *([sorted(tested_keys(dataset, run, shard))] if settings.holdout else []),
        *dataset.custom_taxonomy,
    ]
    return {
        variant: fingerprint(
            shared_inputs,
            str(variant),
            [file.sha256 for file in dataset.shard_files(settings.split, shard, (variant,))],
        )
        for variant in evaluated_variants(dataset, run)
    }


def of_both(of: str) -> tuple[str, str]:
    """Returns the values of the column `of` that are valid in place of `of`.

    The second is that of scores which a GPU has computed, for which a host's logits would do.
    """
    return of, fingerprint(of, "scores of a GPU")


def tested_keys(dataset: Dataset, run: ModelRun, shard: int) -> frozenset[str]:
    settings = run.evaluation
    rows = selected_rows(dataset, settings.split, settings.holdout, shard)
    return frozenset(row["key"] for row in rows)


PROBED_VARIANT = ONLY_BG_T
"""The variant whose logits are kept: backgrounds without any foreground."""
MAX_PICTURES = 5000
"""The most pictures whose logits the probe uses."""


def keys_to_keep(tested: Iterable[str], shards: int, most: int = MAX_PICTURES) -> frozenset[str]:
    """Chooses the images of an output shard whose logits are kept, about `most` in all shards.

    Images are dealt to shards by a hash of their keys, so all shards hold about the same number.
    Every shard keeps an equal share of `most`, namely its tested images with the lowest keyed
    hashes. So the choice depends on no other shard, and an unchanged shard keeps the same images.
    """
    return frozenset(_lowest_hashes(tested, max(1, most // shards)))


def _lowest_hashes(keys: Iterable[str], most: int) -> list[str]:
    """Returns the `most` keys with the lowest hashes, lowest hash first."""
    keys = list(keys)
    order = np.argsort(keyed_hashes(0, "power", keys), kind="stable")
    return [keys[position] for position in order[:most].tolist()]


@dataclasses.dataclass(frozen=True, eq=False)
class KeptLogits:
    """A model's stored logits on n pictures of backgrounds, from all shards.

    Attributes:
      keys: n keys of the images, sorted.
      labels: (n,) integers, true labels of the images.
      logits: (n, outputs) float32, all outputs of the model.
      of: distinct values of the predictions' column `of`, sorted; they change with the logits.
    """

    keys: tuple[str, ...]
    labels: NDArray[np.integer]
    logits: NDArray[np.float32]
    of: tuple[str, ...]


OF_LOGITS = ["key", "label", "logits", "of"]


def logits_in_tables(predictions: Iterable[pa.Table]) -> KeptLogits | None:
    """Finds the logits on at most `MAX_PICTURES` pictures in a model's tables; None without any."""
    tables = [table.select(OF_LOGITS).filter(pc.is_valid(table["logits"])) for table in predictions]
    if not sum(table.num_rows for table in tables):
        return None
    table = pa.concat_tables([table.replace_schema_metadata() for table in tables])
    keys = table["key"].to_pylist()
    chosen = sorted(range(len(keys)), key=keys.__getitem__)
    if len(keys) > MAX_PICTURES:
        lowest = set(_lowest_hashes(keys, MAX_PICTURES))
        chosen = [position for position in chosen if keys[position] in lowest]
    logits = table["logits"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return KeptLogits(
        keys=tuple(keys[position] for position in chosen),
        labels=table["label"].to_numpy()[chosen],
        logits=logits.reshape(len(keys), -1)[chosen],
        of=tuple(sorted(pc.unique(table["of"].cast(pa.string())).to_pylist())),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class EvalImages:
    """The n images of a split to test on, and the m selected images that may be their backgrounds.

    The tested images are all selected images, or the held-out share of them. Images outside this
    share are not tested on, but still serve as backgrounds.

    Attributes:
      keys: (n,) strings, keys of the tested images, sorted.
      labels: (n,) int16, labels of the tested images.
      fg_fraction: (n,) float64, share of the foreground in the picture (0 to 1); NaN if images are
        not cut apart.
      background_keys: (m,) strings, keys of all selected images, sorted.
      background_labels: (m,) int16, labels of all selected images.
      units: n strings, the unit of resampling of each tested image: its group, or its key if it has
        no group.
      background_units: (m,) int64, the unit of each selected image, as a number.
      held_out_units: the numbers of units that are held out; None if all images are tested.
    """

    keys: pa.Array
    labels: NDArray[np.int16]
    fg_fraction: NDArray[np.float64]
    background_keys: pa.Array
    background_labels: NDArray[np.int16]
    units: tuple[str, ...]
    background_units: NDArray[np.int64]
    held_out_units: NDArray[np.int64] | None = None

    @classmethod
    def read(cls, dataset: Dataset, split: str, holdout: float = 0.0) -> Self:
        """Reads the images from a split's index; `holdout` is the share to test on, 0 for all."""
        tables = [
            dataset.index_table(split, shard, ["key", "label", "fg_fraction", "selected", "group"])
            for shard in dataset.shards(split)
        ]
        # The metadata of each shard differ, and tables with different metadata do not concatenate.
        table = pa.concat_tables([table.replace_schema_metadata() for table in tables])
        pool = table.filter(table["selected"]).sort_by("key").combine_chunks()
        keys = pool["key"].to_pylist()
        groups = pool["group"].to_pylist() if "group" in pool.column_names else [None] * len(keys)
        units = [group or key for group, key in zip(groups, keys, strict=True)]
        tested = held_out(units, holdout) if holdout else np.ones(len(units), np.bool_)
        labels = pool["label"].to_numpy().astype(np.int16)
        numbers = np.unique(np.asarray(units, object), return_inverse=True)[1]
        return cls(
            keys=pa.array(keys, pa.string()),
            labels=labels,
            fg_fraction=pool["fg_fraction"].to_numpy().astype(np.float64),
            background_keys=pa.array(keys, pa.string()),
            background_labels=labels,
            units=tuple(units),
            background_units=numbers,
            held_out_units=numbers[tested] if holdout else None,
        ).select(tested)

    def select(self, chosen: NDArray[np.bool_]) -> Self:
        """Returns the same backgrounds with only the chosen of the n tested images."""
        return dataclasses.replace(
            self,
            keys=self.keys.filter(pa.array(chosen)),
            labels=self.labels[chosen],
            fg_fraction=self.fg_fraction[chosen],
            units=tuple(itertools.compress(self.units, chosen)),
        )

    @functools.cached_property
    def unit_numbers(self) -> NDArray[np.int64]:
        """(n,) int64, the unit of each tested image, numbered as in `background_units`."""
        return self.background_units[_positions(self.keys, self.background_keys)]

    def counts(
        self, variant: VariantName, bg_units: Mapping[VariantName, NDArray[np.int64]]
    ) -> NDArray[np.bool_]:
        """Returns which of a variant's pictures count, (n,) bool, by `Predictions.bg_units`.

        All do, except under a holdout: a model may have been trained on the other images, so a
        mixed picture counts only if its background, as its foreground, is held out. One that an
        imported dataset does not name may be any. One from outside counts unless its background
        has the name of an image that is not held out.
        """
        if self.held_out_units is None or variant not in bg_units:
            return np.ones(len(self.keys), np.bool_)
        units = bg_units[variant]
        return np.isin(units, self.held_out_units) | ((units < 0) & (not variant.is_mixed))

    def positions(self, keys: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
        """Returns each key's position among the tested images; -1 for null or an unknown key."""
        return _positions(keys, self.keys)


def split_fingerprint(dataset: Dataset, split: str, variants: tuple[VariantName, ...]) -> str:
    """Returns a fingerprint of everything in a dataset that results on a split depend on.

    That is the files of the variants, the classes, and the groups of images. While the fingerprint
    stays the same, results stay valid, even if other parts of the dataset change.
    """
    files = [
        file.sha256
        for shard in dataset.shards(split)
        for file in dataset.shard_files(split, shard, variants)
    ]
    return fingerprint(files, EvalImages.read(dataset, split).units, *dataset.custom_taxonomy)


_R = TypeVar("_R", bound=PicturesResult)


def read_current_results(
    dataset: Dataset,
    name: str,
    kind: type[_R],
    variants_of: Callable[[_R], tuple[VariantName, ...]],
) -> tuple[list[_R], list[str]]:
    """Reads the results of all models, and separates valid results from outdated ones.

    Returns results on the present pictures, in order of their folders, and names of models whose
    results are on earlier ones.
    """
    expected = functools.cache(functools.partial(split_fingerprint, dataset))
    current, stale = [], []
    for result in read_results(dataset.store, name, kind):
        split = result.evaluation.split
        if split in dataset.manifest.shards and result.of == expected(split, variants_of(result)):
            current.append(result)
        else:
            stale.append(result.model)
    return current, stale


def _positions(keys: pa.Array | pa.ChunkedArray, known: pa.Array) -> NDArray[np.int64]:
    positions = pc.index_in(keys, value_set=known, skip_nulls=True)
    return np.asarray(pc.fill_null(positions, -1)).astype(np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """A model's predictions on n images under one label rule, in the order of `EvalImages.keys`.

    Attributes:
      labels: (n,) int16, true labels.
      predicted: for each variant and replicate, in the dataset's order: (n,) int16, predicted
        labels.
      bg_labels: for each mixed variant and replicate: (n,) int16, labels of the backgrounds;
        `OUTSIDE` where an imported dataset does not name the background. `mixed_external` has no
        entry, because scenes have no class.
      bg_units: for each variant and replicate whose backgrounds are other images or scenes, or have
        names: (n,) int64, units of the backgrounds, numbered as in `EvalImages.background_units`.
        Each scene or name, and each background without one, has a negative number of its own.
    """

    labels: NDArray[np.int16]
    predicted: dict[VariantName, NDArray[np.int16]]
    bg_labels: dict[VariantName, NDArray[np.int16]]
    bg_units: dict[VariantName, NDArray[np.int64]]

    def correct(self, variant: VariantName) -> NDArray[np.bool_]:
        """Returns whether each prediction on a variant is right, (n,) bool."""
        return np.asarray(self.predicted[variant] == self.labels)


@dataclasses.dataclass(frozen=True)
class ModelPredictions:
    """A model's valid predictions on a dataset.

    Attributes:
      by_rule: predictions by label rule; they hold only variants with a valid prediction for every
        tested image.
      missing: variants without a valid prediction for every tested image.
      devices: types of the devices that computed the predictions, sorted.
      unanswered: number of pictures that the model has not answered, which count as wrong.
    """

    by_rule: dict[str, Predictions]
    missing: tuple[VariantName, ...]
    devices: tuple[str, ...]
    unanswered: int


COLUMNS = [
    *("label_rule", "variant", "fg_key", "bg_key", "label", "prediction", "output", "of", "device")
]
"""Columns of predictions that `predictions_in_table` and its callers need."""


def read_predictions(dataset: Dataset, images: EvalImages, run: ModelRun) -> ModelPredictions:
    """Reads a model's valid predictions; raises JobError if a background is not in the index."""
    tables = [
        PREDICTION_SCHEMA.empty_table().select(COLUMNS),
        *(_read_current(dataset, run, shard) for shard in dataset.shards(run.evaluation.split)),
    ]
    predictions = pa.concat_tables(tables).unify_dictionaries()
    rules = tuple(RULES_OF_ANSWERS[run.answers])
    return predictions_in_table(predictions, images, evaluated_variants(dataset, run), rules)


def correct_by_rule(
    dataset: Dataset, images: EvalImages, run: ModelRun
) -> tuple[dict[str, dict[VariantName, NDArray[np.bool_]]], dict[VariantName, NDArray[np.int64]]]:
    """Reads which pictures a model recognises, and `Predictions.bg_units`.

    They are label rule -> variant -> (n,) bool, True where right.
    """
    by_rule = read_predictions(dataset, images, run).by_rule
    bg_units = {k: units for one in by_rule.values() for k, units in one.bg_units.items()}
    return {
        rule: {name: predictions.correct(name) for name in predictions.predicted}
        for rule, predictions in by_rule.items()
    }, bg_units


def _read_current(dataset: Dataset, run: ModelRun, shard: int) -> pa.Table:
    """Reads predictions on a shard's present pictures; none if the file is missing or damaged."""
    store, path = dataset.store, prediction_file(run, shard)
    table = read_intact(store, path, lambda: read_table(store, path, columns=COLUMNS))
    if table is None:
        return PREDICTION_SCHEMA.empty_table().select(COLUMNS)
    fingerprints = prediction_fingerprints(dataset, run, shard)
    (variant_codes, variants), (of_codes, of) = (_codes(table[name]) for name in ("variant", "of"))
    # `expected[:, code of a variant]` are the codes of the values of `of` in valid predictions.
    valid = (of_both(fingerprints.get(VariantName.parse(name), "")) for name in variant_codes)
    expected = np.asarray([[of_codes.get(each, -1) for each in both] for both in valid], np.int32)
    is_current = (of == expected.reshape(-1, 2).T[:, variants]).any(axis=0)
    return table.replace_schema_metadata().filter(pa.array(is_current))


def predictions_in_table(
    predictions: pa.Table, images: EvalImages, variants: Iterable[VariantName], rules: Sequence[str]
) -> ModelPredictions:
    """Sorts a model's valid predictions by label rule and variant, replicates included.

    A variant is missing if one of the label rules lacks an image. Raises JobError if a background
    is not in the index.
    """
    foregrounds = images.positions(predictions["fg_key"])
    backgrounds = _positions(predictions["bg_key"], images.background_keys)
    is_unknown = pc.is_null(predictions["bg_key"]).to_numpy()
    predicted = predictions["prediction"].to_numpy().astype(np.int16)
    rule_codes, rules_of_rows = _codes(predictions["label_rule"])
    variant_codes, variants_of_rows = _codes(predictions["variant"])
    by_rule = {rule: Predictions(images.labels, {}, {}, {}) for rule in rules}
    missing = []
    for variant in variants:
        is_variant = variants_of_rows == variant_codes.get(str(variant), -1)
        rows_by_rule = [
            np.flatnonzero(is_variant & (rules_of_rows == rule_codes.get(rule, -1)))
            for rule in rules
        ]
        expected = np.arange(len(images.keys))
        if not all(np.array_equal(np.sort(foregrounds[rows]), expected) for rows in rows_by_rule):
            missing.append(variant)
            continue
        for result, rows in zip(by_rule.values(), rows_by_rule, strict=True):
            rows = rows[np.argsort(foregrounds[rows])]
            result.predicted[variant] = predicted[rows]
            if variant.is_mixed:
                positions, unknown = backgrounds[rows], is_unknown[rows]
                if (positions[~unknown] < 0).any():
                    raise JobError(f"{variant} has backgrounds that are not in the index")
                bg_labels = np.where(unknown, OUTSIDE, images.background_labels[positions])
                result.bg_labels[variant] = bg_labels.astype(np.int16)
                units = images.background_units[positions]
                units[unknown] = _other_units(predictions, rows[unknown])
                result.bg_units[variant] = units
            elif variant.has_draws or not is_unknown[rows].all():
                positions, others = backgrounds[rows], _other_units(predictions, rows)
                is_image = (positions >= 0) & (variant.base != EXTERNAL)
                units = np.where(is_image, images.background_units[positions], others)
                result.bg_units[variant] = units
    devices = tuple(sorted(filter(None, pc.unique(predictions["device"]).to_pylist())))
    unanswered = (predictions["output"].to_numpy() == NO_ANSWER).sum() // len(rules)
    return ModelPredictions(by_rule, tuple(missing), devices, int(unanswered))


def _other_units(predictions: pa.Table, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns negative units for backgrounds that are not images of the dataset: (len(rows),).

    Pictures with the same scene share a number, and each picture without a key has a number of its
    own. Numbers are hashes, so that they are the same for all models.
    """
    table = predictions.select(["bg_key", "variant", "fg_key"]).take(rows)
    names = (
        f"{variant}\0{fg_key}" if bg_key is None else bg_key
        for bg_key, variant, fg_key in zip(*(c.to_pylist() for c in table.columns), strict=True)
    )
    return -1 - (keyed_hashes(0, "unit", names) >> np.uint64(1)).astype(np.int64)


def _codes(column: pa.ChunkedArray) -> tuple[dict[str, int], NDArray[np.int32]]:
    """Returns (the code of each value of a dictionary column, the code of each row)."""
    array = column.combine_chunks()
    codes = {value: code for code, value in enumerate(array.dictionary.to_pylist())}
    return codes, np.asarray(array.indices.to_numpy())
