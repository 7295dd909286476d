"""Errors that the command line turns into one line and an exit code, and text that is fit to be
shown."""

from __future__ import annotations


class UsageError(Exception):
    """Wrong usage or unreadable input: exit code 2. The message says what to do."""


class TooLargeError(UsageError):
    """A file has more bytes than are read of its kind. `size` says how many, 0 where that is not
    known: the error has passed through a runner as text."""

    def __init__(self, message: str, size: int = 0) -> None:
        super().__init__(message)
        self.size = size


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


def escaped(text: str, keep: str = "\n\t") -> str:
    """Text with what cannot be seen escaped: what a file or a class is called must not move a
    terminal's cursor, nor turn the direction of a line.

    >>> escaped("red\x1b[31m")
    'red\\\\x1b[31m'

    Args:
      text: any.
      keep: what is left as it is, of what is not printable.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape", "surrogatepass").decode()
        for c in text
    )
