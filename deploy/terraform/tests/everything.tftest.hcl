mock_provider "google" {}
mock_provider "time" {}

override_resource {
  target = google_service_account.worker
  values = {
    email  = "monthly-worker@my-project.iam.gserviceaccount.com"
    member = "serviceAccount:monthly-worker@my-project.iam.gserviceaccount.com"
    name   = "projects/my-project/serviceAccounts/monthly-worker@my-project.iam.gserviceaccount.com"
  }
}

override_resource {
  target = google_service_account.scheduler
  values = {
    email  = "monthly-scheduler@my-project.iam.gserviceaccount.com"
    member = "serviceAccount:monthly-scheduler@my-project.iam.gserviceaccount.com"
  }
}

override_resource {
  target = google_service_account.builder
  values = {
    id     = "projects/my-project/serviceAccounts/monthly-builder@my-project.iam.gserviceaccount.com"
    member = "serviceAccount:monthly-builder@my-project.iam.gserviceaccount.com"
  }
}

override_resource {
  target = google_artifact_registry_repository.images
  values = {
    name = "monthly"
  }
}

variables {
  project          = "my-project"
  region           = "us-central1"
  build_region     = "global"
  name             = "monthly"
  input            = "gs://my-images"
  schedule         = "30 4,16 */2 1-6 MON-FRI"
  time_zone        = "America/Argentina/Buenos_Aires"
  machine_type     = "n2-custom-4-8192-ext"
  num_workers      = 2
  max_workers      = 3
  disk_size_gb     = 30
  subnetwork       = "https://www.googleapis.com/compute/v1/projects/host/regions/us-central1/subnetworks/workers"
  network          = "workers"
  kms_key          = "projects/keys/locations/us-central1/keyRings/jobs/cryptoKeys/in9"
  public_ips       = false
  email            = "me+alerts@mail.example.org"
  stale_after_days = 0

  parameters = {
    models         = "resnet50=gs://checkpoints/a.pt,onnx:gs://my-networks/b.onnx,resnet18"
    weights        = "gs://weights/timm"
    exclude        = "gs://lists.example.org/bad.txt"
    publish        = "gs://my-project-monthly/published"
    own_background = true
    seed           = 1
  }
}

run "everything" {
  assert {
    condition = toset(keys(google_storage_bucket_iam_member.worker_reads)) == toset([
      "checkpoints", "lists.example.org", "my-images", "my-networks", "weights",
    ])
    error_message = "Workers must be able to read every bucket that a flag names, except the one that is written."
  }

  assert {
    condition = jsondecode(output.launch).launchParameter.parameters == merge(var.parameters, {
      input  = "gs://my-images"
      output = "gs://my-project-monthly/dataset"
    })
    error_message = "A job must get the flags unchanged."
  }

  assert {
    condition = alltrue([
      for name, value in {
        serviceAccountEmail = "monthly-worker@my-project.iam.gserviceaccount.com"
        tempLocation        = "gs://my-project-monthly-jobs/temp"
        stagingLocation     = "gs://my-project-monthly-jobs/staging"
        machineType         = "n2-custom-4-8192-ext"
        numWorkers          = 2
        maxWorkers          = 3
        diskSizeGb          = 30
        network             = "workers"
        subnetwork          = var.subnetwork
        kmsKeyName          = var.kms_key
        ipConfiguration     = "WORKER_IP_PRIVATE"
      } : tostring(jsondecode(output.launch).launchParameter.environment[name]) == tostring(value)
    ])
    error_message = "Workers must be as the variables say."
  }

  assert {
    condition = (
      google_cloud_scheduler_job.launch.schedule == "30 4,16 */2 1-6 MON-FRI" &&
      google_cloud_scheduler_job.launch.time_zone == "America/Argentina/Buenos_Aires"
    )
    error_message = "The schedule must be the given one."
  }

  assert {
    condition = alltrue([
      strcontains(output.build, "--region global "),
      strcontains(output.build, "_IMAGE=us-central1-docker.pkg.dev/my-project/monthly/monthly,"),
    ])
    error_message = "A build may work elsewhere, but the image must be in the workers' region."
  }

  assert {
    condition     = length(google_monitoring_alert_policy.stale) == 0
    error_message = "There must be no alert on missing runs if none is wanted."
  }
}
