"""Tests submission to Dataflow: what is sent, that it runs as sent, and what is refused."""

import contextlib
import dataclasses
import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apache_beam.internal import pickler
from apache_beam.portability.api import beam_runner_api_pb2
from dataflow_stub import DataflowStub, run_staged, write_credentials
from gcs import BUCKET, object_store
from runs import keys, manifest_of, run_in9

from pipeline.analyses.evaluation.parts import PlannedEvaluation
from pipeline.dataset.folder import Dataset
from pipeline.errors import JobError
from pipeline.evaluate.planned import Evaluation
from pipeline.jobs.conditions import Gate
from pipeline.jobs.fail_if import Condition
from pipeline.jobs.main_job import LAST_RUN, JobSummary, TakeLock, finish_job, manifest_state
from pipeline.models.expand import DEFAULT_MODEL
from pipeline.models.identity import PredictConfig
from pipeline.runners.dataflow import DISK_GB, Gpu
from pipeline.runtime.lock import DATASET_LOCK, acquire, is_held, is_over, release, this_process
from pipeline.runtime.progress import Progress
from pipeline.storage.store import Store

ROOT = f"gs://{BUCKET}"
IMAGE = "europe-docker.pkg.dev/p/in9/worker:1"
GPU = "nvidia-l4:g2-standard-8"
GPU_HINT = (
    "type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver:5xx;use_nvidia_mps"
)
SUBNETWORK = "regions/europe-west4/subnetworks/workers"
KEY = "projects/p/locations/europe-west4/keyRings/r/cryptoKeys/k"
TOLD = ("--project=my-project", "--region=europe-west4", f"--temp_location={ROOT}/tmp")


@dataclasses.dataclass(frozen=True)
class Cloud:
    """A bucket that holds the small input, and a Dataflow stub that records jobs."""

    bucket: Store
    dataflow: DataflowStub

    def flags(self, *arguments: object) -> list[str]:
        endpoint = f"--dataflow_endpoint={self.dataflow.url}"
        return [*map(str, arguments), "--runner=DataflowRunner", endpoint, *TOLD]

    def launch(self, command: list[str], code: int = 0) -> str:
        """Runs a command line, which ends with a code; returns its output, or its errors."""
        done = run_in9(*command, check=code)
        return done.stderr if code else done.stdout

    def read(self, path: str) -> bytes:
        return self.bucket.read(path.removeprefix(f"{ROOT}/"))


@pytest.fixture(scope="module")
def cloud(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    files = tmp_path_factory.mktemp("cloud") / "files"
    shutil.copytree(small_sample, files / "input")
    with object_store(files), DataflowStub() as dataflow, pytest.MonkeyPatch.context() as patch:
        credentials = files.with_name("credentials.json")
        write_credentials(credentials, f"{dataflow.url}/token")
        patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(credentials))
        yield Cloud(Store.at(ROOT), dataflow)


Submitted = dict[str, tuple[dict[str, Any], str]]
"""Submitted jobs by the name of their output, each with what its launcher printed."""


@pytest.fixture(scope="module")
def submitted(cloud: Cloud) -> Submitted:
    base = ("--input", f"{ROOT}/input", *keys(images_per_shard=6), f"--sdk_container_image={IMAGE}")
    workers = (*keys(gpu=GPU), "--gpus", "2", "--machine_type=n2-standard-4", "--num_workers=3")
    where = ("--network=vpc", f"--subnetwork={SUBNETWORK}", f"--dataflow_kms_key={KEY}")
    more = ("--attack", "2", "--saliency", "1", "--imagenet", f"{ROOT}/input")
    few = ("--max_num_workers=7", "--labels=team=vision", "--no_wait_until_finish")
    submitted = {}
    for command, name, flags in (
        ("run", "gpu", (*workers, *where, *more, *few)),
        ("run", "cpu", ("--no_wait_until_finish",)),
        ("generate", "out", ("--no_wait_until_finish",)),
    ):
        text = cloud.launch(cloud.flags(command, "--output", f"{ROOT}/{name}", *base, *flags))
        submitted[name] = cloud.dataflow.jobs[-1], text
    return submitted


def options_of(job: dict[str, Any]) -> dict[str, Any]:
    return dict(job["environment"]["sdkPipelineOptions"]["options"])


