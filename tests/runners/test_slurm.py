"""Tests the batch script, and the job array of the documentation, on a real Slurm."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from machines import NODES, Slurm, missing, started, until
from runs import ROOT, keys, manifest_of, run_in9


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A Slurm of two nodes."""
    with started(Slurm, tmp_path_factory.mktemp("machines") / "slurm", missing()) as slurm:
        yield slurm


def is_queue_empty(slurm: Slurm) -> bool:
    """Returns whether Slurm has no job; not so if it does not answer, busy with a lost node."""
    return slurm.ask("n1", "sh", "-c", "squeue -h && echo no job is left") == "no job is left\n"


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
    # The job's certificates are gone, and so is its scheduler.
    assert not [*ROOT.glob(".in9-*")]
    until(lambda: "dask scheduler" not in slurm.ask("n1", "ps", "-eo", "args"))
