"""Dataflow jobs: their identity, and whether they have ended.

A job is identified by project, region and name, which are known before it is submitted, as its id
is not. Names of running jobs in a region differ.
"""

import logging
from collections.abc import Mapping
from typing import Any

from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

RUNNER = "DataflowRunner"
_LOG = logging.getLogger(__name__)
_FINAL_STATES = ("DONE", "FAILED", "CANCELLED", "UPDATED", "DRAINED")
_TIMEOUT_SECONDS = 60.0
"""How long the service may take to respond."""


def is_dataflow(runner: str | None) -> bool:
    """Returns whether `--runner` names Dataflow."""
    return (runner or "").rpartition(".")[2].lower() in (RUNNER.lower(), "dataflow")


def job_of(options: PipelineOptions) -> dict[str, str]:
    """Returns the identity of the job that these options submit, as a lock records it."""
    google = options.view_as(GoogleCloudOptions)
    job = {name: str(getattr(google, name)) for name in ("project", "region", "job_name")}
    endpoint = google.dataflow_endpoint
    if endpoint and endpoint != GoogleCloudOptions.DATAFLOW_ENDPOINT:
        job["endpoint"] = str(endpoint)
    return job


def is_over(job: Mapping[str, Any]) -> bool:
    """Returns whether a job is known to have ended, successfully or not.

    If `job_id` has been added to the identity, only that job is checked, otherwise all jobs of that
    name. False also if the service does not respond, or has forgotten the job, as it does after a
    while.
    """
    try:
        from google.cloud import dataflow_v1beta3 as dataflow  # Takes a second to import.

        client = dataflow.JobsV1Beta3Client(
            # REST is the only transport that accepts an address with http.
            transport="rest",
            client_options={
                "api_endpoint": job.get("endpoint", GoogleCloudOptions.DATAFLOW_ENDPOINT)
            },
        )
        scope = {"project_id": job["project"], "location": job["region"]}
        if "job_id" in job:
            get_request = dataflow.GetJobRequest(**scope, job_id=job["job_id"])
            jobs = [client.get_job(get_request, timeout=_TIMEOUT_SECONDS)]
        else:
            list_request = dataflow.ListJobsRequest(**scope, name=job["job_name"])
            listed = client.list_jobs(list_request, timeout=_TIMEOUT_SECONDS)
            jobs = [each for each in listed if each.name == job["job_name"]]
        final = [getattr(dataflow.JobState, f"JOB_STATE_{state}") for state in _FINAL_STATES]
        return bool(jobs) and all(each.current_state in final for each in jobs)
    except Exception as error:  # Libraries raise many errors for an unreachable service.
        _LOG.warning("%s: %s", type(error).__name__, error)
        return False
