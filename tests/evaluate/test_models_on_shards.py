"""Models on shards: one in memory after another, predictions made once, gathered when all came."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow.compute as pc
import pytest
from conftest import ONE, SHARDS, TINY_MODEL, run_in9, stamps

from pipeline.dataset.folder import Dataset
from pipeline.errors import JobError, ModelError
from pipeline.evaluate.failures import FailedModel, read_failures
from pipeline.evaluate.gather import ModelShard, all_shards, write_models
from pipeline.evaluate.plan import Evaluation, model_identity
from pipeline.evaluate.resident import each_model
from pipeline.evaluate.shards import Wanted, find_predictions, predict_shard
from pipeline.evaluate.stage import Predict
from pipeline.evaluate.work import Left, RunModels
from pipeline.models import load_model
from pipeline.models.predict import PredictConfig, Predictor
from pipeline.runtime.progress import Progress
from pipeline.storage.state_files import read_table
from pipeline.storage.store import Store
from transforms.taxonomy import imagenet9

FIRST, SECOND = (f"python:tiny_models:{name}" for name in ("first", "second"))


@pytest.fixture(scope="module")
def made(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small pictures in some shards, and what FIRST says of them. Not to be changed."""
    output = tmp_path_factory.mktemp("made") / "out"
    flags = ("--segmenter", "box", "--formats", "parquet", "--image_size", 64, "--resize", 64)
    run_in9("run", "--input", small_sample, "--output", output, *flags, *SHARDS, *TINY_MODEL, *ONE)
    return output


def plan(output: Path, *models: str, **how: Any) -> Evaluation:
    store = Store(str(output))
    return Evaluation(store, models, "val", PredictConfig(), Progress.of(store), **how)


