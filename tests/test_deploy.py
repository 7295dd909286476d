"""Tests the files in `deploy/` without a cloud, with the tools and clients that will read them."""

import datetime
import json
import os
import re
import runpy
import shutil
import string
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import hcl2
import pytest
import yaml
from distributed.cli import dask_scheduler, dask_worker
from google.cloud import dataflow_v1beta3
from llvmlite import binding
from packaging.requirements import Requirement
from runs import run_program

from pipeline.commands import template
from pipeline.commands.command_line import parse_command_line
from pipeline.runners.portable import CACHE_MILLIS
from transforms.grabcut import Unavailable, cache

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
TERRAFORM = DEPLOY / "terraform"
BIN = Path(sys.executable).parent

DEPLOYED = [
    DEPLOY / "attempt",
    DEPLOY / "certificates",
    DEPLOY / "entrypoint",
    DEPLOY / "lock",
    DEPLOY / "stale",
    DEPLOY / "systemd" / "alert",
]
# The other scripts source `environment`, so it is checked with them.
SCRIPTS = [
    *DEPLOYED,
    DEPLOY / "slurm" / "in9.sbatch",
    ROOT / ".ci" / "run",
    ROOT / "scripts" / "demo",
    ROOT / "scripts" / "test",
]


def test_the_schedules_request_launches_the_template() -> None:
    """Terraform's own tests say what its values are."""
    text = (DEPLOY / "flex" / "launch.json.tmpl").read_text()
    example = hcl2.loads((TERRAFORM / "terraform.tfvars.example").read_text())
    flags = {**example["parameters"], "input": example["input"], "output": "gs://bucket/out"}
    values = dict.fromkeys(re.findall(r"\$\{(\w+)\}", text), "7")
    values |= {"parameters": json.dumps(flags), "ip_configuration": "WORKER_IP_PUBLIC"}
    launch = dataflow_v1beta3.LaunchFlexTemplateRequest.from_json(
        string.Template(text).substitute(values), ignore_unknown_fields=False
    ).launch_parameter
    environment = launch.environment
    assert (launch.job_name, launch.container_spec_gcs_path) == ("7", "7")
    assert (environment.max_workers, environment.temp_location) == (7, "7/temp")
    # The service makes the same check against the template's metadata.
    known = {entry["name"]: entry["isOptional"] for entry in template.parameters()}
    required = {name for name, is_optional in known.items() if not is_optional}
    assert required <= set(launch.parameters) <= set(known)


def test_jobs_of_the_template_run_in_the_launchers_image() -> None:
    arguments = runpy.run_path(str(DEPLOY / "flex" / "main.py"))["arguments"]
    image = {"IN9_IMAGE": "in9:1"}
    assert arguments(["--limit=3"], image) == ["run", "--limit=3", "--sdk_container_image=in9:1"]
    other = ["--sdk_container_image=in9:2"]
    assert arguments(other, image) == ["run", *other]
    assert arguments([], {}) == ["run"]


def test_the_launcher_runs_the_command_line(tmp_path: Path) -> None:
    """Checks that parameters reach it, keys of the file included, and errors the log."""
    words = (f"--output={tmp_path}", "--encoding=png", "--limt=3")
    command = (sys.executable, DEPLOY / "flex" / "main.py", *words)
    done = run_program(*command, code=2, PYTHONPATH=str(ROOT), IN9_IMAGE="in9:1")
    # The launcher turns a line of JSON into an entry of the job's log, with its severity.
    (entry,) = map(json.loads, done.stderr.splitlines())
    assert entry["severity"] == "ERROR"
    assert entry["message"] == "in9 run: unknown flag --limt; did you mean --limit?"
    assert datetime.datetime.fromisoformat(entry["timestamp"]).tzinfo


