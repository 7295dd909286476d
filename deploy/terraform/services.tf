# Two of these must be on before the first apply (docs/deploy.md): enabling goes through
# serviceusage, and whether it went well is read through cloudresourcemanager.
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
  # Others in the project may use them.
  disable_on_destroy = false
}

# An API takes effect some time after it is said to be on; until then it refuses (403). Whatever
# is made by one of them depends on this.
resource "time_sleep" "services" {
  create_duration = "60s"

  # Another service: another wait.
  triggers = {
    services = join(" ", [for used in google_project_service.used : used.service])
  }
}