def test_a_model_that_fails_is_let_go_and_the_next_one_runs(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "counted.py").write_text(
        "import gc, torch, tiny_models\n"
        "class Own(torch.nn.Sequential): pass\n"
        "def model():\n"
        "    assert not any(type(each) is Own for each in gc.get_objects()), 'another is there'\n"
        "    made = Own(*tiny_models.first())\n"
        "    made.cycle = [made]\n"
        "    return made\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    models = ("python:counted:model", "python:tiny_models:none", FIRST)

    def work(order: int, model: Any, predictor: Predictor | None) -> Iterator[tuple[int, str]]:
        yield order, model.name
        if order == 2:
            raise ModelError("no \n memory")

    how: dict[str, Any] = {"stage": "evaluate", "on_device": True}
    orders = (0, 0, 2, 1)
    *found, missing = each_model(plan(made, *models), imagenet9(), orders, work, **how)
    failed = FailedModel(2, FIRST, FIRST, "no memory")
    assert found == [(0, models[0]), (0, models[0]), (2, FIRST), failed]
    assert isinstance(missing, FailedModel)
    assert (missing.order, missing.entry) == (1, models[1])
    assert "has no function 'none'" in missing.error


def test_predictions_are_of_what_decides_scores_and_of_nothing_else(made: Path) -> None:
    evaluation, model = plan(made, FIRST), load_model(FIRST)
    dataset = Dataset.open(evaluation.store)

    def find(model: Any = model, shard: int = 1, **how: Any) -> Wanted:
        return find_predictions(dataclasses.replace(evaluation, **how), dataset, model, shard)

    wanted = find()
    assert wanted.are_there
    assert len(set(wanted.of.values())) == len(wanted.of) == 8
    assert find(groups=3, accept_new_weights=True, allow_overlap=True) == wanted
    others = [
        *(find(load_model(SECOND)), find(shard=0), find(holdout=0.5)),
        *(find(predict=PredictConfig(batch_size=8)), find(predict=PredictConfig(precision="bf16"))),
        find(dataclasses.replace(model, weights_sha256="ab" * 32)),
    ]
    for variant in wanted.of:
        assert len({each.of[variant] for each in (wanted, *others)}) == len(others) + 1
    assert [each.are_there for each in others].count(True) == 1


def test_predictions_are_made_once_and_again_the_same(made: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(made, tmp_path / "out"))
    evaluation, model = plan(output, FIRST), load_model(FIRST)
    dataset, predictor = Dataset.open(evaluation.store), Predictor(model, evaluation.predict)

    def predict(predictor: Predictor | None) -> str | None:
        return predict_shard(evaluation, dataset, model, predictor, imagenet9(), 1)

    before = stamps(output)
    path = predict(predictor)
    assert path is not None
    assert stamps(output) == before
    (output / path).unlink()
    assert predict(None) is None
    assert predict(predictor) == path
    assert (output / path).read_bytes() == (made / path).read_bytes()
    mixed = dict(zip(*read_table(evaluation.store, path).filter(
        pc.equal(pc.field("variant"), "mixed_rand")
    ).select(["key", "bg_key"]).to_pydict().values(), strict=True))  # fmt: skip
    assert mixed == {s.key: s.fields["bg_key"] for s in dataset.samples("val", 1, "mixed_rand")}
    native = dataclasses.replace(evaluation, predict=PredictConfig(eval_input="native"))
    ours, theirs = (model_identity(model, how, dataset) for how in (evaluation, native))
    assert (ours["evaluation"], ours["weights_sha256"]) == (
        {**evaluation.how, "input_size": 64},
        model.weights_sha256,
    )
    assert theirs["evaluation"]["input_size"] == model.preprocessing.input_size
    by_shard = [evaluation.rows(dataset, shard) for shard in dataset.shards("val")]
    assert [row for rows in by_shard for row in rows] == evaluation.rows(dataset)


def test_another_variant_costs_only_its_own_pictures(small_sample: Path, tmp_path: Path) -> None:
    """And who made all at once has the same bytes."""
    grown, fresh = tmp_path / "grown", tmp_path / "fresh"
    flags = ("--input", small_sample, "--segmenter", "box", "--formats", "parquet",
             "--image_size", 64, "--resize", 64, *SHARDS, *TINY_MODEL, *ONE)  # fmt: skip
    run_in9("run", "--output", grown, "--variants", "original,mixed_same", *flags)
    more = ("--variants", "original,only_fg,mixed_same", "--overwrite", "config")
    done = run_in9("run", "--output", grown, *more, *flags)
    (images,) = re.findall(r"val: \d+ images, (\d+) accepted", done.stdout)
    assert f"{images} pictures predicted" in done.stdout
    run_in9("run", "--output", fresh, *more, *flags)
    made = [sorted(output.glob("results/*/predictions/*")) for output in (grown, fresh)]
    assert [path.read_bytes() for path in made[0]] == [path.read_bytes() for path in made[1]]
    assert len(made[0]) > 1
    assert (grown / "results/summary.csv").read_text() == (
        fresh / "results/summary.csv"
    ).read_text()


def test_looking_leaves_what_is_to_be_made(made: Path) -> None:
    work = Predict(plan(made, FIRST, SECOND), imagenet9())
    units = [*work.units(Dataset.open(Store(str(made))))]
    pairs = [(order, unit) for unit in reversed(units) for order in (1, 0)]
    before = stamps(made)
    found = list(RunModels(work, looks=True).process((4, pairs)))
    there = [each for each in found if isinstance(each, ModelShard)]
    left = [each for each in found if isinstance(each, beam.pvalue.TaggedOutput)]
    assert [(each.order, each.shard) for each in there] == [(0, unit) for unit in units]
    assert [each.value for each in left] == [(4, Left(1, unit)) for unit in units]
    assert stamps(made) == before
    assert not (made / work.evaluation.progress.folder).exists()


def test_a_model_without_all_shards_is_not_summed_up(made: Path, tmp_path: Path) -> None:
    shards = [ModelShard(0, n, '{"model": "a.tag"}', f"{n}") for n in range(3)]
    assert all_shards("a", reversed(shards), range(3), "{} of {}") == shards
    for found in (shards[1:], [*shards, shards[0]], []):
        with pytest.raises(JobError, match=f"a: {len(found)} of 3 arrived. Run the same command"):
            all_shards("a", found, range(3), "{} of {}")
    dataset = Dataset.open(Store(str(made)))
    store, written = Store(str(tmp_path)), list[list[ModelShard]]()
    evaluation = dataclasses.replace(plan(made, "a", "b"), store=store)

    def gather(*results: ModelShard | FailedModel) -> list[str]:
        how: dict[str, Any] = {"expected": range(3), "what": "{} of {}", "stage": "evaluate"}
        write_models(evaluation, dataset, results, written.append, **how)
        failures = read_failures(store, dataset.manifest.fingerprint, "evaluate")[0]
        return [failure["entry"] for failure in failures]

    of_b = [dataclasses.replace(shard, order=1) for shard in shards]
    # The same model by another entry, which is forgotten when the model succeeds.
    failed = FailedModel(0, "a=older", "a.tag", "no")
    assert gather(shards[2], failed, *of_b[::-1]) == ["a=older"]
    assert written == [of_b]
    assert gather(*of_b, *shards) == []
    assert written[1:] == [shards, of_b]