def instructions() -> list[list[str]]:
    """Returns the Dockerfile's instructions, each split into words."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    return [line.split() for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def copied() -> list[str]:
    """Returns the paths that the Dockerfile copies from the repository."""
    copies = [words[1:-1] for words in instructions() if words[0] == "COPY"]
    return [path for paths in copies if not paths[0].startswith("--from") for path in paths]


def locked(*files: str) -> dict[str, Requirement]:
    """Returns the requirements that lock files pin, by name."""
    requirements = {}
    for file in files:
        text = re.sub(r"^#.*\n", "", (DEPLOY / file).read_text(), flags=re.MULTILINE)
        for line in text.replace("\\\n", " ").splitlines():
            name, *hashes = line.split()
            assert hashes, f"{file}: {name} has no digest"
            assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes)
            requirement = Requirement(name)
            assert requirement.name not in requirements
            requirements[requirement.name] = requirement
    return requirements


CPU, CUDA = "requirements.txt", "requirements-cuda.txt"


def test_the_dockerfile_is_sound() -> None:
    run_program(BIN / "hadolint", DEPLOY / "Dockerfile")
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in ignored
    for path in copied():
        assert (ROOT / path).exists(), path
        assert f"!{path}" in ignored, f"{path} is not sent to the builder"


def test_the_image_has_one_version_of_python_and_of_beam() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert set(re.findall(r"python:?(3\.?\d\d)", text)) == {"3.11", "311"}
    beam = str(locked(CPU)["apache-beam"].specifier).removeprefix("==")
    assert re.findall(r"_sdk:(\S+)", text) == [beam]


def test_the_lock_holds_what_the_package_asks_for(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith("METADATA")]
    lines = wheel.read(name).decode().splitlines()
    wanted = [Requirement(line.partition(": ")[2]) for line in lines if "Requires-Dist" in line]
    pinned = locked(CPU, CUDA)
    assert len(wanted) > 20
    for requirement in wanted:
        if "test" in str(requirement.marker):
            continue
        pin = pinned[re.sub(r"[_.]", "-", requirement.name).lower()]
        (version,) = [specifier.version for specifier in pin.specifier]
        assert requirement.specifier.contains(version), f"{requirement}: {version}"
    for name, requirement in locked("requirements-build.txt").items():
        assert pinned.get(name, requirement) == requirement
    of_cpus = (DEPLOY / "torch.txt").read_text().splitlines()
    assert [line for line in of_cpus if line[0] != "#"] == [
        str(pinned[name]) for name in ("torch", "torchvision")
    ]


def test_the_image_installs_by_digest() -> None:
    installs = re.findall(r"pip install ([^\n;&]*)", "\n".join(map(" ".join, instructions())))
    assert len(installs) == 5
    for install in installs:
        assert "--no-deps" in install
        # Only PyTorch's index of CPU builds has their digests; the package itself has none.
        if "torch.txt" not in install and not install.strip().endswith("."):
            assert "--require-hashes" in install


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The package, built from nothing but the paths that the Dockerfile copies."""
    folder = tmp_path_factory.mktemp("image")
    for path in copied():
        source, target = ROOT / path, folder / Path(path).name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    options = ("--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", folder)
    run_program(sys.executable, "-m", "pip", "wheel", *options, ".", cwd=folder)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_image_has_the_whole_package(wheel: zipfile.ZipFile) -> None:
    packed = set(wheel.namelist())
    for package in ("pipeline", "transforms"):
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert str(path.relative_to(ROOT)) in packed


@pytest.mark.parametrize(
    ("arguments", "runs"),
    [
        ("--id=1-1 --logging_endpoint=localhost:1 --provision_endpoint=localhost:2", "boot"),
        ("--logging_endpoint=localhost:1 --provision_endpoint=localhost:2", "boot"),
        ("--worker_pool", "boot"),
        ("", "python_template_launcher"),
        ("--anything=else", "python_template_launcher"),
        ("echo in9 run", "in9 run"),
    ],
)
def test_the_image_is_worker_launcher_and_command(
    tmp_path: Path, arguments: str, runs: str
) -> None:
    for name in ("apache/beam/boot", "google/dataflow/python_template_launcher"):
        program = tmp_path / name
        program.parent.mkdir(parents=True)
        program.write_text('#!/bin/sh\necho "$(basename "$0")" "$@"\n')
        program.chmod(0o755)
    entrypoint = tmp_path / "entrypoint"
    entrypoint.write_text((DEPLOY / "entrypoint").read_text().replace("/opt/", f"{tmp_path}/"))
    done = run_program("sh", entrypoint, *arguments.split())
    expected = runs if runs == "in9 run" else f"{runs} {arguments}".strip()
    assert done.stdout.strip() == expected


