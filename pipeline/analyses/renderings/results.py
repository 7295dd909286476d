"""Results of the renderings: BG-Gap in each of them.

results/<model>/method/<split>-NNNNN.parquet   predictions in all renderings
results/<model>/method.json                    the model, and its rows
results/method.csv, results/latex/method.tex   tables of all models
"""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import UNSET, Meta, Struct

from pipeline.dataset.folder import Dataset, selected_rows
from pipeline.display.table import Cell
from pipeline.errors import JobError
from pipeline.evaluate.comparisons import Pictures
from pipeline.evaluate.predictions import (
    COLUMNS,
    EvalImages,
    paired_draws,
    predictions_in_table,
    read_current_results,
)
from pipeline.evaluate.results import (
    ModelRun,
    OfModel,
    PicturesResult,
    RunColumns,
    RunSettings,
    Table,
    pick,
)
from pipeline.storage.state_files import read_table
from pipeline.storage.store import Store
from transforms.analysis import compare_gaps, sd_of_draws, thirds
from transforms.intervals import CONFIDENCE, Estimate, Floats, estimate_of
from transforms.renderings import AGAINST, COMMON, GAPS, PAPER_RENDERING
from transforms.scoring import LABEL_RULES
from transforms.variants import BG_GAP, VariantName, with_replicates

PAIRS = ("mixed_same", "mixed_rand")
"""The variants whose accuracies BG-Gap compares."""
HOLES = ("all", "small", "medium", "large")
"""All pictures, and thirds of them by the share that the background's box covers."""


class RenderingRow(Struct, frozen=True, kw_only=True):
    """A rendering, on all pictures or on a third of them.

    The difference is that of the gap from the paper's method on the same pairs, and for `AGAINST`
    from `COMMON`; the rows of `PAPER_RENDERING` and `COMMON` have none.
    """

    label_rule: str
    rendering: Annotated[
        str,
        Meta(
            description="`paper`, the [rendering](variants.md#renderings), or with `--against`: "
            "`common` for the images that both datasets have, `against` for the other dataset's "
            "pictures of them"
        ),
    ]
    of: Annotated[
        str,
        Meta(
            description="entry of the fill with its version, if it is your own; for `common` and "
            "`against` the fingerprint of the other dataset; else empty"
        ),
    ]
    hole: Annotated[
        str,
        Meta(
            description="`all` pictures, or the third of them in which the box of the background "
            "is `small`, `medium` or `large`"
        ),
    ]
    hole_low: Annotated[
        float | None,
        Meta(
            description="least share of these pictures that the background's box covers; empty for "
            "`against`, whose boxes may be others"
        ),
    ]
    hole_high: Annotated[
        float | None, Meta(description="greatest share that it covers, in the same way")
    ]
    mixed_same: Annotated[float, Meta(description="accuracy on `mixed_same` in this rendering")]
    mixed_rand: Annotated[float, Meta(description="accuracy on `mixed_rand` in this rendering")]
    gap: Annotated[float, Meta(description="`mixed_same` - `mixed_rand`")]
    ci_low: float
    ci_high: float
    difference: Annotated[
        float | None,
        Meta(
            description="gap - that of the paper's method on the same pairs; for `against`, gap - "
            "that of `common`"
        ),
    ] = None
    difference_low: Annotated[
        float | None, Meta(description="lower end of the 95 % interval of `difference`")
    ] = None
    difference_high: Annotated[
        float | None, Meta(description="upper end of the 95 % interval of `difference`")
    ] = None
    p_adjusted: Annotated[
        float | None,
        Meta(description="p value of the difference, with Holm's adjustment for all renderings"),
    ] = None
    replicates: int
    seed_sd: float | None
    pictures: int

    @property
    def title(self) -> str:
        """Names what was rendered, so that results under one title can be compared."""
        # At the head of a narrow column, words stand below each other.
        return (
            self.of.partition("python:")[2].replace(":", " ")
            or f"{self.rendering} {self.of[:12]}".strip()
        )

    @property
    def cell(self) -> Cell:
        """The difference, or the gap if it is one of `GAPS`, with its interval."""
        gap = self.gap, self.ci_low, self.ci_high
        return Cell(
            *(gap if self.rendering in GAPS else self.compared or gap),
            is_starred=self.p_adjusted is not None and self.p_adjusted < 1 - CONFIDENCE,
        )

    @property
    def compared(self) -> Estimate | None:
        """The difference with its interval; None if there is none."""
        return estimate_of(self.difference, self.difference_low, self.difference_high)


