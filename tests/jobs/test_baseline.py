"""Tests --baseline and --results: what models are compared with, and which folders are shown."""

import dataclasses
import itertools
import json
import os
import re
import shutil
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest
from runs import ONE, dataset_in, everything, refusal, run_here, table_of, write_all

from pipeline.analyses.evaluation.baseline import (
    choose_baseline,
    describe_baseline,
    find_baseline,
    models_named,
)
from pipeline.commands.finished import with_results
from pipeline.dataset.folder import Dataset
from pipeline.errors import UsageError
from pipeline.evaluate.results import (
    FailedModel,
    RunSettings,
    note_failures,
    pick,
    result_file,
    write_result,
)
from pipeline.evaluate.summaries import read_summaries
from pipeline.evaluate.summary import Summary
from pipeline.jobs.conditions import Gate, judge
from pipeline.jobs.fail_if import Condition
from pipeline.jobs.publish import PublishPlan, publish
from pipeline.report.write import write_tables
from pipeline.storage.store import Store
from transforms.scoring import LABEL_RULES

RULE = next(iter(LABEL_RULES))
MODELS = FIRST, SECOND, THIRD = [
    f"python:tiny_models:{name}" for name in ("first", "second", "third")
]


@pytest.fixture
def copied(three_models: Path, tmp_path: Path) -> Path:
    """A copy of `three_models` that a test may change."""
    return Path(shutil.copytree(three_models, tmp_path / "out"))


def test_models_are_compared_with_a_baseline(copied: Path) -> None:
    dataset = dataset_in(copied)
    assert table_of(copied, "baseline") == []
    gate = Gate((Condition.parse("bg_gap>baseline"),), FIRST)
    gate.choose_baseline(dataset)
    write_all(copied, "none")
    rows = table_of(copied, "baseline")
    assert list(dict.fromkeys(row["model"] for row in rows)) == [SECOND, THIRD]
    assert {(row["baseline"], row["label_rule"]) for row in rows} == {(FIRST, RULE)}
    pairs = {
        (row["first"], row["second"], row["label_rule"], row["variant"]): row
        for row in table_of(copied, "comparisons")
    }
    mirrored = {"difference": "difference", "ci_low": "ci_high", "ci_high": "ci_low"}
    for row in rows:
        pair = pairs[FIRST, row["model"], RULE, row["variant"]]
        for column, other in mirrored.items():
            assert float(row[column]) == pytest.approx(-float(pair[other]), abs=1e-12)
        # Holm's adjustment is for two models here, and for three pairs there.
        assert float(row["p_adjusted"]) <= float(pair["p_adjusted"]) + 1e-12
        assert float(row["smallest_difference"]) > 0
    line = next(describe_baseline(dataset, read_summaries(dataset)[0]))
    assert line.startswith(f"minus {FIRST}, points")
    assert [one.model for one in judge(gate, dataset)] == [SECOND, THIRD]
    assert "Differences from the baseline" in (copied / "report.html").read_text()


def test_a_baseline_that_fails_in_a_job_is_compared_with_nothing_until_it_succeeds(
    copied: Path,
) -> None:
    dataset = dataset_in(copied)
    (run,) = models_named(dataset.store, FIRST)
    settings = pick(RunSettings, run.evaluation)
    choose_baseline(dataset, FIRST, settings)
    write_tables(dataset)
    rows = table_of(copied, "baseline")
    assert rows
    notes = (dataset.store, dataset.manifest.fingerprint, "evaluate", settings)
    note_failures(*notes, [FailedModel(0, FIRST, FIRST, "no memory")], [])
    for was_run, failed, expected in ((False, True, rows), (True, True, []), (True, False, rows)):
        if not failed:
            note_failures(*notes, [], [FIRST])
        else:
            choose_baseline(dataset, FIRST, settings, was_run)
        write_tables(dataset)
        assert table_of(copied, "baseline") == expected
        line = next(describe_baseline(dataset, read_summaries(dataset)[0]))
        reason = f"{FIRST} failed: no memory"
        assert (line == f"not compared with the baseline: {reason}") == (not expected)


@pytest.fixture
def production(three_models: Path, tmp_path: Path) -> tuple[Path, Summary]:
    """A copy of the results in another folder, and the first of its models."""
    folder = Path(shutil.copytree(three_models, tmp_path / "production"))
    (first,) = [one for one in read_summaries(dataset_in(folder))[0] if "first" in one.model]
    return folder, first


