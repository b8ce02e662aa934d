"""One declaration per operation: CLI verb, HTTP route, OpenAPI, completion and help from a typed function.

    @operation("POST", "/vm/{vm}/migrate", role=Role.OPERATE, waits=True)
    def migrate(ctx: Context, vm: VMName, *, target: Target | None = None, live: bool = True) -> VM:
        \"\"\"Move a VM to another node for now, remembering its home.\"\"\"

A positional parameter is a CLI positional and a path segment (or a field of the body if no path names it);
a keyword-only one is an option and a field. The annotation converts and validates, here and nowhere else.
"""

from __future__ import annotations

import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, TypeVar

from pvc.commands import VERBS
from pvc.errors import Invalid, NotFound


class Role(StrEnum):
    """What a caller may do; each role includes the ones before it."""

    READ = "read"
    OPERATE = "operate"
    ADMIN = "admin"

    def allows(self, needed: Role) -> bool:
        order = list(Role)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True, slots=True)
class Arg:
    """What an annotation says beyond its type; goes into Annotated[type, Arg(…)]."""

    help: str = ""
    short: str = ""
    """`-t`, or `-a/-A` for a switch that can also be turned off."""
    metavar: str = ""
    complete: str = ""
    """Whose names complete it: vm, node, file … as in pvc.commands.completion; none: of nobody."""
    pattern: str = ""
    what: str = ""
    """What the pattern describes, for the error: "a VM name: letters, …"."""
    minimum: float | None = None
    maximum: float | None = None
    file: bool = False
    """The CLI takes a file's path (- is stdin) and sends its text."""
    long: str = ""
    """Option name where it differs from the parameter's."""
    switches: bool = False
    """Of a choice: on the command line each value is an option of its own, `--in` and `--out`.

    `help` has a text for each, with | between them.
    """
    asked_with: str = ""
    """A secret: with that other parameter given and this one not, the terminal is asked, without echo."""


@dataclass(frozen=True, slots=True)
class Param:
    name: str
    kind: type
    """str, int, float, bool or a StrEnum: of the value, or of each element. bytes: the body as it is."""
    arg: Arg
    positional: bool
    required: bool
    default: Any
    many: bool
    optional: bool

    @property
    def option(self) -> str:
        if self.arg.switches:
            return "|".join(f"--{value}" for value in self.choices)
        return "--" + (self.arg.long or self.name.strip("_").replace("_", "-"))

    @property
    def help(self) -> str:
        return "; or ".join(self.arg.help.split("|")) if self.arg.switches else self.arg.help

    @property
    def choices(self) -> tuple[str, ...]:
        return tuple(str(member) for member in self.kind) if issubclass(self.kind, StrEnum) else ()


@dataclass(frozen=True, slots=True)
class Operation:
    noun: str
    verb: str
    """May be up to three words: `tag add`, `sriov vf list`."""
    method: str
    """GET, POST, PUT, PATCH or DELETE; empty for one that only runs in the client's own process."""
    path: str
    role: Role
    function: Callable[..., Any]
    params: tuple[Param, ...]
    help: str
    details: str
    returns: Any
    columns: tuple[str, ...]
    """Of the table, in order; empty: every field of the result."""
    confirm: str
    """Question asked before it is done, with {param} in it; empty: none."""
    done: str
    """Told when it is done, with {param}, {field} of the result and {pending} in it; empty: how it stands."""
    waits: str
    """Operation that shows what this one set in motion (`vm.info`), for --wait; empty: done at once."""

    @property
    def name(self) -> str:
        return named(self.noun, self.verb)

    @property
    def is_task(self) -> bool:
        """It begins one, which clients follow to its end unless told not to: the rest may depend on it."""
        return self.waits == "task.info"

    @property
    def is_local(self) -> bool:
        return not self.method

    @property
    def is_read(self) -> bool:
        return self.method == "GET"

    @property
    def raw(self) -> Param | None:
        """The parameter that is the body of the request as it is; then the others are in path and query."""
        return next((param for param in self.params if param.kind is bytes), None)

    def param(self, name: str) -> Param:
        return next(param for param in self.params if param.name == name)