class RenderingsResult(PicturesResult, frozen=True, kw_only=True):
    """method.json: BG-Gap of a model in all renderings."""

    rows: tuple[RenderingRow, ...]

    @property
    def own_rows(self) -> tuple[RenderingRow, ...]:
        """The rows of the dataset's own pictures, without `--against`."""
        return tuple(row for row in self.rows if row.rendering not in GAPS[1:])

    @property
    def headline(self) -> dict[str, RenderingRow]:
        """By title, each rendering's row on all pictures, under the first label rule."""
        return {
            row.title: row
            for row in self.rows
            if (row.label_rule, row.hole) == (self.rows[0].label_rule, HOLES[0])
        }

    @property
    def against_text(self) -> str:
        """What `COMMON` and `AGAINST` of the model are of; "" without them."""
        return next(
            (
                f"{self.name}: common, against: BG-Gap of this dataset and of {row.of[:12]}, in "
                f"the same pairs of the {row.pictures // (2 * row.replicates)} images that both "
                "have"
                for row in self.rows
                if row.rendering == COMMON
            ),
            "",
        )


RENDERINGS_TABLE = Table(
    "method",
    (OfModel, RenderingRow, RunColumns),
    "BG-Gap of a model, or of the mean of all, in a rendering, with two-way intervals: "
    "[method](method.md)",
)


def stored_pairs(dataset: Dataset) -> tuple[VariantName, ...]:
    """Returns the stored variants that results depend on: `PAIRS` in all draws and renderings."""
    return tuple(name for name in dataset.variants if name.base in PAIRS)


def read_renderings(dataset: Dataset) -> tuple[list[RenderingsResult], list[str]]:
    """Reads method.json of all models: (results on the present pictures, names of other models)."""
    return read_current_results(
        dataset, "method", RenderingsResult, lambda _: stored_pairs(dataset)
    )


@functools.lru_cache(maxsize=1)
def mean_of_models(
    dataset: Dataset, results: tuple[RenderingsResult, ...]
) -> RenderingsResult | None:
    """Computes the mean of all models; the table, the page and the closing lines of a job need it.

    Its intervals are over images alone: the models are those that were chosen, not a sample. It is
    None unless there are several models, all were run with the same settings, draws and renderings,
    and the predictions of each are those of its rows, which they are not if a later run was killed.
    """
    models = {(one.model, one.weights_sha256): one for one in reversed(results)}
    if len(models) < 2 or len({pick(RunSettings, one.evaluation) for one in models.values()}) > 1:
        return None
    compare = functools.partial(
        rendering_rows,
        dataset,
        replicates=results[0].rows[0].replicates,
        renderings={row.rendering: row.of for row in results[0].own_rows},
    )
    try:
        # This also finds models with other draws or renderings.
        if any(one.own_rows != tuple(compare([one])) for one in models.values()):
            return None
        rows = tuple(compare([*models.values()]))
    except (FileNotFoundError, KeyError, ValueError, JobError):
        return None  # Predictions are missing, or a file is damaged.
    return pick(
        RenderingsResult,
        results[0],
        model=f"mean of {len(models)} models",
        label=UNSET,
        lab=UNSET,
        weights_sha256="",
        rows=rows,
    )


