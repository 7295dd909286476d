"""Writes mixed pictures in the layout of Waterbirds, whose `place` is the class of a background.

Waterbirds, and with it the columns, is of Sagawa, Koh, Hashimoto and Liang 2020, "Distributionally
Robust Neural Networks for Group Shifts"; their code is `kohpangwei/group_DRO`. Split 0 is for
training, 1 for validation, 2 for the test.

Pictures have their paths in the released layout; `metadata.csv`, written last, lists them.
"""

import dataclasses
import operator
from collections import defaultdict
from collections.abc import Sequence

from pipeline.dataset.folder import Dataset, selected_rows
from pipeline.dataset.records import Row
from pipeline.errors import counted, did_you_mean, refuse_first
from pipeline.released.export import EXPORT_FOLDER, ExportPlan, exported_rows, stem_of
from pipeline.storage.state_files import csv_bytes
from pipeline.storage.store import Store
from transforms.hashing import fingerprint
from transforms.selection import held_out
from transforms.variants import ORIGINAL, VariantName, draws_of

METADATA = "metadata.csv"
_COLUMNS = ("img_id", "img_filename", "y", "split", "place", "place_filename")


def plan_waterbirds(
    dataset: Dataset,
    target: Store,
    variants: Sequence[str],
    classes: Sequence[str],
    splits: Sequence[str],
    holdout: float,
) -> list[ExportPlan]:
    """Chooses the pictures of an export; returns a plan for each split of the dataset.

    Each foreground is shown once, in the first draw of its variant whose background is, as itself,
    for training or for the test, and of one of the classes; without such a draw, it is left out.

    Args:
      variants: the mixed variant of split 0, and that of splits 1 and 2.
      classes: the two superclasses that become 0 and 1; none for all, by their labels.
      splits: the split to train on, and that to test on, which is the same with a holdout.
      holdout: share of its units that are held out for the test; 0 if the splits differ.

    Raises:
      UsageError: a variant or a class is wrong, or a split would have no pictures.
    """
    names = dataset.taxonomy.names
    mixed = [name for name, (draw, *_) in draws_of(dataset.variants).items() if draw.is_mixed]
    wrong = [name for name in variants if name not in mixed][:1]
    unknown = [name for name in classes if name not in names][:1]
    refuse_first(
        {
            "the dataset has no split val to test on; hold a part of train out: --holdout 0.5": (
                splits[0] == splits[1] and not holdout
            ),
            "--layout waterbirds needs two --variants: one of training, one of the test": (
                len(variants) != 2
            ),
            f"--variants {''.join(wrong)}: the dataset has the mixed variants "
            f"{', '.join(mixed) or '(none)'}{did_you_mean(''.join(wrong), mixed)}": bool(wrong),
            f"--classes {''.join(unknown)}: the dataset has {', '.join(names)}"
            f"{did_you_mean(''.join(unknown), names)}": bool(unknown),
            f"--classes {','.join(classes)}: name two classes": bool(classes)
            and not len(classes) == len({*classes}) == 2,
        }
    )
    numbers = {names.index(name): number for number, name in enumerate(classes or names)}
    tested = selected_rows(dataset, splits[1], holdout)
    test_keys = {row["key"] for row in tested} if holdout else set()
    trained = [row for row in selected_rows(dataset, splits[0]) if row["key"] not in test_keys]
    # Half of the share that is held out, so units stay whole.
    first_half = held_out([row.get("group") or row["key"] for row in tested], (holdout or 1) / 2)
    plans = {split: ExportPlan.of(dataset, split, target) for split in dataset.config.split}
    chosen = {split: defaultdict[VariantName, dict[str, Row]](dict) for split in plans}
    for split, variant, rows, parts in (
        (splits[0], variants[0], trained, [0] * len(trained)),
        (splits[1], variants[1], tested, (2 - first_half).tolist()),
    ):
        plan, draws = plans[split], draws_of(dataset.variants)[variant]
        pool = {row["key"]: row for row in rows if row["label"] in numbers}
        for row, part in zip(rows, parts, strict=True):
            places = ((name, pool.get(row[f"{name.pairs}_bg_key"])) for name in draws)
            name, place = next((one for one in places if one[1]), (draws[0], None))
            if place and row["key"] in pool:
                stem = stem_of(place["key"], place["wnid"], plan.clashes)
                chosen[split][name][row["key"]] = {
                    "y": numbers[row["label"]],
                    "split": part,
                    "place": numbers[place["label"]],
                    "place_filename": f"{plan.folder(ORIGINAL, place['label'])}/{stem}.JPEG",
                }
    filled = {
        row["split"] for of in chosen.values() for rows in of.values() for row in rows.values()
    }
    refuse_first(
        {
            f"no picture is left for split {part} of {METADATA}": part not in filled
            for part in range(3)
        }
    )
    return [
        dataclasses.replace(
            plan,
            variants=tuple(of),
            total=sum(map(len, of.values())),
            records=f"{EXPORT_FOLDER}/waterbirds",
            note=METADATA,
            chosen=of,
            choice=fingerprint([[str(name), rows] for name, rows in of.items()]),
        )
        for plan, of in zip(plans.values(), chosen.values(), strict=True)
    ]


def write_metadata(plans: Sequence[ExportPlan]) -> list[str]:
    """Writes `METADATA`; returns a line on each of its splits."""
    rows = sorted(
        (
            {"img_filename": row["path"]}
            | plan.chosen[VariantName.parse(row["variant"])][row["key"]]
            for plan in plans
            for row in exported_rows(plan)
        ),
        key=operator.itemgetter("split"),
    )
    numbered = ({"img_id": number, **row} for number, row in enumerate(rows, 1))
    plans[0].target.update(METADATA, csv_bytes(_COLUMNS, numbered))
    is_own = [[row["y"] == row["place"] for row in rows if row["split"] == n] for n in range(3)]
    return [
        f"split {n}: {counted(len(of), 'picture')}, {sum(of)} ({sum(of) / len(of):.1%}) on a "
        "background of their own class"
        for n, of in enumerate(is_own)
    ]
