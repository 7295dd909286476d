"""Jobs of Dataflow: what names one, and whether it is over.

A job is known by project, region and name, which workers find in their options; no two jobs
that run in a region have the same name. The job's number is known only to who submitted it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions
from apache_beam.options.value_provider import RuntimeValueProvider

RUNNER = "DataflowRunner"
_LOG = logging.getLogger(__name__)
_OVER = ("DONE", "FAILED", "CANCELLED", "UPDATED", "DRAINED")
_SECONDS = 60.0
"""How long the service may take to answer."""


def is_dataflow(runner: str | None) -> bool:
    """Whether `--runner` names Dataflow."""
    return (runner or "").rpartition(".")[2].lower() in (RUNNER.lower(), "dataflow")


def job_of(options: PipelineOptions) -> dict[str, str]:
    """The job that these options submit, as locks name it."""
    google = options.view_as(GoogleCloudOptions)
    return _job(lambda name: getattr(google, name))


def this_job() -> dict[str, str] | None:
    """The job that this process is a worker of; None if it is none of Dataflow's."""
    options: Mapping[str, Any] = RuntimeValueProvider.runtime_options or {}
    return _job(options.get) if is_dataflow(options.get("runner")) else None


def _job(option: Callable[[str], Any]) -> dict[str, str]:
    job = {name: str(option(name)) for name in ("project", "region", "job_name")}
    endpoint = option("dataflow_endpoint")
    if endpoint and endpoint != GoogleCloudOptions.DATAFLOW_ENDPOINT:
        job["endpoint"] = str(endpoint)
    return job


def is_over(job: Mapping[str, Any]) -> bool:
    """Whether a job has ended, whatever became of it.

    Args:
      job: of `job_of`; with `job_id`, if it is known, it is that job, else all of its name.

    Returns:
      False also for a job that the service does not know (it forgets them after a while), or
      if the service does not answer.
    """
    try:
        return _is_over(job)
    except Exception as error:  # Whatever libraries raise for a service out of reach.
        _LOG.warning("%s: %s", type(error).__name__, error)
        return False


def _is_over(job: Mapping[str, Any]) -> bool:
    from google.cloud import dataflow_v1beta3 as dataflow  # Takes a second to import.

    client = dataflow.JobsV1Beta3Client(
        # The only transport that takes an address with http.
        transport="rest",
        client_options={"api_endpoint": job.get("endpoint", GoogleCloudOptions.DATAFLOW_ENDPOINT)},
    )
    place = {"project_id": job["project"], "location": job["region"]}
    if "job_id" in job:
        request = dataflow.GetJobRequest(**place, job_id=job["job_id"])
        found = [client.get_job(request, timeout=_SECONDS)]
    else:
        named = dataflow.ListJobsRequest(**place, name=job["job_name"])
        jobs = client.list_jobs(named, timeout=_SECONDS)
        found = [other for other in jobs if other.name == job["job_name"]]
    over = [getattr(dataflow.JobState, f"JOB_STATE_{state}") for state in _OVER]
    return bool(found) and all(other.current_state in over for other in found)


def console_address(job: Mapping[str, str], job_id: str) -> str:
    """Where a person watches a job."""
    return (
        f"https://console.cloud.google.com/dataflow/jobs/{job['region']}/{job_id}"
        f"?project={job['project']}"
    )
