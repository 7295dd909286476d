"""Errors that the command line turns into one line and an exit code, and printable text."""

import difflib
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any

LINE = 200
"""Largest number of characters of a line on the terminal."""


class UsageError(Exception):
    """Wrong usage or unreadable input: exit code 2. The message says what to do."""


class TooLargeError(UsageError):
    """A file is larger than the limit for its kind.

    `size` is in bytes, or 0 if the error passed through a runner, which keeps only its text.
    """

    def __init__(self, message: str, size: int = 0) -> None:
        super().__init__(message)
        self.size = size


class JobError(Exception):
    """The job failed: exit code 1. The message says what happened and how to go on."""


class ModelError(JobError):
    """One model cannot be evaluated or trained; the others can."""


class BrokenPictureError(JobError):
    """A picture cannot be decoded. `key` names it."""

    def __init__(self, key: str, error: Exception) -> None:
        super().__init__(f"a stored picture of {key} is broken ({error}); see: in9 verify")
        self.key = key


def plain(error: Exception) -> Exception:
    """Returns an error of the same message that can be pickled; a foreign one as a RuntimeError."""
    if isinstance(error, UsageError | JobError):
        return (UsageError if isinstance(error, UsageError) else JobError)(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")


def refuse_first(reasons: Mapping[str, bool], subject: str = "") -> None:
    """Raises UsageError with the first reason that holds, if one does, behind the subject."""
    if reason := next((reason for reason, holds in reasons.items() if holds), ""):
        raise UsageError(subject + reason)


def text_of(error: BaseException) -> str:
    """Returns the message of an error from foreign code, whose `__str__` may raise another one."""
    try:
        return str(error)
    except Exception:  # As `__str__` is foreign, too.
        return "without a readable message"


def one_line(error: Exception) -> str:
    """Returns the message of a foreign error as one line of at most 200 characters."""
    return " ".join(text_of(error).split())[:200]


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun, such as `1 image`, `2 images` or `3 classes`."""
    plural = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{plural}"


def did_you_mean(wanted: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Returns the end of an error message that names the known word closest to an unknown one.

    It is empty if no word has at least `cutoff` as difflib's ratio (0 to 1), or for a flag if none
    has three letters in the same order, without the dashes that all flags begin with.

    >>> did_you_mean("--modles", ["--models"]), did_you_mean("--nope", ["--zone"])
    ('; did you mean --models?', '')
    """
    wanted = wanted.strip("-")
    names = {word.strip("-"): word for word in known}
    # With six letters in both, two in common would be enough for the ratio.
    words = {n: word for n, word in names.items() if len(n + wanted) > 6 or n == word}
    close = difflib.get_close_matches(wanted, words, n=1, cutoff=cutoff)
    return f"; did you mean {words[close[0]]}?" if close else ""


def escaped(text: str, keep: str = "\n\t") -> str:
    r"""Escapes unprintable characters, which could move a terminal's cursor or reverse a line.

    >>> escaped("red\x1b[31m")
    'red\\x1b[31m'
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text
    )


TO_EVALUATE = "to evaluate: "
"""Beginning of a line that holds a command to copy."""


def wrapped(text: str) -> str:
    """Breaks lines over `LINE` characters at words; not a command, nor JSON, for programs."""
    return "\n".join(
        textwrap.fill(line, LINE, subsequent_indent="  ", break_on_hyphens=False)
        if len(line) > LINE and not line.startswith(TO_EVALUATE) and not line.endswith("}")
        else line
        for line in text.split("\n")
    )


def escaped_line(text: str) -> str:
    """Escapes unprintable characters, line breaks and tabs included."""
    return escaped(text, keep="")


def escaped_texts(content: Any, escape: Callable[[str], str] = escaped_line) -> Any:
    r"""Escapes all texts in JSON content and names of fields, for any format, or that of `escape`.

    >>> escaped_texts({"bad\udcff": ["a\nb", 1]})
    {'bad\\udcff': ['a\\nb', 1]}
    """
    if isinstance(content, str):
        return escape(content)
    if isinstance(content, dict):
        return {escape(name): escaped_texts(value, escape) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(escaped_texts(each, escape) for each in content)
    return content


def shown_bytes(text: str) -> bytes:
    r"""Encodes text for files that people or programs read, in UTF-8 with lone surrogates escaped.

    Such are undecodable bytes of file names. Hashes use `transforms.hashing.text_bytes` instead.

    >>> shown_bytes("bad\udcff.pth")
    b'bad\\udcff.pth'
    """
    return text.encode("utf-8", "backslashreplace")