def test_the_recorded_job_is_what_the_flags_say(submitted: Submitted) -> None:
    job, printed = submitted["gpu"]
    assert job["labels"] == {"team": "vision", "app": "in9", "command": "run"}
    assert job["name"].startswith("in9-")
    assert f"jobs/europe-west4/{job['id']}?project=my-project" in printed
    (pool,) = job["environment"]["workerPools"]
    assert pool["autoscalingSettings"]["maxNumWorkers"] == 7
    assert (pool["numWorkers"], pool["machineType"]) == (3, "n2-standard-4")
    assert pool["diskSizeGb"] == DISK_GB
    assert (pool["network"], pool["subnetwork"]) == ("vpc", SUBNETWORK)
    assert job["environment"]["serviceKmsKeyName"] == KEY
    images = pool["sdkHarnessContainerImages"]
    # Models and everything else have an environment each, with a process for every core.
    assert [image["containerImage"] for image in images] == [IMAGE, IMAGE]
    assert all(image["useSingleCorePerContainer"] for image in images)
    options = options_of(job)
    assert options["save_main_session"] is False
    assert options["temp_location"].startswith(f"{ROOT}/tmp/{job['name']}")
    assert "serviceOptions" not in job["environment"]
    assert "no_use_multiple_sdk_containers" not in job["environment"]["experiments"]
    assert not {"minRam", "accelerator"} & set(options["resource_hints"])


def test_hints_are_on_the_steps_that_run_models_alone(cloud: Cloud, submitted: Submitted) -> None:
    """Checks also that finished work is sorted out before each of these steps, without hints."""
    job, _ = submitted["gpu"]
    staged = cloud.read(options_of(job)["pipelineUrl"])
    components = beam_runner_api_pb2.Pipeline.FromString(staged).components
    leaves = [step for step in components.transforms.values() if not step.subtransforms]
    hints = {
        step.unique_name: dict(components.environments[step.environment_id].resource_hints)
        for step in leaves
        if step.environment_id
    }
    hinted = [step for step in leaves if hints.get(step.unique_name)]
    names = {step.unique_name.partition("/ParDo")[0] for step in hinted}
    stages = ("PlannedEvaluation", "PlannedImageNet", "PlannedAttack", "PlannedSaliency")
    assert names == {f"{stage}/RunModels" for stage in stages}
    makers = {name: step for step in leaves for name in step.outputs.values()}
    for step in hinted:
        assert hints[step.unique_name] == {
            "beam:resources:accelerator:v1": GPU_HINT.encode(),
            "beam:resources:max_active_bundles_per_worker:v1": b"1",
        }
        look, urns = step, []
        while "/FindDone" not in look.unique_name:
            (look,) = (makers[name] for name in look.inputs.values())
            urns.append(look.spec.urn)
            assert hints.get(look.unique_name, {}) == {}
        # Without a shuffle between, machines with the GPU would look for finished work.
        assert "beam:transform:group_by_key:v1" in urns


def evaluation_of(cloud: Cloud, job: dict[str, Any]) -> Evaluation:
    """Returns the evaluation that a job's workers make."""
    staged = cloud.read(options_of(job)["pipelineUrl"])
    steps = beam_runner_api_pb2.Pipeline.FromString(staged).components.transforms.values()
    (step,) = (
        step
        for step in steps
        if step.unique_name.startswith("PlannedEvaluation/Blocks") and not step.subtransforms
    )
    payload = beam_runner_api_pb2.ParDoPayload.FromString(step.spec.payload)
    blocks, *_ = pickler.loads(payload.do_fn.payload)
    evaluation: Evaluation = blocks.work.evaluation
    return evaluation


def test_the_number_of_groups_is_that_of_the_flag_or_follows_from_the_work(
    cloud: Cloud, submitted: Submitted
) -> None:
    for name, groups in (("gpu", 2), ("cpu", None)):
        assert evaluation_of(cloud, submitted[name][0]).blocks == groups


def run_as_worker(cloud: Cloud, job: dict[str, Any]) -> dict[str, Any]:
    """Runs what a job has staged, as a worker does; returns what it sums up in `out`."""
    options = options_of(job)
    run_staged(cloud.read(options["pipelineUrl"]))
    summary: dict[str, Any] = json.loads(cloud.read(f"{ROOT}/out/.in9/last_run.json"))["summary"]
    return summary


@pytest.fixture(scope="module")
def summary(cloud: Cloud, submitted: Submitted) -> dict[str, Any]:
    """What the submitted job sums up after it has run on a worker."""
    return run_as_worker(cloud, submitted["out"][0])


def generate(cloud: Cloud, *flags: str, output: str = "out") -> list[str]:
    where = ("--output", f"{ROOT}/{output}", "--input", f"{ROOT}/input")
    return cloud.flags("generate", *where, *keys(images_per_shard=6), *flags)


