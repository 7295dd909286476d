variable "project" {
  description = "Project ID."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project))
    error_message = "Must be the project's ID, not its name or number: 6 to 30 lowercase letters, digits and hyphens."
  }
}

variable "region" {
  description = "Region of buckets, jobs and schedule. Choose that of the images, because reading from another region costs."
  type        = string

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.region))
    error_message = "Must be a region such as europe-west4, not a zone (europe-west4-a) or a multi-region (EU)."
  }
}

variable "build_region" {
  description = "Region in which Cloud Build works, or global. Null: the region of the rest. Some projects may only build in a few regions."
  type        = string
  default     = null

  validation {
    condition     = var.build_region == null || can(regex("^([a-z]+-[a-z]+[0-9]+|global)$", var.build_region))
    error_message = "Must be a region such as europe-west1, or global."
  }
}

variable "name" {
  description = "Name of the job, and prefix of the names of everything that belongs to it."
  type        = string
  default     = "in9"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.name)) && !can(regex("google", var.name))
    error_message = "Must be valid in names of jobs, service accounts and buckets: 3 to 20 lowercase letters, digits and hyphens, without \"google\"."
  }
}

variable "input" {
  description = "gs:// folder of the images, as for in9 run --input. The bucket must exist."
  type        = string

  validation {
    condition     = can(regex("^gs://[a-z0-9][a-z0-9._-]+[a-z0-9](/.*)?$", var.input))
    error_message = "Must be gs://BUCKET/FOLDER, because Dataflow reads only from gs://."
  }
}

variable "parameters" {
  description = "Further flags of in9 run, and keys of its file, by name and without dashes: { models = \"resnet50\", seed = \"1\" }."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for name in keys(var.parameters) : can(regex("^[a-z][a-z0-9_]*$", name))])
    error_message = "Flags must be given by name, without dashes and with underscores: images_per_shard, not --images-per-shard."
  }

  validation {
    condition     = length(setintersection(keys(var.parameters), ["input", "output", "dry_run"])) == 0
    error_message = "input, output and dry_run cannot be given here: the images are the variable `input`, the output is the bucket that is created here, and a job has no dry run."
  }

  validation {
    condition     = length(setintersection(keys(var.parameters), ["num_workers", "network", "dataflow_kms_key"])) == 0
    error_message = "num_workers, network and dataflow_kms_key cannot be given here: they are the variables `num_workers`, `network` and `kms_key`."
  }

  validation {
    condition = alltrue([
      for value in values(var.parameters) :
      try(length(regexall("gs://", value)) == length(regexall("gs://[a-z0-9][a-z0-9._-]+[a-z0-9]", value)), false)
    ])
    error_message = "Values must not be null, and every gs:// must be followed by the name of a bucket."
  }
}

variable "schedule" {
  description = "When the job is launched, as a cron expression. The default is 3:00 on the first of each month."
  type        = string
  default     = "0 3 1 * *"

  # Minute, hour, day of the month, month and day of the week are lists of *, N or N-N, each perhaps
  # with /STEP.
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
    error_message = "Must be a cron expression of five fields, such as \"0 3 1 * *\"."
  }
}

variable "time_zone" {
  description = "Time zone of the schedule."
  type        = string
  default     = "Etc/UTC"

  validation {
    condition     = can(regex("^(UTC|[A-Z][A-Za-z_]+(/[A-Za-z0-9_+-]+)+)$", var.time_zone))
    error_message = "Must be a name of the tz database, such as Europe/Berlin."
  }
}

variable "machine_type" {
  description = "Machine type of the workers. Any x86-64 processor since Haswell has the instructions for which the image's kernels are compiled."
  type        = string
  default     = "n2-standard-4"

  validation {
    condition     = can(regex("^[a-z][a-z0-9]*(-[a-z0-9]+)+$", var.machine_type))
    error_message = "Must be a machine type such as n2-standard-4."
  }

  validation {
    condition     = !can(regex("^(t2a|c4a|n4a|a4x)-", var.machine_type))
    error_message = "Must not be a machine with Arm processors, because the image is for x86-64."
  }
}

variable "max_workers" {
  description = "Largest number of workers at a time, which bounds the cost of an hour."
  type        = number
  default     = 20

  validation {
    condition     = var.max_workers >= 1 && floor(var.max_workers) == var.max_workers
    error_message = "Must be a whole number of at least 1."
  }
}

variable "num_workers" {
  description = "Number of workers that a job starts with, before Dataflow scales it."
  type        = number
  default     = 1

  validation {
    condition     = var.num_workers >= 1 && floor(var.num_workers) == var.num_workers
    error_message = "Must be a whole number of at least 1."
  }
}

variable "disk_size_gb" {
  description = "Size of a worker's disk, which holds the image and the files that are being read and written."
  type        = number
  default     = 60

  validation {
    condition     = var.disk_size_gb >= 30 && var.disk_size_gb <= 65536 && floor(var.disk_size_gb) == var.disk_size_gb
    error_message = "Must be whole GB from 30 to 65536. The image for GPUs takes 10 GB, and as much again while it is unpacked."
  }
}

variable "network" {
  description = "Name of the workers' network. Empty: the default network, or that of the subnetwork."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^([a-z]([a-z0-9-]{0,61}[a-z0-9])?)?$", var.network))
    error_message = "Must be the name of a network, without an address before it."
  }
}

variable "subnetwork" {
  description = "Subnetwork of the workers, such as regions/REGION/subnetworks/NAME, or the full address (https://...) if it belongs to a shared network. Empty: the default network."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^(https://www[.]googleapis[.]com/compute/v1/projects/[a-z0-9.:-]+/)?regions/[a-z0-9-]+/subnetworks/[a-z0-9-]+$|^$", var.subnetwork))
    error_message = "Must be regions/REGION/subnetworks/NAME, or https://www.googleapis.com/compute/v1/projects/PROJECT/regions/REGION/subnetworks/NAME."
  }
}

variable "kms_key" {
  description = "Key of Cloud KMS for the data that a job stores while it runs, projects/PROJECT/locations/REGION/keyRings/RING/cryptoKeys/KEY. Empty: Google's own key. The service accounts of Dataflow and of Compute Engine must be allowed to use it. Keys of buckets are set separately."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^(projects/[a-z0-9.:-]+/locations/[a-z0-9-]+/keyRings/[A-Za-z0-9_-]+/cryptoKeys/[A-Za-z0-9_-]+)?$", var.kms_key))
    error_message = "Must be projects/PROJECT/locations/REGION/keyRings/RING/cryptoKeys/KEY."
  }
}

variable "public_ips" {
  description = "Whether workers have public addresses. Without them, the subnetwork needs Private Google Access, and models must come from --weights."
  type        = bool
  default     = true
}

variable "email" {
  description = "Mail address for alerts."
  type        = string

  validation {
    condition     = can(regex("^[^@\\s]+@[^@\\s.]+([.][^@\\s.]+)+$", var.email))
    error_message = "Must be an address such as me@example.org."
  }
}

variable "stale_after_days" {
  description = "Days without a successful run after which an alert is sent: slightly more than the schedule's period. 0: no such alert."
  type        = number
  default     = 35

  validation {
    condition     = var.stale_after_days >= 0 && var.stale_after_days <= 41 && floor(var.stale_after_days) == var.stale_after_days
    error_message = "Must be whole days, at most 41, because metrics are kept for six weeks."
  }
}
