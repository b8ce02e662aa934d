"""The arguments of a request: from path, query string and body (form or JSON), each from one place only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from pvc.commands.registry import Operation
from pvc.errors import Invalid

LARGEST_BODY = 4 * 1024 * 1024
MOST_FIELDS = 1000
FORM = "application/x-www-form-urlencoded"
JSON = "application/json"
BYTES = "application/octet-stream"


class TooLarge(Invalid):
    http_status = 413


class UnknownForm(Invalid):
    """A body of a type that nothing here reads."""

    http_status = 415


def gather(
    found: Operation, path: Mapping[str, str], query: str, content_type: str, body: bytes
) -> dict[str, Any]:
    """Raises Invalid naming the argument that was given twice, or what cannot be read."""
    gathered: dict[str, Any] = {}
    sources = (
        ("path", path),
        ("query string", _fields(found, query)),
        ("body", _body(found, content_type, body)),
    )
    for where, given in sources:
        for name, value in given.items():
            if name in gathered:
                raise Invalid(f"{name} is given twice, the second time in the {where}")
            gathered[name] = value
    return gathered


def _fields(found: Operation, text: str) -> dict[str, Any]:
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MOST_FIELDS)
    except ValueError as error:
        raise Invalid(f"the arguments cannot be read: {error}") from None
    many = {param.name for param in found.params if param.many}
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in many:
            fields.setdefault(name, []).append(value)
        elif name in fields:
            raise Invalid(f"{name} is given twice")
        else:
            fields[name] = value
    return fields


def _body(found: Operation, content_type: str, body: bytes) -> dict[str, Any]:
    if not body:
        return {}
    if found.is_read:
        raise Invalid("a GET request has no body", hint="give the arguments in the query string")
    kind = content_type.partition(";")[0].strip().lower()
    if found.raw is not None:
        if kind != BYTES:
            raise UnknownForm(f"cannot read a body of type {kind or 'none'}", hint=f"send {BYTES}")
        return {found.raw.name: body}
    if kind == FORM:
        return _fields(found, _text(body))
    if kind in (JSON, ""):
        return _object(_text(body))
    raise UnknownForm(f"cannot read a body of type {kind}", hint=f"send {JSON} or {FORM}")


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise Invalid("the body is not UTF-8") from None


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Invalid("the body must be a JSON object")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise Invalid(f"{name} is given twice")
        found[name] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
