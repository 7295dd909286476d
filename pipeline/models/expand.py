"""Expands the entries of `--models`: wildcards, seeds, and files that list one entry per line."""

import fnmatch
import glob
import os
import re
from collections.abc import Callable, Iterable, Sequence

from pipeline.errors import UsageError
from pipeline.models.checkpoint import encoder_of
from pipeline.models.identity import ModelIdentity
from pipeline.storage.files import absolute, files_of, is_remote, parent

_LABEL = re.compile(r"(?!.*(#.*#|\s#|#\s|#\*$))[^,=:/#\s]([^,=:/]*[^,=:/#\s])?")
"""A name, or `FAMILY#SEED`."""
_OF_SEEDS = re.compile(
    r"([^:]*#)\*:=((?:(?:probe|knn):)?(?:(?:answers|onnx):|[^:=]+=))([^*]*\*[^*]*)"
)
"""A line of seeds: the beginning of their labels and entries, and a path with a `*`."""
_OF_FAMILIES = (
    "; one of a family is FAMILY#SEED, or FAMILY#* before one * in the path of ARCH=FILE, "
    "onnx:FILE or answers:FILE"
)

DEFAULT_MODEL = "efficientnet_lite0"


Load = Callable[[str], ModelIdentity | None]
"""Returns the remembered identity of an entry, or None if it is not remembered."""


