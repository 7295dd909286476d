"""Tests `deploy/terraform` with Terraform itself and with stand-ins for its providers.

No cloud or registry is contacted: `terraform_provider` says where the names and types come from.
The assertions of the tests beside the configuration also hold with the real providers.
"""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hcl2
import promql_parser
import pytest
from terraform_provider import providers

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
CODE = {path.name: path.read_text() for path in sorted((DEPLOY / "terraform").glob("*.tf"))}
SERVICES = "time_sleep.services"


@pytest.fixture(scope="module")
def terraform() -> Iterator[Any]:
    """A function that runs Terraform.

    Without Terraform, tests are skipped, or fail in continuous integration.
    """
    path = shutil.which("terraform", path=f"{os.environ['PATH']}:{Path(sys.executable).parent}")
    if not path:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no terraform: scripts/test has it")
    with providers() as variables:
        environment = {**os.environ, **variables, "CHECKPOINT_DISABLE": "1"}

        def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
            command = [path, f"-chdir={folder}", *arguments]
            return subprocess.run(
                command, capture_output=True, text=True, check=False, env=environment
            )

        yield run


@pytest.fixture
def copy(terraform: Any, tmp_path: Path) -> Path:
    """A copy of the configuration after `terraform init`, without a user's own files."""
    own = shutil.ignore_patterns(".terraform*", "*.tfstate*", "*.tfvars")
    for name in ("terraform", "flex"):
        shutil.copytree(DEPLOY / name, tmp_path / name, ignore=own)
    done = terraform(tmp_path / "terraform", "init", "-no-color")
    assert done.returncode == 0, done.stderr
    return tmp_path / "terraform"


def test_files_are_formatted(terraform: Any) -> None:
    done = terraform(DEPLOY / "terraform", "fmt", "-check", "-diff", "-recursive")
    assert done.returncode == 0, done.stdout + done.stderr


def test_its_own_tests_pass(terraform: Any, copy: Path) -> None:
    done = terraform(copy, "test", "-no-color")
    assert done.returncode == 0, done.stdout + done.stderr
    runs = sum(path.read_text().count("\nrun ") for path in (copy / "tests").iterdir())
    assert runs > 10
    assert f"{runs} passed, 0 failed" in done.stdout


def test_the_example_is_accepted(terraform: Any, copy: Path) -> None:
    shutil.copy(copy / "terraform.tfvars.example", copy / "terraform.tfvars")
    (copy / "tests" / "example.tftest.hcl").write_text(
        'mock_provider "google" {}\nmock_provider "time" {}\nrun "example" { command = plan }\n'
    )
    only = "-filter=tests/example.tftest.hcl"
    done = terraform(copy, "test", "-no-color", only)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    # Terraform ignores names that no variable has.
    example = hcl2.loads((copy / "terraform.tfvars").read_text())
    names = {name for name in example if not name.startswith("__")}
    assert names <= set(blocks("variable"))


def test_the_page_names_the_version_that_is_needed() -> None:
    (version,) = re.findall(r'required_version = ">= (.*)"', CODE["versions.tf"])
    assert f"Terraform {version} or newer" in (ROOT / "docs" / "deploy.md").read_text()


@functools.cache
def blocks(kind: str) -> dict[str, Any]:
    """Returns variables and local values by name, or resources by address."""
    bodies: dict[str, Any] = {}
    for text in CODE.values():
        for block in hcl2.loads(text).get(kind, ()):
            for name, body in block.items():
                labels = body.items() if kind == "resource" else [("", body)]
                for label, inner in labels:
                    bodies[f"{name}.{label}".replace('"', "").rstrip(".")] = inner
    return {name: body for name, body in bodies.items() if "__" not in name}


def depends_on(address: str) -> set[str]:
    """Returns all resources that exist before one of them is made."""
    local = {f"local.{name}": body for name, body in blocks("locals").items()}
    bodies = blocks("resource") | local
    seen: set[str] = set()
    waiting = [address]
    while waiting:
        text = json.dumps(bodies[waiting.pop()])
        named = set(re.findall(r"\b(?:google_\w+|time_sleep|local)\.\w+", text)) & set(bodies)
        waiting.extend(named - seen)
        seen |= named
    return seen


def test_nothing_is_made_before_its_service_is_on() -> None:
    assert "google_project_service.used" in depends_on(SERVICES)
    resources = set(blocks("resource")) - {"google_project_service.used", SERVICES}
    assert len(resources) > 15
    assert not [address for address in resources if SERVICES not in depends_on(address)]


def test_accounts_may_do_what_they_need_and_no_more() -> None:
    roles = set(re.findall(r'"(roles/[^"]+)"', CODE["accounts.tf"]))
    assert roles
    assert not [role for role in roles if re.search(r"/(owner|editor|viewer)$|[aA]dmin", role)]
    # Only roles that have no narrower scope may apply to the whole project.
    for address, body in blocks("resource").items():
        if address.startswith("google_project_iam_member"):
            assert not re.search(r"storage|artifact|iam\.", json.dumps(body)), address


def test_no_rule_deletes_a_dataset_by_age() -> None:
    (rule,) = blocks("resource")["google_storage_bucket.dataset"]["lifecycle_rule"]
    assert rule["action"][0]["type"] == '"AbortIncompleteMultipartUpload"'
    (rule,) = blocks("resource")["google_storage_bucket.build"]["lifecycle_rule"]
    assert rule["condition"][0]["matches_prefix"] == ['"source/"']


def test_alerts_look_back_far_enough() -> None:
    condition = blocks("resource")["google_monitoring_alert_policy.stale"]["conditions"][0]
    query = json.loads(condition["condition_prometheus_query_language"][0]["query"])
    rendered = query.replace("${google_logging_metric.finished.name}", "in9_finished")
    rendered = rendered.replace("${var.stale_after_days}", "35")
    assert "$" not in rendered
    assert "logging_googleapis_com:user_in9_finished" in rendered
    promql_parser.parse(rendered)
    assert "[35d]" in rendered
    metric = blocks("resource")["google_logging_metric.finished"]
    assert "in9 summary: " in metric["filter"]
    for name in ("failed", "refused", "stale"):
        policy = blocks("resource")[f"google_monitoring_alert_policy.{name}"]
        assert policy["notification_channels"], name
