terraform {
  required_version = ">= 1.7"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 6.50"
    }
    time = {
      source  = "hashicorp/time"
      version = "~> 0.12"
    }
  }
}

provider "google" {
  project = var.project
  region  = var.region

  # Otherwise requests with the credentials of `gcloud auth application-default login` count against
  # a project of Google's, whose quotas all users share.
  billing_project       = var.project
  user_project_override = true
}
