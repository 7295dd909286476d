output "dataset" {
  description = "Address of the dataset, which exists once a run has ended."
  value       = local.dataset
}

output "build" {
  description = "Command that builds the image and uploads the template; run it in the repository's root."
  value       = <<-EOT
    gcloud builds submit --project ${var.project} --region ${coalesce(var.build_region, var.region)} \
      --config deploy/cloudbuild.yaml \
      --service-account ${google_service_account.builder.id} \
      --gcs-source-staging-dir ${local.build}/source \
      --substitutions _IMAGE=${local.image},_TEMPLATE=${local.template}
  EOT
}

output "run" {
  description = "Command that launches a run now, as the schedule does."
  value       = "gcloud scheduler jobs run ${google_cloud_scheduler_job.launch.name} --project ${var.project} --location ${var.region}"
}

output "launch" {
  description = "The request that the schedule sends."
  value       = local.launch
}
