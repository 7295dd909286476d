locals {
  # The buckets that jobs write to. That of `publish` may be the dataset's.
  write_buckets = merge(
    {
      for bucket in flatten(regexall("^gs://([a-z0-9][a-z0-9._-]+[a-z0-9])", lookup(var.parameters, "publish", ""))) :
      "publish" => bucket if bucket != google_storage_bucket.dataset.name
    },
    {
      dataset = google_storage_bucket.dataset.name
      jobs    = google_storage_bucket.jobs.name
    }
  )

  # The buckets of everything else that flags name, anywhere in their values: images, lists, weights,
  # onnx:gs://..., resnet50=gs://...
  read_buckets = setsubtract(
    flatten([
      for value in concat([var.input], values(var.parameters)) :
      regexall("gs://([a-z0-9][a-z0-9._-]+[a-z0-9])", value)
    ]),
    values(local.write_buckets)
  )
}

# The account of the workers, and of the template's launcher, which Dataflow runs under it.
resource "google_service_account" "worker" {
  account_id   = "${var.name}-worker"
  display_name = "Workers and launcher of ${var.name}"

  depends_on = [time_sleep.services]
}

# dataflow.worker lets workers take work and log, dataflow.viewer tells whether the job that holds a
# lock is over, and compute.viewer lists machine types and networks. Google recommends roles/viewer for
# launchers, but that may read everything.
resource "google_project_iam_member" "worker" {
  for_each = toset(["roles/compute.viewer", "roles/dataflow.viewer", "roles/dataflow.worker"])

  project = var.project
  role    = each.value
  member  = google_service_account.worker.member
}

resource "google_storage_bucket_iam_member" "worker" {
  for_each = local.write_buckets

  bucket = each.value
  role   = "roles/storage.objectUser"
  member = google_service_account.worker.member
}

resource "google_storage_bucket_iam_member" "worker_reads" {
  for_each = local.read_buckets

  bucket = each.value
  role   = "roles/storage.objectViewer"
  member = google_service_account.worker.member
}

resource "google_artifact_registry_repository_iam_member" "worker" {
  repository = google_artifact_registry_repository.images.name
  location   = google_artifact_registry_repository.images.location
  role       = "roles/artifactregistry.reader"
  member     = google_service_account.worker.member
}

# The account of the schedule. It may create and cancel any Dataflow job of the project, but jobs that
# it creates can only run under the workers' account.
resource "google_service_account" "scheduler" {
  account_id   = "${var.name}-scheduler"
  display_name = "Launches ${var.name}"

  depends_on = [time_sleep.services]
}

# dataflow.developer is the narrowest predefined role that may create jobs. Google recommends
# compute.viewer with it, for machine types.
resource "google_project_iam_member" "scheduler" {
  for_each = toset(["roles/compute.viewer", "roles/dataflow.developer"])

  project = var.project
  role    = each.value
  member  = google_service_account.scheduler.member
}

resource "google_service_account_iam_member" "scheduler" {
  service_account_id = google_service_account.worker.name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.scheduler.member
}

resource "google_storage_bucket_iam_member" "scheduler" {
  bucket = google_storage_bucket.build.name
  role   = "roles/storage.objectViewer"
  member = google_service_account.scheduler.member
}

# The account of Cloud Build, which pushes images, uploads the template, and reads the uploaded source.
resource "google_service_account" "builder" {
  account_id   = "${var.name}-builder"
  display_name = "Builds ${var.name}"

  depends_on = [time_sleep.services]
}

resource "google_project_iam_member" "builder" {
  project = var.project
  role    = "roles/logging.logWriter"
  member  = google_service_account.builder.member
}

resource "google_storage_bucket_iam_member" "builder" {
  bucket = google_storage_bucket.build.name
  role   = "roles/storage.objectUser"
  member = google_service_account.builder.member
}

resource "google_artifact_registry_repository_iam_member" "builder" {
  repository = google_artifact_registry_repository.images.name
  location   = google_artifact_registry_repository.images.location
  role       = "roles/artifactregistry.writer"
  member     = google_service_account.builder.member
}
