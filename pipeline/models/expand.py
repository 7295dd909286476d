"""From the entries of `--models` to the models: wildcards, and files with one entry a line."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable

from pipeline.errors import UsageError
from pipeline.models.identity import ModelIdentity
from pipeline.storage.files import files_of

_WILD = re.compile(r"[*?\[]")

DEFAULT_MODEL = "efficientnet_lite0"


def expand_models(
    entries: Iterable[str], recall: Callable[[str], ModelIdentity | None] = lambda _: None
) -> tuple[str, ...]:
    """The models that entries of `--models` name, in order.

    Args:
      entries: names; shell wildcards; `@FILE`, a file with one of these a line, where `#`
        begins a comment. A wildcard without a dot stands for names without a tag, that is for
        the default weights of each architecture, and one with a dot for full tags: `resnet*`,
        `vit_*.augreg_in1k`. It stands only for weights with ImageNet's outputs, and leaves out
        what another entry names.
      recall: what is known of an entry; of the others, their libraries tell the name.

    Raises:
      UsageError: a wildcard that matches nothing, a file that cannot be read, or a model that
        is named twice.
    """
    flat = flat_entries(entries)
    literal: dict[str, str] = {}
    for entry in flat:
        if not _is_wild(entry):
            known = recall(entry)
            name = known.name if known else _full_name(entry)
            if name in literal:
                both = entry if literal[name] == entry else f"{literal[name]} and {entry}"
                raise UsageError(f"--models names a model twice: {both}")
            literal[name] = entry
    models: list[str] = []
    seen = set(literal)
    for entry in flat:
        if not _is_wild(entry):
            models.append(entry)
            continue
        for name in _matches(entry):
            if _full_name(name) not in seen:
                seen.add(_full_name(name))
                models.append(name)
    return tuple(models)


def flat_entries(entries: Iterable[str]) -> list[str]:
    """Entries of `--models`, with those of each `@FILE` in its place.

    Raises:
      UsageError: a file cannot be read, or names another one.
    """
    return [line for entry in entries for line in _lines(entry)]


def _full_name(entry: str) -> str:
    from pipeline.models.registry import full_name  # It waits for the libraries of all sources.

    return full_name(entry)


def _lines(entry: str) -> list[str]:
    if not entry.startswith("@"):
        return [entry]
    path = entry[1:]
    try:
        text = files_of(path).read(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--models {entry}: {path} cannot be read ({error})") from error
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines()]
    nested = [line for line in lines if line.startswith("@")]
    if nested:
        raise UsageError(f"--models {entry}: {nested[0]} in a file; name the files one by one")
    return [line for line in lines if line]


def _is_wild(entry: str) -> bool:
    """Whether an entry is a wildcard, rather than a path with such characters in it."""
    if "=" in entry or not _WILD.search(entry):
        return False
    prefix, colon, _ = entry.partition(":")
    if not colon:
        return True
    from pipeline.models.registry import SOURCES

    return prefix in SOURCES and SOURCES[prefix].has_catalogue


def _matches(pattern: str) -> list[str]:
    import timm

    from pipeline.models.registry import PACKAGED, SOURCES, TIMM, full_name
    from pipeline.models.timm_names import is_for_imagenet

    prefix, colon, _ = pattern.partition(":")
    if colon:
        SOURCES[prefix].check_installed(pattern)
        found = fnmatch.filter(SOURCES[prefix].catalogue(), pattern)
    elif "." in pattern:
        found = fnmatch.filter(TIMM.catalogue(), pattern)
    else:
        # A packaged name means the package, also where timm has a model of that name.
        packaged = [name for name in PACKAGED.catalogue() if PACKAGED.is_there(name)]
        known = {name: full_name(name) for name in timm.list_models() if is_for_imagenet(name)}
        known |= {name: name for name in packaged}
        found = [known[name] for name in sorted(fnmatch.filter(known, pattern), key=_natural)]
    if not found:
        raise UsageError(
            f"--models {pattern}: no name with weights for ImageNet matches; "
            "see: in9 models list PATTERN"
        )
    return found


def _natural(name: str) -> list[tuple[str, int]]:
    """Sorts resnet9 before resnet10."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]
