resource "google_monitoring_notification_channel" "email" {
  display_name = var.name
  type         = "email"
  labels       = { email_address = var.email }

  depends_on = [time_sleep.services]
}

resource "google_monitoring_alert_policy" "failed" {
  display_name          = "${var.name}: the job failed"
  combiner              = "OR"
  severity              = "ERROR"
  notification_channels = [google_monitoring_notification_channel.email.id]

  conditions {
    display_name = "Dataflow says failed"
    condition_threshold {
      filter          = "resource.type = \"dataflow_job\" AND resource.labels.job_name = \"${var.name}\" AND metric.type = \"dataflow.googleapis.com/job/is_failed\""
      comparison      = "COMPARISON_GT"
      threshold_value = 0
      duration        = "0s"

      aggregations {
        alignment_period   = "60s"
        per_series_aligner = "ALIGN_MAX"
      }
    }
  }

  alert_strategy {
    auto_close = "86400s"
  }

  documentation {
    content = "The dataset is unchanged, and the next run resumes where this one stopped. The last error in the job's log gives the cause."
  }
}

# A refused launch (permissions, quota, no template) creates no job, so no job fails.
resource "google_monitoring_alert_policy" "refused" {
  display_name          = "${var.name}: the job could not be launched"
  combiner              = "OR"
  severity              = "ERROR"
  notification_channels = [google_monitoring_notification_channel.email.id]

  conditions {
    display_name = "Cloud Scheduler got an error"
    condition_matched_log {
      filter = "resource.type=\"cloud_scheduler_job\" AND resource.labels.job_id=\"${google_cloud_scheduler_job.launch.name}\" AND severity>=ERROR"
    }
  }

  alert_strategy {
    auto_close = "86400s"
    notification_rate_limit {
      period = "3600s"
    }
  }

  documentation {
    content = "The status in the log entry is the answer of flexTemplates:launch. ALREADY_EXISTS means that the previous run is still at work."
  }
}

# Every successful run ends with one line, after writing the manifest. A run that finds nothing to do
# writes the line, too, because then the manifest is up to date.
resource "google_logging_metric" "finished" {
  name        = "${replace(var.name, "-", "_")}_finished"
  description = "Successful runs of ${var.name}."
  filter      = "resource.type=\"dataflow_step\" AND resource.labels.job_name=\"${var.name}\" AND jsonPayload.message:\"in9 summary: \""

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "INT64"
  }

  depends_on = [time_sleep.services]
}

# The condition is in PromQL, which can look back two years, whereas conditions on an absent metric
# look back 23.5 hours at most. `or vector(0)` covers a metric without any point, which must be reported.
resource "google_monitoring_alert_policy" "stale" {
  count = var.stale_after_days > 0 ? 1 : 0

  display_name          = "${var.name}: no run has succeeded for ${var.stale_after_days} days"
  combiner              = "OR"
  severity              = "WARNING"
  notification_channels = [google_monitoring_notification_channel.email.id]

  conditions {
    display_name = "No run succeeded"
    condition_prometheus_query_language {
      query                     = "(sum(increase(logging_googleapis_com:user_${google_logging_metric.finished.name}{monitored_resource=\"dataflow_step\"}[${var.stale_after_days}d])) or vector(0)) < 0.5"
      duration                  = "0s"
      evaluation_interval       = "3600s"
      disable_metric_validation = true
    }
  }

  alert_strategy {
    auto_close = "86400s"
  }

  documentation {
    content = "It is also open until the first run has ended. If neither a failure nor a refused launch was reported, check whether the schedule is paused."
  }
}