_registered: dict[str, Operation] = {}

F = TypeVar("F", bound=Callable[..., Any])


def operation(
    method: str,
    path: str,
    *,
    role: Role = Role.READ,
    verb: str = "",
    noun: str = "",
    columns: Iterable[str] = (),
    confirm: str = "",
    done: str = "",
    waits: str = "",
) -> Callable[[F], F]:
    """Declare a function as an operation. Raises at import when the declaration is incomplete."""

    def declare(function: F) -> F:
        found = _declared(
            function,
            noun or function.__module__.rsplit(".", 1)[-1],
            verb or function.__name__.strip("_").replace("_", "-"),
            method,
            path,
            role,
            tuple(columns),
            confirm,
            done,
            waits,
        )
        _registered[found.name] = found
        return function

    return declare


def local(
    *, verb: str = "", noun: str = "", columns: Iterable[str] = (), confirm: str = ""
) -> Callable[[F], F]:
    """Declare a verb that runs in the client's own process; its first parameter is a LocalContext."""
    return operation("", "", role=Role.READ, verb=verb, noun=noun, columns=columns, confirm=confirm)


def _declared(
    function: Callable[..., Any],
    noun: str,
    verb: str,
    method: str,
    path: str,
    role: Role,
    columns: tuple[str, ...],
    confirm: str,
    done: str,
    waits: str,
) -> Operation:
    hints = typing.get_type_hints(function, include_extras=True)
    signature = list(inspect.signature(function).parameters.values())[1:]
    params = tuple(_param(parameter, hints[parameter.name]) for parameter in signature)
    doc = inspect.getdoc(function) or ""
    if not doc:
        raise TypeError(f"operation {noun} {verb} has no docstring")
    known = {param.name for param in params if param.positional}
    for name in re.findall(r"{(\w+)}", path):
        if name not in known:
            raise TypeError(f"{path} names {name}, which is no positional parameter of {function.__name__}")
    summary, _, details = doc.partition("\n\n")
    return Operation(
        noun=noun,
        verb=verb,
        method=method,
        path=path,
        role=role,
        function=function,
        params=params,
        help=" ".join(summary.split()),
        details=details,
        returns=hints.get("return"),
        columns=columns,
        confirm=confirm,
        done=done,
        waits=waits,
    )


def _param(parameter: inspect.Parameter, hint: Any) -> Param:
    kind, arg, many, optional = _unwrap(hint)
    if kind not in (str, int, float, bool, bytes) and not issubclass(kind, StrEnum):
        raise TypeError(f"parameter {parameter.name} has type {kind}, which no transport can carry")
    has_default = parameter.default is not inspect.Parameter.empty
    return Param(
        name=parameter.name,
        kind=kind,
        arg=arg,
        positional=parameter.kind is not inspect.Parameter.KEYWORD_ONLY,
        required=not has_default,
        default=parameter.default if has_default else None,
        many=many,
        optional=optional,
    )


def _over(outer: Arg, inner: Arg) -> Arg:
    """What the outer says, else the inner: `Annotated[NodeName, Arg(short="-t")]` keeps the pattern."""
    said = {
        one.name: getattr(outer, one.name) for one in fields(Arg) if getattr(outer, one.name) != one.default
    }
    return replace(inner, **said)


