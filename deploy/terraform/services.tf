# Two of these must be enabled before the first apply (docs/deploy.md): serviceusage enables the
# others, and cloudresourcemanager tells whether that has worked.
resource "google_project_service" "used" {
  for_each = toset([
    "artifactregistry.googleapis.com",
    "cloudbuild.googleapis.com",
    "cloudresourcemanager.googleapis.com",
    "cloudscheduler.googleapis.com",
    "compute.googleapis.com",
    "dataflow.googleapis.com",
    "iam.googleapis.com",
    "logging.googleapis.com",
    "monitoring.googleapis.com",
    "serviceusage.googleapis.com",
    "storage.googleapis.com",
  ])

  service = each.value
  # Other software in the project may use them.
  disable_on_destroy = false
}

# An API refuses requests (403) for some time after it has been enabled, so every resource that needs
# one depends on this.
resource "time_sleep" "services" {
  create_duration = "60s"

  # Waits again if another service is added.
  triggers = {
    services = join(" ", [for used in google_project_service.used : used.service])
  }
}
