# Each writer has its own buckets: workers those of the dataset and of the jobs, the builder that of
# the builds. One bucket with conditions on names of objects would not do, because listing objects is a
# permission on the bucket.

# The dataset. No rule deletes by age, because old shards are as much a part of it as new ones, and
# --keep removes old published versions.
resource "google_storage_bucket" "dataset" {
  name     = "${var.project}-${var.name}"
  location = var.region

  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  # `terraform destroy` fails as long as the bucket is not empty.
  force_destroy = false

  # Deletions can be undone for a week. Shards that a run replaces are billed for that week, too.
  soft_delete_policy {
    retention_duration_seconds = 7 * 24 * 3600
  }

  # Object versions would also keep every lock and every staged shard.
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

# Files that jobs stage and leave behind. They have their own bucket because they are short-lived:
# keeping them for a week after deletion would cost more than storing them did.
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

  # No job runs for that long. Dataflow reads staged files as long as it starts workers.
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

# The template that the schedule launches, and the source from which it was built. Workers must not be
# able to replace them.
resource "google_storage_bucket" "build" {
  name     = "${var.project}-${var.name}-build"
  location = var.region

  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  # A build recreates everything in it.
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

  # The newest images stay whatever their age, because the template names the last one. Each build has
  # its own tag, so tags never move; immutable tags could not be deleted either.
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