def split_labels(entries: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Takes the labels, `NAME:=ENTRY`, off entries of `--models`.

    Returns:
      (the entries, each `@FILE` replaced by the entries in the file, one per line, in which `#`,
      first or after a space, begins a comment, and each `FAMILY#*:=ENTRY` by those of its seeds;
      label by entry).

    Raises:
      UsageError: a label is neither a plain name nor `FAMILY#SEED`, is given twice, or stands
        before a wildcard or file; no entry follows; a file cannot be read, or refers to another
        file; no seed is found.
    """
    labels: dict[str, str] = {}
    flat = [seed for entry in entries for line in _lines(entry) for seed in _seeds(line)]
    for label, mark, entry in (one.partition(":=") for one in flat):
        is_name = entry and label.isprintable() and _LABEL.fullmatch(label)
        if mark and (label in labels.values() or entry in labels or not is_name):
            raise UsageError(
                f"--models {label}:={entry}: a label is a name of its own without = : /, given "
                f"once, and an entry follows, given once{_OF_FAMILIES * ('#' in label)}"
            )
        if mark and (entry.startswith("@") or "*" in entry or _is_wild(entry)):
            raise UsageError(
                f"--models {label}:={entry}: a label names one model, not several"
                f"{_OF_FAMILIES * ('*' in entry)}"
            )
        labels |= {entry: label} if mark else {}
    return [one.partition(":=")[2] or one for one in flat], labels


def name_of(entry: str, load: Load) -> str:
    """Returns the name of an entry's model in results; the entry itself if it is unknown."""
    if known := load(entry):
        return known.name
    from pipeline.models.registry import full_name  # Imports torch and timm.

    return full_name(entry)


def expand_models(entries: Sequence[str], load: Load = lambda _: None) -> tuple[str, ...]:
    """Returns the models that the entries of `--models` stand for, in order.

    Args:
      entries: names or shell wildcards, from `split_labels`. A wildcard without a dot matches
        names without a tag, so it selects the default weights of each architecture (`resnet*`); a
        wildcard with a dot matches names with their tags (`vit_*.augreg_in1k`). Wildcards match
        only weights with ImageNet's outputs, and skip models that another entry names.
      load: a remembered identity saves importing the library that would otherwise resolve the
        name.

    Raises:
      UsageError: a wildcard matches nothing or needs a library that is not installed, or a model is
        named twice.
    """
    literal: dict[str, str] = {}
    for entry in entries:
        if not _is_wild(entry):
            name = name_of(entry, load)
            if name in literal:
                both = entry if literal[name] == entry else f"{literal[name]} and {entry}"
                raise UsageError(f"--models names a model twice: {both}")
            literal[name] = entry
    models: list[str] = []
    for entry in entries:
        models += (
            [one for one in _matches(entry) if one not in literal] if _is_wild(entry) else [entry]
        )
    return tuple(dict.fromkeys(models))


def _lines(entry: str) -> list[str]:
    if not entry.startswith("@"):
        return [entry]
    path = entry[1:]
    try:
        text = files_of(path).read(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--models {entry}: {path} cannot be read ({error})") from error
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines()]
    if nested := [line for line in lines if line.startswith("@")]:
        raise UsageError(
            f"--models {entry}: a file cannot refer to another one ({nested[0]}); name both in "
            "--models"
        )
    return [line for line in lines if line]


def _seeds(line: str) -> list[str]:
    """Returns a line, or in place of `FAMILY#*:=ENTRY` one for each file that the entry names.

    What `*` stands for in the file's path is the seed's name.
    """
    if not (found := _OF_SEEDS.fullmatch(line)):
        return [line]
    family, kind, path = found.groups()
    start, _, end = absolute(path).partition("*")
    try:
        seeds = sorted(_files_between(start, end), key=natural_order)
    except OSError as error:
        raise UsageError(f"--models {line}: {error}") from error
    if not seeds:
        raise UsageError(
            f"--models {line}: there is no such file; * stands for a part of the name of a file or "
            "folder"
        )
    return [f"{family}{seed}:={kind}{path.replace('*', seed)}" for seed in seeds]


def _files_between(start: str, end: str) -> list[str]:
    """Lists, in any order, what `*` stands for in the absolute paths START*END of files.

    That is a part of the name of a file or folder, also behind links on this machine. Raises
    OSError if it cannot be listed.
    """
    paths = (
        (file.path for file in files_of(start).walk(parent(start)))
        if is_remote(start)
        else filter(os.path.isfile, glob.iglob(f"{glob.escape(start)}*{glob.escape(end)}"))
    )
    return [
        found[1]
        for path in paths
        if (found := re.fullmatch(f"{re.escape(start)}([^/]+){re.escape(end)}", path))
    ]


def _is_wild(entry: str) -> bool:
    """Returns whether an entry is a wildcard, rather than a path that contains `*`, `?` or `[`."""
    entry = encoder_of(entry) or entry
    if "=" in entry or not re.search(r"[*?\[]", entry):
        return False
    from pipeline.models.registry import SOURCES

    prefix, colon, _ = entry.partition(":")
    return not colon or (prefix in SOURCES and SOURCES[prefix].has_catalogue)


def _matches(pattern: str, *, headless: bool = False) -> list[str]:
    """Lists the entries that a wildcard stands for, `headless` ones with any outputs or none."""
    if inner := encoder_of(pattern):
        return [pattern.removesuffix(inner) + one for one in _matches(inner, headless=True)]
    import timm

    from pipeline.models.library_names import is_for_imagenet
    from pipeline.models.registry import PACKAGED, SOURCES, full_name

    is_known: Callable[[str], bool] = timm.is_model_pretrained if headless else is_for_imagenet
    prefix, colon, _ = pattern.partition(":")
    if colon:
        SOURCES[prefix].check_installed(pattern)
        names = fnmatch.filter(SOURCES[prefix].catalogue(), pattern)
    elif "." in pattern:
        names = [one for one in fnmatch.filter(timm.list_pretrained(), pattern) if is_known(one)]
    else:
        # A packaged name means the package even if timm has a model of that name.
        known = {name: full_name(name) for name in timm.list_models() if is_known(name)}
        known |= {name: name for name in PACKAGED.catalogue() if PACKAGED.has_package(name)}
        names = [known[name] for name in sorted(fnmatch.filter(known, pattern), key=natural_order)]
    if not names:
        raise UsageError(
            f"--models {pattern}: no name with weights{' for ImageNet' * (not headless)} matches; "
            "see: in9 models list PATTERN"
        )
    return names


def natural_order(name: str) -> list[tuple[str, int]]:
    """Returns a sort key that puts resnet9 before resnet10."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]
