"""Dataclass ↔ JSON document.

A field this version does not know is kept in `extra` of the class (if it has one) and written back, so that
an older node never erases what a newer one wrote.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, TypeVar

from pvc.errors import PVCError

T = TypeVar("T")

Convert = Callable[[Any], Any]


class Unreadable(PVCError):
    """A document of the store that does not fit its class: damaged, or not written by pvc."""


def to_json(value: Any) -> Any:
    """Plain JSON values of a dataclass, a collection or a value."""
    if isinstance(value, StrEnum):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {name: to_json(getattr(value, name)) for name in _names(type(value)) if name != "extra"}
        return {**getattr(value, "extra", {}), **plain}
    if isinstance(value, Mapping):
        return {str(key): to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(inner) for inner in value]
    raise TypeError(f"{type(value).__name__} has no JSON form")


def dumps(value: Any) -> bytes:
    """The document of a dataclass: the same value gives the same bytes."""
    return json.dumps(to_json(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def version_of(plain: Any) -> str:
    """Of an operation's answer as plain JSON: the object's own version, of anything else a digest."""
    if isinstance(plain, dict) and isinstance(plain.get("version"), str):
        return str(plain["version"])
    import hashlib

    text = json.dumps(plain, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def loads(kind: type[T], data: bytes, where: str = "") -> T:
    """A dataclass from its document. Raises Unreadable naming `where`."""
    try:
        return typing.cast("T", _converter(kind)(json.loads(data)))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise Unreadable(f"cannot read {where or kind.__name__}: {error}") from error


def from_json(kind: type[T], plain: Any) -> T:
    return typing.cast("T", _converter(kind)(plain))


@functools.cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(one.name for one in dataclasses.fields(kind))


def _converter(hint: Any) -> Convert:
    return _made_converter(hint)


@functools.cache
def _made_converter(hint: Any) -> Convert:
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _converter(typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        return _optional(hint)
    if origin is tuple:
        inner = _converter(typing.get_args(hint)[0])
        return lambda values: tuple(inner(value) for value in values)
    if origin in (dict, Mapping) or hint is typing.Any:
        return lambda value: value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _dataclass(hint)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return hint
    if hint is float:
        return float
    if hint in (int, str, bool):
        return functools.partial(_exactly, hint)
    # collections.abc.Mapping[str, Any] has Mapping's abc as origin
    return lambda value: value


def _exactly(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"expected {kind.__name__}, found {value!r}")
    return value


def _optional(hint: Any) -> Convert:
    (inner,) = (part for part in typing.get_args(hint) if part is not type(None))
    convert = _converter(inner)
    return lambda value: None if value is None else convert(value)


def _dataclass(kind: type) -> Convert:
    hints = typing.get_type_hints(kind)
    fields = {name: _converter(hints[name]) for name in _names(kind) if name != "extra"}
    keeps = "extra" in _names(kind)

    def convert(plain: Any) -> Any:
        if not isinstance(plain, dict):
            raise TypeError(f"expected an object for {kind.__name__}, found {plain!r}")
        known = {name: fields[name](plain[name]) for name in plain if name in fields}
        if keeps:
            extra = {name: value for name, value in plain.items() if name not in fields}
            return kind(**known, extra=extra) if extra else kind(**known)
        return kind(**known)

    return convert