def rows_with(output: Path, baseline: Path) -> list[dict[str, str]]:
    """Returns the table of differences from the results of a folder."""
    choose_baseline(dataset_in(output), str(baseline))
    write_tables(dataset_in(output))
    return table_of(output, "baseline")


def test_the_baseline_may_lie_in_another_folder(
    copied: Path, production: tuple[Path, Summary], tmp_path: Path
) -> None:
    other, first = production
    dataset, folder = dataset_in(copied), other / "results" / first.folder
    rows = rows_with(copied, folder)
    # The same model in this folder is not compared with itself, whether it is there or not.
    shutil.rmtree(copied / "results" / first.folder)
    assert rows_with(copied, folder) == rows
    assert {row["baseline"] for row in rows} == {f"{first.name} in {other}"}
    assert {row["model"] for row in rows} == {SECOND, THIRD}
    # A folder with this model alone means the same, and so does its newest published version.
    for path in (other / "results").glob("*/model.json"):
        if path.parent != folder:
            shutil.rmtree(path.parent)
    assert rows_with(copied, other) == rows
    published = tmp_path / "published"
    publish(PublishPlan(Store(str(other)), Store(str(published))))
    for row, same in zip(rows, rows_with(copied, published), strict=True):
        assert same["baseline"].startswith(f"{first.name} in {published}/v-")
        assert {**same, "baseline": row["baseline"]} == row
    # Once it is gone, nothing is compared with it, and a line says so.
    shutil.rmtree(published)
    write_tables(dataset)
    assert table_of(copied, "baseline") == []
    (line,) = describe_baseline(dataset, [])
    assert line.startswith(f"not compared with the baseline: --baseline {published}/v-")


@pytest.mark.usefixtures("no_figures")
def test_what_is_no_baseline_is_refused(
    copied: Path, production: tuple[Path, Summary], tmp_path: Path
) -> None:
    other, first = production
    report = ("report", "--dataset", copied, "--pictures", "none", "--baseline")
    several = refusal(*report, other)
    assert f"--baseline {other} means 3 models: " in several
    assert all(name in several for name in MODELS)
    # A model's results in this folder are that model.
    run_here(*report, copied / "results" / first.folder)
    assert {row["baseline"] for row in table_of(copied, "baseline")} == {first.name}
    folder = other / "results" / first.folder
    (prediction,) = (folder / "predictions").iterdir()
    prediction.write_bytes(b"no table")
    line = f"{first.name} has no predictions on these pictures"
    assert line in refusal(*report, folder)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "fingerprint": "f" * 32}))
    line = f"{other} has results on another dataset: {'f' * 12}, not "
    assert line in refusal(*report, folder)
    assert "holds no finished dataset" in refusal(*report, tmp_path)


def test_a_name_means_one_model(copied: Path) -> None:
    dataset = dataset_in(copied)
    (run,) = models_named(dataset.store, FIRST)
    # Under other settings it is another model, whose name has them.
    settings = msgspec.structs.replace(run.evaluation, precision="bf16")
    other = msgspec.structs.replace(run, evaluation=settings, entry="production")
    write_result(dataset.store, result_file(other.folder, "model"), other)
    for name in (run.name, run.folder):
        assert models_named(dataset.store, name) == [run]
    for name in (f"{FIRST} bf16", other.folder, "production"):
        assert models_named(dataset.store, name) == [other]
    with pytest.raises(UsageError, match=r"--baseline fourth names no model; known: python:tiny"):
        find_baseline(dataset, "fourth")
    # An entry that was run twice means the one with the job's settings.
    again = msgspec.structs.replace(run, entry="production")
    write_result(dataset.store, result_file(run.folder, "model"), again)
    with pytest.raises(UsageError, match=rf"means 2 models: {FIRST}, {FIRST} bf16"):
        find_baseline(dataset, "production")
    found = find_baseline(dataset, "production", pick(RunSettings, run.evaluation))
    assert [one.folder for one in found.subject.members] == [again.folder]


