"""Errors that the command line turns into one line and an exit code."""

from __future__ import annotations


class UsageError(Exception):
    """Wrong usage or unreadable input: exit code 2. The message says what to do."""


class JobError(Exception):
    """The job failed: exit code 1. The message says what happened and how to go on."""


class ModelError(JobError):
    """One model cannot be evaluated; the others can."""


class BrokenPictureError(JobError):
    """A picture that cannot be decoded. `key` says which."""

    def __init__(self, key: str, error: Exception) -> None:
        super().__init__(f"a stored picture of {key} is broken ({error}); see: in9 verify")
        self.key = key


def in_short(error: Exception) -> str:
    """What an error of someone else's code says, in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]
