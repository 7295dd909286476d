"""Tests the batch script, and the job array of the documentation, on a real Slurm."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from machines import NODES, Slurm, missing, started, until
from runs import ROOT, keys, manifest_of, run_in9, table_of
from small_models import checkpoint


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A Slurm of two nodes."""
    with started(Slurm, tmp_path_factory.mktemp("machines") / "slurm", missing()) as slurm:
        yield slurm


def is_queue_empty(slurm: Slurm) -> bool:
    """Returns whether Slurm has no job; not so if it does not answer, busy with a lost node."""
    return slurm.ask("n1", "sh", "-c", "squeue -h && echo no job is left") == "no job is left\n"


def test_a_job_array_of_a_seed_a_task_ends_with_the_family(
    for_gaps: Path, tmp_path: Path, slurm: Slurm
) -> None:
    out = Path(shutil.copytree(for_gaps, tmp_path / "out"))
    entries = [checkpoint(tmp_path / f"{seed}.pth", seed=seed) for seed in (0, 1, 2)]
    listed = (f"erm#{seed}:={entry}\n" for seed, entry in enumerate(entries))
    (tmp_path / "models.txt").write_text("".join(listed))
    page = (ROOT / "docs" / "models.md").read_text()
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", page, re.DOTALL)
    for documented, here in (
        ("--dataset /scratch/in9", f"--dataset {out} --direct_num_workers=1"),
        (" --weights /scratch/weights --device cuda", ""),
        ("--gres=gpu:1 --cpus-per-task=8", "--cpus-per-task=1 --mem=2G"),
    ):
        assert documented in script
        script = script.replace(documented, here)
    (tmp_path / "evaluate.sh").write_text(script)
    where = (f"--chdir={tmp_path}", f"--output={tmp_path}/%a.log")
    assert slurm.ask("n1", "sbatch", "--array=0-2", *where, tmp_path / "evaluate.sh")
    until(lambda: is_queue_empty(slurm), 400)
    logs = "\n".join(log.read_text() for log in sorted(tmp_path.glob("?.log")))
    rows = table_of(out, "families")
    assert {row["members"] for row in rows} == {"erm#0; erm#1; erm#2"}, logs
    assert {"original", "mixed_rand", "bg_gap"} <= {row["variant"] for row in rows}
    assert all(row["ci_low"] for row in rows)


def test_a_job_of_slurm_that_is_cancelled_and_loses_a_node(
    small_sample: Path, tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This test comes last, because it takes a node away.
    flags = ("generate", "--input", small_sample, *keys(images_per_shard=2))
    flags = (*flags, "--segmenter", "python:sleeping:segment", "--output")
    out, log, meet = tmp_path / "out", tmp_path / "job.log", tmp_path / "meet"
    meet.mkdir()
    # So both nodes are at work when one of them goes.
    slurm.environment |= {"IN9_TEST_SLEEP": "0.1", "IN9_TEST_MEET": str(meet)}
    # Dask notices after so long that a machine is gone.
    slurm.environment["DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP"] = "12s"
    submit = ("sbatch", "--ntasks=2", "--ntasks-per-node=1", f"--output={log}")
    submit = (*submit, ROOT / "deploy" / "slurm" / "in9.sbatch", *flags, out)
    assert slurm.ask("n1", *submit)
    until(lambda: [*out.rglob("*.parquet")], 180)
    slurm.ask("n1", "scancel", "--name=in9")
    until(lambda: is_queue_empty(slurm), 180)
    assert "in9.sbatch: cancelled" in log.read_text()
    for node in meet.iterdir():
        node.unlink()
    assert slurm.ask("n1", *submit)
    until(lambda: len(os.listdir(meet)) == len(NODES), 180)
    slurm.take_away("n2")
    until(lambda: is_queue_empty(slurm), 180)
    monkeypatch.setenv("IN9_TEST_SLEEP", "0")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'support'}")
    run_in9(*flags, tmp_path / "here")
    assert (out / "manifest.json").exists(), log.read_text()
    assert manifest_of(out) == manifest_of(tmp_path / "here"), log.read_text()
    # The job's certificates are gone.
    assert not [*ROOT.glob(".in9-*")]
