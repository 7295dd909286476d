locals {
  dataset  = "gs://${google_storage_bucket.dataset.name}/dataset"
  jobs     = "gs://${google_storage_bucket.jobs.name}"
  build    = "gs://${google_storage_bucket.build.name}"
  template = "${local.build}/templates/${var.name}.json"
  image    = "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.images.name}/${var.name}"

  # Every job has the same name, and Dataflow refuses a second active job of a name, so a run that takes
  # longer than the period is not overtaken by the next one.
  launch = templatefile("${path.module}/../flex/launch.json.tmpl", {
    job_name         = var.name
    template         = local.template
    parameters       = jsonencode(merge(var.parameters, { input = var.input, output = local.dataset }))
    worker           = google_service_account.worker.email
    jobs             = local.jobs
    machine_type     = var.machine_type
    num_workers      = var.num_workers
    max_workers      = var.max_workers
    disk_size_gb     = var.disk_size_gb
    network          = var.network
    subnetwork       = var.subnetwork
    kms_key          = var.kms_key
    ip_configuration = var.public_ips ? "WORKER_IP_PUBLIC" : "WORKER_IP_PRIVATE"
  })
}

resource "google_cloud_scheduler_job" "launch" {
  name        = var.name
  description = "Launches in9 run on Dataflow."
  region      = var.region
  schedule    = var.schedule
  time_zone   = var.time_zone

  # A launch that was refused because of load is retried. Retrying one that succeeded does nothing,
  # because a job of that name is active.
  retry_config {
    retry_count          = 3
    min_backoff_duration = "60s"
  }
  attempt_deadline = "180s"

  http_target {
    http_method = "POST"
    uri         = "https://dataflow.googleapis.com/v1b3/projects/${var.project}/locations/${var.region}/flexTemplates:launch"
    headers     = { "Content-Type" = "application/json" }
    body        = base64encode(local.launch)

    oauth_token {
      service_account_email = google_service_account.scheduler.email
      scope                 = "https://www.googleapis.com/auth/cloud-platform"
    }
  }

  depends_on = [time_sleep.services]

  lifecycle {
    precondition {
      condition     = var.subnetwork == "" || can(regex("regions/${var.region}/", var.subnetwork))
      error_message = "Workers run in ${var.region}, but the subnetwork is in another region."
    }
    precondition {
      condition     = var.kms_key == "" || can(regex("/locations/(${var.region}|global)/", var.kms_key))
      error_message = "The job runs in ${var.region}, but the key is in another region."
    }
    precondition {
      condition     = var.num_workers <= var.max_workers
      error_message = "num_workers must not exceed max_workers."
    }
    precondition {
      condition     = lookup(var.parameters, "gpu", "") == "" || var.disk_size_gb >= 50
      error_message = "With a gpu in parameters, disk_size_gb must be at least 50, because the image for GPUs has to be unpacked."
    }
    precondition {
      condition     = lookup(var.parameters, "gpu", "") == "" || can(regex("^(n1|custom|g2|g4|a2|a3)-", var.machine_type)) || can(regex("^[^,]+:", var.parameters["gpu"]))
      error_message = "A gpu in parameters must name a machine that can have it, such as nvidia-l4:g2-standard-8, because machine_type cannot."
    }
    precondition {
      condition     = !can(regex("^gs://${var.project}-${var.name}-(jobs|build)(/|$)", lookup(var.parameters, "publish", "")))
      error_message = "publish must not name the buckets of jobs and of builds, whose files are temporary."
    }
  }
}
