"""From plain values to a frozen dataclass; whatever is wrong becomes a `RecipeError` with the full path."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from rlkit.errors import RecipeError, nearest

__all__ = ["above", "at_least", "build", "join", "type_name"]

T = TypeVar("T")


def join(path: str, key: str | int) -> str:
    """The path of an entry: `optim` and `lr` give `optim.lr`, `rewards` and 1 give `rewards[1]`."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def build(cls: type[T], values: Mapping[str, Any], path: str) -> T:
    """An instance of the dataclass `cls`, typed by OmegaConf; `path` is the section's path in the recipe."""
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    for key in values:
        if key not in fields:
            known = nearest(key, fields) or "; it takes no settings"
            raise RecipeError(join(path, key), f"unknown setting{known}")
    for name, field in fields.items():
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if not optional and name not in values:
            raise RecipeError(join(path, name), f"missing; it is {type_name(hints[name])}")
    try:
        typed: Any = OmegaConf.structured(cls)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(path, f"settings of {cls.__name__} cannot come from a recipe: {reason}") from error
    for (
        key,
        value,
    ) in values.items():  # one at a time, because a failing merge does not always say which key it was
        try:
            typed = OmegaConf.merge(typed, {key: value})
        except OmegaConfBaseException as error:
            raise _refused(error, path, key, value, hints[key]) from error
    try:
        return OmegaConf.to_object(typed)  # type: ignore[return-value]
    except ValueError as error:  # of a __post_init__, e.g. "lr: -1.0 is not above 0"
        name, _, problem = str(error).partition(": ")
        if name.partition(".")[0] in fields:  # of a nested dataclass, which names itself
            raise RecipeError(join(path, name), problem) from error
        raise RecipeError(path, str(error)) from error


def above(section: object, bound: float, *fields: str) -> None:
    """Raise `ValueError` unless each field is above `bound`; None passes."""
    for field in fields:
        value = getattr(section, field)
        if value is not None and not value > bound:
            raise ValueError(f"{field}: {value} is not above {bound}")


def at_least(section: object, bound: float, *fields: str) -> None:
    """Raise `ValueError` unless each field is `bound` or more; None passes."""
    for field in fields:
        value = getattr(section, field)
        if value is not None and not value >= bound:
            raise ValueError(f"{field}: {value} is below {bound}")


def _refused(error: OmegaConfBaseException, path: str, key: str, value: Any, hint: Any) -> RecipeError:
    """OmegaConf's refusal in our words: it knows neither the section's path nor a reader's names of types."""
    full_key = error.full_key or key
    if full_key != key:  # inside a nested dataclass
        problem = str(error).splitlines()[0]
        if isinstance(error, ConfigKeyError) and dataclasses.is_dataclass(error.object_type):
            known = [field.name for field in dataclasses.fields(error.object_type)]
            problem = f"unknown setting{nearest(str(error.key), known)}"
        return RecipeError(join(path, full_key), problem)
    given = {dict: "a mapping", list: "a list", type(None): "null"}.get(type(value), type(value).__name__)
    close = nearest(str(value), map(str, get_args(hint))) if get_origin(hint) is Literal else ""
    fix = close if "did you mean" in close else ""  # the choices are in the type's name already
    return RecipeError(join(path, key), f"{value!r} ({given}) is not {type_name(hint)}{fix}")


_WORDS = {
    float: "a number",
    int: "a whole number",
    str: "text",
    bool: "true or false",
    type(None): "null",
    Any: "any value",
}


def type_name(hint: Any) -> str:
    """A type as a recipe's reader would say it: `a number`, `one of sdpa, flex`, `a whole number or null`."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin in (Union, types.UnionType):
        return " or ".join(map(type_name, args))
    if origin in (list, tuple):
        return f"a list of which each is {type_name(args[0])}"
    return str(_WORDS.get(hint) or getattr(hint, "__name__", hint))