def test_one_graph_does_the_whole_job(
    cloud: Cloud, summary: dict[str, Any], one_worker: Path
) -> None:
    manifest = json.loads(cloud.read(f"{ROOT}/out/manifest.json"))
    assert manifest == manifest_of(one_worker)
    work = "".join(cloud.bucket.walk("out/.in9"))
    assert not any(word in work for word in ("lock", "progress", "staging"))
    # A local job leaves the same summary.
    local = json.loads((one_worker / ".in9" / "last_run.json").read_text())["summary"]
    for one in (summary, local):
        assert (one["command"], one["dataset"]) == ("generate", manifest["fingerprint"])
        assert one["images"]["val"]["listed"] == 18


def test_a_job_that_was_done_finds_nothing_to_do(cloud: Cloud, summary: dict[str, Any]) -> None:
    image = f"--sdk_container_image={IMAGE}"
    cloud.launch(generate(cloud, image, "--no_wait_until_finish"))
    before = cloud.read(f"{ROOT}/out/manifest.json")
    again = run_as_worker(cloud, cloud.dataflow.jobs[-1])
    assert cloud.read(f"{ROOT}/out/manifest.json") == before
    assert (again["dataset"], again["changed"]) == (summary["dataset"], False)


@pytest.mark.usefixtures("summary")
def test_a_launcher_that_waits_prints_what_a_local_job_prints(cloud: Cloud) -> None:
    cloud.dataflow.state = "JOB_STATE_DONE"
    cloud.dataflow.counters = {"images_segmented": 18, "source_shards_made": 3}
    image = f"--sdk_container_image={IMAGE}"
    printed = cloud.launch(generate(cloud, image, "--limit=1", "--overwrite=config"))
    cloud.dataflow.state = "JOB_STATE_RUNNING"
    for said in ("val: 18 images", "done now: 18 images segmented", "in9 summary: "):
        assert said in printed


def test_a_template_is_built_and_left_to_the_service(cloud: Cloud) -> None:
    """Without an image, its workers install the package."""
    submitted = len(cloud.dataflow.jobs)
    template = f"--template_location={ROOT}/templates/job"
    assert cloud.launch(generate(cloud, template, output="flex")) == ""
    assert len(cloud.dataflow.jobs) == submitted
    built = json.loads(cloud.read(f"{ROOT}/templates/job"))
    assert built["labels"]["app"] == "in9"
    (pool,) = built["environment"]["workerPools"]
    (package,) = [p["location"] for p in pool["packages"] if p["name"] == "workflow.tar.gz"]
    sources = cloud.read(f"gs://{package.partition('/')[2]}")
    with tarfile.open(fileobj=io.BytesIO(sources)) as tar:
        files = {name.partition("/")[2] for name in tar.getnames()}
    assert files >= {"setup.py", "in9.py", "pipeline/runtime/lock.py"}
    assert "pipeline/templates/report.html" in files


def test_a_bucket_that_is_not_there_is_refused_before_the_job(cloud: Cloud) -> None:
    said = cloud.launch(generate(cloud, "--publish=gs://no-bucket/p"), code=2)
    assert "--publish gs://no-bucket/p: there is no such bucket" in said


def test_a_job_that_fails_says_why_and_leaves_no_lock(cloud: Cloud, submitted: Submitted) -> None:
    job, _ = submitted["gpu"]
    names = {"project": "my-project", "region": "europe-west4", "job_name": job["name"]}
    owner = {"dataflow": {**names, "endpoint": cloud.dataflow.url}}
    lock = json.dumps({"job": "", "owner": owner})
    cloud.bucket.write("gpu/.in9/lock", f"{'1' * 32}\n{lock}".encode())
    cloud.dataflow.later = "JOB_STATE_FAILED"
    traceback = (
        "Traceback (most recent call last):\n  File 'x.py', line 1, in process\n"
        "pipeline.errors.JobError: val: no shard arrived [while running 'Generate/Commit']\n"
    )
    cloud.dataflow.messages = [("JOB_MESSAGE_ERROR", traceback)]
    flags = ("--input", f"{ROOT}/input", f"--sdk_container_image={IMAGE}")
    command = cloud.flags("generate", "--output", f"{ROOT}/gpu", *flags)
    printed = cloud.launch(command, code=1)
    cloud.dataflow.later = None
    assert "in9 generate: the job failed: val: no shard arrived" in printed
    assert not cloud.bucket.exists("gpu/.in9/lock")


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (
            "nvidia-tesla-t4:n1-standard-8,install-nvidia-driver:580,provisioning_model:FLEX_START",
            "type:nvidia-tesla-t4;count:1;machine_type:n1-standard-8;install-nvidia-driver:580;"
            "provisioning_model:FLEX_START;use_nvidia_mps",
        ),
        # MPS is left out because it is for one GPU.
        (
            "nvidia-l4:g2-standard-24,count:2,install-nvidia-driver",
            "type:nvidia-l4;count:2;machine_type:g2-standard-24;install-nvidia-driver",
        ),
    ],
)
def test_options_of_a_gpu_are_those_of_the_hint(value: str, hint: str) -> None:
    gpu = Gpu.parse(value)
    gpu.check_machine(None)
    assert gpu.hint == hint


