"""The API's description (OpenAPI 3.1) from the registry: operations, parameters, bounds, answers, errors."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from pvc import __version__
from pvc.commands.registry import Operation, Param, Planned
from pvc.errors import ERRORS

Schema = dict[str, Any]

BYTES = "application/octet-stream"
ERROR = {"$ref": "#/components/schemas/Error"}
STATUSES = {
    "400": "an argument is missing, unknown or out of bounds",
    "401": "the token is missing, wrong or expired",
    "403": "the token's role is too small",
    "404": "there is no such object",
    "405": "this path does not take this method",
    "409": "the object is in another state than this needs, or was changed at the same time",
    "413": "the body is too large",
    "415": "the body is neither JSON nor a form",
    "422": "it was tried and failed, or was declined",
    "429": "too many wrong tokens",
    "500": "a mistake in pvc; the message names the request in the log",
    "503": "the cluster's store cannot be reached now",
    "504": "gave up waiting",
}
SIMPLE: dict[Any, Schema] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    bytes: {"type": "string"},
    type(None): {"type": "null"},
    Any: {},
    object: {},
}


def document(operations: Iterable[Operation]) -> Schema:
    components = _Components()
    paths: dict[str, Any] = {}
    for found in operations:
        if not found.is_local:
            paths.setdefault(found.path, {})[found.method.lower()] = _operation(found, components)
    components.of(Planned)
    components.schemas["Error"] = {
        "type": "object",
        "required": ["error", "message", "hint"],
        "properties": {
            "error": {"enum": sorted(ERRORS)},
            "message": {"type": "string"},
            "hint": {"type": "string", "description": "the way out"},
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "PVC",
            "version": __version__,
            "description": "Parallel Virtual Cluster. "
            "Arguments come from the path, the query string, a form or a JSON body.",
            "license": {"name": "GPL-3.0-or-later", "identifier": "GPL-3.0-or-later"},
        },
        "servers": [{"url": "/api/v1"}],
        "security": [{"bearer": []}, {"key": []}],
        "paths": paths,
        "components": {
            "schemas": components.schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
    }


def _operation(found: Operation, components: _Components) -> Schema:
    inside = [param for param in found.params if f"{{{param.name}}}" not in found.path]
    parameters = [_parameter(param, "path") for param in found.params if param not in inside]
    described: Schema = {
        "operationId": found.name,
        "summary": found.help,
        "tags": [found.noun],
        "x-pvc-role": str(found.role),
    }
    if found.details:
        described["description"] = found.details
    if found.is_read:
        parameters += [_parameter(param, "query") for param in inside]
        parameters += [] if found.returns is bytes else _waiting()
    elif found.raw is not None:
        parameters += [_parameter(param, "query") for param in inside if param is not found.raw]
        described["requestBody"] = {"required": found.raw.required, "content": {BYTES: {}}}
    elif inside:
        described["requestBody"] = _body(inside)
    parameters.append(
        {
            "name": "plan",
            "in": "query",
            "schema": {"type": "boolean"},
            "description": "say what would happen and why, and change nothing",
        }
    )
    described["parameters"] = parameters
    described["responses"] = _responses(found, components)
    return described


def _body(params: list[Param]) -> Schema:
    schema: Schema = {
        "type": "object",
        "properties": {param.name: _described(param, _values(param)) for param in params},
        "additionalProperties": False,
    }
    required = [param.name for param in params if param.required]
    if required:
        schema["required"] = required
    return {"required": bool(required), "content": {"application/json": {"schema": schema}}}


def _parameter(param: Param, where: str) -> Schema:
    schema = _value(param)
    if param.many:
        schema = {"type": "array", "items": schema}
    return {
        "name": param.name,
        "in": where,
        "required": where == "path" or param.required,
        "schema": schema,
        **({"description": param.help} if param.help else {}),
    }


def _waiting() -> list[Schema]:
    after = "the version (field `version`, or the ETag) the client has: the answer comes once it is another"
    return [
        {"name": "after", "in": "query", "schema": {"type": "string"}, "description": after},
        {
            "name": "within",
            "in": "query",
            "schema": {"type": "number", "minimum": 0, "maximum": 60},
            "description": "seconds after which the answer comes anyway",
        },
    ]


def _values(param: Param) -> Schema:
    """As a field of a body: a list where it may be many, null where it may be absent."""
    schema = _value(param)
    if param.many:
        schema = {"type": "array", "items": schema}
    if param.optional:
        return {"anyOf": [schema, {"type": "null"}]}
    return schema


def _value(param: Param) -> Schema:
    if param.choices:
        return {"type": "string", "enum": list(param.choices)}
    schema = dict(SIMPLE[param.kind])
    bounds = {"minimum": param.arg.minimum, "maximum": param.arg.maximum}
    schema.update({name: _bound(param.kind, bound) for name, bound in bounds.items() if bound is not None})
    if param.arg.pattern:
        schema["pattern"] = f"^(?:{param.arg.pattern})$"
    return schema


def _bound(kind: type, bound: float) -> int | float:
    return int(bound) if kind is int else bound


def _described(param: Param, schema: Schema) -> Schema:
    return {**schema, "description": param.help} if param.help else schema


def _responses(found: Operation, components: _Components) -> Schema:
    result = components.of(found.returns)
    planned = {"$ref": "#/components/schemas/Planned"}
    if found.returns is bytes:
        answers: Schema = {"200": _answer("the bytes, or with plan=true what would be done", planned)}
        answers["200"]["content"][BYTES] = {}
    else:
        done = {"anyOf": [result, planned]} if result else {}
        answers = {"200": _answer("done, or with plan=true what would be done", done)}
    if found.is_task:
        answers["202"] = _answer("accepted: the task that does it", result)
    return answers | {status: _answer(text, ERROR) for status, text in STATUSES.items()}


def _answer(text: str, schema: Schema) -> Schema:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


@dataclasses.dataclass(slots=True)
class _Components:
    """Schemas of the dataclasses that operations return, each once."""

    schemas: dict[str, Schema] = dataclasses.field(default_factory=dict)
    _names: dict[type, str] = dataclasses.field(default_factory=dict)

    def of(self, hint: Any) -> Schema:
        if hint is None:
            return {"type": "null"}
        if typing.get_origin(hint) is typing.Annotated:
            hint = typing.get_args(hint)[0]
        if hint in SIMPLE:
            return dict(SIMPLE[hint])
        origin, inner = typing.get_origin(hint), typing.get_args(hint)
        if origin in (typing.Union, types.UnionType):
            return {"anyOf": [self.of(one) for one in inner]}
        if origin in (list, tuple, set, frozenset):
            return {"type": "array", "items": self.of(inner[0])}
        if origin is dict or (isinstance(origin, type) and issubclass(origin, Mapping)):
            return {"type": "object", "additionalProperties": self.of(inner[1])}
        if isinstance(hint, type) and issubclass(hint, StrEnum):
            return {"type": "string", "enum": [str(member) for member in hint]}
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            return {"$ref": f"#/components/schemas/{self._dataclass(hint)}"}
        return {"type": "object"} if hint in (dict, Mapping) else {}

    def _dataclass(self, kind: type) -> str:
        if kind in self._names:
            return self._names[kind]
        name = kind.__name__ if kind.__name__ not in self.schemas else f"{kind.__module__}.{kind.__name__}"
        self._names[kind] = name
        schema = self.schemas[name] = {"type": "object"}
        hints = typing.get_type_hints(kind)
        fields = [one.name for one in dataclasses.fields(kind) if one.name != "extra"]
        schema["required"] = fields
        schema["properties"] = {field: self.of(hints[field]) for field in fields}
        return name