def _unwrap(hint: Any) -> tuple[type, Arg, bool, bool]:
    """Look through Annotated, `| None` and tuple[X, ...], in any nesting. What is said further out counts."""
    arg, many, optional = Arg(), False, False
    while True:
        origin = typing.get_origin(hint)
        if origin is typing.Annotated:
            hint, *extras = typing.get_args(hint)
            for extra in reversed(extras):
                arg = _over(arg, extra) if isinstance(extra, Arg) else arg
        elif origin in (typing.Union, types.UnionType):
            optional = True
            (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
        elif origin is tuple:
            many = True
            hint = typing.get_args(hint)[0]
        else:
            return hint, arg, many, optional


# Looking up


def operations(noun: str) -> dict[str, Operation]:
    """Verb → operation, of one noun; imports only that noun's modules."""
    modules = VERBS.get(noun)
    if modules is None:
        raise NotFound(f"pvc has no noun {noun}", hint="pvc --help")
    for module in modules:
        importlib.import_module(module)
    return {found.verb: found for found in _registered.values() if found.noun == noun}


def every_operation() -> Iterator[Operation]:
    for noun in VERBS:
        yield from operations(noun).values()


def find(name: str) -> Operation:
    """By its name, `vm.tag-add`; imports only the module that declares it."""
    noun = name.partition(".")[0]
    for module, verbs in VERBS.get(noun, {}).items():
        if any(named(noun, verb) == name for verb in verbs):
            importlib.import_module(module)
            return _registered[name]
    raise NotFound(f"pvc has no operation {name}")


def named(noun: str, verb: str) -> str:
    """The name of an operation: `vm.tag-add`."""
    return f"{noun}.{verb.replace(' ', '-')}"


# Converting


TRUE, FALSE = {"true", "yes", "1", "on"}, {"false", "no", "0", "off"}


def convert(found: Operation, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a function from what a transport carried; refuses what is unknown, missing or wrong."""
    known = {param.name: param for param in found.params}
    for name in given:
        if name not in known:
            options = ", ".join(known) or "none"
            raise Invalid(f"{found.noun} {found.verb} has no parameter {name}", hint=f"it takes: {options}")
    return {name: _argument(param, given) for name, param in known.items()}


def _argument(param: Param, given: Mapping[str, Any]) -> Any:
    value = given.get(param.name)
    if param.name not in given or value is None:
        if param.required or (value is None and param.name in given and not param.optional):
            raise Invalid(f"{param.name} is missing")
        return param.default
    if not param.many:
        return convert_value(param, value)
    elements = value if isinstance(value, list | tuple) else [value]
    return tuple(convert_value(param, element) for element in elements)


def convert_value(param: Param, value: Any) -> Any:
    """One value, from text or JSON. Raises Invalid naming the parameter."""
    if param.kind is bool:
        return _boolean(param, value)
    if param.kind is bytes:
        return _content(param, value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Invalid(f"{param.name} must be {_expected(param)}, not {value!r}")
    if param.kind in (int, float):
        return _number(param, value)
    text = str(value)
    if param.choices:
        if text not in param.choices:
            raise Invalid(f"{param.name} cannot be {text!r}", hint=f"one of: {', '.join(param.choices)}")
        return param.kind(text)
    if param.arg.pattern and not re.fullmatch(param.arg.pattern, text):
        raise Invalid(f"{param.name} {text!r} is not {_expected(param)}")
    if "\0" in text:
        raise Invalid(f"{param.name} contains a NUL character")
    return text


def _boolean(param: Param, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    if text in TRUE:
        return True
    if text in FALSE:
        return False
    raise Invalid(f"{param.name} must be true or false, not {value!r}")


def _content(param: Param, value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise Invalid(f"{param.name} must be bytes, the body of the request")
    return value


def _number(param: Param, value: str | int | float) -> int | float:
    try:
        number = param.kind(value)
        if param.kind is int and isinstance(value, float) and value != number:
            raise ValueError
        if number != number or number in (float("inf"), float("-inf")):
            raise ValueError
    except (ValueError, OverflowError):
        raise Invalid(f"{param.name} must be {_expected(param)}, not {value!r}") from None
    arg = param.arg
    if arg.minimum is not None and number < arg.minimum:
        raise Invalid(f"{param.name} must be at least {arg.minimum:g}, not {number}")
    if arg.maximum is not None and number > arg.maximum:
        raise Invalid(f"{param.name} must be at most {arg.maximum:g}, not {number}")
    return typing.cast("int | float", number)


def _expected(param: Param) -> str:
    if param.arg.what:
        return param.arg.what
    return {str: "a text", int: "a whole number", float: "a number"}.get(param.kind, "a text")


@dataclass(slots=True)
class Planned:
    """What `--plan` answers: what would happen and why; nothing was changed."""

    plan: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