def test_kernels_of_the_image_serve_every_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    here, hash_of = binding.get_host_cpu_features(), cache.code_hash.__wrapped__
    more = type(here)({**here, "avx512vnni": not here.get("avx512vnni")})
    own = hash_of()
    for name, value in re.findall(r"(NUMBA_\w+)=(\S+)", (DEPLOY / "Dockerfile").read_text()):
        monkeypatch.setenv(name, value)
    pinned = hash_of()
    assert pinned != own
    monkeypatch.setattr(binding, "get_host_cpu_features", lambda: more)
    monkeypatch.setattr(binding, "get_host_cpu_name", lambda: "another")
    assert hash_of() == pinned
    # The process would end at the first instruction that the processor does not know.
    older = type(here)({**here, "fma": False})
    monkeypatch.setattr(binding, "get_host_cpu_features", lambda: older)
    with pytest.raises(Unavailable, match="lacks fma"):
        hash_of()


def test_scripts_are_sound() -> None:
    run_program(BIN / "shellcheck", "--external-sources", "--source-path=SCRIPTDIR", *SCRIPTS)
    assert all(os.access(path, os.X_OK) for path in DEPLOYED)


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ("citation-file-format", "../CITATION.cff"),
        ("github-workflows", "../.github/workflows/test.yml"),
        ("cloudbuild", "cloudbuild.yaml"),
        ("compose-spec", "flink/*.yaml"),
    ],
)
def test_yaml_is_that_of_its_schema(schema: str, path: str) -> None:
    words = ("--builtin-schema", f"vendor.{schema}", *DEPLOY.glob(path))
    run_program(BIN / "check-jsonschema", *words)