def rendering_rows(
    dataset: Dataset,
    runs: Sequence[ModelRun],
    replicates: int,
    renderings: Mapping[str, str],
    keys: Iterable[str] | None = None,
) -> Iterator[RenderingRow]:
    """Compares the renderings of the same pictures, by stored predictions.

    Args:
      runs: the model; or several, whose figures are those of their mean: a picture counts with the
        share of the models that are right on it.
      renderings: for each rendering, the value of its column `of`; others are compared with the
        first.
      keys: keys of the images to use; None for all that the models were tested on.

    Yields:
      For all pictures and for each third of them by the share of the background's box, a row for
      each rendering. There are none without pictures of both variants.
    """
    tables = [_predictions_of(dataset.store, run) for run in runs]
    images = EvalImages.read(dataset, *runs[0].tested_on)
    if keys is not None:
        images = images.select(np.isin(images.keys.to_pylist(), list(keys)))
    paired = paired_draws(BG_GAP, with_replicates(PAIRS, replicates))
    first, *_ = names = [
        [
            VariantName(name.base, "" if each == PAPER_RENDERING else each, name.draw)
            for draws in zip(*paired, strict=True)
            for name in draws
        ]
        for each in renderings
    ]
    holes = _shares_of_holes(dataset, runs[0].evaluation.split, tables[0], first, images)
    models = [
        predictions_in_table(
            table, images, [name for each in names for name in each], tuple(LABEL_RULES)
        )
        for table in tables
    ]
    for rule, predictions in models[0].by_rule.items():
        draws = list(zip(first[: len(paired)], first[len(paired) :], strict=True))
        pictures = Pictures.of(draws, images, predictions.bg_units)
        shares, is_same = holes[pictures.chosen], pictures.is_first
        third_of = thirds(shares)
        # By rendering and picture.
        correct = np.mean(
            [
                [
                    np.concatenate([one.by_rule[rule].correct(name) for name in each])
                    for each in names
                ]
                for one in models
            ],
            axis=0,
        )[:, pictures.chosen]
        seed_sd = sd_of_draws(correct, is_same, pictures.draws)
        for third, hole in enumerate(HOLES, start=-1):
            chosen = (third_of == third) | (third < 0)
            if len(np.unique(is_same[chosen])) < 2:
                continue
            compared = compare_gaps(
                correct[:, chosen], is_same[chosen], pictures.roles.select(chosen)
            )
            # The first is not compared.
            columns = {
                column: [*[None] * (len(names) - len(values)), *values.tolist()]
                for column, values in compared._asdict().items()
            }
            for position, (name, of) in enumerate(renderings.items()):
                yield RenderingRow(
                    label_rule=rule,
                    rendering=name,
                    of=of,
                    hole=hole,
                    hole_low=None if name == AGAINST else float(shares[chosen].min()),
                    hole_high=None if name == AGAINST else float(shares[chosen].max()),
                    **{column: values[position] for column, values in columns.items()},
                    replicates=replicates,
                    seed_sd=None if seed_sd is None or third >= 0 else float(seed_sd[position]),
                    pictures=int(chosen.sum()),
                )


def _predictions_of(store: Store, run: ModelRun) -> pa.Table:
    # The metadata of each shard differ, and tables with different metadata do not concatenate.
    return pa.concat_tables(
        read_table(store, path, COLUMNS).replace_schema_metadata()
        for path in sorted(store.walk(f"results/{run.folder}/method"))
    ).unify_dictionaries()


def _shares_of_holes(
    dataset: Dataset,
    split: str,
    table: pa.Table,
    variants: Sequence[VariantName],
    images: EvalImages,
) -> Floats:
    """Returns the share of each picture that the box of its background covers, by variant."""
    shares = {
        row["key"]: (x1 - x0) * (y1 - y0) / dataset.manifest.config.segment.image_size**2
        for row in selected_rows(dataset, split)
        for x0, y0, x1, y1 in [row["box"]]
    }
    names = list(map(str, variants))
    share_of = {
        (row["variant"], row["fg_key"]): shares[row["bg_key"]]
        for row in table.filter(pc.is_in(table["variant"].cast(pa.string()), pa.array(names)))
        .select(["variant", "fg_key", "bg_key"])
        .to_pylist()
    }
    return np.asarray([share_of[name, key] for name in names for key in images.keys.to_pylist()])
