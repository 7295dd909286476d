"""`--dry_run`: forecasts what a job would do, how long it would take, and its size."""
