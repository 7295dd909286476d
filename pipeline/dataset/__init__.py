"""A dataset: its configuration, shards, records, samples and manifest, written and read back."""
