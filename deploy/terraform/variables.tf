variable "project" {
  description = "Project ID."
  type        = string
}

variable "region" {
  description = "Region of buckets, jobs and schedule: that of the images, since reading them from another one costs."
  type        = string
}

variable "name" {
  description = "Name of the job, and prefix of everything that belongs to it."
  type        = string
  default     = "in9"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.name))
    error_message = "Names of jobs and service accounts: 3 to 20 lowercase letters, digits and hyphens."
  }
}

variable "input" {
  description = "gs:// folder of the images, as for in9 run --input; the bucket is not made here."
  type        = string

  validation {
    condition     = startswith(var.input, "gs://")
    error_message = "Dataflow reads from gs:// only."
  }
}

variable "parameters" {
  description = "Further flags of in9 run, by name and without dashes: { models = \"resnet50\", seed = \"1\" }."
  type        = map(string)
  default     = {}
}

variable "schedule" {
  description = "When the job is launched, as a cron expression: at 3:00 on the first of each month."
  type        = string
  default     = "0 3 1 * *"
}

variable "time_zone" {
  description = "Of the schedule."
  type        = string
  default     = "Etc/UTC"
}

variable "machine_type" {
  description = "Of the workers. Any since Haswell has the instructions that the image's kernels are compiled for."
  type        = string
  default     = "n2-standard-4"
}

variable "max_workers" {
  description = "The most workers at a time, which bounds what an hour can cost."
  type        = number
  default     = 20
}

variable "disk_size_gb" {
  description = "Of a worker's disk: the image, and what is being read and written."
  type        = number
  default     = 60
}

variable "subnetwork" {
  description = "Of the workers, such as regions/REGION/subnetworks/NAME; empty: the default network."
  type        = string
  default     = ""
}

variable "public_ips" {
  description = "Whether workers have public addresses. Without, the subnetwork needs Private Google Access, and models come from --weights."
  type        = bool
  default     = true
}

variable "email" {
  description = "Where alerts go."
  type        = string
}

variable "stale_after_days" {
  description = "Days without a run that ended well before an alert: the schedule's period and some."
  type        = number
  default     = 35

  validation {
    condition     = var.stale_after_days >= 1 && var.stale_after_days <= 41
    error_message = "Metrics are kept for six weeks."
  }
}
