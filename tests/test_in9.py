"""Tests `in9`, the module that users import: reading, and the stages in a custom Beam pipeline."""

import sys
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor
from runs import keys, manifest_of, run_in9, run_program, run_python, stamps
from soundness import assert_sound

import in9
from pipeline.errors import UsageError
from pipeline.evaluate.model_stage import MakeBlocks
from pipeline.runtime.lock import DATASET_LOCK

RUNNER = "FnApiRunner"
HOW = {"segmenter": "box", "image_size": 32, "resize": 32, "variants": ["original", "mixed_rand"]}


def test_names_are_loaded_when_they_are_asked_for() -> None:
    assert dir(in9) == sorted(in9.__all__)
    assert all(hasattr(in9, name) for name in in9.__all__)
    with pytest.raises(AttributeError, match="'in9' has no attribute 'generate'"):
        in9.generate  # noqa: B018
    code = (
        "import sys, in9\n"
        "heavy = {'apache_beam', 'numpy', 'pyarrow', 'torch'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "in9.Generate\n"
        "print('apache_beam' in sys.modules, 'torch' in sys.modules)\n"
    )
    assert run_python(code).stdout == "[]\nTrue False\n"


def test_a_pipeline_of_ones_own_makes_what_the_command_makes(
    small_sample: Path, tmp_path: Path
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    flags = ("--segmenter", "box", "--image_size", 32, *keys(resize=32))
    run = ("run", "--output", theirs, "--input", small_sample, *flags)
    run_in9(*run, "--variants", "original,mixed_rand", "--models", "python:tiny_models:first")
    generate = in9.Generate(ours, input=small_sample, own_background=False, **HOW)
    with beam.Pipeline(RUNNER) as pipeline:
        begun = pipeline | beam.Create(["something of one's own"])
        evaluate = in9.Evaluate(generate, models=["python:tiny_models:first"], batch_size=32)
        done = begun | generate | evaluate
        done | beam.combiners.ToList() | beam.io.WriteToText(str(tmp_path / "said"))
    (file,) = tmp_path.glob("said*")
    assert file.read_text() == f"{[manifest_of(ours)['fingerprint']]}\n"
    assert manifest_of(ours) == manifest_of(theirs)
    assert_sound(ours)
    for name in ("summary.csv", "gaps.csv", "per_class.csv"):
        assert (ours / "results" / name).read_bytes() == (theirs / "results" / name).read_bytes()
    assert (ours / "report.html").exists()
    assert not (ours / DATASET_LOCK).exists()
    assert not (ours / ".in9" / "progress").exists()
    # Nothing is left to do, for either stage alone.
    before = stamps(ours)
    for again in (
        in9.Generate(ours, input=small_sample, **HOW),
        in9.Evaluate(ours, models=["python:tiny_models:first"], batch_size=32),
    ):
        with beam.Pipeline(RUNNER) as pipeline:
            pipeline | again
    assert stamps(ours) == before


def test_flags_are_checked_as_on_the_command_line(small_sample: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for flags, why in (
        ({"ouput": "x"}, "unknown flag --ouput; did you mean --output?"),
        ({"direct_num_workers": 2}, "--direct_num_workers is no flag of a stage"),
        ({"publish": tmp_path}, "--publish is no flag of a stage"),
        ({"dask": "auto"}, "--dask is no flag of a stage"),
        ({"models": ["resnet50"]}, "--models is no flag of a stage"),
        ({"limit": "few"}, "argument --limit: invalid int value: 'few'"),
        ({"variants": ["original", "mixed_best"]}, "unknown variant 'mixed_best'"),
        ({"input": tmp_path / "nowhere"}, "is not a folder"),
    ):
        with pytest.raises(UsageError) as caught:
            in9.Generate(out, **flags)
        assert why in str(caught.value)
    generate = in9.Generate(out, input=small_sample)
    for flags, why in (
        ({"seed": 1}, "--seed is no flag of a stage"),
        ({"imagenet": tmp_path}, "--imagenet is no flag of a stage"),
        ({"models": ["resnet5O"]}, "timm has no model 'resnet5O'"),
        ({"eval_split": "test"}, "--eval_split test: the dataset has val"),
    ):
        with pytest.raises(UsageError) as caught:
            in9.Evaluate(generate, **flags)
        assert why in str(caught.value)
    with pytest.raises(UsageError, match="Make a dataset with: in9 generate"):
        in9.Evaluate(out)
    with pytest.raises(UsageError, match="apply Evaluate to the output of Generate"):
        beam.Pipeline(RUNNER) | in9.Evaluate(generate)
    assert not out.exists()


@pytest.mark.parametrize(("runner", "groups"), [(RUNNER, 1), ("PortableRunner", None)])
def test_only_a_runner_of_several_workers_gets_as_many_groups_as_the_work_fills(
    runner: str, groups: int | None, small_sample: Path, tmp_path: Path
) -> None:
    evaluate = in9.Evaluate(in9.Generate(tmp_path / "out", input=small_sample))
    pipeline = beam.Pipeline(runner)
    pipeline | beam.Create([None]) | evaluate
    steps = []

    class Visitor(PipelineVisitor):
        def visit_transform(self, step: AppliedPTransform) -> None:
            steps.append(getattr(step.transform, "fn", None))

    pipeline.visit(Visitor())
    (blocks,) = (step for step in steps if isinstance(step, MakeBlocks))
    assert blocks.work.evaluation.blocks == groups


@pytest.mark.parametrize(
    ("hidden", "layout"), [("pipeline", "{}.py"), ("transforms", "{}/__init__.py")]
)
def test_a_module_of_the_users_that_hides_ours_is_named(
    tmp_path: Path, hidden: str, layout: str
) -> None:
    path = tmp_path / layout.format(hidden)
    path.parent.mkdir(exist_ok=True)
    path.write_text("MINE = 1\n")
    for code, exit_code in (("in9.main()", 2), ("in9.open_dataset('out')", 1), ("in9.Generate", 1)):
        command = [sys.executable, "-c", f"import in9; {code}"]
        done = run_program(*command, cwd=tmp_path, code=exit_code)
        assert f"{path} hides the package {hidden!r} that in9" in done.stderr.splitlines()[-1]
