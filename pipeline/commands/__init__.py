"""The commands of `in9`: flags, what each makes of them, and what it says."""
