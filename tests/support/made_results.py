"""Makes results of models from the fields that a test is about."""

import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from pipeline.evaluate.evidence import ModelResults
from pipeline.evaluate.results import ModelRun
from pipeline.models.identity import Preprocessing

T = TypeVar("T")

_PREPROCESSING = Preprocessing(
    input_size=224,
    fixed_size=False,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    interpolation="bicubic",
    crop_pct=0.875,
    crop_mode="center",
)


def made(kind: type[T], /, **given: Any) -> T:
    """Makes a result; fields that are not given are empty. Rows may be given as dictionaries."""
    hints = get_type_hints(kind)
    fields = {field.name: field for field in msgspec.structs.fields(kind)}  # type: ignore[arg-type]
    assert set(given) <= set(fields), set(given) - set(fields)
    values = {}
    for name, field in fields.items():
        if name in given:
            values[name] = _converted(hints[name], given[name])
        elif field.required:
            values[name] = _empty(hints[name])
    return kind(**values)


def _converted(kind: Any, value: Any) -> Any:
    """Makes rows from dictionaries, wherever a type has them."""
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    for option in options:
        origin, of = get_origin(option), get_args(option)
        if isinstance(option, type) and issubclass(option, msgspec.Struct):
            if isinstance(value, Mapping):
                return made(option, **value)
        elif origin is tuple and of[-1] is Ellipsis and not isinstance(value, str):
            return tuple(_converted(of[0], one) for one in value)
        elif origin is dict and isinstance(value, Mapping):
            return {key: _converted(of[1], one) for key, one in value.items()}
    return value


def _empty(kind: Any) -> Any:
    origin, of = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _empty(of[0])
    if origin in (Union, types.UnionType):
        return None if type(None) in of else _empty(of[0])
    if origin is Literal:
        return of[0]
    if kind is Preprocessing:
        return _PREPROCESSING
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return made(kind)
    return "" if kind is str else (origin or kind)()


def stored(result: object) -> Any:
    """Returns a result as its JSON file has it."""
    return msgspec.json.decode(msgspec.json.encode(result))


def of_model(model: str, *results: ModelRun, **more: Any) -> ModelResults:
    """Makes the results of a model, as the page has them."""
    return ModelResults(model, model, model, results, **more)