def test_kubernetes_takes_its_file_and_in9_its_flags() -> None:
    path = DEPLOY / "kubernetes" / "in9.yaml"
    run_program(BIN / "kubernetes-validate", "--strict", path)
    kinds = {each["kind"]: each for each in yaml.safe_load_all(path.read_text())}
    (container,) = kinds["Job"]["spec"]["template"]["spec"]["containers"]
    own_flags(" ".join(container["args"]))
    (scheduler,) = kinds["Job"]["spec"]["template"]["spec"]["initContainers"]
    (worker,) = kinds["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    service = kinds["Service"]
    (port,) = (each["port"] for each in service["spec"]["ports"])
    # Dask's own parsers take the flags, and all three mean the same port.
    parsed = dask_scheduler.main.make_context("scheduler", [*scheduler["args"]]).params
    assert (parsed["protocol"], parsed["port"], parsed["dashboard"]) == ("tls", str(port), False)
    parsed = dask_worker.main.make_context("worker", [*worker["args"]]).params
    assert parsed["scheduler"] == f"tls://{service['metadata']['name']}:{port}"
    assert (parsed["nthreads"], parsed["memory_limit"], parsed["dashboard"]) == (1, "0", False)
    assert f"--dask=tls://localhost:{port}" in container["args"]


def test_a_failed_job_is_tried_again_only_if_it_wrote_records(tmp_path: Path) -> None:
    command, output = tmp_path / "in9", tmp_path / "out"
    command.write_text('#!/bin/sh\nshift 4; eval "$*"\n')
    command.chmod(0o755)
    output.mkdir()

    def attempt(script: str, *where: object) -> int:
        words = ("run", *(where or ("--output", output)), "--", script)
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run([DEPLOY / "attempt", *words], env={"PATH": path}).returncode

    assert [attempt(f"exit {code}") for code in (0, 1, 2, 3)] == [0, 5, 2, 3]
    assert attempt(f"echo record > {output}/a.parquet; exit 1") == 1
    assert attempt("exit 1") == 5
    assert attempt(f"truncate --size=4G {output}/a.parquet; exit 1") == 1
    assert attempt(f"truncate --size=5G {output}/a.parquet; exit 1") == 1
    assert attempt("exit 1") == 5
    # Nobody sees these records from here.
    assert attempt("exit 1", "--config", "job.toml") == 1
    assert attempt("exit 1", "--output", "gs://bucket/out") == 1
    # A stopped job may have written records, too.
    stopped = (
        f"trap 'echo more > {output}/b.parquet; exit 1' TERM; kill $PPID; sleep 1 & wait; wait"
    )
    assert attempt(stopped) == 1


def test_cloud_build_knows_what_it_substitutes() -> None:
    text = (DEPLOY / "cloudbuild.yaml").read_text()
    used = set(re.findall(r"\$\{(\w+)\}", text)) - {"BUILD_ID"}
    assert used == set(yaml.safe_load(text)["substitutions"])


def own_flags(text: str) -> None:
    """Checks that the flags of a command `... in9 run FLAGS` are ours or Beam's."""
    words = text.split()
    parse_command_line(words[words.index("run") :])


def compose_services(**variables: str) -> dict[str, Any]:
    """Returns the services of Flink's Compose file under these variables."""
    text = (DEPLOY / "flink" / "compose.yaml").read_text()
    # The first pass replaces inner references, the second one those that contain them.
    for _ in range(2):
        text = re.sub(
            r"\$\{(\w+):-([^${}]*)\}", lambda found: variables.get(found[1], found[2]), text
        )
    services: dict[str, Any] = yaml.safe_load(text)["services"]
    return services


def test_parts_of_flink_fit_each_other() -> None:
    services = compose_services(IN9_SLOTS="8", IN9_DATA="/mine")
    flags = services["in9"]["command"].split()
    assert {"--parallelism=8", "--sdk_worker_parallelism=8"} <= set(flags)
    task_manager, workers = services["taskmanager"], services["workers"]
    for service in (task_manager, services["jobmanager"]):
        properties = yaml.safe_load(service["environment"]["FLINK_PROPERTIES"])
        assert properties["taskmanager.numberOfTaskSlots"] == 8
        # A dead machine, and dead workers that are still kept, must be forgotten before a retry.
        strategy = properties["restart-strategy.type"]
        delay = 1000 * int(
            properties[f"restart-strategy.{strategy}.initial-backoff"].split(" s")[0]
        )
        assert delay > properties["heartbeat.timeout"]
        assert delay > CACHE_MILLIS
        # Each of three lost machines takes two attempts at most.
        assert properties[f"restart-strategy.{strategy}.attempts-before-reset-backoff"] > 6
    # The settings were tried with the version of Flink for which the job server is made.
    (version,) = re.findall(r"/beam_flink([\d.]+)_job_server:", services["jobserver"]["image"])
    assert task_manager["image"].startswith(f"flink:{version}.")
    # Workers are requested at localhost, so they share a network that outlives the task manager.
    assert task_manager["network_mode"] == workers["network_mode"] == "service:node"
    # Artifacts pass between the services as files.
    (folder,) = re.findall(r"--artifacts-dir=(\S+)", " ".join(services["jobserver"]["command"]))
    assert folder.startswith("/data/")
    for name in ("taskmanager", "workers", "jobserver", "in9"):
        assert services[name]["volumes"] == ["/mine:/data"], name
    gpus = yaml.safe_load((DEPLOY / "flink" / "gpu.yaml").read_text())["services"]
    assert gpus.keys() == {"workers"}


def test_flags_that_services_pass_exist() -> None:
    variables = dict(
        line.split("=", 1)
        for line in (DEPLOY / "systemd" / "in9.env").read_text().splitlines()
        if not line.startswith("#")
    )
    service = (DEPLOY / "systemd" / "in9.service").read_text()
    (command,) = re.findall(r"^ExecStart=(.*)$", service, flags=re.MULTILINE)
    # The file is installed where the variable says, under its own name.
    installed = Path(variables["IN9_CONFIG"])
    command = command.replace("${IN9_CONFIG}", str(DEPLOY / "systemd" / installed.name))
    words = command.split()
    arguments, rest = parse_command_line(words[words.index("run") :])
    assert (arguments.input, rest) == ("/data/imagenet", [])
    own_flags(compose_services()["in9"]["command"])
    (line,) = re.findall(r"^0 3 1 \* \*  in9 .*", (ROOT / "docs" / "deploy.md").read_text(), re.M)
    own_flags(line.replace("/etc/in9.toml", str(DEPLOY / "systemd" / installed.name)))


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    for source in (DEPLOY / "systemd").glob("*.*er*"):
        text = source.read_text().replace("/opt/in9/.venv/bin/in9", str(BIN / "in9"))
        (tmp_path / source.name).write_text(text.replace("/opt/in9/deploy", str(DEPLOY)))
    service = tmp_path / "in9.service"
    assert str(BIN) in service.read_text()
    # Whatever a timer starts, somebody is told if it fails.
    calendars = []
    for timer in tmp_path.glob("*.timer"):
        calendars += re.findall(r"^OnCalendar=(.*)$", timer.read_text(), flags=re.MULTILINE)
        started = timer.with_suffix(".service").read_text()
        assert "\nOnFailure=in9-alert@%n.service\n" in started
    assert len(calendars) == 2
    assert (tmp_path / "in9-alert@.service").exists()
    if shutil.which("systemd-analyze"):
        run_program("systemd-analyze", "verify", *tmp_path.iterdir())
        run_program("systemd-analyze", "calendar", *calendars)
        # The threshold is in tenths of the exposure that docs/deploy.md gives.
        run_program("systemd-analyze", "security", "--offline=true", "--threshold=20", service)


def test_systemd_mails_what_has_failed(tmp_path: Path) -> None:
    mail = tmp_path / "mail"
    for name, code in (("systemctl", 'echo "status of $*"; exit 3'), ("sendmail", f"cat > {mail}")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{code}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    for variables, receiver in (({}, "root"), ({"IN9_MAILTO": "me@example.org"}, "me@example.org")):
        run_program(DEPLOY / "systemd" / "alert", "in9.service", PATH=path, **variables)
        header, body = mail.read_text().split("\n\n", 1)
        assert header.startswith(f"To: {receiver}\nSubject: in9.service has failed on ")
        assert re.fullmatch(r"status of status .*in9\.service\n", body)


def test_what_systemd_publishes_is_linked() -> None:
    """Tests that the folder that the page names lies where the unit may write."""
    (folder,) = re.findall(r'`publish = "(\S+)"`', (ROOT / "docs" / "deploy.md").read_text())
    service = (DEPLOY / "systemd" / "in9.service").read_text()
    (state,) = re.findall(r"^StateDirectory=(.*)$", service, flags=re.MULTILINE)
    assert "--output=%S/in9/dataset" in service
    assert Path(folder).parent == Path("/var/lib") / state


def test_a_line_says_when_no_run_has_ended_well(tmp_path: Path) -> None:
    def stale() -> int:
        command = (DEPLOY / "stale", tmp_path, "35")
        return subprocess.run(command, capture_output=True, check=False).returncode

    assert stale() == 1
    note = tmp_path / ".in9" / "last_run.json"
    note.parent.mkdir()
    note.write_text("{}")
    assert stale() == 0
    long_ago = time.time() - 36 * 24 * 3600
    os.utime(note, (long_ago, long_ago))
    assert stale() == 1