@pytest.mark.usefixtures("no_figures")
def test_a_job_is_judged_by_a_label_under_its_own_settings(copied: Path) -> None:
    flags = ("--dataset", copied, "--pictures", "none", "--fail_if")
    conditions = "bg_gap>baseline+1,bg_gap<=baseline+1"
    models = ("--models", f"prod:={FIRST},x:={SECOND}")
    job = ("evaluate", *flags, conditions, *models, "--holdout", 0.99, *ONE)
    # Neither is there anything of its name, nor is the baseline stored yet.
    for name in ("prod", f"prod:={FIRST}"):
        printed = run_here(*job, "--baseline", name, code=3)
        assert "--fail_if bg_gap>baseline+1 does not hold for x holdout0.99: " in printed.out
        assert "--fail_if bg_gap<=baseline+1 holds for x holdout0.99: " in printed.err
        assert " points above the baseline prod holdout0.99, 9" in printed.out
        assert "for prod holdout0.99: " not in printed.out + printed.err
        assert (
            f"not compared with the baseline: {THIRD}, as it was tested on all of split "
            "val, the baseline on split val with --holdout 0.99\n"
        ) in printed.out
    assert f"known: prod, x, {FIRST}," in refusal(*job, "--baseline", "y")
    # The choice is kept. `report` judges all models, and those of other images cannot be compared.
    kept = "the baseline prod holdout0.99, stored by an earlier command, 9"
    assert kept in run_here("report", *flags, "bg_gap>baseline+1", code=1).out
    # A model without results under these settings is known by its label, too.
    assert models_named(Store(str(copied)), "prod")[0].title == "prod"
    line = refusal("evaluate", "--dataset", copied, "--models", "prod")
    assert line.endswith(f"--models prod is the label of {FIRST}; name that")


def test_the_best_models_are_marked(three_models: Path) -> None:
    pairs = {
        (frozenset((row["first"], row["second"])), row["label_rule"], row["variant"]): row
        for row in table_of(three_models, "comparisons")
    }
    figures: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in table_of(three_models, "summary"):
        figures.setdefault((row["label_rule"], row["variant"]), []).append(row)
    for figure, rows in figures.items():
        best = max(rows, key=lambda row: float(row["accuracy"]))
        for row in rows:
            pair = pairs.get((frozenset((row["model"], best["model"])), *figure), {"p_adjusted": 1})
            is_best = str(float(pair["p_adjusted"]) >= 0.05)
            # There, the highest accuracy is that of the model which uses the background most.
            hides_object = figure[1] in ("only_bg_b", "only_bg_t", "no_fg")
            assert row["among_best"] == ("" if hides_object else is_best)


def test_the_same_predictions_count_once_whatever_path_leads_to_them(
    three_models: Path, tmp_path: Path
) -> None:
    own = shutil.copytree(three_models, tmp_path / "own")
    (tmp_path / "link").symlink_to(own)
    shutil.copytree(own, tmp_path / "linked files", copy_function=os.link)
    shutil.copytree(own, tmp_path / "copy")
    (tmp_path / "of links").mkdir()
    for name in ("manifest.json", "results"):
        (tmp_path / "of links" / name).symlink_to(own / name)
    dataset = dataset_in(own)
    alone, _ = read_summaries(dataset)
    folder = f"results/{alone[0].folder}"
    places = ("own", "link", "linked files", "copy", "of links", f"link/{folder}", f"copy/{folder}")
    store, lines = with_results(dataset, [str(tmp_path / name) for name in places])
    assert store.elsewhere == {}
    assert read_summaries(Dataset.open(store))[0] == alone
    for place, line in zip(places, lines, strict=True):
        models, count = ("1 model", 1) if "/" in place else ("3 models", 3)
        said = f"results: {tmp_path / place} has {models}, {count} shown already: "
        assert line == f"{said}the same predictions count once"
    # A folder without models of its own shows those of a copy, once.
    shutil.rmtree(own / "results")
    copies = [str(tmp_path / name) for name in ("copy", "linked files")]
    store, _ = with_results(dataset, copies)
    assert {place.partition("/results/")[0] for place in store.elsewhere.values()} == {copies[0]}
    assert [run.name for run in read_summaries(Dataset.open(store))[0]] == [o.name for o in alone]
    # One other byte is another result.
    (file,) = (tmp_path / "copy" / folder / "predictions").iterdir()
    pq.write_table(pq.read_table(file), file, compression="none")
    _, lines = with_results(dataset, [f"A={copies[0]}", f"B={copies[1]}"])
    assert lines[1].endswith(" has 3 models, 2 shown already: the same predictions count once")


@dataclasses.dataclass(frozen=True)
class Labs:
    """Results in several folders, of which the first shows those of the others, too.

    Attributes:
      own: has the first model alone.
      lab: has the first and the second model, from runs of its own.
      other, changed: have another dataset, and another picture.
      folders: folder in `results/` of each model, by its name.
    """

    own: Path
    lab: Path
    other: Path
    changed: Path
    folders: dict[str, str]