def test_a_lock_of_a_job_is_taken_over_only_when_it_has_ended(cloud: Cloud, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    job = {"project": "p", "region": "r", "endpoint": cloud.dataflow.url}
    known = {"id": "1", "name": "first", "currentState": "JOB_STATE_RUNNING"}
    cloud.dataflow.jobs.append(known)
    first = {"dataflow": {**job, "job_name": "first"}}
    second = {"dataflow": {**job, "job_name": "second"}}
    acquire(store, DATASET_LOCK, "1" * 32, first)
    acquire(store, DATASET_LOCK, "1" * 32, first)
    with pytest.raises(JobError, match="Dataflow job first in r is at work"):
        acquire(store, DATASET_LOCK, "2" * 32, second)
    known["currentState"] = "JOB_STATE_CANCELLED"
    acquire(store, DATASET_LOCK, "2" * 32, second)
    assert is_held(store, DATASET_LOCK, "2" * 32)
    assert not is_over(second["dataflow"])  # Dataflow knows no such job.
    assert is_over({**job, "job_id": "1"})
    assert not is_over({**job, "job_name": "first", "endpoint": "http://localhost:9"})


def test_a_job_does_not_start_on_a_dataset_that_has_changed(tmp_path: Path) -> None:
    store = Store(str(tmp_path)).for_job("1" * 32)
    owner = {"dataflow": {"project": "p", "region": "r", "job_name": "j"}}
    step = TakeLock(store, owner, manifest_state(store))
    assert list(step.process("x")) == ["x"]
    store.write("manifest.json", b"{}")
    # A repeated step finds its own lock and goes on.
    assert list(step.process("x")) == ["x"]
    release(store, DATASET_LOCK, store.job)
    with pytest.raises(JobError, match="has changed meanwhile"):
        list(step.process("x"))
    assert not is_held(store, DATASET_LOCK)


def test_a_condition_that_holds_fails_a_job_that_nobody_waits_for(
    sample_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(
        sample_run,
        tmp_path / "out",
        ignore=shutil.ignore_patterns("layers", "parquet", "webdataset"),
    )
    store = Store(str(tmp_path / "out")).for_job("1" * 32)
    progress = Progress.for_store(store)
    evaluation = Evaluation(store, (DEFAULT_MODEL,), "val", PredictConfig(), progress)
    conditions = tuple(map(Condition.parse, ("original>0.1", "original<0.1")))
    work = PlannedEvaluation(evaluation, Dataset.open(store).taxonomy)
    gate = Gate(settings=evaluation.settings, subject_of={DEFAULT_MODEL: DEFAULT_MODEL})
    ending = JobSummary(
        "run",
        store,
        progress,
        before=None,
        plans={work.stage: work},
        has_lock=True,
        is_detached=True,
        gate=dataclasses.replace(gate, conditions=conditions),
    )
    acquire(store, DATASET_LOCK, store.job, this_process())
    with pytest.raises(JobError, match=r"original>0\.1 holds for efficientnet_lite0"):
        finish_job("x", pickle.loads(pickle.dumps(ending)))
    assert not is_held(store, DATASET_LOCK)
    summary = json.loads(store.read(LAST_RUN))["summary"]
    assert summary["changed"]
    assert summary["failed"] == {}
    assert set(summary["models"][DEFAULT_MODEL]) == {"original", "bg_gap"}
    assert [one["verdict"] for one in summary["fail_if"]] == ["holds", "does not hold"]
    # An open condition fails such a job only if it is to.
    for fails in (False, True):
        open_one = (Condition.parse("bg_gap>0.05"),)
        gate = dataclasses.replace(gate, conditions=open_one, fails_if_open=fails)
        with pytest.raises(JobError) if fails else contextlib.nullcontext():
            finish_job("x", dataclasses.replace(ending, has_lock=False, gate=gate))
