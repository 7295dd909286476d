# Each run gives several variables a wrong value, and each of them must be refused.
mock_provider "google" {}
mock_provider "time" {}

variables {
  project = "my-project"
  region  = "europe-west4"
  input   = "gs://my-images/imagenet"
  email   = "me@example.org"
}

run "empty" {
  command = plan

  variables {
    project      = ""
    region       = ""
    build_region = ""
    name         = ""
    input        = ""
    parameters   = { "" = "1" }
    schedule     = ""
    time_zone    = ""
    machine_type = ""
    email        = ""
  }

  expect_failures = [
    var.project, var.region, var.build_region, var.name, var.input, var.parameters, var.schedule,
    var.time_zone, var.machine_type, var.email,
  ]
}

run "of_another_kind" {
  command = plan

  variables {
    project          = "123456789012"
    region           = "europe-west4-a"
    build_region     = "local"
    name             = "my-google"
    input            = "/data/imagenet"
    parameters       = { input = "gs://other-images" }
    schedule         = "sometimes"
    time_zone        = "Berlin"
    machine_type     = "t2a-standard-4"
    num_workers      = 1.5
    max_workers      = 1.5
    disk_size_gb     = 60.5
    network          = "global/networks/default"
    subnetwork       = "default"
    kms_key          = "in9"
    email            = "nobody"
    stale_after_days = 1.5
  }

  expect_failures = [
    var.project, var.region, var.build_region, var.name, var.input, var.parameters, var.schedule,
    var.time_zone, var.machine_type, var.num_workers, var.max_workers, var.disk_size_gb, var.network,
    var.subnetwork, var.kms_key, var.email, var.stale_after_days,
  ]
}

run "too_little" {
  command = plan

  variables {
    project          = "tiny"
    region           = "EU"
    name             = "in"
    input            = "gs://"
    parameters       = { weights = "gs://" }
    schedule         = "0 3 1 *"
    machine_type     = "n2"
    num_workers      = 0
    max_workers      = 0
    disk_size_gb     = 25
    subnetwork       = "regions/europe-west4"
    email            = "me@example"
    stale_after_days = -1
  }

  expect_failures = [
    var.project, var.region, var.name, var.input, var.parameters, var.schedule, var.machine_type,
    var.num_workers, var.max_workers, var.disk_size_gb, var.subnetwork, var.email,
    var.stale_after_days,
  ]
}

run "too_much" {
  command = plan

  variables {
    project          = "a-project-with-a-name-beyond-all"
    region           = "europe-west4,europe-west1"
    name             = "a-name-of-21-letters-"
    input            = "gs:///imagenet"
    parameters       = { output = "gs://my-other/dataset" }
    schedule         = "0 24 1 * *"
    time_zone        = "UTC+2"
    disk_size_gb     = 65537
    email            = "me@example.org, you@example.org"
    stale_after_days = 42
  }

  expect_failures = [
    var.project, var.region, var.name, var.input, var.parameters, var.schedule, var.time_zone,
    var.disk_size_gb, var.email, var.stale_after_days,
  ]
}

run "flags_with_dashes" {
  command = plan

  variables {
    parameters = { "--models" = "resnet50" }
    schedule   = "0  3 1 * *"
    name       = "In9"
  }

  expect_failures = [var.parameters, var.schedule, var.name]
}

run "a_plan_instead_of_a_run" {
  command = plan

  variables {
    parameters = { dry_run = "true" }
    schedule   = "0 3 0 * *"
  }

  expect_failures = [var.parameters, var.schedule]
}

run "a_variable_as_a_parameter" {
  command = plan

  variables {
    parameters = { network = "mine" }
    schedule   = "0 3 1 13 *"
  }

  expect_failures = [var.parameters, var.schedule]
}

run "one_of_two_places_without_a_bucket" {
  command = plan

  variables {
    parameters = { models = "resnet50=gs://checkpoints/a.pt,onnx:gs:///b.onnx" }
    schedule   = "0 3 * * FOO"
  }

  expect_failures = [var.parameters, var.schedule]
}

run "no_value" {
  command = plan

  variables {
    parameters = { models = null }
    schedule   = "0 3 1 first *"
  }

  expect_failures = [var.parameters, var.schedule]
}

run "a_subnetwork_of_another_region" {
  command = plan

  variables {
    subnetwork = "regions/us-central1/subnetworks/workers"
  }

  expect_failures = [google_cloud_scheduler_job.launch]
}

run "a_key_of_another_region" {
  command = plan

  variables {
    kms_key = "projects/keys/locations/us-central1/keyRings/jobs/cryptoKeys/in9"
  }

  expect_failures = [google_cloud_scheduler_job.launch]
}

run "a_disk_without_room_for_a_gpus_image" {
  command = plan

  variables {
    parameters   = { gpu = "nvidia-l4:g2-standard-8" }
    disk_size_gb = 49
  }

  expect_failures = [google_cloud_scheduler_job.launch]
}

run "a_gpu_in_a_machine_that_cannot_have_it" {
  command = plan

  variables {
    parameters = { gpu = "nvidia-l4,install-nvidia-driver:5xx" }
  }

  expect_failures = [google_cloud_scheduler_job.launch]
}

run "publishing_where_files_are_temporary" {
  command = plan

  variables {
    parameters = { publish = "gs://my-project-in9-jobs/published" }
  }

  expect_failures = [google_cloud_scheduler_job.launch]
}

run "more_workers_than_there_may_be" {
  command = plan

  variables {
    num_workers = 21
  }

  expect_failures = [google_cloud_scheduler_job.launch]
}
