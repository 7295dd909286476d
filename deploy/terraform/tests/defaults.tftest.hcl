mock_provider "google" {}
mock_provider "time" {}

override_resource {
  target = google_service_account.worker
  values = {
    email  = "in9-worker@my-project.iam.gserviceaccount.com"
    member = "serviceAccount:in9-worker@my-project.iam.gserviceaccount.com"
    name   = "projects/my-project/serviceAccounts/in9-worker@my-project.iam.gserviceaccount.com"
  }
}

override_resource {
  target = google_service_account.scheduler
  values = {
    email  = "in9-scheduler@my-project.iam.gserviceaccount.com"
    member = "serviceAccount:in9-scheduler@my-project.iam.gserviceaccount.com"
  }
}

override_resource {
  target = google_service_account.builder
  values = {
    id     = "projects/my-project/serviceAccounts/in9-builder@my-project.iam.gserviceaccount.com"
    member = "serviceAccount:in9-builder@my-project.iam.gserviceaccount.com"
  }
}

override_resource {
  target = google_artifact_registry_repository.images
  values = {
    name = "in9"
  }
}

variables {
  project = "my-project"
  region  = "europe-west4"
  input   = "gs://my-images/imagenet"
  email   = "me@example.org"
}

run "defaults" {
  assert {
    condition     = output.dataset == "gs://my-project-in9/dataset"
    error_message = "The dataset must keep its address, on which every later run depends."
  }

  assert {
    condition = jsondecode(output.launch).launchParameter.parameters == {
      input  = "gs://my-images/imagenet"
      output = "gs://my-project-in9/dataset"
    }
    error_message = "A job must get the images and the output."
  }

  assert {
    condition     = jsondecode(output.launch).launchParameter.containerSpecGcsPath == "gs://my-project-in9-build/templates/in9.json"
    error_message = "The template must be where builds upload it."
  }

  assert {
    condition     = jsondecode(output.launch).launchParameter.environment.serviceAccountEmail == "in9-worker@my-project.iam.gserviceaccount.com"
    error_message = "Jobs must run under the workers' account."
  }

  assert {
    condition     = base64decode(one(google_cloud_scheduler_job.launch.http_target).body) == output.launch
    error_message = "The schedule must send the request that the output shows."
  }

  assert {
    condition = (
      one(google_cloud_scheduler_job.launch.http_target).uri == "https://dataflow.googleapis.com/v1b3/projects/my-project/locations/europe-west4/flexTemplates:launch" &&
      one(one(google_cloud_scheduler_job.launch.http_target).oauth_token).service_account_email == "in9-scheduler@my-project.iam.gserviceaccount.com"
    )
    error_message = "The schedule must call Dataflow under its own account."
  }

  assert {
    condition = alltrue([
      strcontains(output.build, "--region europe-west4 "),
      strcontains(output.build, "_IMAGE=europe-west4-docker.pkg.dev/my-project/in9/in9,"),
      strcontains(output.build, "_TEMPLATE=${jsondecode(output.launch).launchParameter.containerSpecGcsPath}"),
    ])
    error_message = "A build must work in the region of the rest, and upload what the schedule launches."
  }

  assert {
    condition     = keys(google_storage_bucket_iam_member.worker_reads) == ["my-images"]
    error_message = "Workers must be able to read the images' bucket."
  }

  assert {
    condition     = length(google_monitoring_alert_policy.stale) == 1
    error_message = "A missing run must be reported."
  }
}

run "who_may_write_what" {
  assert {
    condition = toset([
      for grant in google_storage_bucket_iam_member.worker : "${grant.bucket}: ${grant.role}"
      ]) == toset([
      "my-project-in9: roles/storage.objectUser",
      "my-project-in9-jobs: roles/storage.objectUser",
    ])
    error_message = "Workers must be able to write the dataset and staged files, but not the template."
  }

  assert {
    condition = (
      google_storage_bucket_iam_member.builder.bucket == "my-project-in9-build" &&
      google_storage_bucket_iam_member.builder.member == "serviceAccount:in9-builder@my-project.iam.gserviceaccount.com"
    )
    error_message = "The builder must be able to write the template."
  }

  assert {
    condition = (
      google_storage_bucket_iam_member.scheduler.bucket == "my-project-in9-build" &&
      google_storage_bucket_iam_member.scheduler.role == "roles/storage.objectViewer"
    )
    error_message = "The schedule must be able to read the template, and nothing else."
  }
}

run "publishing_elsewhere" {
  variables {
    parameters = {
      publish = "gs://my-versions/in9"
      weights = "gs://my-versions/weights"
    }
  }

  assert {
    condition = (
      google_storage_bucket_iam_member.worker["publish"].bucket == "my-versions" &&
      google_storage_bucket_iam_member.worker["publish"].role == "roles/storage.objectUser" &&
      keys(google_storage_bucket_iam_member.worker_reads) == ["my-images"]
    )
    error_message = "Workers must be able to write where versions are published."
  }
}

run "a_gpu" {
  command = plan

  variables {
    parameters   = { gpu = "nvidia-l4:g2-standard-8" }
    disk_size_gb = 50
  }
}

run "a_gpu_of_the_workers_own_machines" {
  command = plan

  variables {
    parameters   = { gpu = "nvidia-tesla-t4,count:2" }
    machine_type = "n1-standard-8"
  }
}

run "destroy_keeps_a_dataset" {
  assert {
    condition     = !google_storage_bucket.dataset.force_destroy
    error_message = "A bucket that holds a dataset must never be deleted."
  }

  assert {
    condition     = google_storage_bucket.jobs.force_destroy && google_storage_bucket.build.force_destroy
    error_message = "Files that can be recreated must not stop a destroy."
  }
}