@pytest.fixture
def labs(three_models: Path, tmp_path: Path) -> Labs:
    own, lab, other, changed = (
        Path(shutil.copytree(three_models, tmp_path / name))
        for name in ("own", "lab", "other", "changed")
    )
    folders = {one.name: one.folder for one in read_summaries(dataset_in(own))[0]}
    first, second, third = folders.values()
    for path in (own / "results" / second, own / "results" / third, lab / "results" / third):
        shutil.rmtree(path)
    manifest = json.loads((own / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "fingerprint": "f" * 32}))
    (file,) = [one for one in manifest["files"] if one["path"].startswith("parquet/original/")]
    file["sha256"] = "0" * 64
    (changed / "manifest.json").write_text(json.dumps(manifest))
    # The lab has the same answers as from a run of its own.
    (file,) = (lab / "results" / first / "predictions").iterdir()
    pq.write_table(pq.read_table(file), file, compression="none")
    return Labs(own, lab, other, changed, folders)


@pytest.mark.usefixtures("empty_pdfs")
def test_models_of_other_folders_are_shown(labs: Labs, tmp_path: Path) -> None:
    own, lab, link = labs.own, labs.lab, tmp_path / "link"
    (first, second, _), results = labs.folders, lab / "results"
    link.symlink_to(own)
    report = ("report", "--dataset", own, "--pictures", "none", "--results")
    watched = (lab, own / "results" / labs.folders[first])
    before = [everything(path) for path in watched]
    assert f"--results: {tmp_path} holds no finished dataset" in refusal(*report, tmp_path)
    # One folder means all of its models, or the model whose folder it is.
    others = f"A lab={results / labs.folders[first]},A lab={lab},{link},{labs.other},{labs.changed}"
    conditions = ("--baseline", second, "--fail_if", "original>=baseline-1")
    printed = run_here(*report, others, *conditions, code=3)
    again = "1 shown already: the same predictions count once"
    assert f"results: {lab} has 2 models, {again}\n" in printed.out
    assert f"results: {link} has 1 model, {again}\n" in printed.out
    other = f"\nresults: {labs.other} has results on another dataset: {'f' * 12}, not "
    assert other in printed.out
    assert f"\nresults: {labs.changed} has other pictures: 1 of " in printed.out
    # Both folders have the first model, and only the other one has the second.
    shown, rows = [first, f"{first} in A lab", second], table_of(own, "summary")
    figures = [[row["accuracy"] for row in rows if row["model"] == name] for name in shown]
    assert figures[0] == figures[1] != figures[2]
    assert len(rows) == sum(map(len, figures))
    pairs = {frozenset((row["first"], row["second"])) for row in table_of(own, "comparisons")}
    assert pairs == {frozenset(pair) for pair in itertools.combinations(shown, 2)}
    for name in shown[:2]:
        assert f" holds for {name}: " in printed.err
        assert re.search(rf"points \w+ the baseline {second}, 9", printed.err)
    assert {row["baseline"] for row in table_of(own, "baseline")} == {second}
    page = (own / "report.html").read_text()
    assert all(name in page for name in shown)
    assert f'href="results/{labs.folders[first]}/predictions/"' in page
    assert f"results/{labs.folders[second]}" not in page
    # Nothing was copied: later commands show the folder's own models, but keep the baseline.
    write_tables(dataset_in(own))
    assert {row["model"] for row in table_of(own, "summary")} == {first}
    assert {row["baseline"] for row in table_of(own, "baseline")} == {f"{second} in {lab}"}
    assert [everything(path) for path in watched] == before
    assert len(list((own / "results").glob("*/model.json"))) == 1


@pytest.mark.usefixtures("no_figures")
def test_labs_are_named_by_their_cards_and_never_by_paths(labs: Labs) -> None:
    first, second, _ = labs.folders
    report = ("report", "--dataset", labs.own, "--pictures", "none", "--results")
    line = refusal(*report, labs.lab)
    assert f"another model is called {first}, too" in line
    assert line.endswith(f"name the lab: --results LAB={labs.lab}")
    path = labs.lab / "manifest.json"
    about = {"creator": "Vision Lab", "contact": "", "terms": ""}
    path.write_text(json.dumps({**json.loads(path.read_text()), "about": about}))
    for folder, name in ((labs.lab, "Vision Lab"), (f"Ann={labs.lab}", "Ann")):
        run_here(*report, folder)
        names = {row["model"] for row in table_of(labs.own, "summary")}
        assert names == {first, f"{first} in {name}", second}
        assert str(labs.lab) not in (labs.own / "report.html").read_text()
