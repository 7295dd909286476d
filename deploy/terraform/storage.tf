# A bucket for each who writes: the dataset and what jobs stage by workers, what builds leave by
# the builder. A condition on names of objects would not do, since listing is judged on the bucket.

# The dataset. No rule deletes by age: a shard that was written years ago is as much a part of it
# as yesterday's, and --keep removes old published versions.
resource "google_storage_bucket" "dataset" {
  name     = "${var.project}-${var.name}"
  location = var.region

  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  # `terraform destroy` stops here while anything is in it.
  force_destroy = false

  # A week to undo a deletion. Shards that a run replaces are billed for that week, too.
  soft_delete_policy {
    retention_duration_seconds = 7 * 24 * 3600
  }

  # Object versions would keep every lock and every staged shard besides.
  versioning {
    enabled = false
  }

  lifecycle_rule {
    condition {
      age = 7
    }
    action {
      type = "AbortIncompleteMultipartUpload"
    }
  }

  depends_on = [time_sleep.services]
}

# What jobs stage and leave behind. A bucket of its own, since its files come and go: kept for a
# week after deletion, they would cost more than they did.
resource "google_storage_bucket" "jobs" {
  name     = "${var.project}-${var.name}-jobs"
  location = var.region

  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  # Nothing in it outlives its job.
  force_destroy = true

  soft_delete_policy {
    retention_duration_seconds = 0
  }

  # Longer than any job runs: Dataflow reads staged files for as long as it starts workers.
  lifecycle_rule {
    condition {
      age = 30
    }
    action {
      type = "Delete"
    }
  }

  depends_on = [time_sleep.services]
}

# The template that the schedule launches, which workers must not be able to replace, and the
# source that it was built of.
resource "google_storage_bucket" "build" {
  name     = "${var.project}-${var.name}-build"
  location = var.region

  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  # A build makes all of it again.
  force_destroy = true

  soft_delete_policy {
    retention_duration_seconds = 0
  }

  lifecycle_rule {
    condition {
      age            = 30
      matches_prefix = ["source/"]
    }
    action {
      type = "Delete"
    }
  }

  depends_on = [time_sleep.services]
}

resource "google_artifact_registry_repository" "images" {
  repository_id = var.name
  location      = var.region
  format        = "DOCKER"
  description   = "Images of workers and launcher."

  # The newest stay whatever their age: the template names the last one that was built. Tags are
  # the builds' own, so none moves; made immutable, they could not be deleted either.
  cleanup_policies {
    id     = "old"
    action = "DELETE"
    condition {
      older_than = "90d"
    }
  }
  cleanup_policies {
    id     = "newest"
    action = "KEEP"
    most_recent_versions {
      keep_count = 5
    }
  }

  depends_on = [time_sleep.services]
}
