"""Filters as operations see them: what is stored in which order, and what is said of what is enforced."""

from __future__ import annotations

from typing import Any

import pytest

from pvc.cluster import paths
from pvc.cluster.clients import AccessList, Direction, Rule
from pvc.cluster.codec import dumps, loads, to_json
from pvc.cluster.filters import Fault, Refused
from pvc.cluster.store import Create, Delete
from pvc.commands import network_acl
from pvc.commands.context import invoke
from pvc.commands.registry import find
from pvc.errors import Conflict, Unavailable
from tests.unit.commands.test_every_operation import coordinators
from tests.unit.commands.world import Interrupted, World


def shop() -> World:
    """Network 101 with a gateway on the primary n1."""
    world = coordinators()
    world.call(
        "network.add",
        vni=101,
        description="shop",
        kind="managed",
        ipnet="10.1.0.0/24",
        gateway="10.1.0.1",
    )
    return world


def add(world: World, description: str, direction: str = "in", **given: Any) -> Any:
    given = given or {"rule": "drop"}
    return world.call(
        "network.acl-add", network="shop", direction=direction, description=description, **given
    )


def stored(world: World) -> AccessList:
    found = world.store.get(paths.network_access(101))
    assert found is not None
    return loads(AccessList, found.data)


def order(world: World, direction: str = "in") -> list[str]:
    return [one.description for one in stored(world).rules if one.direction == direction]


def listed(world: World, answer: Any, **given: Any) -> list[dict[str, Any]]:
    """As the primary answers; the last place that was asked is checked."""
    context = world.context()

    def ask(address: str, port: int, path: str) -> Any:
        assert (address, port, path) == ("10.0.0.1", 7371, "filters/101")
        if isinstance(answer, Exception):
            raise answer
        return {"rules": answer}

    context.ask = ask
    rows = to_json(invoke(find("network.acl-list"), context, {"network": "101", **given}))
    assert isinstance(rows, list)
    return rows


def counted(direction: str, number: int, packets: int = 0) -> dict[str, Any]:
    return {"direction": direction, "rule": str(number), "packets": packets, "bytes": packets * 84}


def test_a_rule_for_out_is_one_for_out() -> None:
    world = shop()
    add(world, "mail", "out", proto="tcp", port="25")
    (rule,) = stored(world).rules
    assert (rule.direction, rule.rule, rule.number) == (Direction.OUT, "tcp dport 25 drop", 1)


def test_inserting_shifts_and_the_order_is_a_number() -> None:
    world = shop()
    for number in range(1, 12):
        add(world, f"r{number}")
        add(world, f"r{number}", "out")
    answer = add(world, "second", order=2, rule="accept")
    assert answer["order"] == 2
    assert order(world) == ["r1", "second", *(f"r{number}" for number in range(2, 12))]
    add(world, "tenth", order=10, rule="accept")
    assert order(world).index("tenth") == 9
    assert order(world, "out") == [f"r{number}" for number in range(1, 12)]
    rows = listed(world, [])
    assert [row["order"] for row in rows] == [*range(1, 14), *range(1, 12)]


def test_a_rule_keeps_its_number_and_none_is_given_twice() -> None:
    world = shop()
    for name in ("a", "b", "c"):
        add(world, name)
    world.call("network.acl-remove", network="101", description="c")
    add(world, "d", order=1, rule="accept")
    assert {one.description: one.number for one in stored(world).rules} == {"a": 1, "b": 2, "d": 4}


def test_of_two_that_add_at_once_both_rules_stay() -> None:
    world = shop()
    add(world, "a")
    reader = Interrupted(world.store, paths.network_access(101), lambda: add(world, "b") and None)
    world.call(
        "network.acl-add", reader=reader, network="101", direction="in", description="c", rule="accept"
    )
    assert order(world) == ["a", "b", "c"]
    assert len({one.number for one in stored(world).rules}) == 3


def test_both_directions_may_have_a_rule_of_the_same_name() -> None:
    world = shop()
    add(world, "web", "in")
    add(world, "web", "out")
    world.call("network.acl-remove", network="101", description="web", direction="in")
    assert (order(world, "in"), order(world, "out")) == ([], ["web"])


