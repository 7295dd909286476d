variable "project" {
  description = "Project ID."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project))
    error_message = "The ID, not the name or number: 6 to 30 lowercase letters, digits and hyphens."
  }
}

variable "region" {
  description = "Region of buckets, jobs and schedule: that of the images, since reading them from another one costs."
  type        = string

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.region))
    error_message = "A region such as europe-west4, not a zone (europe-west4-a) or several (EU)."
  }
}

variable "build_region" {
  description = "Region in which Cloud Build works, or global; null: that of the rest. Some projects may build in few regions only."
  type        = string
  default     = null

  validation {
    condition     = var.build_region == null || can(regex("^([a-z]+-[a-z]+[0-9]+|global)$", var.build_region))
    error_message = "A region such as europe-west1, or global."
  }
}

variable "name" {
  description = "Name of the job, and prefix of everything that belongs to it."
  type        = string
  default     = "in9"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.name)) && !can(regex("google", var.name))
    error_message = "Names of jobs, service accounts and buckets: 3 to 20 lowercase letters, digits and hyphens, without \"google\"."
  }
}

variable "input" {
  description = "gs:// folder of the images, as for in9 run --input; the bucket is not made here."
  type        = string

  validation {
    condition     = can(regex("^gs://[a-z0-9][a-z0-9._-]+[a-z0-9](/.*)?$", var.input))
    error_message = "Dataflow reads from gs:// only: gs://BUCKET/FOLDER."
  }
}

variable "parameters" {
  description = "Further flags of in9 run, by name and without dashes: { models = \"resnet50\", seed = \"1\" }."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for name in keys(var.parameters) : can(regex("^[a-z][a-z0-9_]*$", name))])
    error_message = "Flags by name, without dashes and with _ inside: images_per_shard, not --images-per-shard."
  }

  validation {
    condition     = length(setintersection(keys(var.parameters), ["input", "output", "dry_run"])) == 0
    error_message = "The images are the variable `input`, the output is the bucket made here, and a job has no dry_run."
  }

  validation {
    condition = alltrue([
      for value in values(var.parameters) :
      try(length(regexall("gs://", value)) == length(regexall("gs://[a-z0-9][a-z0-9._-]+[a-z0-9]", value)), false)
    ])
    error_message = "No value may be null, and every gs:// is followed by the name of a bucket."
  }
}

variable "schedule" {
  description = "When the job is launched, as a cron expression: at 3:00 on the first of each month."
  type        = string
  default     = "0 3 1 * *"

  # Minute, hour, day of the month, month, day of the week: each a list of *, N or N-N, with /STEP.
  validation {
    condition = length(split(" ", var.schedule)) == 5 && alltrue([
      for index, field in split(" ", var.schedule) : alltrue([
        for part in split(",", field) : can(regex(replace("^([*]|N(-N)?)(/[1-9][0-9]*)?$", "N", element([
          "[0-5]?[0-9]",
          "([01]?[0-9]|2[0-3])",
          "(0?[1-9]|[12][0-9]|3[01])",
          "(0?[1-9]|1[0-2]|(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec))",
          "([0-7]|(?i:sun|mon|tue|wed|thu|fri|sat))",
        ], index)), part))
      ])
    ])
    error_message = "A cron expression of five fields, such as \"0 3 1 * *\"."
  }
}

variable "time_zone" {
  description = "Of the schedule."
  type        = string
  default     = "Etc/UTC"

  validation {
    condition     = can(regex("^(UTC|[A-Z][A-Za-z_]+(/[A-Za-z0-9_+-]+)+)$", var.time_zone))
    error_message = "A name of the tz database, such as Europe/Berlin."
  }
}

variable "machine_type" {
  description = "Of the workers. Any since Haswell has the instructions that the image's kernels are compiled for."
  type        = string
  default     = "n2-standard-4"

  validation {
    condition     = can(regex("^[a-z][a-z0-9]*(-[a-z0-9]+)+$", var.machine_type))
    error_message = "A machine type such as n2-standard-4."
  }

  validation {
    condition     = !can(regex("^(t2a|c4a|n4a|a4x)-", var.machine_type))
    error_message = "The image is for x86-64, and these machines are Arm."
  }
}

variable "max_workers" {
  description = "The most workers at a time, which bounds what an hour can cost."
  type        = number
  default     = 20

  validation {
    condition     = var.max_workers >= 1 && floor(var.max_workers) == var.max_workers
    error_message = "A whole number from 1 on."
  }
}

variable "num_workers" {
  description = "Workers that a job starts with, before it is known how many are of use."
  type        = number
  default     = 1

  validation {
    condition     = var.num_workers >= 1 && floor(var.num_workers) == var.num_workers
    error_message = "A whole number from 1 on."
  }
}

variable "disk_size_gb" {
  description = "Of a worker's disk: the image, and what is being read and written."
  type        = number
  default     = 60

  validation {
    condition     = var.disk_size_gb >= 30 && var.disk_size_gb <= 65536 && floor(var.disk_size_gb) == var.disk_size_gb
    error_message = "Whole GB, from 30 on, since the image for GPUs takes 10 GB, and as much again while it is unpacked, to 65536."
  }
}

variable "network" {
  description = "Of the workers, by name; empty: the default network, or that of the subnetwork."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^([a-z]([a-z0-9-]{0,61}[a-z0-9])?)?$", var.network))
    error_message = "The name of a network, without an address before it."
  }
}

variable "subnetwork" {
  description = "Of the workers, such as regions/REGION/subnetworks/NAME; that of a shared network as a whole address (https://...); empty: the default network."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^(https://www[.]googleapis[.]com/compute/v1/projects/[a-z0-9.:-]+/)?regions/[a-z0-9-]+/subnetworks/[a-z0-9-]+$|^$", var.subnetwork))
    error_message = "regions/REGION/subnetworks/NAME, or https://www.googleapis.com/compute/v1/projects/PROJECT/regions/REGION/subnetworks/NAME."
  }
}

variable "kms_key" {
  description = "Key of Cloud KMS for what a job keeps while it works, projects/PROJECT/locations/REGION/keyRings/RING/cryptoKeys/KEY; empty: Google's own. The service accounts of Dataflow and of Compute Engine must be allowed to use it; buckets have keys of their own."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^(projects/[a-z0-9.:-]+/locations/[a-z0-9-]+/keyRings/[A-Za-z0-9_-]+/cryptoKeys/[A-Za-z0-9_-]+)?$", var.kms_key))
    error_message = "projects/PROJECT/locations/REGION/keyRings/RING/cryptoKeys/KEY."
  }
}

variable "public_ips" {
  description = "Whether workers have public addresses. Without, the subnetwork needs Private Google Access, and models come from --weights."
  type        = bool
  default     = true
}

variable "email" {
  description = "Where alerts go."
  type        = string

  validation {
    condition     = can(regex("^[^@\\s]+@[^@\\s.]+([.][^@\\s.]+)+$", var.email))
    error_message = "An address such as me@example.org."
  }
}

variable "stale_after_days" {
  description = "Days without a run that ended well before an alert: the schedule's period and some. 0: no such alert."
  type        = number
  default     = 35

  validation {
    condition     = var.stale_after_days >= 0 && var.stale_after_days <= 41 && floor(var.stale_after_days) == var.stale_after_days
    error_message = "Whole days, at most 41, since metrics are kept for six weeks."
  }
}
