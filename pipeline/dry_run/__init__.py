"""`--dry_run`: what a job would do, how long, how large, at what price."""
