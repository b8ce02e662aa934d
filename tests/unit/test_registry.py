"""The registry: declarations it refuses, and what holds for every verb there is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any

import pytest

from pvc.cli import noun_help, resolve
from pvc.cluster.cluster import ClusterSpec
from pvc.commands import FOR_PROGRAMS
from pvc.commands.context import Context
from pvc.commands.registry import (
    Arg,
    Operation,
    Role,
    convert,
    every_operation,
    find,
    named,
    operation,
)
from pvc.docs import _roff, cli_reference, man_page
from pvc.errors import Invalid, NotFound
from pvc.parser import build, clashes, parse, usage

OPERATIONS = {found.name: found for found in every_operation()}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_verb_has_help(name: str) -> None:
    found = OPERATIONS[name]
    text, _, _ = parse(found, ["--help"])
    assert found.help in " ".join(text.split())
    for param in found.params:
        assert param.positional or all(option in text for option in param.option.split("|"))


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_option_of_a_verb_hides_another(name: str) -> None:
    found = OPERATIONS[name]
    assert not clashes(found)
    build(found)


def test_what_nobody_types_is_in_no_help_and_no_manual_but_can_be_called() -> None:
    hidden = {named(noun, verb) for noun, verbs in FOR_PROGRAMS.items() for verb in verbs}
    assert hidden == {
        *("vm.definition", "vm.set-definition", "vm.log-text", "node.log-text", "completion.complete"),
        *("vm.snapshot-download-begin", "vm.snapshot-download-piece", "vm.snapshot-download-end"),
        *("vm.snapshot-upload-begin", "vm.snapshot-upload-piece"),
        *("storage.volume-upload-begin", "storage.volume-upload-piece"),
        *("storage.volume-download-begin", "storage.volume-download-map"),
        *("storage.volume-download-piece", "storage.volume-download-end"),
    }
    manual, page = cli_reference(), man_page()
    for found in map(OPERATIONS.__getitem__, sorted(hidden)):
        *group, last = found.verb.split(" ")
        assert f"  {last} " not in noun_help([found.noun, *group])
        assert f"pvc {found.noun} {found.verb}\n" not in manual
        assert f".SS {_roff(usage(found))}\n" not in page
        assert resolve([found.noun, *found.verb.split(" ")], [])[0] is found
    assert ".SS pvc vm log VM" in page
    assert "### pvc vm log\n" in manual


@pytest.mark.parametrize("name", [name for name, found in OPERATIONS.items() if found.waits])
def test_what_is_waited_for_exists_and_says_when_it_is_settled(name: str) -> None:
    shows = OPERATIONS[OPERATIONS[name].waits]
    assert shows.is_read
    assert "settled" in getattr(shows.returns, "__dataclass_fields__", {"settled": 0})


@pytest.mark.parametrize("name", [name for name, found in OPERATIONS.items() if found.confirm])
def test_questions_name_what_they_are_about(name: str) -> None:
    found = OPERATIONS[name]
    assert found.confirm.format_map({param.name: "it" for param in found.params}).endswith(("?", "."))


def test_an_unknown_operation() -> None:
    with pytest.raises(NotFound):
        find("vm.nonsense")
    with pytest.raises(NotFound):
        find("nonsense.list")


@pytest.mark.parametrize(
    ("has", "needs", "allowed"),
    [
        (Role.READ, Role.READ, True),
        (Role.READ, Role.OPERATE, False),
        (Role.OPERATE, Role.READ, True),
        (Role.OPERATE, Role.ADMIN, False),
        (Role.ADMIN, Role.OPERATE, True),
    ],
)
def test_roles_include_those_before(has: Role, needs: Role, allowed: bool) -> None:
    assert has.allows(needs) is allowed


# Declarations


def without_help(ctx: Context) -> None: ...


def with_a_type_nothing_carries(ctx: Context, *, cluster: ClusterSpec) -> None:
    """Help."""


def without_the_name_of_its_path(ctx: Context) -> None:
    """Help."""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (without_help, "no docstring"),
        (with_a_type_nothing_carries, "no transport can carry"),
        (without_the_name_of_its_path, "no positional parameter"),
    ],
)
def test_incomplete_declarations_are_refused(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        operation("GET", "/thing/{name}", noun="undeclared")(function)


def test_what_is_said_further_out_counts_and_the_rest_stays() -> None:
    inner = Annotated[str, Arg("a name", metavar="NAME", pattern="[a-z]+")]
    (param,) = taking(Annotated[inner, Arg("another", short="-n")] | None).params
    assert param.arg == Arg("another", short="-n", metavar="NAME", pattern="[a-z]+")
    (param,) = taking(Annotated[tuple[inner, ...], Arg("many")]).params
    assert param.arg == Arg("many", metavar="NAME", pattern="[a-z]+")


def test_names_come_from_the_function() -> None:
    assert find("vm.list").verb == "list"
    assert find("vm.tag-add").verb == "tag add"


# Options that clash: what the tests above would find


def declared(*options: tuple[str, str]) -> Operation:
    """A verb with options of these names and short names."""
    found = find("vm.list")
    sample = next(param for param in found.params if not param.positional)
    params = tuple(
        dataclasses.replace(sample, name=name, arg=Arg("help", short=short)) for name, short in options
    )
    return dataclasses.replace(found, params=params)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([("one", "-x"), ("two", "-x")], "-x is both one and two"),
        ([("one", "-q")], "-q of one hides a global"),
        ([("debug", "")], "--debug of debug hides a global"),
        ([("watch", "")], "--watch of watch hides"),
        ([("one", "-s"), ("two", "-f")], ""),
    ],
)
def test_clashes_are_found(options: list[tuple[str, str]], expected: str) -> None:
    found = clashes(declared(*options))
    assert bool(found) is bool(expected)
    assert expected in "".join(found)


# Converting


def taking(hint: Any) -> Operation:
    def function(ctx: Context, value: Any) -> None:
        """Help."""

    function.__annotations__["value"] = hint
    found: list[Operation] = []
    from pvc.commands import registry

    operation("POST", "/thing", noun="undeclared", verb="take")(function)
    found.append(registry._registered.pop("undeclared.take"))
    return found[0]


@pytest.mark.parametrize(
    ("hint", "given", "expected"),
    [
        (bool, "false", False),
        (bool, "False", False),
        (bool, "on", True),
        (bool, True, True),
        (int, "7", 7),
        (int, 7.0, 7),
        (float, "1.5", 1.5),
        (str, 7, "7"),
        (tuple[int, ...], ["1", 2], (1, 2)),
        (tuple[int, ...], "3", (3,)),
        (tuple[str, ...], [], ()),
        (Annotated[int, Arg(minimum=1)] | None, "1", 1),
        (Annotated[tuple[Annotated[str, Arg(pattern="[a-z]+")], ...], Arg("names")], ["a"], ("a",)),
    ],
)
def test_what_is_understood(hint: Any, given: Any, expected: Any) -> None:
    assert convert(taking(hint), {"value": given}) == {"value": expected}


@pytest.mark.parametrize(
    ("hint", "given"),
    [
        (bool, "perhaps"),
        (bool, ""),
        (bool, 2),
        (int, "1.5"),
        (int, 1.5),
        (int, True),
        (int, "1e3"),
        (float, "inf"),
        (float, "nan"),
        (str, {"a": 1}),
        (str, "nul\0"),
        (str, None),
        (tuple[int, ...], ["1", "x"]),
        (Annotated[int, Arg(minimum=1)], 0),
        (Annotated[int, Arg(maximum=9)], 10),
        (Annotated[str, Arg(pattern="[a-z]+")], "A"),
        (Annotated[str, Arg(pattern="[a-z]+")], "a\n"),
        (Role, "god"),
    ],
)
def test_what_is_refused(hint: Any, given: Any) -> None:
    with pytest.raises(Invalid, match="value"):
        convert(taking(hint), {"value": given})


def test_what_is_missing_or_unknown_is_named() -> None:
    with pytest.raises(Invalid, match="value is missing"):
        convert(taking(int), {})
    with pytest.raises(Invalid, match="no parameter other"):
        convert(taking(int), {"value": 1, "other": 2})


def test_a_choice_of_switches_is_given_by_one_of_them() -> None:
    add = OPERATIONS["network.acl-add"]
    _, given, _ = parse(add, ["shop", "--out", "--port", "25", "-d", "mail", "--reject"])
    assert given == {
        "network": "shop",
        "direction": "out",
        "port": "25",
        "description": "mail",
        "verdict": "reject",
    }
    with pytest.raises(Invalid, match="--in: not allowed with argument --out"):
        parse(add, ["shop", "--out", "--in", "-d", "mail"])
    with pytest.raises(Invalid, match="--in or --out is missing"):
        parse(add, ["shop", "-d", "mail"])
    _, given, _ = parse(OPERATIONS["network.acl-list"], ["shop"])
    assert given == {"network": "shop"}
