"""`--dry_run`: what a job would do, how long, how large."""