def test_another_rule_that_nft_does_not_take_is_not_said_to_be_the_new_one() -> None:
    world = shop()
    add(world, "old", rule="tcp dport 22 drop")
    context = world.context()

    def refuse(text: str) -> None:
        line = next(n for n, line in enumerate(text.split("\n"), 1) if "dport 22" in line)
        raise Refused("nft does not take the filters: no such thing", [Fault(line, "no such thing")])

    context.check_filters = refuse
    given = {"network": "101", "direction": "in", "description": "new", "rule": "drop"}
    with pytest.raises(Unavailable, match="no such thing"):
        invoke(find("network.acl-add"), context, given)
    assert order(world) == ["old"]


# Listed is what is enforced


def test_list_shows_what_the_primary_counted_for_each_rule() -> None:
    world = shop()
    add(world, "ssh", rule="tcp dport 22 accept")
    add(world, "rest", rule="drop")
    add(world, "mail", "out", rule="tcp dport 25 drop")
    rows = listed(world, [counted("in", 1, 5), counted("in", 2, 9), counted("out", 3, 1)])
    assert [(row["direction"], row["description"], row["packets"], row["bytes"]) for row in rows] == [
        ("in", "ssh", 5, 420),
        ("in", "rest", 9, 756),
        ("out", "mail", 1, 84),
    ]
    assert {row["enforced"] for row in rows} == {"yes"}
    assert [row["description"] for row in listed(world, [], direction="out")] == ["mail"]


def test_a_rule_that_is_not_in_the_kernel_is_said_not_to_be_enforced() -> None:
    world = shop()
    add(world, "ssh")
    add(world, "rest")
    rows = listed(world, [counted("in", 1, 5)])
    assert [(row["packets"], row["enforced"]) for row in rows] == [(5, "yes"), (None, "not yet")]


def test_an_order_that_is_not_the_kernels_is_said() -> None:
    world = shop()
    add(world, "ssh")
    add(world, "rest")
    rows = listed(world, [counted("in", 2), counted("in", 1)])
    assert [row["enforced"] for row in rows] == ["not yet in this order"] * 2
    rows = listed(world, [counted("in", 7), counted("in", 1), counted("in", 2)])
    assert [row["enforced"] for row in rows] == ["yes", "yes"], "one that was removed is about to go"


def test_a_direction_that_was_closed_is_said_to_be() -> None:
    world = shop()
    add(world, "odd")
    broken = {"direction": "in", "rule": "broken", "packets": 3, "bytes": 9}
    assert listed(world, [broken])[0]["enforced"].startswith("nothing new passes")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Unavailable("the node at 10.0.0.1:7371 does not serve"), "nobody can say: the node at"),
        (None, "n1 has loaded no filters yet"),
    ],
)
def test_when_nobody_can_say_there_are_no_zeros(answer: Any, says: str) -> None:
    world = shop()
    add(world, "ssh")
    (row,) = listed(world, answer)
    assert (row["packets"], row["bytes"]) == (None, None)
    assert row["enforced"].startswith(says)


def test_without_a_primary_or_a_gateway_nothing_is_enforced() -> None:
    world = shop()
    add(world, "ssh")
    primary = world.store.get(paths.PRIMARY)
    assert primary is not None
    world.store.commit(Delete(paths.PRIMARY))
    (row,) = world.call("network.acl-list", network="101")
    assert (row["packets"], row["enforced"]) == (None, "there is no primary now")
    world.call("network.modify", network="101", gateway="")
    (row,) = world.call("network.acl-list", network="101")
    assert row["enforced"] == "the network has no gateway: nothing leaves it"


def test_where_there_are_no_rules_nobody_is_asked() -> None:
    assert listed(shop(), AssertionError("asked all the same")) == []


@pytest.mark.parametrize(
    ("count", "rule", "says"),
    [
        (network_acl.MOST_RULES, "drop", "has 1000 rules, the most there can be"),
        (network_acl.MOST_BYTES // 950, f"tcp dport {{ {'1, ' * 300}22 }} drop", "longer than 512 KiB"),
    ],
)
def test_more_rules_than_a_document_can_hold_are_refused(count: int, rule: str, says: str) -> None:
    world = shop()
    rules = tuple(Rule(Direction.IN, f"r{number}", rule, number) for number in range(count))
    world.store.commit(Create(paths.network_access(101), dumps(AccessList(rules, count))))
    with pytest.raises(Conflict, match=says):
        add(world, "one more", rule=rule)
    assert len(stored(world).rules) == count


def test_filters_go_with_their_network() -> None:
    world = shop()
    add(world, "ssh")
    world.call("network.remove", network="101")
    assert world.store.get(paths.network_access(101)) is None
